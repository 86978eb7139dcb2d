# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Make the recordings in this folder from synthetic voices of `../demo_speech/test`, which no model here was trained on:
`anna.flac` and `ben.flac` hold one utterance each; `meeting.flac` two others at once, equally loud;
`conversation.flac` eight more, of these two and two other voices, who take turns and interrupt each other.

    python examples/audio/make.py
"""

from pathlib import Path

import numpy as np
import soundfile

from csc_hf.audio import SAMPLING_RATE, power
from csc_hf.data.utterances import stream_utterances
from csc_hf.files import escape_unprintable

FOLDER = Path(__file__).resolve().parent
ALONE = {"anna": "test-000-02", "ben": "test-001-04"}
TOGETHER = ("test-000-01", "test-001-00")
TURNS = {  # where they begin, in s
    "test-000-00": 0.5,
    "test-001-01": 5.0,
    "test-002-01": 11.0,
    "test-000-03": 15.0,
    "test-003-00": 21.5,
    "test-001-03": 25.0,
    "test-002-05": 31.0,
    "test-003-03": 35.0,
}


def main() -> None:
    escape_unprintable()
    data = FOLDER.parent / "demo_speech" / "test" / "*.parquet"
    waveforms = {row.id: row.decode().waveform for row in stream_utterances(data, "test", source_column=None).rows()}
    recordings = {name: waveforms[utterance] for name, utterance in ALONE.items()}
    length = min(len(waveforms[utterance]) for utterance in TOGETHER)
    talkers = [waveforms[utterance][:length] for utterance in TOGETHER]
    recordings["meeting"] = sum(talker / np.sqrt(power(talker)) for talker in talkers)
    starts = {utterance: round(start * SAMPLING_RATE) for utterance, start in TURNS.items()}
    end = max(start + len(waveforms[utterance]) for utterance, start in starts.items())
    recordings["conversation"] = np.zeros(end + SAMPLING_RATE // 2, np.float32)
    for utterance, start in starts.items():
        turn = waveforms[utterance]
        recordings["conversation"][start : start + len(turn)] += turn / np.sqrt(power(turn))
    for name, waveform in recordings.items():
        soundfile.write(FOLDER / f"{name}.flac", 0.5 * waveform / np.abs(waveform).max(), SAMPLING_RATE)


if __name__ == "__main__":
    main()
