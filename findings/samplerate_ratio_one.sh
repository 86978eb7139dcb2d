#!/usr/bin/env bash
# samplerate 0.2.4 (libsamplerate): resampling by a ratio of 1 filters.
# Behaviour: at 16 kHz and a ratio of 1.0, "sinc_fastest" leaves 2 % of a tone of 7.5 kHz and 21 % of one of 7 kHz,
# "sinc_best" all of both; of 7.9 kHz none leaves more than 1 %.
# Surprising: nothing has to be resampled; soxr and scipy.signal.resample_poly return the input.
# Lost: the highest kilohertz of files that have the right rate already, and sample-exact sums of sources.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q samplerate==0.2.4 numpy
"$venv/bin/python" - <<'EOF'
import numpy as np
import samplerate

time = np.arange(16000) / 16000
left = {}
for quality in ("sinc_best", "sinc_fastest"):
    for frequency in (1000, 7000, 7500, 7900):
        tone = np.sin(2 * np.pi * frequency * time)
        out = samplerate.resample(tone, 1.0, quality)[4000:12000]
        left[quality, frequency] = round(float(np.sqrt(2 * np.mean(out**2))), 3)
print(left)
assert left["sinc_best", 7500] > 0.99 and left["sinc_fastest", 1000] > 0.99
assert left["sinc_fastest", 7000] < 0.25 and left["sinc_fastest", 7500] < 0.05 and left["sinc_best", 7900] < 0.02
EOF
