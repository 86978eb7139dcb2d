# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Scale-invariant signal-to-distortion ratio as a metric of `evaluate`, computed by csc_hf.evaluation.metrics."""

import datasets
import evaluate
import numpy as np

from csc_hf.evaluation.metrics import si_sdr

DESCRIPTION = """\
Scale-invariant signal-to-distortion ratio of separated signals in dB, mean over the signals. Higher is better. Each
estimate is compared with the reference at the same position, so bring them into one order first.
"""

CITATION = """\
@inproceedings{leroux2019sdr,
  title     = {{SDR} -- Half-baked or Well Done?},
  author    = {Le Roux, Jonathan and Wisdom, Scott and Erdogan, Hakan and Hershey, John R.},
  booktitle = {IEEE International Conference on Acoustics, Speech and Signal Processing (ICASSP)},
  year      = {2019}
}
"""

INPUTS = """
Args:
    predictions: separated waveforms, a list of samples each. Their lengths may differ from each other.
    references: true waveforms, each as long as its estimate and not silent.

Returns:
    `si_sdr`, in dB, between -100 and 100.

Examples:
    >>> si_sdr = evaluate.load("metrics/si_sdr")
    >>> result = si_sdr.compute(predictions=[[2.0, 1.0, -2.0, -1.0]], references=[[1.0, 0.0, -1.0, 0.0]])
    >>> round(result["si_sdr"], 2)
    6.02
"""


class ScaleInvariantSDR(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Sequence(datasets.Value("float32")),
                }
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[list[float]]) -> dict[str, float]:
        pairs = zip(predictions, references, strict=True)
        return {"si_sdr": float(np.mean([si_sdr(estimate, reference) for estimate, reference in pairs]))}
