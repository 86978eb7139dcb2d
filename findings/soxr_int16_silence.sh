#!/usr/bin/env bash
# soxr 1.1.0: silence in int16 is not silent when resampled.
# Behaviour: a second of zeros as int16, resampled from 48 to 16 kHz, has samples of -1, 0 and 1; as float32 it is 0
# throughout.
# Surprising: the resampler dithers whatever it rounds to 16 bits, exact zeros as well.
# Lost: "is this channel muted?" answered by comparing with 0, and any level-normalised front end, for which -96 dBFS
# of noise is a signal.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q soxr==1.1.0 numpy
"$venv/bin/python" - <<'EOF'
import numpy as np
import soxr

silence = np.zeros(48000)
seen = {kind: np.unique(soxr.resample(silence.astype(kind), 48000, 16000)).tolist() for kind in ("int16", "float32")}
print(seen)
assert seen == {"int16": [-1, 0, 1], "float32": [0.0]}
EOF
