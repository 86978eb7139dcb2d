#!/usr/bin/env bash
# soundfile 0.14.0 (libsndfile 1.2.2): three formats take any sampling rate and keep another.
# Behaviour: 16 kHz mono written as VOC (8 bits) is read back as 16129 Hz, as WVE as 8000 Hz, as XI as 44100 Hz. No
# error, no warning.
# Surprising: other formats that cannot hold what is asked for raise an error. (VOC stores 256 - 1000000 / rate in a
# byte; the other two hold no rate.)
# Lost: pitch and time: by 0.8 %, by half, by a factor of 2.8; turns no longer lie on the audio.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q soundfile==0.14.0
"$venv/bin/python" - <<'EOF'
import tempfile

import numpy as np
import soundfile

rates = {}
for format, subtype in (("WAV", "PCM_U8"), ("VOC", "PCM_U8"), ("WVE", "ALAW"), ("XI", "DPCM_16")):
    with tempfile.NamedTemporaryFile() as file:
        soundfile.write(file.name, np.zeros(16000), 16000, format=format, subtype=subtype)
        rates[format] = soundfile.info(file.name).samplerate
print(rates)
assert rates == {"WAV": 16000, "VOC": 16129, "WVE": 8000, "XI": 44100}
EOF
