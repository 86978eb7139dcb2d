#!/usr/bin/env bash
# pydub 0.25.1: a WAVE_FORMAT_EXTENSIBLE file of floats is read as integers.
# Behaviour: a tone of peak 0.5 (-9.0 dBFS) comes back at -6.0 dBFS with a peak of 0.7: the bits of the floats, as
# 32-bit integers. No warning.
# Surprising: the same floats in a plain WAV (format 3) are not misread but handed to FFmpeg; the extensible header
# is taken for PCM, its sub-format is not looked at.
# Lost: the recording: whatever its level, it is nearly a square wave at half of full scale. Multi-channel recorders
# and workstations write this header.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q pydub==0.25.1 soundfile==0.14.0 'audioop-lts; python_version >= "3.13"'
"$venv/bin/python" - <<'EOF'
import tempfile

import numpy as np
import soundfile
from pydub import AudioSegment

tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
with tempfile.NamedTemporaryFile(suffix=".wav") as file:
    soundfile.write(file.name, tone, 16000, format="WAVEX", subtype="FLOAT")
    segment = AudioSegment.from_wav(file.name)
samples = np.array(segment.get_array_of_samples()) / 2**31
print(segment.dBFS, np.abs(samples).max(), np.corrcoef(samples, tone)[0, 1])
assert len(samples) == len(tone) and segment.dBFS > -6.5 and np.abs(samples).max() > 0.6
EOF
