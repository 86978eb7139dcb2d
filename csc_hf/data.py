# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""From single-speaker audio, wherever it lies, to an endless, resumable stream of mixture groups.

stream_utterances(...)  ->  UtteranceStream: rows of the data, decoded one by one
MixtureStream(...)      ->  holds some of them, draws groups (`mixing.draw_group`), mixes and collates them

>>> utterances = stream_utterances("path/to/parquet_folder")
>>> stream = MixtureStream(utterances, MixingConfig(num_identities=12, seconds=2.0), seed=0)
>>> batch = next(iter(stream))  # input_values (24, 32000), source_values (24, 2, 32000), ...
"""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Audio, IterableDataset, load_dataset
from datasets.distributed import split_dataset_by_node

from .audio import SAMPLING_RATE, decode_audio
from .mixing import SILENCE_POWER, Clip, MixingConfig, MixtureRecipe, draw_group, mix

logger = logging.getLogger(__name__)

NUM_ROWS_CHECKED = 100
"""If more than half of so many first rows cannot be used, something is wrong with the data or the settings."""


@dataclass(frozen=True, eq=False)
class Utterance:
    """Audio of one speaker: float32 `waveform` (T,) at 16 kHz; who speaks and where it comes from, if known."""

    id: str
    waveform: np.ndarray
    speaker: str | None = None
    source: str | None = None


@dataclass(frozen=True, eq=False)
class Row:
    """A row of the data whose `audio` is not decoded yet (what `decode_audio` takes)."""

    id: str
    audio: Any
    speaker: str | None = None
    source: str | None = None

    def decode(self) -> Utterance:
        """Decode the audio; ValueError if that cannot be done."""
        return Utterance(self.id, decode_audio(self.audio), self.speaker, self.source)


def stream_utterances(
    name_or_path: str | os.PathLike,
    split: str = "train",
    audio_column: str = "audio",
    speaker_column: str | None = "speaker_id",
    source_column: str | None = "source",
    id_column: str | None = "id",
    **load_options,
) -> "UtteranceStream":
    """Open a data set of single-speaker audio for streaming; nothing is downloaded or decoded as a whole.

    Args:
        name_or_path: a Parquet file or a glob pattern of them; a folder of Parquet files or of audio files
            (audiofolder); or the name of a data set on the Hub. Rows should be in random order.
        split: split to read. A single file or a glob pattern is one split, whatever its name.
        audio_column: column with the audio, in any form that `decode_audio` takes.
        speaker_column: column with the speaker, None if there is none.
        source_column: column with the corpus or channel that the audio comes from, None if there is none.
        id_column: column with an id that no other row has. None: the id is a hash of the audio's bytes, or its path.
        load_options: passed on to `datasets.load_dataset` (`name`, `data_files`, `revision`, `token`, ...).

    Raises:
        ValueError: a column is missing; and what `datasets.load_dataset` raises if there is no such data.
    """
    path = os.fspath(name_or_path)
    if path.endswith(".parquet"):
        dataset = load_dataset("parquet", data_files={split: path}, split=split, streaming=True, **load_options)
    else:
        dataset = load_dataset(path, split=split, streaming=True, **load_options)
    return UtteranceStream(dataset, audio_column, speaker_column, source_column, id_column)


class _UndecodedAudio(Audio):
    """Passes on what the data holds. `Audio` itself, even undecoded, asks for torchcodec where rows are not Arrow
    tables (audiofolder, WebDataset)."""

    def encode_example(self, value: Any) -> Any:
        return value


class UtteranceStream:
    """The utterances of a `datasets.IterableDataset`. Iterating decodes them, in the order of epoch 0.

    See `stream_utterances` for the columns.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        audio_column: str = "audio",
        speaker_column: str | None = "speaker_id",
        source_column: str | None = "source",
        id_column: str | None = "id",
    ):
        columns = dataset.column_names or list(next(iter(dataset)))
        for argument, column in (
            ("audio_column", audio_column),
            ("speaker_column", speaker_column),
            ("source_column", source_column),
            ("id_column", id_column),
        ):
            if column is not None and column not in columns:
                remedy = f"set {argument} to one of them" + ("" if argument == "audio_column" else ", or to None")
                raise ValueError(f"{argument}={column!r}: the data has no such column, but {columns}; {remedy}")
        if dataset.features is not None and isinstance(dataset.features[audio_column], Audio):
            dataset = dataset.cast_column(audio_column, _UndecodedAudio(decode=False))
        self.dataset = dataset
        self.audio_column = audio_column
        self.speaker_column = speaker_column
        self.source_column = source_column
        self.id_column = id_column

    def __iter__(self) -> Iterator[Utterance]:
        for row in self.rows():
            yield row.decode()

    def rows(self, epoch: int = 0) -> Iterator[Row]:
        """The rows of an epoch, not decoded. The order is a function of the epoch: later epochs shuffle the shards."""
        self.dataset.set_epoch(epoch)
        for row in self.dataset:
            audio = row[self.audio_column]
            yield Row(
                id=_content_id(audio) if self.id_column is None else str(row[self.id_column]),
                audio=audio,
                speaker=_label(row, self.speaker_column),
                source=_label(row, self.source_column),
            )

    def split(self, rank: int, world_size: int) -> "UtteranceStream":
        """The share of one process of several: whole shards if they divide evenly, else every n-th row."""
        dataset = split_dataset_by_node(self.dataset, rank=rank, world_size=world_size)
        return UtteranceStream(dataset, self.audio_column, self.speaker_column, self.source_column, self.id_column)


