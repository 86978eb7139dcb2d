# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import dataclasses
import itertools
import tracemalloc

import numpy as np
import pytest
import soundfile
from tones import RATE, SAMPLES, SECONDS, SOURCES, clip, clips_of, tone

from csc_hf.data.utterances import Row, Utterance
from csc_hf.evaluation.trial_files import read_trials, write_trials
from csc_hf.evaluation.trial_set import CONDITIONS, KINDS
from csc_hf.evaluation.trials import build_trials, decode_usable


def test_trials_depend_on_the_seed_and_not_on_the_order_of_the_clips():
    clips = clips_of()
    first, again = (
        build_trials(clips, seed=1, seconds=SECONDS),
        build_trials(iter(clips[::-1]), seed=1, seconds=SECONDS),
    )
    other = build_trials(clips, seed=2, seconds=SECONDS)
    assert first.sha256 == again.sha256 != other.sha256
    for recording, same in zip(first.recordings, again.recordings, strict=True):
        np.testing.assert_array_equal(recording.waveform, same.waveform)
    assert (first.talkers == again.talkers).all()
    assert (first.talkers != other.talkers).any()


def test_recordings_are_disjoint_joins_of_one_speaker_and_one_source():
    rng = np.random.default_rng(0)
    clips = []
    for speaker in range(4):
        for number in range(30):
            source = SOURCES[number % 2]  # every speaker in both sources
            length = int(rng.integers(300, 1.3 * SAMPLES))
            clips.append(clip(speaker, number, source, length))
    trials = build_trials(clips, seconds=SECONDS, recordings_per_speaker=8)
    by_id = {c.id: c for c in clips}
    used, num_joined = [], 0
    for recording in trials.recordings:
        speaker, _, parts = recording.id.partition(":")
        parts = [by_id[part] for part in parts.split("+")]
        assert {part.speaker for part in parts} == {speaker} == {recording.speaker}
        assert {part.source for part in parts} == {recording.source}
        joined = np.concatenate([part.waveform for part in parts])
        assert len(joined) - len(parts[-1].waveform) < SAMPLES <= len(joined)  # no clip too many
        np.testing.assert_array_equal(recording.waveform, joined[:SAMPLES])
        used += [part.id for part in parts]
        num_joined += len(parts) > 1
    assert len(used) == len(set(used))
    assert 10 < num_joined < 32
    assert len(trials.recordings) == 32
    assert trials.speakers.tolist() == sorted(8 * list(range(4)))


def test_speakers_with_too_little_speech_for_two_recordings_are_left_out_and_named():
    clips = clips_of(3, 2)
    clips += [clip(7, number, "studio", 1000) for number in range(6)]  # 6000 samples: one recording
    clips += [clip(8, 0, "studio", 5 * SAMPLES)]  # one clip: no second recording from the same one
    clips += [clip(9, number, "studio", 1600) for number in range(4)]  # just two recordings
    trials = build_trials(clips, seconds=SECONDS)
    assert trials.speakers_left_out == ("s7", "s8")
    assert {recording.speaker for recording in trials.recordings} == {"s0", "s1", "s2", "s9"}


def test_interferers_are_of_the_same_source_where_possible_and_change_from_recording_to_recording():
    clips = clips_of(10, 4)  # five speakers a source
    clips += [clip(20, number, "alone") for number in range(4)]
    trials = build_trials(clips, seconds=SECONDS)
    assert (trials.talkers[:, 0] == np.arange(44)).all()
    interferers_of = {}
    for target, interferer in trials.talkers:
        target, interferer = trials.recordings[target], trials.recordings[interferer]
        assert target.speaker != interferer.speaker
        assert target.source == "alone" or target.source == interferer.source
        interferers_of.setdefault(target.speaker, set()).add(interferer.speaker)
    assert {len(interferers) for interferers in interferers_of.values()} == {4}


def test_speakers_of_unknown_source_get_any_interferer():
    trials = build_trials(clips_of(8, 4, ["studio", None]), seconds=SECONDS)
    pairs = [[trials.recordings[i].source for i in pair] for pair in trials.talkers]
    assert {interferer for target, interferer in pairs if target == "studio"} == {"studio"}
    assert {interferer for target, interferer in pairs if target is None} == {"studio", None}


