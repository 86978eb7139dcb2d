# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Does the data keep up with the training? Does memory stay flat?

    python benchmarks/stream_throughput.py                          # on the demo speech
    python benchmarks/stream_throughput.py --data "path/to/*.parquet"

Prints medians over interleaved rounds: seconds of mixtures per second that the stream delivers, plain and with every
augmentation, without workers and with two; those that the `small` model trains on; and their ratio. Then prints the
resident memory of a process that streams generated data, after a part of it and after ten times as much.
"""

import argparse
import io
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch

from csc_hf import CSCConfig, CSCForPreTraining
from csc_hf.data.mixing import MixingConfig
from csc_hf.data.reservoir import ReservoirConfig
from csc_hf.data.stream import MixtureStream
from csc_hf.data.utterances import stream_utterances
from csc_hf.files import escape_unprintable
from csc_hf.training.cpu import keep_freed_memory

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo_speech"
COLUMNS = {"speaker_column": None, "source_column": None}
AUGMENTED = {"speed_probability": 0.5, "reverb_probability": 0.5, "noise_probability": 1.0, "level_probability": 0.5}


def mixtures_per_second(stream, groups: int) -> float:
    """Seconds of mixtures a second, when all it takes to begin has been done."""
    batches = iter(stream)
    for _ in range(4):
        next(batches)
    started = time.monotonic()
    seconds = sum(batch["input_values"].numel() / 16000 for batch in itertools.islice(batches, groups))
    return seconds / (time.monotonic() - started)


def training_per_second(batch, steps: int) -> float:
    """Seconds of mixtures a second that `small` trains on, with the threads that torch has by default."""
    model = CSCForPreTraining(CSCConfig.small())
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(steps + 1):
        if step == 1:  # the first one is slower
            started = time.monotonic()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return steps * batch["input_values"].numel() / 16000 / (time.monotonic() - started)


def write_speech(folder: Path, seconds: float) -> None:
    """Parquet of noise in FLAC, 4 s a row, as large as speech is."""
    rng = np.random.default_rng(0)
    rows = round(seconds / 4)
    for start in range(0, rows, 500):
        audio = []
        for number in range(start, min(start + 500, rows)):
            file = io.BytesIO()
            soundfile.write(file, rng.normal(0, 0.01, 64000), 16000, format="FLAC")
            audio.append({"id": str(number), "audio": {"bytes": file.getvalue(), "path": None}})
        pq.write_table(pa.Table.from_pylist(audio), folder / f"train-{start:06}.parquet", row_group_size=50)


def resident_memory(folder: str, reservoir_seconds: float, marks: list[int]) -> list[float]:
    """Resident memory in MB of a process that does nothing but stream, after so many rows."""
    stream = MixtureStream(
        stream_utterances(folder, **COLUMNS), MixingConfig(), reservoir=ReservoirConfig(reservoir_seconds)
    )
    batches, memory = iter(stream), []
    for rows in marks:
        while stream.counters()["rows"] < rows:
            next(batches)
        memory.append(psutil.Process().memory_info().rss / 1e6)
    return memory


def main() -> None:
    escape_unprintable()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(DEMO))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--groups", type=int, default=40, help="batches of the stream a round")
    parser.add_argument("--steps", type=int, default=4, help="steps of the model a round")
    parser.add_argument("--memory_seconds", type=float, default=20_000, help="of generated speech; 0: leave it out")
    args = parser.parse_args()
    keep_freed_memory()  # as examples/pretrain.py

    streams = {
        f"{name}, {workers} workers": lambda options=options, workers=workers: MixtureStream(
            stream_utterances(args.data, **COLUMNS),
            MixingConfig(**options),
            reservoir=ReservoirConfig(600),
            num_workers=workers,
        )
        for name, options in (("plain", {}), ("augmented", AUGMENTED))
        for workers in (0, 2)
    }
    batch = next(iter(streams["plain, 0 workers"]()))
    figures = {name: [] for name in [*streams, "model"]}
    for _ in range(args.rounds):
        figures["model"].append(training_per_second(batch, args.steps))
        for name, make in streams.items():
            figures[name].append(mixtures_per_second(make(), args.groups))
    print(f"mixture seconds a second; {args.rounds} rounds, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    print(f"{'small, training':24}{statistics.median(figures['model']):8.1f}")
    for name in streams:
        ratios = [stream / model for stream, model in zip(figures[name], figures["model"], strict=True)]
        print(
            f"{'stream, ' + name:32}{statistics.median(figures[name]):8.0f}   {statistics.median(ratios):5.1f} x the "
            f"model's ({min(ratios):.1f} to {max(ratios):.1f})"
        )

    if args.memory_seconds:
        rows = round(args.memory_seconds / 4)
        with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
            write_speech(Path(folder), args.memory_seconds)
            first, last = pool.apply(resident_memory, (folder, args.memory_seconds / 20, [rows // 10, rows]))
        growth = 100 * (last / first - 1)
        print(f"memory after {rows // 10} rows {first:.0f} MB, after {rows} rows {last:.0f} MB: {growth:+.1f} %")


if __name__ == "__main__":
    main()
