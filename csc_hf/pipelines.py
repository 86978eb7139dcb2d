# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
# mypy: disable-error-code="override"
"""
`pipeline("speaker-verification")` and `pipeline("speech-separation")` of Transformers.

A recording is anything that `csc_hf.audio.decode_audio` takes: a path, the bytes of a file, a float array or tensor
at the sampling rate of the model, `{"array": ..., "sampling_rate": ...}`, a decoded value of a `datasets` audio
column; or a row with such a column named "audio". It can have any length: long ones go through the model by chunks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers.pipelines import PIPELINE_REGISTRY, Pipeline
from transformers.utils import logging

from .audio import SILENCE_POWER, decode_audio, power
from .configuration_csc import CSCConfig
from .evaluation.calibration import Calibration, calibrated_conditions, check_enrolment
from .long_audio import SeparatedAudio, embed, separate
from .modeling_csc import CSCForPreTraining, CSCForSpeechSeparation, CSCModel, CSCPreTrainedModel

logger = logging.get_logger(__name__)


@dataclass
class Enrolment:
    """
    An enrolled speaker.

    Args:
        embedding: (embedding,) of unit length, mean over the recordings of the embedding of their main speaker.
        memory: (segments, hidden size), all slots of all recordings, for the cross-attention; None without it.
        silent: Whether a recording is silent.
    """

    embedding: np.ndarray
    memory: torch.Tensor | None
    silent: bool


class _CSCPipeline(Pipeline):
    """What both pipelines share. They decode audio themselves, so they need no feature extractor."""

    model: Any
    _load_processor = False  # type: ignore[assignment]  # Transformers declares them as None
    _load_image_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]

    def __init__(self, *args, **kwargs):
        kwargs.pop("local_files_only", None)  # `pipeline` has loaded the model, and passes this on
        super().__init__(*args, **kwargs)
        self.model.eval()
        new = self.model.__dict__.pop(_NEW_WEIGHTS, ())
        if new:
            logger.warning(
                f"{len(new)} weights of this {type(self.model).__name__} (such as {new[0]}) are not in the checkpoint "
                "and were newly initialised: WHAT THE PIPELINE RETURNS MEANS NOTHING until they are trained."
            )

    def __call__(self, inputs, **options):
        if isinstance(inputs, list) and not inputs:
            return []
        return super().__call__(inputs, **options)

    def get_iterator(self, inputs, num_workers, batch_size, *parameters):
        # Recordings differ in length and are cut into chunks, so they go through the model one by one whatever the
        # batch size is: results are those of single calls.
        return super().get_iterator(inputs, num_workers, 1, *parameters)

    def _decode(self, recording, role: str) -> np.ndarray:
        """A recording as float32 (samples,); `role` names it in errors."""
        if isinstance(recording, Mapping) and not recording.keys() & {"array", "raw", "bytes", "path"}:
            recording = recording.get("audio", recording)  # a row of a dataset
        try:
            return decode_audio(recording, self.model.config.sampling_rate)
        except ValueError as error:
            raise ValueError(f"{role}: {error}") from error

    def _decode_enrolment(self, recordings) -> list[np.ndarray]:
        """One recording, or several in a list."""
        if not isinstance(recordings, list):
            return [self._decode(recordings, "enrolment")]
        if not recordings:
            raise ValueError("an enrolment without recordings: give at least one")
        return [
            self._decode(recording, f"recording {number} of the enrolment")
            for number, recording in enumerate(recordings, start=1)
        ]

    def _enrol(self, waveforms: list[np.ndarray], with_memory: bool = False) -> Enrolment:
        speakers = [embed(self.model.base_model, waveform, with_segments=with_memory) for waveform in waveforms]
        mean = np.mean([found.embeddings[found.activity.argmax()] for found in speakers], axis=0)
        segments = [found.segments for found in speakers if found.segments is not None]
        return Enrolment(
            embedding=mean / np.linalg.norm(mean),
            memory=torch.cat(segments) if with_memory else None,
            silent=any(is_silent(waveform) for waveform in waveforms),
        )


def is_silent(waveform: np.ndarray) -> bool:
    """Whether a waveform (samples,) is below −80 dB of full scale, on average."""
    return power(waveform) < SILENCE_POWER


class SpeakerVerificationPipeline(_CSCPipeline):
    """
    Do two recordings hold the same speaker, even if others speak too?

    The score is the cosine of the enrolled speaker with the best active slot of the test recording. In an enrolment
    recording, the most active slot is taken for the speaker. Log-likelihood ratio and decision come from the
    calibration in the configuration of the model ([`~csc_hf.evaluation.calibration.Calibration`]). Without a
    calibration for this kind of enrolment, the pipeline warns, and decides only by a `threshold` of yours.

    Args:
        model: Any CSC model. By name, [`CSCForPreTraining`] is loaded if the checkpoint is one, else [`CSCModel`].
        enrolment (`str`, defaults to `"mean"`): How a test is compared with the recordings of a speaker: `"mean"`,
            with the mean of their embeddings; `"attention"`, by the trained cross-attention of [`CSCForPreTraining`],
            with the slots of the test as queries.
        threshold (`float`, *optional*): Lowest score that is accepted. Replaces the calibration.
        condition (`str`, *optional*): Condition whose calibration is used, if several are stored.

    `threshold` and `condition` can also be given in each call. `batch_size` is accepted, and recordings still go
    through the model one by one.

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

    def __init__(self, *args, enrolment: str = "mean", **kwargs):
        super().__init__(*args, **kwargs)
        check_enrolment(enrolment)
        if enrolment == "attention" and not hasattr(self.model, "aggregate"):
            raise ValueError(
                f'enrolment="attention" needs the cross-attention, which this {type(self.model).__name__} lacks: use '
                "a checkpoint of CSCForPreTraining"
            )
        self.enrolment = enrolment
        self.enrolled: dict[str, Enrolment] = {}
        if (
            self._postprocess_params.get("threshold") is None
            and self._postprocess_params.get("condition") is None
            and not calibrated_conditions(self.model, enrolment)
        ):
            logger.warning(
                f"This model has no calibration for enrolment={enrolment!r}: SCORES ARE BARE COSINES AND NOTHING IS "
                "DECIDED. Learn a calibration on trials of your own (csc_hf.evaluation.calibration.fit_calibration, "
                "then .store(model)), or pass threshold=..."
            )

    def _sanitize_parameters(self, **parameters):
        unknown = parameters.keys() - {"threshold", "condition"}
        if unknown:
            raise TypeError(f"unknown options {sorted(unknown)}: this pipeline has threshold and condition")
        return {}, {}, parameters

    def enrol(self, name: str, recordings) -> None:
        """
        Keep a speaker for calls with a test recording alone.

        Args:
            name: A name that is enrolled already is replaced.
            recordings: One recording, or a list of several.
        """
        self.enrolled[name] = self._enrol(self._decode_enrolment(recordings), self.enrolment == "attention")

    def __call__(self, inputs, test=None, **options):
        """
        Args:
            inputs: Two recordings, `(enrolment, test)` or `{"enrolment": ..., "test": ...}`, of which the enrolment
                may be a list of several recordings of one speaker; a test recording alone, to be compared with all
                enrolled speakers; or a list, generator or dataset of any of these.
            test: The test recording, where `inputs` is the enrolment alone: `verify("a.wav", "b.wav")`.
            threshold, condition: As of the pipeline.

        Returns:
            `dict`: `score`, a cosine; `llr`, the log-likelihood ratio (natural logarithm) or None; `decision`, a bool,
            or None where there is neither calibration nor threshold, or where a recording is `silent`; `threshold` on
            the score and the `condition` of its calibration, or None; `several_speakers`, whether the test holds more
            than one active slot. Against enrolled speakers: a list of them, each with its `speaker`, best first. For a
            list, a list of results in its order; for a generator or dataset, an iterator.

        Raises:
            ValueError: A recording cannot be decoded, is empty, or holds NaN; nobody is enrolled; several calibrations
                and no condition, or none of that condition.
        """
        if test is not None:
            inputs = {"enrolment": inputs, "test": test}
        return super().__call__(inputs, **options)

    def preprocess(self, inputs) -> dict:
        if isinstance(inputs, tuple):
            if len(inputs) != 2:
                raise ValueError(f"a tuple of {len(inputs)} recordings: give (enrolment, test)")
            inputs = dict(zip(("enrolment", "test"), inputs, strict=True))
        if isinstance(inputs, Mapping) and "test" in inputs:
            if "enrolment" not in inputs:
                raise ValueError(f'a trial with the keys {sorted(inputs)}: give "enrolment" and "test"')
            return {
                "enrolment": self._decode_enrolment(inputs["enrolment"]),
                "test": self._decode(inputs["test"], "test"),
            }
        if not self.enrolled:
            raise ValueError("one recording, and nobody is enrolled: give two, or call .enrol(name, recordings) first")
        return {"test": self._decode(inputs, "test")}

    def _forward(self, trial: dict) -> dict:
        audio = embed(self.model.base_model, trial["test"])
        active = audio.activity > 0
        slots = audio.embeddings[active | (audio.activity == audio.activity.max())]
        one = "enrolment" in trial
        enrolled: Mapping[Any, Enrolment] = self.enrolled
        if one:
            enrolled = {None: self._enrol(trial["enrolment"], self.enrolment == "attention")}
        silent = is_silent(trial["test"])
        return {
            "one": one,
            "several_speakers": bool(active.sum() > 1),
            "scores": {name: self._score(enrolment, slots) for name, enrolment in enrolled.items()},
            "silent": {name: silent or enrolment.silent for name, enrolment in enrolled.items()},
        }

    def _score(self, enrolment: Enrolment, slots: np.ndarray) -> float:
        """Best cosine of an enrolled speaker with the slots (slots, embedding)."""
        if enrolment.memory is None:
            return float((slots @ enrolment.embedding).max())
        queries = torch.from_numpy(slots).to(enrolment.memory)
        answers = self.model.aggregate(queries, enrolment.memory.expand(len(queries), -1, -1))
        return F.cosine_similarity(answers.float(), queries.float(), dim=-1).max().item()

    def postprocess(self, outputs: dict, threshold: float | None = None, condition: str | None = None):
        calibration = Calibration.load(self.model, condition, self.enrolment) if threshold is None else None
        if calibration is not None:
            threshold = calibration.threshold
        results = []
        for name, score in sorted(outputs["scores"].items(), key=lambda item: -item[1]):
            silent = outputs["silent"][name]
            results.append(
                {
                    **({} if outputs["one"] else {"speaker": name}),
                    "score": score,
                    "llr": None if calibration is None else calibration.llr(score),
                    "decision": None if threshold is None or silent else score >= threshold,
                    "threshold": threshold,
                    "condition": None if calibration is None else calibration.condition,
                    "silent": silent,
                    "several_speakers": outputs["several_speakers"],
                }
            )
        return results[0] if outputs["one"] else results


