# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Trial lists with their audio files: written for other tools, read from other protocols such as VoxCeleb's."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from ..audio import SAMPLING_RATE, SILENCE_POWER, decode_audio, power
from ..feature_extraction_csc import high_pass
from ..files import check_folder, writing
from .trial_set import Trials, TrialSet


@dataclass(frozen=True, eq=False)
class AudioFile:
    """A recording in a file, which is decoded each time that it is needed.

    Raises:
        ValueError: On `waveform`, the file cannot be decoded, is silent or not finite.
    """

    id: str
    path: Path
    speaker: str
    source: None = None

    @property
    def waveform(self) -> np.ndarray:
        waveform, _ = high_pass(decode_audio(self.path), SAMPLING_RATE)
        if not power(waveform) >= SILENCE_POWER:  # NaN is not, either
            raise ValueError(f"{str(self.path)!r} is silent or holds NaN: take its trials off the list")
        return waveform


def write_trials(folder: str | os.PathLike, trials: TrialSet) -> None:
    """Write a list `CONDITION.txt` for each condition, and all its signals as float WAV files.

    A line of a list is that of VoxCeleb: "1" for a target trial or "0", the path of the enrolment signal and that of
    the test signal, both relative to `folder`.

    Raises:
        ValueError: An enrolment is of several recordings, for which such a list has no form.
    """
    if trials.enrolments.shape[1] > 1:
        raise ValueError("a list of trials names one enrolment file a trial: build trials with enrolment_recordings=1")
    folder = Path(folder)
    for kind in trials.kinds:
        check_folder(folder / kind)
        for number in range(len(trials.recordings)):
            signal, _ = trials.signal(kind, number)
            with writing(folder / kind / f"{number:06}.wav") as unfinished:
                soundfile.write(unfinished, signal, SAMPLING_RATE, subtype="FLOAT")
    for name, condition in trials.conditions.items():
        enrolment, test = condition.kinds
        with writing(folder / f"{name}.txt") as unfinished, unfinished.open("w", encoding="utf-8") as file:
            for i, j, is_target in zip(condition.enrolment, condition.test, condition.is_target, strict=True):
                file.write(f"{int(is_target)} {enrolment}/{i:06}.wav {test}/{j:06}.wav\n")


def read_trials(path: str | os.PathLike, root: str | os.PathLike) -> TrialSet:
    """Read a trial list as one condition, named like the file.

    A line is "1 path path" or "0 path path" as in VoxCeleb, or "path path target" or "path path nontarget" as in
    Kaldi. Its fields are separated by tabs if there is a tab in the line, by spaces if not: so paths with spaces need
    tabs. A file is one recording of one talker, in its whole length, decoded when it is needed. Files that target
    trials connect are taken to be of one speaker.

    Args:
        path: The list, in UTF-8.
        root: Folder that its paths are relative to.

    Raises:
        ValueError: A line has another form, there is no trial, a file is missing, or the labels contradict each other.
    """
    labels, sides = [], []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            label, *files = _parse(line)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}, line {number}: {line!r} {error}") from None
        labels.append(label)
        sides.append(files)
    if not labels:
        raise ValueError(f"{os.fspath(path)} holds no trial")
    names = sorted({name for files in sides for name in files})
    places = {name: place for place, name in enumerate(names)}
    numbers = np.array([[places[name] for name in files] for files in sides], dtype=np.int32)
    paths = [Path(root) / name for name in names]
    missing = [file for file in paths if not file.is_file()]
    if missing:
        raise ValueError(f"{len(missing)} of {len(paths)} files are missing, such as {str(missing[0])!r}: check root")
    enrolment, test = numbers.T
    is_target = np.array(labels)
    speakers = _connect(len(names), enrolment[is_target], test[is_target])
    wrong = ~is_target & (speakers[enrolment] == speakers[test])
    if wrong.any():
        raise ValueError(f"{sides[wrong.argmax()]} is a non-target trial, but target trials make them one speaker")
    return TrialSet(
        recordings=tuple(
            AudioFile(name, file, str(speaker)) for name, file, speaker in zip(names, paths, speakers, strict=True)
        ),
        talkers=np.arange(len(names))[:, None],
        enrolments=np.arange(len(names))[:, None],
        noise=(),
        conditions={
            Path(path).stem: Trials(("clean", "clean"), enrolment, test, is_target, np.full_like(test, -1)),
        },
        seed=None,
        seconds=None,
    )


def _parse(line: str) -> tuple[bool, str, str]:
    """Whether it is a target trial, the enrolment and the test; ValueError with what the line should be."""
    fields = [field.strip() for field in line.split("\t")] if "\t" in line else line.split()
    if len(fields) == 3 and all(fields):
        first, second, third = fields
        if first in ("0", "1"):
            return first == "1", second, third
        if third in ("target", "nontarget"):
            return third == "target", first, second
    raise ValueError(
        "is none of '1 path path', '0 path path', 'path path target', 'path path nontarget': separate the fields by "
        "tabs if a path holds spaces"
    )


def _connect(num_files: int, ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(num_files,) the lowest number among those that each is connected with by pairs."""
    lowest = np.arange(num_files)
    while True:
        before = lowest.copy()
        least = np.minimum(lowest[ones], lowest[others])
        np.minimum.at(lowest, ones, least)
        np.minimum.at(lowest, others, least)
        if (lowest == before).all():
            return lowest
