#!/usr/bin/env bash
# meeteval 0.4.3: whether RTTM's channel may be a letter depends on how the begin time is written.
# Behaviour: RTTM.parse reads channel "A" beside the begin time 4.0; beside 4 it raises ValueError, "invalid literal for
# int()". Channel 1 is the text "1" beside 4.0 and the number 1 beside 4.
# Surprising: a channel is a name in NIST's formats, and has nothing to do with the time.
# Lost: files with letters as channels and whole seconds are refused; lines of one file have channels that differ, "1" and 1.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q meeteval==0.4.3
"$venv/bin/python" - <<'EOF'
import meeteval

seen = {}
for channel in ("1", "A"):
    for begin in ("4.0", "4"):
        line = f"SPEAKER r {channel} {begin} 1.5 <NA> <NA> anna <NA> <NA>\n"
        try:
            seen[channel, begin] = meeteval.io.RTTM.parse(line)[0].channel
        except ValueError as error:
            seen[channel, begin] = str(error)
print(seen)
assert seen["1", "4.0"] == "1" and seen["1", "4"] == 1 and seen["A", "4.0"] == "A"
assert seen["A", "4"] == "invalid literal for int() with base 10: 'A'"
EOF
