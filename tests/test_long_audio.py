# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Chunked separation: by a model whose separation is known, and by a real tiny one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from csc_hf import CSCConfig, CSCForSpeechSeparation, CSCModel, CSCSeparationOutput
from csc_hf.audio import decode_audio
from csc_hf.evaluation.metrics import si_sdr
from csc_hf.long_audio import cross_fade, embed, scale_to_mixture, separate

RATE = 16000


@pytest.fixture(autouse=True)
def no_high_pass(monkeypatch):
    """The voices here are the signs of samples, which a filter would mix. tests/test_hostile_recordings.py has others,
    and looks at what is filtered."""
    for module in ("long_audio",):
        monkeypatch.setattr(f"csc_hf.{module}.high_pass", lambda samples, rate, state=None: (samples, np.zeros(0)))


class SignSeparator(CSCForSpeechSeparation):
    """Separates exactly: speaker 0 is the positive part of the waveform, speaker 1 the negative one. Gives them in a
    random order and at a random level each time, and a slot without signal is idle, with a random embedding.

    `likeness` is the cosine of the two speakers' embeddings, `noise` what is added to them at random.
    """

    def __init__(self, likeness: float = 0.0, noise: float = 0.0, config: CSCConfig | None = None):
        super().__init__(config or CSCConfig.tiny())
        self.rng = np.random.default_rng(0)
        self.voices = np.zeros((2, self.config.speaker_embedding_size))
        self.voices[0, 0] = 1
        self.voices[1, :2] = likeness, np.sqrt(1 - likeness**2)
        self.noise = noise
        self.lengths = []  # of the chunks
        self.eval()

    @property
    def base_model(self):
        return self

    def forward(self, input_values):
        self.lengths.append(input_values.shape[1])
        order = self.rng.permutation(2)
        waveform = input_values[0].numpy()
        sources = np.stack([np.maximum(waveform, 0), np.minimum(waveform, 0)])[order]
        active = np.abs(sources).max(axis=1) > 0
        embeddings = self.voices[order] + self.noise * self.rng.standard_normal(self.voices.shape)
        embeddings[~active] = self.rng.standard_normal((int((~active).sum()), embeddings.shape[1]))
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        return CSCSeparationOutput(
            sources=torch.tensor(sources * self.rng.uniform(0.1, 10, (2, 1)), dtype=torch.float32)[None],
            source_embeddings=torch.tensor(embeddings, dtype=torch.float32)[None],
            source_activity=torch.tensor(np.where(active, 5.0, -5.0), dtype=torch.float32)[None],
        )


def conversation(*turns: tuple[float, str], seed: int = 0) -> np.ndarray:
    """Turns of (seconds, who speaks): "p" the positive voice, "n" the negative, "pn" both, "" nobody."""
    rng = np.random.default_rng(seed)
    parts = []
    for seconds, who in turns:
        noise = 0.1 * rng.standard_normal(int(seconds * RATE)).astype(np.float32)
        parts.append({"p": np.abs(noise), "n": -np.abs(noise), "pn": noise, "": 0 * noise}[who])
    return np.concatenate(parts)


def sorted_by_sign(sources: np.ndarray) -> np.ndarray:
    """Positive voice first."""
    return sources[np.argsort(-sources.sum(axis=1))]


def assert_separated(sources: np.ndarray, waveform: np.ndarray) -> None:
    """No sample of one voice in the other's track, and the levels are those of the mixture within 0.2 %."""
    expected = np.stack([np.maximum(waveform, 0), np.minimum(waveform, 0)])
    np.testing.assert_allclose(sorted_by_sign(sources), expected, atol=2e-3 * np.abs(waveform).max())


def test_what_fits_a_chunk_is_what_the_model_gives():
    torch.manual_seed(0)
    model = CSCForSpeechSeparation(CSCConfig.tiny(front_end="stft", initializer_range=0.3)).eval()
    for num_samples in (1, 10, 400, RATE):
        waveform = torch.randn(num_samples)
        with torch.no_grad():
            expected = model(waveform[None])
        found = separate(model, waveform, chunk_seconds=1.0, overlap_seconds=0.2)
        activity = expected.source_activity[0].numpy()
        scaled = scale_to_mixture(expected.sources[0].numpy(), activity, waveform.numpy())
        assert np.array_equal(found.sources, scaled)
        if num_samples > 1:
            assert (si_sdr(scaled, expected.sources[0].numpy()) > 80).all(), "levels only"
        np.testing.assert_allclose(found.embeddings, expected.source_embeddings[0], atol=1e-6)
        assert np.array_equal(found.activity, activity)
        found = embed(model, waveform, chunk_seconds=1.0, overlap_seconds=0.2)
        assert found.sources is None
        np.testing.assert_allclose(found.embeddings, expected.source_embeddings[0], atol=1e-6)


