# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Settings of PyTorch and of the C library for training on a CPU."""

import ctypes
import logging
import os
import platform

import torch

logger = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGE = 2**31 - 1  # bytes; mallopt takes C integers


def keep_freed_memory() -> bool:
    """Make malloc keep freed memory for the next tensors, in the whole process.

    By default, glibc returns large blocks to the kernel, which maps and clears them again in every training step. That
    is a quarter to a third of the CPU time of a step of `small`; keeping them takes 10 % more memory.

    Returns:
        Whether it was done. Only glibc has the setting.
    """
    if platform.libc_ver()[0] != "glibc":
        logger.info("the C library is not glibc: freed memory goes back to the system, which may slow training down")
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGE) and mallopt(M_TRIM_THRESHOLD, LARGE))


def default_threads() -> int:
    """Threads of this process: its share of the cores that it may run on, at most `OMP_NUM_THREADS`.

    The processes of a machine divide its cores. Launchers set `OMP_NUM_THREADS=1` where the user has not set it, so
    under a launcher a 1 says nothing.
    """
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        cores = os.process_cpu_count() or 1
    elif hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    threads = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    limit = os.environ.get("OMP_NUM_THREADS", "")
    is_launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if limit.isdigit() and int(limit) > (1 if is_launched else 0):
        threads = min(threads, int(limit))
    return threads


def prepare_cpu(threads: int | None = None) -> None:
    """Prepare a process for training on a CPU: keep freed memory, and set the number of threads.

    Args:
        threads: `None` means `default_threads`.
    """
    keep_freed_memory()
    torch.set_num_threads(threads or default_threads())
