# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import importlib.util
import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from speech import make_rows, write
from tone_talkers import RATE, ToneModel, talk

from csc_hf import CSCConfig, CSCModel
from csc_hf.cli.recordings import EXTENSIONS
from csc_hf.data.conversations import LONGEST_PAUSE, ConversationConfig
from csc_hf.data.utterances import Utterance
from csc_hf.diarization import DiarizationSettings
from csc_hf.evaluation.conversations import AUDIO_ENDINGS, Recording, build_conversations, read_recordings
from csc_hf.evaluation.diarization import (
    _search,
    conditions_of,
    evaluate,
    fit_settings,
    format_report,
    frame_errors,
    score,
    summarise,
    summarise_by_condition,
)
from csc_hf.evaluation.diarizers import CSCDiarizer, OneSpeaker

ROOT = Path(__file__).resolve().parents[2]
TURNS = [(0.0, 4.0, "anna"), (3.0, 6.0, "ben"), (8.0, 10.0, "anna")]


def recording(turns=TURNS, seconds=10.0, name="one"):
    return Recording(name, lambda: np.zeros(round(seconds * RATE), np.float32), list(turns))


def errors_of(turns, reference=TURNS):
    return score(recording(reference), np.zeros(10 * RATE, np.float32), turns, 1.0)


def people(number=4, clips=3, seconds=3.0):
    """Talkers of `tone_talkers` as utterances: silence, tone, silence."""
    return [
        Utterance(f"t{talker}-{clip}", talk((talker, 0.5, seconds - 0.5), seconds=seconds), f"t{talker}", "studio")
        for talker in range(number)
        for clip in range(clips)
    ]


# --- conversations ---------------------------------------------------------------------------------------------------


DRY = ConversationConfig(turn_seconds=(1.0, 3.0), pause_seconds=(0.5, 1.0), join_utterances=True)


def converse(per_condition=1, seconds=20.0, num_talkers=(2, 3), overlaps=(0.0, 0.4), **options):
    """Without rooms, which take long to simulate."""
    clips = options.pop("clips", people())
    return build_conversations(clips, (), 1, per_condition, seconds, num_talkers, overlaps, replace(DRY, **options))


def test_conversations_are_a_function_of_the_seed():
    more, fewer = converse(per_condition=2), converse()
    assert list(more.recipes)[:4] == list(fewer.recipes) and len(more.recipes) == 8
    assert all(more.recipes[name] == fewer.recipes[name] for name in fewer.recipes), "more of them begin alike"
    assert more.sha256 != fewer.sha256 == converse().sha256
    for heard in fewer:
        waveform = heard.load()
        assert waveform.shape == (20 * RATE,) and np.abs(waveform).max() <= 1
        assert heard.num_speakers == int(heard.name[len("talkers")])
        assert ("overlap0-" in heard.name) == (heard.overlap == 0)


def test_silence_in_the_recordings_is_no_speech():
    """Utterances begin and end with 0.5 s of it. What is added to the voices changes nothing."""
    (heard,) = converse(num_talkers=(2,), overlaps=(0.0,), noise_probability=1.0)
    assert sum(end - start for start, end, _ in heard.reference) < 0.75 * 20
    for (_, end, _), (start, _, _) in itertools.pairwise(heard.reference):
        assert start - end >= LONGEST_PAUSE - 0.02
    (dry,) = converse(num_talkers=(2,), overlaps=(0.0,), noise_probability=0.0)
    assert dry.reference == heard.reference


def test_overlap_is_measured():
    assert recording().overlap == pytest.approx(1 / 8)
    assert recording([]).overlap == 0 and recording(TURNS[:1]).overlap == 0


def test_recordings_with_rttm(tmp_path):
    soundfile.write(tmp_path / "call.wav", np.zeros(800), 8000)
    rttm = tmp_path / "labels.rttm"
    rttm.write_text(
        "SPKR-INFO call 1 <NA> <NA> <NA> unknown anna <NA> <NA>\n"
        "SPEAKER call 1 0.50 1.50 <NA> <NA> anna <NA> <NA>\nSPEAKER call 1 1.0 2.0 <NA> <NA> ben <NA>\n"
    )
    (found,) = read_recordings(tmp_path, rttm)
    assert found.reference == [(0.5, 2.0, "anna"), (1.0, 3.0, "ben")] and found.load().shape == (1600,)
    assert read_recordings(tmp_path, tmp_path)[0].reference == found.reference
    for name in ("call.TextGrid", "call.eaf", "call.mdtm", "call", "._call.wav"):  # of annotators, and of macOS
        (tmp_path / name).write_text("no audio")
    assert len(read_recordings(tmp_path, rttm)) == 1
    soundfile.write(tmp_path / "call.flac", np.zeros(800), 8000)
    with pytest.raises(ValueError, match=r"2 audio files of the recording 'call' .*call\.flac, .*call\.wav"):
        read_recordings(tmp_path, rttm)
    rttm.write_text("")
    with pytest.raises(ValueError, match="no turns"):
        read_recordings(tmp_path, rttm)