def test_slots_at_random_do_not_swap():
    waveform = conversation((20, "pn"))
    model = SignSeparator(noise=0.2)
    assert_separated(separate(model, waveform, 2.0, 0.5).sources, waveform)
    assert len(model.lengths) == 13 and set(model.lengths) == {2 * RATE}


def test_embeddings_carry_speakers_over_a_pause():
    # The chunks of 2 s share 0.5 s, all of which is silent here, and beyond it: only voices tell who goes on.
    waveform = conversation((4, "pn"), *[(3, ""), (4, "pn")] * 5)
    assert_separated(separate(SignSeparator(noise=0.1), waveform, 2.0, 0.5).sources, waveform)
    with pytest.raises(AssertionError):
        assert_separated(separate(SignSeparator(likeness=1.0), waveform, 2.0, 0.5).sources, waveform)


def test_the_overlap_decides_where_voices_are_alike():
    waveform = conversation((20, "pn"))
    assert_separated(separate(SignSeparator(likeness=1.0), waveform, 2.0, 0.5).sources, waveform)


def test_an_idle_slot_does_not_take_a_place():
    # One voice, then the other, with silence between; the slot that is idle meanwhile has a random embedding.
    waveform = conversation((5, "p"), (4, ""), (5, "n"), (4, ""), (5, "p"), (4, "pn"), (5, "n"))
    for seed in range(5):
        model = SignSeparator(likeness=0.3, noise=0.02)
        model.rng = np.random.default_rng(seed)
        found = separate(model, waveform, 2.0, 0.5)
        assert_separated(found.sources, waveform)
        assert (found.activity == 5).all()
        order = np.argsort(-found.sources.sum(axis=1))
        assert np.diag(found.embeddings[order] @ model.voices.T).min() > 0.95


def test_embedding_alone_follows_speakers():
    waveform = conversation((6, "p"), (6, "pn"), (6, "n"), (6, "pn"))
    model = SignSeparator(noise=0.05)
    found = embed(model, waveform, 2.0, 0.5)
    assert np.sort((found.embeddings @ model.voices.T).max(axis=1)).min() > 0.95
    assert abs(found.embeddings[0] @ found.embeddings[1]) < 0.3


def test_a_speaker_who_never_speaks_is_idle():
    found = separate(SignSeparator(), conversation((8, "p")), 2.0, 0.5)
    assert sorted(found.activity) == [-5, 5]
    assert np.abs(found.sources[found.activity.argmin()]).max() == 0


def test_chunks_of_a_real_model_are_in_their_place():
    # Its attention sees the chunk only, so its sources are others than those of the whole; how much so is the model's
    # matter. One sample out of place, and nothing of white noise would agree.
    torch.manual_seed(0)
    model = CSCForSpeechSeparation(CSCConfig.tiny(front_end="stft", initializer_range=0.3)).eval()
    waveform = 0.1 * torch.randn(10 * RATE)
    whole = separate(model, waveform, 10.0, 0.0).sources
    chunked = separate(model, waveform, 4.0, 1.0).sources
    assert si_sdr(chunked, whole).min() > 10


def test_a_file_with_another_rate_and_no_length(tmp_path):
    """A FLAC file at 8 kHz, written into a pipe."""
    waveform = conversation((7, "pn"))
    soundfile.write(tmp_path / "8k.flac", waveform[::2], RATE // 2)
    header = bytearray((tmp_path / "8k.flac").read_bytes())
    header[21:26] = bytes([header[21] & 0xF0, 0, 0, 0, 0])  # number of samples: unknown
    (tmp_path / "8k.flac").write_bytes(header)
    found = separate(SignSeparator(), tmp_path / "8k.flac", 2.0, 0.5)
    expected = separate(SignSeparator(), decode_audio(tmp_path / "8k.flac"), 2.0, 0.5)
    assert found.sources.shape == (2, 7 * RATE)
    np.testing.assert_allclose(found.sources, expected.sources, atol=1e-6)


def test_files_block_by_block(tmp_path):
    waveform = conversation((7, "pn"))
    stereo = np.stack([1.5 * waveform, 0.5 * waveform], axis=1)
    soundfile.write(tmp_path / "in.wav", stereo, RATE, subtype="FLOAT")
    outputs = [tmp_path / "0.wav", tmp_path / "1.wav"]
    found = separate(SignSeparator(), tmp_path / "in.wav", 2.0, 0.5, output_files=outputs)
    assert found.sources is None
    expected = separate(SignSeparator(), waveform, 2.0, 0.5).sources
    written = np.stack([soundfile.read(path, dtype="float32")[0] for path in outputs])
    np.testing.assert_allclose(written, expected, atol=1e-6)


MEMORY = """
import sys
sys.path.insert(0, sys.argv[2])
import psutil
from test_long_audio import SignSeparator
from csc_hf.long_audio import separate
model = SignSeparator()
used = []  # after each chunk, in MB
model.register_forward_hook(lambda *_: used.append(psutil.Process().memory_info().rss / 1e6))
peaks = []
for minutes in (1, 2, 6):
    used.clear()
    outputs = [f"{sys.argv[1]}/out{i}.wav" for i in range(2)]
    separate(model, f"{sys.argv[1]}/{minutes}.wav", 4.0, 1.0, outputs)
    peaks.append(max(used))
print(peaks[2] - peaks[1])
"""


@pytest.mark.release
def test_memory_does_not_grow_with_length(tmp_path):
    for minutes in (1, 2, 6):
        soundfile.write(tmp_path / f"{minutes}.wav", conversation((60 * minutes, "pn")), RATE)
    settings = {"MALLOC_MMAP_THRESHOLD_": "100000", "MALLOC_TRIM_THRESHOLD_": "0"}  # what is free counts as free
    process = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | settings,
    )
    assert process.returncode == 0, process.stderr
    # Four more minutes are 15 MB of mixture, and 31 MB of sources. (The first minute warms the allocator up.)
    assert float(process.stdout) < 12
    assert soundfile.info(tmp_path / "out1.wav").frames == 6 * 60 * RATE


