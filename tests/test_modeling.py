# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""What Transformers' common tests do not cover: padding, levels, losses, cross-attention, wrapped layers."""

import copy
import itertools
import math
import os
import subprocess
import sys

import peft
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from csc_hf import (
    CSCConfig,
    CSCForAudioFrameClassification,
    CSCForPreTraining,
    CSCForSequenceClassification,
    CSCForSpeakerVerification,
    CSCForSpeechSeparation,
    CSCForXVector,
    CSCModel,
    modeling_csc,
)
from csc_hf.modeling_csc import (
    CSCGlobalLayerNorm,
    CSCMaskedBatchNorm,
    CSCSTFTDecoder,
    CSCSTFTFrontEnd,
    frame_activity_loss,
    headroom,
    mel_filters,
    overlap_add,
    pairwise_si_snr,
    permutation_invariant_separation_loss,
    pooled_statistics,
    split_frames,
    stft_window,
    when_speech_sounds,
)

CLASSES = [
    CSCModel,
    CSCForPreTraining,
    CSCForXVector,
    CSCForSequenceClassification,
    CSCForAudioFrameClassification,
    CSCForSpeechSeparation,
]
ALL_CLASSES = [*CLASSES, CSCForSpeakerVerification]  # which takes two sides: see test_scorer.py
HEADS = [CSCForXVector, CSCForSequenceClassification, CSCForAudioFrameClassification, CSCForSpeakerVerification]
FRONT_ENDS = ["conv", "stft"]


SPECTRAL = {
    "mel": {"num_mel_bins": 20, "frame_stride": 2, "mask_hidden_size": 8, "frame_activity": True},
    "apart": {"segment_overlap": False},
    "tdnn": {
        "num_mel_bins": 20,
        "subtract_mean": True,
        "frame_stride": 2,
        "mask_hidden_size": 8,
        "speaker_block": "conv",
        "speaker_hidden_size": 24,
        "embedding_batch_norm": True,
        "num_speaker_layers": 2,
        "segment_length": 4,
        "segment_overlap": False,
        "frame_activity": True,
    },
}
"""More models with the front end "stft", by a name that stands for it in these tests."""


def tiny(front_end="conv", **overrides):
    if front_end in SPECTRAL:
        return CSCConfig.tiny(**{"front_end": "stft", **SPECTRAL[front_end], **overrides})
    return CSCConfig.tiny(front_end=front_end, **overrides)


