# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The speech that ships: small, readable without FFmpeg, no voice in both splits, and as its card says."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Audio, load_dataset

FOLDER = Path(__file__).parents[2] / "examples" / "demo_speech"


@pytest.fixture(scope="module")
def splits() -> dict[str, list[dict]]:
    streams = load_dataset(str(FOLDER), streaming=True).cast_column("audio", Audio(decode=False))
    return {split: list(stream) for split, stream in streams.items()}


def test_it_is_small_enough_to_ship():
    assert sum(file.stat().st_size for file in FOLDER.glob("*/*.parquet")) <= 8_000_000


def test_streams_can_be_split_between_readers():
    for split in ("train", "test"):
        stream = load_dataset(str(FOLDER), split=split, streaming=True)
        assert isinstance(stream.features["audio"], Audio)
        assert stream.reshard().num_shards >= 6


def test_no_voice_and_no_recording_is_in_both_splits(splits):
    for key in ("speaker_id", "id"):
        train, test = ({row[key] for row in splits[split]} for split in ("train", "test"))
        assert train and test and not train & test
    everything = splits["train"] + splits["test"]
    assert len({row["id"] for row in everything}) == len({row["audio"]["bytes"] for row in everything})
    assert len({row["id"] for row in everything}) == len(everything)


def test_every_recording_is_speech_of_the_stated_length(splits):
    for row in splits["train"] + splits["test"]:
        waveform, sampling_rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
        assert sampling_rate == 16000 and waveform.ndim == 1
        assert len(waveform) / sampling_rate == pytest.approx(row["seconds"], abs=0.01)
        assert np.isfinite(waveform).all() and 0.01 < np.sqrt(np.mean(waveform**2)) and np.abs(waveform).max() < 1.1


def test_the_card_states_what_is_there(splits):
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for split, rows in splits.items():
        voices = Counter(row["speaker_id"] for row in rows)
        fewest, most = min(voices.values()), max(voices.values())
        per_voice = f"{fewest} to {most}" if fewest < most else f"{most}"
        minutes = sum(row["seconds"] for row in rows) / 60
        files = list((FOLDER / split).glob("*.parquet"))
        megabytes = sum(file.stat().st_size for file in files) / 1e6
        line = (
            f"| `{split}` | {len(voices)} | {len(rows)} ({per_voice} a voice) | {minutes:.1f} | {len(files)},"
            f" {megabytes:.1f} MB |"
        )
        assert line in card, line
    assert len({row["speaker_id"] for row in splits["train"]}) >= 50  # enough to draw mixtures from
    assert min(Counter(row["speaker_id"] for row in splits["test"]).values()) >= 2  # one to enrol, one to test
