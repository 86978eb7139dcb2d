#!/usr/bin/env bash
# lhotse 1.33.0: an RTTM's channel 1 becomes the recording's second channel.
# Behaviour: a stereo recording whose RTTM has A on channel 1 and B on channel 2 gives, cut into mono, a first
# channel without anybody, a second one with A, and B nowhere.
# Surprising: RTTM counts channels from 1, lhotse's recordings from 0. For mono recordings the number is corrected,
# for others it is not.
# Lost: two-channel telephone calls: one side's turns lie on the other's audio, the other side's are gone.
set -euo pipefail
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q lhotse==1.33.0 soundfile==0.14.0 urllib3==2.5.0  # lhotse imports urllib3 without naming it
"$venv/bin/python" - <<'EOF'
import pathlib
import tempfile

import numpy as np
import soundfile
from lhotse import CutSet, Recording, RecordingSet, SupervisionSet

folder = pathlib.Path(tempfile.mkdtemp())
soundfile.write(folder / "r.wav", np.zeros((48000, 2)), 16000)
line = "SPEAKER r {} {} 1.00 <NA> <NA> {} <NA> <NA>\n"
(folder / "r.rttm").write_text(line.format(1, 0.5, "A") + line.format(2, 1.5, "B"))
recordings = RecordingSet.from_recordings([Recording.from_file(folder / "r.wav")])
cut = CutSet.from_manifests(recordings=recordings, supervisions=SupervisionSet.from_rttm(folder / "r.rttm"))[0]
seen = {mono.channel: [turn.speaker for turn in mono.supervisions] for mono in cut.to_mono()}
print(seen)
assert seen == {0: [], 1: ["A"]}
EOF
