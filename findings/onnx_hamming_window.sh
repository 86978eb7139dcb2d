#!/usr/bin/env bash
# ONNX's HammingWindow (onnxruntime 1.32.0, onnx 1.23.2) is not the Hamming window of NumPy, SciPy, torch and Kaldi.
# Behaviour: it starts at 0.0870, theirs at 0.0800; the largest difference is 0.007. HannWindow and BlackmanWindow
# agree to 1e-7.
# Surprising: the operator takes 25/46 = 0.5435 for the first coefficient (Hamming's exact one), all others the usual
# 0.54.
# Lost: features of a front end rebuilt with ONNX's operators differ from those the model was trained with, without
# any error.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q onnx==1.23.2 onnxruntime==1.32.0 scipy
"$venv/bin/python" - <<'EOF'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper
from scipy.signal import windows

differences = {}
for name in ("HannWindow", "BlackmanWindow", "HammingWindow"):
    node = helper.make_node(name, ["n"], ["y"], periodic=0)
    ends = (helper.make_tensor_value_info("n", TensorProto.INT64, []), helper.make_tensor_value_info("y", TensorProto.FLOAT, [None]))
    graph = helper.make_graph([node], "g", [ends[0]], [ends[1]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    window = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"n": np.array(10)})[0]
    differences[name] = float(np.abs(window - getattr(windows, name[:-6].lower())(10)).max())
print(differences)
assert differences["HannWindow"] < 1e-6 and differences["BlackmanWindow"] < 1e-6
assert 0.006 < differences["HammingWindow"] < 0.008
EOF
