# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Log examples to the trackers of a run: the audio, spectrograms and cross-attention of a few mixtures."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.tracking import GeneralTracker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ..modeling_csc import (
    CSCForPreTraining,
    check_shape,
    length_mask,
    pairwise_si_snr,
    permutation_invariant_separation_loss,
)

logger = get_logger(__name__)

NUM_EXAMPLES = 2
"""Mixtures that are logged each time."""

DYNAMIC_RANGE_DB = 60.0
"""Spectrograms show levels down to this far below their loudest bin."""

ATTENTION_RANGE = 8.0
"""Attention is coloured from 1 / 8 of even attention to 8 times even attention, at every step of a training."""

SLOT_KINDS = ("empty slot", "other identity", "same identity")
"""Names of slots, by how many of these are true: somebody speaks in it; they are the identity of the query."""


def log_examples(
    accelerator: Accelerator, step: int, model: CSCForPreTraining | None, batch: Mapping[str, torch.Tensor]
) -> None:
    """Log audio, spectrograms and cross-attention of the two mixtures of a batch that have most speakers.

    For each, under `example_1/` and `example_2/`: audio of the `mixture` and of the estimates (`estimate_1`, ...), in
    the order of the sources and with the loudest sample at full scale; `spectrograms`; and `attention`, from the first
    source's embedding over the other mixtures of its identity (its memory in training). If the identity is in no other
    mixture, that figure is left out.

    TensorBoard and W&B take all of it. Other trackers of Accelerate get the figures if they have `log_images`; what
    they do not get is logged once.

    Only the main process does anything. The model runs there on the mixtures that hold the two identities, in
    evaluation mode and without drawing random numbers. Then its mode is restored.

    Args:
        accelerator: the one that `init_trackers` was called on.
        step: the training step.
        model: the model itself, not what `accelerator.prepare` wraps it in; None in other processes.
        batch: `input_values` (mixtures, samples), `attention_mask` (mixtures, samples), `source_values` (mixtures,
            slots, samples) and `speaker_ids` (mixtures, slots), as `CSCForPreTraining.forward` takes them, on any
            device.
    """
    if not accelerator.is_main_process or model is None:
        return
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    num_speakers = (batch["source_values"] != 0).any(-1).sum(-1)
    chosen = num_speakers.argsort(descending=True, stable=True)[:NUM_EXAMPLES].tolist()
    audio: dict[str, torch.Tensor] = {}
    images: dict[str, np.ndarray] = {}
    training = model.training
    model.eval()
    for number, mixture in enumerate(chosen, start=1):
        signals, figures = illustrate(model, batch, mixture)
        audio |= {f"example_{number}/{name}": signal for name, signal in signals.items()}
        images |= {f"example_{number}/{name}": _render(figure) for name, figure in figures.items()}
    model.train(training)
    for tracker in accelerator.trackers:
        _log(tracker, step, audio, images, model.config.sampling_rate)


@torch.no_grad()
def illustrate(
    model: CSCForPreTraining, batch: Mapping[str, torch.Tensor], mixture: int
) -> tuple[dict[str, torch.Tensor], dict[str, Figure]]:
    """Audio (samples,) and figures of one mixture of a batch, by name, see `log_examples`. Empty slots are left out.

    Args:
        model: in evaluation mode.
        batch: as for `log_examples`, on the model's device.
        mixture: its row in the batch.
    """
    present = (batch["source_values"] != 0).any(-1)
    speaker_ids = batch["speaker_ids"].masked_fill(~present, -100)
    target = present[mixture].int().argmax()  # the first source
    same = (speaker_ids == speaker_ids[mixture, target]) & (speaker_ids >= 0)
    same[mixture] = False
    rows = [mixture, *same.any(-1).nonzero()[:, 0].tolist()]  # the mixture, then its memory
    present, same = present[rows], same[rows]

    config, attention_mask = model.config, batch["attention_mask"][rows]
    outputs = model.csc(batch["input_values"][rows], attention_mask)
    _, permutation, _ = permutation_invariant_separation_loss(
        outputs.sources, batch["source_values"][rows], attention_mask, config.si_snr_threshold
    )

    waveform = batch["input_values"][mixture].cpu()
    sources = batch["source_values"][mixture, present[0]].cpu()
    estimates = match_level(outputs.sources[0, permutation[0, present[0]]].cpu(), sources)
    audio = {"mixture": waveform} | {f"estimate_{i}": estimate for i, estimate in enumerate(estimates, start=1)}
    peak = max(signal.abs().max().item() for signal in audio.values())
    audio = {name: signal / max(peak, 1e-8) for name, signal in audio.items()}
    figures = {"spectrograms": spectrogram_figure(waveform, sources, estimates, config.sampling_rate)}
    if len(rows) == 1:
        return audio, figures

    segment_mask = length_mask(config.num_segments(attention_mask.sum(-1)), outputs.source_hidden_states.shape[2])
    weights = attention_weights(
        model,
        outputs.source_embeddings[0, permutation[0, target]],
        outputs.source_hidden_states[1:],
        segment_mask[1:],
    )
    # From the order of the targets to that of the slots.
    kinds = (present.long() + same).take_along_dim(permutation.argsort(-1), dim=1)[1:]
    slot_names = [[SLOT_KINDS[kind] for kind in slots] for slots in kinds.tolist()]
    figures["attention"] = attention_figure(
        weights.cpu(),
        slot_names,
        segment_seconds=config.segment_stride / config.sampling_rate,
        first_seconds=config.segment_centres(attention_mask.shape[-1])[0] / config.sampling_rate,
    )
    return audio, figures


