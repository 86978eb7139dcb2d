# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The notebook runs from a clone, and is committed without what it shows."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).resolve().parents[1] / "examples" / "tour.ipynb"


@pytest.mark.release
def test_the_notebook_runs():
    notebook = nbformat.read(TOUR, as_version=4)
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(TOUR.parent)}}).execute()
    shown = [list(output.get("data", {})) for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in kinds for kinds in shown) == 2 and sum("text/html" in kinds for kinds in shown) == 3


def test_the_notebook_holds_no_outputs():
    for cell in nbformat.read(TOUR, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
