# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Recordings that nobody plans for: who speaks when, and one voice, of a file and live, by a model that hears well."""

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset
from tone_talkers import RATE, ToneModel, talk, voice
from transformers import pipeline

import csc_hf.diarization
import csc_hf.extraction
from csc_hf import CSCConfig, CSCForPreTraining
from csc_hf.audio import decode_audio, read_blocks, resample
from csc_hf.diarization import DiarizationSettings
from csc_hf.enrolment import enrol
from csc_hf.evaluation.metrics import si_sdr
from csc_hf.feature_extraction_csc import high_pass
from csc_hf.long_audio import embed, open_recording, separate
from csc_hf.streaming import LiveDiarizer, LiveExtractor, join_turns

ENROLLED = 1
"""The talker whose voice is extracted."""


def model(model_class: type[ToneModel] = ToneModel) -> ToneModel:
    made = model_class()
    DiarizationSettings(chunk_seconds=5.0, overlap_seconds=2.5).store(made)
    return made


def diarize(recording, hearing: ToneModel) -> list[tuple[float, float, str]]:
    found = pipeline("speaker-diarization", model=hearing)(recording)
    assert found["num_speakers"] == len(found["embeddings"]) == len({turn["speaker"] for turn in found["turns"]})
    return [(turn["start"], turn["end"], turn["speaker"]) for turn in found["turns"]]


def diarize_live(recording, hearing: ToneModel) -> list[tuple[float, float, str]]:
    live = LiveDiarizer(hearing)
    pieces = [piece for block in blocks_of(recording) for piece in live.push(block)] + live.finish()
    return [(turn.start, turn.end, turn.speaker) for turn in join_turns(pieces)]


def extract(recording, hearing: ToneModel) -> np.ndarray:
    only = pipeline("target-speaker-extraction", model=hearing, threshold=0.5)
    only.enrolled = enrol(model(), [talk((ENROLLED, 0, 2), seconds=2)])
    found = only(recording)
    assert found["present"] == bool(found["source"].any())
    return found["source"]


def extract_by_blocks(recording, hearing: ToneModel) -> np.ndarray:
    return csc_hf.extraction.extract(hearing, recording, voice(ENROLLED), threshold=0.5).source


def extract_live(recording, hearing: ToneModel) -> np.ndarray:
    live = LiveExtractor(hearing, voice(ENROLLED), threshold=0.5)
    return np.concatenate([live.push(block) for block in blocks_of(recording)] + [live.finish()])


def blocks_of(recording):
    if isinstance(recording, np.ndarray):
        return np.split(recording, range(3 * RATE, len(recording), 3 * RATE))
    return read_blocks(recording)


WHO = pytest.mark.parametrize("who", [diarize, diarize_live])
VOICE = pytest.mark.parametrize("one_voice", [extract, extract_by_blocks, extract_live])
ALL = pytest.mark.parametrize("function", [diarize, diarize_live, extract, extract_by_blocks, extract_live])


@WHO
def test_one_sample_holds_at_most_one_turn(who):
    turns = who(np.full(1, 0.1, np.float32), model())
    assert len(turns) <= 1 and all(0 <= start < end <= 1 / RATE for start, end, _ in turns)


@VOICE
def test_the_voice_in_one_sample_is_one_sample(one_voice):
    source = one_voice(np.full(1, 0.1, np.float32), model())
    assert source.shape == (1,) and abs(source[0]) <= 0.1 + 1e-6


@pytest.mark.release
@ALL
def test_an_hour_of_silence(function):
    hearing = model()
    found = function(np.zeros(3600 * RATE, np.float32), hearing)
    assert not np.any(found)
    assert len(found) == (3600 * RATE if isinstance(found, np.ndarray) else 0)
    assert hearing.lengths == [], "the model is not asked"


@WHO
def test_one_talker(who):
    turns = who(talk((0, 1, 4), (0, 5, 12), seconds=13), model())
    np.testing.assert_allclose([times[:2] for times in turns], [(1, 4), (5, 12)], atol=0.05)
    assert {name for *_, name in turns} == {"speaker_1"}


@VOICE
@pytest.mark.parametrize("talker", [ENROLLED, 0])
def test_one_talker_is_let_through_or_not(one_voice, talker):
    recording = talk((talker, 1, 4), (talker, 5, 12), seconds=13)
    source = one_voice(recording, model())
    assert len(source) == len(recording)
    if talker == ENROLLED:
        assert si_sdr(source, recording) > 20
    else:
        assert not source.any()


