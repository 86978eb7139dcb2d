# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Contrastive Separative Coding (CSC, arXiv 2103.00816) for Transformers, in the order in which the data flows: front
end, segments, GALR blocks, speaker branch, separation branch, cross-attention, losses, models.

Shapes: B mixtures, T samples, C sources (slots), L frames, K frames in a segment, S segments, Q low dimension, D
hidden size, E speaker embedding size, N identities in the contrast, I queries (slots with an identity).
"""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput, XVectorOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_csc import CSCConfig


@dataclass
class CSCModelOutput(ModelOutput):
    """
    Output of [`CSCModel`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(B, S, D)`): The shared trunk, averaged over each segment.
        source_hidden_states (`torch.FloatTensor` of shape `(B, C, S, D)`): The speaker branch: what each slot knows of
            its speaker, a vector a segment.
        source_embeddings (`torch.FloatTensor` of shape `(B, C, E)`): The bottom-up speaker embedding of each slot, of
            unit length.
        source_activity (`torch.FloatTensor` of shape `(B, C)`): Logit that the slot holds a speaker.
        sources (`torch.FloatTensor` of shape `(B, C, T)`, *optional*): The separated waveforms; only of a model built
            with `add_separator=True`. SI-SNR, which trains them, leaves their scale free.
        hidden_states (`tuple`, *optional*): Input of the trunk and output of each of its blocks, `(B, S·K, D)`.
        attentions (`tuple`, *optional*): Attention over segments in each trunk block, `(B, Q·heads, S, S)`.
    """

    last_hidden_state: torch.FloatTensor | None = None
    source_hidden_states: torch.FloatTensor | None = None
    source_embeddings: torch.FloatTensor | None = None
    source_activity: torch.FloatTensor | None = None
    sources: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class CSCForPreTrainingOutput(ModelOutput):
    """
    Output of [`CSCForPreTraining`].

    Args:
        loss (`torch.FloatTensor` of shape `()`): Weighted sum of the three losses that follow.
        separation_loss (`torch.FloatTensor` of shape `()`): Negative SI-SNR in dB of the best permutation, saturating
            at `config.si_snr_threshold`, averaged over the sources that are not silent.
        contrastive_loss (`torch.FloatTensor` of shape `()`): −log p(own identity | embedding), in nats.
        activity_loss (`torch.FloatTensor` of shape `()`): Binary cross-entropy of the slots' activity.
        mutual_information (`torch.FloatTensor` of shape `()`): The lower bound log N − `contrastive_loss`, in nats.
        contrastive_accuracy (`torch.FloatTensor` of shape `()`): Share of embeddings that are nearest to the global
            speaker vector of their own identity.
        sources (`torch.FloatTensor` of shape `(B, C, T)`): Separated waveforms, in the order of the slots.
        source_embeddings (`torch.FloatTensor` of shape `(B, C, E)`): Embedding of each slot, of unit length.
        source_activity (`torch.FloatTensor` of shape `(B, C)`): Logit that the slot holds a speaker.
        global_speaker_vectors (`torch.FloatTensor` of shape `(B, C, E)`): For each target, what its own identity's
            other mixtures answer to its embedding, of unit length; zero where the target takes no part in the
            contrast.
        permutation (`torch.LongTensor` of shape `(B, C)`): Slot that holds each target.
        hidden_states, attentions: As in [`CSCModelOutput`].
    """

    loss: torch.FloatTensor | None = None
    separation_loss: torch.FloatTensor | None = None
    contrastive_loss: torch.FloatTensor | None = None
    activity_loss: torch.FloatTensor | None = None
    mutual_information: torch.FloatTensor | None = None
    contrastive_accuracy: torch.FloatTensor | None = None
    sources: torch.FloatTensor | None = None
    source_embeddings: torch.FloatTensor | None = None
    source_activity: torch.FloatTensor | None = None
    global_speaker_vectors: torch.FloatTensor | None = None
    permutation: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class CSCSeparationOutput(ModelOutput):
    """
    Output of [`CSCForSpeechSeparation`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): Negative SI-SNR plus the weighted activity loss.
        sources (`torch.FloatTensor` of shape `(B, C, T)`): Separated waveforms, in the order of the slots.
        source_embeddings (`torch.FloatTensor` of shape `(B, C, E)`): Embedding of each slot, of unit length.
        source_activity (`torch.FloatTensor` of shape `(B, C)`): Logit that the slot holds a speaker.
        hidden_states, attentions: As in [`CSCModelOutput`].
    """

    loss: torch.FloatTensor | None = None
    sources: torch.FloatTensor | None = None
    source_embeddings: torch.FloatTensor | None = None
    source_activity: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


# --- frames and segments: cutting with overlap, and its inverse ------------------------------------------------------


def pad_for_frames(signal: torch.Tensor, size: int, hop: int, num_frames: int) -> torch.Tensor:
    """Zero-pads axis 1 of `(B, T, ...)`, on both sides, to hold `num_frames` frames of `size` every `hop`, which cover
    each sample `size / hop` times. Lengths are passed on, not inferred, or exporting could not keep them dynamic."""
    before = size - hop
    after = num_frames * hop - signal.shape[1]
    return F.pad(signal, (0, 0) * (signal.dim() - 2) + (before, after))


def split_frames(signal: torch.Tensor, size: int, hop: int, num_frames: int) -> torch.Tensor:
    """`(B, T, ...)` → `(B, num_frames, size, ...)`."""
    overlap = size // hop
    chunks = pad_for_frames(signal, size, hop, num_frames).unflatten(1, (num_frames + overlap - 1, hop))
    return torch.cat([chunks[:, i : i + num_frames] for i in range(overlap)], dim=2)


def overlap_add(frames: torch.Tensor, hop: int) -> torch.Tensor:
    """`(B, L, size, ...)` → `(B, (L − size / hop + 1) · hop, ...)`: sums what [`split_frames`] cut, each sample
    `size / hop` times, without the padding that it began with."""
    length, overlap = frames.shape[1], frames.shape[2] // hop
    chunks = frames.unflatten(2, (overlap, hop)).unbind(2)
    covering = [chunk[:, overlap - 1 - i : length - i] for i, chunk in enumerate(chunks)]
    return functools.reduce(torch.add, covering).flatten(1, 2)


def crop(signal: torch.Tensor, start: int, length: int) -> torch.Tensor:
    """`(..., T)` → `(..., length)`; by index, since a slice would tie an exported program to its example's length."""
    return signal.index_select(-1, torch.arange(start, start + length, device=signal.device))


def masked_mean(values: torch.Tensor, mask: torch.Tensor, dim: int | tuple[int, ...]) -> torch.Tensor:
    """Mean of `values` where `mask`, which broadcasts against them, is 1; zero where it is 0 everywhere."""
    count = mask.expand_as(values).sum(dim, keepdim=True)
    return ((values * mask).sum(dim, keepdim=True) / count.clamp(min=1)).squeeze(dim)


def length_mask(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """(B,) → (B, size) bool, true for the first of each row."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def full_precision(tensor: torch.Tensor) -> torch.autocast:
    """A context in which autocast leaves float32 products alone."""
    return torch.autocast(tensor.device.type, enabled=False)


class CSCGlobalLayerNorm(nn.Module):
    """Layer norm over channels and all real positions of an utterance (gLN); zero elsewhere, so padding is inert."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(
        self, hidden_states: torch.Tensor, mask: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`hidden_states` (..., B, P, D), zero where `mask` (..., B, P, 1) is, → (..., B, P, D), added to `residual`,
        if there is one. What belongs to one of the B mixtures is normalised as one."""
        values = hidden_states.float()
        axes = (*range(values.dim() - 3), -2, -1)
        count = mask.sum(axes, keepdim=True, dtype=torch.float32) * values.shape[-1]
        mean = values.sum(axes, keepdim=True) / count
        variance = (values.square().sum(axes, keepdim=True) / count - mean.square()).clamp(min=0)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        # (values − mean) · scale + bias + residual, in two passes over the tensor.
        output = values * scale if residual is None else torch.addcmul(residual, values, scale)
        output = output.addcmul_(mask, self.bias - mean * scale)
        return output.to(hidden_states.dtype if residual is None else residual.dtype)


# --- front ends and decoders -----------------------------------------------------------------------------------------


class CSCConvFrontEnd(nn.Module):
    """Learnt non-negative filters on the raw waveform, [G]."""

    def __init__(self, config: CSCConfig):
        super().__init__()
        self.config = config
        self.conv = nn.Conv1d(1, config.hidden_size, config.conv_kernel, config.conv_stride, bias=False)
        self.layer_norm = CSCGlobalLayerNorm(config.hidden_size, config.layer_norm_eps)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, waveform: torch.Tensor, frame_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`waveform` (B, T), `frame_mask` (B, L, 1) → features (B, L, D), filter outputs (B, L, D)."""
        config = self.config
        padded = pad_for_frames(waveform, config.conv_kernel, config.conv_stride, frame_mask.shape[1])
        encoded = self.conv(padded[:, None].to(self.conv.weight.dtype)).relu().transpose(1, 2)
        return self.projection(self.layer_norm(encoded * frame_mask, frame_mask)), encoded


class CSCConvDecoder(nn.Module):
    """Masks the filters' outputs and turns them back into waveforms, [G]."""

    def __init__(self, config: CSCConfig):
        super().__init__()
        self.config = config
        self.mask = nn.Linear(config.hidden_size, config.hidden_size)
        self.conv = nn.ConvTranspose1d(config.hidden_size, 1, config.conv_kernel, config.conv_stride, bias=False)

    def forward(self, hidden_states: torch.Tensor, encoded: torch.Tensor, num_samples: int) -> torch.Tensor:
        """`hidden_states` (B, C, L, D), `encoded` (B, L, D) → sources (B, C, T)."""
        masked = self.mask(hidden_states).relu() * encoded[:, None]
        waveform = self.conv(masked.flatten(0, 1).transpose(1, 2)).unflatten(0, hidden_states.shape[:2])
        return crop(waveform[:, :, 0], self.config.conv_kernel - self.config.conv_stride, num_samples).float()


def stft_window(config: CSCConfig, device: torch.device) -> torch.Tensor:
    """Square root of a Hann window: used twice, and overlapping by `conv_kernel / conv_stride`, it adds up to half of
    that overlap at every sample."""
    return torch.hann_window(config.conv_kernel, device=device).sqrt()


class CSCSTFTFrontEnd(nn.Module):
    """Log-magnitude spectrogram, normalised over its real frames so that level does not matter, [O]."""

    def __init__(self, config: CSCConfig):
        super().__init__()
        self.config = config
        self.projection = nn.Linear(config.conv_kernel // 2 + 1, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, waveform: torch.Tensor, frame_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`waveform` (B, T), `frame_mask` (B, L, 1) → features (B, L, D), complex spectrum (B, L, F)."""
        config = self.config
        frames = split_frames(waveform, config.conv_kernel, config.conv_stride, frame_mask.shape[1])
        spectrum = torch.fft.rfft(frames * stft_window(config, waveform.device))
        # The waveform has unit power, so a bin's mean power is about the window's; the floor lies 60 dB below that.
        power = (spectrum.real.square() + spectrum.imag.square()) * (4 / config.conv_kernel)
        log_power = (power + 1e-6).log()
        mask = frame_mask.float()
        centred = log_power - masked_mean(log_power, mask, (1, 2))[:, None, None]
        variance = masked_mean(centred.square(), mask, (1, 2))[:, None, None]
        features = centred * torch.rsqrt(variance + config.layer_norm_eps)
        return self.layer_norm(self.projection(features.to(self.projection.weight.dtype))), spectrum


class CSCSTFTDecoder(nn.Module):
    """Masks the spectrum and inverts it, [O]."""

    def __init__(self, config: CSCConfig):
        super().__init__()
        self.config = config
        self.mask = nn.Linear(config.hidden_size, config.conv_kernel // 2 + 1)

    def forward(self, hidden_states: torch.Tensor, encoded: torch.Tensor, num_samples: int) -> torch.Tensor:
        """`hidden_states` (B, C, L, D), `encoded` (B, L, F) complex → sources (B, C, T)."""
        masked = self.mask(hidden_states).float().sigmoid() * encoded[:, None]
        frames = torch.fft.irfft(masked, n=self.config.conv_kernel) * stft_window(self.config, masked.device)
        waveform = overlap_add(frames.flatten(0, 1), self.config.conv_stride).unflatten(0, hidden_states.shape[:2])
        return crop(waveform, 0, num_samples) * (2 * self.config.conv_stride / self.config.conv_kernel)


# --- GALR block ------------------------------------------------------------------------------------------------------


def sinusoidal_positions(length: int, size: int, device: torch.device) -> torch.Tensor:
    """(length, size): sines then cosines, computed for the length at hand, so there is no longest input."""
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
    """Attention of (B, heads, length, head size) tensors in plain PyTorch, which also returns its weights."""
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(scores.softmax(dim=-1), p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class CSCAttention(nn.Module):
    """Multi-head attention along segments, for each of the Q rows. The rows are folded into the heads, so that one
    padding mask a mixture serves them all."""

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
        """`hidden_states` (B, S, Q, D) → (B, S, Q, D), weights (B, Q·heads, S, S) or None."""
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
    """BiLSTM from learnt initial states, [G]."""

    def __init__(self, config: CSCConfig):
        super().__init__()
        self.lstm = nn.LSTM(config.hidden_size, config.lstm_hidden_size, bidirectional=True)
        self.initial_hidden = nn.Parameter(torch.zeros(2, 1, config.lstm_hidden_size))
        self.initial_cell = nn.Parameter(torch.zeros(2, 1, config.lstm_hidden_size))

    def forward(self, segments: torch.Tensor) -> torch.Tensor:
        """`segments` (K, B, D) → (K, B, 2·H)."""
        initial = [
            state.to(segments.dtype).expand(-1, segments.shape[1], -1).contiguous()
            for state in (self.initial_hidden, self.initial_cell)
        ]
        return self.lstm(segments, initial)[0]


class CSCMinGRU(nn.Module):
    """Bidirectional minGRU (Feng et al. 2024, arXiv 2410.01201) from learnt initial states, [O]. What a frame adds to
    the state, and how much of it, is told by the frame alone: one matrix product for all frames, then an average that
    moves along them."""

    def __init__(self, config: CSCConfig):
        super().__init__()
        self.candidates_and_gates = nn.Linear(config.hidden_size, 4 * config.lstm_hidden_size)
        self.initial_hidden = nn.Parameter(torch.zeros(2, 1, config.lstm_hidden_size))

    def forward(self, segments: torch.Tensor) -> torch.Tensor:
        """`segments` (K, B, D) → (K, B, 2·H)."""
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
    """Along the frames of every segment, in both directions, [G]."""

    def __init__(self, config: CSCConfig):
        super().__init__()
        self.recurrence = CSCMinGRU(config) if config.local_layer == "mingru" else CSCLSTM(config)
        self.projection = nn.Linear(2 * config.lstm_hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layer_norm = CSCGlobalLayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        """`hidden_states` (K, B, S, D), `frame_mask` (K, B, S, 1) → (K, B, S, D)."""
        local = self.projection(self.recurrence(hidden_states.flatten(1, 2))).view_as(hidden_states)
        return self.layer_norm(self.dropout(local).mul_(frame_mask), frame_mask, residual=hidden_states)


class CSCFrameLinear(nn.Linear):
    """A linear layer along the first axis, the frames of a segment: one matrix product, without transposing."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(in frames, ...) → (out frames, ...)."""
        output = torch.addmm(self.bias[:, None], self.weight, hidden_states.flatten(1))
        return output.unflatten(1, hidden_states.shape[1:])


class CSCGlobalAttention(nn.Module):
    """Attention between segments at low resolution: K frames are mapped to Q rows, attended along S, mapped back, [G].
    The attention has a true residual, where GALR's public code adds its output to itself [O]."""

    def __init__(self, config: CSCConfig):
        super().__init__()
        self.compress = CSCFrameLinear(config.segment_length, config.low_dim)
        self.input_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attention = CSCAttention(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.output_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.expand = CSCFrameLinear(config.low_dim, config.segment_length)
        self.layer_norm = CSCGlobalLayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        frame_mask: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """`hidden_states` (K, B, S, D), `frame_mask` (K, B, S, 1) → (K, B, S, D)."""
        rows = self.compress(hidden_states).permute(1, 2, 0, 3).contiguous()
        positions = sinusoidal_positions(rows.shape[1], rows.shape[3], rows.device).to(rows.dtype)
        rows = self.input_layer_norm(rows) + positions[:, None]
        rows = self.output_layer_norm(rows + self.dropout(self.attention(rows, attention_mask, **kwargs)[0]))
        frames = self.expand(rows.permute(2, 0, 1, 3)).mul_(frame_mask)
        return self.layer_norm(frames, frame_mask, residual=hidden_states)


class CSCBlock(GradientCheckpointingLayer):
    """Globally attentive, locally recurrent (GALR) block, [G]."""

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
        """`hidden_states` (B, S·K, D), zero where `frame_mask` (B, S, K, 1) is, → the same shape, likewise zero."""
        # Frames first, as the LSTM walks along them: then every product below is over whole tensors as they lie.
        segments = hidden_states.unflatten(1, (-1, self.segment_length)).permute(2, 0, 1, 3).contiguous()
        frame_mask = frame_mask.permute(2, 0, 1, 3)
        segments = self.local_recurrence(segments, frame_mask)
        segments = self.global_attention(segments, frame_mask, attention_mask, **kwargs)
        return segments.permute(1, 2, 0, 3).flatten(1, 2)


# --- branches --------------------------------------------------------------------------------------------------------


class CSCSpeakerBranch(nn.Module):
    """From a slot's hidden states to one vector a segment [A], a speaker embedding and an activity [O]."""

    def __init__(self, config: CSCConfig):
        super().__init__()
        self.segment_length = config.segment_length
        self.blocks = nn.ModuleList([CSCBlock(config) for _ in range(config.num_speaker_layers)])
        self.attention_hidden = nn.Linear(config.hidden_size, config.hidden_size)
        self.attention_score = nn.Linear(config.hidden_size, config.hidden_size)
        self.embedding = nn.Linear(2 * config.hidden_size, config.speaker_embedding_size)
        self.activity = nn.Linear(2 * config.hidden_size, 1)

    def forward(
        self,
        hidden_states: torch.Tensor,
        frame_mask: torch.Tensor,
        attention_mask: torch.Tensor | None,
        segment_mask: torch.Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`hidden_states` (B, S·K, D), `segment_mask` (B, S) → (B, S, D), unit embeddings (B, E), activity (B)."""
        for block in self.blocks:
            hidden_states = block(hidden_states, frame_mask, attention_mask, **kwargs)
        segments = masked_mean(hidden_states.unflatten(1, (-1, self.segment_length)), frame_mask, dim=2)

        # Attentive statistics over segments, one set of weights a channel.
        scores = self.attention_score(self.attention_hidden(segments).tanh()).float()
        weights = scores.masked_fill(~segment_mask[..., None], torch.finfo(scores.dtype).min).softmax(dim=1)
        values = segments.float()
        statistics = self.statistics((weights * values).sum(dim=1), (weights * values.square()).sum(dim=1))
        return segments, self.embed(statistics), self.activity(statistics).squeeze(-1).float()

    def statistics(self, mean: torch.Tensor, mean_square: torch.Tensor) -> torch.Tensor:
        """First and second moments (..., D) of segment vectors → mean and biased standard deviation (..., 2·D)."""
        deviation = (mean_square - mean.square()).clamp(min=1e-6).sqrt()
        return torch.cat([mean, deviation], dim=-1).to(self.embedding.weight.dtype)

    def embed(self, statistics: torch.Tensor) -> torch.Tensor:
        """(..., 2·D) → speaker embeddings of unit length (..., E), float32."""
        return F.normalize(self.embedding(statistics).float(), dim=-1)


class CSCSeparator(nn.Module):
    """From a slot's hidden states to its waveform: blocks, overlap-add, mask, decoder, [G]."""

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
        """`hidden_states` (B·C, S·K, D), `encoded` (B, L, D or F) → sources (B, C, T)."""
        for block in self.blocks:
            hidden_states = block(hidden_states, frame_mask, attention_mask, **kwargs)
        segments = hidden_states.unflatten(1, (-1, self.config.segment_length))
        frames = overlap_add(segments, self.config.segment_length // 2)
        return self.decoder(frames.unflatten(0, (-1, self.config.num_sources)), encoded, num_samples)


class CSCSpeakerAggregator(nn.Module):
    """
    Cross-attention of a speaker embedding over segment-level speaker representations of other recordings, in which
    other speakers speak as well: it has to find those that answer the query [A]. What it reads are the moments that
    the global speaker vector is made from just as the embedding is from its own segments, by
    [`CSCSpeakerBranch.embed`], so that the two lie in one space [O].
    """

    def __init__(self, config: CSCConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.use_cross_attention = config.use_cross_attention
        if config.use_cross_attention:
            self.memory_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
            self.q_proj = nn.Linear(config.speaker_embedding_size, config.hidden_size)
            self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def scores(self, query: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """`query` (..., E), `memory` (..., M, D) → how well each segment answers, (..., heads, M); all alike without
        cross-attention."""
        if not self.use_cross_attention:
            batch = torch.broadcast_shapes(query.shape[:-1], memory.shape[:-2])
            return torch.zeros(*batch, self.num_heads, memory.shape[-2], device=memory.device)
        query = self.q_proj(query.to(memory.dtype)).unflatten(-1, (self.num_heads, -1))
        key = self.k_proj(self.memory_layer_norm(memory)).unflatten(-1, (self.num_heads, -1))
        return torch.einsum("...hd,...mhd->...hm", query, key).float() * query.shape[-1] ** -0.5

    def forward(
        self, query: torch.Tensor, memory: torch.Tensor, memory_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`query` (..., E), `memory` (..., M, D), `memory_mask` (..., M) bool, leading axes broadcasting → mean and
        mean square of the memory, each head's of its own channels (..., heads, 2, D / heads), and the log of the sum
        of its exponentiated scores (..., heads)."""
        scores = self.scores(query, memory)
        scores = scores.masked_fill(~memory_mask[..., None, :], torch.finfo(scores.dtype).min)
        value = torch.stack([memory.float(), memory.float().square()], dim=-2)  # (..., M, 2, D)
        value = value.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)
        with full_precision(scores):  # a variance, the difference of these moments, does not survive rounding
            return torch.einsum("...hm,...mhpd->...hpd", scores.softmax(dim=-1), value), scores.logsumexp(dim=-1)

    def answer(
        self, query: torch.Tensor, memory: torch.Tensor, memory_mask: torch.Tensor, visible: torch.Tensor
    ) -> torch.Tensor:
        """
        The moments of every identity for every query: `query` (I, E), `memory` (B, M, D) of B mixtures, `memory_mask`
        (B, M), `visible` (I, N, B), the mixtures that identity n's memory consists of for query i →
        (I, N, heads, 2, D / heads), zero where there are none.

        A softmax over several mixtures weights each by its sum of exponentiated scores, and the softmax inside it: so
        a query attends to each mixture once, whichever identities share it, and no tensor has all of I, N, B and
        heads.
        """
        moments, log_sums = self(query[:, None], memory[None], memory_mask[None])
        # Relative to the mixture with the highest scores. One may fall so far behind that nothing would be left of it;
        # bounded, it still counts where no better one is visible.
        weights = (log_sums - log_sums.amax(dim=1, keepdim=True)).clamp(min=-60).exp()
        visible = visible.to(weights.dtype)
        with full_precision(moments):
            totals = torch.einsum("inb,ibh->inh", visible, weights)
            sums = torch.einsum("inb,ibhpd->inhpd", visible, weights[..., None, None] * moments)
        return sums / totals.clamp(min=1e-30)[..., None, None]


# --- losses ----------------------------------------------------------------------------------------------------------


def pairwise_si_snr(estimates: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor, threshold: float):
    """SI-SNR in dB of every estimate (B, C, T) against every target (B, C, T) over the samples where `mask` (B, T) is
    1 → (B, C estimates, C targets), saturating at `threshold` dB; finite, with finite gradients, for silence too."""
    mask = mask[:, None].float()
    estimates, targets = estimates.float(), targets.float()
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
    Negative SI-SNR in dB of the permutation of slots that is best for the whole mixture, [G].

    Args:
        estimates, targets: (B, C, T). A target that is zero everywhere is absent and counts for nothing.
        mask: (B, T), 1 for real samples.
        threshold: SI-SNR, in dB, at which the loss saturates.

    Returns:
        The loss, averaged over the targets that are present; the slot of each target (B, C); which targets are
        present (B, C), bool.
    """
    num_sources = targets.shape[1]
    present = ((targets * mask[:, None]) != 0).any(-1)
    si_snr = pairwise_si_snr(estimates, targets, mask, threshold)
    permutations = torch.tensor(list(itertools.permutations(range(num_sources))), device=targets.device)
    target = torch.arange(num_sources, device=targets.device)
    candidates = si_snr[:, permutations, target] * present[:, None]  # (B, C!, C)
    best = candidates.sum(-1).argmax(-1)
    chosen = candidates.take_along_dim(best[:, None, None], dim=1)
    return -chosen.sum() / present.sum().clamp(min=1), permutations[best], present


def slot_activity_loss(activity: torch.Tensor, permutation: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of the slots' logits (B, C), given the slot of each target and which are present (B, C)."""
    labels = torch.zeros_like(activity).scatter(1, permutation, present.to(activity.dtype))
    return F.binary_cross_entropy_with_logits(activity, labels)


def additive_angular_margin_loss(
    cosines: torch.Tensor, labels: torch.Tensor, margin: float, scale: float
) -> torch.Tensor:
    """ArcFace (Deng et al., CVPR 2019): cross-entropy of scaled cosines (B, labels), where the angle to the true one,
    of `labels` (B,), counts as larger by `margin`, in radians."""
    # cos(θ + m) for the true label, continued linearly where θ + m > π, so that it keeps falling with θ.
    sines = (1 - cosines.square()).clamp(min=1e-8).sqrt()
    harder = torch.where(
        cosines > -math.cos(margin),
        cosines * math.cos(margin) - sines * math.sin(margin),
        cosines - margin * math.sin(margin),
    )
    true = F.one_hot(labels, cosines.shape[-1]).bool()
    return F.cross_entropy(scale * torch.where(true, harder, cosines), labels)


def main_speaker_embedding(embeddings: torch.Tensor, activity: torch.Tensor) -> torch.Tensor:
    """(B, C, E), (B, C) → (B, E): of a recording of one speaker, the embedding of the slot that holds him. The slots
    are weighted by the softmax of their activities, so that a head trains which slot that is."""
    return F.normalize((activity.softmax(dim=-1)[..., None] * embeddings).sum(dim=1), dim=-1)


def check_shape(name: str, tensor: torch.Tensor | None, shape: tuple[int, ...]) -> None:
    """Raises a `ValueError` for an optional input of another shape."""
    if tensor is not None and tensor.shape != shape:
        raise ValueError(f"`{name}` must have shape {tuple(shape)} here, got {tuple(tensor.shape)}.")


# --- many processes: the same collective calls, in the same order, whatever each one's batch holds ------------------


class GatherWithGradient(torch.autograd.Function):
    """(B, ...) of each process → (processes · B, ...), in their order. The gradient of a process's tensor is the sum
    over what all of them made of it."""

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


def gather_mixtures(
    speaker_ids: torch.Tensor, memory: torch.Tensor, memory_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """
    `speaker_ids` (B, C), `memory` (B, M, D) and `memory_mask` (B, M) of the mixtures of all processes, and how many of
    them come before those of this one. B and M may differ: the smaller are padded, with mixtures of nobody.
    """
    gather = GatherWithGradient.apply
    sizes = gather(torch.tensor([memory.shape[:2]], device=memory.device))
    num_rows, length = sizes.amax(dim=0).tolist()
    missing_rows, missing_length = num_rows - memory.shape[0], length - memory.shape[1]
    return (
        gather(F.pad(speaker_ids, (0, 0, 0, missing_rows), value=-100)),
        gather(F.pad(memory, (0, 0, 0, missing_length, 0, missing_rows))),
        gather(F.pad(memory_mask.byte(), (0, missing_length, 0, missing_rows))),
        num_rows * torch.distributed.get_rank(),
    )


# --- models ----------------------------------------------------------------------------------------------------------


class CSCPreTrainedModel(PreTrainedModel):
    """Weight initialisation and the flags by which Transformers handles every CSC model."""

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
    # What a pre-training checkpoint has beyond a head, or beyond the base model, is no sign of a mistake.
    _keys_to_ignore_on_load_unexpected = [r"^aggregator\.", r"^log_contrastive_scale$", r"^(csc\.)?separator\."]
    # Our losses are means over a batch, so the Trainer has to divide them by the accumulation steps.
    accepts_loss_kwargs = False

    def get_input_embeddings(self) -> None:
        """There is no vocabulary. Accelerate asks, to shard its embeddings apart."""

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, (CSCConvFrontEnd, CSCConvDecoder)):
            # A basis of waveforms: PyTorch's own scale, not that of the linear layers.
            init.kaiming_uniform_(module.conv.weight, a=math.sqrt(5))
        elif isinstance(module, CSCLSTM):
            init.zeros_(module.initial_hidden)
            init.zeros_(module.initial_cell)
        elif isinstance(module, CSCMinGRU):
            init.zeros_(module.initial_hidden)
        elif isinstance(module, nn.PReLU):
            init.constant_(module.weight, 0.25)
        elif isinstance(module, CSCForPreTraining):
            init.constant_(module.log_contrastive_scale, math.log(self.config.contrastive_scale))


class CSCModel(CSCPreTrainedModel):
    """
    The separative encoder: a shared trunk, C slots, and for each slot a speaker branch and, with `add_separator`, a
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

    _auto_class = "AutoModel"
    # Only the trunk is recorded: the branches' tensors have another batch axis.
    _can_record_outputs = {
        "hidden_states": OutputRecorder(CSCBlock, index=0, layer_name="layers"),
        "attentions": OutputRecorder(CSCAttention, index=1, layer_name="layers"),
    }

    def __init__(self, config: CSCConfig, add_separator: bool = False):
        super().__init__(config)
        self.front_end = CSCSTFTFrontEnd(config) if config.front_end == "stft" else CSCConvFrontEnd(config)
        self.layers = nn.ModuleList([CSCBlock(config) for _ in range(config.num_hidden_layers)])
        self.slots = nn.Linear(config.hidden_size, config.num_sources * config.hidden_size)
        self.slot_activation = nn.PReLU()
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
            input_values (`torch.FloatTensor` of shape `(B, T)`): Mono waveforms at `config.sampling_rate`. Their level
                does not matter.
            attention_mask (`torch.LongTensor` of shape `(B, T)`, *optional*): 1 for samples, 0 for padding, which must
                stand on the right. Padding does not change the output.

        Raises:
            ValueError: If `input_values` is not `(B, T)` with at least one sample, or `attention_mask` differs in
            shape.
        """
        if input_values.dim() != 2 or input_values.shape[1] == 0:
            raise ValueError(
                f"`input_values` must be mono waveforms of shape (batch, samples), got {tuple(input_values.shape)}."
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_values, dtype=torch.long)
        check_shape("attention_mask", attention_mask, input_values.shape)
        config, num_samples = self.config, input_values.shape[1]
        lengths = attention_mask.sum(dim=-1)
        size, hop, num_segments = config.segment_length, config.segment_length // 2, config.num_segments(num_samples)
        # Frames up to the end of the last segment but half of it, so that segments come out whole.
        frame_mask = length_mask(config.num_frames(lengths), (num_segments - 1) * hop)
        segment_mask = length_mask(config.num_segments(lengths), num_segments)

        # Unit power, so that neither quiet recordings nor half precision lose anything.
        waveform = input_values.float() * attention_mask
        level = masked_mean(waveform.square(), attention_mask, -1).sqrt()[:, None] + 1e-8
        features, encoded = self.front_end(waveform / level, frame_mask[..., None])

        hidden_states = split_frames(features * frame_mask[..., None], size, hop, num_segments).flatten(1, 2)
        frame_mask = split_frames(frame_mask[..., None].to(features.dtype), size, hop, num_segments)
        attention_bias = self._attention_bias(features, segment_mask)
        for layer in self.layers:
            hidden_states = layer(hidden_states, frame_mask, attention_bias, **kwargs)
        last_hidden_state = masked_mean(hidden_states.unflatten(1, (-1, size)), frame_mask, dim=2)

        # From here on the batch is B·C: each slot goes its own way.
        slots = self.slot_activation(self.slots(hidden_states)).mul_(frame_mask.flatten(1, 2))
        slots = slots.unflatten(-1, (config.num_sources, -1)).permute(0, 2, 1, 3).flatten(0, 1)
        frame_mask = frame_mask.repeat_interleave(config.num_sources, dim=0)
        segment_mask = segment_mask.repeat_interleave(config.num_sources, dim=0)
        attention_bias = self._attention_bias(features, segment_mask)
        segments, embeddings, activity = self.speaker_branch(slots, frame_mask, attention_bias, segment_mask, **kwargs)
        sources = None
        if self.separator is not None:
            sources = self.separator(slots, frame_mask, attention_bias, encoded, num_samples, **kwargs)
            sources = sources * level[..., None] * attention_mask[:, None]

        by_slot = (-1, config.num_sources)
        return CSCModelOutput(
            last_hidden_state=last_hidden_state,
            source_hidden_states=segments.unflatten(0, by_slot),
            source_embeddings=embeddings.unflatten(0, by_slot),
            source_activity=activity.unflatten(0, by_slot),
            sources=sources,
        )

    def _attention_bias(self, features: torch.Tensor, segment_mask: torch.Tensor):
        """What the chosen attention implementation wants to be told of the padded segments."""
        embeds = features.new_empty(*segment_mask.shape, features.shape[-1])
        return create_bidirectional_mask(self.config, embeds, segment_mask)


class CSCForPreTraining(CSCPreTrainedModel):
    """
    CSC's pre-training: separates the sources, and maximises the mutual information between each slot's embedding and
    the global speaker vector of its identity, read by cross-attention from the other mixtures that contain it.

    In training mode, and where `torch.distributed` is initialised, the contrast is over the mixtures of all processes
    of the default group. Each has to hold mixtures of its own, `speaker_ids` that are equal mean the same speaker in
    whichever process, and all have to call the model equally often, with `source_values`. The mean of the losses, of
    the mutual information and of the accuracy over the processes, and of the gradients, as DDP and FSDP average them,
    are those of all mixtures in one process, where all processes hold equally many. In evaluation mode a process is
    alone, so that one of them may evaluate while the others wait.

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

    _auto_class = "AutoModelForPreTraining"

    def __init__(self, config: CSCConfig):
        super().__init__(config)
        self.csc = CSCModel(config, add_separator=True)
        self.aggregator = CSCSpeakerAggregator(config)
        self.log_contrastive_scale = nn.Parameter(torch.full((1,), math.log(config.contrastive_scale)))
        self.post_init()

    @property
    def num_processes(self) -> int:
        """Processes that the contrast is over."""
        if self.training and torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_world_size()
        return 1

    def items_per_process(self, num_items: torch.Tensor) -> torch.Tensor:
        """By what to divide a sum over `num_items` () of this process, such that the mean over the processes is the
        mean over the items of all."""
        num_items = num_items.float()
        if self.num_processes > 1:
            torch.distributed.all_reduce(num_items)
        return num_items.clamp(min=1) / self.num_processes

    def aggregate(
        self, query: torch.Tensor, memory: torch.Tensor, memory_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        The global speaker vector: what several recordings of a speaker, each possibly with others in it, tell of the
        speaker of an embedding.

        Args:
            query: Speaker embeddings, (..., E).
            memory: `source_hidden_states` of other recordings, all slots and segments of them in one row, (..., M, D).
            memory_mask: 1 for real segments, (..., M). `None`: all are.

        Returns:
            Vectors of unit length, (..., E), to be compared with embeddings.
        """
        if memory_mask is None:
            memory_mask = torch.ones(memory.shape[:-1], device=memory.device)
        return self._global_speaker_vector(self.aggregator(query, memory, memory_mask.bool())[0])

    def _global_speaker_vector(self, moments: torch.Tensor) -> torch.Tensor:
        """(..., heads, 2, D / heads) → (..., E)."""
        mean, mean_square = moments.transpose(-3, -2).flatten(-2).unbind(-2)
        return self.csc.speaker_branch.embed(self.csc.speaker_branch.statistics(mean, mean_square))

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        source_values: torch.Tensor | None = None,
        speaker_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CSCForPreTrainingOutput:
        r"""
        Args:
            input_values, attention_mask: As in [`CSCModel`].
            source_values (`torch.FloatTensor` of shape `(B, C, T)`, *optional*): The sources that the mixtures consist
                of; zeros where a mixture has fewer. Without them no loss is computed.
            speaker_ids (`torch.LongTensor` of shape `(B, C)`, *optional*): Identity of each source: equal means the
                same, −100 means none. Without them, or where no two identities can be told apart, the contrastive loss
                is zero. An identity found in only one mixture takes no part.

        Raises:
            ValueError: If `source_values` or `speaker_ids` do not fit the input, or the latter come alone.
        """
        batch, num_sources = input_values.shape[0], self.config.num_sources
        if source_values is None and speaker_ids is not None:
            raise ValueError("`speaker_ids` need `source_values`, by which each slot finds its speaker.")
        check_shape("source_values", source_values, (batch, num_sources, *input_values.shape[1:]))
        check_shape("speaker_ids", speaker_ids, (batch, num_sources))
        outputs: CSCModelOutput = self.csc(input_values, attention_mask, **kwargs)
        output = CSCForPreTrainingOutput(
            sources=outputs.sources,
            source_embeddings=outputs.source_embeddings,
            source_activity=outputs.source_activity,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        if source_values is None:
            return output

        if attention_mask is None:
            attention_mask = torch.ones_like(input_values, dtype=torch.long)
        if speaker_ids is None:
            speaker_ids = torch.full((batch, num_sources), -100, device=input_values.device)
        output.separation_loss, output.permutation, present = permutation_invariant_separation_loss(
            outputs.sources, source_values, attention_mask, self.config.si_snr_threshold
        )
        num_present = present.sum()
        output.separation_loss = output.separation_loss * (num_present / self.items_per_process(num_present))
        output.activity_loss = slot_activity_loss(outputs.source_activity, output.permutation, present)
        # From slot order to target order: only now does it matter which slot holds whom.
        embeddings = outputs.source_embeddings.take_along_dim(output.permutation[..., None], dim=1)
        num_segments = self.config.num_segments(attention_mask.sum(dim=-1))
        segment_mask = length_mask(num_segments, outputs.source_hidden_states.shape[2])
        (
            output.contrastive_loss,
            output.mutual_information,
            output.contrastive_accuracy,
            output.global_speaker_vectors,
        ) = self.contrast(
            embeddings,
            speaker_ids.masked_fill(~present, -100),
            outputs.source_hidden_states.flatten(1, 2),
            segment_mask.repeat(1, num_sources),
        )
        output.loss = (
            self.config.separation_loss_weight * output.separation_loss
            + self.config.contrastive_loss_weight * output.contrastive_loss
            + self.config.activity_loss_weight * output.activity_loss
        )
        return output

    def contrast(
        self, embeddings: torch.Tensor, speaker_ids: torch.Tensor, memory: torch.Tensor, memory_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        The probabilistic contrastive loss. Every identity answers the *same* query with its own global speaker vector:
        were each identity's vector made from its own query, the positive alone would have seen the embedding that it
        is compared with, and the loss would fall without anything being learnt of speakers.

        Nor may the memories differ in anything but whose they are, see [`memories`].

        Args:
            embeddings: Speaker embeddings in the order of the targets, (B, C, E).
            speaker_ids: Their identities, (B, C); negative means none.
            memory: Segment-level speaker representations of all slots of each mixture, (B, M, D). Nobody says which
                slot is whose.
            memory_mask: 1 for real segments, (B, M).

        Returns:
            loss, mutual information, accuracy, each of shape (), and the global speaker vector of each embedding's own
            identity, (B, C, E), zero where it takes no part.
        """
        everyone, num_before = speaker_ids, 0
        if self.num_processes > 1:
            everyone, memory, memory_mask, num_before = gather_mixtures(speaker_ids, memory, memory_mask)
        known = speaker_ids >= 0
        mixture = known.nonzero()[:, 0] + num_before
        identities = everyone[everyone >= 0].unique()
        contains = (everyone[None] == identities[:, None, None]).any(-1)  # (N, B)
        own = speaker_ids[known][:, None] == identities  # (I, N)
        visible = self.memories(contains, (everyone >= 0).sum(-1), own, mixture)
        candidate = visible.any(-1)  # (I, N)
        takes_part = (candidate & own).any(-1) & (candidate.sum(-1) > 1)
        num_queries = self.items_per_process(takes_part.sum())

        # There may be no query at all. The graph is the same then, so that every process has the same gradients.
        query, identity = embeddings[known][takes_part], torch.searchsorted(identities, speaker_ids[known][takes_part])
        visible, candidate = visible[takes_part], candidate[takes_part]
        moments = self.aggregator.answer(query, memory, memory_mask.bool(), visible)
        answers = self._global_speaker_vector(moments)  # (I, N, E)
        distances = (query[:, None].float() - answers).square().sum(-1)
        logits = -self.log_contrastive_scale.float().exp() * distances
        logits = logits.masked_fill(~candidate, torch.finfo(logits.dtype).min)
        log_p = logits.log_softmax(-1)
        own_log_p = log_p.take_along_dim(identity[:, None], dim=1)
        loss = -own_log_p.sum() / num_queries
        with torch.no_grad():
            mutual_information = (candidate.sum(-1, keepdim=True).log() + own_log_p).sum() / num_queries
            accuracy = (log_p <= own_log_p).all(-1).sum() / num_queries
            vectors = embeddings.new_zeros(embeddings.shape)
            vectors[known.nonzero()[takes_part].unbind(1)] = answers.take_along_dim(
                identity[:, None, None], dim=1
            ).squeeze(1)
        return loss, mutual_information, accuracy, vectors

    @staticmethod
    def memories(
        contains: torch.Tensor, num_speakers: torch.Tensor, own: torch.Tensor, mixture: torch.Tensor
    ) -> torch.Tensor:
        """
        Which mixtures the memory of each identity consists of, for each query.

        Of its own identity a query sees every mixture but its own. Of any other, it sees as many mixtures, with the
        same numbers of speakers, in none of which its identity speaks; where there are not as many, that identity is
        no candidate. Otherwise the own identity, which lacks the query's mixture, would be known by its smaller
        memory, or by how many speak in it: a network that is trained on noise finds that within minutes.

        Args:
            contains: Whether identity n speaks in mixture b, (N, B).
            num_speakers: Identities in each mixture, (B,).
            own: Whether identity n is that of query i, (I, N).
            mixture: The mixture of each query, (I,).

        Returns:
            (I, N, B) bool.
        """
        # Axis B is turned for each query to begin behind its own mixture, so that no mixture is favoured by its place.
        num_mixtures = contains.shape[1]
        turn = (mixture[:, None] + 1 + torch.arange(num_mixtures, device=mixture.device)) % num_mixtures  # (I, B)
        holds_own = (own.float() @ contains.float()).bool()  # (I, B)
        eligible = torch.where(own[..., None], holds_own[:, None], contains & ~holds_own[:, None])
        eligible = eligible.take_along_dim(turn[:, None], dim=2)
        eligible[..., -1] = False  # the query's own mixture
        chosen, complete = torch.zeros_like(eligible), torch.ones_like(own)
        for kind in num_speakers.unique():
            of_kind = eligible & (num_speakers[turn] == kind)[:, None]
            wanted = (of_kind & own[..., None]).sum((1, 2))[:, None, None]
            chosen |= of_kind & (of_kind.cumsum(-1) <= wanted)
            complete &= of_kind.sum(-1) >= wanted[..., 0]
        chosen &= complete[..., None]
        return torch.zeros_like(chosen).scatter(2, turn[:, None].expand_as(chosen), chosen)


class CSCForSpeechSeparation(CSCPreTrainedModel):
    """CSC that returns the waveform of each speaker of a mixture, with his embedding and whether the slot is used."""

    _auto_class = "CSCForSpeechSeparation"  # no Auto class separates speech: the name only has the code saved along

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
            labels (`torch.FloatTensor` of shape `(B, C, T)`, *optional*): The sources, in any order; zeros where a
                mixture has fewer. The loss does not train the speaker embedding: distributed training needs
                `find_unused_parameters=True`.

        Raises:
            ValueError: If `labels` are not `(B, C, T)`.
        """
        batch, num_sources = input_values.shape[0], self.config.num_sources
        check_shape("labels", labels, (batch, num_sources, *input_values.shape[1:]))
        outputs: CSCModelOutput = self.csc(input_values, attention_mask, **kwargs)
        loss = None
        if labels is not None:
            if attention_mask is None:
                attention_mask = torch.ones_like(input_values, dtype=torch.long)
            loss, permutation, present = permutation_invariant_separation_loss(
                outputs.sources, labels, attention_mask, self.config.si_snr_threshold
            )
            activity_loss = slot_activity_loss(outputs.source_activity, permutation, present)
            loss = loss + self.config.activity_loss_weight * activity_loss
        return CSCSeparationOutput(
            loss=loss,
            sources=outputs.sources,
            source_embeddings=outputs.source_embeddings,
            source_activity=outputs.source_activity,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class CSCForXVector(CSCPreTrainedModel):
    """CSC with one speaker embedding a recording, for verification, and an additive angular margin softmax over
    `config.num_labels` training speakers."""

    _auto_class = "AutoModelForAudioXVector"

    def __init__(self, config: CSCConfig):
        super().__init__(config)
        self.csc = CSCModel(config)
        self.classifier = nn.Linear(config.speaker_embedding_size, config.num_labels, bias=False)
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
            labels (`torch.LongTensor` of shape `(B,)`, *optional*): Training speaker of each recording.

        Returns:
            [`XVectorOutput`] with `logits` (B, num_labels), the scaled cosines without margin, and `embeddings` (B, E)
            of unit length.
        """
        outputs: CSCModelOutput = self.csc(input_values, attention_mask, **kwargs)
        embeddings = main_speaker_embedding(outputs.source_embeddings, outputs.source_activity)
        with full_precision(embeddings):
            cosines = embeddings @ F.normalize(self.classifier.weight.float(), dim=-1).T
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


class CSCForSequenceClassification(CSCPreTrainedModel):
    """CSC that classifies a recording (language, emotion, command, ...) by the mean of the shared trunk and the
    embedding of its main speaker."""

    _auto_class = "AutoModelForAudioClassification"

    def __init__(self, config: CSCConfig):
        super().__init__(config)
        self.csc = CSCModel(config)
        self.projector = nn.Linear(config.hidden_size + config.speaker_embedding_size, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, config.num_labels)
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
            labels (`torch.Tensor` of shape `(B,)`, or `(B, num_labels)` for multi-label problems, *optional*): What
                `config.problem_type` says: class indices, values, or zeros and ones.
        """
        outputs: CSCModelOutput = self.csc(input_values, attention_mask, **kwargs)
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

    _auto_class = "AutoModelForAudioFrameClassification"

    def __init__(self, config: CSCConfig):
        super().__init__(config)
        self.csc = CSCModel(config)
        slot_size = config.hidden_size + config.speaker_embedding_size
        self.classifier = nn.Linear(config.hidden_size + config.num_sources * slot_size, config.num_labels)
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
            labels (`torch.FloatTensor` of shape `(B, S, num_labels)`, *optional*): 1 where a label holds in a segment,
                0 where it does not, −100 where it is unknown or padding. S is `config.num_segments(T)`.

        Raises:
            ValueError: If `labels` have another shape.
        """
        outputs: CSCModelOutput = self.csc(input_values, attention_mask, **kwargs)
        trunk, slots = outputs.last_hidden_state, outputs.source_hidden_states
        # What each slot says now and whom it holds, as far as it holds anybody.
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


__all__ = [
    "CSCForAudioFrameClassification",
    "CSCForPreTraining",
    "CSCForPreTrainingOutput",
    "CSCForSequenceClassification",
    "CSCForSpeechSeparation",
    "CSCForXVector",
    "CSCModel",
    "CSCModelOutput",
    "CSCPreTrainedModel",
    "CSCSeparationOutput",
]