def test_unknown_sources_are_within_no_source():
    trials = build_trials(clips_of(sources=[None]), seconds=SECONDS)
    assert not any((condition.within_source >= 0).any() for condition in trials.conditions.values())


def test_no_more_audio_is_held_than_the_recordings_need():
    def stream(order):
        return (Utterance(f"c{i}", tone(i % 3, 1000, seed=i), f"s{i % 3}") for i in order)

    tracemalloc.start()
    forward = build_trials(stream(range(900)), seconds=SECONDS, recordings_per_speaker=3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 900 * 4000 / 4  # bytes; 36 clips are needed
    shuffled = build_trials(stream(np.random.default_rng(0).permutation(900)), 0, SECONDS, 3)
    assert forward.sha256 == shuffled.sha256
    assert forward.signals_sha256("mix0") == shuffled.signals_sha256("mix0")


def test_at_most_so_many_speakers_whatever_the_order():
    clips = clips_of(10, 4) + [clip(20 + number, 0, "studio") for number in range(5)]  # five without enough
    everybody = build_trials(clips, seconds=SECONDS)
    some = [build_trials(order, seconds=SECONDS, max_speakers=4) for order in (clips, clips[::-1])]
    assert some[0].sha256 == some[1].sha256
    chosen = {recording.speaker for recording in some[0].recordings}
    assert len(chosen) == 4 and len(some[0].recordings) == 16
    of_all = {recording.id: recording for recording in everybody.recordings}
    assert all(recording.id in of_all for recording in some[0].recordings)
    assert chosen != {r.speaker for r in build_trials(clips, 1, SECONDS, max_speakers=4).recordings}


# --- signals ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything():
    """Recordings of 1.25 s in all conditions."""
    clips = [clip(speaker, number, "studio", 20000) for speaker in range(5) for number in range(3)]
    # Half of each recording is quiet, so that loud and any stretches differ.
    fade = np.where(np.arange(20000) < 10000, 0.1, 1.0).astype(np.float32)
    clips = [dataclasses.replace(c, waveform=c.waveform * fade) for c in clips]
    conditions = [name for name in CONDITIONS if name != "short2"]
    return build_trials(clips, seconds=1.25, conditions=conditions)


def level(samples) -> float:
    return 10 * np.log10(np.mean(np.square(samples, dtype=np.float64)))


@pytest.mark.parametrize(("kind", "sir_db"), [("mix10", 10), ("mix5", 5), ("mix0", 0), ("mix-5", -5), ("mix3", 0)])
def test_mixtures_are_at_their_level(everything, kind, sir_db):
    for number in range(len(everything.recordings)):
        signal, sources = everything.signal(kind, number)
        assert signal.shape == (20000,) and signal.dtype == sources.dtype == np.float32
        np.testing.assert_allclose(signal, sources.sum(axis=0), atol=1e-6)
        np.testing.assert_array_equal(sources[0], everything.recordings[number].waveform)
        talkers = everything.talkers[number, : len(sources)]
        assert talkers[0] == number and len(set(everything.speakers[talkers])) == len(sources)
        for source, talker in zip(sources[1:], talkers[1:], strict=True):
            assert np.corrcoef(source, everything.recordings[talker].waveform)[0, 1] > 1 - 1e-6
            assert level(sources[0]) - level(source) == pytest.approx(sir_db, abs=1e-3)
    assert len(sources) == (3 if kind == "mix3" else 2)


def test_two_talkers_in_noise(everything):
    signal, sources = everything.signal("mix0+noise5", 0)
    np.testing.assert_array_equal(sources, everything.signal("mix0", 0)[1])
    noise = signal - sources.sum(axis=0)
    assert level(sources.sum(axis=0)) - level(noise) == pytest.approx(5, abs=1e-3)


@pytest.mark.parametrize(("kind", "share"), [("overlap25", 0.25), ("overlap50", 0.5)])
def test_an_overlap_is_the_loudest_stretch_of_another_talker(everything, kind, share):
    starts = set()
    for number in range(len(everything.recordings)):
        signal, (target, interferer) = everything.signal(kind, number)
        where = np.flatnonzero(interferer)
        assert len(where) == pytest.approx(share * 20000, abs=20)
        assert where[-1] - where[0] < share * 20000  # one stretch
        assert level(interferer[where]) == pytest.approx(level(target), abs=0.05)
        # Its loudest half is of one level.
        assert abs(level(interferer[where[:1000]]) - level(interferer[where[-1000:]])) < 1
        starts.add(where[0])
        np.testing.assert_allclose(signal, target + interferer, atol=1e-6)
    assert len(starts) > 5


@pytest.mark.parametrize(("kind", "snr_db"), [("noise10", 10), ("noise5", 5), ("noise0", 0)])
@pytest.mark.parametrize("recorded", [False, True])
def test_noise_is_at_its_level(everything, kind, snr_db, recorded):
    if recorded:
        rng = np.random.default_rng(0)
        noise = [
            Utterance("long", rng.normal(0, 0.1, 70000).astype(np.float32)),
            Utterance("short", np.ones(10, "f4")),
        ]
        noise.append(Utterance("silent", np.zeros(50000, np.float32)))
        clips = [Utterance(r.id, r.waveform, r.speaker) for r in everything.recordings]
        trials = build_trials(clips, seconds=1.25, conditions=[kind], noise=noise)
        assert {stretch.id for stretch in trials.noise} == {"long#0", "long#1", "long#2", "short#0"}
        assert trials.audio_left_out == {"silent": "is silent"}
        stretches = [noise[0].waveform[:60000].reshape(3, -1)[i] for i in range(3)] + [np.ones(20000)]
    else:
        trials = everything
    heard = []
    for number in range(len(trials.recordings)):
        signal, (target,) = trials.signal(kind, number)
        heard.append(signal - target)
        np.testing.assert_array_equal(target, trials.recordings[number].waveform)
        assert level(target) - level(heard[-1]) == pytest.approx(snr_db, abs=0.01)
        if recorded:
            likeness = [np.dot(s, heard[-1]) / np.linalg.norm(s) / np.linalg.norm(heard[-1]) for s in stretches]
            assert max(likeness) > 1 - 1e-4
    if not recorded:
        assert abs(np.corrcoef(heard[0], heard[1])[0, 1]) < 0.5  # a noise of its own for each
        np.testing.assert_array_equal(trials.signal(kind, 0)[0], trials.signal(kind, 0)[0])


def test_no_more_noise_is_held_than_there_are_recordings():
    noise = [Utterance(str(i), np.random.default_rng(i).normal(0, 1, 5 * SAMPLES).astype("f4")) for i in range(20)]
    one, other = (
        build_trials(clips_of(2, 3), seconds=SECONDS, conditions=["noise0"], noise=order)
        for order in (noise, noise[::-1])
    )
    assert len({stretch.id for stretch in one.noise}) == 6 and one.sha256 == other.sha256
    assert len({stretch.id.split("#")[0] for stretch in one.noise}) > 3  # of different recordings


def test_a_short_test_is_the_loudest_stretch(everything):
    signal, (target,) = everything.signal("short1", 0)
    recording = everything.recordings[0].waveform
    assert signal.shape == (16000,)
    np.testing.assert_array_equal(signal, target)
    np.testing.assert_array_equal(signal, recording[4000:])  # the quiet part comes first


def test_all_conditions_have_trials_and_those_that_differ_in_level_have_the_same(everything):
    assert set(everything.kinds) == {name for name in CONDITIONS if name not in ("short2", "mix0_mix0")}
    for name, condition in everything.conditions.items():
        assert condition.kinds == CONDITIONS[name]
        assert 0 < condition.is_target.sum() < len(condition.is_target)
    for name in ("mix10", "mix-5", "overlap25"):
        np.testing.assert_array_equal(everything.conditions[name].test, everything.conditions["mix0"].test)


# --- pairs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clean", "noise5", "mix0", "mix3", "mix0_mix0"])
def test_trials_are_all_the_pairs_that_the_protocol_allows(name):
    # Three others in each source and five recordings: some mixtures of a speaker have the same interferer.
    trials = build_trials(clips_of(8, 5), seconds=SECONDS, seed=3, conditions=[name])
    condition, speakers = trials.conditions[name], trials.speakers
    enrolments, tests = (trials.talkers[:, : KINDS[kind].talkers] for kind in condition.kinds)
    expected = {}
    for i, j in itertools.product(range(len(enrolments)), range(len(tests))):
        if i == j or (name in ("clean", "mix0_mix0") and j < i):
            continue
        enrolment, test = speakers[enrolments[i]], speakers[tests[j]]
        if enrolment[0] == test[0]:
            if not set(enrolment[1:]) & set(test[1:]):
                expected[i, j] = True
        elif not set(enrolment) & set(test):
            expected[i, j] = False
    pairs = zip(condition.enrolment.tolist(), condition.test.tolist(), strict=True)
    assert dict(zip(pairs, condition.is_target.tolist(), strict=True)) == expected
    assert len(condition.enrolment) == len(expected)
    assert 0 < sum(expected.values()) < len(expected)
    sources = np.array([recording.source for recording in trials.recordings])
    within = sources[condition.enrolment] == sources[condition.test]
    np.testing.assert_array_equal(condition.within_source >= 0, within)
    numbers = {source: number for number, source in enumerate(sorted(set(sources.tolist())))}
    of_enrolment = np.array([numbers[source] for source in sources[condition.enrolment]])
    np.testing.assert_array_equal(condition.within_source[within], of_enrolment[within])


def test_an_enrolment_of_several_recordings_is_of_one_speaker_and_tested_on_others():
    clips = clips_of(4, 5) + [clip(9, number, "studio") for number in range(2)]  # too few for an enrolment and a test
    trials = build_trials(clips, seconds=SECONDS, conditions=["clean", "mix0"], enrolment_recordings=2)
    assert trials.enrolments.shape == (8, 2) and len(set(trials.enrolments.ravel())) == 16
    assert (trials.speakers[trials.enrolments[:, 0]] == trials.speakers[trials.enrolments[:, 1]]).all()
    assert trials.speakers_left_out == ("s9",)
    for condition in trials.conditions.values():
        for enrolment, test, is_target in zip(condition.enrolment, condition.test, condition.is_target, strict=True):
            assert test not in trials.enrolments[enrolment]
            assert is_target == (trials.speakers[trials.enrolments[enrolment, 0]] == trials.speakers[test])
        assert condition.is_target.sum() == 8 * 3


def test_hash_covers_all_that_makes_a_trial_list():
    trials = build_trials(clips_of(), seconds=SECONDS, conditions=["clean", "noise0"])
    assert len(trials.sha256) == 64
    clean = trials.conditions["clean"]
    shorter = dataclasses.replace(
        clean, **{name: getattr(clean, name)[1:] for name in ("enrolment", "test", "is_target", "within_source")}
    )
    flipped = dataclasses.replace(clean, is_target=~clean.is_target)
    renamed = dataclasses.replace(trials.recordings[0], id="s0:other")
    variants = [
        dataclasses.replace(trials, seed=5),
        dataclasses.replace(trials, seconds=0.1),
        dataclasses.replace(trials, recordings=(renamed, *trials.recordings[1:])),
        dataclasses.replace(trials, noise=(renamed,)),
        dataclasses.replace(trials, talkers=trials.talkers[::-1]),
        dataclasses.replace(trials, enrolments=trials.enrolments[::-1]),
        dataclasses.replace(trials, conditions=trials.conditions | {"clean": shorter}),
        dataclasses.replace(trials, conditions=trials.conditions | {"clean": flipped}),
        build_trials(clips_of(), seconds=SECONDS, conditions=["clean", "noise5"]),
    ]
    assert len({variant.sha256 for variant in [trials, *variants]}) == 10


def test_the_hash_of_signals_covers_what_they_are_made_of_and_no_more():
    trials = build_trials(clips_of(), seconds=SECONDS, conditions=["mix3", "noise0"])
    louder = dataclasses.replace(trials.recordings[0], waveform=2 * trials.recordings[0].waveform)

    def changed(**fields):
        other = dataclasses.replace(trials, **fields)
        kinds = ("clean", "noise0", "mix0", "mix3")
        return [kind for kind in kinds if trials.signals_sha256(kind) != other.signals_sha256(kind)]

    assert len({trials.signals_sha256(kind) for kind in KINDS}) == len(KINDS)
    assert changed(conditions={}) == []
    assert changed(recordings=(louder, *trials.recordings[1:])) == ["clean", "noise0", "mix0", "mix3"]
    assert changed(noise=(louder,)) == ["noise0"]
    assert changed(seed=1) == ["clean", "noise0", "mix0", "mix3"]
    other_third = np.concatenate([trials.talkers[:, :2], trials.talkers[::-1, 2:]], axis=1)
    assert changed(talkers=other_third) == ["mix3"]


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [({"speaker": None}, "'s0-0' has no speaker"), ({"id": "s0-1"}, "rows 1 .* and 2 .* have the same id 's0-1'")],
)
def test_clips_that_no_trial_can_be_made_from_are_named(change, message):
    clips = clips_of()
    clips[0] = dataclasses.replace(clips[0], **change)
    with pytest.raises(ValueError, match=message):
        build_trials(clips, seconds=SECONDS)


