# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import platform
import subprocess
import sys

import pytest

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that gives memory back")
def test_freed_memory_is_kept():
    """A tensor of 64 MB after the other: each in new pages, or all of them in the pages of the first."""
    faults = [
        int(subprocess.run([sys.executable, "-c", PROGRAM.format(keep=keep)], capture_output=True, check=True).stdout)
        for keep in (False, True)
    ]
    assert faults[1] < 1000 < faults[0]
