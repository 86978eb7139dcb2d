# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Separate and embed audio of any length in memory that does not grow with it: overlapping chunks, each separated alone,
whose slots are brought into one order by the speaker embeddings and then cross-faded.

Shapes: T samples, C sources (slots), E speaker embedding size, O samples in an overlap.
"""

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch

from .audio import read_blocks

CHUNK_SECONDS = 10.0
OVERLAP_SECONDS = 2.0

SAME_SPEAKER = 0.5
"""Cosine of embeddings above which a slot is rather taken for a speaker heard before than for a new one: half way from
what different speakers are trained towards (0) to what one speaker is (1)."""

GAIN_RIDGE = 1e-3
"""Weight of a source's energy, as against that of the distance, in `scale_to_mixture`: levels are too low by 0.1 %."""


@dataclass
class SeparatedAudio:
    """
    What was found in a recording.

    Args:
        sources: Waveform of each speaker, float32 (C, T), at a level at which they best add up to the recording; None
            where there are none: of `embed`, and where they were written to files.
        embeddings: Of each speaker, of unit length, float32 (C, E).
        activity: Logit that the slot holds a speaker anywhere in the recording, float32 (C,). Below zero the slot's
            waveform and embedding mean nothing.
    """

    sources: np.ndarray | None
    embeddings: np.ndarray
    activity: np.ndarray


@torch.no_grad()
def separate(
    model: torch.nn.Module,
    waveform: np.ndarray | torch.Tensor | str | os.PathLike,
    chunk_seconds: float = CHUNK_SECONDS,
    overlap_seconds: float = OVERLAP_SECONDS,
    output_files: Sequence[str | os.PathLike] | None = None,
) -> SeparatedAudio:
    """
    Separate a recording chunk by chunk. One that fits a chunk goes through the model as it is: then the sources are
    the model's, but for their level, and so are embeddings and activity.

    The model leaves the level of its sources free, so those of each chunk are brought to the mixture's
    (`scale_to_mixture`), and neighbouring chunks to each other's by that. See `Speakers` for their order. Where the
    model separates exactly, so does the whole, but for levels that are 0.1 % low; beyond that, sources are others than
    of one long run as far as the model makes use of what lies outside a chunk.

    Args:
        model: A CSC model that separates (`CSCForSpeechSeparation`, `CSCForPreTraining`), in evaluation mode.
        waveform: (T,) floats at the model's sampling rate; or an audio file, which is decoded and resampled by blocks
            (see `csc_hf.audio.read_blocks`).
        chunk_seconds: Length of a chunk. The model's memory grows with its square.
        overlap_seconds: The least that neighbouring chunks share: chunks are of equal length, so they may share more.
        output_files: A file for each slot to write its source to, block by block, as 32-bit floats; `.wav` or another
            format that can hold them. With an input file, memory then does not grow with T at all.

    Raises:
        ValueError: The model is in training mode or does not separate, the waveform is not (T,) with T >= 1, holds NaN
            or infinite samples, or cannot be decoded; the overlap does not fit the chunk; not a file for each slot.
    """
    num_sources = model.config.num_sources
    if output_files is not None and len(output_files) != num_sources:
        raise ValueError(
            f"{len(output_files)} output_files for the {num_sources} slots of the model: give one for each"
        )
    with ExitStack() as files:
        recording = _open(waveform, model.config.sampling_rate)
        if output_files is None:
            sources = np.empty((num_sources, recording.num_samples), np.float32)
            write = _array_writer(sources)
        else:
            sources = None
            write = _file_writer(output_files, model.config.sampling_rate, files)
        speakers = Speakers(num_sources)
        tail, position = np.zeros((num_sources, 0), np.float32), 0  # what is separated beyond `position`
        for start, samples in chunks(recording, model.config.sampling_rate, chunk_seconds, overlap_seconds):
            output = _run(model, samples)
            if output.sources is None:
                raise ValueError(f"{type(model).__name__} does not separate: use CSCForSpeechSeparation")
            chunk = scale_to_mixture(_to_numpy(output.sources[0]), _to_numpy(output.source_activity[0]), samples)
            write(tail[:, : start - position])
            tail = tail[:, start - position :]
            chunk = chunk[speakers.follow(output, tail, chunk[:, : tail.shape[1]])]
            tail, position = cross_fade(tail, chunk), start
        write(tail)
    return SeparatedAudio(sources, speakers.embeddings, speakers.activity)