def test_audio_that_is_of_no_use_is_left_out_and_named():
    clips = clips_of()
    bad = np.full(SAMPLES, np.nan, np.float32)
    quiet_start = np.append(np.zeros(SAMPLES), np.ones(SAMPLES)).astype(np.float32)
    for number, waveform in enumerate((bad, np.zeros(SAMPLES, np.float32), quiet_start)):
        clips.append(Utterance(f"bad{number}", waveform, f"s{number}", "studio"))
    trials = build_trials(clips, seconds=SECONDS)
    assert trials.audio_left_out == {
        "bad0": "holds NaN or infinite samples",
        "bad1": "is silent",
        "bad2": "is silent",
    }
    assert trials.sha256 == build_trials(clips_of(), seconds=SECONDS).sha256


def test_rows_that_cannot_be_used_are_left_out_and_named():
    rows = [Row("good", tone(0, 100, 0), "a"), Row("bad", b"no audio", "a"), Row("nobody", tone(1, 100, 0))]
    left_out = {}
    assert [utterance.id for utterance in decode_usable(rows, left_out)] == ["good"]
    assert list(left_out) == ["bad", "nobody"] and "cannot decode" in left_out["bad"]
    assert left_out["nobody"] == "no speaker"
    assert [utterance.id for utterance in decode_usable(rows, {}, needs_speaker=False)] == ["good", "nobody"]


