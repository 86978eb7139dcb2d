# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Draws what a model hears: a recording of several speakers, what it separates, which of them is an enrolled speaker, and
where the cross-attention looks in the enrolment.

    python examples/plot_separation.py                                     # the figure of README.md
    python examples/plot_separation.py --mixture meeting.wav --enrolment anna.wav --name Anna --output figure.png
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from csc_hf import CSCForPreTraining
from csc_hf.audio import SAMPLING_RATE, decode_audio
from csc_hf.files import check_folder, escape_unprintable, writing
from csc_hf.long_audio import separate
from csc_hf.training.visualize import ATTENTION_RANGE, attention_weights

ROOT = Path(__file__).resolve().parents[1]
AUDIO = ROOT / "examples" / "audio"

MAX_KHZ = 4  # most of a voice is below
DYNAMIC_RANGE_DB = 50
WINDOW = 512
COLOURS = 96


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=ROOT / "model_cards" / "csc-small", help="pre-trained model")
    parser.add_argument("--mixture", default=AUDIO / "meeting.flac", help="recording of several speakers")
    parser.add_argument("--enrolment", default=AUDIO / "anna.flac", help="recording of one of them alone")
    parser.add_argument("--name", default="Anna", help="what to call that speaker")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images" / "separation.png", help="image file")
    return parser.parse_args(argv)


def spectrogram(waveform: np.ndarray) -> np.ndarray:
    """Level in dB, (frequencies up to MAX_KHZ, frames), of a waveform of shape (samples,)."""
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(torch.from_numpy(waveform), WINDOW, WINDOW // 2, window=window, return_complex=True)
    return 20 * np.log10(spectrum.abs().numpy()[: MAX_KHZ * 1000 * WINDOW // SAMPLING_RATE] + 1e-8)


def draw_spectrogram(axes: Axes, waveform: np.ndarray, full_scale: float, title: str) -> AxesImage:
    """Draw the spectrogram of a waveform of shape (samples,); `full_scale`, in dB, has the brightest colour."""
    image = axes.imshow(
        spectrogram(waveform) - full_scale,
        cmap=matplotlib.colormaps["magma"].resampled(16),
        vmin=-DYNAMIC_RANGE_DB,
        vmax=0,
        interpolation="nearest",
        origin="lower",
        aspect="auto",
        extent=(0, len(waveform) / SAMPLING_RATE, 0, MAX_KHZ),
    )
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_ylabel("frequency\n(kHz)")
    axes.set_yticks(range(0, MAX_KHZ + 1, 2))
    return image


@torch.no_grad()
def plot(model: CSCForPreTraining, mixture: np.ndarray, enrolment: np.ndarray, name: str) -> Figure:
    """The figure for a mixture and an enrolment of shape (samples,)."""
    separated = separate(model, mixture)
    enrolled = model.base_model(torch.from_numpy(enrolment)[None])
    speaker = enrolled.source_activity[0].argmax()
    scores = separated.embeddings @ enrolled.source_embeddings[0, speaker].numpy()
    best = int(np.where(separated.activity > 0, scores, -np.inf).argmax())
    weights = attention_weights(
        model,
        torch.from_numpy(separated.embeddings[best]),
        enrolled.source_hidden_states,
        torch.ones(1, enrolled.source_hidden_states.shape[2]),
    )[:, 0]  # (heads, slots, segments)
    num_slots, num_segments = weights.shape[1:]

    figure = Figure(figsize=(11, 1.5 * (1 + num_slots) + 0.8), layout="constrained")
    left, right = figure.subfigures(1, 2)
    panels = left.subplots(1 + num_slots, sharex=True)
    full_scale = float(np.quantile(spectrogram(mixture), 0.99))
    draw_spectrogram(panels[0], mixture, full_scale, "Recording: everybody at once")
    for slot, axes in enumerate(panels[1:]):
        likeness = f"cosine with {name} {scores[slot]:.2f}" + (f" → {name}" if slot == best else "")
        image = draw_spectrogram(axes, separated.sources[slot], full_scale, f"Separated, slot {slot + 1}: {likeness}")
    panels[-1].set_xlabel("time (s)")
    left.colorbar(image, ax=panels, label="level (dB)", aspect=40, pad=0.02)

    above, below = right.subplots(2, sharex=True, height_ratios=(1, 1.3))
    full_scale = float(np.quantile(spectrogram(enrolment), 0.99))
    image = draw_spectrogram(above, enrolment, full_scale, f"Enrolment: {name} alone")
    right.colorbar(image, ax=above, label="level (dB)", aspect=15, pad=0.02)
    above.tick_params(labelbottom=False)
    stride = model.config.segment_stride / SAMPLING_RATE
    begin = model.config.segment_centres(len(enrolment))[0] / SAMPLING_RATE - 0.5 * stride
    image = below.imshow(
        (weights * weights[0].numel()).transpose(0, 1).flatten(0, 1).numpy(),  # a row for each slot and head
        cmap=matplotlib.colormaps["RdBu_r"].resampled(25),
        norm=LogNorm(1 / ATTENTION_RANGE, ATTENTION_RANGE),
        interpolation="nearest",
        aspect="auto",
        extent=(begin, begin + num_segments * stride, num_slots, 0),
    )
    below.set_xlim(0, len(enrolment) / SAMPLING_RATE)
    below.set_title(f"Cross-attention over the enrolment, queried by slot {best + 1}", loc="left", fontsize=11)
    share = weights.mean(0).sum(-1)
    holds = ["nobody" if logit < 0 else name for logit in enrolled.source_activity[0]]
    names = [f"slot {slot + 1}:\n{holds[slot]}\n({share[slot]:.0%})" for slot in range(num_slots)]
    below.set_yticks(np.arange(num_slots) + 0.5, names)
    below.tick_params(axis="y", length=0)
    for slot in range(1, num_slots):
        below.axhline(slot, color="black", linewidth=1)
    below.set_xlabel("time (s)")
    bar = right.colorbar(image, ax=below, label="attention / even attention", aspect=20, pad=0.02)
    bar.set_ticks([1 / ATTENTION_RANGE, 1, ATTENTION_RANGE], labels=["1/8", "1", "8"], minor=False)
    bar.minorticks_off()
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write an image of few colours, a fraction of the size of what matplotlib writes."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(100)
    canvas.draw()
    check_folder(path.parent)
    with writing(path) as unfinished:
        Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(COLOURS).save(unfinished, optimize=True)


def main() -> None:
    escape_unprintable()
    args = parse_args()
    model = CSCForPreTraining.from_pretrained(args.model).eval()
    figure = plot(model, decode_audio(args.mixture), decode_audio(args.enrolment), args.name)
    save(figure, args.output)
    print(args.output)


if __name__ == "__main__":
    main()
