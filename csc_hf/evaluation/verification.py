# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Speaker verification, measured by condition: trials → embeddings → scores → figures.

>>> trials = build_trials(stream_utterances("path/to/held_out"), conditions=list(CONDITIONS))
>>> print(format_report(measure(score_trials(load_embedder("resemblyzer"), trials))))

`csc_hf.evaluation.trial_set` defines recordings, signals, trials and conditions, `csc_hf.evaluation.embedders` what
is measured here, `csc_hf.evaluation.scoring` how trials are scored. `FIGURES` is the one list of figures: to add one,
add an entry to it, and results, reports and training follow.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from .calibration import Calibration, fit_calibration
from .embedders import CSCEmbedder
from .metrics import RocCurve, actual_dcf, bootstrap_interval, cllr, equal_error_rate
from .scoring import Scores, score_trials
from .trial_set import BASIC_CONDITIONS, Trials, TrialSet


def evaluate(
    model: torch.nn.Module, trials: TrialSet, batch_size: int = 16, progress: bool = True, enrolment: str = "mean"
) -> dict[str, Any]:
    """Measure a CSC model as it is, without calibration and intervals: what is measured during training.

    Args:
        model, batch_size: See [`~csc_hf.evaluation.embedders.CSCEmbedder`].
        trials, progress, enrolment: See [`score_trials`].

    Returns:
        What [`measure`] returns.
    """
    return measure(score_trials(CSCEmbedder(model, batch_size), trials, enrolment, progress=progress))


def calibrate(scores: Scores, p_target: float = 0.5) -> dict[str, Calibration]:
    """Learn a calibration for each condition on its trials. `Calibration.store` keeps one in a model's configuration.

    Where sources are known, it is learnt on trials within one: people of different corpora are told apart by the
    channel alone, and a calibration for such easy trials would accept too many.

    Raises:
        ValueError: As [`~csc_hf.evaluation.calibration.fit_calibration`]; the message names the condition.
    """
    calibrations = {}
    for name, values in scores.scores.items():
        trials = scores.trials.conditions[name]
        within = trials.within_source >= 0
        if len(set(trials.is_target[within].tolist())) == 2:
            values, is_target = values[within], trials.is_target[within]
        else:
            is_target = trials.is_target
        try:
            calibrations[name] = fit_calibration(
                values, is_target, name, scores.trials.sha256, p_target, scores.enrolment
            )
        except ValueError as error:
            raise ValueError(f"cannot calibrate condition {name!r}: {error}") from error
    return calibrations


def measure(
    scores: Scores, calibrations: Mapping[str, Calibration] | None = None, num_resamples: int = 0
) -> dict[str, Any]:
    """The figures of each condition.

    Args:
        scores: From `score_trials`.
        calibrations: From `calibrate`, by condition, learnt on other speakers with the same kind of enrolment. `None`:
            figures that need log-likelihood ratios are left out.
        num_resamples: Draws of the speakers for 95 % confidence intervals
            (`csc_hf.evaluation.metrics.bootstrap_interval`). 0: there are no intervals.

    Returns:
        A dictionary that `json.dumps` takes. `conditions` holds the `FIGURES` of each condition. Error rates are
        fractions. A figure is None where it cannot be had: a class has no trial, or the model no separator.

    Raises:
        ValueError: There are calibrations, but none for a condition; or one was learnt on these very trials, or with
            another kind of enrolment.
    """
    trials = scores.trials
    if calibrations is not None:
        _check_calibrations(calibrations, scores)
    conditions = {}
    for name in trials.conditions:
        judged = _Judged(scores, name, None if calibrations is None else calibrations[name], num_resamples)
        conditions[name] = {
            key: None if figure.needs_both_classes and not judged.has_both_classes else figure.value(judged)
            for key, figure in FIGURES.items()
            if calibrations is not None or not figure.needs_calibration
        }
    return {
        "trials_sha256": trials.sha256,
        "seed": trials.seed,
        "seconds": trials.seconds,
        "enrolment": scores.enrolment,
        "num_speakers": len(np.unique(trials.speakers)),
        "num_speakers_left_out": len(trials.speakers_left_out),
        "num_recordings": len(trials.recordings),
        "enrolment_recordings": trials.enrolments.shape[1],
        "audio_left_out": trials.audio_left_out,
        "si_sdr_improvement": scores.si_sdr_improvement.get("mix0"),
        "conditions": conditions,
    }