def spectrogram_figure(
    mixture: torch.Tensor, sources: torch.Tensor, estimates: torch.Tensor, sampling_rate: int
) -> Figure:
    """Spectrograms of a mixture and, in a column each, of its sources and their estimates, on one colour scale.

    Estimates are scaled to the level of their source, since SI-SNR leaves their scale free.

    Args:
        mixture: (samples,).
        sources: (sources, samples), what the mixture consists of.
        estimates: (sources, samples), the estimate of each source.
        sampling_rate: in Hz.

    Raises:
        ValueError: the shapes do not match.
    """
    check_shape("sources", sources, (len(sources), *mixture.shape))
    check_shape("estimates", estimates, sources.shape)
    num_sources, num_samples = sources.shape
    estimates = match_level(estimates, sources)
    spectra = _log_spectra(torch.cat([mixture[None], sources, estimates]), sampling_rate)
    spectra -= spectra.max()
    si_snr = pairwise_si_snr(
        torch.stack([mixture.expand_as(sources), estimates], dim=1),
        sources[:, None],
        torch.ones_like(sources),
        threshold=DYNAMIC_RANGE_DB,
    )
    titles = ["mixture", *(f"source {i}" for i in range(1, num_sources + 1))]
    for i, ((before,), (after,)) in enumerate(si_snr.tolist(), start=1):
        titles.append(f"estimate {i}: SI-SNR {after:.1f} dB (mixture {before:.1f} dB)")

    figure = Figure(figsize=(4 * (1 + num_sources), 5.5), layout="constrained")
    grid = figure.add_gridspec(2, 1 + num_sources)
    cells = [grid[:, 0], *(grid[row, 1 + column] for row in range(2) for column in range(num_sources))]
    for cell, title, spectrum in zip(cells, titles, spectra, strict=True):
        axes = figure.add_subplot(cell, title=title, xlabel="time (s)", ylabel="frequency (kHz)")
        axes.title.set_fontsize("medium")
        image = axes.imshow(
            spectrum.numpy(),
            cmap="magma",
            vmin=-DYNAMIC_RANGE_DB,
            vmax=0,
            origin="lower",
            aspect="auto",
            extent=(0, num_samples / sampling_rate, 0, sampling_rate / 2000),
        )
    figure.colorbar(image, ax=figure.axes, label="level (dB)", aspect=40)
    return figure


@torch.no_grad()
def attention_weights(
    model: CSCForPreTraining, query: torch.Tensor, memory: torch.Tensor, memory_mask: torch.Tensor
) -> torch.Tensor:
    """Weights of the cross-attention of `CSCForPreTraining.aggregate` for one embedding.

    Args:
        model: the model with the attention.
        query: the speaker embedding, (embedding size,).
        memory: `source_hidden_states` of other mixtures, (mixtures, slots, segments, hidden size).
        memory_mask: 1 for their real segments, (mixtures, segments).

    Returns:
        (heads, mixtures, slots, segments); those of a head sum to 1.
    """
    scores = model.aggregator.scores(query, memory.flatten(0, -2)).unflatten(-1, memory.shape[:-1])
    scores = scores.masked_fill(memory_mask[:, None] == 0, -torch.inf)
    return scores.flatten(1).softmax(dim=-1).view_as(scores)


