# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The benchmarks run. What they measure depends on the machine, so it is not judged here."""

import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import speech
import yaml

ROOT = Path(__file__).resolve().parents[1]
VERIFICATION = ROOT / "benchmarks" / "verification"


def test_stream_throughput():
    small = ["--rounds", "1", "--groups", "1", "--steps", "1", "--memory_seconds", "1000"]
    script = str(ROOT / "benchmarks" / "stream_throughput.py")
    process = subprocess.run([sys.executable, script, *small], capture_output=True, text=True, timeout=500)
    assert process.returncode == 0, process.stderr
    assert len(re.findall(r"stream, (plain|augmented), [02] workers +\d+ +[\d.]+ x the model's", process.stdout)) == 4
    assert re.search(r"memory after 25 rows \d+ MB, after 250 rows \d+ MB: [+-][\d.]+ %", process.stdout)


def test_split_speakers(tmp_path):
    rows = [
        row | {"licence": licence, "seconds": 0.25}
        for source, licence in (("studio", "CC BY 4.0"), ("phone", "MIT"), ("game", "GPL-2"))
        for row in speech.make_rows(24, source=source, prefix=source)
    ]
    for row in rows:
        row["speaker_id"] = f"{row['source']}-{row['speaker_id']}"
    speech.write(tmp_path / "all", rows, shards=2)
    script = [sys.executable, VERIFICATION / "split_speakers.py", tmp_path / "all" / "*.parquet", tmp_path]
    subprocess.run([*script, "--leave_out", "GPL", "--dev_share", "0.25"], check=True, timeout=300)
    parts = {
        name: [row for file in (tmp_path / name).glob("*.parquet") for row in pq.read_table(file).to_pylist()]
        for name in ("train", "dev")
    }
    by_id = {row["id"]: row for row in rows if row["licence"] != "GPL-2"}
    assert {row["id"]: row for part in parts.values() for row in part} == by_id
    speakers = {name: {row["speaker_id"] for row in part} for name, part in parts.items()}
    assert not speakers["train"] & speakers["dev"]
    assert sorted(speaker.split("-")[0] for speaker in speakers["dev"]) == ["phone"] * 2 + ["studio"] * 2


@pytest.mark.parametrize(
    "name, changes",
    [
        ("utterance", {"mixing.supervision": "utterance"}),
        ("no_cross_attention", {"model.use_cross_attention": False}),
        ("no_separation", {"model.separation_loss_weight": 0.0}),
        ("three_observations", {"per_device_train_batch_size": 8, "mixing.num_observations": 3}),
    ],
)
def test_the_runs_differ_in_one_thing(name, changes):
    def flat(name):
        options = yaml.safe_load((VERIFICATION / f"{name}.yaml").read_text())
        nested = {f"{part}.{key}": value for part in ("model", "mixing") for key, value in options.pop(part).items()}
        return options | nested

    assert flat(name) == flat("speaker") | changes
