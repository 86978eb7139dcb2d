# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Exported models compute what the model computes, for any batch, length and padding."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch

from csc_hf import (
    CSCConfig,
    CSCForAudioFrameClassification,
    CSCForPreTraining,
    CSCForSpeechSeparation,
    CSCForXVector,
    CSCModel,
)
from csc_hf.export import DESCRIPTION, PARTS, TOLERANCE, export_onnx, export_torch

ROOT = Path(__file__).resolve().parents[1]
VOICES = ("anna", "ben", "meeting", "conversation")

# (batch, samples) and the length of the last recording: shorter than a frame, than a segment; several segments.
SHAPES = [((1, 100), 100), ((1, 3000), 3000), ((2, 16_384), 5_000), ((1, 40_000), 40_000), ((3, 23_456), 1)]


def small(**overrides) -> CSCConfig:
    """Every kind of layer that the preset `small` has, in small."""
    sizes = dict(hidden_size=16, lstm_hidden_size=16, num_attention_heads=2, num_hidden_layers=1, num_speaker_layers=2)
    sizes |= dict(speaker_hidden_size=32, speaker_embedding_size=32, mask_hidden_size=16, num_mel_bins=20)
    return CSCConfig.small(**sizes | overrides)


CONFIGS = {
    "small": small,
    "mingru": lambda: small(local_layer="mingru"),
    "learnt filters": lambda: CSCConfig.tiny(frame_activity=True),
}


def build(model_class, config):
    """A model with weights unlike those that training starts from, which leave much at zero."""
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("bias", "initial_hidden", "initial_cell", "running_mean")):
                tensor.normal_(0, 0.3)
            if name.endswith("bands.mask.bias"):
                tensor.fill_(-13)  # trained masks get that small, and a logarithm follows
    return model


def recordings(shape, length):
    input_values = torch.randn(shape, generator=torch.Generator().manual_seed(shape[1]))
    attention_mask = torch.ones(shape, dtype=torch.long)
    attention_mask[-1, length:] = 0
    return input_values, attention_mask