def moments(model):
    """The moving averages of batch norms, which are those of no batch in a new model."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer, std=0.3)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 2.0)
    return model


def mixtures(num_samples=3000):
    """Six mixtures of the identities 0..3, one for each pair."""
    pairs = torch.tensor(list(itertools.combinations(range(4), 2)))
    sources = torch.randn(len(pairs), 2, num_samples)
    return {"input_values": sources.sum(1), "source_values": sources, "speaker_ids": pairs}


def labels_of(model, num_samples):
    """Everything that the loss of a model needs for the six mixtures."""
    batch = mixtures(num_samples)
    labels = {
        CSCModel: {},
        CSCForPreTraining: batch,
        CSCForSpeechSeparation: {"labels": batch["source_values"]},
        CSCForXVector: {"labels": torch.arange(6) % 2},
        CSCForSequenceClassification: {"labels": torch.arange(6) % 2},
        CSCForAudioFrameClassification: {"labels": torch.ones(6, model.config.num_segments(num_samples), 2)},
        CSCForSpeakerVerification: {"enrolment_values": batch["source_values"], "labels": torch.eye(6)},
    }
    return {"input_values": batch["input_values"]} | labels[type(model)]


def tensors(output):
    return {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# --- padding and input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_class", "front_end", "local_layer"),
    [
        *itertools.product(CLASSES, FRONT_ENDS, ["lstm"]),
        (CSCForPreTraining, "stft", "mingru"),
        *itertools.product([CSCForPreTraining], SPECTRAL, ["lstm"]),
        (CSCForAudioFrameClassification, "tdnn", "lstm"),
    ],
)
def test_padding_changes_no_output(model_class, front_end, local_layer):
    config = tiny(front_end, local_layer=local_layer, xvector_scale=1.0)  # logits that are cosines, not 30 times those
    model = moments(model_class(config)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # a new model's biases are zero, and would hide what they do to padding
            torch.nn.init.normal_(parameter, std=0.3)
    lengths = [4000, 2501, 1300, 400, 10, 1]
    batch, mask = torch.randn(len(lengths), 4000), torch.zeros(len(lengths), 4000, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1  # the padding of `batch` is noise: only the mask may matter
    with torch.no_grad():
        padded = model(batch, attention_mask=mask, output_hidden_states=True)
        for row, length in enumerate(lengths):
            alone = model(batch[row : row + 1, :length], output_hidden_states=True)
            assert alone.keys() == padded.keys() and len(alone.hidden_states) == config.num_hidden_layers + 1
            for name in set(alone) - {"hidden_states"}:
                expected, actual = alone[name][0], padded[name][row]
                actual = actual[tuple(slice(size) for size in expected.shape)]
                torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
            for expected, actual in zip(alone.hidden_states, padded.hidden_states, strict=True):
                torch.testing.assert_close(actual[row, : expected.shape[1]], expected[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("front_end", [*FRONT_ENDS, *SPECTRAL])
@pytest.mark.parametrize("num_samples", [1, 10, 400])
def test_short_and_silent_audio_gives_finite_unit_vectors(front_end, num_samples):
    model = CSCForSpeechSeparation(tiny(front_end)).eval()
    for audio in (torch.zeros(1, num_samples), torch.full((1, num_samples), 1e-6), torch.randn(1, num_samples)):
        with torch.no_grad():
            output = model(audio)
        assert all(output[name].isfinite().all() for name in ("sources", "source_embeddings", "source_activity"))
        torch.testing.assert_close(output.source_embeddings.norm(dim=-1), torch.ones(1, 2))


@pytest.mark.parametrize("front_end", ["mel", "tdnn"])
def test_nobody_speaks_in_digital_silence(front_end):
    """Not even for a model that would say so of anything."""
    model = CSCModel(tiny(front_end)).eval()
    with torch.no_grad():
        model.frame_activity.bias.fill_(3.0)
        model.speaker_branch.activity.bias.fill_(3.0)
        recordings = torch.stack([torch.zeros(8000), torch.randn(8000), 1e-30 * torch.randn(8000)])
        output = model(recordings)
    for logits in (output.source_activity, output.source_frame_activity):
        assert (logits[0] < -10).all()
        assert (logits[1:] > 0).all()


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_a_short_recording_does_not_amplify_rounding(front_end):
    """With each weight off by at most one unit in the last place, the output moves by about as much, however few
    segments the deviation is computed from."""
    for seed in range(4):
        torch.manual_seed(seed)
        model = CSCModel(tiny(front_end)).eval()
        for parameter in model.parameters():
            if parameter.dim() == 1:
                nn.init.normal_(parameter, std=0.3)
        rounded = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in rounded.parameters():
                parameter.mul_(1 + torch.randint(-1, 2, parameter.shape) * 2.0**-23)
            for num_samples in (1, 10, 100, 400):
                audio = torch.randn(1, num_samples)
                expected, actual = model(audio), rounded(audio)
                for name in ("source_embeddings", "source_activity"):
                    torch.testing.assert_close(actual[name], expected[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("front_end", [*FRONT_ENDS, "tdnn"])
def test_level_does_not_matter(front_end):
    model = CSCForSpeechSeparation(tiny(front_end)).eval()
    audio = torch.randn(1, 3000)
    with torch.no_grad():
        expected = model(audio)
        for level in (1e-3, 1e4, 1e19, 3e38 / audio.abs().max()):
            actual = model(audio * level)
            torch.testing.assert_close(actual.source_embeddings, expected.source_embeddings, atol=1e-4, rtol=0)
            wanted = (expected.sources.double() * level).clamp(-3.4e38, 3.4e38).float()
            torch.testing.assert_close(actual.sources, wanted, atol=1e-3 * level, rtol=1e-3)


def test_the_loudest_samples_give_finite_losses_and_gradients():
    model = CSCForPreTraining(tiny())
    batch = mixtures()
    sources = batch["source_values"] / batch["source_values"].abs().max()
    for level in (1e9, 1e19, 1.7e38):
        output = model(sources.sum(1) * level, source_values=sources * level, speaker_ids=batch["speaker_ids"])
        output.loss.backward()
        assert all(value.isfinite().all() for value in tensors(output).values())
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_headroom_rounds_nothing():
    signal = torch.randn(7, 1, 100) * torch.tensor([0, 1e-30, 0.1, 1, 40, 1e19, 8e37])[:, None, None]
    scale = headroom(signal)
    assert (scale[:3] == 1).all() and (torch.frexp(scale)[0] == 0.5).all()
    assert torch.equal(signal * scale / scale, signal)
    assert (signal * scale).abs().max() <= 8 and (signal * scale)[3:].abs().amax(-1).min() > 0.99


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize("value", [NAN, INFINITE, -INFINITE])
def test_a_recording_that_is_not_finite_is_refused_by_name(value):
    model = CSCModel(tiny()).eval()
    audio, mask = torch.randn(3, 2000), torch.ones(3, 2000, dtype=torch.long)
    mask[1, 1500:] = 0
    audio[1, 1700] = value  # in the padding, where nothing is read
    assert model(audio, attention_mask=mask).source_embeddings.isfinite().all()
    audio[1, 1200] = value
    with pytest.raises(ValueError, match=r"input_values\[1\].* NaN or infinite .* at 1200\. Repair"):
        model(audio, attention_mask=mask)


@pytest.mark.parametrize("front_end", ["conv", "tdnn"])
@pytest.mark.parametrize(
    ("model_class", "name"), [(CSCForPreTraining, "source_values"), (CSCForSpeechSeparation, "labels")]
)
def test_sources_are_finite_where_they_are_not_padding(model_class, name, front_end):
    model = model_class(tiny(front_end)).eval()
    batch = labels_of(model, 2000) | {"attention_mask": torch.ones(6, 2000, dtype=torch.long)}
    batch["attention_mask"][1, 1500:] = 0
    expected = model(**batch).loss
    batch["input_values"][1, 1500:] = batch[name][1, :, 1500:] = NAN
    loss = model(**batch).loss
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    batch[name][1, 0, 1200] = INFINITE
    with pytest.raises(ValueError, match=name + r"\[1, 0\].* NaN or infinite .* at 1200\. Repair"):
        model(**batch)


@pytest.mark.parametrize("wrong", [slice(0, 5), slice(700, 800), slice(None)])
def test_a_mask_that_does_not_pad_on_the_right_is_refused_by_name(wrong):
    model = CSCModel(tiny()).eval()
    mask = torch.ones(2, 2000, dtype=torch.long)
    mask[0, 1500:] = 0
    model(torch.randn(2, 2000), attention_mask=mask.bool())
    mask[1, wrong] = 0
    with pytest.raises(ValueError, match=r"attention_mask\[1\].*pad on the right, as CSCFeatureExtractor does"):
        model(torch.randn(2, 2000), attention_mask=mask)


def test_wrong_shapes_are_named():
    model = CSCForPreTraining(tiny(num_recording_classes=3))
    good = mixtures()
    for name, tensor in {
        "attention_mask": torch.ones(6, 2999),
        "source_values": torch.randn(6, 3, 3000),
        "speaker_ids": torch.zeros(6, 3, dtype=torch.long),
        "recording_ids": torch.zeros(6, 3, dtype=torch.long),
    }.items():
        with pytest.raises(ValueError, match=f"{name}.*must have shape"):
            model(**good | {name: tensor})
    with pytest.raises(ValueError, match="num_recording_classes"):
        CSCForPreTraining(tiny())(**good, recording_ids=good["speaker_ids"])
    with pytest.raises(ValueError, match="source_values"):
        model(input_values=good["input_values"], speaker_ids=good["speaker_ids"])
    for audio in (torch.empty(1, 0), torch.randn(1, 2, 3000), torch.randn(3000)):
        with pytest.raises(ValueError, match="input_values"):
            model.csc(audio)


# --- frames and spectra --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "hop", "length"), [(32, 16, 100), (32, 16, 96), (512, 128, 1), (512, 128, 1000)])
def test_overlap_add_inverts_split_frames(size, hop, length):
    signal = torch.randn(2, length, 3)
    for num_frames in (-(-length // hop) + size // hop - 1, -(-length // hop) + size // hop + 4):
        frames = split_frames(signal, size, hop, num_frames)
        assert frames.shape == (2, num_frames, size, 3)
        torch.testing.assert_close(overlap_add(frames, hop)[:, :length], signal * (size // hop))


def test_an_open_stft_mask_returns_the_mixture():
    config = tiny("stft")
    front_end, decoder = CSCSTFTFrontEnd(config), CSCSTFTDecoder(config)
    torch.nn.init.zeros_(decoder.mask.weight)
    torch.nn.init.constant_(decoder.mask.bias, 40.0)
    waveform = torch.randn(2, 3001)
    num_frames = config.num_frames(3001)
    _, spectrum = front_end(waveform, torch.ones(2, num_frames, 1), torch.float32)
    sources = decoder(torch.randn(2, 2, num_frames, config.hidden_size), spectrum, 3001)
    torch.testing.assert_close(sources, waveform[:, None].expand(-1, 2, -1), atol=1e-5, rtol=0)
    assert stft_window(config, torch.device("cpu")).shape == (512,)


# --- GALR block, against the formulas of the method, on (batch, segments, frames, size) -----------------------------


def reference_layer_norm(norm, values, mask, residual):
    """One mixture at a time, over its real positions alone."""
    output = residual.clone()
    for b in range(len(values)):
        real = mask[b, ..., 0].bool()
        x = values[b][real]
        normalised = (x - x.mean()) / (x.var(unbiased=False) + norm.eps).sqrt()
        output[b][real] += normalised * norm.weight + norm.bias
    return output


def reference_recurrence(recurrence, segment):
    """`(frames, size)` → `(frames, 2 * recurrent size)`."""
    if hasattr(recurrence, "lstm"):
        states = recurrence.initial_hidden, recurrence.initial_cell
        return recurrence.lstm(segment[:, None], states)[0][:, 0]
    size = recurrence.initial_hidden.shape[-1]
    values, shares = recurrence.candidates_and_gates(segment).split(2 * size, dim=-1)
    output = torch.zeros_like(values)
    for direction, frames in enumerate((range(len(segment)), reversed(range(len(segment))))):
        channels = slice(direction * size, (direction + 1) * size)
        state = recurrence.initial_hidden[direction, 0]
        for k in frames:
            share = 1 / (1 + torch.exp(-shares[k, channels]))
            state = (1 - share) * state + share * values[k, channels]
            output[k, channels] = state
    return output


def reference_block(block, hidden_states, mask):
    """Of a model without dropout and with attention over all segments."""
    local, glob = block.local_recurrence, block.global_attention
    batch, segments, frames, size = hidden_states.shape
    rows = [reference_recurrence(local.recurrence, segment) for segment in hidden_states.flatten(0, 1)]
    values = local.projection(torch.stack(rows)).view(hidden_states.shape)
    hidden_states = reference_layer_norm(local.layer_norm, values, mask, hidden_states)

    rows = torch.einsum("qk,bskd->bsqd", glob.compress.weight, hidden_states) + glob.compress.bias[:, None]
    angle = torch.arange(segments)[:, None] / 10000 ** (2 * torch.arange(size // 2) / size)
    rows = glob.input_layer_norm(rows) + torch.cat([angle.sin(), angle.cos()], -1)[:, None]
    attention = glob.attention
    q, k, v = (
        projection(rows).unflatten(-1, (-1, attention.head_dim))
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    weights = (torch.einsum("bsqhd,btqhd->bqhst", q, k) / attention.head_dim**0.5).softmax(-1)
    attended = attention.out_proj(torch.einsum("bqhst,btqhd->bsqhd", weights, v).flatten(-2))
    rows = glob.output_layer_norm(rows + attended)
    values = torch.einsum("kq,bsqd->bskd", glob.expand.weight, rows) + glob.expand.bias[:, None]
    return reference_layer_norm(glob.layer_norm, values, mask, hidden_states)


@pytest.mark.parametrize(("attention", "local_layer"), [("eager", "lstm"), ("sdpa", "lstm"), ("sdpa", "mingru")])
def test_a_block_computes_the_formulas_of_the_method(attention, local_layer):
    config = tiny(local_layer=local_layer, initializer_range=0.3, hidden_dropout=0.0, attention_dropout=0.0)
    config._attn_implementation = attention
    block = CSCModel(config).layers[0]
    for parameter in block.parameters():
        if parameter.dim() == 1 or parameter.shape[0] == 2:  # norms, biases, initial states: zero and one when new
            torch.nn.init.normal_(parameter, std=0.3)
    mask = torch.ones(3, 5, 32, 1)
    mask[1, 2:, 7:] = 0
    hidden_states = (torch.randn(3, 5, 32, 16) * mask).requires_grad_()
    actual = block(hidden_states.flatten(1, 2), mask, None)
    expected = reference_block(block, hidden_states, mask).flatten(1, 2)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)

    weight = torch.randn_like(actual)
    wanted = [hidden_states, *block.parameters()]
    gradients = [torch.autograd.grad((weight * output).sum(), wanted) for output in (actual, expected)]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_without_means_the_gain_of_each_bin_changes_nothing():
    speech, mask = torch.randn(1, 80 * 128), torch.ones(1, 80, 1)
    spectrum = torch.fft.rfft(speech)
    gains = torch.linspace(1.5, -1.0, spectrum.shape[-1]).exp()
    filtered = torch.fft.irfft(spectrum * gains, speech.shape[-1])
    for subtract_mean in (True, False):
        front_end = CSCSTFTFrontEnd(tiny("stft", subtract_mean=subtract_mean))
        features, others = (front_end(waveform, mask, torch.float32)[0] for waveform in (speech, filtered))
        change = (features - others).abs().mean() / features.abs().mean()
        assert change < 0.1 if subtract_mean else change > 0.3


def test_no_mel_band_is_empty():
    filters = mel_filters(128, 257, 16000, torch.device("cpu"))
    torch.testing.assert_close(filters.sum(0), torch.ones(128))
    assert (filters >= 0).all()
    assert filters[:, 0].argmax() < 3 and filters[:, -1].argmax() > 245
    assert (filters.argmax(0).diff() >= 0).all()


def test_batch_norm_is_that_of_pytorch_over_the_real_positions():
    norm = CSCMaskedBatchNorm(5, 1e-5)
    mask = (torch.arange(7) < torch.tensor([7, 3, 1])[:, None])[..., None]
    values = torch.randn(3, 7, 5) * mask
    real = mask.squeeze(-1)
    for training in (True, False):
        actual = norm.train(training)(values, mask, mask.float())
        expected = F.batch_norm(values[real], norm.running_mean.clone(), norm.running_var.clone(), training=training)
        torch.testing.assert_close(actual[real], expected)
        assert not actual[~real].any()
    torch.testing.assert_close(norm.running_mean, 0.1 * values[real].mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * values[real].var(0, correction=0))


def test_moments_of_a_batch_are_those_of_what_counts():
    norm, values, weights = CSCMaskedBatchNorm(5, 1e-5), torch.randn(4, 5), torch.tensor([[1.0], [1.0], [0.0], [0.5]])
    actual = norm(values, torch.ones(4, 1), weights)
    twice = values[[0, 0, 1, 1, 3]]  # a weight of a half is half a row
    torch.testing.assert_close(actual[[0, 0, 1, 1, 3]], F.batch_norm(twice, None, None, training=True))
    assert actual[2].any()
    assert norm(values, torch.ones(4, 1), torch.zeros(4, 1)).isfinite().all()


def test_a_slot_that_does_not_speak_changes_no_moments():
    model = CSCModel(tiny("tdnn")).train()
    with torch.no_grad():
        model.frame_activity.weight.zero_()
        model.frame_activity.bias.fill_(-20.0)
        model(torch.randn(3, 4000))
    norms = [module for module in model.modules() if isinstance(module, CSCMaskedBatchNorm)]
    assert len(norms) == 3 and all(norm.running_mean.abs().max() < 1e-3 for norm in norms)


def test_what_the_memory_answers_changes_no_moments():
    """The moving averages are those of the embeddings; a global speaker vector is made by them in training, too."""
    model = moments(CSCForPreTraining(tiny("tdnn"))).train()
    query, memory = torch.randn(4, 32), torch.randn(4, 6, 24)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    vectors = model.aggregate(query, memory)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    torch.testing.assert_close(model.eval().aggregate(query, memory), vectors)


def test_a_frozen_norm_uses_its_moving_averages_and_leaves_them_alone():
    norm, values, ones = moments(CSCMaskedBatchNorm(5, 1e-5)), torch.randn(4, 5), torch.ones(4, 1)
    before = copy.deepcopy(norm.state_dict())
    expected = norm.eval()(values, ones, ones)
    norm.weight.requires_grad_(False)
    assert torch.equal(norm.train()(values, ones, ones), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in norm.state_dict().items())
    norm.weight.requires_grad_(True)
    assert not torch.allclose(norm(values, ones, ones), expected)
    assert not torch.equal(norm.running_mean, before["running_mean"])


def test_two_forward_passes_before_one_backward_pass():
    """As with two views of a recording, or gradients of several losses. Moving averages must not be in the graph."""
    model, batch = CSCForPreTraining(tiny("tdnn", hidden_dropout=0.0, attention_dropout=0.0)).train(), mixtures(2000)
    apart = copy.deepcopy(model)
    for _ in range(2):
        apart(**batch).loss.backward()
    sum(model(**batch).loss for _ in range(2)).backward()
    for (name, parameter), other in zip(model.named_parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_a_norm_keeps_the_precision_of_its_residual():
    norm, mask = CSCGlobalLayerNorm(16, 1e-5), torch.ones(2, 40, 1)
    values, residual = torch.randn(2, 40, 16, dtype=torch.bfloat16), torch.randn(2, 40, 16)
    expected = reference_layer_norm(norm, values.float(), mask, residual)
    torch.testing.assert_close(norm(values, mask, residual=residual), expected)
    assert norm(values, mask).dtype == torch.bfloat16


# --- separation loss -----------------------------------------------------------------------------------------------


def test_si_snr_is_that_of_its_definition():
    estimates, targets, mask = torch.randn(3, 2, 500), torch.randn(3, 2, 500), torch.ones(3, 500)
    mask[1, 300:] = 0
    actual = pairwise_si_snr(estimates, targets, mask, threshold=100.0)
    for b, e, t in itertools.product(range(3), range(2), range(2)):
        length = int(mask[b].sum())
        estimate, target = estimates[b, e, :length].double(), targets[b, t, :length].double()
        estimate, target = estimate - estimate.mean(), target - target.mean()
        projection = (estimate @ target) / (target @ target) * target
        expected = 10 * torch.log10(projection.square().sum() / (estimate - projection).square().sum())
        assert actual[b, e, t].item() == pytest.approx(expected.item(), abs=1e-3)


def test_si_snr_saturates_at_the_threshold():
    target = torch.randn(1, 1, 500)
    nearly = target + 1e-4 * torch.randn(1, 1, 500)
    assert pairwise_si_snr(nearly, target, torch.ones(1, 500), 30.0).item() == pytest.approx(30.0, abs=0.05)


def test_the_best_permutation_orders_the_slots():
    targets = torch.randn(2, 3, 500)
    estimates = targets[:, [2, 0, 1]] * torch.tensor([2.0, 0.1, 5.0])[:, None] + 0.1 * torch.randn(2, 3, 500)
    loss, permutation, present = permutation_invariant_separation_loss(estimates, targets, torch.ones(2, 500), 30.0)
    assert permutation.tolist() == [[1, 2, 0]] * 2  # target 0 is in slot 1, ...
    assert present.all()
    expected = pairwise_si_snr(
        estimates.gather(1, permutation[..., None].expand(-1, -1, 500)), targets, torch.ones(2, 500), 30.0
    )
    assert loss.item() == pytest.approx(-expected.diagonal(dim1=1, dim2=2).mean().item(), abs=1e-4)


def test_silent_targets_count_for_nothing():
    targets, mask = torch.randn(2, 2, 500), torch.ones(2, 500)
    targets[0, 1] = 0
    estimates = (targets + 0.3 * torch.randn(2, 2, 500)).requires_grad_()
    loss, permutation, present = permutation_invariant_separation_loss(estimates, targets, mask, 30.0)
    assert present.tolist() == [[True, False], [True, True]]
    (gradient,) = torch.autograd.grad(loss, estimates)
    assert gradient.isfinite().all()
    idle = permutation[0, 1]
    assert gradient[0, idle].abs().max() == 0 and gradient[0, 1 - idle].abs().max() > 0
    silent, _, _ = permutation_invariant_separation_loss(estimates, torch.zeros_like(targets), mask, 30.0)
    assert silent.item() == 0
    zeros = torch.zeros(1, 2, 500, requires_grad=True)
    loss, _, _ = permutation_invariant_separation_loss(zeros, torch.randn(1, 2, 500), mask[:1], 30.0)
    assert torch.autograd.grad(loss, zeros)[0].isfinite().all()


def bursts(*spoken, num_frames=40, level=1.0):
    """Noise in the frames of 512 samples from `start` up to `stop` of each pair, 50 dB less elsewhere."""
    signal = 0.003 * torch.randn(num_frames, 512)
    for start, stop in spoken:
        signal[start:stop] = torch.randn(stop - start, 512)
    return level * signal.flatten()


def test_speech_sounds_where_its_level_says_so():
    sources = torch.stack([bursts((3, 10), (11, 15), (20, 30), level=1e-3), bursts((0, 40)), torch.zeros(40 * 512)])[
        None
    ]
    mask = torch.ones(1, 40 * 512, dtype=torch.long)
    spoken = when_speech_sounds(sources, mask, 512)[0]
    assert spoken[0].nonzero()[:, 0].tolist() == [*range(3, 15), *range(20, 30)]  # a pause of one frame is none
    assert spoken[1].all() and not spoken[2].any()
    mask[0, 25 * 512 :] = 0
    assert when_speech_sounds(sources, mask, 512)[0, 0].nonzero()[:, 0].tolist() == [*range(3, 15), *range(20, 25)]


def test_when_a_slot_speaks_is_told_in_the_order_of_the_slots():
    sources = torch.stack([bursts((0, 10)), bursts((25, 38))])[None]
    mask = torch.ones(1, 40 * 512, dtype=torch.long)
    mask[:, 36 * 512 :] = 0
    logits = torch.full((1, 2, 40), -9.0)
    logits[0, 1, :10] = logits[0, 0, 25:] = 9.0
    right = frame_activity_loss(logits, sources, torch.tensor([[1, 0]]), mask, 512)
    wrong = frame_activity_loss(logits, sources, torch.tensor([[0, 1]]), mask, 512)
    assert right < 1e-3 and wrong.item() == pytest.approx(9 * 2 * (10 + 11) / (2 * 36), rel=0.01)


def test_when_a_slot_speaks_is_learnt():
    model = CSCForPreTraining(tiny("tdnn", frame_activity=True, num_sources=1))
    batch = {"input_values": bursts((3, 10), (20, 32))[None], "source_values": bursts((3, 10), (20, 32))[None, None]}
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(25):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    output = model.eval()(**batch)
    spoken = [*range(3, 10), *range(20, 32)]
    found = (output.source_frame_activity[0, 0] > 0).nonzero()[:, 0].tolist()
    assert output.source_frame_activity.shape == (1, 1, 40) and len({*found} ^ {*spoken}) <= 4


@pytest.mark.parametrize("front_end", ["mel", "tdnn"])
def test_silence_of_a_slot_does_not_count_in_its_embedding(front_end):
    """Frames in which the slots are told not to speak hold other speech, and the segment vectors do not change."""
    model = CSCModel(tiny(front_end, frame_activity=True, subtract_mean=False, segment_length=8)).eval()
    branch, config = model.speaker_branch, model.config
    rows, num_segments = 2, 6
    encoded = torch.randn(1, num_segments * 8 * config.frame_stride, 257, dtype=torch.complex64)
    hidden = torch.randn(rows, num_segments * 8, config.hidden_size)
    mask = torch.ones(rows, num_segments, 8, 1)
    speaking = torch.full((rows, num_segments, 8, 1), 30.0)
    speaking[:, 4:] = -30.0
    blocks, branch.blocks = branch.blocks, torch.nn.ModuleList()  # which mix frames
    with torch.no_grad():
        arguments = (mask, None, torch.ones(rows, num_segments, dtype=torch.bool), speaking)
        before = branch(hidden, *arguments, encoded)
        changed = torch.cat([hidden[:, :32], torch.randn(rows, 16, config.hidden_size)], dim=1)
        after = branch(changed, *arguments, encoded)
    torch.testing.assert_close(after[1], before[1], atol=2e-3, rtol=0)
    with torch.no_grad():
        audible = branch(changed, mask, None, arguments[2], torch.full_like(speaking, 30.0), encoded)
    assert (audible[1] - before[1]).abs().max() > 0.02
    branch.blocks = blocks


def test_activity_is_taught_where_the_targets_are():
    model = CSCForPreTraining(tiny())
    batch = mixtures()
    batch["source_values"][0, 1] = 0
    output = model(**batch)
    labels = torch.ones(6, 2)
    labels[0, output.permutation[0, 1]] = 0
    expected = F.binary_cross_entropy_with_logits(output.source_activity, labels)
    torch.testing.assert_close(output.activity_loss, expected)


# --- cross-attention and contrast ----------------------------------------------------------------------------------


def contrast_inputs(model, num_segments=5):
    """Embeddings, identities, memory of `2 * num_segments` segments, and its mask, ragged; of six mixtures."""
    config = model.config
    embeddings = F.normalize(torch.randn(6, 2, config.speaker_embedding_size), dim=-1)
    memory = torch.randn(6, 2 * num_segments, config.hidden_size)
    mask = torch.ones(6, 2 * num_segments, dtype=torch.bool)
    mask[1, 3:] = False
    return embeddings, mixtures()["speaker_ids"], memory, mask


def contrast(model, embeddings, ids, memory, mask):
    """Of one process."""
    output = model._contrast(embeddings, ids, ids, memory, mask)
    names = ("contrastive_loss", "mutual_information", "contrastive_accuracy", "global_speaker_vectors")
    return tuple(output[name] for name in names)


def reference_memories(ids, b, own):
    """The mixtures of each identity's memory, for a query of identity `own` in mixture b."""
    ids = [{j for j in row if j >= 0} for row in ids.tolist()]
    order = [*range(b + 1, len(ids)), *range(b)]
    memories = {own: [m for m in order if own in ids[m]]}
    wanted = [len(ids[m]) for m in memories[own]]
    for j in set().union(*ids) - {own}:
        left, memory = list(wanted), []
        for m in order:
            if j in ids[m] and own not in ids[m] and len(ids[m]) in left:
                left.remove(len(ids[m]))
                memory.append(m)
        if wanted and not left:
            memories[j] = memory
    return memories


