#!/usr/bin/env bash
# datasets 5.2.0: one file called test.wav, or a speaker called "dev", hides all other files.
# Behaviour: of the folders anna/, ben/ and dev/ audiofolder takes dev/ alone, as the split "validation"; of a.wav,
# b.wav and test.wav it takes test.wav alone, as "test". No warning.
# Surprising: a name with "test", "dev", "eval" or "val" as a word makes a split of its file; the files without such
# a word then belong to no split.
# Lost: nearly the whole data set. test-3.wav is what people call a trial recording.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q datasets==5.2.0
"$venv/bin/python" - <<'EOF'
import pathlib
import tempfile

from datasets import load_dataset_builder


def files(*names):
    folder = pathlib.Path(tempfile.mkdtemp())
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"RIFF")
    found = load_dataset_builder("audiofolder", data_dir=str(folder)).config.data_files
    return {str(split): [pathlib.Path(path).name for path in paths] for split, paths in found.items()}


seen = files("anna/1.wav", "ben/2.wav", "dev/3.wav"), files("a.wav", "b.wav", "test.wav"), files("a.wav", "b.wav")
print(seen)
assert seen[0] == {"validation": ["3.wav"]} and seen[1] == {"test": ["test.wav"]}
assert seen[2] == {"train": ["a.wav", "b.wav"]}
EOF