def run_onnx(file: Path, *inputs: torch.Tensor) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    feed = {value.name: tensor.numpy() for value, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return dict(zip(names, session.run(names, feed), strict=True))


def check_parity(results: dict, expected, relative: bool = False) -> None:
    """Within the tolerance, or that share of an output's largest value: random weights make vectors of several times
    unit size."""
    for name, result in results.items():
        assert tuple(result.shape) == tuple(expected[name].shape), name
        wanted = expected[name].detach().numpy()
        size = max(1.0, np.abs(wanted).max()) if relative else 1.0
        np.testing.assert_allclose(result, wanted, rtol=0, atol=TOLERANCE * size, err_msg=name)


# --- quick: the scorer is a small program ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    model = build(CSCForPreTraining, small(calibration={"mix0/mean": {"threshold": 0.4}}))
    folder = tmp_path_factory.mktemp("scorer") / "new"
    files = export_onnx(model, folder, ["scorer"], int8=True) | {
        "torch": export_torch(model, folder, ["scorer"])["scorer"]
    }
    return model, files


@pytest.mark.parametrize("queries, segments", [(1, 1), (1, 5), (7, 40)])
def test_the_scorer(scorer, queries, segments):
    model, files = scorer
    query = torch.nn.functional.normalize(torch.randn(queries, 32))
    memory = torch.randn(segments, 32)
    expected = {"global_speaker_vectors": model.aggregate(query, memory)}
    check_parity(run_onnx(files["scorer"], query, memory), expected)
    program = torch.export.load(files["torch"]).module(check_guards=False)  # which would refuse a size of one
    check_parity({name: tensor.detach() for name, tensor in program(query, memory).items()}, expected)
    rough = run_onnx(files["scorer.int8"], query, memory)["global_speaker_vectors"]
    assert (rough * expected["global_speaker_vectors"].detach().numpy()).sum(-1).min() > 0.98


def test_files_are_described_and_tell_nothing_of_this_machine(scorer):
    model, files = scorer
    description = json.loads((files["scorer"].parent / DESCRIPTION).read_text())
    assert description["sampling_rate"] == 16000 and description["num_sources"] == 2
    assert description["activity_stride"] == 512
    assert description["calibration"] == model.config.calibration
    assert description["parts"]["scorer"]["inputs"] == {
        "query": ["queries", "speaker_embedding_size"],
        "memory": ["memory", "segment_vector_size"],
    }
    content = files["scorer"].read_bytes()
    assert b"modeling_csc" not in content and str(Path(__file__).parents[1]).encode() not in content
    axes = {value.name: value.type.tensor_type.shape.dim for value in onnx.load(files["scorer"]).graph.input}
    assert [axis.dim_param or axis.dim_value for axis in axes["query"]] == ["queries", 32]
    assert files.keys() == {"scorer", "scorer.int8", "torch"}


def test_earlier_parts_of_the_same_model_stay_described(tmp_path):
    model = build(CSCForPreTraining, small())

    def export(part: str) -> set[str]:
        file = tmp_path / f"{part}.pt2"
        with pytest.MonkeyPatch.context() as patch:  # exporting the encoder would take long
            patch.setattr("csc_hf.export._program", lambda module: None)
            patch.setattr(torch.export, "save", lambda program, path: path.write_text(part))
            assert export_torch(model, tmp_path, [part]) == {part: file}
        return set(json.loads((tmp_path / DESCRIPTION).read_text())["parts"])

    assert export("scorer") == {"scorer"}
    assert export("activity") == {"scorer", "activity"}
    model.config.calibration = {"mix0/mean": {"threshold": 0.4}}  # no other model
    (tmp_path / "scorer.pt2").unlink()
    assert export("embedding") == {"activity", "embedding"}
    model = build(CSCForPreTraining, small(num_speaker_layers=3))
    assert export("activity") == {"activity"}


def test_the_model_stays_as_it_is(scorer):
    model = build(CSCForPreTraining, small()).train().bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_onnx(model, scorer[1]["scorer"].parent / "other", ["scorer"])
    assert model.training and model.config._attn_implementation == "sdpa"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "model_class, part, message",
    [
        (CSCModel, "separation", r"CSCModel has no part 'separation' to export: choose among embedding, activity$"),
        (CSCForSpeechSeparation, "scorer", "among embedding, separation, activity$"),
        (CSCForXVector, "activity", "among embedding$"),
        (CSCForPreTraining, "encoder", "among embedding, separation, activity, scorer$"),
        (CSCForAudioFrameClassification, "embedding", "among none$"),
    ],
)
def test_a_part_that_there_is_not(model_class, part, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_onnx(model_class(small()), tmp_path / "out", [part])
    assert not (tmp_path / "out").exists()


def test_another_model_is_refused(tmp_path):
    CSCConfig.tiny(architectures=["WavLMModel"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a WavLMModel, which is no model of csc_hf"):
        export_onnx(tmp_path, tmp_path / "out")


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime cannot be imported .*: pip install 'csc-hf\[export\]'"):
        export_onnx(CSCModel(small()), tmp_path)


# --- what takes long -------------------------------------------------------------------------------------------------


@pytest.mark.release
@pytest.mark.parametrize("name", CONFIGS)
def test_onnx_of_all_parts(name, tmp_path):
    model = build(CSCForPreTraining, CONFIGS[name]())
    model.save_pretrained(tmp_path / "model")
    parts = ["embedding", "separation"] if name == "small" else ["separation"]
    files = export_onnx(tmp_path / "model", tmp_path / "exported", parts, int8=True)
    for shape, length in SHAPES:
        inputs = recordings(shape, length)
        expected = model.base_model(*inputs)
        for part in parts:
            check_parity(run_onnx(files[part], *inputs), expected, relative=True)
        rough = run_onnx(files["separation.int8"], *inputs)
        assert (rough["source_embeddings"] * expected.source_embeddings.detach().numpy()).sum(-1).min() > 0.9
    # Products with the filters of the spectrogram keep their precision, linear layers and LSTMs lose it.
    nodes = [node.op_type for node in onnx.load(files["separation.int8"]).graph.node]
    assert nodes.count("DynamicQuantizeLSTM") == (2 if name == "small" else 0 if name == "mingru" else 3)
    assert nodes.count("MatMulInteger") + nodes.count("DynamicQuantizeMatMul") >= 10
    if name == "small":  # in a tiny model, what quantisation adds outweighs what it saves
        assert files["separation.int8"].stat().st_size < files["separation"].stat().st_size


@pytest.mark.release
@pytest.mark.timeout(1500)
def test_the_released_model(tmp_path):
    """Trained weights, speech, all parts: of every length, and in batches with padding."""
    model = CSCForPreTraining.from_pretrained(ROOT / "model_cards" / "csc-small").eval()
    files = export_onnx(model, tmp_path, int8=True)
    assert files.keys() == {f"{part}{bits}" for part in PARTS for bits in ("", ".int8")}
    speech = [soundfile.read(ROOT / "examples" / "audio" / f"{name}.flac", dtype="float32")[0] for name in VOICES]
    talk = speech[-1][20_000:]  # before that, every sample is zero
    batches = [[talk[:length]] for length in (400, 3000, 16_385, 64_000, 400_000)]
    batches += [[speech[0], speech[1][:10_000], 30 * speech[2]], [1e-4 * speech[0][:40_000], speech[2][20_000:20_100]]]
    for waveforms in batches:
        input_values = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(w) for w in waveforms], batch_first=True)
        attention_mask = torch.zeros(input_values.shape, dtype=torch.long)
        for row, waveform in enumerate(waveforms):
            attention_mask[row, : len(waveform)] = 1
        with torch.no_grad():
            expected = model.base_model(input_values, attention_mask)
        for part in ("embedding", "separation", "activity"):
            results = run_onnx(files[part], input_values, attention_mask)
            voices = {"sources": results.pop("sources")} if part == "separation" else {}  # as loud as the recording
            check_parity(results, expected)
            check_parity(voices, expected, relative=True)
            rough = run_onnx(files[f"{part}.int8"], input_values, attention_mask)
            assert np.abs(rough["source_activity"] - expected.source_activity.numpy()).max() < 0.5
            if part != "activity":
                assert (rough["source_embeddings"] * expected.source_embeddings.numpy()).sum(-1).min() > 0.99
        query, memory = expected.source_embeddings.flatten(0, 1), expected.source_hidden_states.flatten(0, 2)
        answer = {"global_speaker_vectors": model.aggregate(query, memory[None])}
        check_parity(run_onnx(files["scorer"], query, memory), answer)


@pytest.mark.release
def test_programs_of_torch(tmp_path):
    model = build(CSCForPreTraining, small())
    files = export_torch(model, tmp_path, ["separation", "activity"])
    programs = {part: torch.export.load(file).module(check_guards=False) for part, file in files.items()}
    assert set(programs["activity"](*recordings((1, 8000), 8000))) == {"source_activity", "source_frame_activity"}
    for shape, length in SHAPES:
        inputs = recordings(shape, length)
        results = {name: tensor.detach() for name, tensor in programs["separation"](*inputs).items()}
        check_parity(results, model.base_model(*inputs))


@pytest.mark.release
def test_onnx_of_an_x_vector(tmp_path):
    model = build(CSCForXVector, small(num_labels=3))
    files = export_onnx(model, tmp_path)
    assert files.keys() == {"embedding"}
    inputs = recordings((2, 20_000), 9_000)
    check_parity(run_onnx(files["embedding"], *inputs), model(*inputs))
