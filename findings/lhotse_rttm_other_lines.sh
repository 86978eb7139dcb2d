#!/usr/bin/env bash
# lhotse 1.33.0: SupervisionSet.from_rttm takes lines that are not SPEAKER for speech.
# Behaviour: an RTTM of one SPEAKER, one NOSCORE and one LEXEME line gives three supervisions.
# Surprising: an RTTM line's first column says what it is. NOSCORE marks a region to leave out, LEXEME a word.
# Lost: where RTTM of NIST's evaluations is read, regions that are to be left out become turns, and each word is a
# turn beside the turn it lies in.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q lhotse==1.33.0 urllib3==2.5.0  # lhotse imports urllib3 without naming it
"$venv/bin/python" - <<'EOF'
import pathlib
import tempfile

from lhotse import SupervisionSet

path = pathlib.Path(tempfile.mkdtemp()) / "r.rttm"
path.write_text(
    "SPEAKER r 1 0.50 1.00 <NA> <NA> A <NA> <NA>\n"
    "NOSCORE r 1 2.00 3.00 <NA> <NA> <NA> <NA> <NA>\n"
    "LEXEME r 1 0.50 0.25 hello lex A 0.9 <NA>\n"
)
seen = sorted((turn.start, turn.duration, turn.speaker) for turn in SupervisionSet.from_rttm(path))
print(seen)
assert seen == [(0.5, 0.25, "A"), (0.5, 1.0, "A"), (2.0, 3.0, "<NA>")]
EOF
