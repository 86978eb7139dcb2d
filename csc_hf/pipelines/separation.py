# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
# mypy: disable-error-code="override"
"""`pipeline("speech-separation")`."""

from typing import Any

import numpy as np

from ..enrolment import Enrolment, enrolling
from ..long_audio import Job, SeparatedAudio, separation
from ..modeling_csc import CSCForSpeechSeparation, CSCPreTrainedModel
from .base import _CSCPipeline, load_by_name


class SpeechSeparationPipeline(_CSCPipeline):
    """
    Separate the speakers of a recording of any length, or extract one of them by an enrolment.

    Args:
        model: A CSC model that separates. By name, a [`CSCForSpeechSeparation`] is loaded.
        chunk_seconds, overlap_seconds (`float`, *optional*): As of [`~csc_hf.long_audio.separate`].
        enrolment (*optional*): Recording, or list of recordings, of the speaker to extract.

    All three can also be given in each call. With `batch_size`, recordings of a list, generator or dataset go through
    the model together. Results stay the same.

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

    def _num_samples(self, trial: dict) -> int:
        return len(trial["mixture"])

    def _job(self, trial: dict, **chunking) -> Job[dict]:
        audio = yield from separation(self.model, trial["mixture"], **chunking)
        assert audio.sources is not None  # they are not written to files
        audio.sources = _without_clipping(audio.sources, trial["mixture"])
        enrolment = None
        if "enrolment" in trial:
            enrolment = yield from enrolling(self.model, trial["enrolment"])
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


class SeparationModel:
    """Loads the model of `pipeline("speech-separation", model="name")`."""

    @staticmethod
    def from_pretrained(name, **kwargs) -> CSCPreTrainedModel:
        return load_by_name(CSCForSpeechSeparation, name, **kwargs)
