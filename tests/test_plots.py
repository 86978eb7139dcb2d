# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from csc_hf import CSCConfig, CSCForPreTraining
from csc_hf.diarization import Diarization, Turn
from csc_hf.plots import COLOURS, MAX_FRAMES, plot_attention, plot_diarization
from csc_hf.training.visualize import attention_weights

RATE = 16000
RESULT = Diarization(
    [Turn(0.5, 2.0, "anna", 0.9), Turn(1.5, 3.0, "ben", 0.8), Turn(3.5, 4.0, "anna", 0.9)],
    {"anna": np.ones(2, np.float32), "ben": np.ones(2, np.float32)},
    4.0,
)


def noise(seconds):
    return np.random.default_rng(0).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


def test_each_speaker_has_a_row_of_bars():
    axes = Figure().subplots()
    assert plot_diarization(RESULT, noise(4), axes) is axes
    for name, bars, spans in zip(
        RESULT.embeddings, axes.collections, ([(0.5, 2.0), (3.5, 4.0)], [(1.5, 3.0)]), strict=True
    ):
        assert bars.get_label() == name
        found = [tuple(path.vertices[:, 0][[0, 2]]) for path in bars.get_paths()]
        assert sorted(tuple(sorted(span)) for span in found) == spans
    rows = [bars.get_paths()[0].vertices[:, 1] for bars in axes.collections]
    assert rows[1].max() < rows[0].min(), "one below the other"
    assert rows[1].min() > 2, "few speakers leave half of the spectrogram, of 4 kHz, to be seen"
    assert len(axes.images) == 1 and axes.get_xlim() == (0, 4.0)


@pytest.mark.parametrize("seconds", [1 / RATE, 0.01, 4.0])
def test_pictures_are_written(tmp_path, seconds):
    plot_diarization(RESULT, noise(seconds), tmp_path / "a.png")
    picture = imread(tmp_path / "a.png")
    assert picture.shape[1] == 1000 and picture.std() > 0.05


def test_more_speakers_than_colours_and_none():
    many = {f"speaker_{number}": np.ones(2) for number in range(len(COLOURS) + 1)}
    axes = plot_diarization(
        Diarization([Turn(0, 1, name, 1.0) for name in many], many, 1.0), noise(1), Figure().subplots()
    )
    assert len(axes.collections) == len(COLOURS) + 1
    assert not plot_diarization(Diarization([], {}, 1.0), noise(1), Figure().subplots()).collections


def test_an_hour_has_as_many_columns_as_a_picture():
    axes = plot_diarization(RESULT, np.zeros(3600 * 160, np.float32), Figure().subplots(), sampling_rate=160)
    assert MAX_FRAMES / 2 <= axes.images[0].get_array().shape[1] <= 2 * MAX_FRAMES


def test_wrong_shapes_are_named():
    for wrong in (np.zeros((2, 100)), np.zeros(0)):
        with pytest.raises(ValueError, match="shape"):
            plot_diarization(RESULT, wrong, Figure().subplots())


def test_attention_is_drawn_as_a_multiple_of_even_attention():
    torch.manual_seed(0)
    model = CSCForPreTraining(CSCConfig.tiny(initializer_range=0.3)).eval()
    voice, query = noise(1), torch.nn.functional.normalize(torch.randn(model.config.speaker_embedding_size), dim=0)
    axes = Figure().subplots()
    plot_attention(model, query.numpy(), voice, axes, COLOURS[1])
    over = axes.figure.axes[1]
    heights = over.collections[0].get_paths()[0].vertices[:, 1]
    with torch.no_grad():
        memory = model.base_model(torch.from_numpy(voice)[None]).source_hidden_states
    weights = attention_weights(model, query, memory, torch.ones(1, memory.shape[2])).mean(0).sum((0, 1))
    assert heights.max() == pytest.approx(len(weights) * weights.max().item(), rel=1e-5)
    assert over.lines[0].get_ydata()[0] == 1 and len(axes.images) == 1