class SpeechSeparationPipeline(_CSCPipeline):
    """
    Separate the speakers of a recording of any length, or extract one of them by an enrolment.

    Args:
        model: A CSC model that separates. By name, a [`CSCForSpeechSeparation`] is loaded.
        chunk_seconds, overlap_seconds (`float`, *optional*): As of [`~csc_hf.long_audio.separate`].
        enrolment (*optional*): Recording, or list of recordings, of the speaker to extract.

    All three can also be given in each call. `batch_size` is accepted, and recordings still go through the model one
    by one.

    Example:

    ```python
    >>> from transformers import pipeline
    >>> import csc_hf

    >>> separate = pipeline("speech-separation", model="user/csc")
    >>> separate("meeting.wav")["sources"].shape
    (2, 160000)
    >>> separate("meeting.wav", enrolment="anna.wav")["source"].shape
    (160000,)
    ```"""

    def _sanitize_parameters(self, enrolment=None, **parameters):
        unknown = parameters.keys() - {"chunk_seconds", "overlap_seconds"}
        if unknown:
            raise TypeError(
                f"unknown options {sorted(unknown)}: this pipeline has enrolment, chunk_seconds and overlap_seconds"
            )
        return {} if enrolment is None else {"enrolment": enrolment}, parameters, {}

    def __call__(self, inputs, **options):
        """
        Args:
            inputs: A recording, or a list, generator or dataset of recordings.
            enrolment, chunk_seconds, overlap_seconds: As of the pipeline.

        Returns:
            `dict`: `sources`, float32 (slots, samples), at the level at which they best add up to the recording. If a
            source would exceed full scale where the recording does not, all are turned down by one factor, so that
            none clips. `embeddings` (slots, embedding) of unit length; `activity` (slots,), logits: a slot below zero
            holds nobody; `sampling_rate`.

            With an enrolment: `source` (samples,) and `activity` of the active slot that is most like the enrolled
            speaker, `score`, the cosine of the two, and `sampling_rate`.

            For a list, a list of results in its order; for a generator or dataset, an iterator.

        Raises:
            ValueError: A recording cannot be decoded, is empty, or holds NaN; the overlap does not fit the chunk.
        """
        return super().__call__(inputs, **options)

    def preprocess(self, inputs, enrolment=None) -> dict:
        trial: dict[str, Any] = {"mixture": self._decode(inputs, "recording")}
        return trial if enrolment is None else trial | {"enrolment": self._decode_enrolment(enrolment)}

    def _forward(self, trial: dict, **chunking) -> dict:
        audio = separate(self.model, trial["mixture"], **chunking)
        assert audio.sources is not None  # they are not written to files
        audio.sources = _without_clipping(audio.sources, trial["mixture"])
        enrolment = self._enrol(trial["enrolment"]) if "enrolment" in trial else None
        return {"audio": audio, "enrolment": enrolment}

    def postprocess(self, outputs: dict) -> dict:
        audio, enrolment = outputs["audio"], outputs["enrolment"]
        result = {"sampling_rate": self.model.config.sampling_rate}
        if enrolment is None:
            return result | {"sources": audio.sources, "embeddings": audio.embeddings, "activity": audio.activity}
        best, score = closest_slot(audio, enrolment)
        return result | {"source": audio.sources[best], "activity": float(audio.activity[best]), "score": score}