def collate_group(
    recipes: Sequence[MixtureRecipe], waveforms: Mapping[str, np.ndarray], first_speaker_id: int = 0
) -> dict[str, torch.Tensor]:
    """Mix the recipes of a group (see `mixing.mix`) into a batch (see `MixtureStream`).

    Identity n of the group gets the speaker id `first_speaker_id` + n.
    """
    mixtures, sources, _ = zip(*(mix(recipe, waveforms) for recipe in recipes), strict=True)
    input_values = torch.from_numpy(np.stack(mixtures))
    source_values = torch.from_numpy(np.stack(sources))
    speaker_ids = torch.full(source_values.shape[:2], -100)
    for row, recipe in enumerate(recipes):
        for slot, source in enumerate(recipe.sources):
            speaker_ids[row, slot] = first_speaker_id + source.identity
    return {
        "input_values": input_values,
        "attention_mask": torch.ones(input_values.shape, dtype=torch.long),
        "source_values": source_values,
        "speaker_ids": speaker_ids,
    }


@dataclass(frozen=True, eq=False)
class _Held:
    """An utterance in the reservoir, and where it came from."""

    utterance: Utterance
    epoch: int
    row: int


class MixtureStream(torch.utils.data.IterableDataset):
    """An endless stream of mixture groups, one batch each, that can be saved and resumed exactly.

    A reservoir holds `reservoir_seconds` of utterances (at most one utterance more); the oldest leave first. It is
    filled before the first group, until it is full or the data ends. Before every later group, `rows_per_group` rows
    are read; a row that is held already is passed over without decoding. When the data ends, the next epoch follows.
    Each group is then drawn from all that is held (`mixing.draw_group`).

    A row is skipped if its audio cannot be decoded, holds NaN or infinities, is silent, or is shorter than
    `min_seconds`, or if it has no speaker and `supervision="speaker"`. `skipped` counts them by reason.

    A batch, with B = N * U mixtures (row n * U + u has identity n as its target), C slots and T samples:
        input_values (B, T): float32 mixtures;
        attention_mask (B, T): ones, long;
        source_values (B, C, T): float32 sources, the target in slot 0, zeros in empty slots;
        speaker_ids (B, C): long, identity of each slot, different in every group and process; -100 in empty slots.

    Iterating again goes on where the stream stands. Use it with `DataLoader(stream, batch_size=None)` and no workers.

    Args:
        utterances: where the audio comes from.
        config: how mixtures are drawn.
        seed: every draw is a function of (seed, epoch, index of the group).
        reservoir_seconds: audio to hold, in seconds; 64 kB of memory each.
        rows_per_group: rows to read for each group.
        min_seconds: shorter utterances are skipped.
        max_seconds: of a longer utterance, so much from a random place is held.
        rank, world_size: this process and the number of processes; each reads its own share of the data.

    Raises:
        ValueError: an argument is out of range; and while iterating, if the data is empty or holds too few identities,
            or if more than half of the first rows cannot be used.
    """

    def __init__(
        self,
        utterances: UtteranceStream,
        config: MixingConfig,
        seed: int = 0,
        reservoir_seconds: float = 1800.0,
        rows_per_group: int = 12,
        min_seconds: float = 0.5,
        max_seconds: float = 30.0,
        rank: int = 0,
        world_size: int = 1,
    ):
        if config.supervision == "speaker" and utterances.speaker_column is None:
            raise ValueError('supervision="speaker" needs speaker_column: name the column, or use "utterance"')
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank}: must be between 0 and world_size={world_size}, exclusively")
        if rows_per_group < 1:
            raise ValueError(f"rows_per_group={rows_per_group}: must be at least 1, or the stream would never move on")
        if not 0 < min_seconds <= max_seconds <= reservoir_seconds:
            raise ValueError(
                f"min_seconds={min_seconds}, max_seconds={max_seconds}, reservoir_seconds={reservoir_seconds}: must "
                "be positive and in this order"
            )
        self.config = config
        self.seed = seed
        self.rows_per_group = rows_per_group
        self.rank, self.world_size = rank, world_size
        self.skipped: Counter[str] = Counter()

        self._utterances = utterances if world_size == 1 else utterances.split(rank, world_size)
        self._min_samples = round(min_seconds * SAMPLING_RATE)
        self._max_samples = round(max_seconds * SAMPLING_RATE)
        self._capacity = round(reservoir_seconds * SAMPLING_RATE)

        self._held: dict[str, _Held] = {}  # the oldest first
        self._num_held_samples = 0
        self._epoch = 0
        self._row = 0  # rows read of this epoch
        self._rows: Iterator[Row] | None = None  # what is left of this epoch; None: open it first
        self._num_groups = 0  # drawn by this process
        self._examples: list[str] = []  # of skipped rows

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        if torch.utils.data.get_worker_info() is not None:
            raise RuntimeError("MixtureStream runs in the main process, workers would repeat it: set num_workers=0")
        while True:
            yield self._next_group()

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: plain numbers and strings, no audio. `load_state_dict` reads the rows again."""
        return {
            "rank": self.rank,
            "world_size": self.world_size,
            "epoch": self._epoch,
            "row": self._row,
            "num_groups": self._num_groups,
            "skipped": dict(self.skipped),
            "held": [[held.epoch, held.row, name] for name, held in self._held.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly as the stream that `state` was taken of would have.

        The stream must have been made with the same data and settings. Rows are read again up to where they stood, but
        only those that were held are decoded.

        Raises:
            ValueError: the state is of another process or number of processes, or the data has changed.
        """
        for name in ("rank", "world_size"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)}: the state was saved with {state[name]}, resume with that"
                )
        self._epoch, self._row = state["epoch"], state["row"]
        self._num_groups = state["num_groups"]
        self.skipped = Counter(state["skipped"])

        wanted = {(epoch, row): name for epoch, row, name in state["held"]}
        found = {}
        for epoch in sorted({self._epoch, *(epoch for epoch, _ in wanted)}):
            last = self._row if epoch == self._epoch else max(row for e, row in wanted if e == epoch)
            self._rows = self._utterances.rows(epoch)  # the current epoch is the last one, and stays open
            for number in range(1, last + 1):
                row = next(self._rows, None)
                name = wanted.get((epoch, number))
                if row is None or name not in (None, row.id):
                    raise ValueError(
                        f"row {number} of epoch {epoch} has changed since the state was saved: start anew"
                    )
                if name is not None:
                    found[name] = _Held(self._decode(row, epoch, number), epoch, number)
        self._held = {name: found[name] for _, _, name in state["held"]}
        self._num_held_samples = sum(len(held.utterance.waveform) for held in self._held.values())

    def _next_group(self) -> dict[str, torch.Tensor]:
        if self._num_groups == 0:
            self._fill()
        else:
            for _ in range(self.rows_per_group):
                while not self._read_row():
                    pass
        index = self._num_groups * self.world_size + self.rank
        clips = [
            Clip(name, len(held.utterance.waveform), held.utterance.speaker, held.utterance.source)
            for name, held in self._held.items()
        ]
        recipes = draw_group(clips, self.config, self.seed, self._epoch, index)
        self._num_groups += 1
        waveforms = {name: held.utterance.waveform for name, held in self._held.items()}
        return collate_group(recipes, waveforms, first_speaker_id=index * self.config.num_identities)

    def _fill(self) -> None:
        """Read rows until the reservoir is full or the first epoch ends."""
        while self._num_held_samples < self._capacity and self._read_row():
            pass

    def _read_row(self) -> bool:
        """Read one row, and hold its audio unless it is held already or cannot be used. False: the epoch has ended."""
        if self._rows is None:
            self._rows = self._utterances.rows(self._epoch)
        row = next(self._rows, None)
        if row is None:
            if self._row == 0:
                raise ValueError(
                    f"no rows in epoch {self._epoch} of process {self.rank}: give every process some data"
                )
            if self._epoch == 0 and self._row < NUM_ROWS_CHECKED:
                self._check_skipped()
            self._epoch, self._row, self._rows = self._epoch + 1, 0, None
            return False
        self._row += 1
        if row.id not in self._held:
            try:
                self._hold(_Held(self._decode(row, self._epoch, self._row), self._epoch, self._row))
            except _UnusableRow as error:
                self._skip(row, error)
        if self._epoch == 0 and self._row == NUM_ROWS_CHECKED:
            self._check_skipped()
        return True

    def _hold(self, held: _Held) -> None:
        self._held[held.utterance.id] = held
        self._num_held_samples += len(held.utterance.waveform)
        while True:  # the oldest leaves as long as the others fill the reservoir
            oldest = next(iter(self._held))
            length = len(self._held[oldest].utterance.waveform)
            if self._num_held_samples - length < self._capacity:
                return
            del self._held[oldest]
            self._num_held_samples -= length

    def _decode(self, row: Row, epoch: int, number: int) -> Utterance:
        """The utterance of a row, a pure function of its arguments; _UnusableRow if it is no good."""
        if self.config.supervision == "speaker" and row.speaker is None:
            raise _UnusableRow("no speaker")
        try:
            utterance = row.decode()
        except ValueError as error:
            raise _UnusableRow("not decodable", str(error)) from error
        waveform = utterance.waveform
        if len(waveform) < self._min_samples:
            raise _UnusableRow("too short", f"{len(waveform) / SAMPLING_RATE:.2f} s")
        if len(waveform) > self._max_samples:
            rng = np.random.default_rng([self.seed, epoch, number])
            start = rng.integers(len(waveform) - self._max_samples + 1)
            waveform = waveform[start : start + self._max_samples].copy()  # a view would keep the whole in memory
        if not np.isfinite(waveform).all():
            raise _UnusableRow("not finite")
        if np.mean(np.square(waveform)) < SILENCE_POWER:
            raise _UnusableRow("silent")
        return replace(utterance, waveform=waveform)

    def _skip(self, row: Row, error: "_UnusableRow") -> None:
        example = f"{row.id!r}: {error}"
        if not self.skipped[error.reason]:
            logger.warning("skipping rows that cannot be used, the first of this kind is %s", example)
        self.skipped[error.reason] += 1
        if len(self._examples) < 5:
            self._examples.append(example)

    def _check_skipped(self) -> None:
        if 2 * self.skipped.total() > self._row:
            raise ValueError(
                f"{self.skipped.total()} of the first {self._row} rows cannot be used ({dict(self.skipped)}), such as "
                f"{'; '.join(self._examples)}: check the data, the columns, and min_seconds"
            )


class _UnusableRow(ValueError):
    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason


def _label(row: Mapping[str, Any], column: str | None) -> str | None:
    return None if column is None or row[column] is None else str(row[column])


def _content_id(audio: Any) -> str:
    """An id for audio that has none: its path, or a hash of its bytes or samples."""
    if isinstance(audio, Mapping):
        audio = next((audio[key] for key in ("bytes", "path", "array") if audio.get(key) is not None), b"")
    if isinstance(audio, str):
        return audio
    content = audio if isinstance(audio, bytes) else np.asarray(audio).tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()
