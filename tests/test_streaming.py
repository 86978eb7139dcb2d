# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Live diarization and extraction: with a model whose voices are known, and with a real tiny one."""

import gc
import io
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from test_long_audio import RATE, conversation
from transformers.utils import logging

from csc_hf import CSCConfig, CSCForSpeechSeparation, CSCSeparationOutput
from csc_hf.diarization import DiarizationSettings, diarize
from csc_hf.evaluation.metrics import si_sdr
from csc_hf.extraction import extract
from csc_hf.streaming import LiveDiarizer, LiveExtractor, join_turns, pcm_blocks

SETTINGS = DiarizationSettings(chunk_seconds=3.0, overlap_seconds=1.5)
WINDOW = {"window_seconds": 3.0}


@pytest.fixture(autouse=True)
def no_high_pass(monkeypatch):
    """The voices here are the signs of samples, which a filter would mix. tests/test_hostile_recordings.py has others,
    and looks at what is filtered."""
    for module in ("long_audio", "streaming"):
        monkeypatch.setattr(f"csc_hf.{module}.high_pass", lambda samples, rate, state=None: (samples, np.zeros(0)))


class KnownVoices(CSCForSpeechSeparation):
    """Knows four voices: the loud and the quiet samples, positive and negative. Its slots are the two voices of a
    window with the most samples, in random order."""

    def __init__(self, noise: float = 0.0):
        super().__init__(CSCConfig.tiny(frame_activity=True))
        self.rng = np.random.default_rng(0)
        self.voices = np.eye(4, self.config.speaker_embedding_size)
        self.noise = noise
        self.num_calls = 0
        self.eval()

    @property
    def base_model(self):
        return self

    separator = None

    def forward(self, input_values):
        self.num_calls += 1
        waveform = input_values[0].numpy()
        quiet = np.abs(waveform) < 0.1
        of_voice = [waveform > 0, waveform < 0, *(quiet & (sign * waveform > 0) for sign in (1, -1))]
        of_voice = np.stack([of_voice[0] & ~quiet, of_voice[1] & ~quiet, *of_voice[2:]])
        chosen = self.rng.permutation(np.argsort(-of_voice.sum(axis=1), kind="stable")[:2])
        sources = of_voice[chosen] * waveform
        stride = self.config.activity_stride
        frames = np.pad(of_voice[chosen], ((0, 0), (0, -len(waveform) % stride))).reshape(2, -1, stride).mean(axis=2)
        embeddings = self.voices[chosen] + self.noise * self.rng.standard_normal((2, self.voices.shape[1]))
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        return CSCSeparationOutput(
            sources=torch.tensor(sources, dtype=torch.float32)[None],
            source_embeddings=torch.tensor(embeddings, dtype=torch.float32)[None],
            source_activity=torch.tensor(np.where(sources.any(axis=1), 5.0, -5.0), dtype=torch.float32)[None],
            source_frame_activity=torch.tensor(np.where(frames > 0.3, 5.0, -5.0), dtype=torch.float32)[None],
        )


def talk(*turns: tuple[float, str], seed: int = 0) -> np.ndarray:
    """Turns of (seconds, who speaks): "p" and "n" are loud, "P" and "N" quiet, "pn" both, "" nobody."""
    rng = np.random.default_rng(seed)
    parts = []
    for seconds, who in turns:
        samples = rng.uniform(0.15, 0.3, int(seconds * RATE)).astype(np.float32)
        sign = {"p": 1, "n": -1, "": 0}.get(who.lower(), rng.choice([-1, 1], len(samples)))
        parts.append(samples * sign * (0.3 if who.isupper() else 1))
    return np.concatenate(parts).astype(np.float32)


# No more than two voices in any three seconds, which is as much as the models here see at a time.
MEETING = talk(
    (3.2, "p"), (0.7, ""), (2.5, "n"), (2, "pn"), (3, ""), (3, "P"), (2.5, "p"), (3, ""), (2, "N"), (2, "n")
)


