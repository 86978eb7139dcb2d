# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Diarization: by a model that is known to hear right, and by real tiny ones."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from tone_talkers import RATE, ToneModel, talk, voice
from transformers import AutoConfig, pipeline

import csc_hf.diarization
from csc_hf import CSCConfig, CSCForSpeechSeparation, CSCModel
from csc_hf.diarization import (
    Diarization,
    DiarizationSettings,
    Turn,
    decide,
    diarize,
    find_turns,
    listen,
    listener,
    speaker_activity,
)
from csc_hf.evaluation.conversations import read_recordings
from csc_hf.feature_extraction_csc import high_pass
from csc_hf.long_audio import run

SETTINGS = DiarizationSettings(chunk_seconds=5.0, overlap_seconds=2.5)
MEETING = ((0, 0.5, 4.0), (1, 3.5, 8.0), (2, 8.5, 12.0), (3, 11.0, 15.0), (0, 15.5, 19.0), (2, 19.5, 23.0))


def found(recording, model=None, settings=SETTINGS, **options) -> Diarization:
    return diarize(model or ToneModel(), recording, settings=settings, **options)


def assert_turns(diarization: Diarization, turns, names="speaker_{}", within=0.05) -> None:
    """Who speaks when is right, to 50 ms; speakers are called by the order of their appearance."""
    order = list(dict.fromkeys(talker for talker, _, _ in turns))
    expected = [(names.format(order.index(talker) + 1), start, end) for talker, start, end in turns]
    assert [turn.speaker for turn in diarization.turns] == [name for name, _, _ in expected]
    for turn, (_, start, end) in zip(diarization.turns, expected, strict=True):
        assert turn.start == pytest.approx(start, abs=within) and turn.end == pytest.approx(end, abs=within)


def test_four_talkers_who_overlap():
    result = found(talk(*MEETING, seconds=24))
    assert_turns(result, MEETING)
    assert result.num_speakers == 4 and result.duration == 24.0
    for number, embedding in enumerate(result.embeddings.values()):
        assert embedding.dtype == np.float32 and np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
        assert embedding @ voice(number) > 0.95
    assert all(0.8 < turn.score <= 1 for turn in result.turns)


