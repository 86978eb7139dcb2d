#!/usr/bin/env bash
# webvtt-py 0.6.0: text has no tags, but keeps the escapes.
# Behaviour: "<v Ben>Smith &amp; Co, <i>5 &lt; 6</i>" has the text "Smith &amp; Co, 5 &lt; 6".
# Surprising: text is the plain text (tags are stripped, raw_text has the source), and WebVTT requires & and < to be
# escaped.
# Lost: "amp" and "lt" become words of the transcript; word error rates count them.
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


cue = read("00:03.250 --> 00:03.900\n<v Ben>Smith &amp; Co, <i>5 &lt; 6</i>")
print(cue.text)
assert cue.text == "Smith &amp; Co, 5 &lt; 6"
EOF
