# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The shell of the documentation runs, as it stands there: on little speech, with tiny models and for few steps.

.ci/run runs that of README.md and CONTRIBUTING.md.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from test_docs import AUDIO, ROOT, blocks

from csc_hf import CSCConfig, CSCFeatureExtractor, CSCForPreTraining

pytestmark = pytest.mark.release

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))

NOT_RUN = {
    "accelerate_configs/ddp.yaml": "needs several GPUs",
    "senko \\": "needs Senko, Resemblyzer and AMI",
    "pip-audit": "asks the package index for advisories, which many mirrors do not have",
    "http.server": "serves until it is stopped; tests/test_browser.py serves the page",
    "benchmarks/run_all.py": "takes an hour, and needs the packages that it compares with",
}
"""What a block holds that is not run, and why."""

FINETUNING = "--max_steps 2 --warmup_steps 1 --seconds 0.5 --eval_seconds 0.5 --cpu_threads 1"
SHORTER = {
    "examples/pretrain.py": "--max_train_steps 2 --warmup_steps 1 --model.preset tiny --model.front_end stft "
    "--mixing.seconds 0.5 --per_device_train_batch_size 5 --reservoir_seconds 60 --max_seconds 20 --eval_seconds 0.5 "
    "--eval_recordings 2 --cpu_threads 1",
    "examples/evaluate_verification.py": "--seconds 3 --recordings 3 --max_speakers 6 --num_resamples 0",
    "examples/evaluate_diarization.py": "--conversations 1 --num_resamples 0",
    "examples/evaluate_extraction.py": "--max_speakers 4 --num_resamples 0",
    "examples/finetune_verification.py": f"{FINETUNING} --batch_size 4",
    "examples/finetune_mixtures.py": f"{FINETUNING} --num_identities 5",
    "examples/finetune_diarization.py": "--max_steps 2 --warmup_steps 1 --eval_conversations 2 --batch_size 2",
    "examples/finetune_classification.py": "--max_steps 2 --warmup_steps 1 --seconds 0.5 --batch_size 4",
    "benchmarks/deploy.py": "--rounds 1 --seconds 1 --threads 1 --recordings 2",
    "evaluate": "--seconds 3 --recordings 3 --max_speakers 6 --num_resamples 0",
}
"""Options that are appended to a script, or to a command of csc-hf."""

PROGRAMS = f"""\
import json, os, sys
from pathlib import Path

import soundfile

name, words = Path(sys.argv[1]).name, sys.argv[2:]
if name in ("arecord", "ffmpeg"):  # somebody speaks: signed 16-bit little-endian PCM at 16 kHz
    samples, _ = soundfile.read({str(AUDIO / "meeting.flac")!r}, dtype="int16")
    sys.stdout.buffer.write(samples.tobytes())
    sys.exit()
for script, options in json.loads({json.dumps(json.dumps(SHORTER))}).items():
    if script in words:
        words += options.split()
words = [word for word in words if word != "resemblyzer"]  # it is not installed
start = {{
    "python": [],
    "accelerate": ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"],
    "csc-hf": [{str(ROOT / "csc_hf_cli.py")!r}],
}}[name]
if name == "accelerate":
    words.remove("launch")
os.execv(sys.executable, [sys.executable, *start, *words])
"""
"""What stands for the programs that the documentation calls. It is given the name of one and its arguments."""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A clone with the data and models that the documentation speaks of, and programs that do not take long."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("benchmarks", "docs", "examples", "metrics", "model_cards"):
        (folder / name).symlink_to(ROOT / name)
    train, test = (pq.read_table(ROOT / "examples" / "demo_speech" / name) for name in ("train", "test"))
    speakers = sorted(set(train["speaker_id"].to_pylist()))
    is_dev = pc.is_in(train["speaker_id"], pa.array(speakers[::3]))
    train, dev = train.filter(pc.invert(is_dev)).slice(0, 80), train.filter(is_dev).slice(0, 60)
    for name, table in {
        "train": train,
        "dev": dev,
        "heldout": test,
        "held_out": test,
        "noise": dev,
        "recordings": train,
        "labelled": train,
        "path/to/train": train,
        "path/to/other_speakers": test,
    }.items():
        (folder / name).mkdir(parents=True)
        table = table.append_column("emotion", pc.utf8_slice_codeunits(table["speaker_id"], -1))
        table = table.append_column("source", pa.array(["studio"] * len(table)))
        pq.write_table(table, folder / name / "train-00000-of-00001.parquet")
    torch.manual_seed(0)
    model = CSCForPreTraining(CSCConfig.tiny(front_end="stft", frame_activity=True))
    for name in ("pretrain", "mine"):
        model.save_pretrained(folder / "runs" / name)
        CSCFeatureExtractor(min_samples=model.config.segment_samples).save_pretrained(folder / "runs" / name)
    for name in ("anna", "ben", "meeting"):
        soundfile.write(folder / f"{name}.wav", *soundfile.read(AUDIO / f"{name}.flac"))
    programs = folder / "programs"
    programs.mkdir()
    (programs / "program.py").write_text(PROGRAMS)
    for name in ("python", "accelerate", "csc-hf", "arecord", "ffmpeg"):
        call = f'exec {shlex.quote(sys.executable)} "{programs}/program.py" {name} "$@"'
        (programs / name).write_text(f"#!/bin/sh\n{call}\n")
    for name in ("pip", "pre-commit", "pytest"):  # .ci/run installs and tests
        (programs / name).write_text("#!/bin/sh\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    return folder


def shell_blocks():
    for page in PAGES:
        for line, code in blocks(page, "bash"):
            reasons = [reason for part, reason in NOT_RUN.items() if part in code]
            marks = [pytest.mark.skip(reason=reasons[0])] if reasons else []
            yield pytest.param(code, id=f"{page}:{line}", marks=marks)


@pytest.mark.parametrize("code", list(shell_blocks()))
def test_shell_runs(code, place):
    path = f"{place / 'programs'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "CSC_HF_MODEL": ""}
    words = ["bash", "-euo", "pipefail", "-c", code]
    done = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_is_not_run_is_there():
    text = "\n".join(code for page in PAGES for _, code in blocks(page, "bash"))
    assert all(part in text for part in NOT_RUN)
