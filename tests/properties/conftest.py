# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Properties that hold for whatever strangers send: every input ends in a finite result or a clear error.

`pytest` tries a few inputs of each, always the same. `CSC_PROPERTY_EXAMPLES=10000 pytest tests/properties` tries so
many, chosen anew each time.
"""

import os
import sys
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("CSC_PROPERTY_EXAMPLES", "0"))

settings.register_profile(
    "csc",
    max_examples=EXAMPLES or 25,
    derandomize=not EXAMPLES,
    database=None,
    deadline=timedelta(seconds=60),  # of one input: what hangs is a fault, a busy machine is not
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
settings.load_profile("csc")

SPARE_BYTES = 3 * 2**30
"""What a test may allocate beside what the process has: an input that asks for more is a fault."""


@pytest.fixture(autouse=True)
def bounded_memory():
    """Allocations beyond `SPARE_BYTES` fail. Only Linux limits and tells the size of a process so."""
    if sys.platform != "linux":
        yield
        return
    import resource

    with open("/proc/self/statm") as file:
        present = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (present + SPARE_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
