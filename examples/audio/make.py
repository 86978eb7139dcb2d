# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Make the recordings in this folder from two synthetic voices of `../demo_speech/test`, which no model here was trained
on: `anna.flac` and `ben.flac` hold one utterance each, `meeting.flac` two others at once, equally loud.

    python examples/audio/make.py
"""

from pathlib import Path

import numpy as np
import soundfile

from csc_hf.audio import SAMPLING_RATE, power
from csc_hf.data.utterances import stream_utterances

FOLDER = Path(__file__).resolve().parent
ALONE = {"anna": "test-000-02", "ben": "test-001-04"}
TOGETHER = ("test-000-01", "test-001-00")


def main() -> None:
    data = FOLDER.parent / "demo_speech" / "test" / "*.parquet"
    waveforms = {row.id: row.decode().waveform for row in stream_utterances(data, "test", source_column=None).rows()}
    recordings = {name: waveforms[utterance] for name, utterance in ALONE.items()}
    length = min(len(waveforms[utterance]) for utterance in TOGETHER)
    talkers = [waveforms[utterance][:length] for utterance in TOGETHER]
    recordings["meeting"] = sum(talker / np.sqrt(power(talker)) for talker in talkers)
    for name, waveform in recordings.items():
        soundfile.write(FOLDER / f"{name}.flac", 0.5 * waveform / np.abs(waveform).max(), SAMPLING_RATE)


if __name__ == "__main__":
    main()
