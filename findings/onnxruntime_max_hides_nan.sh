#!/usr/bin/env bash
# onnxruntime 1.32.0 (CPU): ReduceMax and ArgMax pass over NaN.
# Behaviour: the maximum of (1, NaN, 3, 2) is 3 and its place is 2; onnx's own reference (1.23.2), NumPy and torch
# give NaN and 1.
# Surprising: the same graph with Relu or Clip keeps NaN, so it is not the runtime's rule.
# Lost: a check "is the peak finite?" that was exported with a model passes a broken recording, and a speaker is
# chosen from scores that hold NaN.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q onnx==1.23.2 onnxruntime==1.32.0
"$venv/bin/python" - <<'EOF'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

scores, seen = np.array([1, np.nan, 3, 2], np.float32), {}
for name, kind in (("ReduceMax", TensorProto.FLOAT), ("ArgMax", TensorProto.INT64)):
    node = helper.make_node(name, ["x"], ["y"], keepdims=0)
    ends = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None]), helper.make_tensor_value_info("y", kind, [])
    graph = helper.make_graph([node], "g", [ends[0]], [ends[1]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    runtime = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": scores})[0]
    seen[name] = float(runtime), float(ReferenceEvaluator(model).run(None, {"x": scores})[0])
print(seen)
assert seen["ReduceMax"][0] == 3 and np.isnan(seen["ReduceMax"][1]) and seen["ArgMax"] == (2, 1)
EOF
