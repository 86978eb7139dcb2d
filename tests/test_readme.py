# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""What README.md shows runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from csc_hf import CSCConfig, CSCFeatureExtractor, CSCForPreTraining

ROOT = Path(__file__).resolve().parents[1]


CHECKS = {
    "Ten lines": "assert scores.shape == (2,) and scores.abs().max() <= 1.001 and voices.shape == (2, 32000)",
    "Pipelines": """
assert [entry["speaker"] for entry in verify("meeting.wav")] == ["anna"]
assert separate("meeting.wav")["sources"].shape == (2, 32000)
assert separate("meeting.wav", enrolment="anna.wav")["source"].shape == (32000,)
""",
}


@pytest.mark.parametrize("section", CHECKS)
def test_its_examples_run(tmp_path, section):
    code = re.search(rf"#+ {section}\n+```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    config = CSCConfig.tiny(front_end="stft")
    CSCForPreTraining(config).save_pretrained(tmp_path / "runs" / "pretrain")
    CSCFeatureExtractor(min_samples=config.segment_samples).save_pretrained(tmp_path / "runs" / "pretrain")
    rng = np.random.default_rng(0)
    seconds = {"enrolment.wav": 1, "anna.wav": 1, "anna1.wav": 1, "anna2.wav": 1, "meeting.wav": 2}
    for name, length in seconds.items():
        soundfile.write(tmp_path / name, 0.1 * rng.standard_normal(16000 * length), 16000)
    process = subprocess.run(
        [sys.executable, "-c", f"{code}\n{CHECKS[section]}\n"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.returncode == 0, process.stderr


def test_the_configs_it_names_are_there():
    readme = (ROOT / "README.md").read_text()
    for path in set(re.findall(r"examples/[\w/]+\.(?:py|yaml)", readme)):
        assert (ROOT / path).is_file(), path
