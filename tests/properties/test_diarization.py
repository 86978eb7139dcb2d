# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Diarization and live audio: any samples, in blocks of any length, give finite results or a ValueError."""

import numpy as np
import pytest
import torch
from hostile import RATE, damaged_files, waveforms
from hypothesis import given
from hypothesis import strategies as st

from csc_hf import CSCConfig, CSCForSpeechSeparation
from csc_hf.diarization import DiarizationSettings, check_enrolled, diarize
from csc_hf.streaming import LiveDiarizer, LiveExtractor


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return CSCForSpeechSeparation(CSCConfig.tiny(front_end="stft", frame_activity=True)).eval()


def voice(model, number: int) -> np.ndarray:
    return np.eye(model.config.speaker_embedding_size, dtype=np.float32)[number]


@given(waveforms(max_samples=20_000), st.integers(-1, 3) | st.none(), st.booleans())
def test_diarization(model, waveform, num_speakers, with_enrolled):
    enrolled = {"anna": voice(model, 0), "ben": voice(model, 1)} if with_enrolled else None
    try:
        found = diarize(model, waveform, num_speakers=num_speakers, enrolled=enrolled)
    except ValueError as error:
        assert len(str(error)) > 15
        return
    assert np.isfinite(waveform).all()
    for turn in found.turns:
        assert 0 <= turn.start < turn.end <= len(waveform) / RATE + 1e-6 and np.isfinite(turn.score)
    assert all(np.isfinite(embedding).all() for embedding in found.embeddings.values())


@given(damaged_files())
def test_damaged_recordings(model, tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "recording"
    path.write_bytes(content)
    try:
        diarize(model, path)
    except ValueError as error:
        assert len(str(error)) > 15


@given(st.lists(waveforms(max_samples=9000), max_size=5), st.booleans())
def test_live(model, blocks, extracts):
    """A block that is refused is left out, and the stream goes on."""
    if extracts:
        live = LiveExtractor(model, voice(model, 0), threshold=0.5, latency_seconds=0.5, window_seconds=1.0)
    else:
        settings = DiarizationSettings(chunk_seconds=1.0, overlap_seconds=0.5)
        live = LiveDiarizer(model, latency_seconds=0.5, settings=settings)
    answers, samples = [], 0
    for block in blocks:
        if np.isfinite(block).all():
            answers.append(live.push(block))
            samples += len(block)
        else:
            with pytest.raises(ValueError, match="NaN|infinite|is inf|is -inf|is nan"):
                live.push(block)
    answers.append(live.finish())
    if extracts:
        assert sum(map(len, answers)) == samples
        assert all(np.isfinite(answer).all() for answer in answers)
    else:
        assert all(0 <= turn.start < turn.end <= samples / RATE + 1e-6 for answer in answers for turn in answer)


NAMES = ["../../evil", "..", ".", "", "/etc/passwd", "a/b", "a\0b", "\x1b[2J", "a\nb"]


@given(st.sampled_from(NAMES) | st.text(max_size=10))
def test_names_of_speakers_lead_to_no_other_folder(tmp_path_factory, name):
    folder = tmp_path_factory.getbasetemp()
    try:
        check_enrolled({name: np.eye(4, dtype=np.float32)[0]}, 4)
    except ValueError as error:
        assert repr(name) in str(error)
        return
    assert (folder / f"{name}.wav").parent == folder and name.isprintable() and name not in ("", ".", "..")


@given(st.sampled_from([np.nan, np.inf, 0.0, 1e30, -1.0]), st.lists(st.integers(0, 5), max_size=3).map(tuple))
def test_enrolled_embeddings_that_lie(value, shape):
    try:
        (checked,) = check_enrolled({"anna": np.full(shape, value)}, 4).values()
    except ValueError as error:
        assert "anna" in str(error)
        return
    assert checked.shape == (4,) and abs(np.linalg.norm(checked) - 1) < 1e-3
