# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
`pipeline("speaker-verification")` and `pipeline("speech-separation")` of Transformers.

A recording is whatever `csc_hf.audio.decode_audio` takes: a path, the bytes of a file, a float array at the model's
sampling rate, or `{"array": ..., "sampling_rate": ...}`. Of any length: long ones go through the model by chunks.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoModel
from transformers.pipelines import PIPELINE_REGISTRY, Pipeline
from transformers.utils import logging

from .audio import decode_audio
from .data.mixing import SILENCE_POWER, power
from .evaluation.calibration import Calibration
from .long_audio import CHUNK_SECONDS, OVERLAP_SECONDS, Recording, chunks, embed, separate
from .modeling_csc import CSCForSpeechSeparation

logger = logging.get_logger(__name__)


@dataclass
class Enrolment:
    """
    What is kept of a speaker.

    Args:
        embedding: Mean of the embeddings of the main speaker of each recording, of unit length, (E,).
        memory: Segments of all slots of all recordings, (M, D), for the cross-attention; None where it is not used.
        silent: Whether a recording is silent.
    """

    embedding: np.ndarray
    memory: torch.Tensor | None
    silent: bool


class _CSCPipeline(Pipeline):
    """What both pipelines share: audio comes in as it is, so no feature extractor is needed."""

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model.eval()
        # Transformers marks what it has loaded, so that initialisation leaves it alone. Classifiers are not used here.
        new = [
            name
            for name, value in self.model.named_parameters()
            if not getattr(value, "_is_hf_initialized", False) and not name.startswith(("classifier.", "projector."))
        ]
        if new:
            logger.warning(
                f"{len(new)} weights of this {type(self.model).__name__} (such as {new[0]}) were not loaded from a "
                "checkpoint. UNLESS YOU HAVE JUST TRAINED THEM, WHAT THE PIPELINE RETURNS MEANS NOTHING."
            )

    def _decode(self, recording) -> np.ndarray:
        return decode_audio(recording, self.model.config.sampling_rate)

    def _decode_all(self, recordings) -> list[np.ndarray]:
        """One recording, or several in a list."""
        if isinstance(recordings, list):
            if not recordings:
                raise ValueError("an enrolment without recordings: give at least one")
            return [self._decode(recording) for recording in recordings]
        return [self._decode(recordings)]

    def _enrol(self, waveforms: list[np.ndarray], with_memory: bool = False) -> Enrolment:
        embeddings = []
        for waveform in waveforms:
            audio = embed(self.model.base_model, waveform)
            embeddings.append(audio.embeddings[audio.activity.argmax()])
        mean = np.mean(embeddings, axis=0)
        return Enrolment(
            embedding=mean / np.linalg.norm(mean),
            memory=torch.cat([self._segments(waveform) for waveform in waveforms]) if with_memory else None,
            silent=any(is_silent(waveform) for waveform in waveforms),
        )

    @torch.no_grad()
    def _segments(self, waveform: np.ndarray) -> torch.Tensor:
        """(T,) → (M, D): all slots and segments, one chunk behind the other."""
        recording = Recording(len(waveform), lambda start, length: waveform[start : start + length])
        return torch.cat(
            [
                self.model.base_model(torch.from_numpy(samples)[None].to(self.device)).source_hidden_states.flatten(
                    0, 2
                )
                for _, samples in chunks(recording, self.model.config.sampling_rate, CHUNK_SECONDS, OVERLAP_SECONDS)
            ]
        )


def is_silent(waveform: np.ndarray) -> bool:
    """Whether a waveform (T,) is below −80 dB of full scale, on average."""
    return power(waveform) < SILENCE_POWER


