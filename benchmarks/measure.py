# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
What the benchmarks measure with: interleaved times, peak memory, multiply-accumulates, and tables of them.

Linux only: the peak of a process's memory is read from /proc.
"""

import gc
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils import flop_counter

SAMPLING_RATE = 16000


@dataclass
class Section:
    """What a benchmark reports.

    Args:
        title: Its heading.
        summary: (what, measured) rows of the table that opens the report.
        text: Its tables and what they compare, in Markdown.
    """

    title: str
    summary: list[tuple[str, str]]
    text: str


def alone(function: Callable, *args, threads: int):
    """`function(*args)` in a fresh process, in which PyTorch and the BLAS of NumPy have `threads` threads. All of it
    must be picklable. A process that dies raises `BrokenProcessPool`."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # inherited, and read when the child imports NumPy and PyTorch
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def interleave(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds that each step took, (rounds,). Each round runs all of them, in turn, so that they share whatever else
    the machine does; every other round in reverse, so that none always follows the same one."""
    for step in steps.values():
        step()
    seconds = {name: np.empty(rounds) for name in steps}
    for number in range(rounds):
        for name in reversed(steps) if number % 2 else steps:
            started = time.perf_counter()
            steps[name]()
            seconds[name][number] = time.perf_counter() - started
    return seconds


def peak_memory(step: Callable[[], object], repeats: int = 2) -> float:
    """MB by which the process's memory rises above what it is now, at most, while `step` runs `repeats` times. To be
    called in a process that does nothing else (`alone`). The code of libraries, loaded as it is first run (about 20
    MB), does not count: so `repeats` is two at least, and the peak is reached when all of it is there."""
    gc.collect()
    # Not `ru_maxrss`: that survives `exec`, so a child begins with its parent's.
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("RssAnon")
    for _ in range(repeats):
        step()
    return _status("VmHWM") - _status("RssFile") - before


def _status(name: str) -> float:
    """A memory figure of this process, in MB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024 / 1e6


def parameters(model: torch.nn.Module) -> int:
    """Number of its parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


# --- multiply-accumulates --------------------------------------------------------------------------------------------


def _one_direction(input, weight_ih, weight_hh, *args, out_shape=None, **kwargs) -> int:
    """One direction of one layer: each position goes once through both weight matrices."""
    return 2 * input[0] * input[1] * (weight_ih.numel() + weight_hh.numel())


def _all_directions(input, weights, *args, out_shape=None, **kwargs) -> int:
    return 2 * input[0] * input[1] * sum(weight.numel() for weight in weights if len(weight) == 2)


def _sdpa(query, key, value, *args, out_shape=None, **kwargs) -> int:
    return flop_counter.sdpa_flop_count(query, key, value)


def _sdpa_backward(gradient, query, key, value, *args, out_shape=None, **kwargs) -> int:
    return flop_counter.sdpa_backward_flop_count(gradient, query, key, value)


# What PyTorch's own counter does not know. The backward pass of a product is two products of its size.
FORMULAS = {
    torch.ops.aten.mkldnn_rnn_layer: _one_direction,
    torch.ops.aten.mkldnn_rnn_layer_backward: lambda *args, **kwargs: 2 * _one_direction(*args, **kwargs),
    torch.ops.aten._cudnn_rnn: _all_directions,
    torch.ops.aten._cudnn_rnn_backward: lambda *args, **kwargs: 2 * _all_directions(*args, **kwargs),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _sdpa,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _sdpa_backward,
}


def multiply_accumulates(step: Callable[[], object]) -> int:
    """Multiply-accumulates of the matrix products, convolutions, LSTMs and attention that `step` runs. Fourier
    transforms and elementwise work are not counted; nor is anything outside PyTorch."""
    with flop_counter.FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        step()
    return counter.get_total_flops() // 2


# --- tables ----------------------------------------------------------------------------------------------------------


def spread(values: np.ndarray, digits: int = 2) -> str:
    """Median (lower to upper quartile)."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])
