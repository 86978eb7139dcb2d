#!/usr/bin/env bash
# audioread 3.1.0: 8-bit WAV is folded: silence is full scale.
# Behaviour: the bytes 64, 128, 192 (-0.5, silence, +0.5) come back as the 16-bit samples 16384, -32768, -16384.
# Surprising: 8-bit WAV is unsigned, silence is 128; the reader takes it for signed. The library promises 16-bit
# signed samples.
# Lost: the recording: around silence the waveform jumps between both ends of the scale.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q audioread==3.1.0 numpy 'standard-aifc; python_version >= "3.13"' 'audioop-lts; python_version >= "3.13"'
"$venv/bin/python" - <<'EOF'
import tempfile
import wave

import audioread.rawread
import numpy as np

with tempfile.NamedTemporaryFile(suffix=".wav") as file:
    with wave.open(file.name, "wb") as writer:
        writer.setparams((1, 1, 8000, 3, "NONE", ""))
        writer.writeframes(bytes([64, 128, 192]))
    with audioread.rawread.RawAudioFile(file.name) as reader:
        samples = np.frombuffer(b"".join(reader), "<i2").tolist()
print(samples)
assert samples == [16384, -32768, -16384]
EOF
