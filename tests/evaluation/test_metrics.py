# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest

from csc_hf.evaluation.metrics import (
    RocCurve,
    actual_dcf,
    alignment,
    as_norm,
    best_permutation,
    bootstrap_interval,
    cllr,
    det_points,
    effective_rank,
    equal_error_rate,
    min_cllr,
    min_dcf,
    s_norm,
    si_sdr,
    si_sdr_improvement,
    uniformity,
)


def draw_trials(seed, distinct_scores=None):
    rng = np.random.default_rng(seed)
    labels = rng.random(rng.integers(20, 800)) < rng.uniform(0.1, 0.9)
    labels[:2] = True, False
    scores = rng.normal(size=len(labels)) + rng.uniform(0, 3) * labels
    if distinct_scores is not None:
        edges = np.quantile(scores, np.linspace(0, 1, distinct_scores + 1)[1:-1])
        scores = np.digitize(scores, edges).astype(float)
    return scores, labels


def eer_by_sklearn(scores, labels):
    """An independent EER: scikit-learn's ROC and a root search on its straight lines."""
    metrics = pytest.importorskip("sklearn.metrics")
    optimize = pytest.importorskip("scipy.optimize")
    false_accept, true_accept, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
    position = np.arange(len(false_accept))

    def difference(x):
        return np.interp(x, position, false_accept) - (1 - np.interp(x, position, true_accept))

    return np.interp(optimize.brentq(difference, 0, position[-1], xtol=1e-14), position, false_accept)


def si_sdr_by_projection(estimate, reference):
    """The definition, sample by sample, of one pair of signals."""
    estimate, reference = estimate - estimate.mean(), reference - reference.mean()
    target = (estimate @ reference) / (reference @ reference) * reference
    return 10 * np.log10((target @ target) / ((estimate - target) @ (estimate - target)))


@pytest.mark.parametrize("distinct_scores", [None, 50, 7, 2])
def test_eer_matches_scikit_learn_with_and_without_ties(distinct_scores):
    for seed in range(20):
        scores, labels = draw_trials(seed, distinct_scores)
        assert equal_error_rate(scores, labels) == pytest.approx(eer_by_sklearn(scores, labels), abs=1e-9)


def test_eer_of_known_cases():
    assert equal_error_rate([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0]) == 0.0
    assert equal_error_rate([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0]) == 1.0
    assert equal_error_rate([0.5, 0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0, 0]) == 0.5  # nothing but a tie: a coin
    # From (false accept 0, false reject 1/2) straight to (1/3, 0): they are equal at 1/5.
    assert equal_error_rate([2, 1, 1, 0, 0], [1, 1, 0, 0, 0]) == pytest.approx(0.2, abs=1e-12)


