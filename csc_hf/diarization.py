# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Who speaks when, in a recording of any length and with any number of speakers.

    listen(chunks)        ->  Evidence: for each chunk, how active each slot is in each frame, and its embedding
    label(Evidence)       ->  the speaker of each slot, by clustering of the embeddings
    speaker_activity(...) ->  how active each speaker is in each frame of the recording
    find_turns(...)       ->  turns

At most as many speakers as the model has slots are told apart within a chunk. Memory grows by about a kilobyte for
each second of a recording.
"""

import copy
import itertools
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from .audio import SILENCE_POWER, OneChannel, power, read_file
from .enrolment import check_name
from .files import check_folder
from .long_audio import (
    Job,
    Recording,
    check_separates,
    chunks,
    cross_fade,
    file_writer,
    open_recording,
    run,
    scale_to_mixture,
)
from .modeling_csc import CSCPreTrainedModel

logger = logging.get_logger(__name__)

MAX_ITEMS = 1000
"""Slots that are clustered at a time. Memory and time of the clustering grow with its square."""

FADE_SECONDS = 0.01
"""How long a voice takes to come and go at the borders of its turns."""


# --- what comes out --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """
    One speaker speaks.

    Args:
        start, end: Seconds from the beginning of the recording.
        speaker: Name.
        score: Mean probability, over the turn, that the speaker is speaking.
    """

    start: float
    end: float
    speaker: str
    score: float


@dataclass(frozen=True)
class Diarization:
    """
    Who speaks when in a recording.

    Args:
        turns: By their beginning. Turns of one speaker do not overlap, those of different speakers may.
        embeddings: Embedding of each speaker, float32 (embedding,) of unit length, in order of appearance.
        duration: Length of the recording in seconds.
    """

    turns: list[Turn]
    embeddings: dict[str, np.ndarray]
    duration: float

    @property
    def num_speakers(self) -> int:
        return len(self.embeddings)

    def rttm(self, uri: str) -> str:
        """
        The turns in NIST's RTTM format, one line per turn. White space, which separates the columns, becomes "_" in
        names (`rttm_names`). Every turn lasts at least a millisecond: some programs take one of length 0 for one
        without an end.

        Args:
            uri: Name of the recording.

        Raises:
            ValueError: A name is blank or begins with a quotation mark, or two speakers would have the same name.
        """
        (recording,) = rttm_names([uri]).values()
        names = rttm_names(self.embeddings)
        return "".join(
            f"SPEAKER {recording} 1 {turn.start:.3f} {max(turn.end - turn.start, 0.001):.3f} <NA> <NA> "
            f"{names[turn.speaker]} <NA> <NA>\n"
            for turn in self.turns
        )

    def audacity(self) -> str:
        """The turns as a label track of Audacity, a line each."""
        return "".join(f"{turn.start:.3f}\t{turn.end:.3f}\t{turn.speaker}\n" for turn in self.turns)

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {
            "turns": [asdict(turn) for turn in self.turns],
            "num_speakers": self.num_speakers,
            "embeddings": {name: embedding.tolist() for name, embedding in self.embeddings.items()},
            "duration": self.duration,
        }

    def annotation(self, uri: str | None = None):
        """The turns as a `pyannote.core.Annotation`."""
        from pyannote.core import Annotation, Segment

        annotation = Annotation(uri=uri)
        for number, turn in enumerate(self.turns):
            annotation[Segment(turn.start, turn.end), number] = turn.speaker
        return annotation


def rttm_name(name: str) -> str:
    """A name as RTTM holds it: white space, which separates the columns, becomes "_"."""
    return "_".join(name.split())


def rttm_names(names: Iterable[str]) -> dict[str, str]:
    """
    Names as RTTM holds them, by the names.

    Raises:
        ValueError: A name is blank or begins with a quotation mark, which makes pyannote and other readers of tables
            swallow the lines after it; or two names become the same.
    """
    folded: dict[str, str] = {}
    for name in names:
        if not rttm_name(name):
            raise ValueError(f"RTTM cannot hold the name {name!r}: give it letters")
        if rttm_name(name).startswith('"'):
            raise ValueError(
                f"RTTM cannot hold the name {name!r}: rename it, without the quotation mark it begins with"
            )
        other = folded.setdefault(rttm_name(name), name)
        if other != name:
            raise ValueError(f"{other!r} and {name!r} are both {rttm_name(name)!r} in RTTM: rename one of them")
    return {name: rttm_name(name) for name in folded.values()}


# --- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DiarizationSettings:
    """
    How recordings are diarized. `csc_hf.evaluation.diarization.fit_settings` learns it on conversations of other
    people; `store` puts it into the configuration of the model.

    Args:
        chunk_seconds: Length of a chunk.
        overlap_seconds: Least overlap of neighbouring chunks, at most half of a chunk.
        overlap_weight: How much a second of a slot counts, as evidence of a voice, in which another slot of its chunk
            is active too, relative to one in which it is alone.
        min_slot_seconds: Slots with less evidence go to the speakers that others make, but make none.
        threshold: Highest mean cosine distance of two clusters that are one speaker.
        apart: How much further from each other the slots of a chunk count than their embeddings say.
        min_speaker_seconds: A cluster with less evidence is no speaker, unless there would be fewer than are given.
        onset, offset: A turn is where the probability of a speaker is above `offset`, and somewhere above `onset`.
        min_pause_seconds: A shorter pause between two turns of a speaker belongs to the turn.
        min_turn_seconds: A shorter turn is left out.
        name_threshold: Least cosine of a speaker and the enrolled one by whose name they go.
        error_rate: Diarization error rate on the conversations on which these settings were learnt.
        conversations_sha256: Hash of these.
    """

    chunk_seconds: float = 5.0
    overlap_seconds: float = 2.5
    overlap_weight: float = 0.5
    min_slot_seconds: float = 0.5
    threshold: float = 0.5
    apart: float = 0.5
    min_speaker_seconds: float = 1.0
    onset: float = 0.5
    offset: float = 0.4
    min_pause_seconds: float = 0.2
    min_turn_seconds: float = 0.1
    name_threshold: float = 0.5
    error_rate: float | None = None
    conversations_sha256: str | None = None

    def __post_init__(self):
        if not (self.chunk_seconds > 0 and 0 <= self.overlap_seconds <= self.chunk_seconds / 2):
            raise ValueError(
                f"chunk_seconds={self.chunk_seconds} and overlap_seconds={self.overlap_seconds}: the overlap must not "
                "be negative or above half of a chunk"
            )
        if not 0 <= self.offset <= self.onset <= 1:
            raise ValueError(f"onset={self.onset} and offset={self.offset}: 0 <= offset <= onset <= 1 must hold")

    def store(self, model_or_config) -> None:
        """Put the settings into a configuration as `config.diarization`, where `save_pretrained` saves them."""
        getattr(model_or_config, "config", model_or_config).diarization = asdict(self)

    @classmethod
    def load(cls, model_or_config) -> "DiarizationSettings | None":
        """The settings that `store` has put into a configuration, or None."""
        stored = getattr(getattr(model_or_config, "config", model_or_config), "diarization", None)
        return None if stored is None else cls(**stored)


def settings_of(model: CSCPreTrainedModel) -> DiarizationSettings:
    """The settings of a model. Where it has none, those that it would begin with, with a warning."""
    settings = DiarizationSettings.load(model)
    if settings is None:
        logger.warning_once(
            "This model has no settings of diarization: THRESHOLDS ARE NOT THOSE OF THE MODEL, and the number of "
            "speakers is a guess. Learn them on conversations (examples/evaluate_diarization.py --fit_on), or give "
            "settings and the number of speakers"
        )
    return settings or DiarizationSettings()


# --- diarization -----------------------------------------------------------------------------------------------------


def diarize(
    model: CSCPreTrainedModel,
    recording: Any,
    *,
    num_speakers: int | None = None,
    min_speakers: int | None = None,
    max_speakers: int | None = None,
    enrolled: Mapping[str, np.ndarray] | None = None,
    voices: str | os.PathLike | None = None,
    settings: DiarizationSettings | None = None,
    channel: int | None = None,
) -> Diarization:
    """
    Find who speaks when.

    Args:
        model: A CSC model with `config.frame_activity`, in evaluation mode. With `voices` it has to separate
            (`CSCForSpeechSeparation`, `CSCForPreTraining`).
        recording: Floats (samples,) at the sampling rate of the model, or anything else that
            `csc_hf.audio.decode_audio` takes. Files are decoded and resampled by blocks.
        num_speakers: Speakers of the recording. There are fewer in the result if no more are heard.
        min_speakers, max_speakers: Bounds of their number, where it is not known.
        enrolled: Embeddings (embedding,) of known speakers by their names (`csc_hf.enrolment.enrol`). At most one
            speaker of the recording gets each name. The others are "speaker_1", ... by their place among all speakers
            in order of appearance; a number is passed over where somebody enrolled has that name.
        voices: Folder for one WAV file of each speaker, as long as the recording, silent where they do not speak. The
            voices of those who speak add up to the recording; all are turned down together where one would exceed full
            scale and the recording does not. Written block by block.
        settings: In place of those of the model.
        channel: The only channel to hear, counted from 0. By default, all are averaged.

    Raises:
        ValueError: The model has no frame activity, is in training mode, or does not separate; the recording is empty,
            holds NaN or infinite samples, cannot be decoded, or becomes shorter meanwhile; numbers of speakers
            contradict each other; an enrolled embedding does not fit the model, or its name is not one of a file.
        ImportError: SciPy cannot be imported.
    """
    if hasattr(recording, "read"):  # voices are written in a second pass
        recording = read_file(recording)
    job = diarization(
        model,
        OneChannel(recording, channel),
        num_speakers=num_speakers,
        min_speakers=min_speakers,
        max_speakers=max_speakers,
        enrolled=enrolled,
        voices=voices,
        settings=settings,
    )
    return run(listener(model) if voices is None else model, [job])[0]


def diarization(
    model: CSCPreTrainedModel,
    recording: Any,
    *,
    num_speakers: int | None = None,
    min_speakers: int | None = None,
    max_speakers: int | None = None,
    enrolled: Mapping[str, np.ndarray] | None = None,
    voices: str | os.PathLike | None = None,
    settings: DiarizationSettings | None = None,
) -> Job[Diarization]:
    """`diarize` as a job for `csc_hf.long_audio.run`, with the same model, or with its `listener` if no voices are
    written."""
    bounds = speaker_bounds(num_speakers, min_speakers, max_speakers)
    enrolled = check_enrolled(enrolled or {}, model.config.speaker_embedding_size)
    settings = settings or settings_of(model)
    if voices is not None:
        check_folder(voices)
    evidence = yield from listen(model, recording, settings.chunk_seconds, settings.overlap_seconds)
    labels, activity, result = decide(evidence, settings, bounds, enrolled)
    if voices is not None:
        opened = open_recording(recording, model.config.sampling_rate, evidence.num_samples)
        yield from _write_voices(model, opened, settings, labels, activity, list(result.embeddings), Path(voices))
    return result


def decide(
    evidence: "Evidence",
    settings: DiarizationSettings,
    bounds: tuple[int, int | None] = (1, None),
    enrolled: Mapping[str, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, Diarization]:
    """
    From what the model says of a recording to who speaks when.

    Args:
        evidence: From `listen`.
        bounds: Least and most speakers; None: any number.
        enrolled: As of `diarize`.

    Returns:
        The speaker of each slot, int (chunks, slots), by their place in `embeddings`, -1 for nobody; who speaks in
        each frame, bool (speakers, frames); and the diarization.
    """
    labels, centroids = label(evidence, settings, bounds)
    probability = speaker_activity(evidence, labels, len(centroids))
    turns = [find_turns(row, evidence.frame_seconds, settings) for row in probability]
    # Speakers in order of appearance. Those without a turn are none.
    order = sorted((number for number, found in enumerate(turns) if found), key=lambda number: turns[number][0])
    names = name_speakers(centroids[order], enrolled or {}, settings.name_threshold)
    active = np.zeros((len(order), evidence.num_frames), dtype=bool)
    result = []
    for place, number in enumerate(order):
        for first, end in turns[number]:
            active[place, first:end] = True
            start, stop = first * evidence.frame_seconds, min(end * evidence.frame_seconds, evidence.duration)
            result.append(Turn(start, stop, names[place], float(probability[number, first:end].mean())))
    result.sort(key=lambda turn: (turn.start, turn.end))
    places = np.full(len(centroids) + 1, -1)  # the last for nobody
    places[order] = np.arange(len(order))
    embeddings = dict(zip(names, centroids[order], strict=True))
    return places[labels], active, Diarization(result, embeddings, evidence.duration)


def speaker_bounds(
    num_speakers: int | None, min_speakers: int | None, max_speakers: int | None
) -> tuple[int, int | None]:
    """The least and the most speakers. Raises a ValueError for numbers that cannot be, or contradict each other."""
    given = {"num_speakers": num_speakers, "min_speakers": min_speakers, "max_speakers": max_speakers}
    for name, value in given.items():
        if value is not None and (isinstance(value, bool) or value != int(value) or value < 1):
            raise ValueError(f"{name}={value!r}: give a whole number from 1 on, or None where it is not known")
    if num_speakers is not None:
        if min_speakers is not None or max_speakers is not None:
            raise ValueError(f"num_speakers={num_speakers} is exact: leave out min_speakers and max_speakers")
        return num_speakers, num_speakers
    if max_speakers is not None and (min_speakers or 1) > max_speakers:
        raise ValueError(f"min_speakers={min_speakers} is above max_speakers={max_speakers}")
    return min_speakers or 1, max_speakers


def check_enrolled(enrolled: Mapping[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """Embeddings of enrolled speakers, brought to unit length. Raises a ValueError that names the one that does not
    fit, or that cannot be called so."""
    checked = {}
    for name, embedding in dict(enrolled).items():  # a copy, since others may enrol meanwhile
        check_name(name)
        values = np.asarray(embedding, dtype=np.float64)
        norm = np.linalg.norm(values)
        if values.shape != (size,) or not np.isfinite(norm) or norm == 0:
            raise ValueError(
                f"the embedding of {name!r} has shape {values.shape} and length {norm:.3g}: give a finite one of "
                f"shape ({size},), from this model"
            )
        checked[name] = values / norm
    return checked


def listener(model: CSCPreTrainedModel) -> CSCPreTrainedModel:
    """The base model without its separator, which takes a third of the time. The weights are shared."""
    base: Any = model.base_model
    if base.separator is None:
        return base
    light = copy.copy(base)
    light._modules = base._modules | {"separator": None}
    return light


# --- listening -------------------------------------------------------------------------------------------------------


@dataclass
class Evidence:
    """
    What a model says of a recording, chunk by chunk.

    Args:
        starts: int (chunks,), first frame of each chunk.
        activity: uint8 (chunks, slots, frames of a chunk), probability · 255 that the slot is active in a frame; 0
            beyond the end of a chunk.
        embeddings: float32 (chunks, slots, embedding), of unit length.
        lengths: int (chunks,), frames of each chunk.
        frame_samples: Samples of a frame.
        num_samples, sampling_rate: Of the recording.
    """

    starts: np.ndarray
    activity: np.ndarray
    embeddings: np.ndarray
    lengths: np.ndarray
    frame_samples: int
    num_samples: int
    sampling_rate: int

    @property
    def frame_seconds(self) -> float:
        return self.frame_samples / self.sampling_rate

    @property
    def duration(self) -> float:
        """Seconds of the recording."""
        return self.num_samples / self.sampling_rate

    @property
    def num_frames(self) -> int:
        """Frames of the recording."""
        return int((self.starts + self.lengths).max(initial=0))

    def seconds(self, threshold: float, overlap_weight: float) -> np.ndarray:
        """(chunks, slots): how long a slot is active. Where another one is active too, it counts `overlap_weight`."""
        active = self.activity > 255 * threshold
        alone = active.sum(axis=1, keepdims=True) == 1
        return (active * np.where(alone, 1.0, overlap_weight)).sum(axis=2) * self.frame_seconds


def check_frame_activity(model_or_config) -> None:
    """Raise a ValueError if a model does not say who is active in a frame."""
    if not getattr(getattr(model_or_config, "config", model_or_config), "frame_activity", False):
        raise ValueError(
            "this model does not say who is active in a frame (config.frame_activity is not set): use a model that "
            "does, such as csc-small, or train one with frame_activity=True"
        )


def listen(model: CSCPreTrainedModel, recording, chunk_seconds: float, overlap_seconds: float) -> Job[Evidence]:
    """
    Job for `csc_hf.long_audio.run`: hear all of a recording.

    Args: As of `diarize` and `DiarizationSettings`.
    """
    check_frame_activity(model)
    config = model.config
    stride, slots = config.activity_stride, config.num_sources
    opened = open_recording(recording, config.sampling_rate)
    size = round(chunk_seconds * config.sampling_rate)
    step = max(size - round(overlap_seconds * config.sampling_rate), 1)
    # All that is kept is allocated at once: small pieces between what the model takes and frees would fragment memory.
    most = 1 + math.ceil(opened.num_samples / step)
    most_frames = config.num_activity_frames(min(size + stride, opened.num_samples))
    starts, lengths = np.zeros(most, int), np.zeros(most, int)
    activity = np.zeros((most, slots, most_frames), np.uint8)
    embeddings = np.zeros((most, slots, config.speaker_embedding_size), np.float32)
    count = 0
    for start, samples in _frame_chunks(opened, config, chunk_seconds, overlap_seconds):
        starts[count], lengths[count] = start // stride, config.num_activity_frames(len(samples))
        if power(samples) >= SILENCE_POWER:
            output = yield samples
            probability = output.source_frame_activity[0].float().sigmoid().cpu().numpy()
            activity[count, :, : lengths[count]] = np.rint(255 * probability)
            embeddings[count] = output.source_embeddings[0].float().cpu().numpy()
        count += 1
    return Evidence(
        starts=starts[:count],
        activity=activity[:count],
        embeddings=embeddings[:count],
        lengths=lengths[:count],
        frame_samples=stride,
        num_samples=opened.num_samples,
        sampling_rate=config.sampling_rate,
    )


def _frame_chunks(
    recording: Recording, config, chunk_seconds: float, overlap_seconds: float
) -> Iterator[tuple[int, np.ndarray]]:
    """Chunks of a recording that begin with a frame."""
    yield from chunks(recording, config.sampling_rate, chunk_seconds, overlap_seconds, config.activity_stride)


# --- clustering ------------------------------------------------------------------------------------------------------


def label(
    evidence: Evidence, settings: DiarizationSettings, bounds: tuple[int, int | None] = (1, None)
) -> tuple[np.ndarray, np.ndarray]:
    """
    Find the speakers, and the speaker of each slot.

    Slots with enough evidence are clustered (agglomerative, average linkage). Then every active
    slot goes to the speaker whose mean embedding is nearest, slots of one chunk to different speakers if that costs
    less than `settings.apart`.

    Returns:
        int (chunks, slots), the speaker, -1 for an idle slot; float32 (speakers, embedding), of unit length.
    """
    active = np.any(evidence.activity > 255 * settings.onset, axis=2)
    seconds = np.where(active, evidence.seconds(settings.onset, settings.overlap_weight), 0.0)
    num_chunks, num_slots = active.shape
    labels = np.full(active.shape, -1)
    if not active.any():
        return labels, np.zeros((0, evidence.embeddings.shape[2]), np.float32)
    usable = active & (seconds >= settings.min_slot_seconds)
    if usable.sum() < bounds[0]:
        usable = active
    items = evidence.embeddings[usable].astype(np.float64)
    weights = np.maximum(seconds[usable], evidence.frame_seconds)
    of_chunk = np.broadcast_to(np.arange(num_chunks)[:, None], active.shape)[usable]
    centroids = _find_speakers(items, weights, of_chunk, settings, bounds)
    for _ in range(2):
        for chunk in np.flatnonzero(active.any(axis=1)):
            slots = np.flatnonzero(active[chunk])
            likeness = evidence.embeddings[chunk, slots] @ centroids.T
            labels[chunk, slots] = _assign_apart(likeness, settings.apart)
        centroids = _means(items, weights, labels[usable], centroids)
    return labels, centroids.astype(np.float32)


def _find_speakers(
    items: np.ndarray,
    weights: np.ndarray,
    of_chunk: np.ndarray,
    settings: DiarizationSettings,
    bounds: tuple[int, int | None],
) -> np.ndarray:
    """Mean embeddings (speakers, embedding), of unit length, of the clusters of items (items, embedding)."""
    while len(items) > MAX_ITEMS:  # cluster it by parts, then the clusters
        parts = np.array_split(np.arange(len(items)), math.ceil(len(items) / (MAX_ITEMS / 2)))
        found = [_cut(_tree(items[part], of_chunk[part], settings), threshold=settings.threshold) for part in parts]
        # The product of means that are not of unit length is the mean product, as average linkage has it.
        means = [_sums(items[p], of) / np.bincount(of)[:, None] for p, of in zip(parts, found, strict=True)]
        sums = [np.bincount(of, weights[p]) for p, of in zip(parts, found, strict=True)]
        num_before, items, weights = len(items), np.concatenate(means), np.concatenate(sums)
        of_chunk = -1 - np.arange(len(items))  # nothing is known to be apart
        if len(items) == num_before:
            break
    least, most = bounds
    tree = _tree(items, of_chunk, settings)
    clusters = _cut(tree, threshold=settings.threshold)
    kept = _large(clusters, weights, settings.min_speaker_seconds)
    wanted = max(least, min(len(kept), most or len(kept)))
    if len(kept) != wanted or least == most:
        # The first cut that has as many speakers; what is left over are clusters that are too small.
        for number in range(wanted, len(items) + 1):
            clusters = _cut(tree, number=number)
            kept = _large(clusters, weights, settings.min_speaker_seconds)
            if len(kept) >= wanted:
                break
        else:
            clusters = _cut(tree, number=wanted)
            kept = _large(clusters, weights, 0.0)
        kept = kept[:wanted]
    places = np.full(clusters.max() + 1, -1)
    places[kept] = np.arange(len(kept))
    return _means(items, weights, places[clusters], np.zeros((len(kept), items.shape[1])))


def _tree(items: np.ndarray, of_chunk: np.ndarray, settings: DiarizationSettings) -> np.ndarray:
    """SciPy's linkage matrix of items (items, embedding)."""
    from scipy.cluster.hierarchy import linkage

    if len(items) == 1:
        return np.zeros((0, 4))
    first, second = np.triu_indices(len(items), 1)
    distances = 1 - items @ items.T
    distances[of_chunk[:, None] == of_chunk] += settings.apart
    return linkage(np.maximum(distances[first, second], 0), "average")


