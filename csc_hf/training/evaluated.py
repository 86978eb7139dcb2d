# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The figures of a held-out evaluation, by the names that they are logged and chosen by."""

from ..evaluation.trials import BASIC_CONDITIONS

FIGURES = ("eer", "eer_within_source", "retrieval_accuracy")
EVALUATED = ["si_sdr_improvement"]
EVALUATED += [f"{figure}_{condition}" for condition in BASIC_CONDITIONS for figure in FIGURES]


def evaluated(results: dict) -> dict[str, float | None]:
    """What `verification.evaluate` returns, by the names of EVALUATED."""
    values = {"si_sdr_improvement": results["si_sdr_improvement"]}
    for name, condition in results["conditions"].items():
        values |= {f"{figure}_{name}": condition[figure] for figure in FIGURES}
    return values