def test_settings_that_give_no_trials_are_named():
    for options, message in (
        ({"recordings_per_speaker": 1}, "enrolment_recordings=1 must be at least 1, and recordings_per_speaker=1"),
        ({"enrolment_recordings": 0}, "enrolment_recordings=0"),
        ({"seconds": 0}, "seconds must be at least one sample"),
        ({"seconds": 1.0}, "0 of 10 speakers"),
        ({"conditions": ["clean", "rain"]}, "'rain'"),
        ({"conditions": []}, "choose some of clean"),
        ({"conditions": ["short1"]}, "'short1' cuts recordings of 0.2 s to 1 s"),
        ({"enrolment_recordings": 2}, "'mix0_mix0' enrols from one mixture"),
        ({"conditions": ["noise0"], "noise": []}, "nothing but silence"),
        ({"max_speakers": 1}, "1 of 10 speakers"),
    ):
        with pytest.raises(ValueError, match=message):
            build_trials(clips_of(), **{"seconds": SECONDS} | options)
    with pytest.raises(ValueError, match="at least 3 speakers"):
        build_trials(clips_of(2), seconds=SECONDS, conditions=["mix3"])
    with pytest.raises(ValueError, match="1 of 1 speakers"):
        build_trials(clips_of(1), seconds=SECONDS)
    with pytest.raises(ValueError, match="0 of 0 speakers"):
        build_trials([], seconds=SECONDS)