def closest_slot(audio: SeparatedAudio, enrolment: Enrolment) -> tuple[int, float]:
    """The active slot that is most like an enrolled speaker, and the cosine of the two."""
    allowed = (audio.activity > 0) | (audio.activity == audio.activity.max())
    scores = np.where(allowed, audio.embeddings @ enrolment.embedding, -np.inf)
    best = int(scores.argmax())
    return best, float(scores[best])


def _without_clipping(sources: np.ndarray, mixture: np.ndarray) -> np.ndarray:
    """Sources (slots, samples), turned down together if one exceeds full scale and the peak of the mixture."""
    peak, limit = np.abs(sources).max(), max(1.0, np.abs(mixture).max())
    return sources if peak <= limit else sources * np.float32(limit / peak)


# --- loading by name -------------------------------------------------------------------------------------------------

_NEW_WEIGHTS = "_weights_not_in_checkpoint"
"""Attribute by which a loader hands the names of newly initialised weights to the pipeline, which removes it. Only a
model that `pipeline` itself has loaded has it, so a model that was trained, copied or averaged raises no alarm."""


def _load(model_class: type[CSCPreTrainedModel], name, **kwargs) -> CSCPreTrainedModel:
    loaded: Any = model_class.from_pretrained(name, output_loading_info=True, **kwargs)
    model, loading = loaded
    setattr(model, _NEW_WEIGHTS, sorted(loading["missing_keys"]))
    return model


