# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""What training on a CPU asks of PyTorch and of the C library."""

import ctypes
import os

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGE = 2**31 - 1  # bytes; the arguments of mallopt are C integers


def keep_freed_memory() -> bool:
    """Have malloc keep the memory of freed tensors for those to come.

    By default it gives large blocks back to the kernel, which maps and clears them anew in every training step: a
    quarter to a third of the CPU time of a step of `small`, for 10 % less memory. It is a matter of glibc, and of the
    whole process.

    Returns:
        Whether this is glibc. Elsewhere nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_THRESHOLD, LARGE) and mallopt(M_TRIM_THRESHOLD, LARGE))


def prepare_cpu(threads: int | None = None) -> None:
    """For a training process on a CPU: `keep_freed_memory`, and so many threads. `None`: its share of the cores, which
    the processes of one machine divide, where `accelerate launch` would give a single process one thread."""
    keep_freed_memory()
    torch.set_num_threads(threads or max(1, os.cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
