# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Calibration: scores to log-likelihood ratios and decisions, learnt on trials and stored in the configuration."""

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from .metrics import equal_error_rate

ENROLMENTS = ("mean", "attention", "scorer")
"""How enrolled recordings are compared with a test: by the mean of their embeddings, by the trained cross-attention of
`CSCForPreTraining`, or by `CSCForSpeakerVerification`. They give different scores, so each needs a calibration of its
own."""

RIDGE = 1e-5
"""Weight, in the loss (nats), of half the squared scale and offset of scores of unit variance, at even odds. At others
it falls with the share of the rarer class, as the loss itself does. It keeps the calibration of separable scores
finite, and changes that of overlapping ones by less than 1 %."""

CLEAN = "clean"
"""The condition of one voice on either side."""

MIXED = "mix"
"""Beginning of the names of conditions with talkers at once, such as "mix0"."""

Numbers = TypeVar("Numbers", float, np.ndarray)


def check_enrolment(enrolment: str) -> None:
    """Raise a ValueError unless `enrolment` is one of `ENROLMENTS`."""
    if enrolment not in ENROLMENTS:
        raise ValueError(f'enrolment={enrolment!r}: choose "mean", "attention" or "scorer"')


@dataclass(frozen=True)
class Calibration:
    """
    Turns verification scores into log-likelihood ratios and decisions.

    Args:
        scale, offset: Log-likelihood ratio (natural logarithm) = scale · score + offset.
        threshold: Lowest score that is accepted. There the ratio equals the Bayes threshold for `p_target`, where a
            false accept costs as much as a false reject.
        p_target: Expected share of target trials.
        condition: Name of the condition of the trials, such as "clean".
        eer: Equal error rate on the trials, as a fraction.
        num_target, num_nontarget: Numbers of trials.
        trials_sha256: Hash of the trial list.
        enrolment: How speakers were enrolled, one of `ENROLMENTS`. The calibration holds for this one only.
    """

    scale: float
    offset: float
    threshold: float
    p_target: float
    condition: str
    eer: float
    num_target: int
    num_nontarget: int
    trials_sha256: str
    enrolment: str = "mean"

    def llr(self, scores: Numbers) -> Numbers:
        """Log-likelihood ratios (natural logarithm) of a score or an array of scores."""
        return self.scale * scores + self.offset

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON can hold them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Calibration":
        """Inverse of `to_dict`. A calibration without a kind of enrolment is one for "mean"."""
        return cls(**values)

    def store(self, model_or_config) -> None:
        """
        Put the calibration into the configuration, where `save_pretrained` saves it.

        It replaces an earlier one for the same condition and enrolment. `config.calibration` is a dictionary of them,
        with keys such as "clean/mean".
        """
        config = getattr(model_or_config, "config", model_or_config)
        others = [other for other in _stored(config) if (other.condition, other.enrolment) != self._key]
        config.calibration = {"/".join(one._key): one.to_dict() for one in [*others, self]}

    @classmethod
    def load(
        cls,
        model_or_config,
        condition: str | None = None,
        enrolment: str = "mean",
        several_speakers: bool = True,
    ) -> "Calibration | None":
        """
        Get a calibration that `store` has put into a configuration.

        Args:
            model_or_config: A CSC model or its configuration.
            condition: Name of a condition. `None`: the only one there is, or None where there is none; of "clean" and
                one for talkers at once (`MIXED`), that which fits `several_speakers`.
            enrolment: One of `ENROLMENTS`. Calibrations for the others are not considered.
            several_speakers: Whether more than one voice is heard on either side of the trial.

        Raises:
            ValueError: There is none for that condition and enrolment, or there are several and no condition is given.
        """
        check_enrolment(enrolment)
        stored = _stored(getattr(model_or_config, "config", model_or_config))
        found = {one.condition: one for one in stored if one.enrolment == enrolment}
        if condition is None:
            if must_be_chosen(found):
                raise ValueError(
                    f"the model has calibrations of enrolment={enrolment!r} for {sorted(found)}: choose one, "
                    "condition=..."
                )
            if len(found) > 1 and not several_speakers:
                return found[CLEAN]
            return next((found[name] for name in found if name != CLEAN), found.get(CLEAN))
        if condition not in found:
            raise ValueError(
                f"the model has no calibration of enrolment={enrolment!r} for condition {condition!r}, "
                f"only {sorted('/'.join(one._key) for one in stored)}"
            )
        return found[condition]

    @property
    def _key(self) -> tuple[str, str]:
        return self.condition, self.enrolment


def must_be_chosen(conditions: Collection[str]) -> bool:
    """Whether one of several calibrations has to be chosen. Between "clean" and one for talkers at once, what is heard
    decides."""
    others = set(conditions) - {CLEAN}
    return len(others) > 1 or (len(conditions) > 1 and not all(name.startswith(MIXED) for name in others))


