# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Figures and audio of a training run, written by real trackers and read back from what they wrote."""

import io
import logging
import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.tracking import GeneralTracker
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from csc_hf import CSCConfig, CSCForPreTraining
from csc_hf.audio import decode_audio
from csc_hf.evaluation.metrics import si_sdr
from csc_hf.modeling_csc import pooled_statistics
from csc_hf.training.visualize import (
    attention_figure,
    attention_weights,
    illustrate,
    log_examples,
    match_level,
    spectrogram_figure,
)

RATE = 16_000
SPEAKER_IDS = [[0, -100], [0, 1], [1, 2], [2, 0], [3, -100], [1, -100]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return CSCForPreTraining(CSCConfig.tiny(front_end="stft")).eval()


@pytest.fixture
def batch():
    """Rows 1 to 3 hold two speakers, row 4 one whom no other row holds. Sources are noise bursts."""
    generator = torch.Generator().manual_seed(0)
    speaker_ids = torch.tensor(SPEAKER_IDS)
    sources = torch.randn(*speaker_ids.shape, 4800, generator=generator)
    sources *= torch.rand(*speaker_ids.shape, 12, generator=generator).repeat_interleave(400, dim=-1)
    sources *= (speaker_ids >= 0)[..., None]
    mixtures = sources.sum(1)
    return {
        "input_values": mixtures,
        "attention_mask": torch.ones_like(mixtures).long(),
        "source_values": sources,
        "speaker_ids": speaker_ids,
    }


def log_to_tensorboard(model, batch, folder):
    """Log at step 7, and read the event file back."""
    accelerator = Accelerator(log_with="tensorboard", project_dir=folder)
    accelerator.init_trackers("run")
    log_examples(accelerator, 7, model, batch)
    accelerator.end_training()
    events = EventAccumulator(str(folder / "run"), size_guidance={"audio": 0, "images": 0})
    return events.Reload()


def test_tensorboard_gets_audio_and_figures_of_the_mixtures_with_most_speakers(model, batch, tmp_path, monkeypatch):
    with monkeypatch.context() as without_pyplot:  # its figures would pile up, and it chooses a backend
        without_pyplot.setitem(sys.modules, "matplotlib.pyplot", None)
        events = log_to_tensorboard(model, batch, tmp_path)
    examples = ["example_1", "example_2"]
    sounds = ["mixture", "estimate_1", "estimate_2"]
    assert sorted(events.Tags()["audio"]) == sorted(f"{e}/{name}" for e in examples for name in sounds)
    assert sorted(events.Tags()["images"]) == [
        f"{e}/{name}" for e in examples for name in ("attention", "spectrograms")
    ]

    for example, row in zip(examples, (1, 2), strict=True):
        decoded = {}
        for name in sounds:
            (event,) = events.Audio(f"{example}/{name}")
            assert (event.step, event.sample_rate) == (7, RATE)
            decoded[name] = decode_audio(event.encoded_audio_string)
        peak = max(np.abs(waveform).max() for waveform in decoded.values())
        assert peak == pytest.approx(1, abs=1e-3)
        mixture = batch["input_values"][row].numpy()
        scale = (decoded["mixture"] @ mixture) / (mixture @ mixture)
        np.testing.assert_allclose(decoded["mixture"], scale * mixture, atol=1e-4)
        # Estimates are heard as loud as their sources are in the mixture.
        for slot in range(2):
            power = np.square(decoded[f"estimate_{slot + 1}"]).mean()
            wanted = np.square(scale * batch["source_values"][row, slot].numpy()).mean()
            assert power == pytest.approx(wanted, rel=1e-2)
        for name in ("attention", "spectrograms"):
            (event,) = events.Images(f"{example}/{name}")
            image = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
            assert event.step == 7 and image.shape == (event.height, event.width, 3)
            assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20  # something is drawn


@pytest.mark.parametrize("training", [True, False])
def test_logging_leaves_mode_and_random_numbers_and_does_not_drop_out(model, batch, tmp_path, training):
    expected = illustrate(model, batch, 1)[0]["estimate_1"]
    model.train(training)
    state = torch.get_rng_state()
    events = log_to_tensorboard(model, batch, tmp_path)
    modes = {module.training for module in model.modules()}
    model.eval()
    assert modes == {training}
    assert torch.equal(torch.get_rng_state(), state)
    decoded = decode_audio(events.Audio("example_1/estimate_1")[0].encoded_audio_string)
    np.testing.assert_allclose(decoded, expected.numpy(), atol=1e-4)


def test_only_the_main_process_logs(model, batch, tmp_path, monkeypatch):
    accelerator = Accelerator(log_with="tensorboard", project_dir=tmp_path)
    accelerator.init_trackers("run")
    with monkeypatch.context() as elsewhere:
        elsewhere.setitem(PartialState._shared_state, "process_index", 1)
        log_examples(accelerator, 0, model, batch)
    accelerator.end_training()
    assert EventAccumulator(str(tmp_path / "run")).Reload().Tags()["audio"] == []


class TextTracker(GeneralTracker):
    name = "text"
    requires_logging_directory = False
    tracker = None

    def __init__(self):
        super().__init__()
        self.logged = []


class ImageTracker(TextTracker):
    name = "image"

    def log_images(self, values, step=None):
        self.logged.append((step, values))


def test_other_trackers_get_figures_if_they_take_any_and_what_they_lack_is_said_once(model, batch, caplog):
    text, image, single = TextTracker(), ImageTracker(), ImageTracker()
    single.name = "aim"  # Accelerate's tracker of this name takes one image, not a list
    accelerator = Accelerator(log_with=[text, image, single])
    accelerator.init_trackers("run")
    with caplog.at_level(logging.WARNING, logger="csc_hf.training.visualize"):
        log_examples(accelerator, 3, model, batch)
        log_examples(accelerator, 4, model, batch)
    accelerator.end_training()
    assert text.logged == [] and [step for step, _ in image.logged] == [3, 4]
    names = [f"example_{i}/{name}" for i in (1, 2) for name in ("attention", "spectrograms")]
    assert sorted(image.logged[0][1]) == names
    for name in names:
        (picture,) = image.logged[0][1][name]
        assert picture.dtype == np.uint8 and picture.ndim == 3
        np.testing.assert_array_equal(picture, single.logged[0][1][name])
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    assert "neither audio nor figures go to text" in messages[0] and "image gets the figures" in messages[1]


def test_wandb_gets_audio_and_figures(model, batch, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    accelerator = Accelerator(log_with="wandb")
    accelerator.init_trackers("run")
    log_examples(accelerator, 7, model, batch)
    assert accelerator.trackers[0].run.step == 7
    accelerator.end_training()
    assert len(list(tmp_path.rglob("media/images/example_*/*.png"))) == 4
    (path,) = tmp_path.rglob("media/audio/example_1/mixture_*.wav")
    expected = illustrate(model, batch, 1)[0]["mixture"].numpy()
    np.testing.assert_allclose(decode_audio(path), expected, atol=1e-4)


def test_estimates_follow_their_sources_whatever_the_slots(model, batch):
    audio, figures = illustrate(model, batch, 1)
    names = [axes.get_title().split(":")[0] for axes in figures["spectrograms"].axes[:-1]]
    assert names == ["mixture", "source 1", "source 2", "estimate 1", "estimate 2"]
    batch["source_values"], batch["speaker_ids"] = batch["source_values"].flip(1), batch["speaker_ids"].flip(1)
    swapped, _ = illustrate(model, batch, 1)
    torch.testing.assert_close(swapped["estimate_1"], audio["estimate_2"])
    torch.testing.assert_close(swapped["estimate_2"], audio["estimate_1"])
    assert not torch.allclose(audio["estimate_1"], audio["estimate_2"], atol=1e-2)


def test_empty_slots_and_missing_memory_are_left_out(model, batch):
    audio, figures = illustrate(model, batch, 4)
    assert list(audio) == ["mixture", "estimate_1"]
    assert list(figures) == ["spectrograms"]
    assert [axes.get_title().split(":")[0] for axes in figures["spectrograms"].axes[:-1]] == [
        "mixture",
        "source 1",
        "estimate 1",
    ]

    batch["speaker_ids"][1] = -100  # two speakers of whom nobody knows who they are
    audio, figures = illustrate(model, batch, 1)
    assert list(audio) == ["mixture", "estimate_1", "estimate_2"] and list(figures) == ["spectrograms"]


def test_attention_weights_are_those_of_the_aggregator(model):
    torch.manual_seed(0)
    memory, query = (
        torch.randn(3, 2, 5, model.config.hidden_size),
        5 * torch.randn(model.config.speaker_embedding_size),
    )
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    weights = attention_weights(model, query, memory, mask)
    assert weights.std() > 0.01  # not simply even
    torch.testing.assert_close(weights.sum((1, 2, 3)), torch.ones(model.config.num_attention_heads))
    assert (weights.transpose(2, 3)[:, mask == 0] == 0).all()
    torch.testing.assert_close(answer(model, memory, weights), model.aggregate(query, *in_one_row(memory, mask)))


def in_one_row(memory, mask):
    """As `aggregate` wants it: (B, C, S, D) and (B, S) → (M, D) and (M,)."""
    return memory.flatten(0, 2), mask[:, None].expand(memory.shape[:3]).flatten()


def answer(model, memory, weights):
    """The global speaker vector (E,) made of the means of the memory that the weights give."""
    heads = memory.unflatten(-1, (weights.shape[0], -1))
    mean, mean_square = (torch.einsum("hbcs,bcshd->hd", weights, value).flatten() for value in (heads, heads.square()))
    with torch.no_grad():
        vector = model.csc.speaker_branch.embedding(pooled_statistics(mean, mean_square - mean.square()))
        return torch.nn.functional.normalize(vector, dim=-1)


@torch.no_grad()
def test_the_attention_drawn_is_what_the_contrast_was_computed_with(model, batch):
    _, figures = illustrate(model, batch, 1)  # speakers 0 and 1; rows 0 and 3 hold speaker 0
    panels = figures["attention"].axes[:-1]
    assert [panel.get_title() for panel in panels] == ["memory, mixture 1", "memory, mixture 2"]
    drawn = torch.stack([torch.from_numpy(panel.images[0].get_array().filled()) for panel in panels])
    drawn = drawn.unflatten(1, (2, -1)).permute(2, 0, 1, 3)  # (B, C · heads, S) → (heads, B, C, S)
    weights = drawn / drawn[0].numel()
    memory = model.csc(batch["input_values"][[0, 3]]).source_hidden_states
    vectors = model(**batch).global_speaker_vectors
    torch.testing.assert_close(answer(model, memory, weights), vectors[1, 0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_slots_of_the_memory_are_named_by_whom_they_hold():
    torch.manual_seed(0)
    model = CSCForPreTraining(CSCConfig.tiny(front_end="stft", num_sources=3)).eval()
    sources, speaker_ids = torch.randn(9, 3, 2400), torch.tensor([0, 1, -100]).repeat(9, 1)
    sources[:, 2] = 0
    batch = {"input_values": sources.sum(1), "source_values": sources, "speaker_ids": speaker_ids}
    batch["attention_mask"] = torch.ones_like(batch["input_values"]).long()
    permutation = model(**batch).permutation[1:]
    # Where permutations are not their own inverses, the slot of a target is not the target of a slot.
    assert (permutation.argsort(-1) != permutation).any()

    panels = illustrate(model, batch, 0)[1]["attention"].axes[:-1]
    labels = [[label.get_text().rsplit(maxsplit=2) for label in panel.get_yticklabels()] for panel in panels]
    for slots, of_targets in zip(labels, permutation, strict=True):
        for slot, name in zip(of_targets, ("same identity", "other identity", "empty slot"), strict=True):
            assert slots[slot][0] == name
    assert sum(int(share) for slots in labels for _, share, _ in slots) == pytest.approx(100, abs=14)  # each rounded


def test_attention_figure_shows_where_and_when():
    weights = torch.full((2, 1, 2, 4), 0.02)
    weights[:, 0, 1, 2] = 0.88
    weights[..., 3] = 0  # padding
    (axes, _) = attention_figure(weights, [["empty slot", "same identity"]], segment_seconds=0.5).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["empty slot  6 %", "same identity  92 %"]
    data = axes.images[0].get_array()
    assert data.shape == (4, 4) and data.mask[:, 3].all() and not data.mask[:, :3].any()
    np.testing.assert_allclose(data[2:, 2], 6 * 0.88, rtol=1e-6)  # six real places
    assert np.asarray(axes.images[0].get_extent()[:2]) == pytest.approx([-0.25, 1.75])
    assert "s)" in axes.get_xlabel()


def images_of(figure):
    return {axes.get_title().split(":")[0]: axes.images[0] for axes in figure.axes if axes.get_title()}


def test_spectrograms_share_scale_and_axes():
    time = torch.arange(RATE) / RATE
    tone = torch.sin(2 * torch.pi * 1000 * time) * (time < 0.5)
    noise = 0.01 * torch.randn(RATE, generator=torch.Generator().manual_seed(0))
    sources = torch.stack([tone, 0.1 * tone.flip(0)])
    figure = spectrogram_figure(sources.sum(0), sources, sources + noise, RATE)
    images = images_of(figure)
    assert list(images) == ["mixture", "source 1", "source 2", "estimate 1", "estimate 2"]
    assert {image.get_clim() for image in images.values()} == {(-60, 0)}
    loud, quiet = images["source 1"].get_array(), images["source 2"].get_array()
    assert max(image.get_array().max() for image in images.values()) == 0
    assert loud.max() - quiet.max() == pytest.approx(20, abs=0.1)

    # The tone is where the axes say it is.
    left, right, bottom, top = images["source 1"].get_extent()
    assert (left, right, bottom, top) == (0, 1, 0, 8)
    row, column = np.unravel_index(loud.argmax(), loud.shape)
    assert row / (len(loud) - 1) * top == pytest.approx(1, abs=0.05)
    assert column / loud.shape[1] < 0.5 and images["source 1"].origin == "lower"
    assert all(axes.get_xlabel() == "time (s)" and "kHz" in axes.get_ylabel() for axes in figure.axes[:-1])


def test_spectrograms_show_estimates_at_the_level_of_their_source_and_how_good_they_are():
    generator = torch.Generator().manual_seed(0)
    sources = torch.randn(2, 8000, generator=generator)
    estimates = sources + 0.3 * torch.randn(2, 8000, generator=generator)
    quiet, loud = (spectrogram_figure(sources.sum(0), sources, scale * estimates, RATE) for scale in (0.01, 100.0))
    for name, image in images_of(quiet).items():
        np.testing.assert_allclose(image.get_array(), images_of(loud)[name].get_array(), atol=1e-3)
    levels = [np.mean(images_of(quiet)[name].get_array()) for name in ("source 1", "estimate 1")]
    assert levels[0] == pytest.approx(levels[1], abs=0.2)
    for i, title in enumerate(axes.get_title() for axes in quiet.axes[3:5]):
        after, before = si_sdr(torch.stack([estimates[i], sources.sum(0)]).numpy(), sources[i].numpy())
        assert title == f"estimate {i + 1}: SI-SNR {after:.1f} dB (mixture {before:.1f} dB)"


@pytest.mark.parametrize("num_samples", [1, 100])
def test_spectrograms_of_very_short_or_silent_audio(num_samples):
    sources = torch.ones(1, num_samples)
    images = images_of(spectrogram_figure(sources[0], sources, torch.zeros(1, num_samples), RATE))
    assert all(np.isfinite(image.get_array()).all() for image in images.values())


def test_spectrogram_figure_names_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"`estimates` must have shape \(2, 800\) here, got \(1, 800\)"):
        spectrogram_figure(torch.ones(800), torch.ones(2, 800), torch.ones(1, 800), RATE)
    with pytest.raises(ValueError, match=r"`sources` must have shape \(2, 800\) here, got \(2, 700\)"):
        spectrogram_figure(torch.ones(800), torch.ones(2, 700), torch.ones(2, 700), RATE)


def test_match_level():
    signals, references = torch.tensor([[1.0, -1], [0, 0], [3, 4]]), torch.tensor([[2.0, 2], [9, 9], [0, 0]])
    assert match_level(signals, references).tolist() == [[2, -2], [0, 0], [0, 0]]
