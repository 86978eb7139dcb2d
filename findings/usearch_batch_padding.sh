#!/usr/bin/env bash
# usearch 2.26.6: a batch's missing matches have key 0.
# Behaviour: three voices in the index and the five nearest asked for: for one query there are three matches; for a
# batch each row has five keys, of which the last two are 0, at a distance of NaN.
# Surprising: 0 is a valid key (here a person's), whereas faiss pads with -1; and one query is not padded at all.
# Only counts tells.
# Lost: person 0 is found twice in every row; a vote over the nearest counts them, wherever a store has fewer entries
# than are asked for.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q usearch==2.26.6 numpy
"$venv/bin/python" - <<'EOF'
import numpy as np
from usearch.index import Index

voices = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
index = Index(ndim=8, metric="cos", dtype="f32")
index.add(np.arange(3), voices)
one, batch = index.search(voices[1], 5), index.search(voices[:2], 5)
print(one.keys, batch.keys, batch.distances, batch.counts)
assert len(one.keys) == 3 and batch.keys.shape == (2, 5)
assert (batch.keys[:, 3:] == 0).all() and np.isnan(batch.distances[:, 3:]).all()
EOF
