# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import itertools

import numpy as np
import pytest

from csc_hf.metrics import (
    alignment,
    best_permutation,
    effective_rank,
    equal_error_rate,
    si_sdr,
    si_sdr_improvement,
    uniformity,
)


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
        rng = np.random.default_rng(seed)
        labels = rng.random(rng.integers(20, 800)) < rng.uniform(0.1, 0.9)
        labels[:2] = True, False
        scores = rng.normal(size=len(labels)) + rng.uniform(0, 3) * labels
        if distinct_scores is not None:
            edges = np.quantile(scores, np.linspace(0, 1, distinct_scores + 1)[1:-1])
            scores = np.digitize(scores, edges).astype(float)
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
        with pytest.raises(ValueError, match="R <= C <= 8"):
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