def calibrated_conditions(model_or_config, enrolment: str = "mean") -> list[str]:
    """Conditions for which a CSC model or configuration has a calibration for this kind of enrolment, sorted."""
    stored = _stored(getattr(model_or_config, "config", model_or_config))
    return sorted(one.condition for one in stored if one.enrolment == enrolment)


def _stored(config) -> list[Calibration]:
    return [Calibration.from_dict(values) for values in (config.calibration or {}).values()]


def fit_calibration(
    scores: np.ndarray,
    labels: np.ndarray,
    condition: str,
    trials_sha256: str,
    p_target: float = 0.5,
    enrolment: str = "mean",
) -> Calibration:
    """
    Learn scale and offset by prior-weighted logistic regression.

    Targets and non-targets count as if their shares were `p_target` and 1 − `p_target` (Brümmer and du Preez,
    "Application-independent evaluation of speaker detection", 2006). The loss is convex and is minimised by Newton's
    method.

    Args:
        scores: (trials,) higher for one speaker.
        labels: (trials,) 1 or True for target trials, 0 or False for others.
        condition, trials_sha256, p_target, enrolment: As in [`Calibration`].

    Raises:
        ValueError: A class is missing, a score is not finite, `p_target` is not between 0 and 1, the kind of enrolment
            is unknown, or targets do not score higher than non-targets.
    """
    check_enrolment(enrolment)
    if not 0 < p_target < 1:
        raise ValueError(f"p_target={p_target} must lie between 0 and 1")
    given = np.asarray(scores, dtype=np.float64)
    if np.isinf(given).any():
        raise ValueError(f"scores hold {np.isinf(given).sum()} infinite values: leave these trials out")
    size = np.abs(given).max(initial=0) or 1.0
    scores = given / size  # sums and squares of very large or small scores would be infinite or zero
    eer = equal_error_rate(scores, labels)  # checks shapes, classes and NaN as well
    is_target = np.asarray(labels).astype(bool)
    if scores[is_target].mean() <= scores[~is_target].mean():
        raise ValueError(
            f"targets score {size * scores[is_target].mean():.4g} on average, non-targets "
            f"{size * scores[~is_target].mean():.4g}: such scores tell nothing of the speaker, check the model and "
            "the labels"
        )
    mean, deviation = scores.mean(), scores.std()
    weights = np.where(is_target, p_target / is_target.sum(), (1 - p_target) / (~is_target).sum())
    scale, offset = _minimise(
        (scores - mean) / deviation,
        np.where(is_target, 1.0, -1.0),
        weights,
        _logit(p_target),
        RIDGE * 2 * min(p_target, 1 - p_target),
    )
    scale = scale / deviation
    offset = offset - scale * mean
    threshold = size * ((-_logit(p_target) - offset) / scale)
    with np.errstate(over="ignore"):
        scale = scale / size
    if not np.isfinite([scale, offset, threshold]).all():
        raise ValueError(f"scores of at most {size:.3g} cannot be calibrated: multiply them by a constant")
    return Calibration(
        scale=float(scale),
        offset=float(offset),
        threshold=float(threshold),
        p_target=p_target,
        condition=condition,
        eer=eer,
        num_target=int(is_target.sum()),
        num_nontarget=int((~is_target).sum()),
        trials_sha256=trials_sha256,
        enrolment=enrolment,
    )


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def _minimise(scores: np.ndarray, signs: np.ndarray, weights: np.ndarray, prior: float, ridge: float) -> np.ndarray:
    """The scale and offset that minimise Σ weights · log(1 + exp(−signs · (scale · scores + offset + prior))) plus
    `ridge` times half their squares, by Newton's method. Each step is halved until the loss falls."""
    design = np.stack([scores, np.ones_like(scores)])

    def loss(parameters: np.ndarray) -> float:
        margins = signs * (parameters @ design + prior)
        return weights @ np.logaddexp(0, -margins) + ridge / 2 * parameters @ parameters

    parameters = np.zeros(2)
    for _ in range(100):
        margins = signs * (parameters @ design + prior)
        wrong = np.exp(-np.logaddexp(0, margins))  # probability of the other class
        gradient = -design @ (weights * signs * wrong) + ridge * parameters
        if np.abs(gradient).max() < 1e-7 * ridge:
            break
        curvature = weights * wrong * (1 - wrong)
        step = np.linalg.solve((design * curvature) @ design.T + ridge * np.eye(2), gradient)
        while np.abs(step).max() > 1e-14 and loss(parameters - step) > loss(parameters):
            step = step / 2
        parameters = parameters - step
    return parameters