def test_audio_is_what_the_command_line_takes_for_it():
    assert EXTENSIONS < AUDIO_ENDINGS


def test_white_space_in_the_name_of_a_file_is_an_underscore_in_rttm(tmp_path):
    soundfile.write(tmp_path / "my  call.wav", np.zeros(800), 8000)
    (tmp_path / "labels.rttm").write_text("SPEAKER my_call 1 0.5 1.5 <NA> <NA> anna <NA> <NA>\n")
    assert [found.name for found in read_recordings(tmp_path, tmp_path / "labels.rttm")] == ["my_call"]
    soundfile.write(tmp_path / "my_call.wav", np.zeros(800), 8000)
    with pytest.raises(ValueError, match="2 audio files of the recording 'my_call'"):
        read_recordings(tmp_path, tmp_path / "labels.rttm")


def test_recordings_are_scored_within_their_uem(tmp_path):
    audio, labels = tmp_path / "audio", tmp_path / "labels"
    for folder in (audio, labels):
        folder.mkdir()
    soundfile.write(audio / "call.wav", np.zeros(1600), 160)
    rttm = labels / "call.rttm"
    rttm.write_text("".join(f"SPEAKER call 1 {s} {e - s} <NA> <NA> {who} <NA> <NA>\n" for s, e, who in TURNS))
    assert read_recordings(audio, rttm)[0].scored is None
    for place in (audio, labels):
        (place / "x.uem").write_text("call 1 0 5\n")
        (found,) = read_recordings(audio, rttm)
        assert found.scored == [(0, 5)] and found.overlap == pytest.approx(1 / 5)
        assert read_recordings(audio, labels)[0].scored == found.scored
        assert read_recordings(audio, rttm, uem=[])[0].scored is None
        (place / "x.uem").rename(tmp_path / "elsewhere.uem")
    assert read_recordings(audio, rttm, [tmp_path / "elsewhere.uem"])[0].scored == [(0, 5)]
    (tmp_path / "elsewhere.uem").write_text("other 1 0 5\n")
    with pytest.raises(ValueError, match="no region of the recording 'call' in .*elsewhere.uem"):
        read_recordings(audio, rttm, [tmp_path / "elsewhere.uem"])


# --- errors ----------------------------------------------------------------------------------------------------------


def test_errors_are_split():
    perfect = errors_of([(0, 4, "x"), (3, 6, "y"), (8, 10, "x")])
    assert perfect.speech == 9 and perfect.missed == perfect.false_alarm == perfect.confusion == perfect.jaccard == 0
    assert (perfect.num_speakers, perfect.num_found) == (2, 2)
    one = errors_of([(0, 10, "x")])
    assert one.missed == 1 and one.false_alarm == 2 and one.confusion == 2 and one.num_found == 1
    nothing = errors_of([])
    assert nothing.missed == 9 and nothing.jaccard == 2 and nothing.num_found == 0
    # There is no collar: 0.1 s too much counts.
    assert errors_of([(0, 4, "x"), (3, 6.1, "y"), (8, 10, "x")]).false_alarm == pytest.approx(0.1)


def test_rates_are_of_all_speech_together():
    perfect, nothing = errors_of(TURNS), errors_of([])
    found = summarise([perfect, perfect, nothing], num_resamples=200)
    assert found["der"] == pytest.approx(1 / 3) and found["missed"] == pytest.approx(1 / 3)
    assert found["count_right"] == pytest.approx(2 / 3) and found["count_error"] == pytest.approx(2 / 3)
    low, high = found["der_interval"]
    assert low <= 1 / 3 <= high and high - low > 0.3
    assert found["times_real_time"] == pytest.approx(10)
    assert "der_interval" not in summarise([perfect], num_resamples=0)


def test_conditions():
    assert conditions_of(recording()) == ["all", "2 speakers", "overlap 5 % to 20 %"]
    assert conditions_of(recording(TURNS[:1])) == ["all", "1 speakers", "overlap < 5 %"]
    assert conditions_of(recording([(0, 4, "a"), (0, 4, "b")])) == ["all", "2 speakers", "overlap ≥ 20 %"]


