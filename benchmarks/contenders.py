# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Who is compared: our models and their peers, all with random weights (but Resemblyzer's, which are in its package).

Each is a function that builds a module, which takes one tensor and returns one. Peers are imported by the function
that builds them, so that one that is not installed only lacks its row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from csc_hf import CSCConfig, CSCForSpeechSeparation, CSCModel

BENCH = 'pip install -e ".[bench]"'
ASTEROID = f"{BENCH} && pip install --no-deps asteroid"
RESEMBLYZER = f"{BENCH} && pip install --no-deps resemblyzer"

GALR = {  # the setting of 1.5 million parameters of the GALR paper
    "conv_kernel": 32,
    "conv_stride": 16,
    "hidden_size": 64,
    "lstm_hidden_size": 128,
    "segment_length": 100,
    "low_dim": 32,
    "num_attention_heads": 8,
}
TRUNK = CSCConfig(num_hidden_layers=6, **GALR)


@dataclass(frozen=True)
class Contender:
    """A model under a name, and how to install what it needs beyond csc_hf."""

    name: str
    build: Callable[[], nn.Module]
    install: str = ""


class Output(nn.Module):
    """A Transformers model, and which of its outputs is wanted."""

    def __init__(self, model: nn.Module, name: str):
        super().__init__()
        self.model = model
        self.name = name

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return getattr(self.model(inputs), self.name)


# --- dual-path blocks: (B, S, K, D) → the same positions, in the layout of each --------------------------------------


class GALRTrunk(nn.Module):
    """The blocks of `CSCModel`'s trunk, run as it runs them."""

    def __init__(self, local_layer: str = "lstm"):
        super().__init__()
        model = CSCModel(CSCConfig(num_hidden_layers=TRUNK.num_hidden_layers, local_layer=local_layer, **GALR))
        self.layers, self.attention_bias = model.layers, model._attention_bias

    def forward(self, segments: torch.Tensor) -> torch.Tensor:
        frame_mask = segments.new_ones(*segments.shape[:3], 1)
        bias = self.attention_bias(segments, frame_mask[:, :, 0, 0].bool())
        hidden_states = segments.flatten(1, 2)
        for layer in self.layers:
            hidden_states = layer(hidden_states, frame_mask, bias)
        return hidden_states


class DPRNNTrunk(nn.Module):
    """The blocks of Asteroid's DPRNN, without its bottleneck, segmentation and masks."""

    def __init__(self):
        super().__init__()
        from asteroid.masknn.recurrent import DPRNN

        size = TRUNK.hidden_size
        self.blocks = DPRNN(
            in_chan=size,
            n_src=2,
            bn_chan=size,
            hid_size=TRUNK.lstm_hidden_size,
            chunk_size=TRUNK.segment_length,
            n_repeats=TRUNK.num_hidden_layers,
        ).net

    def forward(self, segments: torch.Tensor) -> torch.Tensor:
        return self.blocks(segments.permute(0, 3, 2, 1))


# --- speaker embeddings: (B, T) → (B, ...) ---------------------------------------------------------------------------


def csc_small_embeddings(local_layer: str = "lstm") -> nn.Module:
    return Output(CSCModel(CSCConfig.small(local_layer=local_layer)), "source_embeddings")


def wavlm_base() -> nn.Module:
    from transformers import WavLMConfig, WavLMForXVector

    return Output(WavLMForXVector(WavLMConfig()), "embeddings")


class Resemblyzer(nn.Module):
    """Its mel spectrogram and encoder, one recording at a time, which is all it offers."""

    def __init__(self):
        super().__init__()
        from resemblyzer import VoiceEncoder

        self.encoder = VoiceEncoder("cpu", verbose=False)

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.from_numpy(self.encoder.embed_utterance(row)) for row in waveforms.numpy()])


class ECAPA(nn.Module):
    """SpeechBrain's ECAPA-TDNN in the size of spkrec-ecapa-voxceleb, with its filter bank and mean normalisation."""

    def __init__(self):
        super().__init__()
        from speechbrain.lobes.features import Fbank
        from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

        self.features = Fbank(n_mels=80)
        self.encoder = ECAPA_TDNN(80, channels=[1024, 1024, 1024, 1024, 3072], lin_neurons=192)

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        features = self.features(waveforms)
        return self.encoder(features - features.mean(dim=1, keepdim=True))[:, 0]


# --- separation: (B, T) → (B, C, T), SpeechBrain's (B, T, C) ---------------------------------------------------------


def csc_separation(local_layer: str = "lstm") -> nn.Module:
    layers = {"num_hidden_layers": 4, "num_separation_layers": 2, "num_speaker_layers": 1}
    return Output(CSCForSpeechSeparation(CSCConfig(local_layer=local_layer, **layers, **GALR)), "sources")


def asteroid_conv_tasnet() -> nn.Module:
    """As its recipe for 16 kHz has it (ConvTasNet_Libri2Mix_sepclean_16k on the Hub)."""
    from asteroid.models import ConvTasNet

    return ConvTasNet(2, kernel_size=32, stride=16, mask_act="relu", sample_rate=16000)


def asteroid_conv_tasnet_short() -> nn.Module:
    """With the filters that the class has by default."""
    from asteroid.models import ConvTasNet

    return ConvTasNet(2, sample_rate=16000)


class TorchaudioConvTasNet(nn.Module):
    def __init__(self):
        super().__init__()
        from torchaudio.models import conv_tasnet_base

        self.model = conv_tasnet_base(2)

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        return self.model(waveforms[:, None])


def sepformer() -> nn.Module:
    from speechbrain.lobes.models.dual_path import SepformerWrapper

    return SepformerWrapper()
