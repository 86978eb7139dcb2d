#!/usr/bin/env bash
# webvtt-py 0.6.0: a cue of two voices is the first voice's.
# Behaviour: of "<v Ben>Yes</v> <v Anna>no</v>", voice is "Ben" and text is "Yes no".
# Surprising: WebVTT allows several voice spans in a cue, and that is how overlapping talk is written; there is no
# list of voices.
# Lost: the second speaker, and what they said is given to the first. Only raw_text still has both.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q webvtt-py==0.6.0
"$venv/bin/python" - <<'EOF'
import tempfile

import webvtt


def read(cue):
    with tempfile.NamedTemporaryFile("w", suffix=".vtt") as file:
        file.write("WEBVTT\n\n" + cue + "\n")
        file.flush()
        return webvtt.read(file.name)[0]


cue = read("00:03.250 --> 00:03.900\n<v Ben>Yes</v> <v Anna>no</v>")
print(cue.voice, "|", cue.text, "|", cue.raw_text)
assert cue.voice == "Ben" and cue.text == "Yes no" and "Anna" in cue.raw_text
EOF
