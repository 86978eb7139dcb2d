# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import json

import numpy as np
import pytest

from csc_hf import CSCConfig, CSCForXVector
from csc_hf.evaluation.calibration import Calibration, calibrated_conditions, fit_calibration


def trials(num_target: int, num_nontarget: int, separation: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores 0.3 + 0.1 · z, where z is a log-likelihood ratio: Gaussian, of mean and half variance ±separation."""
    rng = np.random.default_rng(seed)
    means = np.repeat([separation, -separation], [num_target, num_nontarget])
    z = means + np.sqrt(2 * separation) * rng.standard_normal(len(means))
    return 0.3 + 0.1 * z, np.repeat([1, 0], [num_target, num_nontarget])


@pytest.mark.parametrize("p_target", [0.5, 0.1])
def test_true_ratios_are_found_again(p_target):
    # However the classes are mixed in the trials: the prior is p_target.
    scores, labels = trials(5_000, 20_000, separation=2.0)
    calibration = fit_calibration(scores, labels, "clean", "abc", p_target)
    assert calibration.scale == pytest.approx(10.0, rel=0.05)
    assert calibration.llr(0.3) == pytest.approx(0.0, abs=0.1)
    np.testing.assert_allclose(calibration.llr(scores[:5]), (scores[:5] - 0.3) * 10, atol=0.3)
    # The Bayes threshold: at 10 % targets, the ratio has to outweigh 9 : 1.
    assert calibration.llr(calibration.threshold) == pytest.approx(np.log((1 - p_target) / p_target))
    assert calibration.threshold == pytest.approx({0.5: 0.3, 0.1: 0.52}[p_target], abs=0.01)
    assert (calibration.num_target, calibration.num_nontarget) == (5_000, 20_000)
    assert calibration.eer == pytest.approx(0.1587, abs=0.01)  # Φ(−1)


def test_it_is_the_minimum_and_agrees_with_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    scores, labels = trials(60, 200, separation=1.0)
    calibration = fit_calibration(scores, labels, "clean", "abc")
    reference = linear_model.LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    reference.fit(scores[:, None], labels, sample_weight=np.where(labels == 1, 0.5 / 60, 0.5 / 200))
    assert calibration.scale == pytest.approx(reference.coef_[0, 0], rel=0.01)
    assert calibration.offset == pytest.approx(reference.intercept_[0], rel=0.01, abs=0.01)


@pytest.mark.parametrize("num", [1, 3, 1000])
def test_separable_scores_stay_finite(num):
    scores = np.concatenate([np.linspace(0.6, 0.8, num), np.linspace(0.1, 0.2, num)])
    calibration = fit_calibration(scores, np.repeat([1, 0], num), "clean", "abc")
    assert calibration.eer == 0
    assert 0.2 < calibration.threshold < 0.6
    assert 1 < calibration.llr(0.8) < 50 and -50 < calibration.llr(0.1) < -1


def test_labels_may_be_bool_and_order_does_not_matter():
    scores, labels = trials(30, 40, separation=1.0)
    order = np.random.default_rng(1).permutation(70)
    first = fit_calibration(scores, labels, "clean", "abc")
    second = fit_calibration(scores[order].astype(np.float32), labels[order].astype(bool), "clean", "abc")
    assert second.threshold == pytest.approx(first.threshold, rel=1e-4)


@pytest.mark.parametrize(
    ("scores", "labels", "options", "message"),
    [
        ([0.1, 0.2], [1, 1], {}, "2 target and 0 non-target"),
        ([0.1, 0.2], [0, 0], {}, "0 target and 2 non-target"),
        ([0.1, np.nan], [0, 1], {}, "NaN"),
        ([0.1, np.inf], [0, 1], {}, "1 infinite"),
        ([0.1, 0.2], [1, 0], {}, "targets score 0.1 on average, non-targets 0.2"),
        ([0.1, 0.1], [1, 0], {}, "tell nothing"),
        ([0.1, 0.2], [0, 1], {"p_target": 1.0}, "p_target=1.0"),
        ([0.1, 0.2], [0, 1], {"enrolment": "median"}, '\'median\': choose "mean", "attention" or "scorer"'),
    ],
)
def test_bad_trials_are_named(scores, labels, options, message):
    with pytest.raises(ValueError, match=message):
        fit_calibration(np.array(scores), np.array(labels), "clean", "abc", **options)


@pytest.mark.parametrize("size", [1e308, 1e-300])
def test_scores_of_any_size_are_calibrated(size):
    scores, labels = trials(30, 40, separation=1.0)
    scores = scores / np.abs(scores).max()
    expected = fit_calibration(scores, labels, "clean", "abc")
    found = fit_calibration(size * scores, labels, "clean", "abc")
    assert found.threshold == pytest.approx(size * expected.threshold)
    np.testing.assert_allclose(found.llr(size * scores), expected.llr(scores), rtol=1e-6)
    with pytest.raises(ValueError, match="cannot be calibrated: multiply them"):
        fit_calibration(1e-322 * scores.round(1), labels, "clean", "abc")


@pytest.mark.parametrize("p_target", [0.5, 0.01, 1e-4])
def test_the_ridge_changes_little_at_any_prior(p_target, monkeypatch):
    scores, labels = trials(300, 900, separation=1.0)
    found = fit_calibration(scores, labels, "clean", "abc", p_target)
    monkeypatch.setattr("csc_hf.evaluation.calibration.RIDGE", 1e-9)
    free = fit_calibration(scores, labels, "clean", "abc", p_target)
    assert found.scale == pytest.approx(free.scale, rel=0.01)
    assert found.offset == pytest.approx(free.offset, rel=0.01)


def test_what_is_heard_chooses_between_clean_and_talkers_at_once():
    scores, labels = trials(30, 40, separation=1.0)
    clean, mix0, noise0 = (fit_calibration(scores, labels, name, "abc") for name in ("clean", "mix0", "noise0"))
    config = CSCConfig.tiny()
    mix0.store(config)
    assert Calibration.load(config, several_speakers=False) == mix0, "the only one, as in older checkpoints"
    clean.store(config)
    assert Calibration.load(config, several_speakers=False) == clean
    assert Calibration.load(config) == Calibration.load(config, several_speakers=True) == mix0
    noise0.store(config)
    with pytest.raises(ValueError, match="'clean', 'mix0', 'noise0'"):
        Calibration.load(config)


def test_several_conditions_live_in_a_configuration():
    config = CSCConfig.tiny()
    assert Calibration.load(config) is None
    with pytest.raises(ValueError, match="'clean', only \\[\\]"):
        Calibration.load(config, "clean")
    scores, labels = trials(30, 40, separation=1.0)
    clean = fit_calibration(scores, labels, "clean", "abc")
    noisy = fit_calibration(scores - 0.2, labels, "noise 0 dB", "def", p_target=0.01)
    clean.store(config)
    assert Calibration.load(config) == clean
    noisy.store(config)
    clean.store(config)
    assert Calibration.load(config, "clean") == clean and Calibration.load(config, "noise 0 dB") == noisy
    with pytest.raises(ValueError, match="'clean', 'noise 0 dB'"):
        Calibration.load(config)
    with pytest.raises(ValueError, match="'mix0', only \\['clean/mean', 'noise 0 dB/mean'\\]"):
        Calibration.load(config, "mix0")
    assert Calibration.load(CSCConfig.tiny()) is None, "configurations share nothing"
    assert Calibration.from_dict(json.loads(json.dumps(clean.to_dict()))) == clean


def test_kinds_of_enrolment_are_kept_apart():
    config = CSCConfig.tiny()
    scores, labels = trials(30, 40, separation=1.0)
    mean = fit_calibration(scores, labels, "clean", "abc")
    attention = fit_calibration(scores - 0.2, labels, "clean", "abc", enrolment="attention")
    attention.store(config)
    assert Calibration.load(config) is None, "scores by the mean would be misread"
    assert calibrated_conditions(config) == [] and calibrated_conditions(config, "attention") == ["clean"]
    with pytest.raises(ValueError, match="enrolment='mean' for condition 'clean', only \\['clean/attention'\\]"):
        Calibration.load(config, "clean")
    mean.store(config)
    assert Calibration.load(config) == Calibration.load(config, "clean") == mean
    assert Calibration.load(config, enrolment="attention") == attention
    assert set(config.calibration) == {"clean/mean", "clean/attention"}


def test_a_calibration_without_a_kind_of_enrolment_is_one_for_the_mean():
    scores, labels = trials(30, 40, separation=1.0)
    mean = fit_calibration(scores, labels, "clean", "abc")
    old = {name: value for name, value in mean.to_dict().items() if name != "enrolment"}
    config = CSCConfig.tiny(calibration={"clean": old})
    assert Calibration.load(config, "clean") == mean
    assert calibrated_conditions(config, "attention") == []
    mean.store(config)  # takes the place of the old one
    assert config.calibration == {"clean/mean": mean.to_dict()}


def test_it_is_saved_with_the_model(tmp_path):
    scores, labels = trials(30, 40, separation=1.0)
    calibration = fit_calibration(scores, labels, "clean", "abc")
    model = CSCForXVector(CSCConfig.tiny())
    calibration.store(model)
    model.save_pretrained(tmp_path)
    assert Calibration.load(CSCForXVector.from_pretrained(tmp_path)) == calibration
