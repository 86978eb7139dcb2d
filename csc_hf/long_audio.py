# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Separate and embed audio of any length in constant memory.

Overlapping chunks go through the model one by one. Their slots are brought into one order by the speaker embeddings,
and the chunks are cross-faded.

What is done with a recording is a `Job`, a generator that yields chunks and receives what the model says of them. So
`run` can put chunks of several recordings into one batch.
"""

import itertools
import math
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from .audio import OneChannel, is_file, read_blocks
from .configuration_csc import CSCConfig
from .feature_extraction_csc import high_pass
from .files import writing
from .modeling_csc import CSCPreTrainedModel

CHUNK_SECONDS = 10.0
OVERLAP_SECONDS = 2.0

SAME_SPEAKER = 0.5
"""Cosine of embeddings above which a slot is taken for a known speaker rather than a new one: half way between the
targets of training for different speakers (0) and for one speaker (1)."""

GAIN_RIDGE = 1e-3
"""Weight of the energy of a source, relative to that of the distance, in `scale_to_mixture`. It makes levels 0.1 %
too low."""


Result = TypeVar("Result")

Job = Generator[np.ndarray, Any, Result]
"""Work on one recording: yields waveforms (samples,), receives the output of the model for each, as a batch of one,
and returns a result."""


@dataclass
class SeparatedAudio:
    """
    The speakers of a recording.

    Args:
        sources: float32 (slots, samples), the waveform of each speaker, at the level at which they best add up to the
            recording; None from `embed`, and where they were written to files.
        embeddings: float32 (slots, embedding), of unit length.
        activity: float32 (slots,), logit that the slot holds a speaker anywhere in the recording. Below zero, the
            waveform and the embedding of the slot mean nothing.
        segments: (segments, hidden size), the `source_hidden_states` of all chunks, slots and segments, which
            `CSCForPreTraining.aggregate` takes as its memory; None unless `embed` was asked for them.
    """

    sources: np.ndarray | None
    embeddings: np.ndarray
    activity: np.ndarray
    segments: torch.Tensor | None = None


def separate(
    model: CSCPreTrainedModel,
    waveform: Any,
    chunk_seconds: float = CHUNK_SECONDS,
    overlap_seconds: float = OVERLAP_SECONDS,
    output_files: Sequence[str | os.PathLike] | None = None,
    channel: int | None = None,
) -> SeparatedAudio:
    """
    Separate a recording chunk by chunk.

    A recording that fits in one chunk goes through the model as it is. Sources, embeddings and activity are then those
    of the model, except for the level of the sources.

    The model does not determine the level of its sources. `scale_to_mixture` sets it in each chunk, which makes the
    levels of neighbouring chunks agree. `Speakers` keeps the order of the slots.

    Args:
        model: A CSC model that separates (`CSCForSpeechSeparation`, `CSCForPreTraining`), in evaluation mode.
        waveform: Floats (samples,) at the sampling rate of the model, or anything else that
            `csc_hf.audio.decode_audio` takes. Files are decoded and resampled by blocks. What is below 20 Hz, an
            offset above all, is taken off; the sources add up to the rest.
        chunk_seconds: Length of a chunk. Memory grows with its square.
        overlap_seconds: Least overlap of neighbouring chunks. Chunks are of equal length, so they may share more.
        output_files: One file for each slot, to which its source is written block by block: as 32-bit floats if its
            format has them, such as `.wav`. If the input is a file as well, memory is constant.
        channel: The only channel to hear, counted from 0. By default, all are averaged.

    Raises:
        ValueError: The model is in training mode or does not separate; the recording is empty, holds NaN or infinite
            samples, lacks the channel, or cannot be decoded; the overlap does not fit the chunk; the number of files
            is not that of slots; the model returns NaN or infinite values.
    """
    audio = OneChannel(waveform, channel)
    return run(model, [separation(model, audio, chunk_seconds, overlap_seconds, output_files)])[0]


def separation(
    model: CSCPreTrainedModel,
    waveform: Any,
    chunk_seconds: float = CHUNK_SECONDS,
    overlap_seconds: float = OVERLAP_SECONDS,
    output_files: Sequence[str | os.PathLike] | None = None,
) -> Job[SeparatedAudio]:
    """`separate` as a job for `run`, with the same model."""
    config, num_sources = model.config, model.config.num_sources
    if output_files is not None and len(output_files) != num_sources:
        raise ValueError(
            f"{len(output_files)} output_files for the {num_sources} slots of the model: give one for each"
        )
    with ExitStack() as files:
        recording = open_recording(waveform, config.sampling_rate)
        if output_files is None:
            sources = np.empty((num_sources, recording.num_samples), np.float32)
            write = _array_writer(sources)
        else:
            sources = None
            write = file_writer(output_files, config.sampling_rate, files)
        speakers = Speakers(num_sources)
        tail, position = np.zeros((num_sources, 0), np.float32), 0  # what is separated beyond `position`
        for start, samples in chunks(recording, config.sampling_rate, chunk_seconds, overlap_seconds):
            output = yield samples
            check_separates(model, output)
            chunk = scale_to_mixture(_to_numpy(output.sources[0]), _to_numpy(output.source_activity[0]), samples)
            write(tail[:, : start - position])
            tail = tail[:, start - position :]
            chunk = chunk[speakers.follow(output, tail, chunk[:, : tail.shape[1]])]
            tail, position = cross_fade(tail, chunk), start
        write(tail)
    return SeparatedAudio(sources, speakers.embeddings, speakers.activity)


def embed(
    model: CSCPreTrainedModel,
    waveform: Any,
    chunk_seconds: float = CHUNK_SECONDS,
    overlap_seconds: float = OVERLAP_SECONDS,
    with_segments: bool = False,
    channel: int | None = None,
) -> SeparatedAudio:
    """
    Embeddings and activity of the speakers of a recording, without their waveforms.

    The model need not separate (`CSCModel`). Speakers are followed by their embeddings alone.

    Args:
        model, waveform, chunk_seconds, overlap_seconds, channel: As in `separate`, with the same errors.
        with_segments: Whether to return the `segments` of the recording as well. They take memory that grows with its
            length.
    """
    audio = OneChannel(waveform, channel)
    return run(model, [embedding(model, audio, chunk_seconds, overlap_seconds, with_segments)])[0]


def embedding(
    model: CSCPreTrainedModel,
    waveform: Any,
    chunk_seconds: float = CHUNK_SECONDS,
    overlap_seconds: float = OVERLAP_SECONDS,
    with_segments: bool = False,
) -> Job[SeparatedAudio]:
    """`embed` as a job for `run`, with the same model."""
    config = model.config
    speakers = Speakers(config.num_sources)
    segments: list[torch.Tensor] = []
    recording = open_recording(waveform, config.sampling_rate)
    for _, samples in chunks(recording, config.sampling_rate, chunk_seconds, overlap_seconds):
        output = yield samples
        speakers.follow(output)
        if with_segments:
            segments.append(output.source_hidden_states.flatten(0, 2))
    return SeparatedAudio(None, speakers.embeddings, speakers.activity, torch.cat(segments) if with_segments else None)


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass
class Recording:
    """Audio of which any part can be read: `read(start, length)` returns float32 (length,)."""

    num_samples: int
    read: Callable[[int, int], np.ndarray]


def open_recording(audio: Any, sampling_rate: int, num_samples: int | None = None) -> Recording:
    """
    Audio that `chunks` can read, without an offset and what is below 20 Hz (`high_pass`).

    Args:
        audio: Anything that `csc_hf.audio.decode_audio` takes. Files are decoded by blocks, in constant memory.
        sampling_rate: Of the model.
        num_samples: Length of a file that was opened before.

    Raises:
        ValueError: As of `separate`.
    """
    if is_file(audio):
        if num_samples is None:
            # It is counted, since headers are wrong about it in some files.
            num_samples = sum(len(block) for block in read_blocks(audio, sampling_rate))
        blocks = _filtered(read_blocks(audio, sampling_rate, quiet=True), sampling_rate)
        recording = Recording(num_samples, _reader(blocks))
    else:
        blocks = _filtered(read_blocks(audio, sampling_rate), sampling_rate)
        samples = np.concatenate([np.zeros(0, np.float32), *blocks])
        recording = Recording(len(samples), lambda start, length: samples[start : start + length])
    if recording.num_samples == 0:
        raise ValueError("the recording holds no samples: leave it out")
    return recording


def _filtered(blocks: Iterator[np.ndarray], sampling_rate: int) -> Iterator[np.ndarray]:
    """Blocks (samples,) through `high_pass`."""
    state = None
    for block in blocks:
        block, state = high_pass(block, sampling_rate, state)
        yield block


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
    recording: Recording, sampling_rate: int, chunk_seconds: float, overlap_seconds: float, multiple: int = 1
) -> Iterator[tuple[int, np.ndarray]]:
    """
    Yield the start of each chunk and its samples, float32.

    There are as few chunks as the overlap allows. They are of equal length and spread evenly over the recording, so
    the last one is no short rest, which would tell the model little. The start of each is a multiple of `multiple`
    samples, for which the last one may be longer by less than that.

    Raises:
        ValueError: The overlap is negative or above half of a chunk, or a file has become
            shorter since it was opened.
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
        start = room * index // max(count - 1, 1) // multiple * multiple
        length = size if index < count - 1 else recording.num_samples - start
        samples = recording.read(start, length)
        if len(samples) < length:
            raise ValueError(
                f"the recording had {recording.num_samples} samples when it was opened, and now ends after "
                f"{start + len(samples)}: read it when nothing changes it any more"
            )
        yield start, samples


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


