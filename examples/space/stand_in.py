# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Until there is the pipeline: turns by the energy of separated slots."""
from dataclasses import dataclass
from pathlib import Path
import numpy as np
import soundfile
from csc_hf.long_audio import separate

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


@dataclass
class Turn:
    start: float
    end: float
    speaker: str
    score: float


@dataclass
class Diarization:
    turns: list
    num_speakers: int
    embeddings: dict
    duration: float


def diarize(model, waveform, voices, num_speakers=None):
    found = separate(model, waveform)
    turns, embeddings = [], {}
    level = np.abs(waveform).max()
    for slot in np.flatnonzero(found.activity > 0):
        name = f"speaker_{len(embeddings) + 1}"
        embeddings[name] = found.embeddings[slot]
        source = found.sources[slot]
        soundfile.write(Path(voices) / f"{name}.wav", source, 16000)
        n = len(source) // 4000
        active = np.abs(source[: n * 4000]).reshape(n, 4000).max(1) > 0.1 * level
        edges = np.flatnonzero(np.diff(np.concatenate([[0], active, [0]])))
        turns += [Turn(a / 4, b / 4, name, 0.9) for a, b in edges.reshape(-1, 2)]
    return Diarization(sorted(turns, key=lambda t: t.start), len(embeddings), embeddings, len(waveform) / 16000)


def plot_diarization(diarization, waveform, axes):
    import torch
    s = torch.stft(torch.from_numpy(waveform), 512, 256, window=torch.hann_window(512), return_complex=True)
    db = 20 * np.log10(s.abs().numpy()[:128] + 1e-8)
    top = np.quantile(db, 0.99)
    axes.imshow(db - top, cmap="Greys", vmin=-50, vmax=0, origin="lower", aspect="auto",
                extent=(0, diarization.duration, 0, 4))
    names = list(diarization.embeddings)
    for t in diarization.turns:
        i = names.index(t.speaker)
        axes.axvspan(t.start, t.end, color=COLOURS[i], alpha=0.4, ymin=1 - (i + 1) / len(names), ymax=1 - i / len(names))
    axes.set_xlabel("time (s)")
    axes.set_ylabel("frequency (kHz)")


def attention_weights(model, query, memory, memory_mask):
    scores = model.aggregator.scores(query, memory.flatten(0, -2)).unflatten(-1, memory.shape[:-1])
    return scores.masked_fill(memory_mask[:, None] == 0, -float("inf")).flatten(1).softmax(dim=-1).view_as(scores)
