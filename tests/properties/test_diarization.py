# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Diarization and live audio: any samples, in blocks of any length, give finite results or a ValueError."""

import numpy as np
import pytest
import torch
from hostile import RATE, damaged_files, waveforms
from hypothesis import given
from hypothesis import strategies as st

from csc_hf import CSCConfig, CSCForSpeechSeparation
from csc_hf.diarization import diarize
from csc_hf.enrolment import file_name
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
    options = {"latency_seconds": 0.5, "window_seconds": 1.0}
    if extracts:
        live = LiveExtractor(model, voice(model, 0), threshold=0.5, **options)
    else:
        live = LiveDiarizer(model, **options)
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


@given(
    st.text(min_size=1, max_size=20) | st.sampled_from(["../../evil", "..", "/etc/passwd", "C:\\x", "a\0b", "\x1b[2J"])
)
def test_a_name_leads_to_no_other_folder(tmp_path_factory, name):
    folder = tmp_path_factory.getbasetemp()
    written = file_name(name)
    assert (folder / f"{written}.wav").parent == folder and written.isprintable() and written[0] != "."
    assert name == written or "%" in written, "two names are two files"


def test_voices_are_written_into_their_folder(model, tmp_path):
    """Whatever the names of enrolled speakers."""
    rng = np.random.default_rng(0)
    enrolled = {"../../evil": voice(model, 0), "/etc/evil": voice(model, 1)}
    diarize(model, rng.normal(0, 0.1, 2 * RATE), enrolled=enrolled, num_speakers=2, voices=tmp_path / "a" / "voices")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and all(path.parent == tmp_path / "a" / "voices" for path in files)