def test_scale():
    rng = np.random.default_rng(0)
    sources = rng.standard_normal((3, 1000)).astype(np.float32)
    levels = np.array([[30.0], [0.01], [-2.0]], np.float32)  # a separator may turn a source upside down
    scaled = scale_to_mixture(levels * sources, np.full(3, 9.0), sources.sum(axis=0))
    np.testing.assert_allclose(scaled, sources, atol=0.02)
    alike = sources[[0, 0]]
    np.testing.assert_allclose(scale_to_mixture(alike, np.array([9.0, 9.0]), sources[0]), alike / 2, rtol=1e-3)
    active, idle = scale_to_mixture(alike, np.array([9.0, -9.0]), sources[0])
    np.testing.assert_allclose(active, sources[0], rtol=2e-3)
    np.testing.assert_allclose(idle, 0 * sources[0], atol=2e-3)
    silent = np.zeros((2, 5), np.float32)
    assert np.array_equal(scale_to_mixture(silent, np.zeros(2), np.ones(5, np.float32)), silent)


def test_the_fade_adds_up_to_one():
    faded = cross_fade(np.full((2, 7), 3.0, np.float32), np.full((2, 10), 3.0, np.float32))
    np.testing.assert_allclose(faded, np.full((2, 10), 3.0))
    rising = cross_fade(np.zeros((1, 7), np.float32), np.ones((1, 10), np.float32))[0]
    assert (np.diff(rising) >= 0).all() and 0 < rising[0] < 0.2 and rising[6] < 1


def test_silence_stays_finite():
    torch.manual_seed(0)
    model = CSCForSpeechSeparation(CSCConfig.tiny()).eval()
    found = separate(model, np.zeros(3 * RATE), 1.0, 0.25)
    for values in (found.sources, found.embeddings, found.activity):
        assert np.isfinite(values).all()
    assert found.sources.shape == (2, 3 * RATE)


@pytest.mark.parametrize(
    ("waveform", "options", "message"),
    [
        (np.zeros(0, np.float32), {}, "no samples"),
        (np.zeros((2, 9), np.float32), {}, r"shape \(2, 9\)"),
        (np.zeros(9, np.int16), {}, "int16"),
        (np.array([0.0] * 40000 + [np.nan]), {}, "an array holds NaN or infinite samples, the first at 2.5000 s"),
        (np.zeros(9), {"chunk_seconds": 1.0, "overlap_seconds": 0.6}, "overlap_seconds=0.6"),
        (np.zeros(9), {"overlap_seconds": -0.1}, "overlap_seconds=-0.1"),
        (np.zeros(9), {"output_files": ["a.wav"]}, "1 output_files for the 2 slots"),
        ("missing.wav", {}, "missing.wav"),
    ],
)
def test_bad_input_is_named(waveform, options, message):
    model = CSCForSpeechSeparation(CSCConfig.tiny()).eval()
    with pytest.raises(ValueError, match=message):
        separate(model, waveform, **{"chunk_seconds": 2.0, "overlap_seconds": 0.5} | options)


def test_bad_models_are_named():
    config = CSCConfig.tiny()
    with pytest.raises(ValueError, match="CSCForSpeechSeparation is in training mode"):
        separate(CSCForSpeechSeparation(config).train(), np.zeros(9))
    with pytest.raises(ValueError, match="CSCModel does not separate"):
        separate(CSCModel(config).eval(), np.zeros(9))
