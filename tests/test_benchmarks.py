# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The benchmarks run. What they measure depends on the machine, so it is not judged here."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_stream_throughput():
    small = ["--rounds", "1", "--groups", "1", "--steps", "1", "--memory_seconds", "1000"]
    script = str(ROOT / "benchmarks" / "stream_throughput.py")
    process = subprocess.run([sys.executable, script, *small], capture_output=True, text=True, timeout=500)
    assert process.returncode == 0, process.stderr
    assert len(re.findall(r"stream, (plain|augmented), [02] workers +\d+ +[\d.]+ x the model's", process.stdout)) == 4
    assert re.search(r"memory after 25 rows \d+ MB, after 250 rows \d+ MB: [+-][\d.]+ %", process.stdout)
