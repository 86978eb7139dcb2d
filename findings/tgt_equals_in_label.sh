#!/usr/bin/env bash
# tgt 1.5: a label with an equals sign is cut or dropped.
# Behaviour: of a long TextGrid's label "a = 3" nothing is read (the tier is empty), of "take = two" only "tak". No
# error.
# Surprising: the label is within quotation marks; textgrid 1.6.1, praatio 6.2.2 and pympi-ling 1.71 read it as it
# stands.
# Lost: transcripts with formulas, code or key = value notes, silently; saving writes the damage back.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q tgt==1.5 numpy
"$venv/bin/python" - <<'EOF'
import tempfile

import tgt

LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 5
tiers? <exists>
size = 1
item []:
    item [1]:
        class = "IntervalTier"
        name = "Anna"
        xmin = 0
        xmax = 5
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 5
            text = "{}"
"""


def labels(text):
    with tempfile.NamedTemporaryFile("w", suffix=".TextGrid") as file:
        file.write(LONG.format(text))
        file.flush()
        return [interval.text for interval in tgt.io.read_textgrid(file.name).tiers[0]]


seen = [labels("a is 3"), labels("a = 3"), labels("take = two")]
print(seen)
assert seen[0] == ["a is 3"] and seen[1] == [] and seen[2] == ["tak"]
EOF
