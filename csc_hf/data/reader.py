# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Read the rows of one share of a dataset, epoch after epoch, and return to any row that was read before."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .utterances import Row, Rows, UtteranceStream

MARK_EVERY = 64
"""Rows between two marks. A mark is a place that a reader can return to directly."""


class Reader:
    """The rows of one share of a dataset, epoch after epoch.

    A *pass* is what is read in one go: normally an epoch of this share. If a run is resumed with another number of
    shares, what the former shares had not read of their epoch comes first: each of these `leftovers` is a pass, too.
    """

    def __init__(self, utterances: UtteranceStream, share: int, num_shares: int):
        self.utterances = utterances
        self._share, self._num_shares = share, num_shares
        self._leftovers: list[dict[str, Any]] = []  # arguments of `UtteranceStream.rows` for the first passes
        self._first_epoch = 0  # of the passes after those
        self.number, self.row = 0, 0  # the current pass, and the rows read of it
        self._rows: Rows | None = None  # of the current pass; None until it is opened
        self._marks: dict[tuple[int, int], Any] = {}  # (pass, rows read) -> state of the rows there

    def _arguments(self, number: int) -> dict[str, Any]:
        """Arguments of `UtteranceStream.rows` for pass `number`."""
        if number < len(self._leftovers):
            return self._leftovers[number]
        epoch = self._first_epoch + number - len(self._leftovers)
        return {"epoch": epoch, "share": self._share, "num_shares": self._num_shares, "state": None}

    @property
    def epoch(self) -> int:
        """Epoch of the current pass."""
        return self._arguments(self.number)["epoch"]

    @property
    def has_read_all(self) -> bool:
        """Whether a whole epoch of this share has been read."""
        return self.number > len(self._leftovers)

    def __next__(self) -> Row:
        """The next row of this pass. Raises StopIteration at its end; after that, the next pass begins."""
        if self._rows is None:
            self._rows = self.utterances.rows(**self._arguments(self.number))
        try:
            row = next(self._rows)
        except StopIteration:
            if self.row == 0 and self.number >= len(self._leftovers):
                corpus = f" {self.utterances.corpus!r}" if self.utterances.corpus else ""
                raise ValueError(
                    f"no rows in share {self._share} of {self._num_shares} of the data{corpus}: use fewer processes "
                    "and workers, or more data"
                ) from None
            self.number, self.row, self._rows = self.number + 1, 0, None
            raise
        self.row += 1
        if self.row % MARK_EVERY == 0:
            self._marks[self.number, self.row] = self._rows.state_dict()
        return row

    def read_again(self, number: int, row: int) -> Row:
        """Row `row`, counted from 1, of pass `number`. The reader then continues after it."""
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
        """The last mark before row `row` of pass `number`. The beginning of a pass needs none."""
        return number, (row - 1) // MARK_EVERY * MARK_EVERY

    def forget_marks(self, rows: Iterable[tuple[int, int]]) -> None:
        """Keep only the marks for `rows`, (pass, row) each, and for the row to come."""
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
            # The rest of this epoch, and the number of the epoch after it.
            "unread": [current, *self._leftovers[self.number + 1 :]],
            "next_epoch": self._arguments(max(self.number + 1, len(self._leftovers)))["epoch"],
        }

    def load_state_dict(self, state: Mapping[str, Any], held: Iterable[tuple[int, int]]) -> list[Row]:
        """Return to where `state` was taken. Returns the rows `held`, (pass, row) each, in this order."""
        self._leftovers, self._first_epoch = state["leftovers"], state["first_epoch"]
        self._marks = {(number, row): mark for number, row, mark in state["marks"]}
        rows = [self.read_again(*place) for place in held]
        self.number, self.row = state["place"]
        self._rows = self.utterances.rows(**state["unread"][0])
        return rows

    def take_over(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Continue for former shares with these `states`. What they had not read of their epoch comes first, divided
        between the present shares, so that each row is read once an epoch."""
        self._first_epoch = max(state["next_epoch"] for state in states)
        self._leftovers = []
        for state in states[self._share :: self._num_shares]:
            self._leftovers += state["unread"]
            former = {"share": state["share"], "num_shares": state["num_shares"], "state": None}
            missed = range(state["next_epoch"], self._first_epoch)
            self._leftovers += [former | {"epoch": epoch} for epoch in missed]
