#!/usr/bin/env bash
# pyannote.core 6.1.0: Annotation.discretize makes touching turns overlap.
# Behaviour: A speaks from 2 to 4 s, B from 4 to 10 s. At a resolution of 0.1 s over 0 to 10 s there are 99 frames,
# of which A has 21 instead of 20, B has 59 instead of 60, and one frame is overlap.
# Surprising: the times are multiples of the resolution; 100 frames, 20 and 60 of them speech, and no overlap would
# be exact.
# Lost: frame labels made this way teach and score one frame of overlap at every change of speaker, and the last
# frame is missing.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q pyannote.core==6.1.0
"$venv/bin/python" - <<'EOF'
from pyannote.core import Annotation, Segment

turns = Annotation()
turns[Segment(2, 4)] = "A"
turns[Segment(4, 10)] = "B"
frames = turns.discretize(support=Segment(0, 10), resolution=0.1).data
overlap = int((frames.sum(axis=1) > 1).sum())
print(frames.shape, frames.sum(axis=0), overlap)
assert frames.shape == (99, 2) and frames.sum(axis=0).tolist() == [21, 59] and overlap == 1
EOF
