#!/usr/bin/env bash
# pyannote.database 6.1.1: a speaker's name that starts with a quotation mark swallows the turns after it.
# Behaviour: load_rttm gives this file's three turns as one, of a speaker called 'Bo <NA> <NA>\nSPEAKER r 1 4.0 …';
# no error, no warning.
# Surprising: RTTM has no quoting, a field ends at white space. The file is read with pandas.read_csv, whose quoting
# is on.
# Lost: every turn up to the next quotation mark; a nickname in quotation marks on both sides merely loses its marks.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q pyannote.database==6.1.1
"$venv/bin/python" - <<'EOF'
import tempfile

from pyannote.database.util import load_rttm

with tempfile.NamedTemporaryFile("w", suffix=".rttm") as file:
    for start, speaker in ((0.0, '"Bo'), (2.0, "Anna"), (4.0, 'Cy"')):
        file.write(f"SPEAKER r 1 {start} 1.0 <NA> <NA> {speaker} <NA> <NA>\n")
    file.flush()
    turns = list(load_rttm(file.name)["r"].itertracks(yield_label=True))
print(turns)
assert len(turns) == 1 and turns[0][2].startswith("Bo <NA>") and turns[0][2].endswith("Cy")
EOF
