# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""What README.md shows runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


CHECKS = {
    "Ten lines": "assert scores.shape == (2,) and voices.shape == (2, len(recordings[1])), (scores, voices.shape)",
    "Pipelines": """
assert [round(verify(anna, other)["score"], 1) for other in (meeting, ben)] == [0.8, 0.2]
assert [verify(anna, other)["decision"] for other in (meeting, ben)] == [True, False]
assert [(entry["speaker"], entry["decision"]) for entry in verify(meeting)] == [("anna", True), ("ben", True)]
assert separate(meeting)["sources"].shape == (2, 86536)
assert separate(meeting, enrolment=anna)["source"].shape == (86536,)
""",
}


@pytest.mark.parametrize("section", CHECKS)
def test_its_examples_run(section):
    code = re.search(rf"#+ {section}\n.*?```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    process = subprocess.run(
        [sys.executable, "-c", f"{code}\n{CHECKS[section]}\n"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr


def test_the_configs_it_names_are_there():
    readme = (ROOT / "README.md").read_text()
    for path in set(re.findall(r"examples/[\w/]+\.(?:py|yaml)", readme)):
        assert (ROOT / path).is_file(), path