def training_figures(results: dict[str, Any]) -> dict[str, float]:
    """The figures of `measure` by the names of `TRAINING_FIGURES`. Those that cannot be had are left out."""
    figures = {"si_sdr_improvement": results["si_sdr_improvement"]}
    for name, condition in results["conditions"].items():
        figures |= {f"{key}_{name}": condition[key] for key, figure in FIGURES.items() if figure.in_training}
    return {name: value for name, value in figures.items() if value is not None}


def _check_calibrations(calibrations: Mapping[str, Calibration], scores: Scores) -> None:
    for name in scores.trials.conditions:
        if name not in calibrations:
            raise ValueError(
                f"no calibration for condition {name!r}, only for {sorted(calibrations)}: calibrate on it too"
            )
        if calibrations[name].trials_sha256 == scores.trials.sha256:
            raise ValueError(
                f"the calibration for {name!r} was learnt on these very trials: learn it on other speakers"
            )
        if calibrations[name].enrolment != scores.enrolment:
            raise ValueError(
                f"the calibration for {name!r} was learnt with enrolment={calibrations[name].enrolment!r}, the trials "
                f"are scored with {scores.enrolment!r}: learn it with the same"
            )


# --- figures ------------------------------------------------------------------------------------------------------


class _Judged:
    """The scores of one condition and what several figures are computed from."""

    def __init__(self, scores: Scores, name: str, calibration: Calibration | None, num_resamples: int):
        self.trials: Trials = scores.trials.conditions[name]
        self.is_target = self.trials.is_target
        self.scores = scores.scores[name]
        self.slot_known = scores.slot_known[name]
        self.si_sdr_improvement = scores.si_sdr_improvement[self.trials.kinds[1]]
        self.num_resamples = num_resamples
        self._calibration = calibration
        self._trial_set = scores.trials

    @property
    def has_both_classes(self) -> bool:
        return bool(self.is_target.any() and not self.is_target.all())

    @cached_property
    def curve(self) -> RocCurve:
        """ROC curve; there is one where both classes have trials."""
        return RocCurve.from_scores(self.scores, self.is_target)

    @property
    def llrs(self) -> np.ndarray:
        """(trials,) log-likelihood ratios."""
        assert self._calibration is not None  # asked for with calibrations only
        return self._calibration.llr(self.scores)

    @property
    def speakers(self) -> tuple[np.ndarray, np.ndarray]:
        """(trials,) speakers of the enrolments and of the tests."""
        of_recordings = self._trial_set.speakers
        enrolled = of_recordings[self._trial_set.enrolments[self.trials.enrolment, 0]]
        return enrolled, of_recordings[self.trials.test]


@dataclass(frozen=True)
class Figure:
    """A figure of one condition.

    Attributes:
        value: Computes it. The result is None where it cannot be had.
        heading: Of its column in reports. None: it has no column.
        text: Formats it for reports.
        needs_both_classes: Whether it needs target and non-target trials.
        needs_calibration: Whether it needs log-likelihood ratios.
        is_optional: Whether reports leave its column out where no condition has it.
        in_training: Whether training logs it and may choose the best model by it.
        higher_is_better: Direction of that choice.
    """

    value: Callable[[_Judged], Any]
    heading: str | None = None
    text: Callable[[Any], str] = str
    needs_both_classes: bool = False
    needs_calibration: bool = False
    is_optional: bool = False
    in_training: bool = False
    higher_is_better: bool = False


def _eer(scores: np.ndarray | None, is_target: np.ndarray) -> float | None:
    """Equal error rate; None without scores, or where a class has no trial."""
    if scores is None or not is_target.any() or is_target.all():
        return None
    return equal_error_rate(scores, is_target)


def _eer_within_source(scores: np.ndarray | None, trials: Trials) -> float | None:
    """Mean of the equal error rates of the sources, weighted by their target trials; None where no source has both
    classes.

    Each source has a threshold of its own: scores run higher in some channels than in others, and one threshold for
    all would measure that."""
    rates, weights = [], []
    for source in np.unique(trials.within_source[trials.within_source >= 0]):
        of_source = trials.within_source == source
        rate = _eer(None if scores is None else scores[of_source], trials.is_target[of_source])
        if rate is not None:
            rates.append(rate)
            weights.append(trials.is_target[of_source].sum())
    return float(np.average(rates, weights=weights)) if rates else None


