# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The folders under metrics/, as users of `evaluate` load them."""

import doctest
import socket
from pathlib import Path

import numpy as np
import pytest

from csc_hf.evaluation.metrics import equal_error_rate, min_dcf, si_sdr

evaluate = pytest.importorskip("evaluate")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def at_root_without_network():
    def refuse(*args):
        raise OSError("no network in this test")

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.chdir(ROOT)
        yield


@pytest.fixture
def trials():
    rng = np.random.default_rng(0)
    labels = rng.random(300) < 0.4
    # In single precision all scores would be one tie.
    return 1 + 1e-9 * (rng.normal(size=300) + labels), labels


@pytest.mark.parametrize("name", ["eer", "min_dcf", "si_sdr"])
def test_examples_in_the_description_are_true(name):
    description = evaluate.load(f"metrics/{name}").inputs_description
    examples = doctest.DocTestParser().get_doctest(description, {"evaluate": evaluate}, name, None, None)
    assert len(examples.examples) >= 2
    assert doctest.DocTestRunner().run(examples).failed == 0
    # The card shows the same ones.
    card = (ROOT / "metrics" / name / "README.md").read_text()
    for example in examples.examples:
        assert example.source.strip() in card and example.want.strip() in card


def test_trial_modules_give_what_the_functions_give(trials):
    scores, labels = trials
    eer, dcf = evaluate.load("metrics/eer"), evaluate.load("metrics/min_dcf")
    inputs = dict(predictions=scores, references=labels)
    assert eer.compute(**inputs) == {"eer": equal_error_rate(scores, labels)}
    assert eer.compute(**inputs, convex_hull=True) == {"eer": equal_error_rate(scores, labels, convex_hull=True)}
    assert dcf.compute(**inputs) == {"min_dcf": min_dcf(scores, labels)}
    expected = min_dcf(scores, labels, p_target=0.3, c_miss=2.0, c_fa=1.5)
    assert dcf.compute(**inputs, p_target=0.3, c_miss=2.0, c_fa=1.5) == {"min_dcf": expected}
    assert expected != min_dcf(scores, labels, p_target=0.3)


def test_trial_modules_combine_and_take_batches(trials):
    scores, labels = trials
    combined = evaluate.combine(["metrics/eer", "metrics/min_dcf"])
    for half in (slice(0, 150), slice(150, None)):
        combined.add_batch(predictions=scores[half], references=labels[half].astype(int))
    assert combined.compute() == {"eer": equal_error_rate(scores, labels), "min_dcf": min_dcf(scores, labels)}


def test_si_sdr_module_is_the_mean_over_signals_of_any_length():
    rng = np.random.default_rng(0)
    references = [rng.normal(size=length).astype(np.float32) for length in (400, 300)]
    estimates = [reference + rng.normal(size=len(reference)).astype(np.float32) for reference in references]
    expected = np.mean([si_sdr(*pair) for pair in zip(estimates, references, strict=True)])
    result = evaluate.load("metrics/si_sdr").compute(predictions=estimates, references=references)
    assert result["si_sdr"] == pytest.approx(expected, abs=1e-9)


def test_errors_of_the_functions_reach_the_user():
    with pytest.raises(ValueError, match="2 target and 0 non-target"):
        evaluate.load("metrics/eer").compute(predictions=[0.1, 0.2], references=[1, 1])
    with pytest.raises(ValueError, match="is silent"):
        evaluate.load("metrics/si_sdr").compute(predictions=[[0.1, 0.2]], references=[[1.0, 1.0]])