def _cut(tree: np.ndarray, threshold: float | None = None, number: int | None = None) -> np.ndarray:
    """int (items,), the cluster of each item, from 0 on: by a threshold on the distance, or in so many clusters."""
    from scipy.cluster.hierarchy import cut_tree, fcluster

    if len(tree) == 0:
        return np.zeros(1, int)
    if number is not None:
        return cut_tree(tree, n_clusters=number)[:, 0]
    return fcluster(tree, threshold, "distance") - 1


def _sums(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """(items, ...) → (clusters, ...): sums over the items of each cluster."""
    sums = np.zeros((clusters.max() + 1, *values.shape[1:]))
    np.add.at(sums, clusters, values)
    return sums


def _large(clusters: np.ndarray, weights: np.ndarray, least: float) -> np.ndarray:
    """The clusters whose weight is at least `least`, heaviest first; the heaviest one in any case."""
    sums = np.bincount(clusters, weights)
    order = np.argsort(-sums, kind="stable")
    return order[: max(1, int((sums >= least).sum()))]


def _means(items: np.ndarray, weights: np.ndarray, labels: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """Mean of the items of each label, of unit length. Where there are none: `otherwise`."""
    means = otherwise.copy()
    for number in range(len(otherwise)):
        total = weights[labels == number] @ items[labels == number]
        if np.linalg.norm(total) > 0:
            means[number] = total / np.linalg.norm(total)
    return means


def _assign_apart(likeness: np.ndarray, apart: float) -> np.ndarray:
    """The speaker of each slot of a chunk, by their likeness (slots, speakers): the assignment with the highest sum,
    of which `apart` is taken off for each slot that shares its speaker with another."""
    from scipy.optimize import linear_sum_assignment

    num_slots, num_speakers = likeness.shape
    places = np.concatenate([likeness - apart * copy for copy in range(num_slots)], axis=1)
    return linear_sum_assignment(-places)[1] % num_speakers


# --- turns -----------------------------------------------------------------------------------------------------------


def speaker_activity(evidence: Evidence, labels: np.ndarray, num_speakers: int) -> np.ndarray:
    """
    How active each speaker is in each frame of the recording.

    Where chunks overlap, the mean of what they say counts; what a chunk says near its ends counts less.

    Returns:
        float32 (speakers, frames), probabilities.
    """
    total = np.zeros((num_speakers, evidence.num_frames), np.float32)
    weight = np.zeros(evidence.num_frames, np.float32)
    for start, length, of_chunk, speakers in zip(
        evidence.starts, evidence.lengths, evidence.activity, labels, strict=True
    ):
        ramp = np.arange(1, length + 1, dtype=np.float32)
        near = np.minimum(ramp, ramp[::-1]) / length
        weight[start : start + length] += near
        heard = np.zeros((num_speakers, length), np.float32)
        for probability, speaker in zip(of_chunk[:, :length], speakers, strict=True):
            if speaker >= 0:
                heard[speaker] = np.maximum(heard[speaker], probability / np.float32(255))
        total[:, start : start + length] += near * heard
    return total / np.maximum(weight, np.finfo(np.float32).tiny)


def find_turns(probability: np.ndarray, frame_seconds: float, settings: DiarizationSettings) -> list[tuple[int, int]]:
    """Turns of a speaker, as first frame and the frame behind the last, from their probabilities (frames,)."""
    turns: list[tuple[int, int]] = []
    for first, end in _runs(probability > settings.offset).tolist():
        if probability[first:end].max() <= settings.onset:
            continue
        if turns and (first - turns[-1][1]) * frame_seconds < settings.min_pause_seconds:
            first = turns.pop()[0]
        turns.append((first, end))
    return [(first, end) for first, end in turns if (end - first) * frame_seconds >= settings.min_turn_seconds]


def _runs(active: np.ndarray) -> np.ndarray:
    """int (runs, 2): where activity (frames,) begins, and where it has ended."""
    return np.flatnonzero(np.diff(active.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)


def name_speakers(centroids: np.ndarray, enrolled: Mapping[str, np.ndarray], threshold: float) -> list[str]:
    """Names of speakers (speakers, embedding): those of the enrolled ones whom they are like, else by their place."""
    from scipy.optimize import linear_sum_assignment

    names = [""] * len(centroids)
    if enrolled and len(centroids):
        likeness = centroids @ np.stack(list(enrolled.values())).T
        # What is below the threshold counts nothing, so it takes no name away from another pair.
        for place, name in zip(*linear_sum_assignment(-np.maximum(likeness - threshold, 0)), strict=True):
            if likeness[place, name] >= threshold:
                names[place] = list(enrolled)[name]
    taken = set(enrolled)
    for place in range(len(names)):
        names[place] = names[place] or speaker_label(place + 1, taken)
        taken.add(names[place])
    return names


def speaker_label(place: int, taken: Collection[str]) -> str:
    """What to call a speaker whose name is not known: "speaker_" and their place among all speakers, from 1 on; the
    next number that no name in `taken` has, in RTTM either."""
    names = {rttm_name(name) for name in taken}
    return next(label for number in itertools.count(place) if (label := f"speaker_{number}") not in names)


# --- voices ----------------------------------------------------------------------------------------------------------


def _write_voices(
    model: CSCPreTrainedModel,
    recording: Recording,
    settings: DiarizationSettings,
    labels: np.ndarray,
    active: np.ndarray,
    names: Sequence[str],
    folder: Path,
) -> Job[None]:
    """Separate the chunks once more, and write the voice of each speaker.

    Args:
        labels: int (chunks, slots), the speaker of each slot.
        active: bool (speakers, frames), who speaks when.
        names: Of the speakers.
    """
    config = model.config
    with ExitStack() as files:
        write = file_writer([folder / f"{name}.wav" for name in names], config.sampling_rate, files)
        tail, position = np.zeros((len(names), 0), np.float32), 0
        found = _frame_chunks(recording, config, settings.chunk_seconds, settings.overlap_seconds)
        for (start, samples), speakers in zip(found, labels, strict=True):
            voices = np.zeros((len(names), len(samples)), np.float32)
            shares = _gates(active, start, len(samples), config)
            if shares.any():
                output = yield samples
                check_separates(model, output)
                sources, idle = (
                    output.sources[0].float().cpu().numpy(),
                    output.source_activity[0].float().cpu().numpy(),
                )
                for source, speaker in zip(scale_to_mixture(sources, idle, samples), speakers, strict=True):
                    if speaker >= 0:
                        voices[speaker] += source
                voices *= shares
                # What is missing is shared out among those who speak.
                number = shares.sum(axis=0)
                missing = np.minimum(number, 1) * samples - voices.sum(axis=0)
                voices += missing * shares / np.maximum(number, 1)
                limit = max(1.0, float(np.abs(samples).max()))
                voices *= np.float32(limit / max(limit, np.abs(voices).max()))
            write(tail[:, : start - position])
            tail, position = cross_fade(tail[:, start - position :], voices), start
        write(tail)


def _gates(active: np.ndarray, start: int, length: int, config) -> np.ndarray:
    """float32 (speakers, length): 1 where a speaker speaks, 0 where not, with short fades inside the turns."""
    stride, fade = config.activity_stride, round(FADE_SECONDS * config.sampling_rate)
    first, more = start // stride, math.ceil(fade / stride)
    # Frames of a fade more on either side, so that it does not depend on where a chunk begins. Who speaks in the first
    # or last frame of the recording also does beyond it.
    around = np.arange(first - more, first + config.num_activity_frames(length) + more)
    frames = active[:, around.clip(0, active.shape[1] - 1)].astype(np.float32)
    gate = np.repeat(frames, stride, axis=1)
    if fade > 1:
        # The mean over the last and over the next samples: a ramp where a turn begins, and one where it ends.
        summed = np.cumsum(np.pad(gate, ((0, 0), (fade, fade))), axis=1)
        means = (summed[:, fade:] - summed[:, :-fade]) / fade
        samples = gate.shape[1]
        gate = np.minimum(means[:, :samples], means[:, fade - 1 :][:, :samples])
    return gate[:, more * stride : more * stride + length]