def test_diarizers_are_compared_by_condition():
    talks = [(0, 0.5, 4.0), (1, 3.0, 6.0), (0, 8.0, 9.5)]
    reference = [(start, end, str(talker)) for talker, start, end in talks]
    heard = Recording("one", lambda: talk(*talks, seconds=10), reference)
    recordings, errors = evaluate(
        [heard], {"csc": CSCDiarizer(ToneModel(), DiarizationSettings()), "one": OneSpeaker()}
    )
    results = summarise_by_condition(recordings, errors, num_resamples=10)
    assert results["csc"]["all"]["der"] < 0.05 < results["one"]["all"]["der"]
    assert list(results["csc"]) == ["all", "2 speakers", "overlap 5 % to 20 %"]
    report = format_report(results)
    assert "2 speakers, 1 recordings" in report and report.count("one  ") == 3


def test_conditions_are_in_order():
    references = [TURNS, TURNS[:1], [(0, 4, "a"), (0, 4, "b")], [(0, 4, "a"), (4, 8, "b"), (8, 9, "c")]]
    recordings = [recording(turns) for turns in references]
    results = summarise_by_condition(recordings, {"right": [errors_of(turns, turns) for turns in references]}, 0)
    talkers = ["1 speakers", "2 speakers", "3 speakers"]
    assert list(results["right"]) == ["all", *talkers, "overlap < 5 %", "overlap 5 % to 20 %", "overlap ≥ 20 %"]


def test_frame_errors_are_those_of_the_best_pairs():
    reference = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 0]], bool)
    assert frame_errors(reference, reference[::-1]) == 0
    assert frame_errors(reference, np.zeros((0, 5), bool)) == 5
    assert frame_errors(reference, np.ones((1, 5), bool)) == 1 + 1 + 1  # one confused, one missed, one false alarm


def test_only_what_is_scored_counts():
    silence = np.zeros(10 * RATE, np.float32)
    part = replace(recording(), scored=[(3.5, 4.5), (7.0, 100.0)])
    found = score(part, silence, [(0, 4, "x"), (3, 6, "y"), (6, 7, "z"), (9, 10, "y")], 1.0)
    assert found.speech == pytest.approx(0.5 + 1 + 2) and found.seconds == 10
    assert (found.missed, found.confusion, found.false_alarm) == pytest.approx((1, 0.5, 0))
    assert (found.num_speakers, found.num_found) == (2, 2)
    assert conditions_of(replace(recording(), scored=[(4.0, 6.0)])) == ["all", "1 speakers", "overlap < 5 %"]
    with pytest.raises(ValueError, match="nothing of the recording 'one' is scored"):
        score(replace(recording(), scored=[(10.0, 20.0)]), silence, [], 1.0)


def test_speakers_who_are_not_scored_do_not_lower_the_jaccard_error():
    """Cleo speaks after the end of the audio, as in a reference of a longer cut of the recording."""
    errors = errors_of([], [*TURNS, (12.0, 14.0, "cleo")])
    assert errors.num_speakers == 2 and summarise([errors], 0)["jer"] == 1


def test_turns_of_one_speaker_that_overlap_are_one():
    reference = [(0.0, 4.0, "a"), (3.0, 6.0, "a"), (0.0, 4.0, "a"), (8.0, 10.0, "b")]
    assert recording(reference).overlap == 0
    for found in ([(0, 6, "x"), (8, 10, "y")], [(0, 5, "x"), (2, 6, "x"), (8, 10, "y")]):
        errors = errors_of(found, reference)
        assert errors.speech == 8 and errors.missed == errors.false_alarm == errors.confusion == errors.jaccard == 0


def test_recordings_in_which_nobody_speaks_are_counted_apart():
    alarmed, right = errors_of([(0, 2, "x")], []), errors_of([], [])
    for errors, rate in (([alarmed], 1), ([right], 0), ([right, alarmed], 1)):
        found = summarise(errors, num_resamples=20)
        assert found["der"] == found["jer"] == rate and found["missed"] == 0
    perfect = errors_of(TURNS)
    found = summarise([perfect, alarmed, right], num_resamples=20)
    assert found["der"] == found["jer"] == 0 and found["der_interval"][0] == 0
    assert (found["recordings"], found["without_speech"], found["alarms"]) == (3, 2, 1)
    assert found["count_right"] == pytest.approx(2 / 3)
    heard = [recording(), recording([]), recording([])]
    assert conditions_of(heard[1]) == ["all", "0 speakers"]
    report = format_report(summarise_by_condition(heard, {"ours": [perfect, alarmed, right]}, 0))
    assert "alarms without speech" in report and "1 of 2" in report
    assert "alarms" not in format_report(summarise_by_condition(heard[:1], {"ours": [perfect]}, 0))


# --- settings --------------------------------------------------------------------------------------------------------