def test_eer_ignores_the_order_of_trials_and_any_rising_map_of_scores():
    rng = np.random.default_rng(0)
    labels = rng.random(500) < 0.3
    scores = np.round(rng.normal(size=500) + labels, 1)
    shuffle = rng.permutation(500)
    expected = equal_error_rate(scores, labels)
    assert 0.1 < expected < 0.5
    assert equal_error_rate(scores[shuffle], labels[shuffle]) == expected
    assert equal_error_rate(np.exp(scores).astype(np.float32), labels.astype(int)) == expected
    ranks = np.unique(scores, return_inverse=True)[1].astype(np.uint8)
    assert equal_error_rate(ranks, labels) == expected


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [1, 1], "2 target and 0 non-target"),
        ([0.1, 0.2], [0, 0], "0 target and 2 non-target"),
        ([], [], "0 target and 0 non-target"),
        ([0.1, np.nan, np.nan], [1, 0, 1], "2 NaN, the first at index 1"),
        ([0.1, 0.2], [1, -1], "got -1"),
        ([0.1, 0.2], [1, 0, 1], r"\(2,\) and \(3,\)"),
        ([[0.1, 0.2]], [[1, 0]], "one-dimensional"),
    ],
)
def test_eer_names_what_is_wrong_with_the_trials(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        equal_error_rate(scores, labels)


@pytest.mark.parametrize("distinct_scores", [None, 50, 7, 2])
def test_hull_and_cllr_match_the_toolkit_of_their_authors(distinct_scores):
    toolkit = pytest.importorskip("llreval.quick_eval")
    for seed in range(20):
        scores, labels = draw_trials(seed, distinct_scores)
        eer, of_llrs, of_best_llrs = toolkit.scoreslabels_2_eer_cllr_mincllr(scores, labels.astype(int))
        assert equal_error_rate(scores, labels, convex_hull=True) == pytest.approx(eer, abs=1e-7)
        assert cllr(scores, labels) == pytest.approx(of_llrs, abs=1e-9)
        assert min_cllr(scores, labels) == pytest.approx(of_best_llrs, abs=1e-9)


@pytest.mark.parametrize("distinct_scores", [None, 7])
def test_costs_match_a_loop_over_thresholds(distinct_scores):
    for seed in range(10):
        scores, labels = draw_trials(seed, distinct_scores)
        rates = []  # false rejects, false accepts
        for threshold in [*np.unique(scores), np.inf]:
            accepted = scores >= threshold
            rates.append((np.mean(~accepted[labels]), np.mean(accepted[~labels])))
        rates = np.array(rates)

        for p_target, c_miss, c_fa in [(0.01, 1, 1), (0.05, 10, 1), (0.5, 1, 3), (0.9, 1, 1)]:
            costs = np.array([c_miss * p_target, c_fa * (1 - p_target)])
            expected = (rates @ costs).min() / costs.min()
            assert min_dcf(scores, labels, p_target, c_miss, c_fa) == pytest.approx(expected)
            accepted = np.exp(scores) * p_target * c_miss >= (1 - p_target) * c_fa
            expected = (np.mean(~accepted[labels]) * costs[0] + np.mean(accepted[~labels]) * costs[1]) / costs.min()
            assert actual_dcf(scores, labels, p_target, c_miss, c_fa) == pytest.approx(expected)

        # On the convex hull: the cost of the best threshold, at the prior where that is highest.
        priors = np.linspace(0, 1, 20_001)
        worst = (rates @ np.stack([priors, 1 - priors])).min(axis=0).max()
        assert equal_error_rate(scores, labels, convex_hull=True) == pytest.approx(worst, abs=1e-4)


def test_measures_of_known_cases():
    # From (false accept 0, false reject 1/2) the hull goes straight to (1/2, 0); the curve has a corner at (1/2, 1/2).
    scores, labels = [4, 3, 2, 1], [1, 0, 1, 0]
    assert equal_error_rate(scores, labels) == 0.5 and equal_error_rate(scores, labels, convex_hull=True) == 0.25
    assert min_cllr(scores, labels) == pytest.approx(0.5)  # half of the trials get a ratio of 1
    assert min_dcf(scores, labels) == pytest.approx(0.5)
    assert RocCurve.from_scores(scores, labels).convex_hull().thresholds.tolist() == [np.inf, 4, 2, 1]
    in_line = RocCurve.from_scores([3, 3, 2, 2, 1, 1], [1, 0, 1, 0, 1, 0])
    assert in_line.convex_hull().thresholds.tolist() == [np.inf, 1]

    scores, labels = [1, 2, 3, 4], [0, 0, 1, 1]
    assert (
        equal_error_rate(scores, labels, convex_hull=True) == min_cllr(scores, labels) == min_dcf(scores, labels) == 0
    )
    wrong_way = np.negative(scores)
    assert equal_error_rate(wrong_way, labels, convex_hull=True) == 0.5
    assert min_cllr(wrong_way, labels) == min_dcf(wrong_way, labels) == 1
    for p_target in (0.01, 0.99):
        assert min_dcf(np.ones(4), labels, p_target) == pytest.approx(1)  # nothing but a tie

    assert cllr(np.zeros(4), labels) == pytest.approx(1)
    assert cllr([-np.inf, -np.inf, np.inf, np.inf], labels) == 0
    assert cllr([-np.inf, np.inf, np.inf, np.inf], labels) == np.inf
    assert cllr([0, math.log(3), math.log(3), 0], labels) == pytest.approx((1 + 2 + math.log2(4 / 3) + 1) / 4)
    assert actual_dcf([-9, 0, 9, 9], labels, p_target=0.5) == 0.5  # a trial at the threshold is accepted
    assert actual_dcf([-9, 5, 9, 9], labels, p_target=0.01) == pytest.approx(0.99 / 0.01 / 2)


def test_order_of_trials_changes_no_measure():
    scores, labels = draw_trials(3, distinct_scores=9)
    shuffle = np.random.default_rng(0).permutation(len(scores))
    for measure in (RocCurve.min_cllr, RocCurve.min_dcf, lambda curve: curve.equal_error_rate(convex_hull=True)):
        expected = measure(RocCurve.from_scores(scores, labels))
        assert 0.05 < expected < 1
        assert measure(RocCurve.from_scores(scores[shuffle], labels[shuffle])) == expected


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: min_dcf([0, 1], [1, 1]), "2 target and 0 non-target"),
        (lambda: actual_dcf([0, 1], [0, 0]), "0 target and 2 non-target"),
        (lambda: cllr([0, np.nan], [0, 1]), "1 NaN, the first at index 1"),
        (lambda: min_cllr([0, 1], [0, 2]), "got 2"),
        (lambda: det_points([0, 1], [0]), r"\(2,\) and \(1,\)"),
        (lambda: min_dcf([0, 1], [0, 1], p_target=1), "p_target=1 must lie between"),
        (lambda: actual_dcf([0, 1], [0, 1], p_target=0), "p_target=0 must lie between"),
        (lambda: min_dcf([0, 1], [0, 1], c_fa=0), "c_fa=0 must both be positive"),
    ],
)
def test_measures_name_what_is_wrong_with_the_trials(measure, message):
    with pytest.raises(ValueError, match=message):
        measure()


