# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Separate recordings into files that never clip, in constant memory."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile

from ..long_audio import SeparatedAudio, separate
from ..modeling_csc import CSCPreTrainedModel

BLOCK_SAMPLES = 2**20

STDOUT = "-"


def separate_to_files(
    model: CSCPreTrainedModel,
    recording: Path,
    choose: Callable[[SeparatedAudio], Sequence[tuple[int, str]]],
    folder: Path,
) -> tuple[SeparatedAudio, float]:
    """Separate a recording and write some of its slots.

    They are written twice: by blocks as they are found, and from there with the one gain, at most 1, that keeps the
    samples of all slots within ±1. A file is complete, or not there.

    Args:
        model: one that separates.
        recording: an audio file.
        choose: tells which slots go to which files ("-": standard output, as WAV) once all is known of the recording.
        folder: an existing folder for temporary files, on the disk of the files to be written.

    Returns:
        The speakers of the recording, and the gain.
    """
    with tempfile.TemporaryDirectory(prefix=".csc-hf-", dir=folder) as work:
        slots = [Path(work, f"{slot}.wav") for slot in range(model.config.num_sources)]
        audio = separate(model, recording, output_files=slots)
        peak = max(float(np.abs(block).max(initial=0)) for slot in slots for block in _blocks(slot))
        gain = min(1.0, 1 / peak) if peak else 1.0
        for slot, target in choose(audio):
            finished = Path(work, f"finished{Path(target).suffix or '.wav'}")
            _copy(slots[slot], finished, gain, model.config.sampling_rate)
            if target == STDOUT:
                with finished.open("rb") as file:
                    shutil.copyfileobj(file, sys.stdout.buffer)
            else:
                os.replace(finished, Path(target).resolve())
    return audio, gain


def check_format(target: str) -> None:
    """Raise a ValueError unless audio can be written to a file of this name."""
    ending = Path(target).suffix.lstrip(".").upper()
    if target != STDOUT and not (ending in soundfile.available_formats() and soundfile.check_format(ending)):
        raise ValueError(f"cannot write audio to {target!r}: choose a name that ends in .wav, .flac or .ogg")


def _blocks(path: Path):
    with soundfile.SoundFile(path) as file:
        yield from file.blocks(BLOCK_SAMPLES, dtype="float32")


def _copy(source: Path, target: Path, gain: float, sampling_rate: int) -> None:
    """Copy audio with a gain: as 32-bit floats where the format has them."""
    ending = target.suffix.lstrip(".").upper()
    subtype = "FLOAT" if soundfile.check_format(ending, "FLOAT") else soundfile.default_subtype(ending)
    with soundfile.SoundFile(target, "w", sampling_rate, 1, subtype) as file:
        for block in _blocks(source):
            # Rounding can leave a sample beyond ±1.
            file.write(np.clip(block * np.float32(gain), -1, 1))
