# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Enrol a speaker by recordings of their voice."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from .audio import FILE_TYPES, SAMPLING_RATE, SILENCE_POWER, OneChannel, decode_audio, power
from .feature_extraction_csc import high_pass
from .long_audio import Job, embedding, run
from .modeling_csc import CSCForPreTraining, CSCForSpeakerVerification, CSCPreTrainedModel

MAX_NAME_BYTES = 200
"""Longest name of a speaker, in UTF-8. File systems take 255 bytes, endings included."""


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


def enrol(
    model: CSCPreTrainedModel, waveforms: Sequence[Any], with_memory: bool = False, channel: int | None = None
) -> Enrolment:
    """
    Enrol the main speaker of recordings, the one in the most active slot.

    Args:
        model: A CSC model in evaluation mode.
        waveforms: At least one recording of any length, each float (samples,) at the sampling rate of the model, or
            anything else that `csc_hf.audio.decode_audio` takes.
        with_memory: Whether to keep what the cross-attention of `CSCForPreTraining` reads.
        channel: The only channel to hear, counted from 0. By default, all are averaged.

    Raises:
        ValueError: There are no recordings, or what `csc_hf.long_audio.embed` raises.
    """
    if not isinstance(waveforms, Sequence) or isinstance(waveforms, FILE_TYPES):
        raise ValueError(f"the recordings of an enrolment are a {type(waveforms).__name__}: give a list of recordings")
    recordings = [OneChannel(waveform, channel) for waveform in waveforms]
    return run(cast(CSCPreTrainedModel, model.base_model), [enrolling(model, recordings, with_memory)])[0]


def enrolling(model: CSCPreTrainedModel, waveforms: Sequence[Any], with_memory: bool = False) -> Job[Enrolment]:
    """`enrol` as a job for `csc_hf.long_audio.run`, with the base model of the same model."""
    if not waveforms:
        raise ValueError("an enrolment without recordings: give at least one")
    base = cast(CSCPreTrainedModel, model.base_model)
    speakers = []
    waveforms = [decode_audio(waveform, model.config.sampling_rate) for waveform in waveforms]
    for waveform in waveforms:
        speakers.append((yield from embedding(base, waveform, with_segments=with_memory)))
    mean = np.mean([found.embeddings[found.activity.argmax()] for found in speakers], axis=0)
    segments = [found.segments for found in speakers if found.segments is not None]
    return Enrolment(
        embedding=mean / np.linalg.norm(mean),
        memory=torch.cat(segments) if with_memory else None,
        silent=any(is_silent(waveform, model.config.sampling_rate) for waveform in waveforms),
        several_speakers=any((found.activity > 0).sum() > 1 for found in speakers),
    )


def check_name(name: str) -> None:
    """Raise a ValueError unless a speaker can have this name: it is printed on one line, and their voice is written to
    the file `name.wav`."""
    if not name.strip():
        raise ValueError(f"{name!r} is no name: give the speaker one")
    bad = [char for char in name if char in "/\\" or not char.isprintable()]
    if bad or name != name.strip() or name.startswith(".") or len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(
            f"a speaker cannot be called {name!r}, which is printed and names a file: use at most {MAX_NAME_BYTES} "
            "bytes of printable characters, no / or \\, no dot at the beginning, no space around"
        )


def is_silent(waveform: np.ndarray, sampling_rate: int = SAMPLING_RATE) -> bool:
    """Whether what is above 20 Hz in a waveform (samples,) is below −80 dB of full scale, on average."""
    return power(high_pass(waveform, sampling_rate)[0]) < SILENCE_POWER


def comparing_class(
    architectures: Sequence[str] | None, otherwise: type[CSCPreTrainedModel]
) -> type[CSCPreTrainedModel]:
    """The class to load a saved model by: its own if it can compare by more than embeddings, else `otherwise`."""
    for with_more in (CSCForPreTraining, CSCForSpeakerVerification):
        if with_more.__name__ in (architectures or ()):
            return with_more
    return otherwise
