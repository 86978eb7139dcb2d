# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of what a model finds in a recording."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from .audio import SAMPLING_RATE
from .diarization import Diarization
from .files import check_folder, writing
from .modeling_csc import CSCForPreTraining

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours of the speakers (Okabe and Ito), which colour-blind people tell apart. They are repeated after six."""

MAX_HERTZ = 4000
"""Most of a voice is below."""

MIN_ROWS = 4
"""Rows of bars that there is room for at least: one row for one speaker would cover their spectrogram."""

DYNAMIC_RANGE_DB = 50
MAX_FRAMES = 4000
"""Columns of a picture at most. What lies between is averaged."""

WINDOW = 512


def plot_diarization(
    diarization: Diarization,
    waveform: np.ndarray,
    target: "str | os.PathLike | Axes",
    sampling_rate: int = SAMPLING_RATE,
) -> "Axes":
    """
    Draw who speaks when: the spectrogram of a recording, and over it a row of bars for each speaker.

    Args:
        diarization: What `csc_hf.diarization.diarize` has found in the recording.
        waveform: float (samples,).
        target: Image file to write, whose ending says its format; or axes to draw into.
        sampling_rate: Of the waveform.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib cannot be imported.
        ValueError: The waveform is not of shape (samples,), or empty.
    """
    from matplotlib.figure import Figure

    if waveform.ndim != 1 or len(waveform) == 0:
        raise ValueError(f"waveform of shape {waveform.shape}: give at least one sample, of shape (samples,)")
    if isinstance(target, str | os.PathLike):
        check_folder(Path(target).parent)
        figure = Figure(figsize=(10, 2.2 + 0.3 * diarization.num_speakers), layout="constrained")
        axes = plot_diarization(diarization, waveform, figure.subplots(), sampling_rate)
        with writing(target) as unfinished:
            figure.savefig(unfinished)
        return axes
    axes = target
    _draw_spectrogram(axes, waveform, sampling_rate)
    names = list(diarization.embeddings)
    height = MAX_HERTZ / 1000 / max(len(names), MIN_ROWS)
    for place, name in enumerate(names):
        spans = [(turn.start, turn.end - turn.start) for turn in diarization.turns if turn.speaker == name]
        bottom = MAX_HERTZ / 1000 - (place + 1) * height
        colour = COLOURS[place % len(COLOURS)]
        axes.broken_barh(spans, (bottom + 0.1 * height, 0.8 * height), color=colour, alpha=0.45, label=name)
    if names:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return axes


@torch.no_grad()
def plot_attention(
    model: CSCForPreTraining,
    embedding: np.ndarray,
    waveform: np.ndarray,
    axes: "Axes",
    colour: str = COLOURS[0],
) -> None:
    """
    Draw where the cross-attention of a model looks in an enrolment: its spectrogram, and over it the mean weight of
    all heads, summed over the slots, as a multiple of what it would be if it were even.

    Args:
        model: In evaluation mode.
        embedding: float (embedding,), whom to look for: the speaker of another recording.
        waveform: float (samples,), the enrolment, at the sampling rate of the model. It goes through the model as a
            whole, so it is a few seconds long.
        axes: What to draw into.
        colour: Of the weights.
    """
    config = model.config
    memory = model.base_model(torch.from_numpy(waveform)[None]).source_hidden_states[0]  # (slots, segments, size)
    scores = model.aggregator.scores(torch.from_numpy(embedding), memory.flatten(0, 1))  # (heads, slots · segments)
    weights = scores.softmax(dim=-1).mean(dim=0).view(memory.shape[:2]).sum(dim=0).numpy()
    seconds = np.asarray(config.segment_centres(len(waveform))) / config.sampling_rate
    _draw_spectrogram(axes, waveform, config.sampling_rate)
    over = axes.twinx()
    over.fill_between(seconds, weights * len(weights), step="mid", color=colour, alpha=0.6, linewidth=0)
    over.axhline(1, color=colour, linestyle="--", linewidth=1)
    over.set_ylim(0, max(4.0, 1.1 * float(weights.max()) * len(weights)))
    over.set_ylabel("attention\n(even: 1)")


def _draw_spectrogram(axes: "Axes", waveform: np.ndarray, sampling_rate: int) -> None:
    level = _spectrogram(waveform, sampling_rate)
    axes.imshow(
        level - np.quantile(level, 0.99),
        cmap="Greys",
        vmin=-DYNAMIC_RANGE_DB,
        vmax=0,
        origin="lower",
        aspect="auto",
        extent=(0, len(waveform) / sampling_rate, 0, MAX_HERTZ / 1000),
    )
    axes.set_xlim(0, len(waveform) / sampling_rate)
    axes.set_ylim(0, MAX_HERTZ / 1000)
    axes.set_xlabel("time (s)")
    axes.set_ylabel("frequency (kHz)")


def _spectrogram(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Level in dB, (frequencies up to MAX_HERTZ, at most about MAX_FRAMES)."""
    samples = torch.from_numpy(np.ascontiguousarray(waveform, dtype=np.float32))
    samples = torch.nn.functional.pad(samples, (0, max(0, WINDOW - len(samples))))
    num_joined = max(1, len(samples) // (MAX_FRAMES * WINDOW // 2))
    columns = []
    # By parts: the spectrum of an hour would not fit.
    for part in samples.split(WINDOW // 2 * num_joined * 64):
        part = torch.nn.functional.pad(part, (0, max(0, WINDOW - len(part))))
        frames = part.unfold(0, WINDOW, WINDOW // 2) * torch.hann_window(WINDOW)
        power = torch.fft.rfft(frames).abs().square()[:, : MAX_HERTZ * WINDOW // sampling_rate]
        columns += [joined.mean(dim=0) for joined in power.split(num_joined)]
    return 10 * np.log10(torch.stack(columns, dim=1).numpy() + 1e-16)
