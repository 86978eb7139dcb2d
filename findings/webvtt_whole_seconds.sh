#!/usr/bin/env bash
# webvtt-py 0.6.0: start_in_seconds and end_in_seconds are whole seconds.
# Behaviour: a cue from 3.250 to 3.900 s has start_in_seconds 3 and end_in_seconds 3: it lasts 0 s.
# Surprising: WebVTT has milliseconds, and the strings start and end keep them; the numbers are cut, not even
# rounded.
# Lost: up to a second of every turn, and short ones wholly. The strings have to be parsed instead.
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


cue = read("00:03.250 --> 00:03.900\nyes")
print(cue.start, cue.end, cue.start_in_seconds, cue.end_in_seconds)
assert (cue.start, cue.end) == ("00:00:03.250", "00:00:03.900")
assert cue.start_in_seconds == cue.end_in_seconds == 3
EOF
