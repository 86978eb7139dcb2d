# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Stores of enrolled voices that lie: they are refused before anything is scored, or give finite scores."""

import functools
import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from transformers import pipeline

import csc_hf  # noqa: F401 (registers the pipelines)
from csc_hf import CSCConfig, CSCForPreTraining
from csc_hf.cli.store import FORMAT, VoiceStore, fingerprint

TEST = np.random.default_rng(0).uniform(-0.1, 0.1, 4000).astype(np.float32)


@functools.cache
def verifier(enrolment):
    torch.manual_seed(0)
    model = CSCForPreTraining(CSCConfig.tiny(front_end="stft")).eval()
    return pipeline("speaker-verification", model=model, enrolment=enrolment, threshold=0.5)


@functools.cache
def fingerprint_of(enrolment):
    return fingerprint(verifier(enrolment).model, enrolment)


@functools.cache
def honest_store(enrolment) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a store of two voices."""
    config = verifier(enrolment).model.config
    tensors = {}
    for number in range(2):
        embedding = torch.randn(config.speaker_embedding_size, generator=torch.Generator().manual_seed(number))
        tensors[f"embedding.{number}"] = embedding / embedding.norm()
        if enrolment == "attention":
            tensors[f"memory.{number}"] = torch.ones(5, config.hidden_size)
    voices = [{"name": "anna", "recordings": 1}, {"name": "ben", "recordings": 2}]
    metadata = {
        "format": FORMAT,
        "version": "1",
        "voices": json.dumps(voices),
        "model": "tiny",
        "enrolment": enrolment,
    }
    return tensors, metadata | {"fingerprint": fingerprint_of(enrolment), "sampling_rate": "16000"}


TENSORS = st.one_of(
    st.sampled_from([float("nan"), float("inf"), 0.0, 1e30, -1.0]).map(lambda value: torch.full((32,), value)),
    st.lists(st.integers(0, 40), max_size=3).map(torch.ones),
    st.sampled_from([torch.int64, torch.bool, torch.float64, torch.bfloat16, torch.float8_e4m3fn]).map(
        lambda dtype: torch.eye(32)[0].to(dtype)
    ),
)
NAMES = st.sampled_from(["", " ", "../../etc/passwd", "\x1b[2J", "a\nb", "anna", None, 7, [], {}]) | st.text(
    max_size=5
)
RECORDINGS = st.integers() | st.none() | st.text()
LIARS = ["", "{", "7", "null", "[" * 10_000, "[1]", '{"name": 1}', '["anna"]', "[{}]", "NaN"]
VOICES = st.sampled_from(LIARS) | st.lists(
    st.fixed_dictionaries({"name": NAMES, "recordings": RECORDINGS}), max_size=3
).map(json.dumps)


@st.composite
def stores(draw) -> tuple[bytes, str]:
    """Stores that may hold anything, and the kind of enrolment of their model."""
    enrolment = draw(st.sampled_from(["mean", "attention"]))
    tensors, metadata = map(dict, honest_store(enrolment))
    for _ in range(draw(st.integers(0, 2))):
        change = draw(st.sampled_from(["tensor", "no tensor", "metadata", "no metadata", "voices"]))
        if change == "tensor":
            tensors[draw(st.sampled_from(sorted(tensors) or ["x"]))] = draw(TENSORS)
        elif change == "no tensor" and tensors:
            del tensors[draw(st.sampled_from(sorted(tensors)))]
        elif change == "metadata":
            key = draw(st.sampled_from(sorted(metadata) or ["x"]))
            metadata[key] = draw(st.sampled_from(["", "2", "-1", "1e9", "mean", "attention", "other"]))
        elif change == "no metadata" and metadata:
            del metadata[draw(st.sampled_from(sorted(metadata)))]
        elif change == "voices":
            metadata["voices"] = draw(VOICES)
    content = bytearray(save(tensors, metadata))
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(content) - 1))
        if draw(st.booleans()):
            del content[at:]
        else:
            content[at] ^= draw(st.integers(1, 255))
    return bytes(content), enrolment


@given(stores())
def test_stores_that_lie(tmp_path_factory, store):
    content, enrolment = store
    path = tmp_path_factory.getbasetemp() / "voices.safetensors"
    path.write_bytes(content)
    verify = verifier(enrolment)
    try:
        voices = VoiceStore.load(path)
        voices.check_model(path, verify.model, "tiny")
    except ValueError as error:
        assert repr(str(path)) in str(error)
        return
    assert voices.enrolment == enrolment
    assert all(name.isprintable() and name.strip() for name in voices.voices)
    if not voices.voices:
        return
    verify.enrolled = voices.voices
    for result in verify(TEST):
        assert np.isfinite(result["score"]) and abs(result["score"]) <= 1.001
    voices.save(path)
    assert list(VoiceStore.load(path).voices) == list(voices.voices)


@given(
    st.binary(max_size=300)
    | st.builds(lambda header: len(header).to_bytes(8, "little") + header, st.binary(max_size=99))
)
def test_any_bytes(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no store of voices"):
        VoiceStore.load(path)


class Evil:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


def test_a_store_that_is_a_pickle_is_not_loaded(tmp_path):
    path = tmp_path / "voices.safetensors"
    for write in (
        lambda: path.write_bytes(pickle.dumps(Evil(tmp_path / "mark"))),
        lambda: torch.save(Evil(tmp_path / "mark"), path),
    ):
        write()
        with pytest.raises(ValueError, match="is no store of voices"):
            VoiceStore.load(path)
    assert not (tmp_path / "mark").exists()