@WHO
def test_six_at_once(who):
    """The model hears two of them in a window, others in the next: no more are named, and only while they speak."""
    turns = who(talk(*((talker, 1, 11) for talker in range(6)), seconds=12), model())
    assert 1 <= len({name for *_, name in turns}) <= 6
    assert min(start for start, *_ in turns) == pytest.approx(1, abs=0.05)
    assert max(end for _, end, _ in turns) == pytest.approx(11, abs=0.05)
    for moment in np.arange(0.0, 12.0, 0.25):
        assert sum(start <= moment < end for start, end, _ in turns) <= 4


@VOICE
@pytest.mark.parametrize("first", [0, 2])
def test_one_voice_of_six(one_voice, first):
    """The voice is what the model returns, never louder than the recording. Of six other people, nothing is left."""
    recording = talk(*((talker, 0, 10) for talker in range(first, first + 6)), seconds=10)
    source = one_voice(recording, model())
    assert len(source) == len(recording) and np.abs(source).max() <= 1
    if first > ENROLLED:
        assert not source.any()
    else:
        heard = talk((ENROLLED, 0, 10), seconds=10) * (source != 0)
        assert source.any() and si_sdr(source, heard) > 10


@ALL
@pytest.mark.parametrize("as_file", [False, True])
def test_nan_in_the_middle_is_named(function, as_file, tmp_path):
    recording = talk((0, 0, 6), (ENROLLED, 4, 12), seconds=12)
    recording[100_000] = np.nan
    soundfile.write(tmp_path / "broken.wav", recording, RATE, "FLOAT")
    message = "broken.wav' holds NaN" if as_file else r"sample 100000.* is nan|holds NaN"
    with pytest.raises(ValueError, match=message):
        function(str(tmp_path / "broken.wav") if as_file else recording, model())


def changes(path, recording: np.ndarray) -> type[ToneModel]:
    """A model at whose first look the file becomes another."""

    class Changes(ToneModel):
        def forward(self, **inputs):
            if not self.lengths:
                soundfile.write(path, recording, RATE)
            return super().forward(**inputs)

    return Changes


@ALL
def test_a_file_that_grows_is_read_as_it_was(function, tmp_path, monkeypatch):
    path = tmp_path / "growing.wav"
    long = talk((0, 0.5, 6), (ENROLLED, 5, 12), (0, 13, 35), seconds=36)
    short = long[: 14 * RATE]
    expected = function(short, model())
    soundfile.write(path, short, RATE)
    monkeypatch.setattr("csc_hf.audio.BLOCK_SAMPLES", 4 * RATE)
    found = function(str(path), model(changes(path, long)))
    assert soundfile.info(path).frames == len(long), "it has grown"
    assert len(found) == len(expected)
    if isinstance(expected, np.ndarray):
        np.testing.assert_allclose(found, expected, atol=1e-3)
    else:
        assert found == expected


# --- offsets ---------------------------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("offset", [0.01, -0.7])
def test_a_muted_microphone_with_an_offset_is_silence(function, offset):
    """Nobody speaks, and the model is not even asked."""
    heard = model()
    floor = 1e-5 * np.random.default_rng(0).standard_normal(10 * RATE).astype(np.float32)
    result = function(floor + np.float32(offset), heard)
    assert not np.any(result) and heard.lengths == []


@pytest.mark.parametrize("rate", [RATE, 44100])
def test_an_offset_changes_nothing(rate, tmp_path):
    """A file read by blocks, the same as an array, and live: the model hears the same samples with it and without."""
    recording = resample(talk((0, 0, 6), (ENROLLED, 4, 12), seconds=12), RATE, rate)
    soundfile.write(tmp_path / "a.wav", recording + 0.3, rate, "DOUBLE")
    expected, _ = high_pass(decode_audio({"array": recording, "sampling_rate": rate}), RATE)
    opened = open_recording(tmp_path / "a.wav", RATE)
    by_blocks = np.concatenate([opened.read(start, RATE) for start in range(0, opened.num_samples, RATE)])
    np.testing.assert_allclose(by_blocks, expected, atol=1e-6)
    whole = open_recording({"array": recording + 0.3, "sampling_rate": rate}, RATE)
    np.testing.assert_array_equal(whole.read(0, whole.num_samples), by_blocks)
    assert not open_recording({"array": np.full(rate, 0.3), "sampling_rate": rate}, RATE).read(0, RATE).any()

    class Hears(LiveExtractor):
        def _take(self, samples):
            heard.append(samples)
            super()._take(samples)

    heard: list[np.ndarray] = []
    live = Hears(model(), voice(ENROLLED), threshold=0.5)
    for block in read_blocks(tmp_path / "a.wav"):
        for part in np.array_split(block, 7):
            live.push(part)
            state = live.state_dict()
            live = Hears(model(), voice(ENROLLED), threshold=0.5)
            live.load_state_dict(state)
    np.testing.assert_array_equal(np.concatenate(heard), by_blocks)


