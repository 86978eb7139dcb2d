# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import tempfile

import huggingface_hub
import pytest
from hub_server import running_hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A running Hub that this process and those it starts take for the real one."""
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    with running_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)  # the client reads it when imported
        for name, value in hub.environment(tmp_path / "cache").items():
            monkeypatch.setenv(name, value)
        yield hub
