#!/usr/bin/env bash
# PyAV 18.1.0, the wheel for Linux on x86-64.
#
# Expected: PyAV is BSD-3-Clause and its FFmpeg calls itself "LGPL version 3 or later", so the wheel holds nothing under the GPL.
# Seen: the wheel brings libx264 and libx265, which are GPL 2.0 or later, and its FFmpeg was configured with both. FFmpeg's own
# configure script refuses these two without --enable-gpl, which then says GPL.
#
# Output seen:
#   LGPL version 3 or later True True False
#   ['libx264', 'libx265']
#
# Whoever reads only audio does not use either, but a container or an application that holds the wheel passes them on.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet av==18.1.0
"$work/venv/bin/python" - <<'PYTHON'
from pathlib import Path

import av._core

codec = av._core.library_meta["libavcodec"]
flags = [flag in codec["configuration"] for flag in ("--enable-libx264", "--enable-libx265", "--enable-gpl")]
print(codec["license"], *flags)
folder = Path(av.__file__).parent.with_name("av.libs")
found = sorted({file.name.split("-")[0] for file in folder.iterdir() if file.name.startswith(("libx264", "libx265"))})
print(found)
assert codec["license"] == "LGPL version 3 or later" and flags == [True, True, False]
assert found == ["libx264", "libx265"]
PYTHON
