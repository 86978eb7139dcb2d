# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""What is logged of training: losses, speed, and what the last batch shows."""

import time
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from accelerate import Accelerator

from ..audio import SAMPLING_RATE
from ..data.stream import MixtureBatch
from ..evaluation.metrics import si_sdr_improvement
from ..modeling_csc import CSCForPreTrainingOutput
from .collapse import collapse_signs


class Meter:
    """Sums over the steps since the last log, and the last batch.

    Every scalar of the model's output is logged: a new term of the loss that stands there needs no change here.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, float] = {}
        self.micro_batches, self.audio_seconds, self.waiting = 0, 0.0, 0.0
        self.gradient_norm, self.steps, self.seconds = 0.0, 0, 0.0

    def begin_step(self) -> None:
        """Start the clock of a training step."""
        self.started = time.monotonic()

    def next_batch(self, batches: Iterator[MixtureBatch]) -> MixtureBatch:
        """The next batch; the time that it was waited for is counted."""
        started = time.monotonic()
        batch = next(batches)
        self.waiting += time.monotonic() - started
        return batch

    def add(self, batch: Mapping[str, torch.Tensor], output: CSCForPreTrainingOutput) -> dict[str, float]:
        """Count a micro-batch.

        Returns:
            The scalars of the output, by name.
        """
        scalars = {
            name: value.detach().float()
            for name, value in output.items()
            if isinstance(value, torch.Tensor) and value.ndim == 0
        }
        values = torch.stack(list(scalars.values())).tolist()  # one transfer from the device
        figures = dict(zip(scalars, values, strict=True))
        self.sums = {name: self.sums.get(name, 0.0) + figure for name, figure in figures.items()}
        self.micro_batches += 1
        self.audio_seconds += batch["input_values"].numel() / SAMPLING_RATE
        self.batch = batch
        self.estimates = output["sources"].detach()
        self.embeddings = output["source_embeddings"].detach().take_along_dim(output["permutation"][..., None], dim=1)
        return figures

    def end_step(self, gradient_norm: float) -> None:
        """Stop the clock of a training step."""
        self.gradient_norm += gradient_norm
        self.steps += 1
        self.seconds += time.monotonic() - self.started

    def read(self) -> dict[str, float]:
        """Means since the last log, over all processes, and start again. Every process has to call this."""
        values = {name: total / self.micro_batches for name, total in self.sums.items()}
        values["gradient_norm"] = self.gradient_norm / self.steps
        values["audio_seconds_per_second"] = self.audio_seconds / self.seconds
        values["data_waiting_share"] = self.waiting / self.seconds
        means = torch.tensor(list(values.values()), device=self.accelerator.device)
        values = dict(zip(values, self.accelerator.reduce(means, "mean").tolist(), strict=True))
        values["audio_seconds_per_second"] *= self.accelerator.num_processes
        values["real_time_factor"] = 1 / values["audio_seconds_per_second"]
        self._reset()
        return values

    def read_last_batch(self) -> dict[str, float]:
        """Signs of collapse, and the SI-SDR improvement of overlapped speech in dB, in this process's last batch."""
        sources: np.ndarray = self.batch["source_values"].float().cpu().numpy()
        mixtures: np.ndarray = self.batch["input_values"].float().cpu().numpy()
        values = collapse_signs(self.embeddings.float().cpu().numpy(), self.batch["speaker_ids"].cpu().numpy())
        present = np.any(sources, axis=-1)
        overlapped = np.flatnonzero(present.sum(axis=1) > 1).tolist()
        if overlapped:
            estimates = self.estimates.float().cpu().numpy()
            improvements = [
                si_sdr_improvement(estimates[i], sources[i, present[i]], mixtures[i]).mean() for i in overlapped
            ]
            values["si_sdr_improvement"] = float(np.mean(improvements))
        return values
