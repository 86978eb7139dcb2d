#!/usr/bin/env bash
# safetensors 0.8.0 (its NumPy side): a transposed array comes back with its values in other places.
# Behaviour: the transpose of ((0, 1, 2), (3, 4, 5)) is saved and loaded as ((0, 1), (2, 3), (4, 5)) instead of ((0,
# 3), (1, 4), (2, 5)).
# Surprising: shape and dtype are right, no error is raised; the torch side refuses tensors that are not contiguous.
# Lost: stored embeddings or weights that were transposed on the way. np.ascontiguousarray before saving avoids it.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q safetensors==0.8.0 numpy
"$venv/bin/python" - <<'EOF'
import numpy as np
from safetensors.numpy import load, save

array = np.arange(6, dtype=np.float32).reshape(2, 3).T
back = load(save({"a": array}))["a"]
print(array.tolist(), back.tolist())
assert back.shape == array.shape and back.tolist() == [[0, 1], [2, 3], [4, 5]]
assert np.array_equal(load(save({"a": np.ascontiguousarray(array)}))["a"], array)
EOF
