#!/usr/bin/env bash
# mutagen 1.48.1: a WAV of ADPCM or GSM lasts milliseconds.
# Behaviour: 3 s at 8 kHz of IMA or MS ADPCM have info.length 0.006, of GSM 6.10 0.009; PCM and µ-law are right.
# Surprising: the header holds the bytes a second (and a "fact" chunk the samples), so the length is known; the data
# are divided by the block size as if a block were a sample.
# Lost: manifests whose durations come from tags drop telephone recordings and dictation as too short.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q mutagen==1.48.1 soundfile==0.14.0
"$venv/bin/python" - <<'EOF'
import tempfile

import mutagen
import numpy as np
import soundfile

lengths = {}
for subtype in ("PCM_16", "ULAW", "IMA_ADPCM", "MS_ADPCM", "GSM610"):
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        soundfile.write(file.name, np.zeros(24000, np.int16), 8000, subtype=subtype)
        lengths[subtype] = mutagen.File(file.name).info.length
print(lengths)
assert lengths.pop("PCM_16") == lengths.pop("ULAW") == 3.0
assert all(length < 0.05 for length in lengths.values())
EOF