# --- running ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def run(model: CSCPreTrainedModel, jobs: Sequence[Job[Result]], batch_size: int = 1) -> list[Result]:
    """
    Do jobs with a model in evaluation mode, `batch_size` of them at a time.

    Whatever the batch size is, results are the same, up to rounding. Chunks of a batch are padded to the longest, so
    jobs of like length should stand beside each other.

    Args:
        model: A CSC model that gives what the jobs need.
        jobs: In the order in which they are begun.
        batch_size: The most chunks in a batch, each of another job.

    Returns:
        Their results, in the same order.

    Raises:
        ValueError: The model is in training mode, or returns NaN or infinite values; or what a job raises.
    """
    if model.training:
        raise ValueError(f"{type(model).__name__} is in training mode, in which its output is random: call .eval()")
    results: dict[int, Result] = {}
    waiting = iter(range(len(jobs)))
    chunks: dict[int, np.ndarray] = {}  # what the jobs that have begun wait for

    def go_on(number: int, output: Any) -> None:
        """Send a job what it waits for. When it has finished, begin the next that needs the model."""
        try:
            chunks[number] = jobs[number].send(output)
        except StopIteration as finished:
            results[number] = finished.value
            chunks.pop(number, None)
            begin()

    def begin() -> None:
        if (number := next(waiting, None)) is not None:
            go_on(number, None)

    try:
        for _ in range(batch_size):
            begin()
        while chunks:
            numbers = list(chunks)
            outputs = _outputs(model, [chunks[number] for number in numbers])
            for number, output in zip(numbers, outputs, strict=True):
                go_on(number, output)
    finally:
        for job in jobs:
            job.close()
    return [results[number] for number in range(len(jobs))]


