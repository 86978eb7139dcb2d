#!/usr/bin/env bash
# simpleder 0.0.8: JER pairs speakers by their Jaccard index, pyannote.metrics by the time they share.
# Behaviour: the reference is a 0-10 s, b 11-14 s; the hypothesis 1 1-7 s, 2 0-15 s. JER is 0.600 of the one (a is 1,
# b is 2: the sum of the indices is largest) and 0.667 of the other (a is 2, b nobody: the time in common is longest).
# Surprising: both call it the Jaccard error rate under an optimal mapping, and say no more.
# Lost: figures of the two packages cannot be compared.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q simpleder==0.0.8 pyannote.metrics==4.2
"$venv/bin/python" - <<'EOF'
import simpleder
from pyannote.core import Annotation, Segment, Timeline
from pyannote.metrics.diarization import JaccardErrorRate


def annotation(turns):
    made = Annotation(uri="r")
    for number, (speaker, start, end) in enumerate(turns):
        made[Segment(start, end), number] = speaker
    return made


reference = [("a", 0, 10), ("b", 11, 14)]
hypothesis = [("1", 1, 7), ("2", 0, 15)]
everywhere = Timeline([Segment(0, 20)])
seen = (
    simpleder.JER(reference, hypothesis),
    JaccardErrorRate()(annotation(reference), annotation(hypothesis), uem=everywhere),
)
print(seen)
assert abs(seen[0] - 0.6) < 1e-9 and abs(seen[1] - 2 / 3) < 1e-9
EOF
