#!/usr/bin/env bash
# pyannote.database 6.1.1: a comment in a UEM file becomes a recording.
# Behaviour: load_uem of the lines ";; scored 0 600" and "r 1 0.000 10.000" gives two recordings, ";;" and "r"; with the
# comment ";; file channel begin end" it raises ValueError.
# Surprising: ";;" begins a comment in NIST's formats, UEM and RTTM among them.
# Lost: UEM files with comments cannot be read, or have a recording that does not exist.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q pyannote.database==6.1.1
"$venv/bin/python" - <<'EOF'
import pathlib
import tempfile

from pyannote.database.util import load_uem

path = pathlib.Path(tempfile.mkdtemp()) / "a.uem"
path.write_text(";; scored 0 600\nr 1 0.000 10.000\n")
seen = sorted(load_uem(path))
print(seen)
assert seen == [";;", "r"]
path.write_text(";; file channel begin end\nr 1 0.000 10.000\n")
try:
    load_uem(path)
except ValueError as error:
    print(error)
else:
    raise AssertionError
EOF
