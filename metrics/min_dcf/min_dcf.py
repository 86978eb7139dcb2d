# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Minimum detection cost as a metric of `evaluate`, computed by csc_hf.evaluation.metrics."""

import datasets
import evaluate

from csc_hf.evaluation.metrics import min_dcf

DESCRIPTION = """\
Minimum normalised detection cost of verification trials (NIST speaker recognition evaluations): the lowest cost over
all thresholds, divided by that of accepting all trials or rejecting all, whichever is lower. 0 is best, 1 is useless.
"""

INPUTS = """
Args:
    predictions: one score per trial, higher for "same speaker". Only their order matters.
    references: 1 for a target trial (same speaker), 0 for a non-target trial.
    p_target (`float`, defaults to 0.01): expected share of target trials, whatever it is here.
    c_miss (`float`, defaults to 1): cost of rejecting a target.
    c_fa (`float`, defaults to 1): cost of accepting a non-target.

Returns:
    `min_dcf`, between 0 and 1.

Examples:
    >>> min_dcf = evaluate.load("metrics/min_dcf")
    >>> min_dcf.compute(predictions=[2, 1, 1, 0, 0], references=[1, 1, 0, 0, 0])
    {'min_dcf': 0.5}
"""


class MinimumDetectionCost(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            # In single precision, scores that differ could become ties.
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(
        self,
        predictions: list[float],
        references: list[int],
        p_target: float = 0.01,
        c_miss: float = 1.0,
        c_fa: float = 1.0,
    ) -> dict[str, float]:
        return {"min_dcf": min_dcf(predictions, references, p_target, c_miss, c_fa)}
