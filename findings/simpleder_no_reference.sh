#!/usr/bin/env bash
# simpleder 0.0.8: where nobody speaks, any system is perfect.
# Behaviour: with an empty reference and 10 s of false alarm, DER is 0.0, although detailed=True counts the 10 s of
# false alarm.
# Surprising: the other libraries give 1, infinity or an error. A mean over recordings takes this one for the best.
# Lost: false alarms on recordings without speech (noise, music, a muted line) do not show in a mean DER.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q simpleder==0.0.8 scipy
"$venv/bin/python" - <<'EOF'
import simpleder

result = simpleder.DER([], [("A", 0.0, 10.0)], detailed=True)
print(result)
assert result["der"] == 0.0 and result["false_alarm"] == 10.0
EOF