@pytest.mark.parametrize("distinct_scores", [None, 7])
def test_det_points_match_scikit_learn(distinct_scores):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, labels = draw_trials(1, distinct_scores)
    expected_fa, expected_ta, expected_thresholds = metrics.roc_curve(labels, scores, drop_intermediate=False)
    false_accept, false_reject, thresholds = det_points(scores, labels)
    np.testing.assert_allclose(false_accept, expected_fa, atol=1e-12)
    np.testing.assert_allclose(false_reject, 1 - expected_ta, atol=1e-12)
    np.testing.assert_array_equal(thresholds, expected_thresholds)


def test_thin_det_points_are_the_corners_of_the_same_line():
    # Ten targets, then ten non-targets, one step each; then three ties in which one of two is a target.
    scores = np.concatenate([-np.arange(20), [-30, -30, -31, -31, -32, -32]])
    labels = np.concatenate([np.ones(10), np.zeros(10), [1, 0, 1, 0, 1, 0]])
    false_accept, false_reject, thresholds = det_points(scores, labels, thin=True)
    assert thresholds.tolist() == [np.inf, -9, -19, -32]
    np.testing.assert_allclose(false_accept, [0, 0, 10 / 13, 1])
    np.testing.assert_allclose(false_reject, [1, 3 / 13, 3 / 13, 0], atol=1e-15)

    scores, labels = draw_trials(1)
    false_accept, false_reject, _ = det_points(scores, labels)
    few_accept, few_reject, _ = det_points(scores, labels, thin=True)
    assert len(few_accept) < 0.8 * len(false_accept)
    # Along the line, false accepts less false rejects rise all the time.
    again = np.interp(false_accept - false_reject, few_accept - few_reject, few_accept)
    np.testing.assert_allclose(again, false_accept, atol=1e-12)