def test_settings_are_learnt(monkeypatch):
    monkeypatch.setattr("csc_hf.evaluation.diarization.GRID", {"threshold": (0.5,), "min_pause_seconds": (0.2, 0.3)})
    plain = converse(seconds=30.0, overlaps=(0.0, 0.3), clips=people(5, 8), noise_probability=0.0)
    bad = DiarizationSettings(threshold=0.01, name_threshold=-1.0)
    learnt = fit_settings(ToneModel(), plain, bad)
    assert learnt.threshold == 0.5 and learnt.conversations_sha256 == plain.sha256
    assert learnt.error_rate < 0.1 and 0.2 < learnt.name_threshold <= 1


def test_settings_are_better_the_nearer_the_number_of_speakers(monkeypatch):
    """Of two settings that are both wrong about it, the one that is less wrong, for few more errors in time."""
    reference = np.zeros((2, 1000), bool)
    reference[0, :500], reference[1, 500:] = True, True

    def decide(evidence, settings):
        numbers = {0.5: 6, 0.3: 5, 0.4: 4}
        active = reference.copy()
        active[0, : {0.5: 50, 0.3: 40, 0.4: 50}[settings.threshold]] = False
        return None, active, SimpleNamespace(num_speakers=numbers[settings.threshold])

    monkeypatch.setattr("csc_hf.evaluation.diarization.decide", decide)
    monkeypatch.setattr("csc_hf.evaluation.diarization.GRID", {"threshold": (0.3, 0.4)})
    (_, rate), settings = _search([(None, reference, ["a", "b"])], DiarizationSettings(threshold=0.5))
    assert settings.threshold == 0.4 and rate == pytest.approx(0.05)


# --- the script ------------------------------------------------------------------------------------------------------


def load_script():
    specification = importlib.util.spec_from_file_location("script", ROOT / "examples" / "evaluate_diarization.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_script(tmp_path, capsys):
    write(tmp_path / "speech", make_rows(60))
    model = CSCModel(CSCConfig.tiny(frame_activity=True))
    model.save_pretrained(tmp_path / "model")
    for file in (tmp_path / "model").glob("*.py"):  # as in the model card of csc-small
        file.unlink()
        file.symlink_to(ROOT / "csc_hf" / file.name)
    options = [str(tmp_path / "model"), "one-speaker", "--data", str(tmp_path / "speech" / "*.parquet")]
    options += ["--talkers", "2", "--overlaps", "0", "--conversations", "1", "--seconds", "5", "--num_resamples", "5"]
    options += ["--fit_on", str(tmp_path / "speech" / "*.parquet"), "--store_settings", "--output_dir", str(tmp_path)]
    options += ["--latency", "1", "2"]
    script = load_script()
    with pytest.raises(SystemExit):
        script.main(options)  # one-speaker is no folder
    options.remove("one-speaker")
    script.main(options)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["recordings"][0]["name"] == "talkers2-overlap0-0"
    assert set(results["results"]) == {f"{tmp_path}/model{live}" for live in ("", " live, 1 s", " live, 2 s")}
    assert "all, 1 recordings" in capsys.readouterr().out
    stored = DiarizationSettings.load(CSCModel.from_pretrained(tmp_path / "model"))
    assert stored.conversations_sha256 == results["conversations_sha256"]


def test_script_says_that_parts_are_scored(tmp_path, capsys):
    soundfile.write(tmp_path / "call.wav", talk((0, 0.5, 3.0), (1, 4.0, 9.0), seconds=10), RATE)
    (tmp_path / "call.rttm").write_text("SPEAKER call 1 0.5 2.5 <NA> <NA> anna <NA> <NA>\n")
    (tmp_path / "call.uem").write_text("call 1 0 4\n")
    options = ["one-speaker", "--recordings", str(tmp_path), "--rttm", str(tmp_path / "call.rttm")]
    options += ["--num_resamples", "0", "--output_dir", str(tmp_path)]
    found = {}
    for uem in ([], ["--uem", str(tmp_path / "call.uem")], ["--uem", "none"]):
        load_script().main([*options, *uem])
        results = json.loads((tmp_path / "results.json").read_text())
        assert ("UEM" in capsys.readouterr().err) == (results["recordings"][0]["scored"] is not None)
        found[tuple(uem[1:])] = results["results"]["one-speaker"]["all"]["der"]
    assert list(found.values()) == pytest.approx([1.5 / 2.5, 1.5 / 2.5, 7.5 / 2.5])


@pytest.mark.parametrize(
    "options",
    [
        ["one-speaker"],
        ["one-speaker", "--data", "a", "--recordings", "b", "--rttm", "c"],
        ["one-speaker", "--recordings", "b"],
        ["one-speaker", "--data", "a", "--store_settings"],
        ["one-speaker", "--data", "a", "--uem", "b"],
    ],
)
def test_options_that_do_not_go_together(options, capsys):
    with pytest.raises(SystemExit):
        load_script().parse_args(options)
    assert "error" in capsys.readouterr().err
