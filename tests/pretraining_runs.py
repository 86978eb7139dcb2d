# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Tiny pre-training runs on the speech that ships: in this process, or launched by Accelerate as users launch them."""

import argparse
import json
import logging
import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path

import accelerate.commands.launch
import yaml
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import prepare_simple_launcher_cmd_env

from csc_hf.training.arguments import parse_pretraining_arguments
from csc_hf.training.pretrainer import Pretrainer

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "examples" / "pretrain.py"
TWO_PROCESSES = ROOT / "examples" / "accelerate_configs" / "cpu_2_processes.yaml"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]

TINY = {
    "train_data": str(ROOT / "examples" / "demo_speech"),
    "max_train_steps": 4,
    "per_device_train_batch_size": 5,
    "warmup_steps": 1,
    "logging_steps": 1,
    "reservoir_seconds": 60,
    "eval_seconds": 1.0,
    "eval_recordings": 2,
    "checkpointing_steps": 2,
    "eval_steps": 2,
    "model": {"preset": "tiny", "front_end": "stft"},
    "mixing": {"seconds": 0.5},
}


def reset_accelerate() -> None:
    """As in a new process: Accelerate's settings are global."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def arguments(folder: Path, *more: str, options: dict | None = None) -> list[str]:
    """The command line of a run with its output in `folder`."""
    config = folder.parent / f"{folder.name}.yaml"
    config.write_text(yaml.safe_dump(TINY | (options or {})))
    return ["--config", str(config), "--output_dir", str(folder), "--cpu_threads", "1", *more]


def pretrainer(folder: Path, *more: str, options: dict | None = None) -> Pretrainer:
    """A run in this process that has not started yet."""
    reset_accelerate()
    return Pretrainer(parse_pretraining_arguments(arguments(folder, *more, options=options)))


def run(folder: Path, *more: str, options: dict | None = None) -> int:
    """Run in this process; returns the exit status."""
    return pretrainer(folder, *more, options=options).run()


def command(folder: Path, *more: str, options: dict | None = None, processes: int = 1) -> list[str]:
    """The command that launches the script."""
    launcher = ["--cpu", "--num_processes=1", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    if processes > 1:
        launcher = ["--config_file", str(TWO_PROCESSES)]
    return [*LAUNCH, *launcher, str(SCRIPT), *arguments(folder, *more, options=options)]


def forked(function, *arguments) -> multiprocessing.Process:
    """Start a function in a process of its own, which has all that this one has imported."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def launch(started: list[str]) -> str:
    """Run a command to its end; returns what it printed.

    The launcher is forked off, and a script of one process runs in it, to import nothing anew.
    """
    assert started[: len(LAUNCH)] == LAUNCH
    with tempfile.TemporaryFile("w+") as output:
        process = forked(launch_into, output.fileno(), started[len(LAUNCH) :])
        process.join(500)
        process.kill()
        output.seek(0)
        printed = output.read()
        assert process.exitcode == 0, printed
        return printed


def launch_into(output: int, arguments: list[str]) -> None:
    print_into(output)
    accelerate.commands.launch.simple_launcher = run_script
    accelerate.commands.launch.launch_command(launch_command_parser().parse_args(arguments))


def run_script(options: argparse.Namespace) -> None:
    """In place of Accelerate's launcher of one process: run the script in this one, with the same environment."""
    (python, *sys.argv[:]), environment = prepare_simple_launcher_cmd_env(options)
    assert python == sys.executable
    os.environ.update(environment)
    reset_accelerate()
    for handler in [*logging.root.handlers]:  # pytest's, of which a script knows nothing
        logging.root.removeHandler(handler)
    runpy.run_path(sys.argv[0], run_name="__main__")


def print_into(output: int) -> None:
    """From now on, this process prints into a file only."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def batches(folder: Path) -> dict[str, list[dict]]:
    """What each process noted of its batches: step, losses, recipes."""
    return {path.name: [json.loads(line) for line in path.open()] for path in sorted(folder.glob("batches-*.jsonl"))}