def test_normalised_scores_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    enrolment_cohort, test_cohort = 3 * rng.normal(size=(4, 30)) + 1, rng.normal(size=(5, 20))
    scores = rng.normal(size=(4, 5))
    for top_k in (None, 7, 2):
        expected = np.empty((4, 5))
        for e, t in itertools.product(range(4), range(5)):
            of_enrolment, of_test = sorted(enrolment_cohort[e]), sorted(test_cohort[t])
            if top_k is not None:
                of_enrolment, of_test = of_enrolment[-top_k:], of_test[-top_k:]
            expected[e, t] = (scores[e, t] - np.mean(of_enrolment)) / np.std(of_enrolment) / 2
            expected[e, t] += (scores[e, t] - np.mean(of_test)) / np.std(of_test) / 2

        def normalise(scores, enrolment, test):
            if top_k is None:
                return s_norm(scores, enrolment, test, enrolment_cohort, test_cohort)
            return as_norm(scores, enrolment, test, enrolment_cohort, test_cohort, top_k)

        all_pairs = normalise(scores, np.arange(4)[:, None], np.arange(5))
        np.testing.assert_allclose(all_pairs, expected, atol=1e-12)
        enrolment, test = [3, 0, 3], [4, 2, 1]  # a list of trials
        np.testing.assert_allclose(normalise(scores[enrolment, test], enrolment, test), expected[enrolment, test])


def test_s_norm_takes_away_the_level_and_scale_of_each_recording():
    rng = np.random.default_rng(0)
    level, scale = rng.normal(size=6), rng.uniform(0.5, 2, size=6)
    true, cohort = rng.normal(size=6), rng.normal(size=(6, 40))
    rows = np.arange(6)
    plain = s_norm(true, rows, rows, cohort, cohort)
    shifted = level[:, None] + scale[:, None] * cohort
    np.testing.assert_allclose(s_norm(level + scale * true, rows, rows, shifted, shifted), plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 9}, "the 9 highest of the 8 scores in a row of enrolment_cohort"),
        ({"test_cohort": np.eye(3)[:, :2]}, "the 3 highest of the 2 scores in a row of test_cohort"),
        ({"top_k": 1}, "at least 2 are needed"),
        ({"test_cohort": np.eye(8)[:3]}, None),
        ({"test_cohort": np.vstack([np.eye(8)[:2], np.ones((1, 8))])}, "3 highest scores in row 2 of test_cohort"),
        ({"enrolment_cohort": np.full((3, 8), np.nan)}, "enrolment_cohort hold NaN"),
        ({"scores": [0.0, np.inf, 0.0]}, "NaN or infinite"),
        ({"enrolment_cohort": np.ones(8)}, r"enrolment_cohort of two dimensions.*\(8,\)"),
        ({"test": [[0], [1]]}, r"rows \(2, 1\) and scores \(3,\)"),
    ],
)
def test_normalisation_names_what_is_wrong(change, message):
    cohort = np.random.default_rng(0).normal(size=(3, 8))
    good = dict(
        scores=np.zeros(3), enrolment=[0, 1, 2], test=[0, 1, 2], enrolment_cohort=cohort, test_cohort=cohort, top_k=3
    )
    if message is None:
        assert np.isfinite(as_norm(**good | change)).all()  # two of the three highest are equal: there is a spread
        return
    with pytest.raises(ValueError, match=message):
        as_norm(**good | change)


def draw_speaker_trials(seed, num_speakers, recordings=4, speaker=0.7, noise=0.5):
    """All pairs of recordings. Scores differ by speaker and by trial; the true equal error rate is known."""
    rng = np.random.default_rng(seed)
    speakers = np.repeat(np.arange(num_speakers), recordings)
    enrolment, test = (speakers[i] for i in np.triu_indices(len(speakers), k=1))
    own, other = rng.normal(0, speaker, (2, num_speakers))
    scores = np.where(enrolment == test, 2 + own[enrolment], (other[enrolment] + other[test]) / math.sqrt(2))
    scores = scores + rng.normal(0, noise, len(scores))
    return scores, enrolment, test, NormalDist().cdf(-1 / math.hypot(speaker, noise))


