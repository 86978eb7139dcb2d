# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Lists of trials in VoxCeleb's format, with their audio: written for other tools, read from elsewhere."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from ..audio import SAMPLING_RATE, decode_audio
from ..data.mixing import SILENCE_POWER, power
from .trials import Trials, TrialSet


@dataclass(frozen=True, eq=False)
class AudioFile:
    """A recording that is decoded each time that it is needed. Has what an `Utterance` has.

    Raises:
        ValueError: on `waveform`, the file cannot be decoded, is silent or not finite.
    """

    id: str
    path: Path
    speaker: str
    source: None = None

    @property
    def waveform(self) -> np.ndarray:
        waveform = decode_audio(self.path)
        if not power(waveform) >= SILENCE_POWER:  # NaN is not, either
            raise ValueError(f"{str(self.path)!r} is silent or holds NaN: take its trials off the list")
        return waveform


def write_trials(folder: str | os.PathLike, trials: TrialSet) -> None:
    """Write trials for other tools: a list `CONDITION.txt` a condition, and all its signals as float WAV files.

    A line of a list is that of VoxCeleb: "1" for a target trial or "0", the path of the enrolment signal and that of
    the test signal, both relative to `folder`.

    Raises:
        ValueError: an enrolment is of several recordings, which such a list cannot tell.
    """
    if trials.enrolments.shape[1] > 1:
        raise ValueError("a list of trials names one enrolment file a trial: build trials with enrolment_recordings=1")
    folder = Path(folder)
    for kind in trials.kinds:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(len(trials.recordings)):
            signal, _ = trials.signal(kind, number)
            soundfile.write(folder / kind / f"{number:06}.wav", signal, SAMPLING_RATE, subtype="FLOAT")
    for name, condition in trials.conditions.items():
        enrolment, test = condition.kinds
        with open(folder / f"{name}.txt", "w") as file:
            for i, j, is_target in zip(condition.enrolment, condition.test, condition.is_target, strict=True):
                file.write(f"{int(is_target)} {enrolment}/{i:06}.wav {test}/{j:06}.wav\n")


def read_trials(path: str | os.PathLike, root: str | os.PathLike) -> TrialSet:
    """Trials of a list in VoxCeleb's format ("label path path", label 1 or 0), as one condition named like the file.

    Files are heard in their whole length, as recordings of one talker each; they are decoded when they are needed.
    Files that target trials connect are taken to be of one speaker.

    Args:
        path: The list.
        root: Folder that its paths are relative to.

    Raises:
        ValueError: a line has another form, there is no trial, a file is missing, or the labels contradict each other.
    """
    labels, sides = [], []
    for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 3 or words[0] not in ("0", "1"):
            raise ValueError(f"{os.fspath(path)}, line {number}: {line!r} is not '1 path path' or '0 path path'")
        labels.append(words[0] == "1")
        sides.append(words[1:])
    if not labels:
        raise ValueError(f"{os.fspath(path)} holds no trial")
    names, numbers = np.unique(sides, return_inverse=True)
    files = [Path(root) / name for name in names]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"{len(missing)} of {len(files)} files are missing, such as {str(missing[0])!r}: check root")
    enrolment, test = numbers.reshape(-1, 2).T.astype(np.int32)
    is_target = np.array(labels)
    speakers = _connect(len(names), enrolment[is_target], test[is_target])
    wrong = ~is_target & (speakers[enrolment] == speakers[test])
    if wrong.any():
        raise ValueError(f"{sides[wrong.argmax()]} is a non-target trial, but target trials make them one speaker")
    return TrialSet(
        recordings=tuple(
            AudioFile(name, file, str(speaker)) for name, file, speaker in zip(names, files, speakers, strict=True)
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
