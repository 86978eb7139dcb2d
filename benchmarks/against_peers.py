# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Ours and its peers at the same work, interleaved: time, peak memory, multiply-accumulates, parameters."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import contenders
import numpy as np
import torch
from contenders import Contender
from measure import (
    SAMPLING_RATE,
    Section,
    alone,
    interleave,
    multiply_accumulates,
    parameters,
    peak_memory,
    spread,
    table,
)

SHORTEST = 0.5
"""Seconds: WavLM's x-vector head fails below 0.3."""


@dataclass(frozen=True)
class Workload:
    """What every contender does.

    Args:
        shape: Of the input, which is Gaussian noise.
        audio_seconds: What the input stands for.
        training: Forward and backward pass in training mode; else the forward pass, for inference.
    """

    shape: tuple[int, ...]
    audio_seconds: float
    training: bool = False

    def step(self, model: torch.nn.Module):
        """A function that does it once."""
        inputs = torch.randn(self.shape, generator=torch.Generator().manual_seed(0))
        model.train(self.training)

        def train() -> None:
            model(inputs.clone().requires_grad_()).square().mean().backward()
            model.zero_grad()

        @torch.no_grad()
        def infer() -> None:
            model(inputs)

        return train if self.training else infer


@dataclass
class Row:
    """What was measured of a contender: seconds (rounds,), peak memory in MB, if it was."""

    parameters: int
    macs: int
    seconds: np.ndarray
    memory: float | None = None


def compare(
    entries: Sequence[Contender], workload: Workload, rounds: int, threads: int, memory: bool
) -> dict[str, Row | str]:
    """A row of each contender by its name, or why it cannot be imported. Times are of one process, interleaved; each
    figure for memory, where they are asked for, is of a process of its own."""
    rows = alone(_race, entries, workload, rounds, threads=threads)
    for entry in entries:
        if memory and isinstance(rows[entry.name], Row):
            rows[entry.name].memory = alone(_memory, entry, workload, threads=threads)
    return rows


def _race(entries: Sequence[Contender], workload: Workload, rounds: int) -> dict[str, Row | str]:
    models, rows = {}, {}
    for entry in entries:
        try:
            models[entry.name] = entry.build()
        except ImportError as error:
            rows[entry.name] = f"not installed ({error}): `{entry.install}`"
    steps = {name: workload.step(model) for name, model in models.items()}
    seconds = interleave(steps, rounds)
    for name, step in steps.items():
        rows[name] = Row(parameters(models[name]), multiply_accumulates(step), seconds[name])
    return {entry.name: rows[entry.name] for entry in entries}


def _memory(entry: Contender, workload: Workload) -> float:
    return peak_memory(workload.step(entry.build()))


def show(rows: dict[str, Row | str], ours: str, workload: Workload) -> str:
    """The table of a comparison."""
    header = ["", "parameters", "GMAC", "seconds", "audio s/s", "time, ours = 1", "peak memory, MB"]
    cells = []
    for name, row in rows.items():
        if isinstance(row, str):
            cells.append([name, row, "", "", "", "", ""])
            continue
        cells.append(
            [
                name,
                f"{row.parameters / 1e6:.2f} M",
                f"{row.macs / 1e9:.2f}",
                f"{np.median(row.seconds):.3f}",
                f"{workload.audio_seconds / np.median(row.seconds):.1f}",
                "1" if name == ours else spread(row.seconds / rows[ours].seconds),
                "" if row.memory is None else f"{row.memory:.0f}",
            ]
        )
    return table(header, cells)


def quotient(rows: dict[str, Row | str], over: str, under: str) -> str:
    """How the times of two contenders compare, round by round."""
    if isinstance(rows[over], str) or isinstance(rows[under], str):
        return "not measured"
    return f"{spread(rows[over].seconds / rows[under].seconds)} ×"


# --- the comparisons -------------------------------------------------------------------------------------------------


