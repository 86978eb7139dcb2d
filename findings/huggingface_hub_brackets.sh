#!/usr/bin/env bash
# huggingface_hub 2.4.0: a file named exactly in allow_patterns is left out if its name has brackets.
# Behaviour: of a[1].wav and a1.wav, allow_patterns=["a[1].wav"] takes a1.wav, ignore_patterns=["a[1].wav"] leaves
# out a1.wav and takes a[1].wav.
# Surprising: upload_folder and snapshot_download document file names as patterns; glob.escape is not named, and
# nothing says that a pattern matched nothing.
# Lost: recordings such as "call[2].wav" are missing from an upload or download that lists its files, without an
# error.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q huggingface_hub==2.4.0
"$venv/bin/python" - <<'EOF'
import glob

from huggingface_hub.utils import filter_repo_objects

names = ["a[1].wav", "a1.wav"]
allowed = list(filter_repo_objects(names, allow_patterns=["a[1].wav"]))
ignored = list(filter_repo_objects(names, ignore_patterns=["a[1].wav"]))
escaped = list(filter_repo_objects(names, allow_patterns=[glob.escape("a[1].wav")]))
print(allowed, ignored, escaped)
assert allowed == ["a1.wav"] and ignored == ["a[1].wav"] and escaped == ["a[1].wav"]
EOF
