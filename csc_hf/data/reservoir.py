# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Hold a bounded amount of audio from endless streams: a FIFO buffer of utterances that can be saved and resumed.

Rows that cannot be used are skipped here, in the same way for every reader of data (`usable_utterance`).
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..audio import SAMPLING_RATE, SILENCE_POWER, NotFiniteError, power
from .mixing import Clip
from .reader import MARK_EVERY, Reader
from .utterances import REPEATED_ID_REMEDY, Row, Utterance, UtteranceStream

logger = logging.getLogger(__name__)

NUM_ROWS_CHECKED = 100
"""Rows over which the share of skipped rows is measured."""

REASONS = ("not decodable", "silent", "too short", "not finite", "no speaker", "the id of another row")
"""Why rows are skipped."""


@dataclass(frozen=True)
class ReservoirConfig:
    """How much audio is held, and which utterances can be used.

    Attributes:
        seconds: audio to hold, at most one utterance more; 64 kB of memory a second.
        min_seconds: shorter utterances are skipped.
        max_seconds: of a longer utterance, a random part of this length is held, another one in every epoch.
        max_skipped: largest share of the rows that may be skipped, measured over NUM_ROWS_CHECKED rows at a time.
    """

    seconds: float = 3600.0
    min_seconds: float = 0.5
    max_seconds: float = 30.0
    max_skipped: float = 0.5

    def __post_init__(self):
        if not 0 < self.min_seconds <= self.max_seconds <= self.seconds:
            raise ValueError(
                f"min_seconds={self.min_seconds}, max_seconds={self.max_seconds}, seconds={self.seconds}: must be "
                "positive and in ascending order"
            )
        if not 0 <= self.max_skipped <= 1:
            raise ValueError(f"max_skipped={self.max_skipped}: must be between 0 and 1")


ANY_LENGTH = ReservoirConfig(min_seconds=1 / SAMPLING_RATE)
"""For evaluation and classification: no recording is too short."""


class UnusableRow(ValueError):
    """Why a row is skipped: one of REASONS, and details."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason


def usable_utterance(
    row: Row, config: ReservoirConfig, *, needs_speaker: bool = False, part_seed: Sequence[int] | None = None
) -> Utterance:
    """Decode a row and check it, a pure function of its arguments.

    Args:
        config: its `min_seconds` and `max_seconds` are used.
        needs_speaker: refuse rows without a speaker.
        part_seed: seed of the random part of at most `max_seconds` that is returned. None: all of the utterance.

    Raises:
        UnusableRow: the row has no speaker; its audio cannot be decoded, is too short, silent, or not finite.
    """
    if needs_speaker and row.speaker is None:
        raise UnusableRow("no speaker")
    try:
        utterance = row.decode()
    except NotFiniteError as error:
        raise UnusableRow("not finite") from error
    except ValueError as error:
        raise UnusableRow("not decodable", str(error)) from error
    waveform, start = utterance.waveform, 0
    if len(waveform) < round(config.min_seconds * SAMPLING_RATE):
        raise UnusableRow("too short", f"{len(waveform) / SAMPLING_RATE:.2f} s")
    max_samples = round(config.max_seconds * SAMPLING_RATE)
    if part_seed is not None and len(waveform) > max_samples:
        start = int(np.random.default_rng(part_seed).integers(len(waveform) - max_samples + 1))
        waveform = waveform[start : start + max_samples].copy()  # a view would keep the whole in memory
    if power(waveform) < SILENCE_POWER:
        raise UnusableRow("silent")
    return replace(utterance, waveform=waveform, start=start)


class SkippedRows:
    """Counts the rows that are read and those that are skipped, names the first of each kind, and stops a run that
    skips too many.

    Args:
        max_skipped: largest share of the rows that may be skipped, measured over NUM_ROWS_CHECKED rows at a time.
    """

    def __init__(self, max_skipped: float):
        self.max_skipped = max_skipped
        self.num_rows = 0  # read, skipped ones included
        self.counts: Counter[str] = Counter()  # rows skipped, by reason
        self._checked = (0, 0)  # rows read and rows skipped at the last check
        self._examples: list[str] = []  # of rows skipped since then

    def skip(self, row: Row, error: UnusableRow) -> None:
        """Count a row that cannot be used."""
        example = f"{row.id!r}: {error}"
        if not self.counts[error.reason]:
            logger.warning("skipping rows that cannot be used, the first of this kind is %s", example)
        self.counts[error.reason] += 1
        if len(self._examples) < 5:
            self._examples.append(example)

    def end_row(self) -> None:
        """Call after every row, skipped or not. Raises ValueError if too many are skipped."""
        if self.num_rows % NUM_ROWS_CHECKED == 0:
            self._check()

    def end_epoch(self) -> None:
        """Call at the end of the data. Raises ValueError if too many of the rows of a small dataset are skipped."""
        if self.num_rows < NUM_ROWS_CHECKED:
            self._check()

    def _check(self) -> None:
        num_rows, num_skipped = self.num_rows - self._checked[0], self.counts.total() - self._checked[1]
        if num_skipped > self.max_skipped * num_rows:
            remedy = "Check the data, the columns and min_seconds, or allow a larger share with max_skipped"
            if self.counts.most_common(1)[0][0] == "the id of another row":
                remedy = f"Ids must be unique. {REPEATED_ID_REMEDY}"
            raise ValueError(
                f"{num_skipped} of {num_rows} rows, up to row {self.num_rows}, cannot be used (in all "
                f"{dict(self.counts)}), such as {'; '.join(self._examples)}. {remedy}"
            )
        self._checked, self._examples = (self.num_rows, self.counts.total()), []

    def state_dict(self) -> dict[str, Any]:
        return {
            "num_rows": self.num_rows,
            "skipped": dict(self.counts),
            "checked": list(self._checked),
            "examples": list(self._examples),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_rows, self.counts = state["num_rows"], Counter(state["skipped"])
        self._checked, self._examples = tuple(state["checked"]), list(state["examples"])

    def take_over(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Add what others have counted."""
        for state in states:
            self.num_rows += state["num_rows"]
            self.counts.update(state["skipped"])
        self._checked = (self.num_rows, self.counts.total())