def attention_figure(
    weights: torch.Tensor, slot_names: Sequence[Sequence[str]], segment_seconds: float, first_seconds: float = 0.0
) -> Figure:
    """A panel for each mixture of the memory, with a band for each slot, with a row for each head.

    White is attention spread evenly over the memory, red is more, blue is less, grey is padding. Beside the name of a
    slot is its share of the attention, averaged over heads.

    Args:
        weights: from `attention_weights`, (heads, mixtures, slots, segments).
        slot_names: who speaks in each slot, a list of names for each mixture.
        segment_seconds: time from one segment to the next.
        first_seconds: time at the centre of the first segment.
    """
    heads, num_mixtures, num_slots, num_segments = weights.shape
    real = (weights > 0).any(0)
    relative = (weights * real.sum()).masked_fill(~real, torch.nan)
    share = weights.mean(0).sum(-1).tolist()
    begin = first_seconds - 0.5 * segment_seconds

    height = 0.9 + num_mixtures * (0.5 + 0.09 * num_slots * heads)
    figure = Figure(figsize=(8, height), layout="constrained")
    panels = figure.subplots(num_mixtures, sharex=True, squeeze=False)[:, 0]
    for b, axes in enumerate(panels):
        image = axes.imshow(
            relative[:, b].transpose(0, 1).flatten(0, 1).numpy(),  # (slots · heads, segments)
            cmap="RdBu_r",
            norm=LogNorm(1 / ATTENTION_RANGE, ATTENTION_RANGE),
            interpolation="nearest",
            aspect="auto",
            # A segment is drawn around its centre.
            extent=(begin, begin + num_segments * segment_seconds, num_slots, 0),
        )
        axes.set_facecolor("lightgrey")
        axes.set_title(f"memory, mixture {b + 1}", fontsize="medium")
        names = [f"{name}  {100 * share[b][c]:.0f} %" for c, name in enumerate(slot_names[b])]
        axes.set_yticks([c + 0.5 for c in range(num_slots)], names)
        axes.tick_params(axis="y", length=0)
        for c in range(1, num_slots):
            axes.axhline(c, color="black", linewidth=1)
    panels[-1].set_xlabel("time (s)")
    colorbar = figure.colorbar(image, ax=panels, label="attention / even attention", extend="both")
    limit = f"{ATTENTION_RANGE:g}"
    colorbar.set_ticks([1 / ATTENTION_RANGE, 1, ATTENTION_RANGE], labels=[f"1/{limit}", "1", limit], minor=False)
    colorbar.minorticks_off()
    return figure


def match_level(signals: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Signals (..., samples), each scaled to the power of its reference (..., samples). Silence stays silent."""
    power, wanted = signals.square().mean(-1, keepdim=True), references.square().mean(-1, keepdim=True)
    return signals * (wanted / power.clamp(min=1e-20)).sqrt()


def _log_spectra(signals: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """(signals, samples) → (signals, frequencies, frames) in dB, from windows of 32 ms every 8 ms."""
    size = round(0.032 * sampling_rate)
    window = torch.hann_window(size, device=signals.device)
    # Zero padding: a reflection would need half a window of signal.
    spectra = torch.stft(signals, size, size // 4, window=window, pad_mode="constant", return_complex=True)
    return 20 * (spectra.abs() + 1e-8).log10()


def _render(figure: Figure) -> np.ndarray:
    """(height, width, 3), uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _log(
    tracker: GeneralTracker,
    step: int,
    audio: Mapping[str, torch.Tensor],
    images: Mapping[str, np.ndarray],
    sampling_rate: int,
) -> None:
    """Log audio and images with one tracker."""
    if tracker.name == "tensorboard":
        for name, signal in audio.items():
            tracker.writer.add_audio(name, signal, step, sample_rate=sampling_rate)
        for name, image in images.items():  # not `add_figure`, which imports pyplot
            tracker.writer.add_image(name, image, step, dataformats="HWC")
    elif tracker.name == "wandb":
        import wandb

        media = {name: wandb.Audio(signal.numpy(), sampling_rate) for name, signal in audio.items()}
        media |= {name: wandb.Image(image) for name, image in images.items()}
        tracker.run.log(media, step=step)
    elif hasattr(tracker, "log_images"):
        logger.warning_once(f"examples: audio goes to tensorboard and wandb only, {tracker.name} gets the figures")
        # Aim and ClearML take one image a name, the other trackers of Accelerate a list of them.
        one = tracker.name in ("aim", "clearml")
        tracker.log_images({name: image if one else [image] for name, image in images.items()}, step=step)
    else:
        logger.warning_once(f"examples: neither audio nor figures go to {tracker.name}, which has no log_images")
