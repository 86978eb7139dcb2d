# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import csv
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tones import RATE, SAMPLES, SECONDS, SpectrumEmbedder, clip, clips_of

from csc_hf import CSCConfig, CSCForPreTraining, CSCForSpeakerVerification, CSCForSpeechSeparation, CSCModel
from csc_hf.evaluation.embedders import CSCEmbedder, Slots
from csc_hf.evaluation.metrics import as_norm, bootstrap_interval, cllr, equal_error_rate, min_dcf
from csc_hf.evaluation.reports import format_comparison, format_report
from csc_hf.evaluation.scoring import _score, score_trials, write_scores
from csc_hf.evaluation.trial_files import read_trials, write_trials
from csc_hf.evaluation.trial_set import Trials
from csc_hf.evaluation.trials import build_trials
from csc_hf.evaluation.verification import (
    FIGURES,
    TRAINING_FIGURES,
    Figure,
    calibrate,
    evaluate,
    measure,
    training_figures,
)


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
        parts = torch.einsum("bt,pnt->bpn", input_values, self.basis)  # (batch, 2, tones)
        energy = parts.square().sum(dim=1)
        loudest = energy.topk(2).indices
        swap = (input_values[:, :1] > 0).squeeze(1)
        loudest[swap] = loudest[swap].flip(1)
        active = energy.gather(1, loudest) > 1e-3 * energy.sum(dim=1, keepdim=True)
        loudest[~active] = self.num_tones  # nobody
        padded = torch.nn.functional.pad(parts, (0, 1))
        basis = torch.nn.functional.pad(self.basis, (0, 0, 0, 1))
        chosen = padded.gather(2, loudest[:, None].expand(-1, 2, -1))  # (batch, 2, slots)
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
        # themselves.
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

        def slots(kind, number, is_enrolment):
            nonlocal all_below
            activity = recorded[kind].source_activity[number].tolist()
            chosen = [slot for slot in range(2) if activity[slot] > 0]
            all_below += not chosen
            if (is_enrolment and kind == "clean") or not chosen:
                chosen = [max(range(2), key=lambda slot: activity[slot])]
            return [recorded[kind].source_embeddings[number, slot] for slot in chosen]

        scores = [
            max(
                torch.cosine_similarity(a, b, dim=0).item()
                for a in slots(condition.kinds[0], enrolment, True)
                for b in slots(condition.kinds[1], test, False)
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
    improvements = [result["si_sdr_improvement"] for result in results]
    assert improvements == [result["conditions"]["mix0"].pop("si_sdr_improvement") for result in results]
    assert improvements == [result["conditions"]["mix0_mix0"].pop("si_sdr_improvement") for result in results]
    assert improvements == pytest.approx(3 * [improvements[0]], abs=0.01)
    assert results[0]["conditions"] == results[1]["conditions"] == results[2]["conditions"]


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
        output.source_embeddings[0, 1, 2] = torch.nan

    with pytest.raises(
        ValueError, match="3 embeddings are zero, NaN or infinite, the first is of 's0:s0-.' as 'clean'"
    ):
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
    assert lines["clean"] == ["clean", "0.0", "0.0", "0.0", "0.0", "0.000", "60", "720"]
    assert lines["mix0"][1:5] == ["0.0", "12.3", "0.0", "0.0"]
    assert f"SI-SDR improvement {results['si_sdr_improvement']:.1f} dB" in report
    assert trials.sha256[:12] in report
    report = format_report(evaluate(Changed(without_separator), trials, progress=False))
    assert "SI-SDR improvement -" in report
    assert next(line.split() for line in report.splitlines() if line.startswith("clean"))[3:5] == ["-", "-"]


def test_a_figure_has_one_place(trials, monkeypatch):
    results = evaluate(ToneModel(), trials, progress=False)
    for name, condition in results["conditions"].items():
        assert list(condition) == [key for key, figure in FIGURES.items() if not figure.needs_calibration]
        assert condition["num_target"] == trials.conditions[name].is_target.sum()
    assert training_figures(results).keys() == TRAINING_FIGURES.keys()
    assert list(TRAINING_FIGURES)[:4] == [
        "si_sdr_improvement",
        "eer_clean",
        "eer_within_source_clean",
        "retrieval_accuracy_clean",
    ]
    assert [TRAINING_FIGURES[name] for name in ("si_sdr_improvement", "eer_mix0", "retrieval_accuracy_mix0")] == [
        True,
        False,
        True,
    ]
    results["conditions"]["mix0"]["eer"] = None
    assert "eer_mix0" not in training_figures(results)

    highest = Figure(lambda judged: float(judged.scores.max()), "highest", "{:.2f}".format, in_training=True)
    monkeypatch.setitem(FIGURES, "highest_score", highest)
    results = evaluate(ToneModel(), trials, progress=False)
    assert results["conditions"]["clean"]["highest_score"] == pytest.approx(1)
    assert "highest" in format_report(results).splitlines()[1]
    assert training_figures(results)["highest_score_clean"] == pytest.approx(1)


# --- any embedder ----------------------------------------------------------------------------------------------------


class Tones:
    """An embedder by the protocol: magnitudes of the tones; all zero if it is silent."""

    def __init__(self, fingerprint=None, silent=False):
        self.fingerprint = fingerprint
        self.silent = silent
        self.num_heard = 0

    def __call__(self, waveforms):
        self.num_heard += len(waveforms)
        energies = [np.abs(np.fft.rfft(waveform))[40:440:10] for waveform in waveforms]  # 200, 250, ... Hz
        return np.array(energies) * (not self.silent)


ALL = ["clean", "noise0", "mix5", "mix3", "overlap50", "mix0_mix0"]


@pytest.fixture(scope="module")
def adverse():
    return build_trials(clips_of(), seconds=SECONDS, conditions=ALL)


def test_a_function_from_waveforms_to_embeddings_is_all_it_takes(adverse):
    results = measure(score_trials(lambda waveforms: Tones()(waveforms), adverse, progress=False), num_resamples=20)
    assert list(results["conditions"]) == ALL
    for condition in results["conditions"].values():
        assert condition["eer"] < 0.02  # tones stand out of noise and of each other
        assert condition["eer_slot_known"] is None and condition["si_sdr_improvement"] is None
    assert json.loads(json.dumps(results)) == results


def test_embeddings_of_no_length_are_an_error(adverse):
    with pytest.raises(ValueError, match="40 embeddings are zero, NaN or infinite, the first is of 's0:"):
        score_trials(Tones(silent=True), adverse, progress=False)


def test_more_talkers_than_slots_are_scored_but_not_separated(adverse):
    scores = score_trials(CSCEmbedder(ToneModel()), adverse, progress=False)
    assert scores.si_sdr_improvement["mix3"] is None and scores.si_sdr_improvement["mix5"] > 30
    assert scores.si_sdr_improvement["clean"] is scores.si_sdr_improvement["noise0"] is None
    assert len(scores.slot_known["mix3"]) == len(scores.scores["mix3"]) == len(adverse.conditions["mix3"].test)


def test_one_slot_is_known_to_be_the_target_s(adverse):
    def passed_on(waveforms):
        embeddings = Tones()(waveforms)[:, None]
        return Slots(embeddings, np.zeros(embeddings.shape[:2]), [waveform[None] for waveform in waveforms])

    scores = score_trials(passed_on, adverse, progress=False)
    for name in ALL:
        np.testing.assert_array_equal(scores.slot_known[name], scores.scores[name])
    assert set(scores.si_sdr_improvement.values()) == {None}  # nothing was separated


class Noisy:
    """Embeddings of two slots that are random but for a part of the tone's."""

    def __init__(self, seed=0):
        self.seed = seed

    def __call__(self, waveforms):
        rng = np.random.default_rng(self.seed)
        tones = Tones()(waveforms)[:, None]
        embeddings = tones / np.linalg.norm(tones, axis=-1, keepdims=True) + rng.normal(0, 0.2, (len(tones), 2, 40))
        return Slots(embeddings, rng.normal(0, 1, (len(tones), 2)))


@pytest.mark.parametrize("num_trials", [1, 7])
def test_blocks_do_not_change_scores(adverse, num_trials, monkeypatch):
    whole = score_trials(Noisy(), adverse, progress=False).scores
    monkeypatch.setattr("csc_hf.evaluation.scoring.TRIALS_AT_A_TIME", num_trials)
    blocks = score_trials(Noisy(), adverse, progress=False).scores
    for name in ALL:
        np.testing.assert_allclose(blocks[name], whole[name], atol=1e-6)


def only(condition, chosen):
    columns = ("enrolment", "test", "is_target", "within_source")
    return dataclasses.replace(condition, **{name: getattr(condition, name)[chosen] for name in columns})


@pytest.mark.parametrize("enrolment", ["mean", "attention", "scorer"])
def test_a_list_of_trials_is_scored_over_its_pairs_alone(enrolment):
    """Whatever the order of the list, a trial has the score that it has among all pairs; other pairs cost nothing."""
    whole = build_trials(clips_of(4, 3), seconds=SECONDS, conditions=["mix0", "mix0_mix0"])
    chosen = np.random.default_rng(0).permutation(len(whole.conditions["mix0_mix0"].test))[:9]
    few = dataclasses.replace(whole, conditions={name: only(of, chosen) for name, of in whole.conditions.items()})
    config = CSCConfig.tiny(front_end="stft")
    torch.manual_seed(0)
    model = (CSCForSpeakerVerification if enrolment == "scorer" else CSCForPreTraining)(config).eval()
    embedder = CSCEmbedder(model)
    asked = []
    for name in ("attend", "score"):
        method = getattr(embedder, name)
        setattr(embedder, name, lambda of, queries, method=method: asked.append(len(queries)) or method(of, queries))
    found = score_trials(embedder, few, enrolment=enrolment, progress=False).scores
    assert sum(asked) <= 2 * 9 * 2 * 2  # in two conditions, slots of the enrolment or of the test
    expected = score_trials(CSCEmbedder(model), whole, enrolment=enrolment, progress=False).scores
    for name in few.conditions:
        np.testing.assert_allclose(found[name], expected[name][chosen], atol=1e-5)


def test_scoring_takes_memory_and_time_by_the_trials_on_the_list():
    """All pairs of 60,000 recordings would be 3.6 billion cosines."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(60_000, 1, 8)).astype(np.float32)
    enrolment, test = rng.integers(len(embeddings), size=(2, 5000))
    listed = Trials(("clean", "clean"), enrolment, test, np.zeros(5000, bool), np.full(5000, -1))
    slots = np.ones(embeddings.shape[:2], bool)
    found = _score(listed, embeddings, slots, embeddings, slots)
    np.testing.assert_allclose(found, (embeddings[enrolment] * embeddings[test]).sum(axis=(1, 2)), atol=1e-4)


def test_figures_are_those_of_the_metrics(adverse):
    scores = score_trials(Noisy(), adverse, progress=False)
    results = measure(scores, num_resamples=30)
    assert 0.02 < results["conditions"]["clean"]["eer"] < 0.4
    for name, trials in adverse.conditions.items():
        figures, values = results["conditions"][name], scores.scores[name]
        assert figures["eer"] == equal_error_rate(values, trials.is_target)
        assert figures["min_dcf"] == min_dcf(values, trials.is_target)
        speakers = adverse.speakers[trials.enrolment], adverse.speakers[trials.test]
        assert figures["eer_interval"] == list(bootstrap_interval(values, *speakers, num_resamples=30))
    report = format_report(results).splitlines()
    low, high = results["conditions"]["clean"]["eer_interval"]
    assert f"({100 * low:.1f}-{100 * high:.1f})" in next(line for line in report if line.startswith("clean"))
    comparison = format_comparison({"one": results, "two": measure(scores)}).splitlines()
    assert comparison[0].split() == ["EER", "%", "one", "two"]
    eer = f"{100 * results['conditions']['mix3']['eer']:.1f}"
    line = next(line for line in comparison if line.startswith("mix3")).split()
    assert line[1] == line[-1] == eer and line[2].startswith("(")


def test_several_recordings_enrol_by_the_mean_of_their_unit_embeddings():
    trials = build_trials(clips_of(), seconds=SECONDS, conditions=["clean", "mix0"], enrolment_recordings=3)
    scores = score_trials(Noisy(), trials, progress=False)
    slots = Noisy()([trials.signal("clean", number)[0] for number in range(len(trials.recordings))])
    embeddings = slots.embeddings / np.linalg.norm(slots.embeddings, axis=-1, keepdims=True)
    main = embeddings[np.arange(40), slots.activity.argmax(axis=1)]
    active = (slots.activity > 0) | (slots.activity == slots.activity.max(axis=1, keepdims=True))
    clean = trials.conditions["clean"]
    for score, enrolment, test in zip(scores.scores["clean"], clean.enrolment, clean.test, strict=True):
        mean = main[trials.enrolments[enrolment]].mean(axis=0)
        expected = (embeddings[test][active[test]] @ mean).max() / np.linalg.norm(mean)
        assert score == pytest.approx(expected, abs=1e-5)
    one = score_trials(Noisy(), build_trials(clips_of(), seconds=SECONDS, conditions=["clean"]), progress=False)
    assert measure(scores)["conditions"]["clean"]["eer"] < measure(one)["conditions"]["clean"]["eer"]
    assert measure(scores)["enrolment_recordings"] == 3


@pytest.mark.parametrize(("num_recordings", "name"), [(1, "mix0"), (2, "mix0"), (1, "mix0_mix0")])
def test_enrolment_by_attention_is_what_the_model_aggregates(num_recordings, name):
    torch.manual_seed(0)
    model = CSCForPreTraining(CSCConfig.tiny(front_end="stft")).eval()
    trials = build_trials(clips_of(4, 3), seconds=SECONDS, conditions=[name], enrolment_recordings=num_recordings)
    scores = score_trials(CSCEmbedder(model), trials, enrolment="attention", progress=False).scores[name]
    condition = trials.conditions[name]
    for p in range(0, len(scores), 7):
        with torch.inference_mode():
            numbers = trials.enrolments[condition.enrolment[p]]
            audio = torch.stack([torch.from_numpy(trials.signal(condition.kinds[0], i)[0]) for i in numbers])
            memory = model.csc(audio).source_hidden_states.flatten(0, 2)
            test = model(torch.from_numpy(trials.signal("mix0", condition.test[p])[0])[None])
            active = test.source_activity[0] > 0
            active[test.source_activity[0].argmax()] = True
            answers = torch.stack([model.aggregate(query, memory) for query in test.source_embeddings[0]])
            expected = (test.source_embeddings[0] * answers).sum(-1)[active].max()
        assert scores[p] == pytest.approx(expected.item(), abs=1e-5)


def test_the_cohort_is_attended_to_as_the_trials_are(monkeypatch):
    model = CSCForPreTraining(CSCConfig.tiny(front_end="stft")).eval()
    trials = build_trials(clips_of(4, 3), seconds=SECONDS, conditions=["clean"])
    embedder, cohort = CSCEmbedder(model), cohort_of(20, 5)
    norms = []
    monkeypatch.setattr("csc_hf.evaluation.scoring.as_norm", lambda *args: norms.append(args) or as_norm(*args))
    score_trials(embedder, trials, enrolment="attention", cohort=cohort, progress=False)
    slots = embedder([recording.waveform for recording in cohort.recordings])
    main = slots.embeddings[np.arange(15), slots.activity.argmax(axis=1)]
    members = np.stack([main[cohort.speakers == speaker].mean(axis=0) for speaker in range(5)])
    members /= np.linalg.norm(members, axis=1, keepdims=True)
    for number, recording in enumerate(trials.recordings):
        expected = embedder.attend([recording.waveform], members)
        np.testing.assert_allclose(norms[0][3][number], expected, atol=1e-5)


def test_attention_that_cannot_be_is_named():
    clean = build_trials(clips_of(), seconds=SECONDS, conditions=["clean"])
    with pytest.raises(ValueError, match="cross-attention, which CSCModel lacks"):
        score_trials(CSCEmbedder(CSCModel(CSCConfig.tiny())), clean, enrolment="attention", progress=False)
    with pytest.raises(ValueError, match="needs the cross-attention of CSC"):
        score_trials(Noisy(), clean, enrolment="attention", progress=False)
    with pytest.raises(ValueError, match="'median'"):
        score_trials(Noisy(), clean, enrolment="median", progress=False)


def cohort_of(first: int, count: int):
    clips = [clip(speaker, number, "studio") for speaker in range(first, first + count) for number in range(3)]
    return build_trials(clips, seconds=SECONDS, conditions=["clean"])


def test_scores_are_normalised_by_a_cohort(adverse):
    cohort = cohort_of(20, 6)
    plain = score_trials(Tones(), adverse, progress=False)
    normalised = score_trials(Tones(), adverse, cohort=cohort, top_k=4, progress=False)

    def unit(vectors):
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    members = unit(Tones()([recording.waveform for recording in cohort.recordings]))
    members = unit(np.stack([members[cohort.speakers == speaker].mean(axis=0) for speaker in range(6)]))
    for name in ("clean", "mix5"):
        condition = adverse.conditions[name]
        sides = [
            unit(Tones()([adverse.signal(kind, number)[0] for number in range(40)])) @ members.T
            for kind in condition.kinds
        ]
        expected = as_norm(plain.scores[name], condition.enrolment, condition.test, *sides, 4)
        np.testing.assert_allclose(normalised.scores[name], expected, rtol=1e-3)
    # A larger top_k than the cohort takes all of it.
    assert np.isfinite(score_trials(Tones(), adverse, cohort=cohort, progress=False).scores["clean"]).all()
    with pytest.raises(ValueError, match="3 speakers of the cohort are in the trials, such as 's7'"):
        score_trials(Tones(), adverse, cohort=cohort_of(7, 5), progress=False)


def test_likelihood_ratios_are_calibrated_on_other_speakers(adverse, tmp_path):
    development = score_trials(
        Noisy(1), build_trials(cohort_of(20, 10).recordings, seconds=SECONDS, conditions=ALL), progress=False
    )
    calibrations = calibrate(development)
    scores = score_trials(Noisy(), adverse, progress=False)
    results = measure(scores, calibrations)
    for name, condition in adverse.conditions.items():
        figures = results["conditions"][name]
        assert calibrations[name].condition == name
        assert calibrations[name].trials_sha256 == development.trials.sha256
        assert figures["cllr"] == cllr(calibrations[name].llr(scores.scores[name]), condition.is_target)
        assert 0 < figures["min_cllr"] < figures["cllr"] and figures["min_dcf"] <= figures["actual_dcf"]
    report = format_report(results)
    assert "actDCF" in report and f"{results['conditions']['clean']['cllr']:.3f}" in report
    assert "actDCF" not in format_report(measure(scores))

    write_scores(tmp_path / "scores.csv", scores, calibrations)
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(condition.test) for condition in adverse.conditions.values())
    mix3 = [row for row in rows if row["condition"] == "mix3"]
    condition = adverse.conditions["mix3"]
    for row, i, j, is_target, score in zip(
        mix3, condition.enrolment, condition.test, condition.is_target, scores.scores["mix3"], strict=True
    ):
        assert (row["enrolment"], row["test"]) == (adverse.recordings[i].id, adverse.recordings[j].id)
        assert row["is_target"] == str(int(is_target))
        assert float(row["score"]) == pytest.approx(score, rel=1e-4)
        assert float(row["llr"]) == pytest.approx(calibrations["mix3"].llr(score), rel=1e-3, abs=1e-3)

    with pytest.raises(ValueError, match="these very trials"):
        measure(development, calibrations)
    by_attention = {name: dataclasses.replace(one, enrolment="attention") for name, one in calibrations.items()}
    with pytest.raises(ValueError, match="'clean' was learnt with enrolment='attention', .* scored with 'mean'"):
        measure(scores, by_attention)
    assert calibrate(dataclasses.replace(scores, enrolment="attention"))["clean"].enrolment == "attention"
    with pytest.raises(ValueError, match="no calibration for condition 'noise0'"):
        measure(scores, {"clean": calibrations["clean"]})


def test_embeddings_are_cached_by_model_audio_and_kind(adverse, tmp_path):
    def run(embedder, trials=adverse):
        return score_trials(embedder, trials, cache_dir=tmp_path, progress=False).scores

    first, second, other = Tones("a"), Tones("a"), Tones("b")
    scores = run(first)
    again = run(second)
    assert first.num_heard == 6 * 40 and second.num_heard == 0
    for name in ALL:
        np.testing.assert_array_equal(scores[name], again[name])
    run(other)
    assert other.num_heard == 6 * 40
    # Other trials over the same audio find what they need: mix10 is new.
    run(second, build_trials(clips_of(), seconds=SECONDS, conditions=["clean", "mix5", "mix10"]))
    assert second.num_heard == 40
    louder = [dataclasses.replace(c, waveform=c.waveform / 2) for c in clips_of()]
    third = Tones("a")
    run(third, build_trials(louder, seconds=SECONDS, conditions=["clean"]))
    assert third.num_heard == 40
    with pytest.raises(ValueError, match="no fingerprint"):
        run(Noisy())


def test_the_cache_keeps_the_slots_of_our_models(trials, tmp_path):
    torch.manual_seed(0)
    embedder = CSCEmbedder(CSCForSpeechSeparation(CSCConfig.tiny(front_end="stft")))
    fresh, cached, plain = (
        score_trials(embedder, trials, cache_dir=folder, progress=False) for folder in (tmp_path, tmp_path, None)
    )
    assert measure(fresh) == measure(cached) == measure(plain)
    assert not list(tmp_path.glob("*.unfinished")) and len(list(tmp_path.glob("*.npz"))) == 2
    with torch.no_grad():
        next(embedder.model.parameters()).add_(1)
    assert measure(score_trials(embedder, trials, cache_dir=tmp_path, progress=False)) != measure(cached)


def test_trials_of_files_score_as_those_that_they_were_written_from(tmp_path, monkeypatch):
    # Files are heard without what is below 20 Hz, which these clips hold.
    monkeypatch.setattr("csc_hf.evaluation.trial_files.high_pass", lambda waveform, rate: (waveform, None))
    trials = build_trials(clips_of(4), seconds=SECONDS, conditions=["clean", "mix0"])
    write_trials(tmp_path, trials)
    embedder = SpectrumEmbedder()
    expected = score_trials(embedder, trials, progress=False)
    for name in trials.conditions:
        read = score_trials(embedder, read_trials(tmp_path / f"{name}.txt", tmp_path), progress=False)
        np.testing.assert_allclose(read.scores[name], expected.scores[name], atol=1e-6)
        results = measure(read, num_resamples=10)
        assert results["seconds"] is None and results["conditions"][name]["eer_within_source"] is None
        assert "4 speakers" in format_report(results) or name == "mix0"


# --- with our models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("front_end", ["conv", "stft"])
@pytest.mark.parametrize("model_class", [CSCForPreTraining, CSCForSpeechSeparation, CSCModel])
def test_our_models_can_be_evaluated(model_class, front_end):
    torch.manual_seed(0)
    small = build_trials(clips_of(4, 2, [None]), seconds=SECONDS)
    model = model_class(CSCConfig.tiny(front_end=front_end)).train()
    results = evaluate(model, small, progress=False)
    again = evaluate(model, small, batch_size=3, progress=False)
    # Dropout is off, and no signal depends on its batch, but for rounding.
    torch.testing.assert_close(again["conditions"], results["conditions"], atol=1e-5, rtol=0)
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
