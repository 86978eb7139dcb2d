#!/usr/bin/env bash
# spy-der 0.4.1: a turn of length 0 lasts to the end of the recording.
# Behaviour: one speaker for 10 s, found exactly; a turn of B from 3.0 to 3.0 in the reference makes that a DER of
# 41.18 % of 17 s of reference (10 + 7). In the hypothesis it is 70 % of false alarm.
# Surprising: nothing lasts 0 s, so nothing should change; simpleder gives 0. A zero-length turn of a speaker who is
# talking changes nothing.
# Lost: the DER of a recording. Turns of "0.00" are what rounding to two decimals leaves of very short ones.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q spy-der==0.4.1
"$venv/bin/python" - <<'EOF'
import spyder

found = [("x", 0.0, 10.0)]
plain = spyder.DER([("A", 0.0, 10.0)], found)
with_turn = spyder.DER([("A", 0.0, 10.0), ("B", 3.0, 3.0)], found)
print(plain, with_turn)
assert plain.der == 0
assert abs(with_turn.duration - 17) < 1e-3 and abs(with_turn.der - 7 / 17) < 1e-3
EOF
