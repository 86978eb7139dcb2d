#!/usr/bin/env bash
# scikit-learn 1.9.1: the cosine distance of a zero vector is 1 in one function and 0.5 in another.
# Behaviour: cosine_distances of (0, 0, 0) and (1, 1, 1) is 1.0; paired_cosine_distances of the same two is 0.5,
# closer than two orthogonal vectors.
# Surprising: one is said to be the other for pairs. (It is half the squared distance of the normalised vectors, and
# a zero vector stays zero.)
# Lost: in trials scored by pair, an empty embedding (silence, a failed file) lies as near to everybody as two
# vectors 60 degrees apart.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q scikit-learn==1.9.1
"$venv/bin/python" - <<'EOF'
import numpy as np
from sklearn.metrics.pairwise import cosine_distances, paired_cosine_distances

zero, ones = np.zeros((1, 3)), np.ones((1, 3))
seen = float(cosine_distances(zero, ones)[0, 0]), float(paired_cosine_distances(zero, ones)[0])
print(seen)
assert np.allclose(seen, (1.0, 0.5))
EOF