def test_bootstrap_is_that_of_data_sets_written_out_speaker_by_speaker():
    scores, enrolment, test, _ = draw_speaker_trials(0, num_speakers=5, recordings=3, speaker=0.2, noise=1.5)
    scores = np.round(scores, 1)  # ties
    for statistic in (
        RocCurve.equal_error_rate,
        RocCurve.min_cllr,
        lambda curve: curve.min_dcf(p_target=0.2),
        lambda curve: curve.equal_error_rate(convex_hull=True),
    ):
        rng = np.random.default_rng(7)
        values = []
        while len(values) < 40:
            drawn = rng.integers(5, size=5)  # the speaker whom each copy is of
            resample = []
            for score, e, t in zip(scores, enrolment, test, strict=True):
                for copy, other in itertools.product(range(5), repeat=2):
                    if drawn[copy] == e and drawn[other] == t and (e != t or copy == other):
                        resample.append((score, e == t))
            if len({label for _, label in resample}) == 2:
                values.append(statistic(RocCurve.from_scores(*map(np.array, zip(*resample, strict=True)))))
        interval = bootstrap_interval(scores, enrolment, test, statistic, num_resamples=40, seed=7)
        assert interval == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), abs=1e-12)
        assert interval[0] < interval[1]


def test_bootstrap_interval_holds_the_true_rate():
    """95 % are promised for many speakers. Trials resampled as if they were independent hold it in about half."""
    held = 0
    for seed in range(60):
        scores, enrolment, test, true_rate = draw_speaker_trials(seed, num_speakers=40)
        low, high = bootstrap_interval(scores, enrolment, test, num_resamples=100)
        held += low <= true_rate <= high
    assert 0.85 * 60 <= held


def test_bootstrap_interval_is_wider_for_fewer_speakers_and_holds_the_estimate():
    mean_widths = []
    for num_speakers in (20, 80):
        widths = []
        for seed in range(6):
            scores, enrolment, test, _ = draw_speaker_trials(seed, num_speakers)
            low, high = bootstrap_interval(scores, enrolment, test, num_resamples=100)
            assert low < equal_error_rate(scores, enrolment == test) < high
            widths.append(high - low)
        mean_widths.append(np.mean(widths))
    assert mean_widths[0] > 1.5 * mean_widths[1]  # with the square root of their number: twice


def test_bootstrap_interval_is_a_function_of_seed_and_set_of_trials():
    scores, enrolment, test, _ = draw_speaker_trials(2, num_speakers=12)
    scores = np.round(scores, 1)
    expected = bootstrap_interval(scores, enrolment, test, num_resamples=50)
    shuffle = np.random.default_rng(0).permutation(len(scores))
    names = np.array([f"speaker-{number:02}" for number in range(12)])
    shuffled = scores[shuffle], names[enrolment[shuffle]], names[test[shuffle]]
    assert bootstrap_interval(*shuffled, num_resamples=50) == expected
    assert bootstrap_interval(scores, enrolment, test, num_resamples=50, seed=1) != expected


def test_bootstrap_of_degenerate_trials():
    # No error, whoever is drawn; with two speakers, half of the draws leave no non-target trial and are made again.
    assert bootstrap_interval([1, 1, 0], ["a", "b", "a"], ["a", "b", "b"], num_resamples=20) == (0, 0)
    with pytest.raises(ValueError, match="3 target and 0 non-target"):
        bootstrap_interval([1, 2, 3], [0, 1, 2], [0, 1, 2])
    with pytest.raises(ValueError, match="1 NaN, the first at index 1"):
        bootstrap_interval([1, np.nan], [0, 1], [0, 0])
    with pytest.raises(ValueError, match=r"scores \(2,\), enrolment_speakers \(2,\) and test_speakers \(1,\)"):
        bootstrap_interval([1, 2], [0, 1], [0])


def test_si_sdr_matches_its_definition_along_the_last_axis():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(2, 1, 400)) + 2.0  # an offset, which the zero mean takes away
    estimate = reference + np.array([0.01, 0.5, 20.0])[:, None] * rng.normal(size=(2, 3, 400)) - 1.0
    expected = np.vectorize(si_sdr_by_projection, signature="(t),(t)->()")(estimate, reference)
    np.testing.assert_allclose(si_sdr(estimate, reference), expected, atol=1e-4)
    assert si_sdr(estimate, reference).shape == (2, 3)
    assert expected.min() < -15 and expected.max() > 35


