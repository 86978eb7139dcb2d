# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import dataclasses
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from csc_hf import CSCConfig, CSCForPreTraining, CSCForSpeechSeparation, CSCModel
from csc_hf.data import Utterance
from csc_hf.metrics import equal_error_rate
from csc_hf.verification import build_trials, evaluate, format_report

RATE = 16000
SECONDS = 0.2
SAMPLES = 3200
SOURCES = ["studio", "phone"]


def tone(speaker: int, num_samples: int, seed: int) -> np.ndarray:
    """A "voice": the tone of the speaker (orthogonal over `SAMPLES`), at a level and phase of the clip's own."""
    level, phase = np.random.default_rng(seed).uniform(0.05, 1.0, 2)
    angle = 2 * np.pi * (200 + 50 * speaker) * np.arange(num_samples) / RATE
    return (level * np.cos(angle + 2 * np.pi * phase)).astype(np.float32)


def clip(speaker: int, number: int, source: str | None, num_samples: int = SAMPLES) -> Utterance:
    waveform = tone(speaker, num_samples, seed=100 * speaker + number)
    return Utterance(id=f"s{speaker}-{number}", waveform=waveform, speaker=f"s{speaker}", source=source)


def clips_of(num_speakers: int = 10, num_clips: int = 4, sources: list = SOURCES) -> list[Utterance]:
    """Clips as long as a recording, the speakers dealt out to the sources in turn."""
    return [
        clip(speaker, number, sources[speaker % len(sources)])
        for speaker in range(num_speakers)
        for number in range(num_clips)
    ]


class ToneModel(torch.nn.Module):
    """Two slots, in an order that changes from signal to signal, for the two loudest tones of a signal.

    Its embedding is the one-hot number of the tone. A slot without a tone is inactive and holds the embedding of
    nobody, the same for all signals: if it entered a score, every pair of signals would match.
    """

    num_tones = 40

    def __init__(self):
        super().__init__()
        time = torch.arange(SAMPLES) / RATE
        angles = 2 * torch.pi * (200 + 50 * torch.arange(self.num_tones))[:, None] * time
        self.basis = torch.nn.Parameter(torch.stack([angles.cos(), angles.sin()]) * (2 / SAMPLES) ** 0.5)
        self.dropout = torch.nn.Dropout()
        self.num_heard = 0

    def forward(self, input_values, attention_mask):
        assert not torch.is_grad_enabled()
        assert not self.training and not self.dropout.training
        assert attention_mask.shape == input_values.shape and attention_mask.all()
        self.num_heard += len(input_values)
        parts = torch.einsum("bt,pnt->bpn", input_values, self.basis)  # (B, 2, tones)
        energy = parts.square().sum(dim=1)
        loudest = energy.topk(2).indices
        swap = (input_values[:, :1] > 0).squeeze(1)
        loudest[swap] = loudest[swap].flip(1)
        active = energy.gather(1, loudest) > 1e-3 * energy.sum(dim=1, keepdim=True)
        loudest[~active] = self.num_tones  # nobody
        padded = torch.nn.functional.pad(parts, (0, 1))
        basis = torch.nn.functional.pad(self.basis, (0, 0, 0, 1))
        chosen = padded.gather(2, loudest[:, None].expand(-1, 2, -1))  # (B, 2, C)
        return SimpleNamespace(
            source_embeddings=torch.nn.functional.one_hot(loudest, self.num_tones + 1).float(),
            source_activity=torch.where(active, 5.0, -5.0),
            sources=torch.einsum("bpc,pbct->bct", chosen, basis[:, loudest]),
        )


