# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""A bounded amount of audio of endless streams, to draw from: the oldest leaves, where it stands can be saved."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..audio import SAMPLING_RATE
from .mixing import SILENCE_POWER, Clip, power
from .utterances import Row, Rows, Utterance, UtteranceStream

logger = logging.getLogger(__name__)

NUM_ROWS_CHECKED = 100
"""Rows over which the share of those that cannot be used is measured."""

MARK_EVERY = 64
"""Rows between two places that a reader can go back to."""

REASONS = ("not decodable", "silent", "too short", "not finite", "no speaker", "the id of another row")
"""Why rows are skipped."""


@dataclass(frozen=True, eq=False)
class Held:
    """An utterance in the reservoir, the sample of its recording that it begins at, and where it was read."""

    utterance: Utterance
    start: int
    place: "Place"


Place = tuple[int, int, int]
"""Number of the reader, of its pass over the data, and of the row in that pass, from 1."""


class Reader:
    """The rows of one share of a data set, epoch after epoch.

    A *pass* is what is read in one go: an epoch of this share. Where a run is resumed with another number of shares,
    what was left of the epoch in the former shares comes first: each of these `leftovers` is a pass as well.
    """

    def __init__(self, utterances: UtteranceStream, share: int, num_shares: int):
        self.utterances = utterances
        self._share, self._num_shares = share, num_shares
        self._leftovers: list[dict] = []  # arguments of `UtteranceStream.rows` for the first passes
        self._first_epoch = 0  # of the passes behind those
        self.number, self.row = 0, 0  # the pass, and rows read of it
        self._rows: Rows | None = None  # of the pass; None: open it first
        self._marks: dict[tuple[int, int], Any] = {}  # (pass, rows read) -> state of the rows there

    def _arguments(self, number: int) -> dict:
        """What to open pass `number` with."""
        if number < len(self._leftovers):
            return self._leftovers[number]
        epoch = self._first_epoch + number - len(self._leftovers)
        return {"epoch": epoch, "share": self._share, "num_shares": self._num_shares, "state": None}

    @property
    def epoch(self) -> int:
        return self._arguments(self.number)["epoch"]

    @property
    def has_read_all(self) -> bool:
        """Whether a whole epoch of this share has been read."""
        return self.number > len(self._leftovers)

    def __next__(self) -> Row:
        """The next row of this pass; StopIteration at its end, behind which the next pass begins."""
        if self._rows is None:
            self._rows = self.utterances.rows(**self._arguments(self.number))
        try:
            row = next(self._rows)
        except StopIteration:
            if self.row == 0 and self.number >= len(self._leftovers):
                raise ValueError(
                    f"no rows in share {self._share} of {self._num_shares} of the data"
                    f"{f' {self.utterances.corpus!r}' if self.utterances.corpus else ''}: give every process and "
                    "worker some, or use fewer of them"
                ) from None
            self.number, self.row, self._rows = self.number + 1, 0, None
            raise
        self.row += 1
        if self.row % MARK_EVERY == 0:
            self._marks[self.number, self.row] = self._rows.state_dict()
        return row

    def read_again(self, number: int, row: int) -> Row:
        """Row `row`, from 1, of pass `number`; the reader then stands behind it."""
        mark = self._mark_before(number, row)
        if self._rows is None or self.number != number or not mark[1] <= self.row < row:
            arguments = self._arguments(number)
            self._rows = self.utterances.rows(**(arguments | {"state": self._marks[mark]} if mark[1] else arguments))
            self.number, self.row = mark
        try:
            while self.row < row - 1:
                next(self)
            return next(self)
        except StopIteration:
            raise ValueError(
                f"epoch {self._arguments(number)['epoch']} has fewer than {row} rows: the data has changed since the "
                "state was saved, start anew"
            ) from None

    def _mark_before(self, number: int, row: int) -> tuple[int, int]:
        """The last mark before row `row` of pass `number`; the beginning needs none."""
        return number, (row - 1) // MARK_EVERY * MARK_EVERY

    def forget_marks(self, rows: Iterable[tuple[int, int]]) -> None:
        """Keep only the marks that are needed to read `rows`, (pass, row) each, and those to come again."""
        needed = {self._mark_before(*row) for row in [*rows, (self.number, self.row + 1)]}
        self._marks = {mark: state for mark, state in self._marks.items() if mark in needed}

    def state_dict(self) -> dict[str, Any]:
        current = self._arguments(self.number)
        if self._rows is not None:
            current = current | {"state": self._rows.state_dict()}
        return {
            "share": self._share,
            "num_shares": self._num_shares,
            "leftovers": self._leftovers,
            "first_epoch": self._first_epoch,
            "place": [self.number, self.row],
            "marks": [[*mark, state] for mark, state in self._marks.items()],
            # What is left of this epoch, and the epoch behind that.
            "unread": [current, *self._leftovers[self.number + 1 :]],
            "next_epoch": self._arguments(max(self.number + 1, len(self._leftovers)))["epoch"],
        }

    def load_state_dict(self, state: Mapping[str, Any], held: Iterable[tuple[int, int]]) -> list[Row]:
        """Go where `state` was taken; returns the rows `held`, (pass, row) each and in this order."""
        self._leftovers, self._first_epoch = state["leftovers"], state["first_epoch"]
        self._marks = {(number, row): mark for number, row, mark in state["marks"]}
        rows = [self.read_again(*place) for place in held]
        self.number, self.row = state["place"]
        self._rows = self.utterances.rows(**state["unread"][0])
        return rows

    def take_over(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on for former shares, whose `states` these are: what each had left of its epoch comes first, shared out
        among the present ones. Nothing is read twice in an epoch, and nothing left out."""
        self._first_epoch = max(state["next_epoch"] for state in states)
        self._leftovers = []
        for state in states[self._share :: self._num_shares]:
            self._leftovers += state["unread"]
            former = {"share": state["share"], "num_shares": state["num_shares"], "state": None}
            missed = range(state["next_epoch"], self._first_epoch)
            self._leftovers += [former | {"epoch": epoch} for epoch in missed]


class Reservoir:
    """Holds `seconds` of utterances (at most one more); the oldest leave first.

    Rows are read from several data sets, each chosen with its probability; a data set that ends begins its next epoch.
    A row that is held already is passed over without decoding, unless it is held in part. One is skipped if its audio
    cannot be decoded, holds NaN or infinities, is silent, or is shorter than `min_seconds`, if it has no speaker and
    `needs_speaker`, or if a row of the same epoch that is held has its id.

    Args:
        streams: the data sets; several need different `corpus` names.
        probabilities: share of the rows read from each. Of one that is held as a whole, more rows bring nothing new.
        seconds: audio to hold; 64 kB of memory each.
        seed: draws the data set of each row, and the part that is held of a long utterance.
        min_seconds: shorter utterances are skipped.
        max_seconds: of a longer utterance, so much from a random place is held, another one in every epoch.
        needs_speaker: whether rows without a speaker are skipped.
        max_skipped: share of the rows that may be skipped, measured over NUM_ROWS_CHECKED rows at a time.
        share, num_shares: which share of the data sets to read.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        streams: Sequence[UtteranceStream],
        probabilities: Sequence[float] | None,
        seconds: float,
        seed: int,
        min_seconds: float,
        max_seconds: float,
        needs_speaker: bool = False,
        max_skipped: float = 0.5,
        share: int = 0,
        num_shares: int = 1,
    ):
        if len({stream.corpus for stream in streams}) < len(streams):
            names = [stream.corpus for stream in streams]
            raise ValueError(f"the data sets have the corpus names {names}: give each one of its own")
        probabilities = np.full(len(streams), 1 / len(streams)) if probabilities is None else np.array(probabilities)
        if probabilities.shape != (len(streams),) or not (probabilities > 0).all():
            raise ValueError(f"probabilities={probabilities}: must be {len(streams)} positive numbers, one a data set")
        if not 0 < min_seconds <= max_seconds <= seconds:
            raise ValueError(
                f"min_seconds={min_seconds}, max_seconds={max_seconds}, and {seconds} seconds to hold in each worker: "
                "must be positive and in this order"
            )
        if not 0 <= max_skipped <= 1:
            raise ValueError(f"max_skipped={max_skipped}: must be between 0 and 1")
        self._readers = [Reader(stream, share, num_shares) for stream in streams]
        self._probabilities = probabilities / probabilities.sum()
        self._seed, self._share, self._num_shares = seed, share, num_shares
        self._min_samples, self._max_samples = round(min_seconds * SAMPLING_RATE), round(max_seconds * SAMPLING_RATE)
        self._capacity = round(seconds * SAMPLING_RATE)
        self._needs_speaker, self._max_skipped = needs_speaker, max_skipped

        self.held: dict[str, Held] = {}  # the oldest first
        self.num_held_samples = 0
        self.num_rows = 0  # read, over all epochs
        self.skipped: Counter[str] = Counter()  # rows, by reason
        self._checked = (0, 0)  # rows read and rows skipped at the last check
        self._examples: list[str] = []  # of rows skipped since

    @property
    def num_streams(self) -> int:
        """Data sets that are read."""
        return len(self._readers)

    @property
    def epoch(self) -> int:
        """Of the data set that is furthest behind."""
        return min(reader.epoch for reader in self._readers)

    def clips(self) -> list[Clip]:
        """What is held, the oldest first."""
        return [
            Clip(name, len(held.utterance.waveform), held.utterance.speaker, held.utterance.source, held.start)
            for name, held in self.held.items()
        ]

    def fill(self, progress: bool = False) -> None:
        """Read until the reservoir is full, or all data sets have been read once; with a progress bar if that takes
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
        """Read `num_rows` rows more."""
        for _ in range(num_rows):
            while not self._read_row(self._probabilities):
                pass

    def _read_row(self, probabilities: np.ndarray) -> bool:
        """Read one row, and hold its audio unless it is held already or cannot be used. False: an epoch has ended."""
        number = 0
        if len(self._readers) > 1:
            rng = np.random.default_rng([self._seed, self._share, self.num_rows])
            number = int(rng.choice(len(self._readers), p=probabilities / probabilities.sum()))
        reader = self._readers[number]
        try:
            row = next(reader)
        except StopIteration:
            if self.num_rows < NUM_ROWS_CHECKED:
                self._check_skipped()
            return False
        self.num_rows += 1
        try:
            held = self.held.get(row.id)
            if held is not None and held.place[:2] == (number, reader.number):
                raise UnusableRow("the id of another row")
            if held is None or len(held.utterance.waveform) == self._max_samples:
                self._hold(self._decode(row, (number, reader.number, reader.row)))
        except UnusableRow as error:
            self._skip(row, error)
        if self.num_rows % NUM_ROWS_CHECKED == 0:
            self._check_skipped()
        if self.num_rows % MARK_EVERY == 0:
            self._forget_marks()
        return True

    def _forget_marks(self) -> None:
        for number, reader in enumerate(self._readers):
            reader.forget_marks(held.place[1:] for held in self.held.values() if held.place[0] == number)

    def _hold(self, held: Held) -> None:
        former = self.held.pop(held.utterance.id, None)  # another part of it
        self.num_held_samples += len(held.utterance.waveform) - (len(former.utterance.waveform) if former else 0)
        self.held[held.utterance.id] = held
        while True:  # the oldest leaves as long as the others fill the reservoir
            oldest = next(iter(self.held))
            length = len(self.held[oldest].utterance.waveform)
            if self.num_held_samples - length < self._capacity:
                return
            del self.held[oldest]
            self.num_held_samples -= length

    def _decode(self, row: Row, place: Place) -> Held:
        """What is held of a row, a pure function of its arguments; UnusableRow if it is no good."""
        if self._needs_speaker and row.speaker is None:
            raise UnusableRow("no speaker")
        try:
            utterance = row.decode()
        except ValueError as error:
            raise UnusableRow("not decodable", str(error)) from error
        waveform, start = utterance.waveform, 0
        if len(waveform) < self._min_samples:
            raise UnusableRow("too short", f"{len(waveform) / SAMPLING_RATE:.2f} s")
        if len(waveform) > self._max_samples:
            rng = np.random.default_rng([self._seed, self._share, *place])
            start = int(rng.integers(len(waveform) - self._max_samples + 1))
            waveform = waveform[start : start + self._max_samples].copy()  # a view would keep the whole in memory
        if not np.isfinite(waveform).all():
            raise UnusableRow("not finite")
        if power(waveform) < SILENCE_POWER:
            raise UnusableRow("silent")
        return Held(replace(utterance, waveform=waveform), start, place)

    def _skip(self, row: Row, error: "UnusableRow") -> None:
        example = f"{row.id!r}: {error}"
        if not self.skipped[error.reason]:
            logger.warning("skipping rows that cannot be used, the first of this kind is %s", example)
        self.skipped[error.reason] += 1
        if len(self._examples) < 5:
            self._examples.append(example)

    def _check_skipped(self) -> None:
        """Stop if too many of the rows since the last check were skipped."""
        num_rows, num_skipped = self.num_rows - self._checked[0], self.skipped.total() - self._checked[1]
        if num_skipped > self._max_skipped * num_rows:
            raise ValueError(
                f"{num_skipped} of {num_rows} rows, up to row {self.num_rows}, cannot be used (in all "
                f"{dict(self.skipped)}), such as {'; '.join(self._examples)}: check the data, the columns and "
                "min_seconds, or allow a larger share by max_skipped"
            )
        self._checked, self._examples = (self.num_rows, self.skipped.total()), []

    def state_dict(self) -> dict[str, Any]:
        """Where the reservoir stands: plain numbers and strings, no audio. `load_state_dict` reads the rows again."""
        self._forget_marks()
        return {
            "readers": [reader.state_dict() for reader in self._readers],
            "num_rows": self.num_rows,
            "skipped": dict(self.skipped),
            "checked": list(self._checked),
            "examples": self._examples,
            "held": [[*held.place, name] for name, held in self.held.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly as the reservoir that `state` was taken of would have; it must have had the same settings.

        Of the data, only what is held is decoded again, and little more is read.

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
                held[name] = self._decode(row, tuple(place))
        self.held = {name: held[name] for *_, name in state["held"]}
        self.num_held_samples = sum(len(held.utterance.waveform) for held in self.held.values())
        self.num_rows, self.skipped = state["num_rows"], Counter(state["skipped"])
        self._checked, self._examples = tuple(state["checked"]), list(state["examples"])

    def take_over(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on for the reservoirs of another number of shares, whose `states` these are: each row that they had not
        read yet in their epoch is read once by one of the present ones. What they held is let go."""
        for number, reader in enumerate(self._readers):
            reader.take_over([state["readers"][number] for state in states])
        for state in states[self._share :: self._num_shares]:
            self.num_rows += state["num_rows"]
            self.skipped.update(state["skipped"])
        self._checked = (self.num_rows, self.skipped.total())


class UnusableRow(ValueError):
    """Why a row is skipped."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
