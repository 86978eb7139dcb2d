#!/usr/bin/env bash
# PyAV 18.1.0 (its FFmpeg): short Ogg Vorbis files end too late or too early.
# Behaviour: 16001 samples of a tone decode to 16128 samples, 16001 of silence to 15745; noise and longer files are
# exact. libsndfile reads 16001 each time.
# Surprising: the last page says where the audio ends, the stream's own duration is 16001, and it is the content that
# decides how much comes.
# Lost: 127 samples that never were (the tone goes on), or 256 missing: enough to break "mixture == sum of its
# sources" and labels made from counts.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q av==18.1.0 soundfile==0.14.0
"$venv/bin/python" - <<'EOF'
import tempfile

import av
import numpy as np
import soundfile

tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16001) / 16000)
counts = []
for samples in (tone, np.zeros(16001)):
    with tempfile.NamedTemporaryFile(suffix=".ogg") as file:
        soundfile.write(file.name, samples, 16000, format="OGG", subtype="VORBIS")
        with av.open(file.name) as container:
            stated = container.streams.audio[0].duration
            decoded = sum(frame.samples for frame in container.decode(audio=0))
        counts.append((len(soundfile.read(file.name)[0]), stated, decoded))
print(counts)
assert counts == [(16001, 16001, 16128), (16001, 16001, 15745)]
EOF