@torch.no_grad()
def embed(
    model: torch.nn.Module,
    waveform: np.ndarray | torch.Tensor | str | os.PathLike,
    chunk_seconds: float = CHUNK_SECONDS,
    overlap_seconds: float = OVERLAP_SECONDS,
) -> SeparatedAudio:
    """
    Embeddings and activity of the speakers of a recording, without their waveforms: `separate` for a model that need
    not separate (`CSCModel`). Speakers are then followed by their embeddings alone.

    Args, errors: As in `separate`.
    """
    speakers = Speakers(model.config.num_sources)
    recording = _open(waveform, model.config.sampling_rate)
    for _, samples in chunks(recording, model.config.sampling_rate, chunk_seconds, overlap_seconds):
        speakers.follow(_run(model, samples))
    return SeparatedAudio(None, speakers.embeddings, speakers.activity)


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass
class Recording:
    """Audio of which any part can be read: `read(start, length)` gives float32 (length,)."""

    num_samples: int
    read: Callable[[int, int], np.ndarray]


def _open(waveform, sampling_rate: int) -> Recording:
    if isinstance(waveform, str | os.PathLike):
        # The length is counted, since headers are wrong about it in some files.
        num_samples = sum(len(block) for block in read_blocks(waveform, sampling_rate))
        recording = Recording(num_samples, _reader(read_blocks(waveform, sampling_rate)))
    else:
        samples = waveform.detach().cpu().numpy() if isinstance(waveform, torch.Tensor) else np.asarray(waveform)
        if samples.ndim != 1 or samples.dtype.kind != "f":
            raise ValueError(f"waveform of shape {samples.shape} and type {samples.dtype}: give floats of shape (T,)")
        recording = Recording(len(samples), lambda start, length: samples[start : start + length].astype(np.float32))
    if recording.num_samples == 0:
        raise ValueError("the recording holds no samples: leave it out")
    return recording


def _reader(blocks: Iterator[np.ndarray]) -> Callable[[int, int], np.ndarray]:
    """Function `read(start, length)` over blocks that come in order; `start` must not decrease."""
    held, position = np.zeros(0, np.float32), 0  # samples read and still needed, and where they begin

    def read(start: int, length: int) -> np.ndarray:
        nonlocal held, position
        parts, num_samples = [held], len(held)
        while position + num_samples < start + length and (block := next(blocks, None)) is not None:
            parts.append(block)
            num_samples += len(block)
        held = np.concatenate(parts)[start - position :]
        position = start
        return held[:length]

    return read


def chunks(
    recording: Recording, sampling_rate: int, chunk_seconds: float, overlap_seconds: float
) -> Iterator[tuple[int, np.ndarray]]:
    """
    The start of each chunk and its samples, float32. As few chunks as keep the overlap, of equal length, spread evenly
    over the recording: no chunk is a short rest that tells the model little.

    Raises:
        ValueError: A sample is NaN or infinite, or the overlap is negative or above half of a chunk.
    """
    size, overlap = round(chunk_seconds * sampling_rate), round(overlap_seconds * sampling_rate)
    if size < 1 or not 0 <= overlap <= size / 2:
        raise ValueError(
            f"chunk_seconds={chunk_seconds} and overlap_seconds={overlap_seconds}: the overlap must not be negative "
            "or above half of a chunk"
        )
    size = min(size, recording.num_samples)
    room = recording.num_samples - size  # from the first start to the last
    count = 1 + math.ceil(room / max(size - overlap, 1))
    for index in range(count):
        start = room * index // max(count - 1, 1)
        samples = recording.read(start, size)
        finite = np.isfinite(samples)
        if not finite.all():
            raise ValueError(
                f"sample {start + int(finite.argmin())} of the recording is {samples[finite.argmin()]}: repair the "
                "recording or leave it out"
            )
        yield start, samples


def _run(model: torch.nn.Module, samples: np.ndarray):
    if model.training:
        raise ValueError(f"{type(model).__name__} is in training mode, in which its output is random: call .eval()")
    return model(input_values=torch.from_numpy(samples)[None].to(model.device))


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


# --- stitching -------------------------------------------------------------------------------------------------------