class _VerificationModel:
    """Loads the model of `pipeline("speaker-verification", model="name")`."""

    @staticmethod
    def from_pretrained(name, **kwargs) -> CSCPreTrainedModel:
        try:
            config, _ = CSCConfig.get_config_dict(name, **kwargs)
        except OSError:  # an adapter has no configuration of its own
            config = {}
        has_attention = "CSCForPreTraining" in (config.get("architectures") or ())
        return _load(CSCForPreTraining if has_attention else CSCModel, name, **kwargs)


class _SeparationModel:
    """Loads the model of `pipeline("speech-separation", model="name")`."""

    @staticmethod
    def from_pretrained(name, **kwargs) -> CSCPreTrainedModel:
        return _load(CSCForSpeechSeparation, name, **kwargs)


def register() -> None:
    """Make the tasks known to `transformers.pipeline`."""
    for task, pipeline_class, model_class in (
        ("speaker-verification", SpeakerVerificationPipeline, _VerificationModel),
        ("speech-separation", SpeechSeparationPipeline, _SeparationModel),
    ):
        PIPELINE_REGISTRY.register_pipeline(task, pipeline_class, pt_model=model_class, type="audio")
        # With this attribute, `save_pretrained` would save this file as remote code, which it is not made to be.
        delattr(pipeline_class, "_registered_impl")
