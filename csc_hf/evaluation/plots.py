# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Plots of verification scores: the detection error trade-off (DET), and histograms."""

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
import torch
from matplotlib.figure import Figure

from .metrics import det_points, equal_error_rate

DET_TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6)
"""Error rates at the ticks of a DET plot. The axes end at the first and the last."""

NUM_BINS = 60


def det_figure(trials: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """A DET plot (Martin et al., "The DET curve in assessment of detection task performance", 1997). The axes are
    normal deviates, on which normal scores give straight lines. A dot marks the equal error rate.

    Args:
        trials: Name of a line -> scores (trials,) and whether a trial is a target (trials,).

    Raises:
        ValueError: As `csc_hf.evaluation.metrics.det_points`: a class is missing, for one.
    """
    ticks = [NormalDist().inv_cdf(rate) for rate in DET_TICKS]
    labels = [f"{100 * rate:g}" for rate in DET_TICKS]
    limits = (ticks[0], ticks[-1])
    figure = Figure(figsize=(6.5, 6), layout="constrained")
    axes = figure.add_subplot(xlabel="false accepts (%)", ylabel="false rejects (%)", xlim=limits, ylim=limits)
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    axes.grid(linewidth=0.4)
    axes.plot(limits, limits, color="grey", linewidth=0.6)
    for number, (name, (scores, is_target)) in enumerate(trials.items()):
        false_accept, false_reject, _ = det_points(scores, is_target, thin=True)
        rate = equal_error_rate(scores, is_target)
        axes.plot(
            _deviate(false_accept),
            _deviate(false_reject),
            color=f"C{number}",
            linestyle=("-", "--", ":")[number // 10 % 3],  # there are ten colours
            label=f"{name}: EER {100 * rate:.1f} %",
        )
        axes.plot(*2 * [_deviate(np.array([rate]))], "o", color=f"C{number}", markersize=4)
    axes.legend(fontsize="small")
    return figure


def histogram_figure(trials: Mapping[str, tuple[np.ndarray, np.ndarray]], num_columns: int = 3) -> Figure:
    """Histograms of the scores of target trials and of others, each of area 1, in a panel for each name.

    Args:
        trials: Title of a panel -> scores (trials,) and whether a trial is a target (trials,). Both classes have
            trials.
        num_columns: Panels side by side.
    """
    num_columns = min(num_columns, len(trials))
    num_rows = -(-len(trials) // num_columns)
    figure = Figure(figsize=(3.5 * num_columns, 2.4 * num_rows), layout="constrained")
    every_score = np.concatenate([scores for scores, _ in trials.values()])
    bins = np.linspace(every_score.min(), every_score.max(), NUM_BINS + 1)
    panels = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, (name, (scores, is_target)) in zip(panels[: len(trials)], trials.items(), strict=True):
        for label, chosen in (("other speaker", ~is_target), ("same speaker", is_target)):
            axes.hist(scores[chosen], bins, density=True, alpha=0.6, label=label)
        axes.set_title(name, fontsize="medium")
        axes.set_yticks([])
    for axes in panels[len(trials) :]:
        axes.remove()
    figure.axes[0].legend(fontsize="small")
    figure.supxlabel("score", fontsize="medium")
    return figure


def _deviate(rates: np.ndarray) -> np.ndarray:
    """Normal deviate of each rate; infinite for 0 and 1, which a plot leaves out."""
    return torch.special.ndtri(torch.from_numpy(rates)).numpy()