# --- files --------------------------------------------------------------------------------------------------------


def test_trials_written_and_read_are_the_same(tmp_path, monkeypatch):
    # Files are heard without what is below 20 Hz, which these clips hold.
    monkeypatch.setattr("csc_hf.evaluation.trial_files.high_pass", lambda waveform, rate: (waveform, None))
    trials = build_trials(clips_of(4), seconds=SECONDS, conditions=["clean", "mix0"])
    write_trials(tmp_path, trials)
    for name, condition in trials.conditions.items():
        lines = (tmp_path / f"{name}.txt").read_text().splitlines()
        assert len(lines) == len(condition.test)
        assert lines[0].split()[1].startswith("clean/") and lines[0].split()[2].startswith(f"{name}/")
        read = read_trials(tmp_path / f"{name}.txt", tmp_path)
        ((same_name, same),) = read.conditions.items()
        assert same_name == name and read.seconds is None
        np.testing.assert_array_equal(same.is_target, condition.is_target)
        for side in ("enrolment", "test"):
            kind = condition.kinds[side == "test"]
            for i, j in zip(getattr(condition, side), getattr(same, side), strict=True):
                np.testing.assert_array_equal(read.signal("clean", j)[0], trials.signal(kind, i)[0])
        # Who speaks in a file is known by the target trials.
        pairs = {(read.speakers[j], trials.speakers[i]) for i, j in zip(condition.test, same.test, strict=True)}
        assert len(pairs) == 4


