# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Contrastive Separative Coding (CSC, arXiv 2103.00816) for Transformers.

The code follows the data: front end, segments, GALR blocks, speaker branch, separation branch, cross-attention,
losses, models. Shapes are given in words. `slots` is `config.num_sources`, `bins` is `conv_kernel // 2 + 1`, and
`memory` is the number of segment vectors that the cross-attention reads: all segments of all slots of a recording.

Marks: [A] fixed by the paper's abstract, [G] from GALR (arXiv 2101.05014), [O] our choice.
"""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput, XVectorOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.import_utils import is_tracing
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_csc import MODEL_CLASSES, CSCConfig

SAVED_NAMES = {"attention_logits": "attention_score"}
"""Modules whose weights have another name in files. PEFT takes a module whose name ends in "score" for the head of a
classifier, and trains all of it."""

# For `from_pretrained` and `save_pretrained`. This file may be loaded once more, as remote code: hence `overwrite`.
register_checkpoint_conversion_mapping(
    "csc", [WeightRenaming(saved, name) for name, saved in SAVED_NAMES.items()], overwrite=True
)

CONTRAST_ELEMENTS = 2**23
"""Most elements of a tensor that the contrastive loss computes at once: 32 MB in single precision."""

NOBODY = -20.0
"""Activity logit of every slot in digital silence, of which a model would hear rounding errors only."""


@dataclass
class CSCModelOutput(ModelOutput):
    """
    Output of [`CSCModel`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, segments, hidden_size)`): The shared trunk, averaged
            over each segment.
        source_hidden_states (`torch.FloatTensor` of shape `(batch, slots, segments, segment_vector_size)`): The
            speaker branch: one vector per segment of each slot.
        source_embeddings (`torch.FloatTensor` of shape `(batch, slots, speaker_embedding_size)`): Speaker embedding of
            each slot, of unit length.
        source_activity (`torch.FloatTensor` of shape `(batch, slots)`): Logit that the slot holds a speaker.
        source_frame_activity (`torch.FloatTensor` of shape `(batch, slots, activity frames)`, *optional*): Logits that
            the slot speaks, every `config.activity_stride` samples, if `config.frame_activity` is set.
        source_band_masks (`torch.FloatTensor` of shape `(batch, slots, frames, num_mel_bins)`, *optional*): Share of
            the power of each mel band that is the slot's, by frames of the front end, if `config.speaker_block` is
            `"conv"`.
        sources (`torch.FloatTensor` of shape `(batch, slots, samples)`, *optional*): The separated waveforms, if the
            model was built with `add_separator=True`. Their scale is arbitrary: SI-SNR, which trains them, ignores it.
        hidden_states (`tuple`, *optional*): Input of the trunk and output of each of its blocks,
            `(batch, segments * segment_length, hidden_size)`.
        attentions (`tuple`, *optional*): Attention over segments in each block of the trunk,
            `(batch, low_dim * heads, segments, segments)`.
    """

    last_hidden_state: torch.Tensor | None = None
    source_hidden_states: torch.Tensor | None = None
    source_embeddings: torch.Tensor | None = None
    source_activity: torch.Tensor | None = None
    source_frame_activity: torch.Tensor | None = None
    source_band_masks: torch.Tensor | None = None
    sources: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class CSCForPreTrainingOutput(ModelOutput):
    """
    Output of [`CSCForPreTraining`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): Weighted sum of the losses that follow. They, and the
            fields that describe them, are returned if `source_values` are given.
        separation_loss (`torch.FloatTensor` of shape `()`, *optional*): Negative SI-SNR in dB of the best permutation,
            saturating at `config.si_snr_threshold`, averaged over the sources that are not silent.
        contrastive_loss (`torch.FloatTensor` of shape `()`, *optional*): -log p(own identity | embedding), in nats.
        activity_loss (`torch.FloatTensor` of shape `()`, *optional*): Binary cross-entropy of the slots' activity.
        frame_activity_loss (`torch.FloatTensor` of shape `()`, *optional*): Binary cross-entropy of when the slots
            speak, if `config.frame_activity` is set.
        band_mask_loss (`torch.FloatTensor` of shape `()`, *optional*): Cross-entropy of the slots' shares of each mel
            band, if `config.speaker_block` is `"conv"`.
        recording_loss (`torch.FloatTensor` of shape `()`, *optional*): -log p(own recording | embedding), in nats, if
            `config.num_recording_classes` is set.
        recording_accuracy (`torch.FloatTensor` of shape `()`, *optional*): Share of embeddings that are nearest to the
            class vector of their own recording, likewise.
        mutual_information (`torch.FloatTensor` of shape `()`, *optional*): The lower bound log(identities) -
            `contrastive_loss`, in nats.
        contrastive_accuracy (`torch.FloatTensor` of shape `()`, *optional*): Share of embeddings that are nearest to
            the global speaker vector of their own identity.
        sources (`torch.FloatTensor` of shape `(batch, slots, samples)`): Separated waveforms, in slot order.
        source_embeddings (`torch.FloatTensor` of shape `(batch, slots, speaker_embedding_size)`): Speaker embedding of
            each slot, of unit length.
        source_activity (`torch.FloatTensor` of shape `(batch, slots)`): Logit that the slot holds a speaker.
        source_frame_activity (`torch.FloatTensor` of shape `(batch, slots, activity frames)`, *optional*): Logits that
            the slot speaks, every `config.activity_stride` samples, if `config.frame_activity` is set.
        global_speaker_vectors (`torch.FloatTensor` of shape `(batch, slots, speaker_embedding_size)`, *optional*): For
            each target, the global speaker vector of its identity, of unit length; zero if the target takes no part in
            the contrast.
        permutation (`torch.LongTensor` of shape `(batch, slots)`, *optional*): Slot that holds each target.
        hidden_states, attentions: As in [`CSCModelOutput`].
    """

    loss: torch.Tensor | None = None
    separation_loss: torch.Tensor | None = None
    contrastive_loss: torch.Tensor | None = None
    activity_loss: torch.Tensor | None = None
    frame_activity_loss: torch.Tensor | None = None
    band_mask_loss: torch.Tensor | None = None
    recording_loss: torch.Tensor | None = None
    recording_accuracy: torch.Tensor | None = None
    mutual_information: torch.Tensor | None = None
    contrastive_accuracy: torch.Tensor | None = None
    sources: torch.Tensor | None = None
    source_embeddings: torch.Tensor | None = None
    source_activity: torch.Tensor | None = None
    source_frame_activity: torch.Tensor | None = None
    global_speaker_vectors: torch.Tensor | None = None
    permutation: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class CSCSeparationOutput(ModelOutput):
    """
    Output of [`CSCForSpeechSeparation`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): Negative SI-SNR plus the weighted activity losses.
        sources (`torch.FloatTensor` of shape `(batch, slots, samples)`): Separated waveforms, in slot order.
        source_embeddings (`torch.FloatTensor` of shape `(batch, slots, speaker_embedding_size)`): Speaker embedding of
            each slot, of unit length.
        source_activity (`torch.FloatTensor` of shape `(batch, slots)`): Logit that the slot holds a speaker.
        source_frame_activity (`torch.FloatTensor` of shape `(batch, slots, activity frames)`, *optional*): Logits that
            the slot speaks, every `config.activity_stride` samples, if `config.frame_activity` is set.
        hidden_states, attentions: As in [`CSCModelOutput`].
    """

    loss: torch.Tensor | None = None
    sources: torch.Tensor | None = None
    source_embeddings: torch.Tensor | None = None
    source_activity: torch.Tensor | None = None
    source_frame_activity: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


# --- input, masks and levels -----------------------------------------------------------------------------------------


def check_shape(name: str, tensor: torch.Tensor | None, shape: tuple[int, ...]) -> None:
    """Raises a `ValueError` if an optional input has another shape."""
    if tensor is not None and tensor.shape != shape:
        raise ValueError(f"`{name}` must have shape {tuple(shape)} here, got {tuple(tensor.shape)}.")


def check_recordings(
    waveform: torch.Tensor,
    attention_mask: torch.Tensor,
    lengths: torch.Tensor,
    names: tuple[str, str] = ("input_values", "attention_mask"),
    may_lack: bool = False,
) -> None:
    """Raises a `ValueError` that names the first recording that is not finite or not padded on the right, or, unless
    recordings `may_lack`, is padding alone. Compiled and exported programs cannot branch on values, so there nothing
    is checked.

    Args:
        waveform, attention_mask: `(..., samples)`.
        lengths: `(...)`.
        names: What the message calls the former two.
    """
    if is_tracing(waveform):
        return
    check_finite(names[0], waveform)
    position = torch.arange(waveform.shape[-1], device=waveform.device)
    padded_right = (attention_mask == (position < lengths[..., None])).all(-1) & ((lengths > 0) | may_lack)
    wrong = (~padded_right).nonzero()
    if len(wrong) == 0:
        return
    number = tuple(wrong[0].tolist())
    place = f"[{', '.join(map(str, number))}]"
    found = f"starts with {attention_mask[number][:8].tolist()}" if lengths[number] else "is 0 everywhere"
    raise ValueError(
        f"`{names[1]}{place}` {found}. It must be 1 for the samples, then 0 for the padding: pad on the right, as "
        "CSCFeatureExtractor does."
    )


def check_finite(name: str, waveform: torch.Tensor) -> None:
    """Raises a `ValueError` that names the first recording of `(..., samples)` that is not finite."""
    if is_tracing(waveform):
        return
    finite = waveform.isfinite()
    wrong = (~finite.all(-1)).nonzero()
    if len(wrong) > 0:
        number = tuple(wrong[0].tolist())
        raise ValueError(
            f"`{name}[{', '.join(map(str, number))}]` has NaN or infinite samples, the first at "
            f"{int(finite[number].int().argmin())}. Repair the recording or leave it out."
        )


def silence_padding(waveform: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """`(..., samples)` → float32 that is zero where `attention_mask`, which broadcasts against it, is 0. A product
    would keep NaN."""
    return waveform.float().masked_fill(attention_mask == 0, 0.0)


def _stack_recordings(first: torch.Tensor, second: torch.Tensor, num_samples: int) -> torch.Tensor:
    """Rows of two lengths `(..., samples)`, with zeros behind them → `(..., num_samples)`."""
    return torch.cat([F.pad(rows, (0, num_samples - rows.shape[-1])) for rows in (first, second)])


def length_mask(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """`(batch,)` → `(batch, size)` bool: true for the first `lengths` positions of each row."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def masked_mean(values: torch.Tensor, mask: torch.Tensor, dim: int | tuple[int, ...]) -> torch.Tensor:
    """Mean of `values` where `mask`, which broadcasts against them, is 1; zero if it is 0 everywhere."""
    count = mask.expand_as(values).sum(dim, keepdim=True)
    return ((values * mask).sum(dim, keepdim=True) / count.clamp(min=1)).squeeze(dim)


def headroom(signal: torch.Tensor) -> torch.Tensor:
    """`(..., samples)` → `(..., 1)`: the power of two that scales a peak above 2 down to between 1 and 2, so that no
    square overflows; 1 for other signals. A power of two rounds nothing."""
    peak = signal.detach().abs().amax(-1, keepdim=True)
    return torch.exp2(-peak.log2().floor().clamp(0, 126))


def full_precision(tensor: torch.Tensor) -> torch.autocast:
    """A context in which autocast leaves float32 products alone."""
    return torch.autocast(tensor.device.type, enabled=False)


# --- frames and segments: cutting with overlap, and its inverse ------------------------------------------------------


def pad_for_frames(signal: torch.Tensor, size: int, hop: int, num_frames: int) -> torch.Tensor:
    """Zero-pads axis 1 of `(batch, samples, ...)` on both sides, so that it holds `num_frames` frames and each sample
    lies in `size / hop` of them. `num_frames` is passed, not inferred: an exported program would freeze it."""
    before = size - hop
    after = num_frames * hop - signal.shape[1]
    return F.pad(signal, (0, 0) * (signal.dim() - 2) + (before, after))


def split_frames(signal: torch.Tensor, size: int, hop: int, num_frames: int) -> torch.Tensor:
    """`(batch, samples, ...)` → `(batch, num_frames, size, ...)`."""
    overlap = size // hop
    chunks = pad_for_frames(signal, size, hop, num_frames).unflatten(1, (num_frames + overlap - 1, hop))
    return torch.cat([chunks[:, i : i + num_frames] for i in range(overlap)], dim=2)


def overlap_add(frames: torch.Tensor, hop: int) -> torch.Tensor:
    """`(batch, frames, size, ...)` → `(batch, (frames - size / hop + 1) * hop, ...)`: the inverse of [`split_frames`],
    up to a factor of `size / hop`, and without the padding before the first sample."""
    length, overlap = frames.shape[1], frames.shape[2] // hop
    chunks = frames.unflatten(2, (overlap, hop)).unbind(2)
    covering = [chunk[:, overlap - 1 - i : length - i] for i, chunk in enumerate(chunks)]
    return functools.reduce(torch.add, covering).flatten(1, 2)


def crop(signal: torch.Tensor, start: int, length: int) -> torch.Tensor:
    """`(..., samples)` → `(..., length)`. By index: a slice would freeze the length of an exported program."""
    return signal.index_select(-1, torch.arange(start, start + length, device=signal.device))


class CSCGlobalLayerNorm(nn.Module):
    """Layer norm over channels and all real positions of a recording (gLN). It is zero elsewhere, so padding changes
    nothing."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(
        self, hidden_states: torch.Tensor, mask: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Args:
            hidden_states: `(..., batch, positions, size)`, zero where `mask` is. Leading axes are normalised together.
            mask: `(..., batch, positions, 1)`.
            residual: Added to the output. It also sets its dtype.
        """
        values = hidden_states.float()
        axes = (*range(values.dim() - 3), -2, -1)
        count = mask.sum(axes, keepdim=True, dtype=torch.float32) * values.shape[-1]
        mean = values.sum(axes, keepdim=True) / count
        variance = (values.square().sum(axes, keepdim=True) / count - mean.square()).clamp(min=0)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        # (values - mean) * scale + bias + residual, in two passes over the tensor.
        output = values * scale if residual is None else torch.addcmul(residual, values, scale)
        output = output.addcmul_(mask, self.bias - mean * scale)
        return output.to(hidden_states.dtype if residual is None else residual.dtype)


# --- front ends and decoders -----------------------------------------------------------------------------------------


class CSCConvFrontEnd(nn.Module):
    """Learnt non-negative filters on the raw waveform [G]."""

    def __init__(self, config: CSCConfig):
        super().__init__()
        self.config = config
        self.conv = nn.Conv1d(1, config.hidden_size, config.conv_kernel, config.conv_stride, bias=False)
        self.layer_norm = CSCGlobalLayerNorm(config.hidden_size, config.layer_norm_eps)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, waveform: torch.Tensor, frame_mask: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`(batch, samples)`, `(batch, frames, 1)` → features and filter outputs, both `(batch, frames, hidden_size)`
        of the given dtype."""
        config = self.config
        padded = pad_for_frames(waveform, config.conv_kernel, config.conv_stride, frame_mask.shape[1])
        encoded = self.conv(padded[:, None].to(dtype)).relu().transpose(1, 2)
        return self.projection(self.layer_norm(encoded * frame_mask, frame_mask)), encoded


class CSCConvDecoder(nn.Module):
    """Masks the filter outputs and turns them back into waveforms [G]."""

    def __init__(self, config: CSCConfig):
        super().__init__()
        self.config = config
        self.mask = nn.Linear(config.hidden_size, config.hidden_size)
        self.conv = nn.ConvTranspose1d(config.hidden_size, 1, config.conv_kernel, config.conv_stride, bias=False)

    def forward(self, hidden_states: torch.Tensor, encoded: torch.Tensor, num_samples: int) -> torch.Tensor:
        """`(batch, slots, frames, hidden_size)`, `(batch, frames, hidden_size)` → `(batch, slots, num_samples)`."""
        masked = self.mask(hidden_states).relu() * encoded[:, None]
        waveform = self.conv(masked.flatten(0, 1).transpose(1, 2)).unflatten(0, hidden_states.shape[:2])
        return crop(waveform[:, :, 0], self.config.conv_kernel - self.config.conv_stride, num_samples).float()


def stft_window(config: CSCConfig, device: torch.device) -> torch.Tensor:
    """Square root of a Hann window of `conv_kernel` samples. Applied twice, its overlapping copies sum to
    `conv_kernel / conv_stride / 2` at every sample."""
    return torch.hann_window(config.conv_kernel, device=device).sqrt()


def mel_filters(num_bands: int, num_bins: int, sampling_rate: int, device: torch.device) -> torch.Tensor:
    """`(num_bins, num_bands)`: triangles that are evenly spaced in mel and whose weights sum to one. At low
    frequencies, each side is at least as wide as a bin, so that no band is empty."""
    nyquist = sampling_rate / 2
    mel = torch.linspace(0, 2595 * math.log10(1 + nyquist / 700), num_bands + 2, device=device)
    edges = 700 * (10 ** (mel / 2595) - 1)
    frequencies = torch.linspace(0, nyquist, num_bins, device=device)[:, None]
    centres, narrowest = edges[1:-1], nyquist / (num_bins - 1)
    below = (centres - frequencies) / (centres - edges[:-2]).clamp(min=narrowest)
    above = (frequencies - centres) / (edges[2:] - centres).clamp(min=narrowest)
    filters = (1 - torch.maximum(below, above)).clamp(min=0)
    return filters / filters.sum(0)


def band_power(config: CSCConfig, spectrum: torch.Tensor) -> torch.Tensor:
    """Complex spectrum `(..., bins)` of a waveform of unit power → power of each bin or mel band, `(..., bands)`,
    about one on average."""
    power = (spectrum.real.square() + spectrum.imag.square()) * (4 / config.conv_kernel)
    if config.num_mel_bins is None:
        return power
    filters = mel_filters(config.num_mel_bins, power.shape[-1], config.sampling_rate, power.device)
    with full_precision(power):
        return power @ filters


def normalised_log(config: CSCConfig, power: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Logarithms of powers `(batch, frames, bands)`, with a floor at -60 dB, at zero mean and unit variance over the
    frames by their weights `(batch, frames, 1)`. The mean is that of each band if `config.subtract_mean` is set."""
    log_power = (power + 1e-6).log()
    if config.subtract_mean:
        mean = masked_mean(log_power, weights, 1)[:, None]
    else:
        mean = masked_mean(log_power, weights, (1, 2))[:, None, None]
    centred = log_power - mean
    variance = masked_mean(centred.square(), weights, (1, 2))[:, None, None]
    return centred * torch.rsqrt(variance + config.layer_norm_eps) * weights


class CSCSTFTFrontEnd(nn.Module):
    """Log-magnitude spectrogram, in linear bins or mel bands, normalised over the real frames of a recording [O]."""

    def __init__(self, config: CSCConfig):
        super().__init__()
        self.config = config
        num_bins = config.num_mel_bins or config.conv_kernel // 2 + 1
        self.projection = nn.Linear(config.frame_stride * num_bins, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(
        self, waveform: torch.Tensor, frame_mask: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`(batch, samples)`, `(batch, frames, 1)` → features `(batch, frames / frame_stride, hidden_size)` of the
        given dtype and the complex spectrum `(batch, frames, bins)`."""
        config = self.config
        frames = split_frames(waveform, config.conv_kernel, config.conv_stride, frame_mask.shape[1])
        spectrum = torch.fft.rfft(frames * stft_window(config, waveform.device))
        features = normalised_log(config, band_power(config, spectrum), frame_mask.float())
        features = features.unflatten(1, (-1, config.frame_stride)).flatten(2)
        return self.layer_norm(self.projection(features.to(dtype))), spectrum


class CSCSTFTDecoder(nn.Module):
    """Masks the spectrum and inverts it [O]."""

    def __init__(self, config: CSCConfig):
        super().__init__()
        self.config = config
        num_bins = config.conv_kernel // 2 + 1
        if config.mask_hidden_size is not None:
            self.frames = nn.Linear(config.hidden_size, config.frame_stride * config.mask_hidden_size)
            self.spectrum = nn.Linear(num_bins, config.mask_hidden_size, bias=False)
        self.mask = nn.Linear(config.mask_hidden_size or config.hidden_size, num_bins)

    def forward(self, hidden_states: torch.Tensor, encoded: torch.Tensor, num_samples: int) -> torch.Tensor:
        """`(batch, slots, frames / frame_stride, hidden_size)`, `(batch, frames, bins)` → `(batch, slots,
        num_samples)`."""
        if self.config.mask_hidden_size is not None:
            # The hidden state says what several STFT frames of a slot have in common, the spectrum adds the detail.
            hidden_states = self.frames(hidden_states).unflatten(-1, (self.config.frame_stride, -1)).flatten(2, 3)
            compressed = (encoded.real.square() + encoded.imag.square() + 1e-8).sqrt().sqrt()
            hidden_states = (hidden_states + self.spectrum(compressed.to(hidden_states.dtype))[:, None]).relu()
        # In real numbers: the gradient of a product of real and complex ones would be complex.
        masked = self.mask(hidden_states).float().sigmoid()[..., None] * torch.view_as_real(encoded)[:, None]
        frames = torch.fft.irfft(torch.view_as_complex(masked), n=self.config.conv_kernel) * stft_window(
            self.config, masked.device
        )
        waveform = overlap_add(frames.flatten(0, 1), self.config.conv_stride).unflatten(0, hidden_states.shape[:2])
        return crop(waveform, 0, num_samples) * (2 * self.config.conv_stride / self.config.conv_kernel)


# --- GALR block ------------------------------------------------------------------------------------------------------


def sinusoidal_positions(length: int, size: int, device: torch.device) -> torch.Tensor:
    """`(length, size)`: sines, then cosines. They are computed on the fly, so no input is too long."""
    rates = torch.exp(torch.arange(size // 2, device=device) * (-2 * math.log(10000) / size))
    angles = torch.arange(length, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of `(batch, heads, length, head_size)` tensors in plain PyTorch, which also returns its weights."""
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(scores.softmax(dim=-1), p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class CSCAttention(nn.Module):
    """Multi-head attention along segments, for each of the `low_dim` rows. The rows are folded into the heads, so that
    they share one padding mask."""

    def __init__(self, config: CSCConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`(batch, segments, low_dim, hidden_size)` → the same shape, and the weights
        `(batch, low_dim * heads, segments, segments)` if the implementation returns them."""
        batch, segments, rows, size = hidden_states.shape
        folded = (batch, segments, -1, self.head_dim)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self,
            self.q_proj(hidden_states).reshape(folded).transpose(1, 2),
            self.k_proj(hidden_states).reshape(folded).transpose(1, 2),
            self.v_proj(hidden_states).reshape(folded).transpose(1, 2),
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.out_proj(output.reshape(batch, segments, rows, size)), weights


class CSCLSTM(nn.Module):
    """Bidirectional LSTM with learnt initial states [G]."""

    def __init__(self, config: CSCConfig):
        super().__init__()
        self.lstm = nn.LSTM(config.hidden_size, config.lstm_hidden_size, bidirectional=True)
        self.initial_hidden = nn.Parameter(torch.zeros(2, 1, config.lstm_hidden_size))
        self.initial_cell = nn.Parameter(torch.zeros(2, 1, config.lstm_hidden_size))

    def forward(self, segments: torch.Tensor) -> torch.Tensor:
        """`(segment_length, batch, hidden_size)` → `(segment_length, batch, 2 * lstm_hidden_size)`."""
        hidden, cell = (
            state.to(segments.dtype).expand(-1, segments.shape[1], -1).contiguous()
            for state in (self.initial_hidden, self.initial_cell)
        )
        return self.lstm(segments, (hidden, cell))[0]


class CSCMinGRU(nn.Module):
    """Bidirectional minGRU (Feng et al. 2024, arXiv 2410.01201) with learnt initial states [O]. Candidates and gates
    depend on the frame alone, so one matrix product serves all frames; what remains sequential is a moving average."""

    def __init__(self, config: CSCConfig):
        super().__init__()
        self.candidates_and_gates = nn.Linear(config.hidden_size, 4 * config.lstm_hidden_size)
        self.initial_hidden = nn.Parameter(torch.zeros(2, 1, config.lstm_hidden_size))

    def forward(self, segments: torch.Tensor) -> torch.Tensor:
        """`(segment_length, batch, hidden_size)` → `(segment_length, batch, 2 * lstm_hidden_size)`."""
        candidates, gates = self.candidates_and_gates(segments).chunk(2, dim=-1)
        directions = []
        for direction, (candidate, gate) in enumerate(
            zip(candidates.chunk(2, dim=-1), gates.sigmoid().chunk(2, dim=-1), strict=True)
        ):
            steps = list(zip(candidate.unbind(), gate.unbind(), strict=True))
            state, states = self.initial_hidden[direction].to(candidate.dtype), []
            for value, share in reversed(steps) if direction else steps:
                state = torch.lerp(state.expand_as(value), value, share)
                states.append(state)
            directions.append(torch.stack(states[::-1] if direction else states))
        return torch.cat(directions, dim=-1)


class CSCLocalRecurrence(nn.Module):
    """Recurrence along the frames of each segment, in both directions [G]."""

    def __init__(self, config: CSCConfig):
        super().__init__()
        self.recurrence = CSCMinGRU(config) if config.local_layer == "mingru" else CSCLSTM(config)
        self.projection = nn.Linear(2 * config.lstm_hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layer_norm = CSCGlobalLayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        """`(segment_length, batch, segments, hidden_size)` and a mask of size 1 in the last axis → the same shape."""
        local = self.projection(self.recurrence(hidden_states.flatten(1, 2))).view_as(hidden_states)
        return self.layer_norm(self.dropout(local).mul_(frame_mask), frame_mask, residual=hidden_states)


class CSCGlobalAttention(nn.Module):
    """Attention between segments at low resolution: the frames of a segment are compressed to `low_dim` rows, attended
    along segments, and expanded again [G]. The attention has a true residual; GALR's public code adds its output to
    itself [O]."""

    def __init__(self, config: CSCConfig):
        super().__init__()
        self.compress = nn.Linear(config.segment_length, config.low_dim)
        self.input_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attention = CSCAttention(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.output_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.expand = nn.Linear(config.low_dim, config.segment_length)
        self.layer_norm = CSCGlobalLayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        frame_mask: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """`(segment_length, batch, segments, hidden_size)` and a mask of size 1 in the last axis → the same shape."""
        # The linear layers see the frames as the last axis of a transposed view, which costs no copy.
        rows = self.compress(hidden_states.flatten(1).t()).t().unflatten(1, hidden_states.shape[1:])
        rows = rows.permute(1, 2, 0, 3).contiguous()
        positions = sinusoidal_positions(rows.shape[1], rows.shape[3], rows.device).to(rows.dtype)
        rows = self.input_layer_norm(rows) + positions[:, None]
        rows = self.output_layer_norm(rows + self.dropout(self.attention(rows, attention_mask, **kwargs)[0]))
        frames = self.expand(rows.permute(0, 1, 3, 2)).permute(3, 0, 1, 2).contiguous().mul_(frame_mask)
        return self.layer_norm(frames, frame_mask, residual=hidden_states)


class CSCBlock(GradientCheckpointingLayer):
    """Globally attentive, locally recurrent (GALR) block [G]."""

    def __init__(self, config: CSCConfig):
        super().__init__()
        self.segment_length = config.segment_length
        self.local_recurrence = CSCLocalRecurrence(config)
        self.global_attention = CSCGlobalAttention(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        frame_mask: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """`hidden_states` `(batch, segments * segment_length, hidden_size)`, zero where `frame_mask`
        `(batch, segments, segment_length, 1)` is → the same shape, likewise zero."""
        # Frames come first inside a block, in the order in which the recurrence reads them.
        segments = hidden_states.unflatten(1, (-1, self.segment_length)).permute(2, 0, 1, 3).contiguous()
        frame_mask = frame_mask.permute(2, 0, 1, 3)
        segments = self.local_recurrence(segments, frame_mask)
        segments = self.global_attention(segments, frame_mask, attention_mask, **kwargs)
        return segments.permute(1, 2, 0, 3).flatten(1, 2)


class CSCMaskedBatchNorm(nn.Module):
    """
    Batch norm over the real positions of all recordings. It is zero elsewhere, so padding changes nothing. Positions
    count by weights: those of slots that hold nobody would shift the moments of all the others [O].

    In training mode it normalises by the moments of the batch that this process holds, whatever other processes hold,
    and keeps moving averages of them. In evaluation mode it normalises by these, so one recording does not change
    another. So it does in training mode if its weight is frozen (`requires_grad` is false): what is not trained, such
    as the encoder below a new head or below an adapter, stays the same function. With activation checkpointing, which
    computes a block twice, its averages move twice in a step.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, size: int, eps: float, momentum: float = 0.1):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.register_buffer("running_mean", torch.zeros(size))
        self.register_buffer("running_var", torch.ones(size))
        self.eps = eps
        self.momentum = momentum

    def forward(
        self, hidden_states: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Args:
            hidden_states: `(..., size)`, zero where `mask` is.
            mask: `(..., 1)`.
            weights: How much each position counts in the moments of a batch, `(..., 1)`. If not given, the moving
                averages normalise in training mode, too.
        """
        values, mask = hidden_states.float(), mask.float()
        if self.training and self.weight.requires_grad and weights is not None:
            axes = tuple(range(values.dim() - 1))
            shares = weights / weights.sum().clamp(min=1e-3)
            mean = (shares * values).sum(axes)
            variance = (shares * (values - mean).square()).sum(axes)
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
        else:
            # Copies: another forward pass may move the averages before the backward pass of this one.
            mean = self.running_mean.to(torch.float32, copy=True)
            variance = self.running_var.to(torch.float32, copy=True)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul(values * scale, mask, self.bias - mean * scale).to(hidden_states.dtype)


class CSCConvBlock(GradientCheckpointingLayer):
    """A dilated convolution over frames, as in a TDNN, with a residual connection [O]."""

    def __init__(self, config: CSCConfig, dilation: int):
        super().__init__()
        size = config.segment_vector_size
        self.conv = nn.Conv1d(size, size, 3, padding=dilation, dilation=dilation)
        self.batch_norm = CSCMaskedBatchNorm(size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        frame_mask: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """`(rows, frames, size)`, `(rows, frames, 1)`, and how much each frame counts in the moments, likewise → the
        shape of `hidden_states`, zero where the mask is."""
        local = self.conv(hidden_states.transpose(1, 2)).transpose(1, 2).relu() * frame_mask
        return hidden_states + self.dropout(self.batch_norm(local, frame_mask, weights))


# --- branches --------------------------------------------------------------------------------------------------------


def pooled_statistics(mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Mean and variance of segment vectors `(..., segment_vector_size)` → mean and standard deviation
    `(..., 2 * segment_vector_size)`, of which speaker embeddings are made."""
    return torch.cat([mean, variance.clamp(min=1e-6).sqrt()], dim=-1)


class CSCConstantLinear(nn.Linear):
    """A linear layer that begins with the same outputs for every input, all of them `value`."""

    def __init__(self, in_features: int, out_features: int, value: float):
        super().__init__(in_features, out_features)
        self.value = value


class CSCMaskedBands(nn.Module):
    """What a speaker branch of convolutions reads of a slot: the mel spectrum under a mask that the slot makes [O]."""

    def __init__(self, config: CSCConfig):
        super().__init__()
        self.config = config
        num_inputs = config.frame_stride * cast(int, config.num_mel_bins)
        # Nearly open and the same for all, so that voices are heard before the slots have learnt who is where.
        self.mask = CSCConstantLinear(config.hidden_size, num_inputs, value=2.0)
        self.projection = nn.Linear(num_inputs, config.segment_vector_size)

    def forward(
        self, hidden_states: torch.Tensor, power: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            hidden_states: `(batch * slots, frames, hidden_size)`.
            power: Of the mixture, `(batch, frames * frame_stride, num_mel_bins)`.
            weights: How much each frame counts, `(batch * slots, frames, 1)`.

        Returns:
            `(batch * slots, frames, segment_vector_size)`, and the masks
            `(batch * slots, frames * frame_stride, num_mel_bins)`.
        """
        stride = self.config.frame_stride
        mask = self.mask(hidden_states).float().sigmoid().unflatten(-1, (stride, -1)).flatten(1, 2)
        masked = (mask.unflatten(0, (-1, self.config.num_sources)) * power[:, None]).flatten(0, 1)
        features = normalised_log(self.config, masked, weights.repeat_interleave(stride, dim=1))
        features = features.unflatten(1, (-1, stride)).flatten(2)
        return self.projection(features.to(hidden_states.dtype)) * weights.to(hidden_states.dtype), mask


def saved_name(name: str) -> str:
    """What a weight is called in files, by its name in `state_dict`."""
    return ".".join(SAVED_NAMES.get(part, part) for part in name.split("."))


def _rename_saved_weights(module: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, *_) -> None:
    """Hook of `load_state_dict`, with which `Trainer` and Accelerate load the weights of a file."""
    for name, saved in SAVED_NAMES.items():
        for key in [key for key in state_dict if key.startswith(f"{prefix}{saved}.")]:
            state_dict[key.replace(saved, name)] = state_dict.pop(key)


class CSCSpeakerBranch(nn.Module):
    """From the hidden states of a slot to one vector per segment [A], a speaker embedding and an activity [O]."""

    def __init__(self, config: CSCConfig):
        super().__init__()
        self.config = config
        size = config.segment_vector_size
        self.bands = None
        if config.speaker_block == "conv":
            self.bands = CSCMaskedBands(config)
            # Each block reaches further than the one before.
            dilations = (1 + index % 4 for index in range(config.num_speaker_layers))
            self.blocks = nn.ModuleList([CSCConvBlock(config, dilation) for dilation in dilations])
        else:
            self.blocks = nn.ModuleList([CSCBlock(config) for _ in range(config.num_speaker_layers)])
        self.attention_hidden = nn.Linear(size, size)
        self.attention_logits = nn.Linear(size, size)
        self.batch_norm = None
        if config.embedding_batch_norm:
            self.batch_norm = CSCMaskedBatchNorm(2 * size, config.layer_norm_eps)
        self.embedding = nn.Linear(2 * size, config.speaker_embedding_size)
        self.activity = nn.Linear(2 * size, 1)
        self.register_load_state_dict_pre_hook(_rename_saved_weights)

    def forward(
        self,
        hidden_states: torch.Tensor,
        frame_mask: torch.Tensor,
        attention_mask: torch.Tensor | None,
        segment_mask: torch.Tensor,
        frame_activity: torch.Tensor | None,
        encoded: torch.Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states: Of all slots, `(batch * slots, segments * segment_length, hidden_size)`.
            frame_mask: `(batch * slots, segments, segment_length, 1)`.
            attention_mask: What the attention implementation takes.
            segment_mask: `(batch * slots, segments)`.
            frame_activity: Logits that the slot speaks, `(batch * slots, segments, segment_length, 1)`, if the model
                has them.
            encoded: What the front end returned beside the features, `(batch, frames, ...)`.

        Returns:
            Segment vectors `(batch * slots, segments, segment_vector_size)`, embeddings of unit length
            `(batch * slots, speaker_embedding_size)`, activity logits `(batch * slots)`, and the masks that
            convolutions read the spectrum under `(batch * slots, frames, num_mel_bins)`.
        """
        weights = frame_mask.float()
        if frame_activity is not None:
            weights = weights * frame_activity.sigmoid()
        masks = None
        if self.bands is not None:
            power = band_power(self.config, encoded)
            hidden_states, masks = self.bands(hidden_states, power, weights.flatten(1, 2))
            for block in self.blocks:
                hidden_states = block(hidden_states, frame_mask.flatten(1, 2), weights.flatten(1, 2))
        else:
            for block in self.blocks:
                hidden_states = block(hidden_states, frame_mask, attention_mask, **kwargs)
        frames = hidden_states.unflatten(1, (-1, self.config.segment_length))
        shares = weights / weights.sum(dim=2, keepdim=True).clamp(min=1e-4)
        segments = (frames * shares.to(frames.dtype)).sum(dim=2)

        # Attentive statistics over segments, with separate weights for each channel.
        scores = self.attention_logits(self.attention_hidden(segments).tanh()).float()
        if frame_activity is not None:
            # A segment counts as much as it holds speech.
            scores = scores + (masked_mean(weights, frame_mask, dim=2) + 1e-4).log()
        attention = scores.masked_fill(~segment_mask[..., None], torch.finfo(scores.dtype).min).softmax(dim=1)
        values = segments.float()
        mean = (attention * values).sum(dim=1, keepdim=True)
        # From the deviations: a short recording has hardly any, and E[x²] - E[x]² would be rounding noise.
        variance = (attention * (values - mean).square()).sum(dim=1)
        statistics = pooled_statistics(mean.squeeze(1), variance).to(segments.dtype)
        embeddings = self.embed(statistics, masked_mean(weights, frame_mask, dim=(1, 2)))
        return segments, embeddings, self.activity(statistics).squeeze(-1).float(), masks

    def embed(self, statistics: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Pooled statistics `(..., 2 * segment_vector_size)` → embeddings `(..., speaker_embedding_size)` of unit
        length, float32. `weights` `(..., 1)` say how much each of them counts in the moments of a batch; without
        them, it is not of a batch."""
        if self.batch_norm is not None:
            statistics = self.batch_norm(statistics, torch.ones_like(statistics[..., :1]), weights)
        return F.normalize(self.embedding(statistics).float(), dim=-1)


class CSCSeparator(nn.Module):
    """From the hidden states of the slots to their waveforms: blocks, overlap-add, mask, decoder [G]."""

    def __init__(self, config: CSCConfig):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList([CSCBlock(config) for _ in range(config.num_separation_layers)])
        self.decoder = CSCSTFTDecoder(config) if config.front_end == "stft" else CSCConvDecoder(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        frame_mask: torch.Tensor,
        attention_mask: torch.Tensor | None,
        encoded: torch.Tensor,
        num_samples: int,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """`hidden_states` `(batch * slots, segments * segment_length, hidden_size)` and `encoded`, what the front end
        returned beside the features → `(batch, slots, num_samples)`."""
        for block in self.blocks:
            hidden_states = block(hidden_states, frame_mask, attention_mask, **kwargs)
        segments = hidden_states.unflatten(1, (-1, self.config.segment_length))
        frames = overlap_add(segments, self.config.segment_hop)
        return self.decoder(frames.unflatten(0, (-1, self.config.num_sources)), encoded, num_samples)


class CSCSpeakerAggregator(nn.Module):
    """
    Cross-attention of a speaker embedding over the segment vectors of other recordings, in which others speak as well:
    it has to find the segments of its own speaker [A]. It returns their mean and variance, from which
    [`CSCSpeakerBranch`]'s embedding layer makes the global speaker vector, so that the vector and the embedding lie in
    one space [O].
    """

    def __init__(self, config: CSCConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.use_cross_attention = config.use_cross_attention
        if config.use_cross_attention:
            size = config.segment_vector_size
            self.memory_layer_norm = nn.LayerNorm(size, config.layer_norm_eps)
            self.q_proj = nn.Linear(config.speaker_embedding_size, size)
            self.k_proj = nn.Linear(size, size)

    def queries(self, embeddings: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`(..., speaker_embedding_size)` → `(..., heads, head_size)`; zeros without cross-attention."""
        if not self.use_cross_attention:
            return embeddings.new_zeros(*embeddings.shape[:-1], self.num_heads, 1)
        return self.q_proj(embeddings.to(dtype)).unflatten(-1, (self.num_heads, -1))

    def keys(self, memory: torch.Tensor) -> torch.Tensor:
        """`(..., memory, segment_vector_size)` → `(..., memory, heads, head_size)`; zeros without cross-attention."""
        if not self.use_cross_attention:
            return memory.new_zeros(*memory.shape[:-1], self.num_heads, 1, dtype=torch.float32)
        return self.k_proj(self.memory_layer_norm(memory)).unflatten(-1, (self.num_heads, -1))

    def scores(self, query: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """Attention logits of `(..., speaker_embedding_size)` over `(..., memory, segment_vector_size)`, whose leading
        axes broadcast → `(..., heads, memory)`; all zero without cross-attention."""
        return _attention_scores(self.queries(query, memory.dtype), self.keys(memory))

    def forward(
        self, query: torch.Tensor, memory: torch.Tensor, memory_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            query: Speaker embeddings, `(..., speaker_embedding_size)`.
            memory: Segment vectors, `(..., memory, segment_vector_size)`.
            memory_mask: `(..., memory)` bool, false for padding.

        Returns:
            Mean and variance of the memory, `(..., segment_vector_size)`; each head weights its own channels.
        """
        scores = self.scores(query, memory)
        weights = scores.masked_fill(~memory_mask[..., None, :], torch.finfo(scores.dtype).min).softmax(dim=-1)
        values = memory.float().unflatten(-1, (self.num_heads, -1))
        with full_precision(scores):
            mean = torch.einsum("...hm,...mhd->...hd", weights, values)
            deviation = values - mean[..., None, :, :]
            variance = torch.einsum("...hm,...mhd->...hd", weights, deviation.square())
        return mean.flatten(-2), variance.flatten(-2)


def _attention_scores(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """`(..., heads, head_size)`, `(..., memory, heads, head_size)` → `(..., heads, memory)` float32."""
    return torch.einsum("...hd,...mhd->...hm", query, key).float() * query.shape[-1] ** -0.5


# --- losses ----------------------------------------------------------------------------------------------------------


def pairwise_si_snr(
    estimates: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor, threshold: float
) -> torch.Tensor:
    """
    SI-SNR of every estimate against every target. It is finite and has finite gradients, for silence as well.

    Args:
        estimates, targets: `(batch, slots, samples)`.
        mask: `(batch, samples)`, 1 for real samples.
        threshold: SI-SNR, in dB, at which the result saturates.

    Returns:
        `(batch, estimates, targets)`, in dB.
    """
    mask = mask[:, None].float()
    estimates, targets = estimates.float() * mask, targets.float() * mask
    estimates, targets = estimates * headroom(estimates), targets * headroom(targets)
    estimates = (estimates - masked_mean(estimates, mask, -1)[..., None]) * mask
    targets = (targets - masked_mean(targets, mask, -1)[..., None]) * mask
    eps = 1e-8
    energies = (estimates.square().sum(-1) + eps)[..., None] * (targets.square().sum(-1) + eps)[:, None]
    with full_precision(estimates):
        explained = torch.einsum("bet,bgt->beg", estimates, targets).square() / energies
    residual = (1 - explained).clamp(min=0)
    floor = 10 ** (-threshold / 10)
    return 10 * torch.log10((explained + eps) / (residual + floor * explained + eps))


def permutation_invariant_separation_loss(
    estimates: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor, threshold: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Negative SI-SNR, in dB, of the permutation of slots that is best for the whole mixture [G].

    Args:
        estimates, targets: `(batch, slots, samples)`. A target of zeros is absent and does not count.
        mask: `(batch, samples)`, 1 for real samples.
        threshold: SI-SNR, in dB, at which the loss saturates.

    Returns:
        The loss `()`, averaged over the targets that are present; the slot of each target `(batch, slots)`; which
        targets are present `(batch, slots)`, bool.
    """
    num_sources = targets.shape[1]
    present = ((targets * mask[:, None]) != 0).any(-1)
    si_snr = pairwise_si_snr(estimates, targets, mask, threshold)
    permutations = torch.tensor(list(itertools.permutations(range(num_sources))), device=targets.device)
    target = torch.arange(num_sources, device=targets.device)
    candidates = si_snr[:, permutations, target] * present[:, None]  # (batch, permutations, targets)
    best = candidates.sum(-1).argmax(-1)
    chosen = candidates.take_along_dim(best[:, None, None], dim=1)
    return -chosen.sum() / present.sum().clamp(min=1), permutations[best], present


def slot_activity_loss(activity: torch.Tensor, permutation: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of the activity logits, given the slot of each target and which targets are present, all
    `(batch, slots)`."""
    labels = torch.zeros_like(activity).scatter(1, permutation, present.to(activity.dtype))
    return F.binary_cross_entropy_with_logits(activity, labels)


def when_speech_sounds(sources: torch.Tensor, mask: torch.Tensor, stride: int) -> torch.Tensor:
    """
    When clean sources speak, by their level [O]: a frame is speech if its level is 9 dB above the quietest tenth of
    the recording, or less than 20 dB below the loudest frame; never more than 35 dB below it.

    Args:
        sources: `(batch, slots, samples)`. Zeros are absent.
        mask: `(batch, samples)`, 1 for real samples.
        stride: Samples of a frame.

    Returns:
        `(batch, slots, frames)` bool. A pause of one frame counts as speech.
    """
    sources = sources.float() * mask[:, None]
    sources = sources * headroom(sources)
    power = F.pad(sources, (0, -sources.shape[-1] % stride)).unflatten(-1, (-1, stride)).square().mean(-1)
    loudest = power.amax(-1, keepdim=True)
    level = 10 * (power / loudest.clamp(min=1e-20) + 1e-10).log10()
    real = length_mask(-(-mask.sum(-1) // stride), level.shape[-1])[:, None]
    quiet = level.masked_fill(~real, torch.nan).nanquantile(0.1, dim=-1, keepdim=True)
    speech = (level > (quiet + 9).clamp(-35, -20)) & real & (loudest > 0)
    spread = F.max_pool1d(speech.float(), 3, stride=1, padding=1)
    return -F.max_pool1d(-spread, 3, stride=1, padding=1) > 0


def frame_activity_loss(
    activity: torch.Tensor, sources: torch.Tensor, permutation: torch.Tensor, mask: torch.Tensor, stride: int
) -> torch.Tensor:
    """Binary cross-entropy of when the slots speak.

    Args:
        activity: Logits, `(batch, slots, frames)`.
        sources: The clean sources, `(batch, slots, samples)`.
        permutation: Slot of each source, `(batch, slots)`.
        mask: `(batch, samples)`, 1 for real samples.
        stride: Samples of a frame.
    """
    spoken = when_speech_sounds(sources, mask, stride).to(activity.dtype)
    labels = torch.zeros_like(activity).scatter(1, permutation[..., None].expand_as(activity), spoken)
    losses = F.binary_cross_entropy_with_logits(activity, labels, reduction="none")
    return masked_mean(losses, length_mask(-(-mask.sum(-1) // stride), activity.shape[-1])[:, None], (0, 1, 2))


def band_mask_loss(
    config: CSCConfig,
    masks: torch.Tensor,
    mixtures: torch.Tensor,
    sources: torch.Tensor,
    permutation: torch.Tensor,
    mask: torch.Tensor,
) -> torch.Tensor:
    """
    Binary cross-entropy of the slots' masks and of their shares of the power in each mel band [O]. What neither source
    explains is noise, with a share of its own. Loud bands count more, by the fourth root of their power.

    Args:
        masks: `(batch, slots, frames, num_mel_bins)`.
        mixtures: `(batch, samples)`.
        sources: `(batch, slots, samples)`.
        permutation: Slot of each source, `(batch, slots)`.
        mask: `(batch, samples)`, 1 for real samples.
    """
    mixtures = mixtures.float() * mask
    scale = headroom(mixtures)
    mixtures = mixtures * scale
    level = masked_mean(mixtures.square(), mask, -1).sqrt()[:, None] + 1e-8
    sources = sources.float() * (mask * scale / level)[:, None]
    parts = torch.cat([sources, (mixtures / level - sources.sum(1))[:, None]], dim=1)
    frames = split_frames(parts.flatten(0, 1), config.conv_kernel, config.conv_stride, masks.shape[2])
    spectrum = torch.fft.rfft(frames * stft_window(config, frames.device))
    power = band_power(config, spectrum).unflatten(0, parts.shape[:2])
    total = power.sum(1, keepdim=True)
    shares = power[:, :-1] / total.clamp(min=1e-9)
    ordered = masks.take_along_dim(permutation[..., None, None], dim=1).clamp(1e-4, 1 - 1e-4)
    losses = -(shares * ordered.log() + (1 - shares) * (1 - ordered).log())
    real = length_mask(config.num_frames(mask.sum(-1)), masks.shape[2])[:, None, :, None]
    weights = (total * real).sqrt().sqrt().expand_as(losses)
    return (weights * losses).sum() / weights.sum().clamp(min=1e-6)


def additive_angular_margin_loss(
    cosines: torch.Tensor, labels: torch.Tensor, margin: float, scale: float
) -> torch.Tensor:
    """ArcFace (Deng et al., CVPR 2019): cross-entropy of scaled cosines `(batch, classes)`, after the angle to the
    class in `labels` `(batch)` was increased by `margin`, in radians."""
    # cos(θ + m), continued linearly where θ + m > π, so that it keeps falling with θ.
    sines = (1 - cosines.square()).clamp(min=1e-8).sqrt()
    harder = torch.where(
        cosines > -math.cos(margin),
        cosines * math.cos(margin) - sines * math.sin(margin),
        cosines - margin * math.sin(margin),
    )
    true = F.one_hot(labels, cosines.shape[-1]).bool()
    return F.cross_entropy(scale * torch.where(true, harder, cosines), labels)


def class_cosines(embeddings: torch.Tensor, classifier: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """Cosines of embeddings of unit length `(batch, size)` with the class vectors of a linear layer, whose weights
    have the given dtype → `(batch, classes)` float32."""
    with full_precision(embeddings):
        # The class vectors are what the classifier makes of the identity matrix. Its weight is not read, so that
        # adapters, offloading and quantisers, which replace its forward, take part.
        axes = torch.eye(embeddings.shape[-1], dtype=dtype, device=embeddings.device)
        return embeddings @ F.normalize(classifier(axes).float(), dim=0)


def main_speaker_embedding(embeddings: torch.Tensor, activity: torch.Tensor) -> torch.Tensor:
    """The embedding of the slot that holds the only speaker of a recording: `(batch, slots, speaker_embedding_size)`,
    `(batch, slots)` → `(batch, speaker_embedding_size)`. Slots are weighted by the softmax of their activity, so that
    training a head also trains which slot is chosen."""
    return F.normalize((activity.softmax(dim=-1)[..., None] * embeddings).sum(dim=1), dim=-1)


def verification_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy, `()`, of logits and labels of one shape: 1, 0, or -100 for unknown. Ones and zeros weigh
    the same in all, so a logit is a log-likelihood ratio, whatever their numbers."""
    losses = F.binary_cross_entropy_with_logits(logits.float(), (labels == 1).float(), reduction="none")
    axes = tuple(range(losses.dim()))
    of_classes = [masked_mean(losses, labels == label, axes) for label in (0, 1)]
    return torch.stack(of_classes).sum() / 2


# --- the contrast: which mixtures a query may see, and what they answer ----------------------------------------------


def _memories(
    contains: torch.Tensor,
    num_speakers: torch.Tensor,
    pair_identity: torch.Tensor,
    pair_mixture: torch.Tensor,
    query_identity: torch.Tensor,
    query_mixture: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Selects the mixtures that each identity's memory consists of, for each query.

    Of its own identity, a query sees every mixture but its own. Of another identity, it sees as many mixtures, with
    the same numbers of speakers, in none of which its own identity speaks. An identity with too few such mixtures is
    no candidate. Without this rule the own identity, which lacks the query's mixture, could be told by the size of its
    memory or by the number of speakers in it: a network that is trained on noise learns that within minutes.

    Args:
        contains: Whether an identity speaks in a mixture, `(identities, mixtures)`.
        num_speakers: Identities in each mixture, `(mixtures)`.
        pair_identity, pair_mixture: Where `contains` is true, sorted by identity, `(pairs)`.
        query_identity, query_mixture: Of each query, `(queries)`.

    Returns:
        Whether the mixture of a pair is in the memory of its identity, `(queries, pairs)`, and which identities are
        candidates, `(queries, identities)`.
    """
    num_identities, num_mixtures = contains.shape
    # For each query, the mixtures of an identity are taken in cyclic order, from the one behind the query's own, so
    # that no mixture is preferred for its position.
    turn = (pair_mixture - query_mixture[:, None] - 1) % num_mixtures
    order = (pair_identity * num_mixtures + turn).argsort(dim=1)  # identities stay where they are
    mixture = pair_mixture[order]
    own = pair_identity == query_identity[:, None]
    holds_own = contains[query_identity].gather(1, mixture)
    eligible = (own | ~holds_own) & (mixture != query_mixture[:, None])

    ends = contains.sum(1).cumsum(0)
    starts = ends - contains.sum(1)
    chosen = torch.zeros_like(eligible)
    candidate = torch.ones(len(query_identity), num_identities, dtype=torch.bool, device=contains.device)
    any_wanted = torch.zeros_like(candidate[:, :1])
    for kind in num_speakers.unique():
        of_kind = eligible & (num_speakers[mixture] == kind)
        wanted = (of_kind & own).sum(1, keepdim=True)
        count = F.pad(of_kind.cumsum(1), (1, 0))
        before = count[:, starts]
        chosen |= of_kind & (count[:, 1:] - before[:, pair_identity] <= wanted)
        candidate &= count[:, ends] - before >= wanted
        any_wanted |= wanted > 0
    candidate &= any_wanted
    chosen &= candidate[:, pair_identity]
    return torch.zeros_like(chosen).scatter(1, order, chosen), candidate


def _attend(
    query: torch.Tensor, key: torch.Tensor, memory: torch.Tensor, memory_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Attention of every query over every mixture, one mixture at a time.

    Args:
        query: `(queries, heads, head_size)`.
        key: `(mixtures, memory, heads, head_size)`.
        memory: `(mixtures, memory, segment_vector_size)`.
        memory_mask: `(mixtures, memory)` bool.

    Returns:
        Mean and mean square of the memory, `(queries, mixtures, heads, 2 * head_size)`, and the logarithm of the sum
        of the exponentiated scores, `(queries, mixtures, heads)`.
    """
    scores = _attention_scores(query[:, None], key[None])
    scores = scores.masked_fill(~memory_mask[:, None], torch.finfo(scores.dtype).min)
    weights, values = scores.softmax(dim=-1), memory.float().unflatten(-1, (query.shape[1], -1))
    with full_precision(scores):  # a variance, the difference of two moments, does not survive half precision
        moments = [torch.einsum("qbhm,bmhd->qbhd", weights, power) for power in (values, values.square())]
    return torch.cat(moments, dim=-1), scores.logsumexp(dim=-1)


def _answers(
    moments: torch.Tensor,
    log_sums: torch.Tensor,
    visible: torch.Tensor,
    pair_identity: torch.Tensor,
    pair_mixture: torch.Tensor,
    num_identities: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mean and variance of each identity's memory, as each query attends to it. A softmax over several mixtures is the
    softmax within each, weighted by the sums of the exponentiated scores; so what [`_attend`] computed of a mixture
    serves all identities in it.

    Args:
        moments, log_sums: From [`_attend`].
        visible: `(queries, pairs)`, from [`_memories`].
        pair_identity, pair_mixture: `(pairs)`.

    Returns:
        Two tensors of shape `(queries, identities, segment_vector_size)`, zero for an identity without a visible
        mixture.
    """
    # Relative to the mixture with the highest scores. The bound keeps a mixture far behind it from vanishing, where it
    # is the only one visible.
    shares = (log_sums - log_sums.amax(dim=1, keepdim=True)).clamp(min=-60).exp()[..., None]
    terms = torch.cat([shares * moments, shares], dim=-1)[:, pair_mixture] * visible[..., None, None]
    sums = terms.new_zeros(terms.shape[0], num_identities, *terms.shape[2:]).index_add(1, pair_identity, terms)
    mean, mean_square = (sums[..., :-1] / sums[..., -1:].clamp(min=1e-30)).chunk(2, dim=-1)
    return mean.flatten(-2), (mean_square - mean.square()).flatten(-2)


def _recomputed(function: Callable) -> Callable:
    """`function`, which keeps only its inputs for the backward pass and runs again there."""
    return functools.partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)


# --- several processes: each makes the same collective calls in the same order, whatever its batch holds -------------


def _contrast_processes(model: nn.Module) -> int:
    """Number of processes that share a contrast: all of them in training, otherwise this one."""
    if model.training and torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1


def _items_per_process(num_items: torch.Tensor, num_processes: int) -> torch.Tensor:
    """The divisor that turns the sum over this process's `num_items` `()` items into a term whose mean over the
    processes is the mean over all items."""
    num_items = num_items.float()
    if num_processes > 1:
        torch.distributed.all_reduce(num_items)
    return num_items.clamp(min=1) / num_processes


class _GatherWithGradient(torch.autograd.Function):
    """`(batch, ...)` of each process → `(processes * batch, ...)`, in rank order. A process receives the sum of all
    processes' gradients of its own rows."""

    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        num_rows, *shape = tensor.shape
        gathered = tensor.new_empty(torch.distributed.get_world_size() * num_rows, *shape)
        torch.distributed.all_gather_into_tensor(gathered, tensor.contiguous())
        return gathered

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(gradient)
        return gradient.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]


def _gather_mixtures(
    speaker_ids: torch.Tensor, memory: torch.Tensor, memory_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """The mixtures of all processes, and how many of them precede those of this process. Smaller batches and shorter
    memories are padded, with mixtures that hold no identity."""
    gather = _GatherWithGradient.apply
    sizes = gather(torch.tensor([memory.shape[:2]], device=memory.device))
    num_rows, length = sizes.amax(dim=0).tolist()
    missing_rows, missing_length = num_rows - memory.shape[0], length - memory.shape[1]
    return (
        gather(F.pad(speaker_ids, (0, 0, 0, missing_rows), value=-100)),
        gather(F.pad(memory, (0, 0, 0, missing_length, 0, missing_rows))),
        gather(F.pad(memory_mask.byte(), (0, missing_length, 0, missing_rows))).bool(),
        num_rows * torch.distributed.get_rank(),
    )


# --- models ----------------------------------------------------------------------------------------------------------


class CSCPreTrainedModel(PreTrainedModel):
    """Weight initialisation, and the flags that tell Transformers what all CSC models support."""

    config: CSCConfig
    base_model_prefix = "csc"
    main_input_name = "input_values"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    _no_split_modules = ["CSCBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Parts of a pre-training checkpoint that a head or the base model does not use.
    _keys_to_ignore_on_load_unexpected = [
        r"^aggregator\.",
        r"^log_contrastive_scale$",
        r"^recording_classifier\.",
        r"^(csc\.)?separator\.",
    ]
    # Our losses are means over a batch, so the Trainer has to divide them by the accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, config: CSCConfig):
        super().__init__(config)
        if config.speaker_block == "conv":  # FSDP refuses the name of a class that the model does not hold
            self._no_split_modules = ["CSCBlock", "CSCConvBlock"]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights. Transformers asks `parameters()`, of which a replica in `DataParallel` has none.
        The activation is a layer that no adapter or quantiser replaces."""
        return cast(nn.PReLU, self.base_model.slot_activation).weight.dtype

    def freeze_base_model(self) -> None:
        """Freezes the encoder, so that training changes only the head. In training mode, too, its batch norms then use
        their moving averages and do not update them."""
        self.base_model.requires_grad_(False)

    def get_input_embeddings(self) -> None:  # type: ignore[override]
        """There is no vocabulary. Accelerate asks, to place its embeddings."""

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        # Only what a module holds itself: of a class outside Transformers, modules without parameters of their own are
        # passed over.
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            if 1 in (module.in_channels, module.out_channels):
                # A basis of waveforms: PyTorch's own scale, not that of the linear layers.
                init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            else:
                init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, CSCConstantLinear):
            init.zeros_(module.weight)
            init.constant_(module.bias, module.value)
        elif isinstance(module, CSCRecordingClassifier):
            # Only directions count, and those of small vectors move faster.
            init.xavier_normal_(module.weight)
        elif isinstance(module, CSCMaskedBatchNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
        elif isinstance(module, CSCLSTM):
            init.zeros_(module.initial_hidden)
            init.zeros_(module.initial_cell)
        elif isinstance(module, CSCMinGRU):
            init.zeros_(module.initial_hidden)
        elif isinstance(module, nn.PReLU):
            init.constant_(module.weight, 0.25)
        elif isinstance(module, CSCForSpeakerVerification):
            init.constant_(module.log_cosine_scale, math.log(10.0))
            init.constant_(module.cosine_threshold, 0.5)
        elif isinstance(module, CSCForPreTraining):
            init.constant_(module.log_contrastive_scale, math.log(self.config.contrastive_scale))


class CSCModel(CSCPreTrainedModel):
    """
    The separative encoder: a shared trunk, slots, and for each slot a speaker branch and, with `add_separator`, a
    separation branch.

    Args:
        config ([`CSCConfig`]): The dimensions.
        add_separator (`bool`, defaults to `False`): Whether to build the separation branch and return `sources`.

    Example:

    ```python
    >>> import torch
    >>> from csc_hf import CSCConfig, CSCModel

    >>> model = CSCModel(CSCConfig.tiny()).eval()
    >>> model(torch.randn(1, 16000)).source_embeddings.shape
    torch.Size([1, 2, 32])
    ```"""

    # Only the trunk is recorded: the batch axis of the branches is batch * slots.
    _can_record_outputs = {
        "hidden_states": OutputRecorder(GradientCheckpointingLayer, index=0, layer_name="layers"),
        "attentions": OutputRecorder(CSCAttention, index=1, layer_name="layers"),
    }

    def __init__(self, config: CSCConfig, add_separator: bool = False):
        super().__init__(config)
        self.front_end = CSCSTFTFrontEnd(config) if config.front_end == "stft" else CSCConvFrontEnd(config)
        self.layers = nn.ModuleList([CSCBlock(config) for _ in range(config.num_hidden_layers)])
        self.slots = nn.Linear(config.hidden_size, config.num_sources * config.hidden_size)
        self.slot_activation = nn.PReLU()
        self.frame_activity = nn.Linear(config.hidden_size, 1) if config.frame_activity else None
        self.speaker_branch = CSCSpeakerBranch(config)
        self.separator = CSCSeparator(config) if add_separator else None
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CSCModelOutput:
        r"""
        Args:
            input_values (`torch.FloatTensor` of shape `(batch, samples)`): Mono waveforms at `config.sampling_rate`.
                Their level does not matter.
            attention_mask (`torch.LongTensor` of shape `(batch, samples)`, *optional*): 1 for samples, 0 for padding
                on the right. Padding does not change the output.

        Raises:
            ValueError: If `input_values` is not `(batch, samples)` with at least one row and sample, is complex, or
                holds NaN or infinite samples; if `attention_mask` has another shape, or a row that is not ones
                followed by zeros. Compiled and exported models check shapes only.
        """
        if input_values.dim() != 2 or 0 in input_values.shape or input_values.is_complex():
            raise ValueError(
                "`input_values` must be real, mono waveforms of shape (batch, samples), got "
                f"{tuple(input_values.shape)} of {input_values.dtype}."
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_values, dtype=torch.long)
        check_shape("attention_mask", attention_mask, input_values.shape)
        config, num_samples = self.config, input_values.shape[1]
        lengths = attention_mask.sum(dim=-1)
        waveform = silence_padding(input_values, attention_mask)
        check_recordings(waveform, attention_mask, lengths)

        size, hop, num_segments = config.segment_length, config.segment_hop, config.num_segments(num_samples)
        # The frames fill the segments exactly; where these overlap, without the second half of the last one.
        num_frames = (num_segments - size // hop + 1) * hop
        encoded_mask = length_mask(config.num_frames(lengths), num_frames * config.frame_stride)
        frame_mask = length_mask(config.num_encoder_frames(lengths), num_frames)
        segment_mask = length_mask(config.num_segments(lengths), num_segments)

        # To unit power, so that neither quiet recordings nor half precision lose anything.
        scale = headroom(waveform)
        waveform = waveform * scale
        level = masked_mean(waveform.square(), attention_mask, -1).sqrt()[:, None] + 1e-8 * scale
        features, encoded = self.front_end(waveform / level, encoded_mask[..., None], self.dtype)

        hidden_states = split_frames(features * frame_mask[..., None], size, hop, num_segments).flatten(1, 2)
        frame_mask = split_frames(frame_mask[..., None].to(features.dtype), size, hop, num_segments)
        attention_bias = self._attention_bias(features, segment_mask)
        for layer in self.layers:
            hidden_states = layer(hidden_states, frame_mask, attention_bias, **kwargs)
        last_hidden_state = masked_mean(hidden_states.unflatten(1, (-1, size)), frame_mask, dim=2)

        # From here on, slots are rows of the batch: (batch * slots, ...).
        slots = self.slot_activation(self.slots(hidden_states)).mul_(frame_mask.flatten(1, 2))
        slots = slots.unflatten(-1, (config.num_sources, -1)).permute(0, 2, 1, 3).flatten(0, 1)
        frame_mask = frame_mask.repeat_interleave(config.num_sources, dim=0)
        segment_mask = segment_mask.repeat_interleave(config.num_sources, dim=0)
        attention_bias = self._attention_bias(features, segment_mask)
        frame_activity = None
        if self.frame_activity is not None:
            frame_activity = self.frame_activity(slots).float().unflatten(1, (-1, size))
        segments, embeddings, activity, masks = self.speaker_branch(
            slots, frame_mask, attention_bias, segment_mask, frame_activity, encoded, **kwargs
        )
        sources = None
        if self.separator is not None:
            sources = self.separator(slots, frame_mask, attention_bias, encoded, num_samples, **kwargs)
            sources = sources * level[..., None] * attention_mask[:, None] / scale[..., None]
            largest = torch.finfo(sources.dtype).max
            sources = sources.clamp(-largest, largest)

        by_slot = (-1, config.num_sources)
        silent = (waveform == 0).all(-1)[:, None]
        activity = activity.unflatten(0, by_slot).masked_fill(silent, NOBODY)
        if frame_activity is not None:
            frame_activity = self._pool_activity(frame_activity, frame_mask, num_samples).unflatten(0, by_slot)
            frame_activity = frame_activity.masked_fill(silent[..., None], NOBODY)
        return CSCModelOutput(
            last_hidden_state=last_hidden_state,
            source_hidden_states=segments.unflatten(0, by_slot),
            source_embeddings=embeddings.unflatten(0, by_slot),
            source_activity=activity,
            source_frame_activity=frame_activity,
            source_band_masks=None if masks is None else masks.unflatten(0, by_slot),
            sources=sources,
        )

    def _pool_activity(self, logits: torch.Tensor, frame_mask: torch.Tensor, num_samples: int) -> torch.Tensor:
        """Logits and mask of the frames in segments `(rows, segments, segment_length, 1)` → means over the frames of
        each `config.activity_stride` samples, `(rows, activity frames)`."""
        config = self.config
        hop, num_joined = config.segment_hop, config.activity_stride // (config.frame_stride * config.conv_stride)
        both = torch.cat([logits * frame_mask, frame_mask.to(logits.dtype)], dim=-1)
        both = overlap_add(both, hop) if config.segment_overlap else both.flatten(1, 2)
        both = F.pad(both, (0, 0, 0, -both.shape[1] % num_joined)).unflatten(1, (-1, num_joined)).sum(2)
        return crop(both[..., 0] / both[..., 1].clamp(min=1), 0, config.num_activity_frames(num_samples))

    def _attention_bias(self, features: torch.Tensor, segment_mask: torch.Tensor) -> torch.Tensor | None:
        """Padding mask over segments in the form that the attention implementation takes."""
        embeds = features.new_empty(*segment_mask.shape, features.shape[-1])
        return create_bidirectional_mask(self.config, embeds, segment_mask)


class CSCRecordingClassifier(nn.Linear):
    """One vector for each class of recordings [O]."""


class CSCForPreTraining(CSCPreTrainedModel):
    """
    CSC pre-training. It separates the sources, and maximises the mutual information between the embedding of each slot
    and the global speaker vector of its identity, which cross-attention reads from other mixtures with that identity.

    In training mode, if `torch.distributed` is initialised, the contrast runs over the mixtures of all processes of
    the default group. Each process holds its own mixtures, equal `speaker_ids` mean the same speaker in any process,
    and all processes must call the model equally often, with `source_values`. If they hold equally many mixtures, the
    averages over processes of losses, metrics and gradients (as DDP and FSDP average them) equal those of one process
    with all mixtures. In evaluation mode each process is on its own, so one may evaluate while the others wait.

    Example:

    ```python
    >>> import torch
    >>> from csc_hf import CSCConfig, CSCForPreTraining

    >>> model = CSCForPreTraining(CSCConfig.tiny())
    >>> sources = torch.randn(3, 2, 8000)  # three mixtures of speakers 0 and 1, 0 and 2, 1 and 2
    >>> speaker_ids = torch.tensor([[0, 1], [0, 2], [1, 2]])
    >>> output = model(sources.sum(1), source_values=sources, speaker_ids=speaker_ids)
    >>> output.loss.backward()
    ```"""

    def __init__(self, config: CSCConfig):
        super().__init__(config)
        self.csc = CSCModel(config, add_separator=True)
        self.aggregator = CSCSpeakerAggregator(config)
        self.log_contrastive_scale = nn.Parameter(torch.full((1,), math.log(config.contrastive_scale)))
        self.recording_classifier = None
        if config.num_recording_classes is not None:
            self.recording_classifier = CSCRecordingClassifier(
                config.speaker_embedding_size, config.num_recording_classes, bias=False
            )
        self.post_init()

    def aggregate(
        self, query: torch.Tensor, memory: torch.Tensor, memory_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        The global speaker vector: what several recordings, each possibly with other speakers in it, tell about the
        speaker of an embedding.

        Args:
            query: Speaker embeddings, `(..., speaker_embedding_size)`.
            memory: `source_hidden_states` of the recordings, all slots and segments concatenated,
                `(..., memory, segment_vector_size)`.
            memory_mask: 1 for real segments, `(..., memory)`. `None` means that all are real.

        Returns:
            Vectors of unit length, `(..., speaker_embedding_size)`, to be compared with embeddings.
        """
        if memory_mask is None:
            memory_mask = torch.ones(memory.shape[:-1], device=memory.device)
        mean, variance = self.aggregator(query, memory, memory_mask.bool())
        return self._global_speaker_vectors(mean, variance, memory.dtype)

    def _global_speaker_vectors(self, mean: torch.Tensor, variance: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`(..., segment_vector_size)` → `(..., speaker_embedding_size)`, as the speaker branch makes embeddings."""
        statistics = pooled_statistics(mean, variance).to(dtype)
        return self.csc.speaker_branch.embed(statistics)

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        source_values: torch.Tensor | None = None,
        speaker_ids: torch.Tensor | None = None,
        recording_ids: torch.Tensor | None = None,
        return_loss: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CSCForPreTrainingOutput:
        r"""
        Args:
            input_values, attention_mask: As in [`CSCModel`].
            source_values (`torch.FloatTensor` of shape `(batch, slots, samples)`, *optional*): The sources that the
                mixtures consist of; zeros for the missing ones of a mixture with fewer. Without them there is no loss.
            speaker_ids (`torch.LongTensor` of shape `(batch, slots)`, *optional*): Identity of each source. Equal
                numbers mean the same identity, -100 means none. Without them, or if no two identities can be told
                apart, the contrastive loss is zero. An identity in only one mixture takes no part.
            recording_ids (`torch.LongTensor` of shape `(batch, slots)`, *optional*): Class of the recording that each
                source is a part of, below `config.num_recording_classes`; -100 means none.
            return_loss (`bool`, defaults to `True`): Whether to compute the losses, if `source_values` are given.

        Raises:
            ValueError: If `source_values`, `speaker_ids` or `recording_ids` do not fit the input, the latter two come
                alone, or the model has no classes of recordings; if `source_values` hold NaN or infinite samples.
        """
        batch, num_sources = input_values.shape[0], self.config.num_sources
        if source_values is None and speaker_ids is not None:
            raise ValueError("`speaker_ids` need `source_values`, which tell the slot of each speaker.")
        check_shape("source_values", source_values, (batch, num_sources, *input_values.shape[1:]))
        if recording_ids is not None and (source_values is None or self.recording_classifier is None):
            raise ValueError(
                "`recording_ids` need `source_values`, which tell the slot of each source, and a model with "
                "`config.num_recording_classes`."
            )
        check_shape("speaker_ids", speaker_ids, (batch, num_sources))
        check_shape("recording_ids", recording_ids, (batch, num_sources))
        outputs = self.csc(input_values, attention_mask, **kwargs)
        losses = {}
        if source_values is not None and return_loss:
            if attention_mask is None:
                attention_mask = torch.ones_like(input_values, dtype=torch.long)
            nobody = torch.full((batch, num_sources), -100, device=input_values.device)
            speaker_ids = nobody if speaker_ids is None else speaker_ids
            recording_ids = nobody if recording_ids is None else recording_ids
            input_values = silence_padding(input_values, attention_mask)
            source_values = silence_padding(source_values, attention_mask[:, None])
            check_finite("source_values", source_values)
            losses = self._losses(outputs, input_values, attention_mask, source_values, speaker_ids, recording_ids)
        return CSCForPreTrainingOutput(
            **losses,
            sources=outputs.sources,
            source_embeddings=outputs.source_embeddings,
            source_activity=outputs.source_activity,
            source_frame_activity=outputs.source_frame_activity,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _losses(
        self,
        outputs,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor,
        source_values: torch.Tensor,
        speaker_ids: torch.Tensor,
        recording_ids: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The fields of [`CSCForPreTrainingOutput`] that need the sources."""
        config, num_processes = self.config, _contrast_processes(self)
        separation_loss, permutation, present = permutation_invariant_separation_loss(
            outputs.sources, source_values, attention_mask, config.si_snr_threshold
        )
        num_present = present.sum()
        separation_loss = separation_loss * (num_present / _items_per_process(num_present, num_processes))
        activity_loss = slot_activity_loss(outputs.source_activity, permutation, present)
        details: dict[str, torch.Tensor] = {}
        if outputs.source_frame_activity is not None:
            details["frame_activity_loss"] = frame_activity_loss(
                outputs.source_frame_activity, source_values, permutation, attention_mask, config.activity_stride
            )

        if outputs.source_band_masks is not None:
            details["band_mask_loss"] = band_mask_loss(
                config, outputs.source_band_masks, input_values, source_values, permutation, attention_mask
            )

        # From slot order to target order.
        embeddings = outputs.source_embeddings.take_along_dim(permutation[..., None], dim=1)
        num_segments = config.num_segments(attention_mask.sum(dim=-1))
        segment_mask = length_mask(num_segments, outputs.source_hidden_states.shape[2])
        speaker_ids = speaker_ids.masked_fill(~present, -100)
        memory, memory_mask = outputs.source_hidden_states.flatten(1, 2), segment_mask.repeat(1, config.num_sources)
        mixture_ids, first = speaker_ids, 0
        if num_processes > 1:
            mixture_ids, memory, memory_mask, first = _gather_mixtures(speaker_ids, memory, memory_mask)
        contrast = self._contrast(embeddings, speaker_ids, mixture_ids, memory, memory_mask, first)
        loss = (
            config.separation_loss_weight * separation_loss
            + config.contrastive_loss_weight * contrast["contrastive_loss"]
            + config.activity_loss_weight * activity_loss
        )
        if "frame_activity_loss" in details:
            loss = loss + config.frame_activity_loss_weight * details["frame_activity_loss"]
        if "band_mask_loss" in details:
            loss = loss + config.band_mask_loss_weight * details["band_mask_loss"]
        classification = {}
        if self.recording_classifier is not None:
            classification = self._classify(embeddings, recording_ids.masked_fill(~present, -100))
            loss = loss + config.recording_loss_weight * classification["recording_loss"]
        return (
            contrast
            | classification
            | details
            | {
                "loss": loss,
                "separation_loss": separation_loss,
                "activity_loss": activity_loss,
                "permutation": permutation,
            }
        )

    def _classify(self, embeddings: torch.Tensor, recording_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Softmax over recordings: embeddings of the targets `(batch, slots, speaker_embedding_size)` and their
        classes `(batch, slots)`, negative for none → the fields of [`CSCForPreTrainingOutput`] that describe it."""
        assert self.recording_classifier is not None
        known = recording_ids >= 0
        num_known = _items_per_process(known.sum(), _contrast_processes(self))
        cosines = class_cosines(embeddings[known], self.recording_classifier, self.dtype)
        log_p = (self.config.recording_scale * cosines).log_softmax(-1)
        own_log_p = log_p.take_along_dim(recording_ids[known][:, None], dim=1)
        return {
            "recording_loss": -own_log_p.sum() / num_known,
            "recording_accuracy": (log_p <= own_log_p).all(-1).sum() / num_known,
        }

    def _contrast(
        self,
        embeddings: torch.Tensor,
        speaker_ids: torch.Tensor,
        mixture_ids: torch.Tensor,
        memory: torch.Tensor,
        memory_mask: torch.Tensor,
        first: int = 0,
    ) -> dict[str, torch.Tensor]:
        """
        The probabilistic contrastive loss. Every identity answers the *same* query with its global speaker vector. If
        each vector were made from a query of its own identity, only the positive would have seen the embedding that it
        is compared with, and the loss would fall although nothing is learnt about speakers.

        Args:
            embeddings: Of this process's targets, `(batch, slots, speaker_embedding_size)`.
            speaker_ids: Their identities, `(batch, slots)`; negative means none.
            mixture_ids: Identities in the mixtures of all processes, `(mixtures, slots)`.
            memory: Segment vectors of these mixtures, `(mixtures, memory, segment_vector_size)`. Nothing says which
                slot holds which identity.
            memory_mask: False for padded segments, `(mixtures, memory)` bool.
            first: Row of this process's first mixture among all.

        Returns:
            The fields of [`CSCForPreTrainingOutput`] that describe the contrast.
        """
        known = speaker_ids >= 0
        query_mixture = known.nonzero()[:, 0] + first
        identities, inverse = mixture_ids[mixture_ids >= 0].unique(return_inverse=True)
        contains = torch.zeros(len(identities), len(mixture_ids), dtype=torch.bool, device=memory.device)
        contains[inverse, (mixture_ids >= 0).nonzero()[:, 0]] = True
        pair_identity, pair_mixture = contains.nonzero().unbind(1)
        query_identity = torch.searchsorted(identities, speaker_ids[known])
        visible, candidate = _memories(
            contains, (mixture_ids >= 0).sum(-1), pair_identity, pair_mixture, query_identity, query_mixture
        )
        takes_part = candidate.gather(1, query_identity[:, None])[:, 0] & (candidate.sum(-1) > 1)
        num_queries = _items_per_process(takes_part.sum(), _contrast_processes(self))

        # There may be no query. The graph is the same then, so that every process has the same gradients.
        embedding, identity = embeddings[known][takes_part], query_identity[takes_part, None]
        visible, candidate = visible[takes_part], candidate[takes_part]
        query = self.aggregator.queries(embedding, memory.dtype)
        scale = self.log_contrastive_scale.float().exp()

        # By parts, if need be: some queries over some mixtures at a time.
        per_pair = 2 * memory.shape[-1] + self.aggregator.num_heads
        num_queries_at_once = max(1, min(len(embedding), CONTRAST_ELEMENTS // max(1, per_pair * len(pair_mixture))))
        per_mixture = memory.shape[1] * max(num_queries_at_once * self.aggregator.num_heads, memory.shape[2])
        num_mixtures_at_once = max(1, CONTRAST_ELEMENTS // per_mixture)

        def attend(query: torch.Tensor, memory: torch.Tensor, memory_mask: torch.Tensor):
            return _attend(query, self.aggregator.keys(memory), memory, memory_mask)

        def contrast(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            """log p(own identity), whether it is the highest, and its vector, for some of the queries."""
            mixtures = zip(memory.split(num_mixtures_at_once), memory_mask.split(num_mixtures_at_once), strict=True)
            moments, log_sums = zip(*(attend(query[rows], *mixture) for mixture in mixtures), strict=True)
            mean, variance = _answers(
                torch.cat(moments, dim=1),
                torch.cat(log_sums, dim=1),
                visible[rows],
                pair_identity,
                pair_mixture,
                len(identities),
            )
            answers = self._global_speaker_vectors(mean, variance, memory.dtype)
            distances = (embedding[rows, None].float() - answers).square().sum(-1)
            logits = (-scale * distances).masked_fill(~candidate[rows], torch.finfo(distances.dtype).min)
            log_p = logits.log_softmax(-1)
            own_log_p = log_p.take_along_dim(identity[rows], dim=1)
            own_vectors = answers.take_along_dim(identity[rows, None], dim=1).squeeze(1)
            return own_log_p.squeeze(1), (log_p <= own_log_p).all(-1), own_vectors

        if num_mixtures_at_once < len(memory):
            attend = _recomputed(attend)
        if num_queries_at_once < len(embedding):
            contrast = _recomputed(contrast)
        parts = torch.arange(len(embedding), device=memory.device).split(num_queries_at_once)
        own_log_p, hit, own_vectors = (torch.cat(results) for results in zip(*map(contrast, parts), strict=True))

        vectors = embeddings.new_zeros(embeddings.shape)
        vectors[known.nonzero()[takes_part].unbind(1)] = own_vectors.detach()
        own_log_p_sum = own_log_p.sum()
        return {
            "contrastive_loss": -own_log_p_sum / num_queries,
            "mutual_information": (candidate.sum(-1).log().sum() + own_log_p_sum.detach()) / num_queries,
            "contrastive_accuracy": hit.sum() / num_queries,
            "global_speaker_vectors": vectors,
        }


class CSCForSpeechSeparation(CSCPreTrainedModel):
    """CSC that returns the waveform of each speaker of a mixture, their embedding, and whether the slot is used."""

    def __init__(self, config: CSCConfig):
        super().__init__(config)
        self.csc = CSCModel(config, add_separator=True)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CSCSeparationOutput:
        r"""
        Args:
            input_values, attention_mask: As in [`CSCModel`].
            labels (`torch.FloatTensor` of shape `(batch, slots, samples)`, *optional*): The sources, in any order;
                zeros for the missing ones of a mixture with fewer. The loss does not train the speaker embedding:
                distributed training needs `find_unused_parameters=True`.

        Raises:
            ValueError: If `labels` have another shape, or hold NaN or infinite samples.
        """
        batch, num_sources = input_values.shape[0], self.config.num_sources
        check_shape("labels", labels, (batch, num_sources, *input_values.shape[1:]))
        outputs = self.csc(input_values, attention_mask, **kwargs)
        loss = None
        if labels is not None:
            if attention_mask is None:
                attention_mask = torch.ones_like(input_values, dtype=torch.long)
            labels = silence_padding(labels, attention_mask[:, None])
            check_finite("labels", labels)
            loss, permutation, present = permutation_invariant_separation_loss(
                outputs.sources, labels, attention_mask, self.config.si_snr_threshold
            )
            activity_loss = slot_activity_loss(outputs.source_activity, permutation, present)
            loss = loss + self.config.activity_loss_weight * activity_loss
            if outputs.source_frame_activity is not None:
                when_loss = frame_activity_loss(
                    outputs.source_frame_activity, labels, permutation, attention_mask, self.config.activity_stride
                )
                loss = loss + self.config.frame_activity_loss_weight * when_loss
        return CSCSeparationOutput(
            loss=loss,
            sources=outputs.sources,
            source_embeddings=outputs.source_embeddings,
            source_activity=outputs.source_activity,
            source_frame_activity=outputs.source_frame_activity,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class CSCForXVector(CSCPreTrainedModel):
    """CSC with one speaker embedding per recording, for verification, and an additive angular margin softmax over
    `config.num_labels` training speakers."""

    def __init__(self, config: CSCConfig):
        super().__init__(config)
        self.csc = CSCModel(config)
        self.classifier = nn.Linear(config.speaker_embedding_size, cast(int, config.num_labels), bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> XVectorOutput:
        r"""
        Args:
            input_values, attention_mask: As in [`CSCModel`].
            labels (`torch.LongTensor` of shape `(batch,)`, *optional*): Training speaker of each recording.

        Returns:
            [`XVectorOutput`] with `logits` of shape `(batch, num_labels)`, the scaled cosines without margin, and
            `embeddings` of unit length, of shape `(batch, speaker_embedding_size)`.
        """
        outputs = self.csc(input_values, attention_mask, **kwargs)
        embeddings = main_speaker_embedding(outputs.source_embeddings, outputs.source_activity)
        cosines = class_cosines(embeddings, self.classifier, self.dtype)
        loss = None
        if labels is not None:
            loss = additive_angular_margin_loss(cosines, labels, self.config.xvector_margin, self.config.xvector_scale)
        return XVectorOutput(
            loss=loss,
            logits=self.config.xvector_scale * cosines,
            embeddings=embeddings,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class CSCForSpeakerVerification(CSCPreTrainedModel):
    """
    CSC that scores trials and sees both sides of them (as Neural Scoring does, arXiv 2410.16428): the enrolment of a
    person is the query of CSC's cross-attention over the segments of a test recording, in which others may speak.

    A logit compares the enrolment with the best active slot of the test, and with what it has read. In a new head it
    is the mean of these two cosines, shifted and scaled. Training moves it by a small network over their products [O].

    Example:

    ```python
    >>> import torch
    >>> from csc_hf import CSCConfig, CSCForSpeakerVerification

    >>> model = CSCForSpeakerVerification(CSCConfig.tiny()).eval()
    >>> tests, enrolments = torch.randn(3, 8000), torch.randn(4, 2, 8000)  # four people, two recordings of each
    >>> model(tests, enrolment_values=enrolments).logits.shape
    torch.Size([3, 4])
    ```"""

    _keys_to_ignore_on_load_unexpected = [
        pattern
        for pattern in cast(list, CSCPreTrainedModel._keys_to_ignore_on_load_unexpected)
        if "aggreg" not in pattern
    ]

    def __init__(self, config: CSCConfig):
        super().__init__(config)
        self.csc = CSCModel(config)
        self.aggregator = CSCSpeakerAggregator(config)
        self.log_cosine_scale = nn.Parameter(torch.empty(1))
        self.cosine_threshold = nn.Parameter(torch.empty(1))
        self.head_hidden = nn.Linear(2 * config.speaker_embedding_size + 1, config.classifier_proj_size)
        self.head_logit = CSCConstantLinear(config.classifier_proj_size, 1, value=0.0)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        enrolment_values: torch.Tensor | None = None,
        enrolment_attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        r"""
        Tests and enrolments go through the encoder together, padded to the longer of the two, which changes no logit.

        Args:
            input_values, attention_mask: Test recordings, as in [`CSCModel`].
            enrolment_values (`torch.FloatTensor` of shape `(identities, recordings, samples)`): Recordings of people,
                each of whom is the main speaker of their own. The order of the recordings does not matter.
            enrolment_attention_mask (`torch.LongTensor` of shape `(identities, recordings, samples)`, *optional*): 1
                for samples, 0 for padding on the right. A recording of padding alone is not there: an identity may
                have fewer than others.
            labels (`torch.Tensor` of shape `(batch, identities)`, *optional*): 1 if the person speaks in the test, 0
                if not, -100 if that is unknown. The loss is binary cross-entropy, in which both answers weigh the
                same, however many pairs have them.

        Returns:
            [`SequenceClassifierOutput`] with `logits` of shape `(batch, identities)`, for all pairs. `hidden_states`
            and `attentions` are those of the tests, then of the enrolments that are there.

        Raises:
            ValueError: If `enrolment_values` are not given, or have another shape; if an identity has no recording.
        """
        if enrolment_values is None or enrolment_values.dim() != 3:
            found = None if enrolment_values is None else tuple(enrolment_values.shape)
            raise ValueError(f"`enrolment_values` must have shape (identities, recordings, samples), got {found}.")
        check_shape("enrolment_attention_mask", enrolment_attention_mask, enrolment_values.shape)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_values, dtype=torch.long)
        check_shape("attention_mask", attention_mask, input_values.shape)
        if enrolment_attention_mask is None:
            enrolment_attention_mask = torch.ones_like(enrolment_values, dtype=torch.long)
        lengths = enrolment_attention_mask.sum(-1)
        present = lengths > 0
        names = "enrolment_values", "enrolment_attention_mask"
        audible = silence_padding(enrolment_values, enrolment_attention_mask)
        check_recordings(audible, enrolment_attention_mask, lengths, names, may_lack=True)
        if not is_tracing(present) and not present.any(-1).all():
            nobody = int(present.any(-1).int().argmin())
            raise ValueError(f"`{names[1]}[{nobody}]` is 0 everywhere: leave out a person without recordings.")
        batch, num_samples = len(input_values), max(input_values.shape[-1], enrolment_values.shape[-1])
        outputs = self.csc(
            _stack_recordings(input_values, enrolment_values[present], num_samples),
            _stack_recordings(attention_mask, enrolment_attention_mask[present], num_samples),
            **kwargs,
        )
        embeddings, activity = outputs.source_embeddings, outputs.source_activity
        main = activity[batch:].argmax(-1)[:, None, None]
        voices = embeddings.new_zeros(*present.shape, embeddings.shape[-1])
        voices[present] = embeddings[batch:].take_along_dim(main, dim=1).squeeze(1)
        queries = F.normalize(voices.sum(1), dim=-1)
        memory = outputs.source_hidden_states[:batch]
        memory_mask = length_mask(self.config.num_segments(attention_mask.sum(-1)), memory.shape[2])
        memory_mask = memory_mask.repeat(1, self.config.num_sources)
        logits = self.score(queries, embeddings[:batch], activity[:batch], memory.flatten(1, 2), memory_mask)
        loss = None
        if labels is not None:
            check_shape("labels", labels, logits.shape)
            loss = verification_loss(logits, labels)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def score(
        self,
        queries: torch.Tensor,
        source_embeddings: torch.Tensor,
        source_activity: torch.Tensor,
        memory: torch.Tensor,
        memory_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Logits of all pairs of people and tests, from what the encoder says of each side.

        Args:
            queries: Enrolled people, `(identities, speaker_embedding_size)` of unit length: the mean of the embeddings
                of their recordings, of the most active slot of each.
            source_embeddings, source_activity: Of the tests, as [`CSCModelOutput`] has them.
            memory: `source_hidden_states` of the tests, all slots and segments concatenated,
                `(batch, memory, segment_vector_size)`.
            memory_mask: 1 for real segments, `(batch, memory)`. `None` means that all are real.

        Returns:
            `(batch, identities)` float32.
        """
        if memory_mask is None:
            memory_mask = torch.ones(memory.shape[:-1], device=memory.device)
        active = (source_activity > 0) | (source_activity == source_activity.amax(-1, keepdim=True))

        def compare(queries: torch.Tensor, *tests: torch.Tensor) -> torch.Tensor:
            slots, activity, active, memory, memory_mask = tests
            query = self.aggregator.queries(queries, memory.dtype)
            moments, _ = _attend(query, self.aggregator.keys(memory), memory, memory_mask)
            mean, mean_square = (moment.flatten(-2).transpose(0, 1) for moment in moments.chunk(2, dim=-1))
            statistics = pooled_statistics(mean, mean_square - mean.square())  # of what each person reads of each test
            read = self.csc.speaker_branch.embed(statistics.to(memory.dtype))
            with full_precision(queries):
                cosines = torch.einsum("bsd,id->bis", slots, queries)
            best = cosines.masked_fill(~active[:, None], -2.0).argmax(-1)
            products = torch.cat([slots.take_along_dim(best[..., None], dim=1), read], dim=-1) * queries.repeat(1, 2)
            sure = activity.take_along_dim(best, dim=1)[..., None].sigmoid()
            features = torch.cat([products * queries.shape[-1], sure], dim=-1)  # of size one or so
            hidden = self.head_hidden(features.to(self.dtype))
            correction = self.head_logit(F.gelu(hidden)).squeeze(-1).float()
            cosine = products.sum(-1) / 2
            return self.log_cosine_scale.float().exp() * (cosine - self.cosine_threshold) + correction

        # By parts, if need be: some people and some tests at a time.
        vectors = 2 * memory.shape[-1] + 5 * queries.shape[-1] + self.config.classifier_proj_size
        per_pair = max(self.aggregator.num_heads * memory.shape[1], vectors)
        num_queries = max(1, min(len(queries), CONTRAST_ELEMENTS // per_pair))
        num_tests = max(1, CONTRAST_ELEMENTS // (per_pair * num_queries))
        if num_queries < len(queries) or num_tests < len(memory):
            compare = _recomputed(compare)
        sides = source_embeddings, source_activity, active, memory, memory_mask.bool()
        rows = [
            torch.cat([compare(part, *tests) for part in queries.split(num_queries)], dim=1)
            for tests in zip(*(side.split(num_tests) for side in sides), strict=True)
        ]
        return torch.cat(rows)


class CSCForSequenceClassification(CSCPreTrainedModel):
    """CSC that classifies a recording (language, emotion, command, ...) by the mean of the shared trunk and the
    embedding of its main speaker."""

    def __init__(self, config: CSCConfig):
        super().__init__(config)
        self.csc = CSCModel(config)
        self.projector = nn.Linear(config.hidden_size + config.speaker_embedding_size, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, cast(int, config.num_labels))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        r"""
        Args:
            input_values, attention_mask: As in [`CSCModel`].
            labels (`torch.Tensor` of shape `(batch,)` or `(batch, num_labels)`, *optional*): Class indices, values, or
                zeros and ones for each label, depending on `config.problem_type`.
        """
        outputs = self.csc(input_values, attention_mask, **kwargs)
        trunk = outputs.last_hidden_state
        lengths = trunk.new_full((trunk.shape[0],), input_values.shape[1], dtype=torch.long)
        if attention_mask is not None:
            lengths = attention_mask.sum(dim=-1)
        segment_mask = length_mask(self.config.num_segments(lengths), trunk.shape[1])
        speaker = main_speaker_embedding(outputs.source_embeddings, outputs.source_activity)
        features = torch.cat([masked_mean(trunk, segment_mask[..., None], 1), speaker.to(trunk.dtype)], dim=-1)
        logits = self.classifier(F.gelu(self.projector(features)))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class CSCForAudioFrameClassification(CSCPreTrainedModel):
    """CSC that gives each segment (every `config.segment_stride` samples) any number of labels: who speaks when, with
    overlap, or any other activity."""

    def __init__(self, config: CSCConfig):
        super().__init__(config)
        self.csc = CSCModel(config)
        slot_size = config.segment_vector_size + config.speaker_embedding_size
        num_features = config.hidden_size + config.num_sources * slot_size
        self.classifier = nn.Linear(num_features, cast(int, config.num_labels))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        r"""
        Args:
            input_values, attention_mask: As in [`CSCModel`].
            labels (`torch.FloatTensor` of shape `(batch, segments, num_labels)`, *optional*): 1 if a label holds in a
                segment, 0 if not, -100 if that is unknown or the segment is padding. There are
                `config.num_segments(samples)` segments.

        Raises:
            ValueError: If `labels` have another shape.
        """
        outputs = self.csc(input_values, attention_mask, **kwargs)
        trunk, slots = outputs.last_hidden_state, outputs.source_hidden_states
        # What each slot holds in a segment, and whose voice, weighted by whether it holds anybody.
        speakers = outputs.source_embeddings[:, :, None].expand(-1, -1, slots.shape[2], -1).to(slots.dtype)
        active = outputs.source_activity.sigmoid().to(slots.dtype)[..., None, None]
        slots = (torch.cat([slots, speakers], dim=-1) * active).transpose(1, 2).flatten(2)
        logits = self.classifier(torch.cat([trunk, slots], dim=-1))
        loss = None
        if labels is not None:
            check_shape("labels", labels, logits.shape)
            known = labels != -100
            losses = F.binary_cross_entropy_with_logits(logits.float(), labels.float() * known, reduction="none")
            loss = masked_mean(losses, known, (0, 1, 2))
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


for _name, _auto_class in MODEL_CLASSES.items():
    # Saving a model also saves the code. A class that no Auto class loads stands in `auto_map` under its own name.
    globals()[_name]._auto_class = _auto_class or _name

__all__ = list(MODEL_CLASSES) + [
    "CSCPreTrainedModel",
    "CSCModelOutput",
    "CSCForPreTrainingOutput",
    "CSCSeparationOutput",
]
