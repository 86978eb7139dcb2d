# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""From 10 s to an hour of audio, by chunks, from file to files: does the time grow with it, and the memory not?"""

import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from measure import SAMPLING_RATE, Section, alone, peak_memory, table

from csc_hf import CSCConfig, CSCForSpeechSeparation
from csc_hf.long_audio import separate

LENGTHS = (10.0, 60.0, 600.0, 3600.0)


def write_noise(path: Path, length: float) -> None:
    """`length` seconds, minute by minute."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", SAMPLING_RATE, 1) as file:
        missing = round(length * SAMPLING_RATE)
        while missing:
            samples = min(missing, 60 * SAMPLING_RATE)
            file.write(rng.normal(0, 0.1, samples))
            missing -= samples


def measure_length(length: float, rounds: int) -> tuple[float, float]:
    """Median seconds and peak memory in MB of the separation of `length` seconds. The longer, the fewer the rounds."""
    model, taken = CSCForSpeechSeparation(CSCConfig.small()).eval(), []
    with tempfile.TemporaryDirectory() as folder:
        recording = Path(folder) / "recording.wav"
        write_noise(recording, length)

        def step() -> None:
            started = time.perf_counter()
            separate(model, recording, output_files=[recording.with_name("0.wav"), recording.with_name("1.wav")])
            taken.append(time.perf_counter() - started)

        memory = peak_memory(step, repeats=1 + max(1, min(rounds, round(600 / length))))
    return float(np.median(taken[1:])), memory


def growth(rounds: int, threads: int, seconds=lambda length: length) -> Section:
    """Time and memory by the length of the recording."""
    rows, times, memories = [], [], []
    lengths = [seconds(length) for length in LENGTHS]
    for length in lengths:
        taken, memory = alone(measure_length, length, rounds, threads=threads)
        times.append(taken)
        memories.append(memory)
        rows.append([f"{length:g} s", f"{taken:.2f}", f"{1000 * taken / length:.1f}", f"{memory:.0f}"])
    summary = [
        (
            f"separation by chunks, {lengths[0]:g} s to {lengths[-1]:g} s, {lengths[-1] / lengths[0]:.0f} × the audio",
            f"{times[-1] / times[0]:.0f} × the time, {memories[-1] / memories[0]:.2f} × the memory",
        )
    ]
    text = (
        "`csc_hf.long_audio.separate` with `small`, chunks of 10 s that overlap by 2 s or more, from a file to one "
        "for each source. What fits one chunk has no overlap: a second of it costs less.\n\n"
    )
    return Section(
        "Growth", summary, text + table(["audio", "seconds", "ms per audio second", "peak memory, MB"], rows)
    )