def test_si_sdr_of_an_orthogonal_distortion_is_the_ratio_of_energies():
    time = np.arange(1600) / 16000
    reference, distortion = np.sin(2 * np.pi * 200 * time), np.sin(2 * np.pi * 300 * time)
    assert si_sdr(reference + 0.1 * distortion, reference) == pytest.approx(20.0, abs=1e-6)


@pytest.mark.parametrize("gain", [1e-7, -1.0, 1e6])
def test_si_sdr_does_not_depend_on_the_level_of_either_signal(gain):
    rng = np.random.default_rng(0)
    reference = rng.normal(size=800)
    estimate = reference + 0.3 * rng.normal(size=800)
    expected = si_sdr(estimate, reference)
    assert si_sdr(gain * estimate, reference) == pytest.approx(expected, abs=1e-6)
    assert si_sdr(estimate, gain * reference) == pytest.approx(expected, abs=1e-6)


def test_si_sdr_is_bounded_for_perfect_and_silent_estimates():
    reference = np.random.default_rng(0).normal(size=400)
    assert si_sdr(3 * reference, reference) == pytest.approx(100.0, abs=0.1)
    assert si_sdr(np.zeros(400), reference) == pytest.approx(-100.0, abs=0.1)
    assert si_sdr(np.full(400, 0.3), reference) == pytest.approx(-100.0, abs=0.1)  # no mean, nothing left


@pytest.mark.parametrize("silence", [0.0, 0.3])  # rounding leaves a trace of 0.3 less its mean
def test_si_sdr_refuses_a_silent_reference(silence):
    references = np.random.default_rng(0).normal(size=(3, 400))
    references[1] = silence
    with pytest.raises(ValueError, match=r"reference \[1\] of shape \(3, 400\) is silent"):
        si_sdr(np.ones((3, 400)), references)


def test_si_sdr_refuses_samples_that_are_not_finite_and_lengths_that_differ():
    signal = np.random.default_rng(0).normal(size=400)
    broken = signal.copy()
    broken[7] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        si_sdr(broken, signal)
    with pytest.raises(ValueError, match="NaN or infinite"):
        si_sdr(signal, broken)
    for other in (signal[:399], signal[:1], signal[:0]):
        with pytest.raises(ValueError, match="number of samples"):
            si_sdr(signal, other)
    with pytest.raises(ValueError, match="number of samples"):
        si_sdr(signal[:0], signal[:0])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_best_permutation_finds_where_each_source_went(order):
    rng = np.random.default_rng(0)
    references = rng.normal(size=(3, 400))
    slot_of_reference = np.array(order)
    estimates = np.empty_like(references)
    estimates[slot_of_reference] = references + 0.5 * rng.normal(size=(3, 400))
    assert best_permutation(estimates, references).tolist() == list(order)
    # Fewer sources than slots: the empty slot is left out.
    assert best_permutation(estimates, references[:2]).tolist() == list(order[:2])


def test_best_permutation_maximises_the_mean_not_each_source_by_itself():
    rng = np.random.default_rng(1)
    first, second, other = rng.normal(size=(3, 4000))
    # Both sources like slot 0 best, but the second loses much less by moving to slot 1.
    estimates = np.stack([first + 0.9 * second, 0.6 * second + other])
    greedy = si_sdr(estimates[:, None], np.stack([first, second])[None]).argmax(axis=0)
    assert greedy.tolist() == [0, 0]
    assert best_permutation(estimates, np.stack([first, second])).tolist() == [0, 1]


def test_si_sdr_improvement_is_the_gain_over_the_mixture_in_the_order_of_the_references():
    rng = np.random.default_rng(0)
    references = rng.normal(size=(2, 4000)) * [[1.0], [0.5]]
    mixture = references.sum(axis=0)
    estimates = (references + 0.05 * rng.normal(size=(2, 4000)))[::-1]
    expected = [
        si_sdr_by_projection(estimates[1 - i], references[i]) - si_sdr_by_projection(mixture, references[i])
        for i in range(2)
    ]
    result = si_sdr_improvement(estimates, references, mixture)
    np.testing.assert_allclose(result, expected, atol=1e-4)
    assert result[1] - result[0] > 3  # the quiet source had more to gain: order matters
    unchanged = si_sdr_improvement(np.stack([mixture, mixture]), references, mixture)
    np.testing.assert_allclose(unchanged, 0.0, atol=1e-9)