@ALL
def test_an_offset_of_a_file_changes_no_answer(function, tmp_path):
    """Of a file with it and of an array without: by blocks, live and by pipelines."""
    recording = talk((0, 0.5, 6), (ENROLLED, 4, 12), seconds=13)
    soundfile.write(tmp_path / "a.wav", recording + 0.3, RATE, "DOUBLE")
    expected, found = function(recording, model()), function(str(tmp_path / "a.wav"), model())
    assert np.any(expected)
    if isinstance(expected, np.ndarray):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    else:
        assert found == expected


@pytest.mark.parametrize("offset", [0.001, 0.3])
def test_a_muted_microphone_is_no_voice_to_verify(offset):
    muted = np.full(3 * RATE, offset, np.float32)
    verify = pipeline("speaker-verification", model=CSCForPreTraining(CSCConfig.tiny()), threshold=0.5)
    with pytest.raises(ValueError, match="silent"):
        verify.enrol("anna", muted)
    speech = talk((0, 0, 2), seconds=2)
    (of_both, of_speech) = verify([(speech, muted), (speech, speech + np.float32(offset))])
    assert of_both["silent"] and of_both["decision"] is None
    assert not of_speech["silent"] and of_speech["score"] > 0.999


# --- forms -----------------------------------------------------------------------------------------------------------

FORMS = {
    "path": lambda path: str(path),
    "Path": lambda path: path,
    "bytes": lambda path: path.read_bytes(),
    "open file": lambda path: open(path, "rb"),
    "file in a dict": lambda path: {"bytes": path.read_bytes(), "path": None},
    "row of Common Voice": lambda path: {
        "path": "common_voice.mp3",
        "audio": {"path": None, "bytes": path.read_bytes()},
    },
    "array in a dict": lambda path: {"array": soundfile.read(path)[0], "sampling_rate": RATE},
    "array": lambda path: soundfile.read(path)[0],
    "tensor": lambda path: torch.from_numpy(soundfile.read(path)[0]),
    "list": lambda path: soundfile.read(path)[0].tolist(),
}

DOORS = {
    "separate": lambda audio: separate(model(), audio).sources,
    "embed": lambda audio: embed(model(), audio).embeddings,
    "diarize": lambda audio: np.array([turn.end for turn in csc_hf.diarization.diarize(model(), audio).turns]),
    "extract": lambda audio: extract_by_blocks(audio, model()),
    "enrol": lambda audio: enrol(model(), [audio]).embedding,
    "pipeline": lambda audio: extract(audio, model()),
}


@pytest.fixture(scope="module")
def talk_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("forms") / "talk.wav"
    soundfile.write(path, talk((ENROLLED, 0, 1), (0, 1, 2), seconds=2), RATE, "FLOAT")
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("door", DOORS)
def test_every_door_takes_every_form(door, form, talk_file):
    expected = DOORS[door](str(talk_file))
    assert np.any(expected)
    np.testing.assert_allclose(DOORS[door](FORMS[form](talk_file)), expected, atol=1e-5)


def test_a_dataset_and_its_rows_go_through_pipelines(talk_file):
    rows = Dataset.from_dict({"audio": [str(talk_file)] * 2, "path": ["a.mp3", "b.mp3"]})
    rows = rows.cast_column("audio", Audio(decode=False))
    turns = [found["turns"] for found in pipeline("speaker-diarization", model=model())(rows)]
    assert len(turns) == 2 and turns[0] and diarize(str(talk_file), model()) == diarize(rows[1], model())


def test_live_streams_take_arrays_tensors_and_numbers_and_refuse_bytes(talk_file):
    samples = soundfile.read(talk_file, dtype="float32")[0]
    expected = extract_live(samples, model())
    for form in (torch.from_numpy(samples), samples.tolist(), tuple(samples.tolist())):
        live = LiveExtractor(model(), voice(ENROLLED), threshold=0.5)
        np.testing.assert_allclose(np.concatenate([live.push(form), live.finish()]), expected, atol=1e-6)
    live = LiveExtractor(model(), voice(ENROLLED), threshold=0.5)
    for wrong in (samples.tobytes(), 0.5, "talk.wav", None):
        with pytest.raises(ValueError, match="a block is a .*give floats"):
            live.push(wrong)