def _outputs(model: CSCPreTrainedModel, chunks: list[np.ndarray]) -> list[Any]:
    """What the model says of each of the chunks (samples,), which go through it together."""
    lengths = [len(samples) for samples in chunks]
    inputs = {"input_values": torch.zeros(len(chunks), max(lengths))}
    for row, samples in zip(inputs["input_values"], chunks, strict=True):
        row[: len(samples)] = torch.from_numpy(samples)
    if min(lengths) < max(lengths):
        inputs["attention_mask"] = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    output = model(**{name: values.to(model.device) for name, values in inputs.items()})
    outputs = (
        [output] if len(chunks) == 1 else [_one_of(output, n, model.config, lengths[n]) for n in range(len(chunks))]
    )
    for output, samples in zip(outputs, chunks, strict=True):
        for values in (output.source_embeddings, output.sources):
            if values is not None and not values.isfinite().all():
                raise ValueError(
                    f"{type(model).__name__} returns NaN or infinite values for a recording whose largest sample is "
                    f"{np.abs(samples).max():.3g}: scale the recording to ±1, or check the weights of the model"
                )
    return outputs


def _one_of(output: Any, number: int, config: CSCConfig, num_samples: int) -> Any:
    """One recording of a batch, without its padding, as a batch of one."""
    ends = {
        "source_embeddings": config.speaker_embedding_size,
        "source_activity": config.num_sources,
        "source_frame_activity": config.num_activity_frames(num_samples),
        "source_hidden_states": config.num_segments(num_samples),
        "sources": num_samples,
    }
    one = {}
    for name, end in ends.items():
        if (values := getattr(output, name, None)) is not None:
            of_one = values[number : number + 1]
            one[name] = of_one.narrow(min(2, of_one.dim() - 1), 0, end)
    return type(output)(**one)


def check_separates(model: CSCPreTrainedModel, output: Any) -> None:
    """Raise a ValueError if the output of a model has no sources."""
    if output.sources is None:
        raise ValueError(f"{type(model).__name__} does not separate: use CSCForSpeechSeparation")


# --- stitching -------------------------------------------------------------------------------------------------------


def scale_to_mixture(sources: np.ndarray, activity: np.ndarray, mixture: np.ndarray) -> np.ndarray:
    """
    Scale each source so that the sum of all has the least squared distance to the mixture.

    The level of the given sources does not matter. Where they do not determine the factors, the activity of the slots
    does: of two active sources that are alike, each gets half; an idle one gets next to nothing.

    Args:
        sources: (slots, samples).
        activity: (slots,) logits.
        mixture: (samples,).

    Returns:
        float32 (slots, samples).
    """
    wide = sources.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    unit = wide / np.where(norms > 0, norms, 1)
    ridge = np.diag(GAIN_RIDGE * (1 + np.exp(-activity.astype(np.float64))))  # inverse to the probability of activity
    gains = np.linalg.solve(unit @ unit.T + ridge, unit @ mixture)
    return (gains[:, None] * unit).astype(np.float32)


