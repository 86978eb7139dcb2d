# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Extract one voice from a recording of any length, with any number of talkers, in constant memory."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from .audio import OneChannel, read_blocks
from .long_audio import Job, file_writer, run
from .modeling_csc import CSCPreTrainedModel
from .streaming import LiveExtractor

LATENCY_SECONDS = 4.0


@dataclass
class ExtractedVoice:
    """
    The voice of one speaker.

    Args:
        source: float32 (samples,), silent where the speaker is not found; None where it was written to a file.
        score: The highest cosine of the enrolled speaker with a slot, in any part of the recording; None if all of it
            is silent.
        present: Whether the score reaches the threshold. If not, all of the source is silent.
        threshold: That threshold.
    """

    source: np.ndarray | None
    score: float | None
    present: bool
    threshold: float


def extract(
    model: CSCPreTrainedModel,
    recording: Any,
    enrolment: np.ndarray,
    *,
    threshold: float | None = None,
    output_file: str | os.PathLike | None = None,
    channel: int | None = None,
) -> ExtractedVoice:
    """
    Extract the voice of an enrolled speaker.

    The level is that at which the voices best add up to the recording. No sample exceeds full scale, or, where the
    recording does, its largest.

    Args:
        model: A CSC model that separates, in evaluation mode.
        recording: Floats (samples,) at the sampling rate of the model, or anything else that
            `csc_hf.audio.decode_audio` takes. Files are read by blocks.
        enrolment: (embedding,) of unit length, such as `csc_hf.enrolment.enrol(...).embedding`.
        threshold: Lowest cosine at which a slot is taken for the speaker's. By default, `speaker_threshold(model)` of
            `csc_hf.streaming`.
        output_file: File to which the voice is written block by block: as 32-bit floats if its format has them. If the
            input is a file as well, memory is constant.
        channel: The only channel to hear, counted from 0. By default, all are averaged.

    Raises:
        ValueError: The model is in training mode, does not separate, or returns NaN or infinite values; the recording
            is empty, holds NaN or infinite samples, lacks the channel, or cannot be decoded.
    """
    audio = OneChannel(recording, channel)
    return run(model, [extraction(model, audio, enrolment, threshold=threshold, output_file=output_file)])[0]


def extraction(
    model: CSCPreTrainedModel,
    recording: Any,
    enrolment: np.ndarray,
    *,
    threshold: float | None = None,
    output_file: str | os.PathLike | None = None,
) -> Job[ExtractedVoice]:
    """`extract` as a job for `csc_hf.long_audio.run`, with the same model."""
    live = LiveExtractor(model, enrolment, threshold=threshold, latency_seconds=LATENCY_SECONDS)
    parts: list[np.ndarray] = []  # (1, samples) each
    with ExitStack() as files:
        write = parts.append
        if output_file is not None:
            write = file_writer([output_file], model.config.sampling_rate, files)
        for block in _blocks(recording, model.config.sampling_rate):
            write((yield from live.pushing(block))[None])
        write((yield from live.finishing())[None])
    return ExtractedVoice(
        source=np.concatenate(parts, axis=1)[0] if output_file is None else None,
        score=live.best_score,
        present=live.best_score is not None and live.best_score >= live.threshold,
        threshold=live.threshold,
    )


def _blocks(recording, sampling_rate: int) -> Iterator[np.ndarray]:
    empty = True
    for block in read_blocks(recording, sampling_rate):
        empty = empty and len(block) == 0
        yield block
    if empty:
        raise ValueError("the recording holds no samples: leave it out")
