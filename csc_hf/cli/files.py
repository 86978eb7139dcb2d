# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Write voices to files that never clip, in constant memory."""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile

from ..files import UNFINISHED, writing

BLOCK_SAMPLES = 2**20

STDOUT = "-"

Result = TypeVar("Result")


def write_voices(write: Callable[[list[Path]], Result], targets: Sequence[str], folder: Path) -> tuple[Result, float]:
    """Write files twice: by blocks as voices are found, and from there with the one gain, at most 1, that keeps the
    samples of all within ±1. A file is complete, or not there: see `csc_hf.files`.

    Args:
        write: writes a WAV file to each of the given paths.
        targets: the files, as many; "-" is standard output, as WAV.
        folder: an existing folder for temporary files, on the disk of the targets.

    Returns:
        What `write` returns, and the gain.
    """
    with contextlib.ExitStack() as files:
        work = files.enter_context(tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder))
        parts = [Path(work, f"{number}.wav") for number in range(len(targets))]
        result = write(parts)
        peak = max(float(np.abs(block).max(initial=0)) for part in parts for block in _blocks(part))
        gain = min(1.0, 1 / peak) if peak else 1.0
        for part, target in zip(parts, targets, strict=True):
            if target != STDOUT:
                _copy(part, files.enter_context(writing(target)), gain)
                continue
            finished = Path(work, "finished.wav")
            _copy(part, finished, gain)
            with finished.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
    return result, gain


def check_format(target: str) -> None:
    """Raise a ValueError unless audio can be written to a file of this name."""
    ending = Path(target).suffix.lstrip(".").upper()
    if target != STDOUT and not (ending in soundfile.available_formats() and soundfile.check_format(ending)):
        raise ValueError(f"cannot write audio to {target!r}: choose a name that ends in .wav, .flac or .ogg")


def _blocks(path: Path) -> Iterator[np.ndarray]:
    with soundfile.SoundFile(path) as file:
        yield from file.blocks(BLOCK_SAMPLES, dtype="float32")


def _copy(source: Path, target: Path, gain: float) -> None:
    """Copy audio with a gain: as 32-bit floats where the format has them."""
    ending = target.suffix.lstrip(".").upper()
    subtype = "FLOAT" if soundfile.check_format(ending, "FLOAT") else soundfile.default_subtype(ending)
    with soundfile.SoundFile(target, "w", soundfile.info(source).samplerate, 1, subtype) as file:
        for block in _blocks(source):
            # Rounding can leave a sample beyond ±1.
            file.write(np.clip(block * np.float32(gain), -1, 1))
