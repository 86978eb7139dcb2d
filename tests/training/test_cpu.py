# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import ctypes
import os
import platform
import subprocess
import sys

import pytest

from csc_hf.training.cpu import default_threads, keep_freed_memory

PROGRAM = """
import resource
import torch
from csc_hf.training.cpu import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
for step in range(30):
    if step == 15:  # until then the heap may grow
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.release
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that gives memory back")
def test_freed_memory_is_kept():
    """A tensor of 64 MB after the other: each in new pages, or all of them in the pages of the first."""
    faults = [
        int(subprocess.run([sys.executable, "-c", PROGRAM.format(keep=keep)], capture_output=True, check=True).stdout)
        for keep in (False, True)
    ]
    assert faults[1] < 1000 < faults[0]


def test_another_c_library_is_left_alone(monkeypatch, caplog):
    def refuse(name):  # as on Windows
        raise TypeError("bad argument type for built-in operation")

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with caplog.at_level("INFO"):
        assert not keep_freed_memory()
    assert "not glibc" in caplog.text


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({}, 6),  # of the 64 cores of the machine, this process may run on 6
        ({"LOCAL_WORLD_SIZE": "2"}, 3),
        ({"LOCAL_WORLD_SIZE": "12"}, 1),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "2", "LOCAL_WORLD_SIZE": "2"}, 2),
        ({"OMP_NUM_THREADS": "2", "ACCELERATE_MIXED_PRECISION": "no"}, 2),
        ({"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}, 6),  # set by `accelerate launch`
        ({"OMP_NUM_THREADS": "64"}, 6),
    ],
)
def test_threads_are_a_share_of_the_cores_that_may_be_used(monkeypatch, environment, threads):
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE", "ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 6, raising=False)
    assert default_threads() == threads