def cross_fade(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(slots, overlap) and (slots, samples) → (slots, samples): over the overlap, change linearly from `before` to
    `after`."""
    overlap = before.shape[1]
    share = np.arange(1, overlap + 1, dtype=np.float32) / (overlap + 1)
    return np.concatenate([before * (1 - share) + after[:, :overlap] * share, after[:, overlap:]], axis=1)


class Speakers:
    """
    Keeps the speakers of a recording in one order, whatever order the model gives them in a chunk.

    Each slot of a chunk is assigned to a speaker. The likeness of the two is the cosine of the slot's embedding with
    the mean of the speaker's embeddings so far, less `SAME_SPEAKER`, so that a new voice is not assigned to a known
    speaker while a place is free. It is weighted by the activity of both. Added is the correlation of the two
    waveforms in the overlap, which both chunks have separated: it decides where the embeddings do not. The assignment
    with the highest sum is taken, so an idle slot gets the place that is left.
    """

    def __init__(self, num_sources: int):
        self._orders = np.array(list(itertools.permutations(range(num_sources))))
        self._sum: np.ndarray | float = 0.0  # (slots, embedding), of the embeddings, weighted by their activity
        self._presence = np.zeros(num_sources)  # (slots,), sum of these weights
        self.activity = np.full(num_sources, -np.inf, np.float32)

    @property
    def embeddings(self) -> np.ndarray:
        """float32 (slots, embedding), of unit length: mean over the chunks, weighted by the activity there."""
        return (self._sum / np.linalg.norm(self._sum, axis=-1, keepdims=True)).astype(np.float32)

    def follow(self, output, before: np.ndarray | None = None, after: np.ndarray | None = None) -> np.ndarray:
        """
        Add the next chunk.

        Args:
            output: Output of the model: `source_embeddings` (1, slots, embedding), `source_activity` (1, slots).
            before: (slots, overlap), the sources so far, in the overlap with the chunk.
            after: (slots, overlap), the sources of the chunk there, in the model's order.

        Returns:
            int (slots,), the slot of each speaker.
        """
        embeddings = _to_numpy(output.source_embeddings[0]).astype(np.float64)
        logits = _to_numpy(output.source_activity[0])
        weights = 1 / (1 + np.exp(-logits.astype(np.float64)))
        order = np.arange(len(logits))
        if self._presence.any():
            known = np.minimum(self._presence, 1)[:, None] * weights
            likeness = known * (self.embeddings @ embeddings.T - SAME_SPEAKER)
            if before is not None and after is not None:
                likeness = likeness + _correlation(before, after)
            order = self._orders[likeness[order, self._orders].sum(axis=1).argmax()]
        self._sum = self._sum + (weights[:, None] * embeddings)[order]
        self._presence = self._presence + weights[order]
        self.activity = np.maximum(self.activity, logits[order])
        return order


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(slots, overlap) twice → (slots, slots): absolute cosine of each pair of signals, 0 for a silent one."""
    norms = np.linalg.norm(first, axis=1)[:, None] * np.linalg.norm(second, axis=1)
    return np.abs(first @ second.T) / np.where(norms > 0, norms, 1)


# --- writing ---------------------------------------------------------------------------------------------------------


def _array_writer(sources: np.ndarray) -> Callable[[np.ndarray], None]:
    """A function that writes blocks (slots, samples) one behind the other."""
    position = 0

    def write(block: np.ndarray) -> None:
        nonlocal position
        sources[:, position : position + block.shape[1]] = block
        position += block.shape[1]

    return write


def file_writer(paths: Sequence[str | os.PathLike], sampling_rate: int, files: ExitStack):
    """A function that appends blocks (slots, samples) to one file for each slot: as 32-bit floats if its format has
    them. The files are there when `files` is closed, or none is if an error closes it."""
    import soundfile

    def subtype(path: str | os.PathLike) -> str | None:
        ending = os.path.splitext(path)[1].lstrip(".").upper()
        return "FLOAT" if soundfile.check_format(ending, "FLOAT") else None

    unfinished = [files.enter_context(writing(path)) for path in paths]
    outputs = [
        files.enter_context(soundfile.SoundFile(path, "w", sampling_rate, 1, subtype(path))) for path in unfinished
    ]

    def write(block: np.ndarray) -> None:
        for output, samples in zip(outputs, block, strict=True):
            output.write(samples)

    return write
