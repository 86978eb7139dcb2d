# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Read references of diarization: RTTM, who speaks when, and UEM, which parts of a recording are scored.

The readers are our own, since those of well-known packages (pyannote.database, lhotse, spy-der, simpleder) pass over
what they do not expect, or fail on valid files; `docs/diarize.md` compares them. Here a line is read as it is meant,
or it is a ValueError that names file and line.
"""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..data.utterances import label_or_none

Turns = list[tuple[float, float, str]]
"""Start and end in seconds, and the speaker."""

Regions = list[tuple[float, float]]
"""Start and end in seconds."""

SHORTEST = 1e-6
"""Seconds. What is not longer is nothing, as in pyannote.core."""

OTHER_RECORDS = frozenset(
    "SEGMENT NO_RT_METADATA LEXEME NON-LEX NON-SPEECH FILLER EDIT IP SU CB A/P SPKR-INFO".split()
)
"""Records of RTTM that say nothing of who speaks when ("RT-09 Evaluation Plan", NIST, 2009, appendix A)."""

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def read_rttm(path: Path) -> dict[str, Turns]:
    """Read an RTTM file, or all in a folder and the folders in it.

    Columns are separated by white space, so no name holds any. Lines that begin with ";" or "#" are comments. Records
    of other types than SPEAKER are passed over. Lines that say the same are one. Turns of 0 s are left out.

    Returns:
        The turns of each recording, none where nobody speaks: the recording is in records of other types only, or its
        file in the folder is empty.

    Raises:
        ValueError: A line is none of RTTM, or an interval that is not to be scored (NOSCORE); a file is not UTF-8; a
            recording is in two files; or there is no turn. The message names the file.
    """
    recordings: dict[str, Turns] = {}
    files: dict[str, Path] = {}
    for file in _files(path, ".rttm"):
        found = _read_rttm_file(file)
        if not found and path.is_dir():
            found = {file.stem: []}
        for name, turns in found.items():
            if name in files:
                raise ValueError(
                    f"the recording {name!r} is in {str(files[name])!r} and in {str(file)!r}: its turns would count "
                    "twice, give one of the two"
                )
            files[name], recordings[name] = file, turns
    if not any(recordings.values()):
        raise ValueError(f"no turns in {str(path)!r}: give a file in RTTM format, or a folder of such files (.rttm)")
    return recordings


def read_uem(paths: Sequence[Path]) -> dict[str, Regions]:
    """Read UEM files: which parts of each recording are scored.

    A line is "recording channel start end", in seconds. Channels are not told apart. Folders stand for all files in
    them, and comments are those of [`read_rttm`].

    Returns:
        The regions of each recording, in order and apart from each other.

    Raises:
        ValueError: A line has another form; a file is not UTF-8, or holds no region; or two files give a recording
            other regions. The message names the file.
    """
    recordings: dict[str, Regions] = {}
    files: dict[str, Path] = {}
    for file in (file for path in paths for file in _files(path, ".uem")):
        found: dict[str, Regions] = {}
        for where, columns in _lines(file):
            if len(columns) != 4:
                raise ValueError(
                    f"{where}: a line of UEM has 4 columns, recording channel start end, not {len(columns)}"
                )
            start, end = _seconds(where, "start", columns[2]), _seconds(where, "end", columns[3])
            if end <= start:
                raise ValueError(f"{where}: the region ends at {end:g} s, not after its start at {start:g} s")
            found.setdefault(columns[0], []).append((start, end))
        if not found:
            raise ValueError(f"no regions in {str(file)!r}: give a file in UEM format, recording channel start end")
        for name, regions in found.items():
            regions = merge_regions(regions)
            if recordings.setdefault(name, regions) != regions:
                raise ValueError(
                    f"the recording {name!r} has other regions in {str(files[name])!r} than in {str(file)!r}: give "
                    "one of the two"
                )
            files.setdefault(name, file)
    return recordings


def merge_regions(regions: Regions) -> Regions:
    """Regions in order, of which those that overlap or touch have become one."""
    merged: Regions = []
    for start, end in sorted(regions):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


def merge_turns(turns: Turns, scored: Regions | None = None) -> Turns:
    """Turns by their beginning, of which those of one speaker that overlap or touch have become one.

    Args:
        turns: Who speaks when.
        scored: Regions that turns are cut to, in order and apart from each other. None: they are not cut.
    """
    by_speaker: dict[str, Regions] = {}
    for start, end, speaker in turns:
        by_speaker.setdefault(speaker, []).append((start, end))
    merged = []
    for speaker, own in by_speaker.items():
        for start, end in merge_regions(own):
            for first, last in [(start, end)] if scored is None else scored:
                if min(end, last) - max(start, first) > SHORTEST:
                    merged.append((max(start, first), min(end, last), speaker))
    return sorted(merged)


def _read_rttm_file(file: Path) -> dict[str, Turns]:
    recordings: dict[str, Turns] = {}
    for where, columns in _lines(file):
        kind = columns[0]
        if kind == "NOSCORE":
            raise ValueError(
                f"{where}: NOSCORE is not read; leave that interval out of a UEM file, and take the line off"
            )
        if kind not in OTHER_RECORDS | {"SPEAKER"}:
            raise ValueError(f"{where}: {kind!r} is no record of RTTM, which are SPEAKER, SPKR-INFO, ...")
        if len(columns) < 2:
            raise ValueError(f"{where}: a record names its recording in column 2")
        turns = recordings.setdefault(columns[1], [])
        if kind != "SPEAKER":
            continue
        if not 8 <= len(columns) <= 10:
            raise ValueError(
                f"{where}: a SPEAKER record has 8 to 10 columns, not {len(columns)}: the speaker is in column 8, and "
                'names hold no white space, write "_" instead'
            )
        start, duration = _seconds(where, "start", columns[3]), _seconds(where, "duration", columns[4])
        if label_or_none(columns[7]) is None:
            raise ValueError(f"{where}: the speaker in column 8 has no name, {columns[7]!r}: give one")
        if duration > SHORTEST:
            turns.append((start, start + duration, columns[7]))
    return {name: list(dict.fromkeys(turns)) for name, turns in recordings.items()}


def _files(path: Path, ending: str) -> list[Path]:
    """A file, or those in a folder with this ending. Hidden ones are left out, such as those that macOS leaves on
    other file systems (._x.rttm)."""
    if not path.is_dir():
        return [path]
    return sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() == ending and file.is_file() and not is_hidden(file.relative_to(path))
    )


def is_hidden(path: Path) -> bool:
    """Whether a file or a folder on its path is hidden: its name begins with a dot, or is "__MACOSX"."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _lines(file: Path) -> Iterator[tuple[str, list[str]]]:
    """The lines of a file that are neither blank nor comments: what to call each in messages, and its columns."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(file)!r} is not UTF-8 text ({error.reason}): save it as UTF-8") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if (columns := line.split()) and columns[0][0] not in ";#":
            yield f"{str(file)!r}, line {number}", columns


def _seconds(where: str, column: str, text: str) -> float:
    value = float(text) if NUMBER.fullmatch(text) else math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"{where}: the {column} is {text!r}, which is no time in seconds, 0 or more")
    return value
