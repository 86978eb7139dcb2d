# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Enrol a speaker by recordings of their voice."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from .audio import SILENCE_POWER, power
from .long_audio import Job, embedding, run
from .modeling_csc import CSCForPreTraining, CSCForSpeakerVerification, CSCPreTrainedModel


@dataclass
class Enrolment:
    """
    An enrolled speaker.

    Args:
        embedding: (embedding,) of unit length, mean over the recordings of the embedding of their main speaker.
        memory: (segments, hidden size), all slots of all recordings, for the cross-attention; None without it.
        silent: Whether a recording is silent.
        several_speakers: Whether a recording holds more than one active slot.
    """

    embedding: np.ndarray
    memory: torch.Tensor | None
    silent: bool
    several_speakers: bool = False


def enrol(model: CSCPreTrainedModel, waveforms: Sequence[np.ndarray], with_memory: bool = False) -> Enrolment:
    """
    Enrol the main speaker of recordings, the one in the most active slot.

    Args:
        model: A CSC model in evaluation mode.
        waveforms: At least one recording, each float (samples,) at the sampling rate of the model and of any length.
        with_memory: Whether to keep what the cross-attention of `CSCForPreTraining` reads.

    Raises:
        ValueError: There are no recordings, or what `csc_hf.long_audio.embed` raises.
    """
    return run(cast(CSCPreTrainedModel, model.base_model), [enrolling(model, waveforms, with_memory)])[0]


def enrolling(model: CSCPreTrainedModel, waveforms: Sequence[np.ndarray], with_memory: bool = False) -> Job[Enrolment]:
    """`enrol` as a job for `csc_hf.long_audio.run`, with the base model of the same model."""
    if not waveforms:
        raise ValueError("an enrolment without recordings: give at least one")
    base = cast(CSCPreTrainedModel, model.base_model)
    speakers = []
    for waveform in waveforms:
        speakers.append((yield from embedding(base, waveform, with_segments=with_memory)))
    mean = np.mean([found.embeddings[found.activity.argmax()] for found in speakers], axis=0)
    segments = [found.segments for found in speakers if found.segments is not None]
    return Enrolment(
        embedding=mean / np.linalg.norm(mean),
        memory=torch.cat(segments) if with_memory else None,
        silent=any(is_silent(waveform) for waveform in waveforms),
        several_speakers=any((found.activity > 0).sum() > 1 for found in speakers),
    )


def is_silent(waveform: np.ndarray) -> bool:
    """Whether a waveform (samples,) is below −80 dB of full scale, on average."""
    return power(waveform) < SILENCE_POWER


def comparing_class(
    architectures: Sequence[str] | None, otherwise: type[CSCPreTrainedModel]
) -> type[CSCPreTrainedModel]:
    """The class to load a saved model by: its own if it can compare by more than embeddings, else `otherwise`."""
    for with_more in (CSCForPreTraining, CSCForSpeakerVerification):
        if with_more.__name__ in (architectures or ()):
            return with_more
    return otherwise