def reference_contrast(model, embeddings, speaker_ids, memory, mask):
    """The method's formula, written down one query and one identity at a time."""
    log_ps, bounds, hits, vectors = [], [], [], {}
    for b, c in itertools.product(*map(range, speaker_ids.shape)):
        own = speaker_ids[b, c].item()
        memories = reference_memories(speaker_ids, b, own) if own >= 0 else {}
        if len(memories) < 2:
            continue
        logits = {}
        for j, mixtures_of_j in memories.items():
            answer = model.aggregate(embeddings[b, c], torch.cat([memory[m][mask[m]] for m in mixtures_of_j]))
            distance = (embeddings[b, c] - answer).square().sum()
            logits[j] = -model.log_contrastive_scale.exp().squeeze() * distance
            if j == own:
                vectors[b, c] = answer
        values = torch.stack(list(logits.values()))
        log_p = logits[own] - values.logsumexp(0)
        log_ps.append(log_p)
        bounds.append(math.log(len(logits)) + log_p)
        hits.append(float(logits[own] == values.max()))
    return -torch.stack(log_ps).mean(), torch.stack(bounds).mean(), sum(hits) / len(hits), vectors


@pytest.mark.parametrize("use_cross_attention", [True, False])
def test_contrast_is_that_of_its_definition(use_cross_attention):
    model = CSCForPreTraining(tiny(initializer_range=0.5, use_cross_attention=use_cross_attention))
    embeddings, ids, memory, mask = contrast_inputs(model)
    ids[5] = torch.tensor([2, -100])
    ids[0, 1] = 7  # an identity of a single mixture
    loss, information, accuracy, vectors = contrast(model, embeddings, ids, memory, mask)
    expected = reference_contrast(model, embeddings, ids, memory, mask)
    torch.testing.assert_close(loss, expected[0])
    torch.testing.assert_close(information, expected[1])
    assert accuracy.item() == pytest.approx(expected[2])
    for b, c in itertools.product(range(6), range(2)):
        torch.testing.assert_close(vectors[b, c], expected[3].get((b, c), torch.zeros_like(vectors[b, c])))