def scale_to_mixture(sources: np.ndarray, activity: np.ndarray, mixture: np.ndarray) -> np.ndarray:
    """
    Sources (C, T) times one factor each, (C, T): those whose sum has the least squared distance to the mixture (T,).

    The level that a source comes with does not matter. Where the sources do not determine the factors, the slots'
    activity (C,), a logit, does: of two that are alike and active, each gets half; an idle one, next to nothing.
    """
    wide = sources.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    unit = wide / np.where(norms > 0, norms, 1)
    ridge = np.diag(GAIN_RIDGE * (1 + np.exp(-activity.astype(np.float64))))  # inverse to the probability of activity
    gains = np.linalg.solve(unit @ unit.T + ridge, unit @ mixture)
    return (gains[:, None] * unit).astype(np.float32)


def cross_fade(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(C, O) and (C, T) → (C, T): the first O samples change linearly from `before` to `after`."""
    overlap = before.shape[1]
    share = np.arange(1, overlap + 1, dtype=np.float32) / (overlap + 1)
    return np.concatenate([before * (1 - share) + after[:, :overlap] * share, after[:, overlap:]], axis=1)


class Speakers:
    """
    The speakers of a recording, in a fixed order, whatever order the model gives them in a chunk.

    A slot goes to the speaker whom its embedding is like, by the cosine with the mean of that speaker's embeddings so
    far (less `SAME_SPEAKER`, so that a new voice does not go to a known speaker while a place is free). Both sides
    count only as far as they were active. Where the embeddings do not tell, the overlap does, which both chunks have
    separated: added is the correlation of the waveforms there. Of all assignments, the one with the highest sum is
    taken, so an idle slot gets the place that is left. (In simulated conversations with embeddings so noisy that they
    alone swap speakers, the sum swapped less; where both are clean, none.)
    """

    def __init__(self, num_sources: int):
        self._orders = np.array(list(itertools.permutations(range(num_sources))))
        self._mean: np.ndarray | float = 0.0  # (C, E), sum of embeddings weighted by their activity
        self._presence = np.zeros(num_sources)  # (C,), sum of these weights
        self.activity = np.full(num_sources, -np.inf, np.float32)

    @property
    def embeddings(self) -> np.ndarray:
        """(C, E) float32, of unit length: mean over the chunks, weighted by the activity there."""
        return (self._mean / np.linalg.norm(self._mean, axis=-1, keepdims=True)).astype(np.float32)

    def follow(self, output, before: np.ndarray | None = None, after: np.ndarray | None = None) -> np.ndarray:
        """
        Take up the next chunk.

        Args:
            output: What the model made of the chunk: `source_embeddings` (1, C, E), `source_activity` (1, C).
            before: Sources so far, in the overlap with the chunk, (C, O).
            after: Sources of the chunk there, in the model's order, (C, O).

        Returns:
            (C,) int, the slot of each speaker.
        """
        embeddings = _to_numpy(output.source_embeddings[0]).astype(np.float64)
        logits = _to_numpy(output.source_activity[0])
        weights = 1 / (1 + np.exp(-logits.astype(np.float64)))
        order = np.arange(len(logits))
        if self._presence.any():
            known = np.minimum(self._presence, 1)[:, None] * weights
            likeness = known * (self.embeddings @ embeddings.T - SAME_SPEAKER)
            if before is not None:
                likeness = likeness + _correlation(before, after)
            order = self._orders[likeness[order, self._orders].sum(axis=1).argmax()]
        self._mean = self._mean + (weights[:, None] * embeddings)[order]
        self._presence = self._presence + weights[order]
        self.activity = np.maximum(self.activity, logits[order])
        return order


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(C, O), (C, O) → (C, C): absolute cosine of each pair of signals, 0 for a silent one."""
    norms = np.linalg.norm(first, axis=1)[:, None] * np.linalg.norm(second, axis=1)
    return np.abs(first @ second.T) / np.where(norms > 0, norms, 1)


# --- writing ---------------------------------------------------------------------------------------------------------


def _array_writer(sources: np.ndarray) -> Callable[[np.ndarray], None]:
    """Function that puts blocks (C, n) one behind the other."""
    position = 0

    def write(block: np.ndarray) -> None:
        nonlocal position
        sources[:, position : position + block.shape[1]] = block
        position += block.shape[1]

    return write


def _file_writer(paths: Sequence[str | os.PathLike], sampling_rate: int, files: ExitStack):
    """Function that appends blocks (C, n) to C files."""
    import soundfile

    outputs = [files.enter_context(soundfile.SoundFile(path, "w", sampling_rate, 1, "FLOAT")) for path in paths]

    def write(block: np.ndarray) -> None:
        for output, samples in zip(outputs, block, strict=True):
            output.write(samples)

    return write