def blocks(waveform: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Blocks of random sizes, empty ones among them."""
    ends = np.sort(rng.integers(0, len(waveform) + 1, 40))
    return np.split(waveform, np.concatenate([ends, ends[:3]])[np.argsort(np.concatenate([ends, ends[:3]]))])


def live_turns(live: LiveDiarizer, pieces_of: list[np.ndarray]):
    return join_turns([turn for block in pieces_of for turn in live.push(block)] + live.finish())


# --- extraction ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latency", [0.5, 2.0, 3.0])
def test_one_voice_is_let_through(latency):
    model = KnownVoices(noise=0.05)
    live = LiveExtractor(model, model.voices[1], threshold=0.5, latency_seconds=latency, **WINDOW)
    voice = np.concatenate([live.push(MEETING), live.finish()])
    expected = np.where(MEETING < -0.1, MEETING, 0)
    assert voice.dtype == np.float32 and len(voice) == len(MEETING)
    np.testing.assert_allclose(voice, expected, atol=2e-3 * np.abs(MEETING).max())
    assert live.best_score > 0.9


def test_who_is_absent_is_silent():
    model = KnownVoices()
    waveform = talk((4, "p"), (3, "pn"), (9, "n"))
    live = LiveExtractor(model, model.voices[2], threshold=0.5, **WINDOW)
    voice = np.concatenate([live.push(waveform), live.finish()])
    assert not voice.any() and not live.present and live.best_score < 0.1


def test_a_voice_does_not_clip_where_the_recording_does_not():
    class Loud(KnownVoices):
        def forward(self, input_values):
            output = super().forward(input_values)
            noise = 50 * torch.randn(input_values.shape, generator=torch.Generator().manual_seed(0))
            output.sources = torch.stack([input_values + noise, -noise], dim=1)
            return output

    model = Loud()
    waveform = 3 * talk((6, "pn"))
    waveform[len(waveform) // 2 :] *= 2  # beyond full scale
    live = LiveExtractor(model, model.voices[0], threshold=0.5, latency_seconds=1.0, **WINDOW)
    voice = np.concatenate([live.push(waveform), live.finish()])
    assert 0.9 < np.abs(voice[: 2 * RATE]).max() <= 1
    assert 1 < np.abs(voice).max() <= np.abs(waveform).max() * (1 + 1e-6)


def test_a_file_gives_what_is_extracted_live(tmp_path):
    import soundfile

    model = KnownVoices()
    waveform = talk((7, "pn"), (10, ""), (4, "P"), (4, "p"))
    whole = extract(model, waveform, model.voices[0], threshold=0.5)
    live = LiveExtractor(model, model.voices[0], threshold=0.5)
    assert si_sdr(np.concatenate([live.push(waveform), live.finish()]), whole.source) > 30
    assert whole.present and whole.score == pytest.approx(1.0)
    soundfile.write(tmp_path / "in.wav", waveform, RATE, subtype="FLOAT")
    for name, tolerance in (("out.wav", 0), ("out.flac", 1e-4)):
        written = extract(model, tmp_path / "in.wav", model.voices[0], threshold=0.5, output_file=tmp_path / name)
        assert written.source is None and (written.score, written.present) == (whole.score, True)
        np.testing.assert_allclose(soundfile.read(tmp_path / name)[0], whole.source, atol=tolerance)
    absent = extract(model, talk((9, "n")), model.voices[0], threshold=0.5)
    assert not absent.present and not absent.source.any() and absent.score < 0.1
    silent = extract(model, np.zeros(RATE, np.float32), model.voices[0], threshold=0.5)
    assert (silent.score, silent.present) == (None, False) and len(silent.source) == RATE
    with pytest.raises(ValueError, match="no samples"):
        extract(model, np.zeros(0, np.float32), model.voices[0], threshold=0.5)


# --- diarization -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latency", [1.5, 2.0, 3.0])
def test_speakers_are_told_in_order_of_appearance(latency):
    live = LiveDiarizer(KnownVoices(noise=0.05), latency, settings=SETTINGS)
    turns = live_turns(live, [MEETING])
    found = [(turn.speaker, turn.start, turn.end) for turn in turns]
    expected = [("speaker_1", 0, 3.2), ("speaker_2", 3.9, 8.4), ("speaker_1", 6.4, 8.4), ("speaker_3", 11.4, 14.4)]
    expected += [("speaker_1", 14.4, 16.9), ("speaker_4", 19.9, 21.9), ("speaker_2", 21.9, 23.9)]
    assert [name for name, *_ in found] == [name for name, *_ in expected]
    np.testing.assert_allclose([times for _, *times in found], [times for _, *times in expected], atol=0.05)
    assert all(0.9 < turn.score <= 1 for turn in turns)
    assert list(live.embeddings) == ["speaker_1", "speaker_2", "speaker_3", "speaker_4"]
    np.testing.assert_allclose(np.stack(list(live.embeddings.values())), live.model.voices[[0, 1, 2, 3]], atol=0.1)


def test_live_turns_are_those_of_the_file():
    model = KnownVoices(noise=0.05)
    waveform = np.concatenate([MEETING, talk((3, ""), (3, "P"), (3, ""), (2, "pn"), (3, ""), seed=1), MEETING])
    live = live_turns(LiveDiarizer(model, settings=SETTINGS), [waveform])
    file = diarize(model, waveform, settings=SETTINGS).turns
    assert [turn.speaker for turn in live] == [turn.speaker for turn in file]
    for name in ("start", "end"):
        np.testing.assert_allclose([getattr(t, name) for t in live], [getattr(t, name) for t in file], atol=0.1)


def test_pieces_come_in_time_and_are_never_taken_back():
    live = LiveDiarizer(KnownVoices(noise=0.05), 2.0, settings=SETTINGS)
    told, last = [], 0.0
    for number in range(0, len(MEETING), RATE // 10):
        pieces = live.push(MEETING[number : number + RATE // 10])
        heard = min(number + RATE // 10, len(MEETING)) / RATE
        assert heard - live.seconds <= 2.0, "the latency"
        assert all(last <= piece.start < piece.end <= live.seconds for piece in pieces)
        last = live.seconds
        told += pieces
    assert last > 20 and len(told) > 15
    assert join_turns(told + live.finish()) == live_turns(
        LiveDiarizer(KnownVoices(noise=0.05), 2.0, settings=SETTINGS), [MEETING]
    )


def test_enrolled_speakers_have_their_names():
    model = KnownVoices(noise=0.05)
    live = LiveDiarizer(model, enrolled={"nils": model.voices[1], "absent": np.eye(1, 32, 9)[0]}, settings=SETTINGS)
    turns = live_turns(live, [MEETING])
    assert [turn.speaker for turn in turns] == "speaker_1 nils speaker_1 speaker_3 speaker_1 speaker_4 nils".split()
    assert list(live.embeddings) == ["speaker_1", "nils", "speaker_3", "speaker_4"]
    few = live_turns(LiveDiarizer(KnownVoices(), max_speakers=2, settings=SETTINGS), [MEETING])
    assert {turn.speaker for turn in few} == {"speaker_1", "speaker_2"}


def test_nobody_is_called_as_somebody_enrolled_is():
    model = KnownVoices(noise=0.05)
    live = LiveDiarizer(model, enrolled={"speaker_1": model.voices[1]}, settings=SETTINGS)
    turns = live_turns(live, [MEETING])
    assert [turn.speaker for turn in turns[:5]] == "speaker_2 speaker_1 speaker_2 speaker_3 speaker_2".split()
    assert list(live.embeddings) == ["speaker_2", "speaker_1", "speaker_3", "speaker_4"]


def test_who_is_enrolled_counts_among_the_speakers():
    model = KnownVoices()
    enrolled = {"pia": model.voices[0], "nils": model.voices[1]}
    with pytest.raises(ValueError, match="max_speakers=1 is below the number of enrolled speakers, 2"):
        LiveDiarizer(model, enrolled=enrolled, max_speakers=1, settings=SETTINGS)
    LiveDiarizer(model, enrolled=enrolled, max_speakers=2, settings=SETTINGS)


def test_a_state_goes_on_with_its_own_people_only():
    model = KnownVoices()
    one, renamed, other = (
        LiveDiarizer(model, enrolled=enrolled, settings=SETTINGS)
        for enrolled in ({"pia": model.voices[0]}, {"nils": model.voices[0]}, {"pia": model.voices[1]})
    )
    for live in (renamed, other, LiveDiarizer(model, settings=SETTINGS)):
        with pytest.raises(ValueError, match="the state is of enrolled={'pia': .*: use equal settings"):
            live.load_state_dict(one.state_dict())
    LiveDiarizer(model, enrolled={"pia": model.voices[0]}, settings=SETTINGS).load_state_dict(one.state_dict())
    pia, nils = (LiveExtractor(model, voice, threshold=0.5, **WINDOW) for voice in model.voices[:2])
    with pytest.raises(ValueError, match="enrolment="):
        nils.load_state_dict(pia.state_dict())


# --- both ------------------------------------------------------------------------------------------------------------


def make_live(kind: str, model=None, latency: float = 2.0):
    model = model or KnownVoices(noise=0.05)
    if kind == "diarizer":
        return LiveDiarizer(model, latency, settings=SETTINGS)
    voices = getattr(model, "voices", np.eye(2, model.config.speaker_embedding_size))
    return LiveExtractor(model, voices[0], threshold=0.3, latency_seconds=latency, **WINDOW)


def everything(live, pieces_of: list[np.ndarray]):
    answers = [live.push(block) for block in pieces_of] + [live.finish()]
    return answers, np.concatenate(answers) if isinstance(live, LiveExtractor) else sum(answers, [])


KINDS = pytest.mark.parametrize("kind", ["diarizer", "extractor"])


def assert_same(found, expected):
    if isinstance(expected, np.ndarray):
        assert np.array_equal(found, expected)
    else:
        assert found == expected


@KINDS
def test_the_sizes_of_blocks_do_not_matter(kind):
    torch.manual_seed(0)
    model = CSCForSpeechSeparation(CSCConfig.tiny(front_end="stft", initializer_range=0.3, frame_activity=True)).eval()
    waveform = conversation((3, "pn"), (1, ""), (2.3, "p"))
    _, expected = everything(make_live(kind, model), [waveform])
    assert len(expected)
    for seed in range(2):
        _, found = everything(make_live(kind, model), blocks(waveform, np.random.default_rng(seed)))
        assert_same(found, expected)


def everything_but_models(live) -> str:
    return repr({name: value for name, value in vars(live).items() if name not in ("model", "_light")})


@KINDS
def test_a_saved_state_goes_on(kind, tmp_path):
    pieces_of = blocks(MEETING, np.random.default_rng(0))
    first, second = make_live(kind), make_live(kind)
    answers, _ = everything(first, pieces_of)
    for number, block in enumerate(pieces_of[:25]):
        assert_same(second.push(block), answers[number])
    torch.save(second.state_dict(), tmp_path / "state.pt")
    third = make_live(kind)
    third.model.rng = second.model.rng  # what this model draws is no state of ours
    third.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert everything_but_models(third) == everything_but_models(second)
    second.push(pieces_of[25])  # changes nothing that was saved
    third.model.rng = np.random.default_rng(0)
    fourth = make_live(kind)
    for block in pieces_of[:25]:
        fourth.push(block)
    third.model.rng = fourth.model.rng
    for number in range(25, len(pieces_of)):
        assert_same(third.push(pieces_of[number]), answers[number])
    assert_same(third.finish(), answers[-1])
    ended = make_live(kind)
    ended.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="finish was called"):
        ended.push(MEETING)
    with pytest.raises(ValueError, match="use equal settings"):
        make_live(kind, latency=1.0).load_state_dict(torch.load(tmp_path / "state.pt"))


@KINDS
def test_minutes_of_silence_cost_nothing_and_change_nothing(kind):
    live = make_live(kind)
    live.push(talk((6, "p")))
    live.push(np.zeros(20 * RATE, np.float32))
    calls = live.model.num_calls
    answer = live.push(np.zeros(300 * RATE, np.float32))
    assert live.model.num_calls == calls
    assert not np.any(answer)
    answer = live.push(talk((6, "p")))
    assert live.present if kind == "extractor" else {turn.speaker for turn in answer} == {"speaker_1"}


@KINDS
def test_short_and_silent_recordings(kind):
    for waveform in (MEETING[:0], MEETING[:1], MEETING[: RATE // 2], np.zeros(RATE, np.float32)):
        live = make_live(kind)
        _, found = everything(live, [waveform])
        assert live.seconds == len(waveform) / RATE
        if kind == "extractor":
            assert len(found) == len(waveform)
        else:
            assert bool(found) == (len(waveform) > 1 and waveform.any())


@KINDS
def test_bad_blocks_are_named_and_left_out(kind):
    live, expected = make_live(kind), make_live(kind)
    assert_same(live.push(MEETING[: 3 * RATE]), expected.push(MEETING[: 3 * RATE]))
    for block, message in (
        (np.where(np.arange(RATE) == 7, np.nan, MEETING[:RATE]), f"sample {3 * RATE + 7} is nan"),
        (np.full(3, np.inf), "is inf"),
        (np.full(3, 1e300), r"is 1e\+300"),
        (np.zeros((2, 8)), r"shape \(2, 8\)"),
        (np.zeros(8, np.int16), "int16"),
    ):
        with pytest.raises(ValueError, match=message):
            live.push(block)
    assert_same(live.push(MEETING[3 * RATE :]), expected.push(MEETING[3 * RATE :]))
    live.finish()
    for call in (live.finish, lambda: live.push(MEETING)):
        with pytest.raises(ValueError, match="make a new object"):
            call()
    for latency in (0.0, 0.03, 100.0):
        with pytest.raises(ValueError, match=f"latency_seconds={latency}"):
            make_live(kind, latency=latency)


def test_models_that_cannot_do_it_are_named():
    model = CSCForSpeechSeparation(CSCConfig.tiny()).eval()
    with pytest.raises(ValueError, match="frame_activity"):
        LiveDiarizer(model)
    with pytest.raises(ValueError, match=r"shape \(7,\)"):
        LiveExtractor(model, np.ones(7), threshold=0.5)
    with pytest.raises(ValueError, match="does not separate"):
        LiveExtractor(model.csc.__class__(model.config).eval(), np.eye(32)[0], threshold=0.5).push(MEETING)
    with pytest.raises(ValueError, match="training mode"):
        LiveExtractor(model.train(), np.eye(32)[0], threshold=0.5).push(MEETING)


@KINDS
def test_the_state_does_not_grow(kind):
    live = make_live(kind)
    sizes = []
    for _ in range(3):
        live.push(MEETING)
        sizes.append(len(pickle.dumps(live.state_dict())))
    assert sizes[1] == sizes[2]


@pytest.fixture
def one_thread():
    """For many short calls: where something else uses the cores, threads that wait for each other take ten times as
    long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.release
@KINDS
def test_an_hour_of_blocks_takes_no_more_memory_than_minutes(kind, one_thread):
    live, minute = make_live(kind, latency=3.0), np.tile(MEETING, 3)[: 60 * RATE]
    peaks = []
    tracemalloc.start()
    try:
        for _ in range(60):
            gc.collect()  # cycles that Python frees when it likes are not kept by us
            tracemalloc.reset_peak()
            for start in range(0, len(minute), RATE // 10):
                live.push(minute[start : start + RATE // 10])
            peaks.append(tracemalloc.get_traced_memory()[1])
        live.finish()
    finally:
        tracemalloc.stop()
    assert live.seconds == 3600
    assert max(peaks[5:]) < peaks[4] + 200_000


# --- raw audio -------------------------------------------------------------------------------------------------------


class Dribbling(io.BytesIO):
    """A pipe that gives a few bytes at a time."""

    def read(self, size=-1):
        return super().read(min(size, 7))


def test_raw_pcm_from_a_pipe():
    samples = np.array([0, 16384, -32768, 32767, 5], "<i2")
    for stream in (io.BytesIO(samples.tobytes()), Dribbling(samples.tobytes())):
        found = list(pcm_blocks(stream, seconds=2 / RATE))
        assert [len(block) for block in found] == [2, 2, 1]
        assert found[0].dtype == np.float32
        assert np.array_equal(np.concatenate(found), samples / 32768)
    assert list(pcm_blocks(io.BytesIO(b""))) == []


def test_half_a_sample_at_the_end_is_told(caplog):
    """The whole samples before it are given first."""
    logging.get_logger("csc_hf").addHandler(caplog.handler)
    try:
        assert [len(block) for block in pcm_blocks(io.BytesIO(b"123"))] == [1]
    finally:
        logging.get_logger("csc_hf").removeHandler(caplog.handler)
    assert "ends within a sample" in caplog.text