def attend(model, embeddings, memory, mask):
    """Moments and log sums of every query (a row of `embeddings`) over every mixture."""
    return modeling_csc._attend(
        model.aggregator.queries(embeddings, memory.dtype), model.aggregator.keys(memory), memory, mask
    )


def test_a_mixture_far_behind_the_others_still_answers_where_it_is_all_that_is_visible():
    model = CSCForPreTraining(tiny())
    model.aggregator.q_proj.weight.data *= 3000
    embeddings, _, memory, mask = contrast_inputs(model)
    moments, log_sums = attend(model, embeddings[:, 0], memory, mask)
    assert (log_sums.amax(1, keepdim=True) - log_sums).max() > 110  # exp(-110) is zero in single precision
    one_each = torch.arange(6)  # six identities, each in one mixture
    mean, variance = modeling_csc._answers(
        moments, log_sums, torch.ones(6, 6, dtype=torch.bool), one_each, one_each, num_identities=6
    )
    expected = model.aggregator(embeddings[:, :1], memory[None], mask[None])
    torch.testing.assert_close(mean, expected[0])
    torch.testing.assert_close(variance, expected[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_elements", [1, 600, 1500])
def test_the_contrast_by_parts_is_the_contrast(num_elements, monkeypatch):
    model = CSCForPreTraining(tiny(initializer_range=0.5))
    embeddings, ids, memory, mask = contrast_inputs(model)
    ids[5, 1] = -100
    wanted = [embeddings.requires_grad_(), memory.requires_grad_(), model.log_contrastive_scale]
    wanted += [*model.aggregator.parameters(), *model.csc.speaker_branch.embedding.parameters()]
    results = []
    for bound in (2**23, num_elements):
        monkeypatch.setattr(modeling_csc, "CONTRAST_ELEMENTS", bound)
        output = contrast(model, embeddings, ids, memory, mask)
        results.append((output, torch.autograd.grad(output[0], wanted)))
    for expected, actual in zip(*(output + gradients for output, gradients in results), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)


MANY_PROCESSES = """
import re, sys
from pathlib import Path
import torch
from csc_hf import CSCConfig, CSCForPreTraining

def peak_mb():  # not `ru_maxrss`: that survives `exec`, so a child begins with its parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 2**10

torch.manual_seed(0)
num_processes, preset, num_segments = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
model = CSCForPreTraining(getattr(CSCConfig, preset)()).train()
used = peak_mb()
speaker = torch.arange(num_processes * 32).repeat_interleave(2)
other = speaker // 32 * 32 + (speaker + 1 + torch.arange(len(speaker)) % 2) % 32
ids = torch.stack([speaker, other], dim=1)
size = model.aggregator.memory_layer_norm.normalized_shape[0]
embeddings = torch.nn.functional.normalize(torch.randn(64, 2, model.config.speaker_embedding_size), dim=-1)
embeddings.requires_grad_()
memory = torch.randn(len(ids), 2 * num_segments, size, requires_grad=True)
mask = torch.ones(memory.shape[:2], dtype=torch.bool)
output = model._contrast(embeddings, ids[:64], ids, memory, mask)
output["contrastive_loss"].backward()
assert embeddings.grad.isfinite().all() and memory.grad.isfinite().all() and memory.grad.any()
print(peak_mb() - used)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc, and malloc has other settings")
@pytest.mark.parametrize(
    ("num_processes", "preset", "num_segments", "limit"),
    [(16, "tiny", 2, 250), (64, "small", 8, 2000)],
)
@pytest.mark.release
def test_the_contrast_of_many_processes_fits_into_memory(num_processes, preset, num_segments, limit):
    """32 identities, each twice, in every process; `small` has 8 segments of two seconds."""
    settings = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "0"}  # what is free counts as free
    process = subprocess.run(
        [sys.executable, "-c", MANY_PROCESSES, str(num_processes), preset, str(num_segments)],
        capture_output=True,
        text=True,
        env=os.environ | settings,
    )
    assert process.returncode == 0, process.stderr
    assert float(process.stdout) < limit  # in MB


@pytest.mark.parametrize("num_alone", [0, 8, 16])
def test_noise_teaches_the_contrast_nothing(num_alone):
    """Noise says nothing about identity, so training on it must not raise the mutual information. It does if only the
    own identity's vector has seen the query, or if that vector is made from another amount of memory."""
    model, encoder = CSCForPreTraining(tiny()), torch.nn.Linear(32, 32)
    optimizer = torch.optim.Adam([*model.aggregator.parameters(), *encoder.parameters()], lr=3e-3)
    mixture = torch.arange(16)
    ids = torch.stack([mixture % 8, (mixture + 1 + mixture // 8) % 8], dim=1)
    ids[16 - num_alone :, 1] = -100
    mask = torch.ones(16, 10, dtype=torch.bool)
    values = []
    for _ in range(200):
        embeddings = F.normalize(encoder(torch.randn(16, 2, 32)), dim=-1)
        loss, information, _, _ = contrast(model, embeddings, ids, torch.randn(16, 10, 16), mask)
        assert loss.item() > 0
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(information.item())
    assert sum(values[-80:]) / 80 < 0.01


def test_a_query_never_sees_its_own_mixture():
    model = CSCForPreTraining(tiny())
    embeddings, ids, memory, mask = contrast_inputs(model)
    memory.requires_grad_()
    *_, vectors = contrast(model, embeddings, ids, memory, mask)
    assert (vectors.norm(dim=-1) - 1).abs().max() < 1e-5
    answers = reference_contrast(model, embeddings, ids, memory, mask)[3]
    for (b, c), answer in answers.items():
        (gradient,) = torch.autograd.grad(answer.sum(), memory, retain_graph=True)
        seen = gradient.abs().sum((1, 2)) > 0
        assert seen.tolist() == [ids[b, c].item() in ids[m].tolist() and m != b for m in range(6)]  # all the others
        torch.testing.assert_close(vectors[b, c], answer.detach())


def test_identities_of_one_mixture_or_none_take_no_part():
    model = CSCForPreTraining(tiny())
    batch = mixtures()
    for ids in (torch.arange(12).view(6, 2), torch.full((6, 2), -100), None):
        output = model(**batch | {"speaker_ids": ids})
        assert output.contrastive_loss.item() == 0 and output.global_speaker_vectors.abs().max() == 0
        output.loss.backward()
        # In several processes every one must have every gradient, whatever its batch holds.
        assert all(p.grad is not None for p in model.parameters())
        model.zero_grad()
    batch["source_values"][:, 1] = 0  # an id without a voice is no identity
    assert model(**batch).global_speaker_vectors[:, 1].abs().max() == 0


def test_mutual_information_is_bounded_by_the_number_of_identities():
    model = CSCForPreTraining(tiny())
    output = model(**mixtures())
    # Of four identities, each in three mixtures, a query's own has two left, and so have those it meets.
    expected = math.log(4) - output.contrastive_loss.item()
    assert output.mutual_information.item() == pytest.approx(expected, abs=1e-5)


def test_losses_and_moments_are_single_precision_under_autocast():
    targets = torch.randn(2, 2, 4000)
    estimates = targets + 0.05 * torch.randn(2, 2, 4000)
    model = CSCForPreTraining(tiny())
    query = F.normalize(torch.randn(3, 32), dim=-1)
    memory = 3 + 0.1 * torch.randn(3, 9, 16)  # a variance of 0.01 beside a mean of 3
    mask = torch.ones(3, 9, dtype=torch.bool)

    def measure():
        si_snr = pairwise_si_snr(estimates, targets, torch.ones(2, 4000), 60.0)
        (mean, mean_square) = attend(model, query, memory, mask)[0].chunk(2, dim=-1)
        return si_snr, mean_square - mean.square()

    expected = measure()
    with torch.autocast("cpu", torch.bfloat16):
        actual = measure()
    torch.testing.assert_close(actual[0], expected[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(actual[1], expected[1], atol=2e-3, rtol=0)


def test_aggregate_ignores_what_the_mask_hides():
    model = CSCForPreTraining(tiny())
    query, memory = F.normalize(torch.randn(3, 32), dim=-1), torch.randn(3, 9, 16)
    mask = torch.ones(3, 9)
    mask[:, 6:] = 0
    changed = memory.clone()
    changed[:, 6:] += 10
    expected = model.aggregate(query, memory[:, :6])
    torch.testing.assert_close(model.aggregate(query, changed, mask), expected)
    torch.testing.assert_close(expected.norm(dim=-1), torch.ones(3))
    assert not torch.allclose(model.aggregate(-query, memory[:, :6]), expected, atol=1e-3)  # it does read the query


def test_without_cross_attention_all_segments_count_alike():
    model = CSCForPreTraining(tiny(use_cross_attention=False))
    query, memory = F.normalize(torch.randn(3, 32), dim=-1), torch.randn(3, 9, 16)
    statistics = pooled_statistics(memory[:, :6].mean(1), memory[:, :6].var(1, unbiased=False))
    expected = F.normalize(model.csc.speaker_branch.embedding(statistics), dim=-1)
    mask = torch.ones(3, 9)
    mask[:, 6:] = 0
    torch.testing.assert_close(model.aggregate(query, memory, mask), expected)
    assert not list(model.aggregator.parameters())


def test_the_loss_is_the_weighted_sum_of_its_parts():
    parts = {"separation": 0.3, "contrastive": 0.7, "activity": 0.2, "frame_activity": 0.4}
    weights = {f"{name}_loss_weight": weight for name, weight in parts.items()}
    output = CSCForPreTraining(tiny(frame_activity=True, **weights))(**mixtures())
    torch.testing.assert_close(output.loss, sum(w * output[f"{name}_loss"] for name, w in parts.items()))
    assert "frame_activity_loss" not in CSCForPreTraining(tiny())(**mixtures())


def test_the_softmax_over_recordings_is_that_of_its_definition():
    model = CSCForPreTraining(tiny(num_recording_classes=7, recording_loss_weight=0.5)).eval()
    batch, ids = mixtures(), torch.randint(0, 7, (6, 2))
    ids[2, 1] = -100
    batch["source_values"][4, 0] = 0  # silent: nobody is there to be told
    with torch.no_grad():
        output, without = model(**batch, recording_ids=ids), model(**batch)
    embeddings = output.source_embeddings.take_along_dim(output.permutation[..., None], dim=1)
    known = ids >= 0
    known[4, 0] = False
    logits = 20 * embeddings[known] @ F.normalize(model.recording_classifier.weight, dim=1).T
    torch.testing.assert_close(output.recording_loss, F.cross_entropy(logits, ids[known]))
    torch.testing.assert_close(output.recording_accuracy, (logits.argmax(-1) == ids[known]).float().mean())
    assert without.recording_loss == 0
    torch.testing.assert_close(output.loss, without.loss + 0.5 * output.recording_loss)
    assert "recording_loss" not in CSCForPreTraining(tiny())(**batch)


def test_the_softmax_over_recordings_teaches_all_that_it_uses():
    model = CSCForPreTraining(tiny("tdnn", num_recording_classes=7, contrastive_loss_weight=0.0)).train()
    wrap_layers(model)
    model(**mixtures(), recording_ids=torch.randint(0, 7, (6, 2))).loss.backward()
    for module in (
        model.recording_classifier,
        model.csc.speaker_branch.embedding,
        model.csc.speaker_branch.blocks[0].conv.wrapped,
    ):
        assert any(p.grad is not None and p.grad.any() for p in module.parameters())


def test_the_loss_comes_first_if_there_is_one():
    model, batch = CSCForPreTraining(tiny()).eval(), mixtures()
    output = model(**batch)
    assert next(iter(output)) == "loss"
    torch.testing.assert_close(model(**batch, return_dict=False)[0], output.loss)
    for without in (model(batch["input_values"]), model(**batch, return_loss=False)):
        assert without.loss is None and next(iter(without)) == "sources"


def test_the_trainer_evaluates_pre_training(tmp_path):
    model, batch = CSCForPreTraining(tiny()).eval(), mixtures()
    rows = [{name: value[row] for name, value in batch.items()} for row in range(6)]
    arguments = TrainingArguments(str(tmp_path), per_device_eval_batch_size=6, use_cpu=True, report_to="none")
    loss = Trainer(model, arguments, eval_dataset=rows).evaluate()["eval_loss"]
    assert loss == pytest.approx(model(**batch).loss.item(), abs=1e-5)


# --- new weights ---------------------------------------------------------------------------------------------------


def weights_of_a_new_model(config, model_class=CSCForPreTraining):
    torch.manual_seed(0)
    return model_class(config).state_dict()


def test_new_weights_are_drawn_as_they_are_meant():
    config = CSCConfig.small(num_recording_classes=50)
    new = weights_of_a_new_model(config)
    assert not new["csc.speaker_branch.bands.mask.weight"].any()  # open, and the same for all
    assert (new["csc.speaker_branch.bands.mask.bias"] == 2).all()
    convolution = new["csc.speaker_branch.blocks.0.conv.weight"]
    assert convolution.std().item() == pytest.approx(math.sqrt(2 / convolution[0].numel()), rel=0.02)
    classifier = new["recording_classifier.weight"]
    assert classifier.std().item() == pytest.approx(math.sqrt(2 / sum(classifier.shape)), rel=0.05)
    filters = weights_of_a_new_model(CSCConfig())["csc.front_end.conv.weight"]
    assert filters.abs().max().item() == pytest.approx(1 / math.sqrt(filters[0].numel()), rel=0.05)


@pytest.mark.parametrize("model_class", [CSCForPreTraining, CSCForSpeakerVerification])
@pytest.mark.parametrize("front_end", ["conv", "tdnn"])
def test_new_weights_do_not_depend_on_where_the_class_is_defined(front_end, model_class, monkeypatch):
    """Of classes outside Transformers, and in remote code, modules without parameters of their own are passed over."""
    config = tiny(front_end, num_recording_classes=5)
    outside = weights_of_a_new_model(config, model_class)
    base = modeling_csc.CSCPreTrainedModel
    monkeypatch.setattr(base, "is_custom_code", classmethod(lambda cls: False), raising=False)
    assert {name: value.tolist() for name, value in outside.items()} == {
        name: value.tolist() for name, value in weights_of_a_new_model(config, model_class).items()
    }


# --- heads ---------------------------------------------------------------------------------------------------------


def test_xvector_loss_is_additive_angular_margin():
    model = CSCForXVector(tiny(num_labels=5)).eval()
    audio, labels = torch.randn(4, 2000), torch.tensor([0, 1, 4, 2])
    output = model(audio, labels=labels)
    cosines = output.embeddings @ F.normalize(model.classifier.weight, dim=-1).T
    torch.testing.assert_close(output.logits, 30 * cosines)
    angles = cosines.acos() + 0.2 * F.one_hot(labels, 5)
    torch.testing.assert_close(output.loss, F.cross_entropy(30 * angles.cos(), labels), atol=1e-4, rtol=0)
    torch.testing.assert_close(output.embeddings.norm(dim=-1), torch.ones(4))


def test_xvector_follows_the_active_slot():
    model = CSCForXVector(tiny()).eval()
    audio = torch.randn(1, 2000)
    with torch.no_grad():
        slots = model.csc(audio).source_embeddings[0]
        hook = model.csc.speaker_branch.activity.register_forward_hook(
            lambda module, inputs, output: torch.tensor([[-40.0], [40.0]])
        )
        torch.testing.assert_close(model(audio).embeddings[0], slots[1])
        hook.remove()


def test_frame_labels_overlap_and_may_be_unknown():
    config = tiny(num_labels=3)
    model = CSCForAudioFrameClassification(config).eval()
    audio = torch.randn(2, 3000)
    labels = torch.randint(0, 2, (2, config.num_segments(3000), 3)).float()
    labels[1, 4:] = -100
    output = model(audio, labels=labels)
    known = labels != -100
    expected = F.binary_cross_entropy_with_logits(output.logits[known], labels[known])
    torch.testing.assert_close(output.loss, expected)
    with pytest.raises(ValueError, match="labels"):
        model(audio, labels=labels[:, :-1])


def test_sequence_classification_follows_the_problem_type():
    audio = torch.randn(2, 2000)
    model = CSCForSequenceClassification(tiny(num_labels=3, problem_type="multi_label_classification")).eval()
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    output = model(audio, labels=labels)
    torch.testing.assert_close(output.loss, F.binary_cross_entropy_with_logits(output.logits, labels))


def test_separation_loss_ignores_the_order_of_the_labels():
    model = CSCForSpeechSeparation(tiny()).eval()
    with pytest.raises(ValueError, match="labels"):
        model(torch.randn(2, 3000), labels=torch.randn(2, 1, 3000))
    sources = torch.randn(2, 2, 3000)
    loss = model(sources.sum(1), labels=sources).loss
    torch.testing.assert_close(model(sources.sum(1), labels=sources.flip(1)).loss, loss)


@pytest.mark.parametrize("model_class", [CSCForXVector, CSCForSequenceClassification, CSCForAudioFrameClassification])
def test_a_head_of_another_size_is_replaced_only_on_request(model_class, tmp_path):
    trained = model_class(tiny(num_labels=7))
    trained.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        model_class.from_pretrained(tmp_path, num_labels=5)
    model = model_class.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert model.classifier.weight.shape[0] == model.config.num_labels == 5
    assert model.classifier.weight.std() > 0
    assert torch.equal(model.csc.slots.weight, trained.csc.slots.weight)


@pytest.mark.parametrize(("front_end", "options"), [("conv", {}), ("tdnn", {"num_recording_classes": 7})])
def test_a_pretraining_checkpoint_loads_into_every_head(front_end, options, tmp_path):
    pretrained = moments(CSCForPreTraining(tiny(front_end, **options)))
    pretrained.save_pretrained(tmp_path)
    for model_class in CLASSES:
        model, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
        new = {name for name in info["missing_keys"] if not name.startswith("classifier")}
        assert new <= {"projector.weight", "projector.bias"} and not info["unexpected_keys"]
        base = model if model_class is CSCModel else model.csc
        weights = pretrained.csc.state_dict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in base.state_dict().items())


# --- parts that are frozen -----------------------------------------------------------------------------------------


def small(**overrides):
    """The architecture of csc-small, narrower."""
    narrow = {"hidden_size": 16, "lstm_hidden_size": 16, "mask_hidden_size": 16, "speaker_hidden_size": 32}
    return CSCConfig.small(**narrow, num_hidden_layers=1, speaker_embedding_size=32, **overrides)


def train(model, folder, num_steps=2):
    """Train by Transformers' `Trainer`, which puts the model into training mode before each step."""
    batch = labels_of(model.base_model.model if isinstance(model, peft.PeftModel) else model, 4000)
    rows = [{name: value[row] for name, value in batch.items()} for row in range(6)]
    args = TrainingArguments(
        str(folder), max_steps=num_steps, learning_rate=0.1, report_to="none", use_cpu=True, save_strategy="no"
    )
    Trainer(model, args, train_dataset=rows).train()


def state_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("model_class", HEADS)
def test_a_frozen_encoder_is_the_same_function_after_training(model_class, tmp_path):
    model = moments(model_class(small()))
    model.freeze_base_model()
    before = state_of(model)
    train(model, tmp_path)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and not any(name.startswith("csc.") for name in moved)
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if not name.startswith("csc."))


@pytest.mark.parametrize(
    ("task", "targets"), [(None, ["q_proj", "v_proj"]), ("SEQ_CLS", "all-linear"), (None, "all-linear")]
)
def test_an_adapter_gives_the_same_embeddings_when_it_is_loaded_again(task, targets, tmp_path):
    moments(CSCModel(small())).save_pretrained(tmp_path / "base")

    def base():
        torch.manual_seed(1)  # of the new head
        return CSCForXVector.from_pretrained(tmp_path / "base", num_labels=6)

    audio = torch.randn(3, 8000)
    untrained = base()(input_values=audio).embeddings
    lora = peft.LoraConfig(task_type=task, target_modules=targets, modules_to_save=["classifier"])
    model = peft.get_peft_model(base(), lora)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    whole = {name for name in trained if "lora_" not in name}
    assert whole == {"base_model.model.classifier.modules_to_save.default.weight"} != trained
    train(model, tmp_path, num_steps=4)
    expected = model.eval()(input_values=audio)
    assert (expected.embeddings - untrained).abs().max() > 1e-3
    model.save_pretrained(tmp_path / "adapter")
    for again in (peft.PeftModel.from_pretrained(base(), tmp_path / "adapter").eval(), base()):
        if not isinstance(again, peft.PeftModel):
            again.load_adapter(tmp_path / "adapter")
        actual = again(input_values=audio)
        torch.testing.assert_close(actual.embeddings, expected.embeddings, rtol=0, atol=1e-6)
        torch.testing.assert_close(actual.logits, expected.logits, rtol=0, atol=1e-4)
    with model.disable_adapter():
        torch.testing.assert_close(model(input_values=audio).embeddings, untrained, rtol=0, atol=1e-6)


@pytest.mark.parametrize("model_class", CLASSES)
def test_no_part_of_the_encoder_has_the_name_of_a_head(model_class):
    """PEFT takes what ends in "classifier" or "score" for the head, and trains all of it."""
    model = model_class(tiny("tdnn"))
    heads = {name for name, _ in model.named_modules() if name.endswith(("classifier", "score"))}
    assert heads <= {"classifier"}


def test_weights_keep_their_names_in_files(tmp_path):
    """They are those of the released models, whichever way a file is written or read."""
    model = CSCForXVector(tiny("tdnn"))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert "csc.speaker_branch.attention_score.weight" in weights and len(weights) == len(model.state_dict())
    assert not set(weights) - {modeling_csc.saved_name(name) for name in model.state_dict()}
    for names in (weights, model.state_dict()):
        save_file(dict(names), tmp_path / "model.safetensors", {"format": "pt"})
        loaded, info = CSCForXVector.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        other = CSCForXVector(model.config)
        other.load_state_dict(load_file(tmp_path / "model.safetensors"))
        for state in (loaded.state_dict(), other.state_dict()):
            assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


# --- Transformers features that its common tests leave open --------------------------------------------------------


def test_attention_can_be_switched_at_run_time():
    model = CSCModel(tiny(initializer_range=0.3)).eval()
    audio, mask = torch.randn(2, 4000), torch.ones(2, 4000, dtype=torch.long)
    mask[1, 2000:] = 0
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        sdpa = model(audio, attention_mask=mask)
        model.set_attn_implementation("eager")
        eager = model(audio, attention_mask=mask, output_attentions=True)
    assert sdpa.attentions is None
    weights = eager.attentions[0]
    num_segments = model.config.num_segments(2000)
    assert weights[1, ..., num_segments:].abs().max() == 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    for name in ("last_hidden_state", "source_hidden_states", "source_embeddings", "source_activity"):
        expected, actual = eager[name], sdpa[name]
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("front_end", [*FRONT_ENDS, "tdnn"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_single(front_end, dtype):
    model = CSCForSpeechSeparation(tiny(front_end)).eval()
    audio = torch.randn(2, 4000) * 1e-3  # quiet: its square would vanish in float16
    with torch.no_grad():
        expected = model(audio)
        actual = model.to(dtype)(audio)
    cosine = F.cosine_similarity(actual.source_embeddings.float(), expected.source_embeddings, dim=-1)
    assert cosine.min() > 0.99
    assert F.cosine_similarity(actual.sources, expected.sources, dim=-1).min() > 0.98


@pytest.mark.parametrize(("front_end", "use_reentrant"), [("conv", True), ("conv", False), ("tdnn", False)])
def test_activation_checkpointing_changes_no_gradient(front_end, use_reentrant):
    model = CSCForPreTraining(tiny(front_end, hidden_dropout=0.0, attention_dropout=0.0)).train()
    batch, plain = mixtures(), copy.deepcopy(model)  # which has the same moments of batch norms, too
    plain(**batch).loss.backward()
    expected = {name: p.grad for name, p in plain.named_parameters()}
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model(**batch).loss.backward()
    for name, p in model.named_parameters():
        # Sums over time are rounded as their largest values are; some gradients are zero but for that.
        atol = max(1e-6, 1e-5 * expected[name].abs().max().item())
        torch.testing.assert_close(p.grad, expected[name], atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.release
@pytest.mark.parametrize(
    ("model_class", "front_end", "local_layer"),
    [
        (CSCForSpeechSeparation, "stft", "lstm"),
        (CSCForSpeechSeparation, "stft", "mingru"),
        (CSCForSpeechSeparation, "tdnn", "lstm"),
        (CSCForSpeechSeparation, "mel", "lstm"),
        (CSCForSpeechSeparation, "conv", "lstm"),
        (CSCModel, "conv", "lstm"),
        (CSCForPreTraining, "stft", "lstm"),
        (CSCForXVector, "conv", "lstm"),
        (CSCForSequenceClassification, "stft", "lstm"),
        (CSCForAudioFrameClassification, "conv", "lstm"),
    ],
)
def test_export_keeps_the_length_dynamic(model_class, front_end, local_layer):
    model = moments(model_class(tiny(front_end, local_layer=local_layer, segment_length=8))).eval()
    shapes = {name: [torch.export.Dim.AUTO] * 2 for name in ("input_values", "attention_mask")}
    example = {"input_values": torch.randn(2, 3001), "attention_mask": torch.ones(2, 3001, dtype=torch.long)}
    program = torch.export.export(model, (), example, dynamic_shapes=shapes, strict=False)
    inputs = {"input_values": torch.randn(3, 5003), "attention_mask": torch.ones(3, 5003, dtype=torch.long)}
    inputs["attention_mask"][1, 2000:] = 0
    with torch.no_grad():
        expected, actual = model(**inputs), program.module()(**inputs)
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("front_end", "local_layer", "allow_rnn"),
    [("stft", "lstm", True), ("tdnn", "mingru", False)],
)
def test_compiling_breaks_the_graph_at_the_lstm_alone(front_end, local_layer, allow_rnn):
    model = CSCForSpeechSeparation(tiny(front_end, local_layer=local_layer)).eval()
    audio = torch.randn(2, 3000)
    torch._dynamo.reset()
    with torch.no_grad(), torch._dynamo.config.patch(allow_rnn=allow_rnn):
        explanation = torch._dynamo.explain(model)(audio)
    assert explanation.graph_break_count == 0, explanation.break_reasons


# --- tools that wrap or replace layers: every parameter is used through its module's forward -----------------------


class Adapter(nn.Module):
    """As LoRA and others wrap a layer: its weight is not where the model could read it."""

    def __init__(self, layer):
        super().__init__()
        self.wrapped = layer
        if isinstance(layer, nn.Linear):
            self.down = nn.Linear(layer.in_features, 2, bias=False)
            self.up = nn.Linear(2, layer.out_features, bias=False)

    def forward(self, hidden_states, *args):
        output = self.wrapped(hidden_states, *args)
        return output + self.up(self.down(hidden_states)) if hasattr(self, "up") else output


def wrap_layers(module):
    for name, child in module.named_children():
        if isinstance(child, (nn.Linear, nn.LSTM, nn.Conv1d, nn.ConvTranspose1d, nn.LayerNorm, CSCMaskedBatchNorm)):
            setattr(module, name, Adapter(child))
        else:
            wrap_layers(child)


@pytest.mark.parametrize(
    ("front_end", "model_class"),
    [*itertools.product(FRONT_ENDS, ALL_CLASSES), ("mel", CSCForPreTraining), ("tdnn", CSCForPreTraining)],
)
def test_every_wrapped_layer_learns(model_class, front_end):
    model = model_class(tiny(front_end)).train()
    if model_class is CSCForSpeakerVerification:
        nn.init.normal_(model.head_logit.weight)  # zeros teach nothing before them
    wrap_layers(model)
    output = model(**labels_of(model, 2000))
    loss = sum(value.square().mean() for value in tensors(output).values()) if model_class is CSCModel else output.loss
    loss.backward()
    idle = {"csc.speaker_branch.embedding"} if model_class is CSCForSpeechSeparation else set()
    adapters = {name: module for name, module in model.named_modules() if hasattr(module, "up")}
    assert {name for name, module in adapters.items() if module.up.weight.grad is None} == idle
    assert all(module.up.weight.grad.any() for name, module in adapters.items() if name not in idle)
    if front_end in SPECTRAL:
        assert {name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()} == set()


@pytest.mark.parametrize("front_end", ["conv", "tdnn"])
@pytest.mark.parametrize("model_class", ALL_CLASSES)
def test_replicas_of_data_parallel_compute_the_same(model_class, front_end, monkeypatch):
    """`Trainer` makes them where it sees several GPUs. They hold copies that are no parameters."""

    def copies(tensors, devices, detach=False):
        return [[tensor.clone() for tensor in tensors] for _ in devices]

    monkeypatch.setattr(sys.modules["torch.nn.parallel.replicate"], "_broadcast_coalesced_reshape", copies)
    model = model_class(tiny(front_end, hidden_dropout=0.0, attention_dropout=0.0)).train()
    batch = labels_of(model, 2000)
    expected = tensors(copy.deepcopy(model)(**batch))
    for replica in nn.parallel.replicate(model, [0, 1]):
        actual = tensors(replica(**batch))
        for name, value in expected.items():
            torch.testing.assert_close(actual[name], value, msg=lambda m, n=name: f"{n}: {m}")
    next(iter(actual.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in model.base_model.layers.parameters())


@pytest.mark.parametrize("model_class", CLASSES)
def test_dynamic_quantisation_hardly_changes_the_output(model_class):
    front_end = "conv" if model_class is CSCModel else "stft"
    model, audio = model_class(tiny(front_end, num_labels=20)).eval(), torch.randn(2, 4000)
    for kinds in ({nn.Linear}, {nn.Linear, nn.LSTM}):
        quantised = torch.ao.quantization.quantize_dynamic(model, kinds, dtype=torch.qint8)
        with torch.no_grad():
            expected, actual = model(audio), quantised(audio)
        for name, value in tensors(expected).items():
            if name != "source_activity":  # a number, not a direction
                assert F.cosine_similarity(actual[name].flatten(1), value.flatten(1)).min() > 0.99, name


@pytest.mark.parametrize("model_class", ALL_CLASSES)
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_weights_give_the_same_output(model_class, where, tmp_path):
    model = model_class(tiny("conv" if where == "cpu" else "stft")).eval()
    inputs = labels_of(model, 2000)
    with torch.no_grad():
        expected = tensors(model(**inputs))
        if where == "cpu":
            cpu_offload(model, execution_device=torch.device("cpu"))
        else:
            disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
        assert all(parameter.is_meta for parameter in model.parameters())
        actual = tensors(model(**inputs))
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")
