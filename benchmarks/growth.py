# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""From 10 s to an hour of audio, by chunks, from file to files: does the time grow with it, and the memory not?"""

import tempfile
from pathlib import Path

import numpy as np
import soundfile
from measure import SAMPLING_RATE, Section, alone, interleave, peak_memory, table

from csc_hf import CSCConfig, CSCForSpeechSeparation, CSCModel
from csc_hf.long_audio import embed, separate

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


def measure_length(task: str, length: float, rounds: int) -> tuple[float, float]:
    """Median seconds and peak memory in MB of `task`, "separate" or "embed", on `length` seconds of audio. The longer
    the audio, the fewer the rounds."""
    rounds = max(1, min(rounds, round(600 / length)))
    with tempfile.TemporaryDirectory() as folder:
        recording = Path(folder) / "recording.wav"
        write_noise(recording, length)
        if task == "separate":
            model = CSCForSpeechSeparation(CSCConfig.small()).eval()
            outputs = [Path(folder) / f"{slot}.wav" for slot in range(model.config.num_sources)]

            def step():
                separate(model, recording, output_files=outputs)
        else:
            model = CSCModel(CSCConfig.small()).eval()

            def step():
                embed(model, recording)

        memory = peak_memory(step)
        return float(np.median(interleave({task: step}, rounds)[task])), memory


def growth(rounds: int, threads: int, seconds=lambda length: length) -> Section:
    """Time and memory by the length of the recording."""
    goals, rows = [], []
    for task in ("embed", "separate"):
        figures = {}
        for length in map(seconds, LENGTHS):
            figures[length] = time, memory = alone(measure_length, task, length, rounds, threads=threads)
            rows.append([f"`{task}`", f"{length:g} s", f"{1000 * time / length:.1f}", f"{memory:.0f}"])
        (short, (short_time, short_memory)), *_, (long, (long_time, long_memory)) = figures.items()
        measured = (
            f"{long / short:.0f} × the audio: {long_time / short_time:.0f} × the time, "
            f"{long_memory / short_memory:.2f} × the memory"
        )
        goals.append(
            (f"growth of `{task}` from {short:g} to {long:g} s, by chunks", measured, "time linear, memory flat")
        )
    text = (
        "`csc_hf.long_audio` with `small`, chunks of 10 s that overlap by 2 s, from a WAV file to a file for each "
        "source. A recording that fits one chunk needs no overlap, so 10 s cost less a second.\n\n"
    )
    return Section("Growth", goals, text + table(["", "audio", "ms per audio second", "peak memory, MB"], rows))