def test_files_that_chains_of_target_trials_connect_are_of_one_speaker(tmp_path):
    for name in "abcdefg":
        soundfile.write(tmp_path / f"{name}.wav", tone(0, 100, 0), RATE)
    # d-c, c-b, b-a: each link lowers the number of the next.
    (tmp_path / "list.txt").write_text("1 d.wav c.wav\n1 f.wav e.wav\n1 c.wav b.wav\n\n1 b.wav a.wav\n0 g.wav a.wav\n")
    speakers = read_trials(tmp_path / "list.txt", tmp_path).speakers
    assert speakers.tolist() == [0, 0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("1 a.wav\n", "line 1: '1 a.wav' is none of"),
        ("a.wav b.wav maybe\n", "line 1"),
        ("1 Anna K/a.wav b.wav\n", "line 1: .* separate the fields by tabs if a path holds spaces"),
        ("1 a.wav b.wav\n2 a.wav b.wav\n", "line 2"),
        ("\n", "holds no trial"),
        ("1 a.wav c.wav\n0 a.wav b.wav", "1 of 3 files are missing, such as .*c.wav"),
        ("1 a.wav b.wav\n0 b.wav a.wav", "non-target trial"),
    ],
)
def test_bad_lists_are_named(lines, message, tmp_path):
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.wav", tone(0, 100, 0), RATE)
    (tmp_path / "list.txt").write_text(lines)
    with pytest.raises(ValueError, match=message):
        read_trials(tmp_path / "list.txt", tmp_path)


@pytest.mark.parametrize(
    "lines",
    [
        "1 a.wav b.wav\n0 a.wav c.wav\n",
        "\ufeff1 a.wav b.wav\r\n0 a.wav c.wav\r\n",
        "1\ta.wav\tb.wav\n0\ta.wav\tc.wav\n",
        "a.wav b.wav target\na.wav c.wav nontarget\n",
        "1\tAnna [K]/a 1.wav\tb.wav\n0\tAnna [K]/a 1.wav\tc.wav\n",
    ],
    ids=["voxceleb", "bom", "tabs", "kaldi", "spaces"],
)
def test_lists_of_other_tools_are_read(lines, tmp_path):
    (tmp_path / "Anna [K]").mkdir()
    for name in ("a", "b", "c", "Anna [K]/a 1"):
        soundfile.write(tmp_path / f"{name}.wav", tone(0, 100, 0), RATE)
    (tmp_path / "list.txt").write_text(lines, newline="")
    trials = read_trials(tmp_path / "list.txt", tmp_path)
    ids = [recording.id for recording in trials.recordings]
    first = "Anna [K]/a 1.wav" if "Anna" in lines else "a.wav"
    condition = trials.conditions["list"]
    assert [ids[number] for number in condition.enrolment] == [first, first]
    assert [ids[number] for number in condition.test] == ["b.wav", "c.wav"]
    assert condition.is_target.tolist() == [True, False]


@pytest.mark.parametrize("sample", [0.0, np.nan])
def test_a_file_of_no_use_is_named_when_it_is_heard(sample, tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(0, 100, 0), RATE)
    soundfile.write(tmp_path / "b.wav", np.full(100, sample), RATE, subtype="FLOAT")
    (tmp_path / "list.txt").write_text("1 a.wav b.wav\n")
    trials = read_trials(tmp_path / "list.txt", tmp_path)
    with pytest.raises(ValueError, match="b.wav' .*holds NaN"):
        [trials.signal("clean", number) for number in range(2)]


def test_a_list_cannot_name_several_enrolment_files(tmp_path):
    trials = build_trials(clips_of(4), seconds=SECONDS, conditions=["clean"], enrolment_recordings=2)
    with pytest.raises(ValueError, match="enrolment_recordings=1"):
        write_trials(tmp_path, trials)
