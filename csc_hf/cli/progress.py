# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""What a command shows while it works on recordings."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from .errors import ERROR, fail
from .recordings import Recording


def seconds_of(recording: Recording) -> float | None:
    """What the header says of the length."""
    import soundfile

    try:
        return soundfile.info(str(recording.path)).duration
    except (soundfile.SoundFileError, TypeError):
        return None


class Progress:
    """A bar on standard error, where that is a terminal: how much of the audio is done, and when it all will be.

    Args:
        what: what is done, for the label.
        model: whose forward passes, a chunk of audio each, move the bar.
        files: all recordings.
        step: seconds of audio by which a pass moves the bar; by default, those of `csc_hf.long_audio`.
    """

    def __init__(self, what: str, model: Any, files: Sequence[Recording], step: float | None = None):
        self.files = files
        self._is_shown = sys.stderr.isatty()
        if not self._is_shown:
            return
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        from ..long_audio import CHUNK_SECONDS, OVERLAP_SECONDS

        self._step = step or CHUNK_SECONDS - OVERLAP_SECONDS
        self._lengths = {recording: seconds_of(recording) or self._step for recording in files}
        self._done = 0.0
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        self._bars = Bars(
            *columns,
            console=Console(stderr=True),
            transient=True,
            # Where both are on the terminal, results would tear the bar. Elsewhere, rich would print them on standard
            # error as well.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._bars.add_task(what, total=sum(self._lengths.values()))
        self._model = model.base_model

    def __enter__(self) -> "Progress":
        if self._is_shown:
            self._hook = self._model.register_forward_hook(lambda *_: self._bars.advance(self._task, self._step))
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_shown:
            self._bars.stop()
            self._hook.remove()

    def finish(self, recording: Recording) -> None:
        """Move the bar to the end of a recording."""
        if self._is_shown:
            self._done += self._lengths[recording]
            self._bars.update(self._task, completed=self._done)


def for_each(progress: Progress, work: Callable[[Recording], None]) -> int:
    """Work on each recording. Those that cannot be used are told of, and the others done; returns the exit status."""
    status = 0
    with progress:
        for recording in progress.files:
            try:
                work(recording)
            except BrokenPipeError:
                raise
            except (ValueError, OSError, RuntimeError) as error:
                fail(recording.explain(error))
                status = ERROR
            progress.finish(recording)
    return status
