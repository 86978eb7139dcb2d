# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""What stands on the command line for recordings: files, folders, glob patterns, pipes and `-`."""

import contextlib
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

EXTENSIONS = frozenset(
    ".aif .aifc .aiff .au .caf .flac .m4a .mp3 .mp4 .oga .ogg .opus .rf64 .w64 .wav .webm .wma".split()
)
"""Files that are taken from a folder, by extension, in lower case. A file that is named itself can have any."""

STDIN = "-"
STDIN_NAME = "standard input"


@dataclass(frozen=True)
class Recording:
    """An audio file.

    Attributes:
        path: where it can be read, as often as needed.
        name: what users call it.
        channel: the only channel to hear, counted from 0; None: the average of all.
    """

    path: Path
    name: str
    channel: int | None = None

    @property
    def audio(self) -> Any:
        """What functions that take recordings are given."""
        from ..audio import OneChannel

        return OneChannel(str(self.path), self.channel)

    @property
    def stem(self) -> str:
        """What to call files that are made of it."""
        return "stdin" if self.name == STDIN_NAME else Path(self.name).stem

    def rename(self, message: str) -> str:
        """A message that calls the recording by its name where it gave the path."""
        return message.replace(repr(str(self.path)), repr(self.name))

    def explain(self, error: Exception) -> str:
        """The message of an error, with the name of the recording in it."""
        message = self.rename(str(error))
        return message if repr(self.name) in message else f"{self.name!r}: {message}"


def find(arguments: Sequence[str], folder: Path) -> list[Recording]:
    """The recordings that the arguments name, each once, in their order; those of a folder or pattern are sorted.

    A path that exists is a path, whatever its letters. Pipes and `-`, standard input, are copied to files in `folder`,
    since recordings are read more than once.

    Raises:
        ValueError: an argument names nothing that can be read.
    """
    found: dict[Path, Recording] = {}
    for number, argument in enumerate(arguments):
        if argument == STDIN or Path(argument).is_fifo():
            recording = _copy_stream(argument, folder / f"stream-{number}")
            found[recording.path] = recording
            continue
        for path in _paths(argument):
            if not os.access(path, os.R_OK):
                raise ValueError(f"{str(path)!r} cannot be read: check its permissions")
            found.setdefault(path.resolve(), Recording(path, str(path)))
    return list(found.values())


def output_names(recordings: Sequence[Recording]) -> dict[Recording, Path]:
    """What to call files that are made of recordings: their stems, or, where several have one, their paths from the
    folder that these have in common, such as `monday/00001` and `tuesday/00001`.

    Raises:
        ValueError: two recordings have the same.
    """
    groups: dict[str, list[Recording]] = {}
    for recording in recordings:
        groups.setdefault(recording.stem, []).append(recording)
    names: dict[Recording, Path] = {}
    for stem, group in groups.items():
        folders = [Path(os.path.abspath(recording.name)).parent for recording in group]
        common = os.path.commonpath(folders)
        names |= {
            recording: folder.relative_to(common) / stem for recording, folder in zip(group, folders, strict=True)
        }
    made: dict[Path, Recording] = {}
    for recording, name in names.items():
        if (other := made.setdefault(name, recording)) is not recording:
            raise ValueError(
                f"{other.name!r} and {recording.name!r} would be written to the same files: work on them one by one"
            )
    return names


@contextlib.contextmanager
def opened(*arguments: Sequence[str], channel: int | None = None) -> Iterator[list[list[Recording]]]:
    """The recordings that each list of arguments names. Within, standard input is a file.

    Args:
        channel: the only channel of all of them to hear.
    """
    with tempfile.TemporaryDirectory(prefix="csc-hf-") as folder:
        if sum(argument == STDIN for group in arguments for argument in group) > 1:
            raise ValueError("'-', standard input, is given twice: only one recording can come from it")
        found = []
        for number, group in enumerate(arguments):
            Path(folder, str(number)).mkdir()
            recordings = find(group, Path(folder, str(number)))
            found.append([replace(recording, channel=channel) for recording in recordings])
        yield found


@contextlib.contextmanager
def by_name(*groups: Sequence[Recording]) -> Iterator[None]:
    """Within, errors call recordings by their names. Where there is one recording, they always name it."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        recordings = [recording for group in groups for recording in group]
        for recording in recordings:
            message = recording.rename(message)
        if len(recordings) == 1:
            message = recordings[0].explain(error)
        raise ValueError(message) from error


def _paths(argument: str) -> list[Path]:
    path = Path(argument)
    if path.is_dir():
        paths = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in EXTENSIONS and file.is_file() and not _is_hidden(file.relative_to(path))
        )
        if not paths:
            raise ValueError(f"the folder {argument!r} holds no audio files ({', '.join(sorted(EXTENSIONS))})")
        return paths
    if path.exists():
        return [path]
    paths = sorted(Path(match) for match in glob.glob(argument, recursive=True) if os.path.isfile(match))
    if not _is_hidden(path):  # a pattern that asks for them gets them
        paths = [path for path in paths if not _is_hidden(path)]
    if not paths:
        raise ValueError(f"no file, folder or match of {argument!r}: check the path")
    return paths


def _is_hidden(path: Path) -> bool:
    """Whether a file or a folder on its path is hidden: such as the `._x.flac` that macOS leaves beside `x.flac` on
    sticks, and in zip files in the folder `__MACOSX`."""
    return any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in path.parts)


def _copy_stream(argument: str, target: Path) -> Recording:
    """Copy standard input or a named pipe to a file."""
    if argument != STDIN:
        with open(argument, "rb") as source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
        return Recording(target, argument)
    if sys.stdin.isatty():
        raise ValueError("'-' reads audio from standard input, which is a terminal: pipe a file into it")
    with target.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    if not target.stat().st_size:
        raise ValueError("standard input holds no more audio: pipe one file into it, and give '-' once")
    return Recording(target, STDIN_NAME)
