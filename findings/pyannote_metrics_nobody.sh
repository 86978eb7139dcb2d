#!/usr/bin/env bash
# pyannote.metrics 4.2: where nobody speaks and nobody is found, JER is 1.
# Behaviour: of an empty reference and an empty hypothesis DER is 0.0 and JER 1.0.
# Surprising: the hypothesis is right; the other rate says so.
# Lost: silent recordings count as entirely wrong in a mean of JER over recordings.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q pyannote.metrics==4.2
"$venv/bin/python" - <<'EOF'
from pyannote.core import Annotation, Segment, Timeline
from pyannote.metrics.diarization import DiarizationErrorRate, JaccardErrorRate

nobody, everywhere = Annotation(uri="r"), Timeline([Segment(0, 20)])
seen = [rate()(nobody, nobody, uem=everywhere) for rate in (DiarizationErrorRate, JaccardErrorRate)]
print(seen)
assert seen == [0, 1]
EOF