class Changed(ToneModel):
    """ToneModel with some of its outputs changed."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, input_values, attention_mask):
        output = super().forward(input_values, attention_mask)
        self.change(output)
        return output


def speaker_numbers(trials) -> np.ndarray:
    return np.array([int(recording.speaker[1:]) for recording in trials.recordings])


# --- trials -------------------------------------------------------------------------------------------------------


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
    assert (first.talkers["mix0"] == again.talkers["mix0"]).all()
    assert (first.talkers["mix0"] != other.talkers["mix0"]).any()


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
    assert np.bincount(speaker_numbers(trials)).tolist() == [8] * 4
    assert trials.num_speakers == 4


def test_speakers_with_too_little_speech_for_two_recordings_are_left_out_and_named():
    clips = clips_of(3, 2)
    clips += [clip(7, number, "studio", 1000) for number in range(6)]  # 6000 samples: one recording
    clips += [clip(8, 0, "studio", 5 * SAMPLES)]  # one clip: no second recording from the same one
    clips += [clip(9, number, "studio", 1600) for number in range(4)]  # just two recordings
    trials = build_trials(clips, seconds=SECONDS)
    assert trials.speakers_left_out == ("s7", "s8")
    assert {recording.speaker for recording in trials.recordings} == {"s0", "s1", "s2", "s9"}
    assert evaluate(ToneModel(), trials, progress=False)["num_speakers_left_out"] == 2


def test_interferers_are_of_the_same_source_where_possible_and_change_from_recording_to_recording():
    clips = clips_of(10, 4)  # five speakers a source
    clips += [clip(20, number, "alone") for number in range(4)]
    trials = build_trials(clips, seconds=SECONDS)
    assert (trials.talkers["mix0"][:, 0] == np.arange(44)).all()
    interferers_of = {}
    for target, interferer in trials.talkers["mix0"]:
        target, interferer = trials.recordings[target], trials.recordings[interferer]
        assert target.speaker != interferer.speaker
        assert target.source == "alone" or target.source == interferer.source
        interferers_of.setdefault(target.speaker, set()).add(interferer.speaker)
    assert {len(interferers) for interferers in interferers_of.values()} == {4}


def test_speakers_of_unknown_source_get_any_interferer():
    trials = build_trials(clips_of(8, 4, ["studio", None]), seconds=SECONDS)
    pairs = [[trials.recordings[i].source for i in pair] for pair in trials.talkers["mix0"]]
    assert {interferer for target, interferer in pairs if target == "studio"} == {"studio"}
    assert {interferer for target, interferer in pairs if target is None} == {"studio", None}


def test_unknown_sources_are_within_no_source():
    trials = build_trials(clips_of(sources=[None]), seconds=SECONDS)
    assert not any((condition.within_source >= 0).any() for condition in trials.conditions.values())
    results = evaluate(ToneModel(), trials, progress=False)
    for condition in results["conditions"].values():
        assert condition["eer"] == 0.0
        assert condition["eer_within_source"] is None and condition["eer_slot_known_within_source"] is None
        assert condition["num_target_within_source"] == condition["num_nontarget_within_source"] == 0


def test_mixtures_hold_both_sources_at_0_db():
    trials = build_trials(clips_of(), seconds=SECONDS)
    for number in range(len(trials.recordings)):
        sources = trials.sources("mix0", number)
        assert sources.shape == (2, SAMPLES) and sources.dtype == np.float32
        target, interferer = (trials.recordings[i].waveform for i in trials.talkers["mix0"][number])
        np.testing.assert_array_equal(sources[0], target)
        assert np.corrcoef(sources[1], interferer)[0, 1] > 1 - 1e-6
        energy = np.square(sources, dtype=np.float64).sum(axis=1)
        assert 10 * np.log10(energy[0] / energy[1]) == pytest.approx(0, abs=1e-4)
        np.testing.assert_array_equal(trials.sources("clean", number), target[None])


@pytest.mark.parametrize("name", ["clean", "mix0", "mix0_mix0"])
def test_trials_are_all_the_pairs_that_the_protocol_allows(name):
    # Three others in each source and five recordings: some mixtures of a speaker have the same interferer.
    trials = build_trials(clips_of(8, 5), seconds=SECONDS, seed=3)
    condition, speakers = trials.conditions[name], speaker_numbers(trials)
    enrolments, tests = (trials.talkers[kind] for kind in condition.kinds)
    expected = {}
    for i, j in itertools.product(range(len(enrolments)), range(len(tests))):
        if i == j or (name != "mix0" and j < i):
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
    within = sources[enrolments[condition.enrolment, 0]] == sources[tests[condition.test, 0]]
    np.testing.assert_array_equal(condition.within_source >= 0, within)
    numbers = {source: number for number, source in enumerate(sorted(set(sources.tolist())))}
    of_enrolment = np.array([numbers[source] for source in sources[enrolments[condition.enrolment, 0]]])
    np.testing.assert_array_equal(condition.within_source[within], of_enrolment[within])


def test_hash_covers_seed_recordings_mixtures_and_trials():
    trials = build_trials(clips_of(), seconds=SECONDS)
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
        dataclasses.replace(trials, talkers=trials.talkers | {"mix0": trials.talkers["mix0"][:, ::-1]}),
        dataclasses.replace(trials, conditions=trials.conditions | {"clean": shorter}),
        dataclasses.replace(trials, conditions=trials.conditions | {"clean": flipped}),
    ]
    assert len({variant.sha256 for variant in [trials, *variants]}) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speaker": None}, "'s0-0' has no speaker"),
        ({"id": "s0-1"}, "two utterances have the id 's0-1'"),
        ({"waveform": np.full(SAMPLES, np.nan, np.float32)}, "'s0-0' holds NaN"),
        ({"waveform": np.zeros(SAMPLES, np.float32)}, "'s0:s0-0' is silent"),
    ],
)
def test_clips_that_no_trial_can_be_made_from_are_named(change, message):
    clips = clips_of()
    clips[0] = dataclasses.replace(clips[0], **change)
    with pytest.raises(ValueError, match=message):
        build_trials(clips, seconds=SECONDS)


def test_settings_that_give_no_trials_are_named():
    with pytest.raises(ValueError, match="recordings_per_speaker must be at least 2"):
        build_trials(clips_of(), recordings_per_speaker=1)
    with pytest.raises(ValueError, match="seconds must be at least one sample"):
        build_trials(clips_of(), seconds=0)
    with pytest.raises(ValueError, match="0 of 10 speakers"):
        build_trials(clips_of(), seconds=1.0)
    with pytest.raises(ValueError, match="1 of 1 speakers"):
        build_trials(clips_of(1), seconds=SECONDS)
    with pytest.raises(ValueError, match="0 of 0 speakers"):
        build_trials([], seconds=SECONDS)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        evaluate(ToneModel(), build_trials(clips_of(), seconds=SECONDS), batch_size=0)


# --- evaluation ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trials():
    return build_trials(clips_of(), seconds=SECONDS)


def test_a_model_that_hears_every_speaker_makes_no_error(trials):
    results = evaluate(ToneModel(), trials, progress=False)
    assert results["si_sdr_improvement"] > 30
    assert list(results["conditions"]) == ["clean", "mix0", "mix0_mix0"]
    for name, condition in results["conditions"].items():
        for key in ("eer", "eer_within_source", "eer_slot_known", "eer_slot_known_within_source"):
            assert condition[key] == 0.0, (name, key)
        assert condition["retrieval_accuracy"] == 1.0
        is_target, within = trials.conditions[name].is_target, trials.conditions[name].within_source >= 0
        assert condition["num_target"] == condition["num_target_within_source"] == is_target.sum()
        assert condition["num_nontarget"] == len(is_target) - is_target.sum()
        assert condition["num_nontarget_within_source"] == (within & ~is_target).sum() > 0
    assert results["trials_sha256"] == trials.sha256
    assert (results["seed"], results["seconds"], results["num_speakers"], results["num_recordings"]) == (
        0,
        0.2,
        10,
        40,
    )
    assert json.loads(json.dumps(results)) == results


def test_a_model_that_hears_nobody_is_at_chance(trials):
    generator = torch.Generator().manual_seed(0)

    def forget(output):
        output.source_embeddings = torch.randn(len(output.sources), 2, 64, generator=generator)

    for condition in evaluate(Changed(forget), trials, progress=False)["conditions"].values():
        assert 0.35 < condition["eer"] < 0.65
        assert 0.35 < condition["eer_slot_known"] < 0.65


def test_a_model_that_hears_the_channel_alone_is_found_out_within_source(trials):
    def hear_channel(output):
        tones = output.source_embeddings[..., :-1].argmax(dim=-1)  # even speakers: studio, odd ones: phone
        output.source_embeddings = torch.nn.functional.one_hot(tones % 2, 2).float()

    clean = evaluate(Changed(hear_channel), trials, progress=False)["conditions"]["clean"]
    # All within-source trials score 1: a coin. Of the non-targets, 4 in 9 are within source and accepted.
    assert clean["eer_within_source"] == 0.5
    assert clean["eer"] == pytest.approx(4 / 13, abs=1e-9)


def test_a_source_whose_scores_run_higher_does_no_harm_within_source(trials):
    """Embeddings that are perfect within a source, but all alike in the one and spread in the other."""

    def squeeze(output):
        tones = output.source_embeddings[..., :-1].argmax(dim=-1)
        one_hot = torch.nn.functional.one_hot(tones, 11).float()
        # Even speakers share a large common part: 0.99 between any two of them, more than 0.9 of an odd one with
        # himself.
        common = torch.zeros(12)
        common[11] = 10.0
        own = torch.cat([one_hot, torch.zeros(*tones.shape, 1)], dim=-1)
        noise = torch.randn(own.shape, generator=torch.Generator().manual_seed(0)) * 0.1
        output.source_embeddings = own + torch.where((tones % 2 == 0)[..., None], common, torch.zeros(12)) + noise

    clean = evaluate(Changed(squeeze), trials, progress=False)["conditions"]["clean"]
    assert clean["eer_within_source"] < 0.02
    assert clean["eer"] > 0.05  # one threshold for both


def test_slot_known_tells_a_poor_choice_of_slots_from_poor_embeddings(trials):
    def mislead(output):
        output.source_activity = -output.source_activity

    clean = evaluate(Changed(mislead), trials, progress=False)["conditions"]["clean"]
    assert clean["eer"] == 0.5  # nobody's slot on both sides: one score for all
    assert clean["eer_slot_known"] == 0.0


def test_scores_follow_the_rules_of_slots_trial_by_trial(trials):
    """The vectorised scoring against a plain loop over the trials, with random embeddings and activities."""
    recorded = {}

    def randomise(output):
        generator = torch.Generator().manual_seed(len(recorded))
        output.source_embeddings = torch.randn(len(output.sources), 2, 8, generator=generator)
        output.source_activity = torch.randn(len(output.sources), 2, generator=generator)
        recorded[len(recorded)] = output

    results = evaluate(Changed(randomise), trials, batch_size=40, progress=False)
    recorded = dict(zip(("clean", "mix0"), recorded.values(), strict=True))
    all_below = 0
    for name, condition in trials.conditions.items():

        def slots(kind, number):
            nonlocal all_below
            activity = recorded[kind].source_activity[number].tolist()
            chosen = [slot for slot in range(2) if activity[slot] > 0]
            all_below += not chosen
            if kind == "clean" or not chosen:
                chosen = [max(range(2), key=lambda slot: activity[slot])]
            return [recorded[kind].source_embeddings[number, slot] for slot in chosen]

        scores = [
            max(
                torch.cosine_similarity(a, b, dim=0).item()
                for a in slots(condition.kinds[0], enrolment)
                for b in slots(condition.kinds[1], test)
            )
            for enrolment, test in zip(condition.enrolment.tolist(), condition.test.tolist(), strict=True)
        ]
        measured = results["conditions"][name]
        rates, weights = [], []
        for source in (0, 1):
            within = condition.within_source == source
            rates.append(equal_error_rate(np.array(scores)[within], condition.is_target[within]))
            weights.append(condition.is_target[within].sum())
        assert measured["eer"] == pytest.approx(equal_error_rate(scores, condition.is_target), abs=1e-9)
        assert measured["eer_within_source"] == pytest.approx(np.average(rates, weights=weights), abs=1e-9)
        pairs = list(zip(condition.enrolment, condition.test, condition.is_target, scores, strict=True))
        if name != "mix0":  # both signals are of one kind, so each is looked for among the others
            pairs += [(test, enrolment, *rest) for enrolment, test, *rest in pairs]
        found = []
        for test in {pair[1] for pair in pairs}:
            ranked = sorted((score, is_target) for _, other, is_target, score in pairs if other == test)
            if len({is_target for _, is_target in ranked}) == 2:
                found.append(ranked[-1][1])
        assert measured["retrieval_accuracy"] == pytest.approx(np.mean(found), abs=1e-9)
    assert all_below


def test_each_signal_is_heard_once_whatever_the_batch_size(trials):
    results = []
    for batch_size in (1, 7, 1000):
        model = ToneModel()
        results.append(evaluate(model, trials, batch_size=batch_size, progress=False))
        assert model.num_heard == 2 * len(trials.recordings)
    assert results[0]["conditions"] == results[1]["conditions"] == results[2]["conditions"]
    assert results[0]["si_sdr_improvement"] == pytest.approx(results[2]["si_sdr_improvement"], abs=0.01)


@pytest.mark.parametrize("fails", [False, True])
def test_every_module_gets_its_mode_back(trials, fails):
    def fail(output):
        if fails:
            raise RuntimeError("out of memory")

    model = Changed(fail)
    model.train()
    model.dropout.eval()  # frozen by the caller
    if fails:
        with pytest.raises(RuntimeError, match="out of memory"):
            evaluate(model, trials, progress=False)
    else:
        evaluate(model, trials, progress=False)
    assert model.training and not model.dropout.training


def test_embeddings_that_are_not_numbers_are_an_error(trials):
    def break_one(output):
        output.source_embeddings[0] = torch.nan

    with pytest.raises(ValueError, match="NaN"):
        evaluate(Changed(break_one), trials, progress=False)


def test_progress_can_be_shown_and_hidden(trials, capsys):
    evaluate(ToneModel(), trials, progress=False)
    assert capsys.readouterr().err == ""
    evaluate(ToneModel(), trials)
    assert "80/80" in capsys.readouterr().err


def test_report_shows_each_condition_in_percent_and_a_dash_for_nothing(trials):
    def without_separator(output):
        output.sources = None

    results = evaluate(ToneModel(), trials, progress=False)
    results["conditions"]["mix0"]["eer_within_source"] = 0.1234
    report = format_report(results)
    lines = {line.split()[0]: line.split() for line in report.splitlines() if line.strip()}
    assert lines["clean"] == ["clean", "0.0", "0.0", "0.0", "0.0", "60", "720"]
    assert lines["mix0"][1:5] == ["0.0", "12.3", "0.0", "0.0"]
    assert f"SI-SDR improvement {results['si_sdr_improvement']:.1f} dB" in report
    assert trials.sha256[:12] in report
    report = format_report(evaluate(Changed(without_separator), trials, progress=False))
    assert "SI-SDR improvement -" in report
    assert next(line.split() for line in report.splitlines() if line.startswith("clean"))[3:5] == ["-", "-"]


# --- with our models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("front_end", ["conv", "stft"])
@pytest.mark.parametrize("model_class", [CSCForPreTraining, CSCForSpeechSeparation, CSCModel])
def test_our_models_can_be_evaluated(model_class, front_end):
    torch.manual_seed(0)
    small = build_trials(clips_of(4, 2, [None]), seconds=SECONDS)
    model = model_class(CSCConfig.tiny(front_end=front_end)).train()
    results = evaluate(model, small, progress=False)
    again = evaluate(model, small, batch_size=3, progress=False)
    assert results["conditions"] == again["conditions"]  # dropout is off, and no signal depends on its batch
    assert model.training
    if model_class is CSCModel:
        assert results["si_sdr_improvement"] is None and results["conditions"]["mix0"]["eer_slot_known"] is None
    else:
        assert np.isfinite(results["si_sdr_improvement"])
        assert 0 <= results["conditions"]["mix0"]["eer_slot_known"] <= 1


def test_training_goes_on_after_an_evaluation():
    torch.manual_seed(0)
    model = CSCForPreTraining(CSCConfig.tiny(front_end="stft")).train()
    evaluate(model, build_trials(clips_of(4, 2), seconds=SECONDS), progress=False)
    sources = torch.randn(4, 2, SAMPLES)
    output = model(sources.sum(1), torch.ones(4, SAMPLES), sources, torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]]))
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
