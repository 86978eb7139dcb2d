# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
# mypy: disable-error-code="override"
"""`pipeline("speaker-verification")`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers.utils import logging

from ..configuration_csc import CSCConfig
from ..enrolment import Enrolment, comparing_class, enrolling, is_silent
from ..evaluation.calibration import Calibration, calibrated_conditions, check_enrolment
from ..long_audio import Job, SeparatedAudio, embedding
from ..modeling_csc import CSCModel, CSCPreTrainedModel
from .base import _CSCPipeline, load_by_name

logger = logging.get_logger(__name__)


class SpeakerVerificationPipeline(_CSCPipeline):
    """
    Do two recordings hold the same speaker, even if others speak too?

    The score is the cosine of the enrolled speaker with the best active slot of the test recording, or the logit of a
    [`CSCForSpeakerVerification`]. In an enrolment recording, the most active slot is taken for the speaker.
    Log-likelihood ratio and decision come from the calibration in the configuration of the model
    ([`~csc_hf.evaluation.calibration.Calibration`]). Without a calibration for this kind of enrolment, the pipeline
    warns, and decides only by a `threshold` of yours.

    Args:
        model: Any CSC model. By name, [`CSCForPreTraining`] or [`CSCForSpeakerVerification`] is loaded if the
            checkpoint is one, else [`CSCModel`].
        enrolment (`str`, *optional*): How a test is compared with the recordings of a speaker: `"mean"`, with the mean
            of their embeddings; `"attention"`, by the trained cross-attention of [`CSCForPreTraining`], with the slots
            of the test as queries; `"scorer"`, by [`CSCForSpeakerVerification`], with that mean as the query. If not
            given, it is `"scorer"` for such a model, and `"mean"` for all others.
        threshold (`float`, *optional*): Lowest score that is accepted. Replaces the calibration.
        condition (`str`, *optional*): Condition whose calibration is used, if several are stored. By default, that for
            `"clean"` recordings where one active slot is heard on either side, and else that for talkers at once,
            such as `"mix0"`.

    `threshold` and `condition` can also be given in each call. With `batch_size`, recordings of a list, generator or
    dataset go through the model together. Results stay the same.

    Example:

    ```python
    >>> from transformers import pipeline
    >>> import csc_hf

    >>> verify = pipeline("speaker-verification", model="user/csc")
    >>> verify("anna.wav", "meeting.wav")
    {'score': 0.71, 'llr': 3.2, 'decision': True, 'threshold': 0.52, 'condition': 'clean', 'silent': False,
     'several_speakers': True}
    >>> verify.enrol("anna", ["anna1.wav", "anna2.wav"])
    >>> verify("meeting.wav")
    [{'speaker': 'anna', 'score': 0.73, ...}]
    ```"""

    def __init__(self, *args, enrolment: str | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if enrolment is None:
            enrolment = "scorer" if hasattr(self.model, "score") else "mean"
        check_enrolment(enrolment)
        if enrolment == "attention" and not hasattr(self.model, "aggregate"):
            raise ValueError(
                f'enrolment="attention" needs the cross-attention, which this {type(self.model).__name__} lacks: use '
                "a checkpoint of CSCForPreTraining"
            )
        if enrolment == "scorer" and not hasattr(self.model, "score"):
            raise ValueError(
                f'enrolment="scorer" needs a scorer, which this {type(self.model).__name__} lacks: use a checkpoint '
                "of CSCForSpeakerVerification"
            )
        self.enrolment = enrolment
        self.enrolled: dict[str, Enrolment] = {}
        if (
            self._postprocess_params.get("threshold") is None
            and self._postprocess_params.get("condition") is None
            and not calibrated_conditions(self.model, enrolment)
        ):
            scores = "LOGITS" if enrolment == "scorer" else "COSINES"
            logger.warning(
                f"This model has no calibration for the enrolment {enrolment!r}: SCORES ARE BARE {scores} AND NOTHING "
                "IS DECIDED. Learn one on trials of your own (examples/evaluate_verification.py --store_calibration), "
                "or give a threshold"
            )

    def _sanitize_parameters(self, **parameters):
        preprocess = self._preprocess_parameters(parameters)
        unknown = parameters.keys() - {"threshold", "condition"}
        if unknown:
            raise TypeError(f"unknown options {sorted(unknown)}: this pipeline has threshold and condition")
        return preprocess, {}, parameters

    def enrol(self, name: str, recordings, channel: int | None = None) -> None:
        """
        Keep a speaker for calls with a test recording alone.

        Args:
            name: A name that is enrolled already is replaced.
            recordings: One recording, or a list of several.
            channel: The only channel to hear, counted from 0. By default, all are averaged.

        Raises:
            ValueError: A recording cannot be decoded, is empty, silent, or holds NaN; the name is not one of a file.
        """
        self.enrolled[name] = self._enrol(name, recordings, self.enrolment == "attention", channel)

    @torch.inference_mode()
    def compare(self, embedding: np.ndarray, **options) -> list[dict]:
        """
        Compare somebody whose embedding is known already, such as a speaker of a diarization, with the enrolled ones.

        Args:
            embedding: (embedding,) of unit length, from the same model.
            threshold, condition: As of the pipeline.

        Returns:
            A list of the enrolled speakers, as of a call with a test recording alone.

        Raises:
            ValueError: Nobody is enrolled; the embedding has another shape; the calibration is ambiguous; a scorer is
                to compare, which needs the recording.
        """
        if self.enrolment == "scorer":
            raise ValueError(
                'enrolment="scorer" hears the test recording: give that, or compare with enrolment="mean"'
            )
        if not self.enrolled:
            raise ValueError("nobody is enrolled: call .enrol(name, recordings) first")
        enrolled = dict(self.enrolled)  # others may enrol meanwhile
        slots = np.asarray(embedding, dtype=np.float32)[None]
        size = self.model.config.speaker_embedding_size
        if slots.shape != (1, size):
            raise ValueError(f"an embedding of shape {slots.shape[1:]}: give one of shape ({size},), from this model")
        outputs = {
            "one": False,
            "several_speakers": False,
            # A diarization hears conversations.
            "several_heard": dict.fromkeys(enrolled, True),
            "scores": {name: self._score(enrolment, slots) for name, enrolment in enrolled.items()},
            "silent": {name: enrolment.silent for name, enrolment in enrolled.items()},
        }
        return self.postprocess(outputs, **self._postprocess_params | options)

    def __call__(self, inputs, test=None, **options):
        """
        Args:
            inputs: Two recordings, `(enrolment, test)` or `{"enrolment": ..., "test": ...}`, of which the enrolment
                may be a list of several recordings of one speaker; a test recording alone, to be compared with all
                enrolled speakers; or a list, generator or dataset of any of these.
            test: The test recording, where `inputs` is the enrolment alone: `verify("a.wav", "b.wav")`.
            threshold, condition: As of the pipeline.
            channel (`int`, *optional*): The only channel of all recordings to hear, counted from 0. By default, all
                are averaged.

        Returns:
            `dict`: `score`, a cosine or, of a scorer, a logit; `llr`, the log-likelihood ratio (natural logarithm) or
            None; `decision`, a bool, or None where there is neither calibration nor threshold, or where a recording is
            `silent`; `threshold` on the score and the `condition` of its calibration, or None; `several_speakers`,
            whether the test holds more than one active slot. Against enrolled speakers: a list of them, each with its
            `speaker`, best first. For a list, a list of results in its order; for a generator or dataset, an iterator.

        Raises:
            ValueError: A recording cannot be decoded, is empty, or holds NaN; nobody is enrolled; several calibrations
                to choose from and no condition, or none of that condition.
        """
        if test is not None:
            inputs = {"enrolment": inputs, "test": test}
        return super().__call__(inputs, **options)

    def preprocess(self, inputs, channel: int | None = None) -> dict:
        if isinstance(inputs, tuple):
            if len(inputs) != 2:
                raise ValueError(f"a tuple of {len(inputs)} recordings: give (enrolment, test)")
            inputs = dict(zip(("enrolment", "test"), inputs, strict=True))
        if isinstance(inputs, Mapping) and "test" in inputs:
            if "enrolment" not in inputs:
                raise ValueError(f'a trial with the keys {sorted(inputs)}: give "enrolment" and "test"')
            return {
                "enrolment": self._decode_enrolment(inputs["enrolment"], channel),
                "test": self._decode(inputs["test"], "test", channel),
            }
        if not self.enrolled:
            raise ValueError("one recording, and nobody is enrolled: give two, or call .enrol(name, recordings) first")
        return {"test": self._decode(inputs, "test", channel)}

    @property
    def _network(self) -> CSCPreTrainedModel:
        return self.model.base_model

    def _num_samples(self, trial: dict) -> int:
        return len(trial["test"])

    def _job(self, trial: dict) -> Job[dict]:
        audio = yield from embedding(self.model.base_model, trial["test"], with_segments=self.enrolment == "scorer")
        active = audio.activity > 0
        slots = audio.embeddings[active | (audio.activity == audio.activity.max())]
        one = "enrolment" in trial
        enrolled: Mapping[Any, Enrolment] = dict(self.enrolled)  # others may enrol meanwhile
        if one:
            enrolment = yield from enrolling(self.model, trial["enrolment"], self.enrolment == "attention")
            enrolled = {None: enrolment}
        silent = is_silent(trial["test"], self.model.config.sampling_rate)
        several = bool(active.sum() > 1)
        return {
            "one": one,
            "several_speakers": several,
            "several_heard": {name: several or enrolment.several_speakers for name, enrolment in enrolled.items()},
            "scores": {
                name: self._score(enrolment, slots) if audio.segments is None else self._logit(enrolment, audio)
                for name, enrolment in enrolled.items()
            },
            "silent": {name: silent or enrolment.silent for name, enrolment in enrolled.items()},
        }

    def _score(self, enrolment: Enrolment, slots: np.ndarray) -> float:
        """Best cosine of an enrolled speaker with the slots (slots, embedding)."""
        if enrolment.memory is None:
            return float((slots @ enrolment.embedding).max())
        queries = torch.from_numpy(slots).to(enrolment.memory)
        answers = self.model.aggregate(queries, enrolment.memory.expand(len(queries), -1, -1))
        return F.cosine_similarity(answers.float(), queries.float(), dim=-1).max().item()

    def _logit(self, enrolment: Enrolment, audio: SeparatedAudio) -> float:
        """What the scorer says of an enrolled speaker and a test, whose segments were kept."""
        sides = (torch.from_numpy(array) for array in (enrolment.embedding, audio.embeddings, audio.activity))
        query, embeddings, activity = (side.to(self.model.device)[None] for side in sides)
        assert audio.segments is not None
        return self.model.score(query, embeddings, activity, audio.segments[None]).item()

    def postprocess(self, outputs: dict, threshold: float | None = None, condition: str | None = None):
        results = []
        for name, score in sorted(outputs["scores"].items(), key=lambda item: -item[1]):
            silent, lowest, calibration = outputs["silent"][name], threshold, None
            if threshold is None:
                calibration = Calibration.load(self.model, condition, self.enrolment, outputs["several_heard"][name])
                lowest = None if calibration is None else calibration.threshold
            results.append(
                {
                    **({} if outputs["one"] else {"speaker": name}),
                    "score": score,
                    "llr": None if calibration is None else calibration.llr(score),
                    "decision": None if lowest is None or silent else score >= lowest,
                    "threshold": lowest,
                    "condition": None if calibration is None else calibration.condition,
                    "silent": silent,
                    "several_speakers": outputs["several_speakers"],
                }
            )
        return results[0] if outputs["one"] else results


class VerificationModel:
    """Loads the model of `pipeline("speaker-verification", model="name")`."""

    @staticmethod
    def from_pretrained(name, **kwargs) -> CSCPreTrainedModel:
        try:
            config, _ = CSCConfig.get_config_dict(name, **kwargs)
        except OSError:  # an adapter has no configuration of its own
            config = {}
        return load_by_name(comparing_class(config.get("architectures"), CSCModel), name, **kwargs)