def skip_unusable(
    rows: Iterable[Row],
    config: ReservoirConfig | None = None,
    *,
    needs_speaker: bool = False,
    skipped: SkippedRows | None = None,
) -> Iterator[Utterance]:
    """Decode rows once, as a whole, and leave out those that cannot be used.

    Args:
        config: its `min_seconds` and `max_skipped` are used.
        needs_speaker: whether rows without a speaker are left out.
        skipped: counts the rows; give one to read `counts` from it.

    Raises:
        ValueError: a larger share than `max_skipped` cannot be used.
    """
    config = config or ReservoirConfig()
    skipped = skipped or SkippedRows(config.max_skipped)
    for row in rows:
        skipped.num_rows += 1
        try:
            yield usable_utterance(row, config, needs_speaker=needs_speaker)
        except UnusableRow as error:
            skipped.skip(row, error)
        skipped.end_row()
    skipped.end_epoch()


Place = tuple[int, int, int]
"""Where a row was read: number of the reader, of its pass over the data, and of the row in that pass, from 1."""


@dataclass(frozen=True, eq=False)
class Held:
    """An utterance in the reservoir, and where it was read."""

    utterance: Utterance
    place: Place


class Reservoir:
    """A FIFO buffer of utterances.

    Rows are read from several datasets, each chosen with its probability. A dataset that ends begins its next epoch.
    Rows that cannot be used are skipped, see `usable_utterance`. So is a row with the id of another one that is held
    and was read in the same epoch. A row that is held already is passed over without decoding, unless only a part of
    its utterance is held: then another part takes its place.

    Args:
        streams: the datasets; several need different `corpus` names.
        config: how much is held, and what can be used.
        probabilities: share of the rows read from each dataset; equal by default. For a dataset that is held as a
            whole, more rows bring nothing new.
        seed: draws the dataset of each row, and the part that is held of a long utterance.
        needs_speaker: skip rows without a speaker.
        share, num_shares: which share of the datasets to read.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        streams: Sequence[UtteranceStream],
        config: ReservoirConfig,
        *,
        probabilities: Sequence[float] | None = None,
        seed: int = 0,
        needs_speaker: bool = False,
        share: int = 0,
        num_shares: int = 1,
    ):
        if len({stream.corpus for stream in streams}) < len(streams):
            names = [stream.corpus for stream in streams]
            raise ValueError(f"the datasets have the corpus names {names}: give each its own")
        shares = np.full(len(streams), 1 / len(streams)) if probabilities is None else np.array(probabilities)
        if shares.shape != (len(streams),) or not (shares > 0).all():
            raise ValueError(f"probabilities={probabilities}: give {len(streams)} positive numbers, one per dataset")
        self.config = config
        self._readers = [Reader(stream, share, num_shares) for stream in streams]
        self._probabilities = shares / shares.sum()
        self._seed, self._share, self._num_shares = seed, share, num_shares
        self._needs_speaker = needs_speaker
        self._capacity = round(config.seconds * SAMPLING_RATE)
        self._max_samples = round(config.max_seconds * SAMPLING_RATE)

        self.held: dict[str, Held] = {}  # by id, the oldest first
        self._clips: list[Clip] | None = None  # of what is held
        self.num_held_samples = 0
        self.skipped = SkippedRows(config.max_skipped)

    @property
    def num_streams(self) -> int:
        """Number of datasets."""
        return len(self._readers)

    @property
    def epoch(self) -> int:
        """Epoch of the dataset that is furthest behind."""
        return min(reader.epoch for reader in self._readers)

    def clips(self) -> list[Clip]:
        """What is held, the oldest first: the same list until that changes."""
        if self._clips is None:
            utterances = [held.utterance for held in self.held.values()]
            self._clips = [Clip(u.id, len(u.waveform), u.speaker, u.source, u.start) for u in utterances]
        return self._clips

    def fill(self, progress: bool = False) -> None:
        """Read until the reservoir is full or every dataset has been read once. `progress` shows a bar if it takes
        long."""
        seconds = self._capacity // SAMPLING_RATE
        with tqdm(total=seconds, desc="reading audio", unit="s", delay=3, leave=False, disable=not progress) as bar:
            while self.num_held_samples < self._capacity:
                unread = np.array([not reader.has_read_all for reader in self._readers])
                if not unread.any():
                    return
                self._read_row(self._probabilities * unread)
                bar.update(self.num_held_samples // SAMPLING_RATE - bar.n)

    def advance(self, num_rows: int) -> None:
        """Read `num_rows` more rows."""
        for _ in range(num_rows):
            while not self._read_row(self._probabilities):
                pass

    def _read_row(self, probabilities: np.ndarray) -> bool:
        """Read one row and hold its audio, unless it is held already or cannot be used. False: an epoch has ended."""
        number = 0
        if len(self._readers) > 1:
            rng = np.random.default_rng([self._seed, self._share, self.skipped.num_rows])
            number = int(rng.choice(len(self._readers), p=probabilities / probabilities.sum()))
        reader = self._readers[number]
        try:
            row = next(reader)
        except StopIteration:
            self.skipped.end_epoch()
            return False
        self.skipped.num_rows += 1
        place = (number, reader.number, reader.row)
        try:
            held = self.held.get(row.id)
            if held is not None and held.place[:2] == place[:2]:
                raise UnusableRow("the id of another row", f"rows {held.place[2]} and {place[2]} both have it")
            if held is None or len(held.utterance.waveform) == self._max_samples:
                self._hold(self._decode(row, place))
        except UnusableRow as error:
            self.skipped.skip(row, error)
        self.skipped.end_row()
        if self.skipped.num_rows % MARK_EVERY == 0:
            self._forget_marks()
        return True

    def _decode(self, row: Row, place: Place) -> Held:
        seed = [self._seed, self._share, *place]
        utterance = usable_utterance(row, self.config, needs_speaker=self._needs_speaker, part_seed=seed)
        return Held(utterance, place)

    def _forget_marks(self) -> None:
        for number, reader in enumerate(self._readers):
            reader.forget_marks(held.place[1:] for held in self.held.values() if held.place[0] == number)

    def _hold(self, held: Held) -> None:
        self._clips = None
        former = self.held.pop(held.utterance.id, None)  # another part of it
        self.num_held_samples += len(held.utterance.waveform) - (len(former.utterance.waveform) if former else 0)
        self.held[held.utterance.id] = held
        while True:  # drop the oldest as long as the others fill the reservoir
            oldest = next(iter(self.held))
            length = len(self.held[oldest].utterance.waveform)
            if self.num_held_samples - length < self._capacity:
                return
            del self.held[oldest]
            self.num_held_samples -= length

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, no audio. `load_state_dict` reads the rows again."""
        self._forget_marks()
        return {
            "readers": [reader.state_dict() for reader in self._readers],
            **self.skipped.state_dict(),
            "held": [[*held.place, name] for name, held in self.held.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken, by a reservoir with the same settings and data.

        Only what is held is decoded again, and little more is read.

        Raises:
            ValueError: the data has changed.
        """
        held = {}
        for number, (reader, reader_state) in enumerate(zip(self._readers, state["readers"], strict=True)):
            entries = sorted(entry for entry in state["held"] if entry[0] == number)
            rows = reader.load_state_dict(reader_state, [entry[1:3] for entry in entries])
            for row, (*place, name) in zip(rows, entries, strict=True):
                if row.id != name:
                    raise ValueError(
                        f"row {place[2]} is {row.id!r}, and was {name!r} when the state was saved: the data has "
                        "changed, start anew"
                    )
                held[name] = self._decode(row, (place[0], place[1], place[2]))
        self.held, self._clips = {name: held[name] for *_, name in state["held"]}, None
        self.num_held_samples = sum(len(held.utterance.waveform) for held in self.held.values())
        self.skipped.load_state_dict(state)

    def take_over(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Continue for the reservoirs of another number of shares, whose `states` these are. Each row that they had
        not read in their epoch is read once by one of the present ones. What they held is dropped."""
        for number, reader in enumerate(self._readers):
            reader.take_over([state["readers"][number] for state in states])
        self.skipped.take_over(states[self._share :: self._num_shares])
