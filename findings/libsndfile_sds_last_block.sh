#!/usr/bin/env bash
# soundfile 0.14.0 (libsndfile 1.2.2): MIDI Sample Dump files lose their last, partly filled block of 40 samples.
# Behaviour: 100 samples are read back as 100, of which the last 20 are zeros; 80 are whole; 40 are read back as
# none.
# Surprising: the count in the header is right and no error is raised: the missing samples read as silence.
# Lost: up to 39 samples at the end (a whole file of 40), which looks like a recording that ends in silence.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q soundfile==0.14.0
"$venv/bin/python" - <<'EOF'
import tempfile

import numpy as np
import soundfile

seen = {}
for count in (40, 80, 100):
    ramp = np.arange(1, count + 1).astype(np.int16)
    with tempfile.NamedTemporaryFile(suffix=".sds") as file:
        soundfile.write(file.name, ramp, 16000, format="SDS", subtype="PCM_16")
        back = soundfile.read(file.name, dtype="int16")[0]
    seen[count] = len(back), int((back != 0).sum())
print(seen)
assert seen == {40: (0, 0), 80: (80, 80), 100: (100, 80)}
EOF