def test_permutation_bound_and_shapes_are_named():
    signals = np.random.default_rng(0).normal(size=(9, 20))
    assert best_permutation(signals[:4], signals[:4]).tolist() == [0, 1, 2, 3]
    for estimates, references in [(signals, signals), (signals[:1], signals[:2]), (signals[0], signals[0])]:
        with pytest.raises(ValueError, match="sources <= slots <= 8"):
            best_permutation(estimates, references)


def unit_vectors(num, size=16, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(num, size))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_effective_rank_of_known_cases():
    identity = np.eye(6)
    assert effective_rank(identity) == pytest.approx(6)
    assert effective_rank(100 * np.tile(identity[:3], (5, 1))) == pytest.approx(3)  # neither copies nor scale matter
    assert effective_rank(np.tile(unit_vectors(1), (50, 1))) == pytest.approx(1)
    assert effective_rank(np.outer([1, -1, 1, -1], unit_vectors(1)[0])) == pytest.approx(1)  # two ends of a line
    # Singular values in the ratio 3 to 1: exp of the entropy of (3/4, 1/4).
    assert effective_rank(np.diag([3.0, 1.0])) == pytest.approx(4 / 3**0.75)


def test_effective_rank_falls_to_one_as_embeddings_become_alike():
    spread, centre = unit_vectors(60), unit_vectors(1, seed=1)
    ranks = [effective_rank(centre + scale * spread) for scale in (10.0, 1.0, 0.1, 0.01)]
    assert ranks == sorted(ranks, reverse=True) and ranks[0] > 10
    assert 1 < ranks[-1] < 1.3


def test_uniformity_and_alignment_are_those_of_their_definitions():
    embeddings, identities = unit_vectors(12), np.array([0, 0, 0, 1, 1, 2, -1, -1, -100, -100, 3, 3])
    pairs = list(itertools.combinations(range(12), 2))
    distances = {(i, j): np.square(embeddings[i] - embeddings[j]).sum() for i, j in pairs}
    expected = np.log(np.mean([np.exp(-2 * distance) for distance in distances.values()]))
    assert uniformity(embeddings) == pytest.approx(expected)
    same = [(0, 1), (0, 2), (1, 2), (3, 4), (10, 11)]
    assert alignment(embeddings, identities) == pytest.approx(np.mean([distances[pair] for pair in same]))


def test_uniformity_and_alignment_of_known_cases():
    alike = np.tile(unit_vectors(1), (4, 1))
    assert uniformity(alike) == pytest.approx(0) and alignment(alike, [0, 0, 1, 1]) == pytest.approx(0)
    opposite = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert uniformity(opposite) == pytest.approx(-8) and alignment(opposite, [5, 5]) == pytest.approx(4)
    assert uniformity(alike.astype(np.float16)) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: effective_rank(np.zeros((3, 4))), "all embeddings are zero"),
        (lambda: effective_rank(np.zeros((0, 4))), r"\(0, 4\)"),
        (lambda: effective_rank(np.ones(4)), r"\(4,\)"),
        (lambda: effective_rank([[1.0, 0.0], [np.nan, 1.0]]), "embedding 1 holds NaN"),
        (lambda: uniformity(unit_vectors(1)), "at least 2 embeddings, got 1"),
        (lambda: uniformity(2 * unit_vectors(3)), "embedding 0 has length 2, not 1"),
        (lambda: alignment(unit_vectors(3), [0, 1, 2]), "no identity has two embeddings to compare, among 3"),
        (lambda: alignment(unit_vectors(3), [-1, -1, 2]), "no identity has two embeddings to compare, among 1"),
        (lambda: alignment(unit_vectors(3), [0, 0]), r"identities \(2,\) for embeddings \(3, 16\)"),
    ],
)
def test_signs_of_collapse_name_what_is_wrong_with_the_embeddings(measure, message):
    with pytest.raises(ValueError, match=message):
        measure()
