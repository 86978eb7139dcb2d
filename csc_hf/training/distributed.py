# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Start a process of a training run, alone or one of several, on CPUs or accelerators."""

import os
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from transformers import TrainingArguments

from .cpu import prepare_cpu

TIMEOUT = timedelta(hours=6)
"""How long a process waits for the others: the main process evaluates alone."""


def create_accelerator(cpu_threads: int | None = None, **options: Any) -> Accelerator:
    """The `Accelerator` of a training process.

    Args:
        cpu_threads: threads where the training runs on a CPU, see `prepare_cpu`.
        options: passed on to `Accelerator`.

    Raises:
        SystemExit: the processes that were started do not know of each other.
    """
    accelerator = Accelerator(cpu=_use_cpu(), kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)], **options)
    _check_world_size(accelerator.num_processes)
    if accelerator.device.type == "cpu":
        prepare_cpu(cpu_threads)
    return accelerator


def create_training_arguments(cpu_threads: int | None = None, **options: Any) -> TrainingArguments:
    """The same for Transformers' `Trainer`: its arguments, which hold its part of the process group.

    Args:
        cpu_threads: as above.
        options: passed on to `TrainingArguments`.

    Raises:
        SystemExit: as above.
    """
    arguments = TrainingArguments(use_cpu=_use_cpu(), ddp_timeout=int(TIMEOUT.total_seconds()), **options)
    _check_world_size(arguments.world_size)
    if arguments.device.type == "cpu":
        prepare_cpu(cpu_threads)
    return arguments


def _use_cpu() -> bool:
    """Without being told, each of several processes on CPUs trains alone."""
    return not torch.accelerator.is_available()


def _check_world_size(num_processes: int) -> None:
    started = int(os.environ.get("WORLD_SIZE", 1))
    if num_processes != started:
        raise SystemExit(
            f"{started} processes were started, but each of them is one of {num_processes}: launch with one of "
            "examples/accelerate_configs"
        )