def test_the_number_of_speakers_can_be_given_or_bounded():
    recording = talk(*MEETING, seconds=24)
    assert found(recording, num_speakers=4).num_speakers == 4
    assert found(recording, num_speakers=3).num_speakers == 3
    assert found(recording, max_speakers=2).num_speakers == 2
    assert found(recording, min_speakers=1, max_speakers=9).num_speakers == 4
    # With a threshold at which all are one speaker, a bound still finds them.
    merged = DiarizationSettings(threshold=2.0, apart=0.0)
    assert found(recording, settings=merged).num_speakers == 1
    assert found(recording, settings=merged, min_speakers=4).num_speakers == 4
    assert_turns(found(recording, settings=merged, num_speakers=4), MEETING)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_speakers": 0}, "num_speakers=0"),
        ({"num_speakers": 2.5}, "num_speakers=2.5"),
        ({"max_speakers": True}, "max_speakers=True"),
        ({"num_speakers": 2, "max_speakers": 3}, "num_speakers=2 is exact"),
        ({"min_speakers": 3, "max_speakers": 2}, "min_speakers=3 is above max_speakers=2"),
        ({"enrolled": {"anna": np.ones(5)}}, "'anna' has shape"),
        ({"enrolled": {"anna": np.zeros(32)}}, "'anna' has shape"),
        ({"enrolled": {"../anna": voice(0)}}, "'../anna'"),
        ({"enrolled": {" ": voice(0)}}, "' ' is no name"),
        ({"enrolled": {"a\\b": voice(0)}}, "cannot be called"),
        ({"enrolled": {".anna": voice(0)}}, "'.anna'"),
        ({"enrolled": {"ä" * 101: voice(0)}}, "at most 200 bytes"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        found(talk((0, 0, 1), seconds=1), **options)


def test_enrolled_people_go_by_their_names():
    enrolled = {"dora": voice(3), "ben": 5 * voice(1), "nobody": voice(7)}
    result = found(talk(*MEETING, seconds=24), enrolled=enrolled)
    assert list(result.embeddings) == ["speaker_1", "ben", "speaker_3", "dora"]
    assert [turn.speaker for turn in result.turns][:2] == ["speaker_1", "ben"]


def test_nobody_is_called_as_somebody_else_is(tmp_path):
    """Numbers are passed over that are names of enrolled people, in RTTM as well."""
    enrolled = {"speaker_2": voice(0), "speaker 3": voice(3), "speaker_5": voice(7)}
    result = found(talk(*MEETING, seconds=24), enrolled=enrolled, voices=tmp_path)
    assert list(result.embeddings) == ["speaker_2", "speaker_4", "speaker_6", "speaker 3"]
    assert [turn.speaker for turn in result.turns][:2] == ["speaker_2", "speaker_4"]
    assert {path.stem for path in tmp_path.iterdir()} == result.embeddings.keys()
    assert {line.split()[7] for line in result.rttm("a").splitlines()} == {
        "speaker_2",
        "speaker_3",
        "speaker_4",
        "speaker_6",
    }


def test_slots_of_a_chunk_are_different_people():
    """Two whose voices are alike are told apart where they speak at the same time."""

    class Twins(ToneModel):
        def _hear(self, waveform):
            sources, embeddings, *rest = super()._hear(waveform)
            alike = embeddings + 0.9 * embeddings.sum(axis=0)
            return sources, alike / np.linalg.norm(alike, axis=1, keepdims=True), *rest

    recording = talk((0, 0.5, 9), (1, 1.5, 8), seconds=10)
    assert found(recording, Twins(), settings=DiarizationSettings(threshold=0.4)).num_speakers == 2
    together = DiarizationSettings(threshold=0.4, apart=0.0)
    assert found(recording, Twins(), settings=together).num_speakers == 1


# --- hostile recordings ----------------------------------------------------------------------------------------------


def test_one_sample():
    result = found(np.full(1, 0.1, np.float32))
    assert result.num_speakers <= 1 and all(turn.end <= result.duration for turn in result.turns)
    real = found(np.full(1, 0.1, np.float32), CSCModel(CSCConfig.tiny(frame_activity=True)).eval())
    assert all(turn.end <= real.duration for turn in real.turns)


def test_silence(tmp_path):
    model = ToneModel()
    result = found(np.zeros(600 * RATE, np.float32), model, voices=tmp_path, num_speakers=2)
    assert result.turns == [] and result.num_speakers == 0 and result.embeddings == {}
    assert model.lengths == [] and list(tmp_path.iterdir()) == []


def test_one_talker():
    turns = ((0, 1, 4), (0, 5, 20))
    assert_turns(found(talk(*turns, seconds=21)), turns)


def test_six_at_once():
    """The model hears two of them in a chunk, and they are given no wrong names."""
    result = found(talk(*((talker, 0, 10) for talker in range(6)), seconds=10))
    assert 1 <= result.num_speakers <= 6
    assert all(turn.end <= 10 for turn in result.turns)


def test_nan_in_the_middle_is_named(tmp_path):
    recording = talk(*MEETING, seconds=24)
    recording[200_000] = np.nan
    with pytest.raises(ValueError, match="an array holds NaN or infinite samples, the first at 12.5000 s"):
        found(recording)
    soundfile.write(tmp_path / "a.wav", recording, RATE, "FLOAT")
    with pytest.raises(ValueError, match="NaN"):
        found(tmp_path / "a.wav")


def test_a_file_that_grows_is_read_as_it_was(tmp_path):
    """A file that is still recorded: what was there when it was opened counts."""
    path = tmp_path / "growing.wav"
    soundfile.write(path, talk(*MEETING[:2], seconds=10), RATE)

    class Grows(ToneModel):
        def forward(self, **inputs):
            if len(self.lengths) == 1:
                soundfile.write(path, talk(*MEETING, seconds=24), RATE)
            return super().forward(**inputs)

    result = found(path, Grows())
    assert result.duration == 10.0 and result.num_speakers == 2
    assert all(turn.end <= 10.0 for turn in result.turns)


def test_a_file_that_shrinks_is_an_error(tmp_path):
    path = tmp_path / "cut.wav"
    soundfile.write(path, talk(*MEETING, seconds=24), RATE)

    class Cuts(ToneModel):
        def forward(self, **inputs):
            soundfile.write(path, talk(*MEETING[:1], seconds=5), RATE)
            return super().forward(**inputs)

    with pytest.raises(ValueError, match="384000 samples when it was opened"):
        found(path, Cuts(), voices=tmp_path / "voices")


def test_a_model_without_frame_activity_says_what_to_use():
    with pytest.raises(ValueError, match=r"frame_activity is not set.*frame_activity=True"):
        diarize(CSCModel(CSCConfig.tiny()).eval(), np.zeros(RATE, np.float32), settings=SETTINGS)


def test_other_wrong_input(tmp_path):
    with pytest.raises(ValueError, match="shape"):
        found(np.zeros((17, RATE), np.float32))
    with pytest.raises(ValueError, match="no samples"):
        found(np.zeros(0, np.float32))
    with pytest.raises(ValueError, match="training mode"):
        diarize(CSCModel(CSCConfig.tiny(frame_activity=True)).train(), np.ones(RATE, np.float32), settings=SETTINGS)
    with pytest.raises(ValueError, match="does not separate"):
        model = CSCModel(CSCConfig.tiny(frame_activity=True)).eval()
        model.frame_activity.bias.data.fill_(5.0)  # somebody speaks
        diarize(model, talk((0, 0, 1), seconds=1), settings=SETTINGS, voices=tmp_path)


# --- files, memory and length ----------------------------------------------------------------------------------------


def test_files_and_arrays_give_the_same(tmp_path):
    recording = talk(*MEETING, seconds=24)
    soundfile.write(tmp_path / "a.wav", recording, RATE, "FLOAT")
    by_array, by_path = found(recording), found(tmp_path / "a.wav")
    by_bytes = found((tmp_path / "a.wav").read_bytes())
    with open(tmp_path / "a.wav", "rb") as file:
        by_file = found(file)
    assert by_array.turns == by_path.turns == by_bytes.turns == by_file.turns


def test_long_recordings_are_clustered_by_parts(monkeypatch):
    recording = talk(*((t, start + 24 * n, end + 24 * n) for n in range(5) for t, start, end in MEETING), seconds=120)
    whole = found(recording)
    sizes = []
    tree = csc_hf.diarization._tree
    monkeypatch.setattr(csc_hf.diarization, "MAX_ITEMS", 20)
    noted = lambda items, *rest: sizes.append(len(items)) or tree(items, *rest)  # noqa: E731
    monkeypatch.setattr(csc_hf.diarization, "_tree", noted)
    by_parts = found(recording)
    assert max(sizes) <= 20 < len(whole.turns)
    assert by_parts.num_speakers == whole.num_speakers == 4
    assert [turn.speaker for turn in by_parts.turns] == [turn.speaker for turn in whole.turns]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.release
def test_an_hour_takes_little_memory(tmp_path):
    """From file to voices: five times the length takes a few MB more."""
    script = f"""
import re, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np, soundfile
from tone_talkers import RATE, ToneModel, talk
from csc_hf.diarization import DiarizationSettings, diarize

minutes = int(sys.argv[1])
turns = [(n % 4, 4.0 * n, 4.0 * n + 4.5) for n in range(15)]
minute = talk(*turns, seconds=60)
with soundfile.SoundFile("a.wav", "w", RATE, 1) as file:
    for _ in range(minutes):
        file.write(minute)
result = diarize(ToneModel(), "a.wav", voices="voices", settings=DiarizationSettings())
assert result.num_speakers == 4, result.num_speakers
# Not `ru_maxrss`: that survives `exec`, so a child begins with its parent's.
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
"""
    peaks = []
    for minutes in (12, 60):
        # One thread: where something else uses the cores, threads that wait for each other take many times as long.
        done = subprocess.run(
            [sys.executable, "-c", script, str(minutes)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        peaks.append(float(done.stdout))
    assert peaks[1] < 1000 and peaks[1] - peaks[0] < 150, peaks


# --- voices ----------------------------------------------------------------------------------------------------------


def test_voices(tmp_path):
    recording = talk(*MEETING, seconds=24)
    result = found(recording, voices=tmp_path, enrolled={"ben": voice(1)})
    names = list(result.embeddings)
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(names)
    voices = {name: soundfile.read(tmp_path / f"{name}.wav", dtype="float32")[0] for name in names}
    time = np.arange(len(recording)) / RATE
    for name, samples in voices.items():
        assert len(samples) == len(recording)
        speaks = np.zeros(len(recording), bool)
        for turn in result.turns:
            if turn.speaker == name:
                speaks |= (time >= turn.start) & (time < turn.end)
        assert not samples[~speaks].any(), "silent where absent"
        assert np.square(samples[speaks]).mean() > 0.8 * 0.1**2 / 2
    inside = np.zeros(len(recording), bool)
    for turn in result.turns:
        inside |= (time > turn.start + 0.02) & (time < turn.end - 0.02)
    heard, _ = high_pass(recording, RATE)
    np.testing.assert_allclose(sum(voices.values())[inside], heard[inside], atol=1e-3)
    alone = (time > 9) & (time < 10.5)
    np.testing.assert_allclose(voices["speaker_3"][alone], heard[alone], atol=1e-4)


@pytest.mark.parametrize("stride", [64, 512])
def test_voices_come_and_go_alike(stride):
    """Fades are those of the reversed recording, reversed, wherever a chunk begins. Frames may be shorter."""
    config = SimpleNamespace(
        activity_stride=stride, sampling_rate=RATE, num_activity_frames=lambda samples: -(-samples // stride)
    )
    num_frames = 40
    fade = round(csc_hf.diarization.FADE_SECONDS * RATE)
    active = np.zeros((2, num_frames), bool)
    active[0, 5:20], active[0, 30:], active[1, 12:31] = True, True, True
    gates = csc_hf.diarization._gates(active, 0, num_frames * stride, config)
    mirrored = csc_hf.diarization._gates(active[:, ::-1], 0, num_frames * stride, config)
    assert np.array_equal(gates, mirrored[:, ::-1])
    assert gates[0, 12 * stride] == 1 and gates[0, -1] == 1, "full within a turn, and where the recording ends"
    assert not gates[~active.repeat(stride, axis=1)].any()
    assert np.abs(np.diff(gates, prepend=0)[:, 1:]).max() < 1.01 / fade, "no clicks"
    for first in (4, 17, 19):
        part = csc_hf.diarization._gates(active, first * stride, 9 * stride, config)
        assert np.array_equal(part, gates[:, first * stride : (first + 9) * stride])


def test_voices_do_not_clip(tmp_path):
    class Overshoots(ToneModel):
        """Its sources cancel each other out."""

        def _hear(self, waveform):
            sources, *rest = super()._hear(waveform)
            other = 3 * np.sin(np.arange(len(waveform)))
            return np.stack([sources[0] + other, sources[1] - other]), *rest

    recording = talk((0, 0, 8), (1, 0, 8), seconds=8, level=0.4)
    found(recording, Overshoots(), voices=tmp_path)
    for path in tmp_path.iterdir():
        assert np.abs(soundfile.read(path)[0]).max() <= 1.0


def test_a_real_model_separates_the_slots_that_it_has_heard(tmp_path):
    """Both passes agree, and the sum is the recording where somebody speaks."""
    torch.manual_seed(0)
    model = CSCForSpeechSeparation(CSCConfig.tiny(frame_activity=True)).eval()
    recording = 0.1 * np.random.default_rng(0).standard_normal(7 * RATE).astype(np.float32)
    always = DiarizationSettings(chunk_seconds=3.0, overlap_seconds=1.0, onset=0.01, offset=0.01)
    result = diarize(model, recording, voices=tmp_path, settings=always)
    silent = diarize(model, recording, settings=always)
    assert [turn.start for turn in result.turns] == [turn.start for turn in silent.turns]
    total = sum(soundfile.read(path, dtype="float32")[0] for path in tmp_path.iterdir())
    np.testing.assert_allclose(total, high_pass(recording, RATE)[0], atol=1e-4)


def test_the_listener_shares_the_weights_and_leaves_the_model_alone():
    model = CSCForSpeechSeparation(CSCConfig.tiny(frame_activity=True)).eval()
    light = listener(model)
    waveform = torch.randn(1, RATE)
    with torch.no_grad():
        one, other = model(waveform), light(waveform)
    assert other.sources is None and model.base_model.separator is not None
    assert torch.equal(one.source_frame_activity, other.source_frame_activity)
    assert next(light.parameters()) is next(model.parameters())


def test_recordings_in_a_batch_are_as_alone():
    torch.manual_seed(0)
    model = CSCModel(CSCConfig.tiny(frame_activity=True)).eval()
    rng = np.random.default_rng(0)
    recordings = [0.1 * rng.standard_normal(n).astype(np.float32) for n in (40_000, 70_001, 9)]
    alone = [run(model, [listen(model, recording, 2.0, 1.0)])[0] for recording in recordings]
    together = run(model, [listen(model, recording, 2.0, 1.0) for recording in recordings], batch_size=3)
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.starts, other.starts) and np.array_equal(one.lengths, other.lengths)
        assert np.abs(one.activity.astype(int) - other.activity.astype(int)).max() <= 1
        np.testing.assert_allclose(one.embeddings, other.embeddings, atol=1e-5)


# --- turns -----------------------------------------------------------------------------------------------------------


def test_turns_have_hysteresis_and_least_lengths():
    settings = DiarizationSettings(onset=0.6, offset=0.4, min_pause_seconds=0.2, min_turn_seconds=0.3)
    probability = np.zeros(100)
    probability[10:20] = 0.5  # never above the onset
    probability[30:40], probability[35] = 0.5, 0.7  # above it once
    probability[41:50] = 0.9  # after a pause of one frame
    probability[60:62] = 0.9  # too short
    assert find_turns(probability, 0.1, settings) == [(30, 50)]
    assert find_turns(np.zeros(0), 0.1, settings) == []


def test_overlapping_chunks_are_averaged():
    evidence = run(ToneModel(), [listen(ToneModel(), talk((0, 0, 8), seconds=8), 4.0, 2.0)])[0]
    labels = np.where(evidence.activity.any(axis=2), 0, -1)
    sure = speaker_activity(evidence, labels, 1)
    assert sure.shape == (1, 250) and sure.min() > 0.98
    labels[1] = -1  # the middle one of three chunks hears nobody
    torn = speaker_activity(evidence, labels, 1)
    assert torn[0, 100] < sure[0, 100] and torn[0, 5] == sure[0, 5]


# --- formats ---------------------------------------------------------------------------------------------------------

RESULT = Diarization(
    [Turn(0.5, 2.0, "anna", 0.9), Turn(1.75, 3.0, "speaker_2", 0.8)],
    {"anna": np.ones(2, np.float32), "speaker_2": np.zeros(2, np.float32)},
    4.0,
)


def test_rttm(tmp_path):
    from pyannote.database.util import load_rttm

    (tmp_path / "a.rttm").write_text(RESULT.rttm("meeting"))
    loaded = load_rttm(tmp_path / "a.rttm")["meeting"]
    tracks = sorted((segment.start, segment.end, label) for segment, _, label in loaded.itertracks(yield_label=True))
    assert tracks == [(0.5, 2.0, "anna"), (1.75, 3.0, "speaker_2")]
    with pytest.raises(ValueError, match="'  ': give it letters"):
        RESULT.rttm("  ")


def test_white_space_in_rttm(tmp_path):
    """It becomes "_", by which the recording is found again; other forms keep the names, and no two become one."""
    turns = [Turn(0.5, 2.0, "Anna B", 0.9), Turn(1.75, 3.0, "speaker_2", 0.8)]
    embeddings = {"Anna B": np.ones(2, np.float32), "speaker_2": np.zeros(2, np.float32)}
    result = Diarization(turns, embeddings, 4.0)
    (tmp_path / "a.rttm").write_text(result.rttm("my call"))
    assert [line.split()[1::6] for line in result.rttm("my call").splitlines()] == [
        ["my_call", "Anna_B"],
        ["my_call", "speaker_2"],
    ]
    soundfile.write(tmp_path / "my call.flac", np.zeros(RATE), RATE)
    (recording,) = read_recordings(tmp_path, tmp_path / "a.rttm")
    assert recording.reference == [(0.5, 2.0, "Anna_B"), (1.75, 3.0, "speaker_2")]
    assert result.audacity().split("\t")[2].startswith("Anna B") and "Anna B" in result.to_dict()["embeddings"]
    with pytest.raises(ValueError, match="'Anna B' and 'Anna_B' are both 'Anna_B' in RTTM"):
        Diarization(turns, embeddings | {"Anna_B": np.ones(2, np.float32)}, 4.0).rttm("my call")


def test_rttm_that_others_misread(tmp_path):
    """spyder takes a turn of length 0 for one without an end; for pyannote's reader, a name that begins with a
    quotation mark goes on to the next one."""
    embeddings = {"anna": np.ones(2, np.float32)}
    line = Diarization([Turn(0.5, 0.5004, "anna", 0.9)], embeddings, 4.0).rttm("meeting")
    assert line.split()[3:5] == ["0.500", "0.001"]
    with pytest.raises(ValueError, match="the name '\"a\" b': rename it"):
        Diarization([], {'"a" b': np.ones(2, np.float32)}, 4.0).rttm("meeting")
    with pytest.raises(ValueError, match="the name '\"call\"': rename it"):
        RESULT.rttm('"call"')


def test_other_formats():
    assert RESULT.audacity() == "0.500\t2.000\tanna\n1.750\t3.000\tspeaker_2\n"
    values = json.loads(json.dumps(RESULT.to_dict()))
    assert values["num_speakers"] == 2 and values["turns"][0]["end"] == 2.0 and values["embeddings"]["anna"] == [1, 1]
    annotation = RESULT.annotation("meeting")
    assert annotation.labels() == ["anna", "speaker_2"] and annotation.uri == "meeting"
    assert annotation.get_overlap().duration() == pytest.approx(0.25)


# --- settings --------------------------------------------------------------------------------------------------------


def test_settings_are_saved_with_the_model(tmp_path, caplog):
    model = CSCModel(CSCConfig.tiny(frame_activity=True)).eval()
    assert DiarizationSettings.load(model) is None
    settings = DiarizationSettings(threshold=0.7, error_rate=0.1, conversations_sha256="abc")
    settings.store(model)
    model.save_pretrained(tmp_path)
    assert DiarizationSettings.load(CSCModel.from_pretrained(tmp_path)) == settings
    assert DiarizationSettings.load(AutoConfig.from_pretrained(tmp_path)) == settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_seconds": 0.0}, "chunk_seconds=0.0"),
        ({"chunk_seconds": 4.0, "overlap_seconds": 2.5}, "above half"),
        ({"onset": 0.3, "offset": 0.4}, "offset=0.4"),
    ],
)
def test_impossible_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DiarizationSettings(**options)


def test_settings_of_the_model_are_used():
    model = ToneModel()
    DiarizationSettings(threshold=2.0, apart=0.0).store(model)
    assert diarize(model, talk(*MEETING, seconds=24)).num_speakers == 1


def test_decisions_need_no_model():
    evidence = run(ToneModel(), [listen(ToneModel(), talk(*MEETING, seconds=24), 5.0, 2.5)])[0]
    labels, active, result = decide(evidence, SETTINGS)
    assert labels.shape == evidence.activity.shape[:2] and active.shape == (4, evidence.num_frames)
    assert_turns(result, MEETING)
    assert active.sum() == pytest.approx(sum(t.end - t.start for t in result.turns) / evidence.frame_seconds, abs=6)


# --- the pipeline ----------------------------------------------------------------------------------------------------


def tone_pipeline(**options):
    model = ToneModel()
    SETTINGS.store(model)
    return pipeline("speaker-diarization", model=model, **options)


def test_pipeline(tmp_path):
    recording = talk(*MEETING, seconds=24)
    diarizer = tone_pipeline()
    result = diarizer(recording)
    assert result.keys() == {"turns", "num_speakers", "embeddings"} and result["num_speakers"] == 4
    assert result["turns"][0].keys() == {"start", "end", "speaker", "score"}
    assert diarizer(recording, num_speakers=2)["num_speakers"] == 2
    assert tone_pipeline(max_speakers=3)(recording)["num_speakers"] == 3
    soundfile.write(tmp_path / "a.wav", recording, RATE, "FLOAT")
    by_path = diarizer(str(tmp_path / "a.wav"), voices=str(tmp_path / "voices"))
    assert by_path["turns"] == result["turns"]
    assert len(list((tmp_path / "voices").iterdir())) == 4


def test_pipeline_names_those_who_are_enrolled():
    diarizer = tone_pipeline()
    diarizer.enrol("ben", [talk((1, 0, 3), seconds=3), talk((1, 0, 2), seconds=2)])
    assert list(diarizer(talk(*MEETING, seconds=24))["embeddings"])[1] == "ben"
    with pytest.raises(ValueError, match="'mute' is silent, number 2"):
        diarizer.enrol("mute", [talk((1, 0, 2), seconds=2), np.zeros(RATE, np.float32)])
    with pytest.raises(ValueError, match="'' is no name"):
        diarizer.enrol("", talk((1, 0, 2), seconds=2))


def test_pipeline_takes_lists_with_a_batch_size():
    recordings = [talk(*MEETING[:count], seconds=24 - count) for count in (6, 1, 4)]
    alone = [tone_pipeline()(recording)["turns"] for recording in recordings]
    together = tone_pipeline()(recordings, batch_size=2)
    assert [result["turns"] for result in together] == alone
    assert list(tone_pipeline()(one for one in recordings))[2]["turns"] == alone[2]


def test_pipeline_refuses_what_cannot_be(tmp_path):
    diarizer = tone_pipeline()
    with pytest.raises(ValueError, match="a folder for one recording"):
        diarizer([talk(seconds=1)], voices=str(tmp_path))
    with pytest.raises(TypeError, match="speakers"):
        diarizer(talk(seconds=1), speakers=2)
    with pytest.raises(ValueError, match="num_speakers=0"):
        diarizer(talk(seconds=1), num_speakers=0)
    with pytest.raises(ValueError, match="frame_activity"):
        pipeline("speaker-diarization", model=CSCForSpeechSeparation(CSCConfig.tiny()))
    with pytest.raises(ValueError, match="no audio file"):
        diarizer(str(tmp_path / "missing.wav"))


def test_pipeline_loads_by_name(tmp_path):
    CSCForSpeechSeparation(CSCConfig.tiny(frame_activity=True)).save_pretrained(tmp_path)
    diarizer = pipeline("speaker-diarization", model=str(tmp_path))
    assert diarizer(np.zeros(RATE, np.float32)) == {"turns": [], "num_speakers": 0, "embeddings": {}}
