#!/usr/bin/env bash
# kaldiio 2.18.1: a µ-law WAV is read as its bytes.
# Behaviour: five samples of silence in a µ-law WAV come back as uint8 255, the codes; the rate is right and there is
# no error.
# Surprising: other encodings are decoded to amplitudes or refused. µ-law is the telephone's, and so the natural
# content of a Kaldi wav.scp.
# Lost: features of such recordings are of a distorted signal with a constant offset; only dtype uint8 gives it away,
# which an 8-bit PCM WAV has too.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q kaldiio==2.18.1 soundfile==0.14.0
"$venv/bin/python" - <<'EOF'
import tempfile

import kaldiio
import numpy as np
import soundfile

with tempfile.NamedTemporaryFile(suffix=".wav") as file:
    soundfile.write(file.name, np.zeros(5, np.int16), 8000, subtype="ULAW")
    rate, samples = kaldiio.load_mat(file.name)
print(rate, samples)
assert rate == 8000 and samples.dtype == np.uint8 and samples.tolist() == [255] * 5
EOF
