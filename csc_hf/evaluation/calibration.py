# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""From scores to likelihood ratios and decisions: learnt on trials, stored in the configuration. NumPy only."""

import math
from dataclasses import asdict, dataclass

import numpy as np

from .metrics import equal_error_rate

RIDGE = 1e-5
"""Weight, in the loss (nats), of half the squared scale and offset of scores of unit variance. It keeps the
calibration of separable scores finite, and changes that of overlapping ones by less than 1 %."""


@dataclass(frozen=True)
class Calibration:
    """
    What turns a verification score into a log-likelihood ratio and a decision, and what it was learnt on.

    Args:
        scale, offset: log-likelihood ratio (natural logarithm) = scale · score + offset.
        threshold: Score from which on two recordings count as of one speaker: there the ratio equals the Bayes
            threshold for `p_target`, where a false accept costs as much as a false reject.
        p_target: Share of trials that one expects to be of one speaker.
        condition: Name of the condition of the trials, such as "clean".
        eer: Equal error rate on the trials, as a fraction.
        num_target, num_nontarget: Numbers of trials.
        trials_sha256: Hash of the trial list.
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

    def llr(self, scores):
        """Log-likelihood ratios, natural logarithm, of scores (a number or an array)."""
        return self.scale * scores + self.offset

    def to_dict(self) -> dict:
        """As JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Calibration":
        """What `to_dict` gave."""
        return cls(**values)

    def store(self, model_or_config) -> None:
        """Put it into the configuration, `config.calibration[condition]`, where `save_pretrained` saves it. Other
        conditions stay; an earlier calibration of this one is replaced."""
        config = getattr(model_or_config, "config", model_or_config)
        config.calibration = (config.calibration or {}) | {self.condition: self.to_dict()}

    @classmethod
    def load(cls, model_or_config, condition: str | None = None) -> "Calibration | None":
        """
        What `store` put into a configuration.

        Args:
            model_or_config: A CSC model or its configuration.
            condition: Which one. `None`: the only one, or None where there is none.

        Raises:
            ValueError: There is none of that condition, or there are several and `condition` does not tell which.
        """
        stored = getattr(model_or_config, "config", model_or_config).calibration or {}
        if condition is None and not stored:
            return None
        if condition is None and len(stored) > 1:
            raise ValueError(f"the model has calibrations for {sorted(stored)}: choose one, condition=...")
        if condition is not None and condition not in stored:
            raise ValueError(f"the model has no calibration for condition {condition!r}, only for {sorted(stored)}")
        return cls.from_dict(stored[condition or next(iter(stored))])


def fit_calibration(
    scores: np.ndarray, labels: np.ndarray, condition: str, trials_sha256: str, p_target: float = 0.5
) -> Calibration:
    """
    Learn scale and offset by prior-weighted logistic regression (Brümmer and du Preez, "Application-independent
    evaluation of speaker detection", 2006): targets and non-targets count as if their shares were `p_target` and
    1 − `p_target`. The loss is convex and is minimised by Newton's method.

    Args:
        scores: (P,) higher for one speaker.
        labels: (P,) 1 or True for trials of one speaker, 0 or False for others.
        condition, trials_sha256, p_target: As in [`Calibration`].

    Raises:
        ValueError: One class is missing, a score is not finite, `p_target` is not between 0 and 1, or targets do not
            score higher than non-targets.
    """
    if not 0 < p_target < 1:
        raise ValueError(f"p_target={p_target} must lie between 0 and 1")
    scores = np.asarray(scores, dtype=np.float64)
    if np.isinf(scores).any():
        raise ValueError(f"scores hold {np.isinf(scores).sum()} infinite values: leave these trials out")
    eer = equal_error_rate(scores, labels)  # and checks shapes, classes and NaN
    is_target = np.asarray(labels).astype(bool)
    if scores[is_target].mean() <= scores[~is_target].mean():
        raise ValueError(
            f"targets score {scores[is_target].mean():.4g} on average, non-targets {scores[~is_target].mean():.4g}: "
            "such scores tell nothing of the speaker, look at the model or at the labels"
        )
    mean, deviation = scores.mean(), scores.std()
    weights = np.where(is_target, p_target / is_target.sum(), (1 - p_target) / (~is_target).sum())
    scale, offset = _minimise((scores - mean) / deviation, np.where(is_target, 1.0, -1.0), weights, _logit(p_target))
    scale = scale / deviation
    offset = offset - scale * mean
    return Calibration(
        scale=float(scale),
        offset=float(offset),
        threshold=float((-_logit(p_target) - offset) / scale),
        p_target=p_target,
        condition=condition,
        eer=eer,
        num_target=int(is_target.sum()),
        num_nontarget=int((~is_target).sum()),
        trials_sha256=trials_sha256,
    )


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def _minimise(scores: np.ndarray, signs: np.ndarray, weights: np.ndarray, prior: float) -> np.ndarray:
    """(2,) scale and offset with the least Σ weights · log(1 + exp(−signs · (scale · scores + offset + prior))) plus
    the ridge: Newton's method, each step halved until the loss falls."""
    design = np.stack([scores, np.ones_like(scores)])

    def loss(parameters: np.ndarray) -> float:
        margins = signs * (parameters @ design + prior)
        return weights @ np.logaddexp(0, -margins) + RIDGE / 2 * parameters @ parameters

    parameters = np.zeros(2)
    for _ in range(100):
        margins = signs * (parameters @ design + prior)
        wrong = np.exp(-np.logaddexp(0, margins))  # probability of the other class
        gradient = -design @ (weights * signs * wrong) + RIDGE * parameters
        if np.abs(gradient).max() < 1e-12:
            break
        curvature = weights * wrong * (1 - wrong)
        step = np.linalg.solve((design * curvature) @ design.T + RIDGE * np.eye(2), gradient)
        while np.abs(step).max() > 1e-14 and loss(parameters - step) > loss(parameters):
            step = step / 2
        parameters = parameters - step
    return parameters