def trunk(rounds: int, threads: int, seconds=lambda length: length) -> Section:
    """GALR blocks against DPRNN blocks of the same sizes."""
    ours, mingru, peer = "GALR (csc_hf)", "GALR, minGRU (csc_hf)", "DPRNN (Asteroid)"
    entries = [
        Contender(ours, contenders.GALRTrunk),
        Contender(mingru, functools.partial(contenders.GALRTrunk, "mingru")),
        Contender(peer, contenders.DPRNNTrunk, contenders.ASTEROID),
    ]
    config, length = contenders.TRUNK, seconds(2.0)
    segments = config.num_segments(round(length * SAMPLING_RATE))
    shape = (1, segments, config.segment_length, config.hidden_size)
    text = [
        f"Six blocks of each, D=64, H=128, K=100 (GALR: Q=32, 8 heads), on the same {segments} segments: those of "
        f"{length:g} s, in frames of 32 samples every 16. Only the blocks: no front end, segmentation or mask of "
        "either. GALR trains with the dropout of its configuration (0.1), DPRNN without, as is its default. minGRU is "
        '`local_layer="mingru"`, a cheaper local layer than that of GALR.'
    ]
    summary = []
    for training, name in ((False, "inference"), (True, "forward + backward")):
        workload = Workload(shape, length, training)
        rows = compare(entries, workload, rounds, threads, memory=training)
        text += [f"**{name.capitalize()}**", show(rows, ours, workload)]
        for blocks in (ours, mingru):
            summary.append((f"{blocks} against DPRNN, {name}, time", quotient(rows, blocks, peer)))
    for blocks in (ours, mingru):
        measured = "not measured"
        if isinstance(rows[peer], Row):
            measured = f"{rows[blocks].memory / rows[peer].memory:.2f} ×"
        summary.append((f"{blocks} against DPRNN, peak memory in training", measured))
    return Section("GALR against DPRNN", summary, "\n\n".join(text))


def embedding(rounds: int, threads: int, seconds=lambda length: length) -> Section:
    """Speaker embeddings, without separation."""
    ours, peer = "small (csc_hf)", "WavLM base x-vector (Transformers)"
    entries = [
        Contender(ours, contenders.csc_small_embeddings),
        Contender("small, minGRU (csc_hf)", functools.partial(contenders.csc_small_embeddings, "mingru")),
        Contender(peer, contenders.wavlm_base),
        Contender("Resemblyzer", contenders.Resemblyzer, contenders.RESEMBLYZER),
        Contender("ECAPA-TDNN (SpeechBrain)", contenders.ECAPA, contenders.BENCH),
    ]
    text = [
        "`CSCModel` of the preset `small`, without separation branch: embeddings of two slots. From waveforms to "
        "embeddings for all. Resemblyzer takes one recording at a time; its mel spectrogram is not PyTorch's, so that "
        "is in its time, but not in its GMAC."
    ]
    summary = []
    for batch, length in ((4, 10.0), (1, 4.0)):
        length = max(seconds(length), SHORTEST)
        workload = Workload((batch, round(length * SAMPLING_RATE)), batch * length)
        rows = compare(entries, workload, rounds, threads, memory=batch > 1)
        text += [f"**{batch} × {length:g} s**", show(rows, ours, workload)]
        what = f"embeddings by `small` against WavLM base, {batch} × {length:g} s, audio s/s"
        summary.append((what, quotient(rows, peer, ours)))
    return Section("Speaker embeddings", summary, "\n\n".join(text))


def separation(rounds: int, threads: int, seconds=lambda length: length) -> Section:
    """Two speakers apart, by learnt filters."""
    ours, peer = "CSC, conv front end (csc_hf)", "ConvTasNet 32/16 (Asteroid)"
    entries = [
        Contender(ours, contenders.csc_separation),
        Contender("the same, minGRU (csc_hf)", functools.partial(contenders.csc_separation, "mingru")),
        Contender(peer, contenders.asteroid_conv_tasnet, contenders.ASTEROID),
        Contender("ConvTasNet 16/8 (Asteroid)", contenders.asteroid_conv_tasnet_short, contenders.ASTEROID),
        Contender("ConvTasNet 16/8 (torchaudio)", contenders.TorchaudioConvTasNet, contenders.BENCH),
        Contender("SepFormer 16/8 (SpeechBrain)", contenders.sepformer, contenders.BENCH),
    ]
    length = seconds(4.0)
    workload = Workload((1, round(length * SAMPLING_RATE)), length)
    rows = compare(entries, workload, rounds, threads, memory=True)
    text = (
        f"Two sources of a mixture of {length:g} s at 16 kHz. Ours: D=64, H=128, K=100, Q=32, 8 heads, filters 32/16; "
        "four blocks shared, two to separate, one for the embeddings, which are computed as well. ConvTasNet 32/16 is "
        "as Asteroid's recipe for 16 kHz has it; 16/8, samples and stride of the filters, are the defaults of its "
        "class, of torchaudio, and of SepFormer. Speed only: with random weights, nothing here says how well they "
        "separate."
    )
    summary = [("separation against ConvTasNet 32/16, speed", quotient(rows, peer, ours))]
    return Section("Separation", summary, f"{text}\n\n{show(rows, ours, workload)}")
