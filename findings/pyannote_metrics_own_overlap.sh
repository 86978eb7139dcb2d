#!/usr/bin/env bash
# pyannote.metrics 4.2: a speaker's own overlapping turns are missed speech of a perfect hypothesis.
# Behaviour: the reference has A from 0 to 6 s and A from 5 to 10 s; the hypothesis has A from 0 to 10 s. DER is 0.0909
# (1 s missed of 11), JER is 0.
# Surprising: nobody speaks twice at a time, and the two rates of one package disagree on whether there is an error.
# Lost: annotations with such turns (two passes, two layers) have an error that no system can avoid.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q pyannote.metrics==4.2
"$venv/bin/python" - <<'EOF'
from pyannote.core import Annotation, Segment, Timeline
from pyannote.metrics.diarization import DiarizationErrorRate, JaccardErrorRate

reference, hypothesis = Annotation(uri="r"), Annotation(uri="r")
reference[Segment(0, 6), 0] = "A"
reference[Segment(5, 10), 1] = "A"
hypothesis[Segment(0, 10), 0] = "A"
everywhere = Timeline([Segment(0, 20)])
seen = [rate()(reference, hypothesis, uem=everywhere) for rate in (DiarizationErrorRate, JaccardErrorRate)]
print(seen)
assert abs(seen[0] - 1 / 11) < 1e-9 and seen[1] == 0
EOF
