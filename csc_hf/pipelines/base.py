# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
# mypy: disable-error-code="override"
"""What the pipelines share: recordings, enrolled speakers, and loading by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.pipelines import Pipeline
from transformers.utils import logging

from ..audio import SILENCE_POWER, decode_audio, power
from ..long_audio import embed
from ..modeling_csc import CSCPreTrainedModel

logger = logging.get_logger(__name__)

_NEW_WEIGHTS = "_weights_not_in_checkpoint"
"""Attribute by which a loader hands the names of newly initialised weights to the pipeline, which removes it. Only a
model that `pipeline` itself has loaded has it, so a model that was trained, copied or averaged raises no alarm."""


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
    """What all pipelines share. They decode audio themselves, so they need no feature extractor."""

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


def load_by_name(model_class: type[CSCPreTrainedModel], name, **kwargs) -> CSCPreTrainedModel:
    loaded: Any = model_class.from_pretrained(name, output_loading_info=True, **kwargs)
    model, loading = loaded
    setattr(model, _NEW_WEIGHTS, sorted(loading["missing_keys"]))
    return model
