#!/usr/bin/env bash
# hnswlib 0.8.0: automatic ids overwrite ids that were given.
# Behaviour: two vectors are added as 1 and 2, then two without ids. The index holds three: the new ones became 2 and
# 3, and the old 2 is gone.
# Surprising: the automatic ids start at the number of elements, not behind the highest id, and an id in use is
# updated without a word.
# Lost: an enrolled person, whose id now finds somebody else's voice.
# (The package is built from source: a C++ compiler is needed.)
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q hnswlib==0.8.0 numpy
"$venv/bin/python" - <<'EOF'
import hnswlib
import numpy as np

voices = np.eye(8, dtype=np.float32)
index = hnswlib.Index("l2", 8)
index.init_index(10)
index.add_items(voices[:2], [1, 2])
index.add_items(voices[2:4])
ids = sorted(int(i) for i in index.get_ids_list())
print(ids, np.array(index.get_items([2])))
assert ids == [1, 2, 3] and np.allclose(index.get_items([2]), voices[2])
EOF
