# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The setting of all tests, and what tests in several folders share."""

import os

# The models of tests are so small that further threads would only wait for each other, each of them burning a core.
# Set before torch is imported; the processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def fresh_python(tmp_path_factory):
    """Runs programs in fresh processes (`fresh.py`), in which csc_hf has not been imported."""
    from fresh import server

    with server(tmp_path_factory.mktemp("modules")) as run:
        yield run


@pytest.fixture
def spectrum(monkeypatch) -> str:
    """The name of an embedder that needs nothing but NumPy, for tests that are not about embedders."""
    from tones import SpectrumEmbedder

    from csc_hf.evaluation.embedders import EMBEDDERS

    monkeypatch.setitem(EMBEDDERS, "spectrum", SpectrumEmbedder)
    return "spectrum"