def _eer_interval(judged: _Judged) -> list[float] | None:
    if not judged.num_resamples:
        return None
    return list(bootstrap_interval(judged.scores, *judged.speakers, num_resamples=judged.num_resamples))


def _retrieval_accuracy(judged: _Judged) -> float | None:
    """Share of the test signals whose best-scoring enrolment is of their speaker, among those with trials of both
    classes (None: there is none). Where both signals are of one kind, each is a test signal of its trials."""
    trials, scores, is_target = judged.trials, judged.scores, judged.is_target
    tests = trials.test
    if trials.kinds[0] == trials.kinds[1]:
        tests = np.concatenate([trials.test, trials.enrolment])
        scores, is_target = np.tile(scores, 2), np.tile(is_target, 2)
    best = np.full((2, tests.max(initial=0) + 1), -np.inf)  # of the non-target trials, of the target trials
    np.maximum.at(best, (is_target.astype(int), tests), scores)
    other, target = best[:, np.isfinite(best).all(axis=0)]
    return float((target > other).mean()) if len(target) else None


def _count(chosen: Callable[[_Judged], np.ndarray]) -> Callable[[_Judged], int]:
    return lambda judged: int(chosen(judged).sum())


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f}"


def _interval(interval: list[float]) -> str:
    return f"({100 * interval[0]:.1f}-{100 * interval[1]:.1f})"


def _decimals(value: float) -> str:
    return f"{value:.3f}"


_CALIBRATED: dict[str, Any] = {
    "text": _decimals,
    "needs_both_classes": True,
    "needs_calibration": True,
    "is_optional": True,
}

FIGURES: dict[str, Figure] = {
    "eer": Figure(
        lambda judged: judged.curve.equal_error_rate(), "EER %", _percent, needs_both_classes=True, in_training=True
    ),
    "eer_interval": Figure(_eer_interval, "95 %", _interval, needs_both_classes=True, is_optional=True),
    "eer_within_source": Figure(
        lambda judged: _eer_within_source(judged.scores, judged.trials), "within", _percent, in_training=True
    ),
    "eer_slot_known": Figure(lambda judged: _eer(judged.slot_known, judged.is_target), "slot known", _percent),
    "eer_slot_known_within_source": Figure(
        lambda judged: _eer_within_source(judged.slot_known, judged.trials), "within", _percent
    ),
    "min_dcf": Figure(lambda judged: judged.curve.min_dcf(), "minDCF", _decimals, needs_both_classes=True),
    "actual_dcf": Figure(lambda judged: actual_dcf(judged.llrs, judged.is_target), "actDCF", **_CALIBRATED),
    "cllr": Figure(lambda judged: cllr(judged.llrs, judged.is_target), "Cllr", **_CALIBRATED),
    "min_cllr": Figure(lambda judged: judged.curve.min_cllr(), "minCllr", **_CALIBRATED),
    "retrieval_accuracy": Figure(_retrieval_accuracy, in_training=True, higher_is_better=True),
    "si_sdr_improvement": Figure(lambda judged: judged.si_sdr_improvement),
    "num_target": Figure(_count(lambda judged: judged.is_target), "target", "{:,}".format),
    "num_nontarget": Figure(_count(lambda judged: ~judged.is_target), "other", "{:,}".format),
    "num_target_within_source": Figure(_count(lambda judged: judged.is_target & (judged.trials.within_source >= 0))),
    "num_nontarget_within_source": Figure(
        _count(lambda judged: ~judged.is_target & (judged.trials.within_source >= 0))
    ),
}
"""Every figure of a condition, by its name in results, in the order of the columns of a report."""

TRAINING_FIGURES: dict[str, bool] = {"si_sdr_improvement": True} | {
    f"{key}_{condition}": figure.higher_is_better
    for condition in BASIC_CONDITIONS
    for key, figure in FIGURES.items()
    if figure.in_training
}
"""What training logs and chooses the best model by: name, such as "eer_mix0" -> whether higher is better."""
