# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""What README.md shows runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

from csc_hf import CSCConfig, CSCFeatureExtractor, CSCForPreTraining

ROOT = Path(__file__).resolve().parents[1]


def test_the_ten_lines_run(tmp_path):
    code = re.search(r"## Ten lines\n+```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    config = CSCConfig.tiny(front_end="stft")
    CSCForPreTraining(config).save_pretrained(tmp_path / "runs" / "pretrain")
    CSCFeatureExtractor(min_samples=config.segment_samples).save_pretrained(tmp_path / "runs" / "pretrain")
    rng = np.random.default_rng(0)
    for name, seconds in (("enrolment.wav", 1), ("meeting.wav", 2)):
        soundfile.write(tmp_path / name, 0.1 * rng.standard_normal(16000 * seconds), 16000)
    code += "\nassert scores.shape == (2,) and scores.abs().max() <= 1.001 and voices.shape == (2, 32000)\n"
    process = subprocess.run(
        [sys.executable, "-c", code],
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
