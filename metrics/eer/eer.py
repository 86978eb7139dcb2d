# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Equal error rate as a metric of `evaluate`, computed by csc_hf.evaluation.metrics."""

import datasets
import evaluate

from csc_hf.evaluation.metrics import equal_error_rate

DESCRIPTION = """\
Equal error rate of verification trials: where the rate of false accepts equals that of false rejects. 0 is best, 0.5
is chance.
"""

INPUTS = """
Args:
    predictions: one score per trial, higher for "same speaker". Only their order matters.
    references: 1 for a target trial (same speaker), 0 for a non-target trial.
    convex_hull (`bool`, defaults to `False`): measure on the convex hull of the ROC, as the BOSARIS toolkit does.

Returns:
    `eer`, a fraction.

Examples:
    >>> eer = evaluate.load("metrics/eer")
    >>> eer.compute(predictions=[2, 1, 1, 0, 0], references=[1, 1, 0, 0, 0])
    {'eer': 0.2}
"""


class EqualErrorRate(evaluate.Metric):
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

    def _compute(self, predictions: list[float], references: list[int], convex_hull: bool = False) -> dict[str, float]:
        return {"eer": equal_error_rate(predictions, references, convex_hull)}
