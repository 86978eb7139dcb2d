#!/usr/bin/env bash
# tinytag 2.3.2: an MP3's duration counts the encoder's delay and padding.
# Behaviour: 2.000 s of audio at 8 kHz have duration 2.16, at 16 kHz 2.088; mutagen and libsndfile say 2.0.
# Surprising: the LAME header at the start of the file, which tinytag reads for its number of frames, also holds
# delay and padding.
# Lost: up to 0.16 s a file: in an utterance of 2 s 8 % of a data set's hours, and ends of turns that lie behind the
# audio.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q tinytag==2.3.2 mutagen==1.48.1 soundfile==0.14.0
"$venv/bin/python" - <<'EOF'
import tempfile

import mutagen
import numpy as np
import soundfile
from tinytag import TinyTag

noise = np.random.default_rng(0).normal(0, 0.05, 32000)
for rate, least in ((8000, 2.1), (16000, 2.05)):
    with tempfile.NamedTemporaryFile(suffix=".mp3") as file:
        soundfile.write(file.name, noise[: 2 * rate], rate, format="MP3")
        durations = TinyTag.get(file.name).duration, mutagen.File(file.name).info.length, soundfile.info(file.name).duration
    print(rate, durations)
    assert durations[0] > least and durations[1] == durations[2] == 2.0
EOF
