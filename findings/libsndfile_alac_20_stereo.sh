#!/usr/bin/env bash
# soundfile 0.14.0 (libsndfile 1.2.2): 20-bit ALAC of two channels is written as noise.
# Behaviour: 16-bit stereo written as CAF/ALAC_20 is read back with a correlation of 0 to what was written. Mono, and
# 16, 24 and 32 bits with any channels, come back bit by bit. FFmpeg refuses the file as invalid.
# Surprising: ALAC is lossless, and the call succeeds.
# Lost: the recording, if it is archived in this format (24 bits are safe).
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q soundfile==0.14.0
"$venv/bin/python" - <<'EOF'
import tempfile

import numpy as np
import soundfile

audio = (np.random.default_rng(0).normal(0, 3000, (16001, 2))).astype(np.int16)
correlation = {}
for subtype, channels in (("ALAC_20", 1), ("ALAC_24", 2), ("ALAC_20", 2)):
    with tempfile.NamedTemporaryFile(suffix=".caf") as file:
        soundfile.write(file.name, audio[:, :channels], 16000, format="CAF", subtype=subtype)
        back = soundfile.read(file.name, dtype="int16", always_2d=True)[0]
    correlation[subtype, channels] = round(np.corrcoef(audio[:, 0], back[:, 0])[0, 1], 3)
print(correlation)
assert correlation["ALAC_20", 1] == correlation["ALAC_24", 2] == 1
assert abs(correlation["ALAC_20", 2]) < 0.1
EOF