class SpeakerVerificationPipeline(_CSCPipeline):
    """
    Do two recordings hold the same speaker, also where others speak too?

    The score is the cosine of the enrolled speaker with the best active slot of the test recording. Of an enrolment
    recording, the most active slot is the speaker. Log-likelihood ratio and decision come from the calibration that
    is stored in the model's configuration ([`~csc_hf.evaluation.calibration.Calibration`]); without one, the pipeline warns, and
    decides only by a `threshold` of yours.

    Args:
        model: Any CSC model; by name, its encoder is loaded ([`CSCModel`]).
        enrolment (`str`, defaults to `"mean"`): How several recordings of a speaker become one: `"mean"` of their
            embeddings, or `"attention"`, the trained cross-attention of [`CSCForPreTraining`] with the test's slots
            as queries. A calibration holds for the kind of enrolment that its trials had.
        threshold (`float`, *optional*): Score from which on the speaker is accepted. Replaces the calibration.
        condition (`str`, *optional*): Which of several stored calibrations to use.

    `threshold` and `condition` can also be given in each call.

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
        if enrolment not in ("mean", "attention"):
            raise ValueError(f'enrolment={enrolment!r}: choose "mean" or "attention"')
        if enrolment == "attention" and not hasattr(self.model, "aggregate"):
            raise ValueError(
                f'enrolment="attention" needs the cross-attention, which {type(self.model).__name__} lacks: pass '
                "model=CSCForPreTraining.from_pretrained(...)"
            )
        self.with_attention = enrolment == "attention"
        self.enrolled: dict[str, Enrolment] = {}
        if not self.model.config.calibration and "threshold" not in self._postprocess_params:
            logger.warning(
                "This model has no calibration: SCORES ARE BARE COSINES AND NOTHING IS DECIDED. Learn a calibration "
                "on trials of your own (csc_hf.evaluation.calibration.fit_calibration, then .store(model)), or pass threshold=..."
            )

    def _sanitize_parameters(self, **parameters):
        unknown = parameters.keys() - {"threshold", "condition"}
        if unknown:
            raise TypeError(f"unknown options {sorted(unknown)}: this pipeline has threshold and condition")
        return {}, {}, parameters

    def enrol(self, name: str, recordings) -> None:
        """Keep a speaker, by one recording or a list of several, for calls with a test recording alone. A name that is
        enrolled already is replaced."""
        self.enrolled[name] = self._enrol(self._decode_all(recordings), self.with_attention)

    def __call__(self, inputs, test=None, **options):
        """
        Args:
            inputs: Two recordings, `(enrolment, test)` or `{"enrolment": ..., "test": ...}`, of which the enrolment
                may be a list of several recordings of one speaker; a test recording alone, to be compared with all
                enrolled speakers; or a list of any of these.
            test: The test recording, where `inputs` is the enrolment alone: `verify("a.wav", "b.wav")`.
            threshold, condition: As of the pipeline.

        Returns:
            `dict`: `score`, a cosine; `llr`, the log-likelihood ratio (natural logarithm) or None; `decision`, a bool,
            or None where there is neither calibration nor threshold, or where a recording is `silent`; `threshold` on
            the score and the `condition` of its calibration, or None; `several_speakers`, whether the test holds more
            than one active slot. Against enrolled speakers: a list of them, each with its `speaker`, best first.

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
            if inputs.keys() != {"enrolment", "test"}:
                raise ValueError(f'a trial with the keys {sorted(inputs)}: give "enrolment" and "test"')
            return {"enrolment": self._decode_all(inputs["enrolment"]), "test": self._decode(inputs["test"])}
        if not self.enrolled:
            raise ValueError("one recording, and nobody is enrolled: give two, or call .enrol(name, recordings) first")
        return {"test": self._decode(inputs)}

    def _forward(self, trial: dict) -> dict:
        audio = embed(self.model.base_model, trial["test"])
        active = audio.activity > 0
        slots = audio.embeddings[active | (audio.activity == audio.activity.max())]
        one = "enrolment" in trial
        enrolled = {None: self._enrol(trial["enrolment"], self.with_attention)} if one else self.enrolled
        silent = is_silent(trial["test"])
        return {
            "one": one,
            "several_speakers": bool(active.sum() > 1),
            "scores": {name: self._score(enrolment, slots) for name, enrolment in enrolled.items()},
            "silent": {name: silent or enrolment.silent for name, enrolment in enrolled.items()},
        }

    def _score(self, enrolment: Enrolment, slots: np.ndarray) -> float:
        """Best cosine of an enrolled speaker with the slots (C, E)."""
        if enrolment.memory is None:
            return float((slots @ enrolment.embedding).max())
        queries = torch.from_numpy(slots).to(self.device, enrolment.memory.dtype)
        answers = self.model.aggregate(queries, enrolment.memory.expand(len(queries), -1, -1))
        return F.cosine_similarity(answers.float(), queries.float(), dim=-1).max().item()

    def postprocess(self, outputs: dict, threshold: float | None = None, condition: str | None = None):
        calibration = Calibration.load(self.model, condition) if threshold is None else None
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
    Separates the speakers of a recording of any length; with an enrolment, extracts one of them.

    Args:
        model: A CSC model that separates; by name, a [`CSCForSpeechSeparation`] is loaded.
        chunk_seconds, overlap_seconds (`float`, *optional*): As of [`~csc_hf.long_audio.separate`].
        enrolment (*optional*): Recording, or list of recordings, of the speaker to extract.

    All three can also be given in each call.

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
            inputs: A recording, or a list of recordings.
            enrolment, chunk_seconds, overlap_seconds: As of the pipeline.

        Returns:
            `dict`: `sources`, float32 (C, T), which add up to the recording as well as they can; `embeddings`
            (C, E) of unit length; `activity` (C,), logits that a slot holds a speaker, those below zero hold nobody;
            `sampling_rate`. With an enrolment: `source` (T,) and `activity` of the active slot that is most like the
            enrolled speaker, `score`, the cosine of the two, and `sampling_rate`.

        Raises:
            ValueError: A recording cannot be decoded, is empty, or holds NaN; the overlap does not fit the chunk.
        """
        return super().__call__(inputs, **options)

    def preprocess(self, inputs, enrolment=None) -> dict:
        trial = {"mixture": self._decode(inputs)}
        return trial if enrolment is None else trial | {"enrolment": self._decode_all(enrolment)}

    def _forward(self, trial: dict, **chunking) -> dict:
        audio = separate(self.model, trial["mixture"], **chunking)
        enrolment = self._enrol(trial["enrolment"]) if "enrolment" in trial else None
        return {"audio": audio, "enrolment": enrolment}

    def postprocess(self, outputs: dict) -> dict:
        audio, enrolment = outputs["audio"], outputs["enrolment"]
        result = {"sampling_rate": self.model.config.sampling_rate}
        if enrolment is None:
            return result | {"sources": audio.sources, "embeddings": audio.embeddings, "activity": audio.activity}
        allowed = (audio.activity > 0) | (audio.activity == audio.activity.max())
        scores = np.where(allowed, audio.embeddings @ enrolment.embedding, -np.inf)
        best = int(scores.argmax())
        return result | {
            "source": audio.sources[best],
            "activity": float(audio.activity[best]),
            "score": float(scores[best]),
        }


def register() -> None:
    """Make the tasks known to `transformers.pipeline`."""
    for task, pipeline_class, model_class in (
        ("speaker-verification", SpeakerVerificationPipeline, AutoModel),
        ("speech-separation", SpeechSeparationPipeline, CSCForSpeechSeparation),
    ):
        PIPELINE_REGISTRY.register_pipeline(task, pipeline_class, pt_model=model_class, type="audio")
        # By this mark, `save_pretrained` would save this file as remote code, which it is not made to be.
        del pipeline_class._registered_impl
