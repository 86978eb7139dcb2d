# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from csc_hf import PRESETS, CSCConfig, CSCForPreTraining


@pytest.mark.parametrize(
    "values",
    [
        {"front_end": "mel"},
        {"local_layer": "rnn"},
        {"conv_stride": 12},
        {"conv_stride": 32},
        {"segment_length": 15},
        {"low_dim": 65},
        {"num_attention_heads": 3},
        {"speaker_embedding_size": 100},
        {"hidden_size": 0},
        {"num_sources": -1},
        {"hidden_dropout": 1.0},
        {"contrastive_scale": 0.0},
        {"contrastive_loss_weight": -1.0},
        {"hidden_size": "128"},
        {"calibration": 0.5},
        {"num_mel_bins": 20},
        {"num_mel_bins": 0, "front_end": "stft"},
        {"subtract_mean": True},
        {"mask_hidden_size": 8},
        {"frame_stride": 2},
        {"frame_stride": 2, "front_end": "stft"},
        {"frame_stride": 0},
        {"speaker_block": "tdnn"},
        {"speaker_block": "conv"},
        {"speaker_hidden_size": 24},
        {"num_recording_classes": 0},
        {"recording_scale": 0},
    ],
)
def test_impossible_values_name_the_field(values):
    with pytest.raises(StrictDataclassError) as error:
        CSCConfig(**values)
    assert next(iter(values)) in str(error.value)


def test_presets_are_the_documented_models():
    base, small = CSCConfig.base(), CSCConfig.small()
    assert base.to_dict() == CSCConfig(frame_activity=True).to_dict()
    assert (base.front_end, base.conv_kernel, base.hidden_size, base.segment_length) == ("conv", 32, 128, 64)
    assert (small.front_end, small.conv_kernel, small.hidden_size, small.segment_length) == ("stft", 512, 128, 8)
    assert CSCConfig.tiny(num_sources=3).num_sources == 3
    assert CSCConfig.tiny(front_end="stft").conv_kernel == 512
    assert PRESETS == {name: getattr(CSCConfig, name) for name in ("tiny", "small", "small_v1", "base")}
    with torch.device("meta"):
        for config in (*(preset() for preset in PRESETS.values()), CSCConfig.tiny(front_end="stft")):
            CSCForPreTraining(config)


@pytest.mark.parametrize(
    "config",
    [
        CSCConfig.tiny(),
        CSCConfig.tiny(front_end="stft"),
        CSCConfig.small(),
        CSCConfig.tiny(segment_length=5, segment_overlap=False),
        CSCConfig.tiny(front_end="stft", frame_stride=3, mask_hidden_size=8, segment_length=6),
    ],
)
def test_lengths_are_those_of_the_model(config):
    model = CSCForPreTraining(config).eval()
    for num_samples in (1, 15, 16, 17, 400, config.segment_samples, config.segment_samples + 1, 5000):
        with torch.no_grad():
            output = model.csc(torch.randn(1, num_samples))
        assert output.last_hidden_state.shape[1] == config.num_segments(num_samples)
        assert output.sources.shape[-1] == num_samples
    # The frames of `segment_samples` samples fill exactly one segment.
    assert config.num_frames(config.segment_samples) == config.frame_stride * config.segment_length
    assert config.num_encoder_frames(config.segment_samples) == config.segment_length
    assert config.num_encoder_frames(config.segment_samples + 1) == config.segment_length + 1
    lengths = torch.tensor([1, 400, 5000])
    assert config.num_activity_frames(lengths).tolist() == [-(-n // config.activity_stride) for n in (1, 400, 5000)]
    assert config.num_segments(lengths).tolist() == [config.num_segments(length) for length in lengths.tolist()]


def test_a_round_trip_keeps_every_field(tmp_path):
    config = CSCConfig.small(num_sources=3, xvector_margin=0.1, num_labels=7, calibration={"clean": {"scale": 2.5}})
    config.save_pretrained(tmp_path)
    loaded = CSCConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.auto_map["AutoModel"] == "modeling_csc.CSCModel"
