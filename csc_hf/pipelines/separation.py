# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
# mypy: disable-error-code="override"
"""`pipeline("speech-separation")`."""

import numpy as np

from ..long_audio import Job, separation
from ..modeling_csc import CSCForSpeechSeparation, CSCPreTrainedModel
from .base import _CSCPipeline, load_by_name


class SpeechSeparationPipeline(_CSCPipeline):
    """
    Separate the speakers of a recording of any length. People who talk in turn, without overlap, can share a slot:
    for one voice per person, take `voices` of [`SpeakerDiarizationPipeline`]. For the voice of one person, see
    [`TargetSpeakerExtractionPipeline`].

    Args:
        model: A CSC model that separates. By name, a [`CSCForSpeechSeparation`] is loaded.
        chunk_seconds, overlap_seconds (`float`, *optional*): As of [`~csc_hf.long_audio.separate`].

    Both can also be given in each call. With `batch_size`, recordings of a list, generator or dataset go through
    the model together. Results stay the same.

    Example:

    ```python
    >>> from transformers import pipeline
    >>> import csc_hf

    >>> separate = pipeline("speech-separation", model="user/csc")
    >>> separate("meeting.wav")["sources"].shape
    (2, 160000)
    ```"""

    def _sanitize_parameters(self, **parameters):
        preprocess = self._preprocess_parameters(parameters)
        unknown = parameters.keys() - {"chunk_seconds", "overlap_seconds"}
        if unknown:
            raise TypeError(
                f"unknown options {sorted(unknown)}: this pipeline has chunk_seconds and overlap_seconds; for one "
                'voice, by an enrolment, see pipeline("target-speaker-extraction")'
            )
        return preprocess, parameters, {}

    def __call__(self, inputs, **options):
        """
        Args:
            inputs: A recording, or a list, generator or dataset of recordings.
            chunk_seconds, overlap_seconds: As of the pipeline.
            channel (`int`, *optional*): The only channel to hear, counted from 0. By default, all are averaged.

        Returns:
            `dict`: `sources`, float32 (slots, samples), at the level at which they best add up to the recording. If a
            source would exceed full scale where the recording does not, all are turned down by one factor, so that
            none clips. `embeddings` (slots, embedding) of unit length; `activity` (slots,), logits: a slot below zero
            holds nobody; `sampling_rate`.

            For a list, a list of results in its order; for a generator or dataset, an iterator.

        Raises:
            ValueError: A recording cannot be decoded, is empty, or holds NaN; the overlap does not fit the chunk.
        """
        return super().__call__(inputs, **options)

    def preprocess(self, inputs, channel: int | None = None) -> dict:
        return {"mixture": self._decode(inputs, "recording", channel)}

    def _num_samples(self, trial: dict) -> int:
        return len(trial["mixture"])

    def _job(self, trial: dict, **chunking) -> Job[dict]:
        audio = yield from separation(self.model, trial["mixture"], **chunking)
        assert audio.sources is not None  # they are not written to files
        return {
            "sources": _without_clipping(audio.sources, trial["mixture"]),
            "embeddings": audio.embeddings,
            "activity": audio.activity,
            "sampling_rate": self.model.config.sampling_rate,
        }

    def postprocess(self, outputs: dict) -> dict:
        return outputs


def _without_clipping(sources: np.ndarray, mixture: np.ndarray) -> np.ndarray:
    """Sources (slots, samples), turned down together if one exceeds full scale and the peak of the mixture."""
    peak, limit = np.abs(sources).max(), max(1.0, np.abs(mixture).max())
    return sources if peak <= limit else sources * np.float32(limit / peak)


class SeparationModel:
    """Loads the model of `pipeline("speech-separation", model="name")`."""

    @staticmethod
    def from_pretrained(name, **kwargs) -> CSCPreTrainedModel:
        return load_by_name(CSCForSpeechSeparation, name, **kwargs)
