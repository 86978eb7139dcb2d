# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Feature extractor, models, chunked audio and pipelines: any waveform gives finite results or a ValueError."""

import functools

import numpy as np
import pytest
import torch
from hostile import BAD, RATE, damaged_files, wav_with_header, waveforms
from hypothesis import given
from hypothesis import strategies as st
from transformers import pipeline

import csc_hf  # noqa: F401 (registers the pipelines)
from csc_hf import (
    CSCConfig,
    CSCFeatureExtractor,
    CSCForAudioFrameClassification,
    CSCForPreTraining,
    CSCForSequenceClassification,
    CSCForSpeechSeparation,
    CSCForXVector,
    CSCModel,
)
from csc_hf.feature_extraction_csc import HIGH_PASS_HZ, high_pass
from csc_hf.long_audio import embed, separate

HEADS = [
    CSCModel,
    CSCForSpeechSeparation,
    CSCForPreTraining,
    CSCForSequenceClassification,
    CSCForAudioFrameClassification,
    CSCForXVector,
]


@functools.cache
def model_of(head, front_end="stft", **options):
    torch.manual_seed(0)
    return head(CSCConfig.tiny(front_end=front_end, num_labels=3, **options)).eval()


@functools.cache
def pipe_of(task, head):
    return pipeline(task, model=model_of(head), **({"threshold": 0.5} if task == "speaker-verification" else {}))


def is_finite(values) -> bool:
    """Whether all numbers in an output or result are finite."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list | tuple):
        return all(map(is_finite, values))
    if isinstance(values, torch.Tensor):
        return bool(values.isfinite().all())
    return not isinstance(values, float | np.ndarray) or bool(np.isfinite(values).all())


# --- feature extractor -----------------------------------------------------------------------------------------------

RECORDINGS = waveforms() | st.lists(waveforms(max_samples=2000), max_size=3)
TYPES = ["float16", "float32", "float64", "int16", "uint8", "bool", "complex64", "object", "list", "torch"]


def cast(waveform: np.ndarray, dtype: str):
    with np.errstate(all="ignore"):
        if dtype == "torch":
            return torch.from_numpy(waveform).bfloat16()
        return waveform.tolist() if dtype == "list" else waveform.astype(dtype)


@given(
    RECORDINGS,
    st.sampled_from(TYPES),
    st.sampled_from([True, False, "longest", "max_length"]),
    st.none() | st.integers(-1, 5000),
    st.booleans(),
    st.none() | st.integers(1, 4000),
    st.sampled_from([RATE, None, 8000, 10**9, 0, "16000"]),
)
def test_feature_extractor(recordings, dtype, padding, max_length, truncation, multiple, rate):
    several = isinstance(recordings, list)
    inputs = [cast(one, dtype) for one in recordings] if several else cast(recordings, dtype)
    extractor = CSCFeatureExtractor()
    try:
        batch = extractor(
            inputs, padding=padding, max_length=max_length, truncation=truncation, pad_to_multiple_of=multiple,
            sampling_rate=rate, return_tensors="np",
        )  # fmt: skip
    except ValueError as error:
        assert len(str(error)) > 15
        return
    assert len(batch["input_values"]) == (len(recordings) if several else 1)
    for values, mask in zip(batch["input_values"], batch["attention_mask"], strict=True):
        assert values.dtype == np.float32 and values.shape == mask.shape and len(values) >= extractor.min_samples
        assert np.isfinite(values).all() and set(mask.tolist()) <= {0, 1} and mask[0] == 1
        assert not values[mask == 0].any()


# --- the filter ------------------------------------------------------------------------------------------------------

LEVELS = st.sampled_from([1e-45, 1e-20, 1e-3, 1.0, -0.5, 32768.0, -1e19, 3e38])
CUTS = st.lists(st.integers(0, 12_000), max_size=6).map(sorted)


def by_blocks(waveform: np.ndarray, cuts: list[int]) -> np.ndarray:
    """What `high_pass` makes of a waveform (samples,): the same by blocks as of the whole, and finite."""
    state, blocks = None, []
    for block in np.split(waveform, cuts):
        filtered, state = high_pass(block, RATE, state)
        blocks.append(filtered)
    whole, _ = high_pass(waveform, RATE)
    assert whole.dtype == np.float32 and np.isfinite(whole).all()
    np.testing.assert_allclose(np.concatenate(blocks), whole, rtol=1e-5, atol=1e-9 * np.abs(waveform).max())
    return whole


@given(LEVELS, st.integers(1, 12_000), CUTS)
def test_a_constant_is_silence(level, length, cuts):
    assert not by_blocks(np.full(length, level, np.float32), cuts).any()


@given(LEVELS, LEVELS, st.integers(1, 4000), CUTS)
def test_a_step_is_soon_silence(before, after, place, cuts):
    waveform = np.full(12_000, after, np.float32)
    waveform[:place] = before
    largest = max(abs(before), abs(after), 1e-30)
    assert np.abs(by_blocks(waveform, cuts)[place + RATE // 4 :] / largest).max() < 1e-6


@given(LEVELS, LEVELS, st.floats(0.1, 10), CUTS)
def test_rumble_is_turned_down_by_the_square_of_its_frequency(level, offset, frequency, cuts):
    waveform = level * np.sin(2 * np.pi * frequency * np.arange(12_000) / RATE) + offset
    waveform = np.clip(waveform, -3e38, 3e38).astype(np.float32)
    rest = by_blocks(waveform, cuts)[RATE // 2 :]
    if max(abs(level), abs(offset)) < 1e38 and abs(offset) < 100 * abs(level):  # neither clipped nor rounded away
        assert np.abs(rest).max() < (1.01 * (frequency / HIGH_PASS_HZ) ** 2 + 1e-4) * abs(level) + 1e-44


# --- models ----------------------------------------------------------------------------------------------------------


@given(
    st.sampled_from(HEADS),
    st.sampled_from(["stft", "conv"]),
    st.lists(waveforms(max_samples=3000, finite=True).filter(len), min_size=1, max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.booleans(),
)
def test_models_give_finite_results(head, front_end, recordings, dtype, as_it_is):
    """Of every length and level, alone and beside others; through the feature extractor and without it."""
    model = model_of(head, front_end)
    if as_it_is:
        batch = {"input_values": torch.from_numpy(recordings[0])[None].to(dtype)}
    else:
        batch = CSCFeatureExtractor()(recordings, padding=True, sampling_rate=RATE, return_tensors="pt")
        batch["input_values"] = batch["input_values"].to(dtype)
    finite = batch["input_values"].isfinite().all()  # 3e38 is infinite once rounded to bfloat16
    with torch.no_grad():
        output = model(**batch)
    if finite:
        for name, values in output.items():
            assert is_finite(values), name


@given(st.sampled_from(HEADS), st.integers(0, 1), st.integers(1, 2000), st.floats(0, 1), st.sampled_from(BAD))
def test_models_refuse_nan_and_name_its_row(head, row, length, place, bad):
    values = torch.zeros(2, 2000)
    mask = torch.ones(2, 2000, dtype=torch.long)
    mask[row, length:] = 0
    at = min(int(place * length), length - 1)
    values[row, at] = bad
    values[row, length:] = bad  # padding may hold anything
    with pytest.raises(ValueError, match=rf"input_values\[{row}\]` has NaN or infinite samples, the first at {at}"):
        model_of(head)(values, attention_mask=mask)
    values[row, at] = 0
    with torch.no_grad():
        assert is_finite(model_of(head)(values, attention_mask=mask)[0])


@given(
    st.lists(st.integers(0, 4), max_size=4).map(tuple),
    st.sampled_from([torch.float32, torch.int64, torch.bool, torch.complex64]),
)
def test_models_refuse_other_shapes_and_types(shape, dtype):
    with torch.no_grad():
        try:
            output = model_of(CSCModel)(torch.ones(shape, dtype=dtype))
        except ValueError as error:
            assert "(batch, samples)" in str(error)
        else:
            assert is_finite(output.source_embeddings) and len(shape) == 2 and dtype != torch.complex64


# --- audio of any length ---------------------------------------------------------------------------------------------


@given(waveforms(max_samples=10_000), st.floats(-1, 3) | st.just(10.0), st.floats(-0.1, 1))
def test_chunked_audio(waveform, chunk_seconds, overlap_seconds):
    if 0 < chunk_seconds < 0.1:  # many chunks, which test nothing more
        chunk_seconds = 0.1
    try:
        separated = separate(model_of(CSCForSpeechSeparation), waveform, chunk_seconds, overlap_seconds)
    except ValueError as error:
        assert len(str(error)) > 15
        with pytest.raises(ValueError):
            embed(model_of(CSCModel), waveform, chunk_seconds, overlap_seconds)
        return
    assert np.isfinite(waveform).all() and separated.sources.shape == (2, len(waveform))
    embedded = embed(model_of(CSCModel), waveform, chunk_seconds, overlap_seconds)
    for found in (separated, embedded):
        assert np.isfinite(found.activity).all()
        np.testing.assert_allclose(np.linalg.norm(found.embeddings, axis=1), 1, atol=1e-4)
    assert np.isfinite(separated.sources).all()


# --- pipelines -------------------------------------------------------------------------------------------------------

ARRAYS = st.fixed_dictionaries({"array": waveforms(), "sampling_rate": st.sampled_from([RATE, 8000, 1, 10**9])})
OTHERS = [None, 7, "", "no/such/file.wav", "../../etc/passwd", "\0", {}, {"audio": None}, {"bytes": None}, object()]
ANYTHING = (
    waveforms() | damaged_files() | wav_with_header().map(lambda file: file[0]) | ARRAYS | st.sampled_from(OTHERS)
)


@given(ANYTHING, ANYTHING)
def test_verification(enrolment, test):
    verify = pipe_of("speaker-verification", CSCForPreTraining)
    try:
        result = verify((enrolment, test))
    except ValueError as error:
        assert len(str(error)) > 15
        return
    assert is_finite(result) and -1.001 <= result["score"] <= 1.001
    assert result["decision"] is None or not result["silent"]


@given(st.lists(ANYTHING, max_size=3), ANYTHING)
def test_enrolment(recordings, test):
    verify = pipe_of("speaker-verification", CSCForPreTraining)
    verify.enrolled.clear()
    try:
        verify.enrol("anna", recordings)
        (result,) = verify(test) if verify.enrolled else [{}]
    except ValueError as error:
        assert len(str(error)) > 15
        return
    np.testing.assert_allclose(np.linalg.norm(verify.enrolled["anna"].embedding), 1, atol=1e-4)
    assert is_finite(result)


@given(ANYTHING)
def test_separation(recording):
    pipe = pipe_of("speech-separation", CSCForSpeechSeparation)
    try:
        result = pipe(recording)
    except ValueError as error:
        assert len(str(error)) > 15
        return
    assert is_finite(result)


@given(LEVELS, st.integers(2000, 20_000), st.sampled_from([RATE, 8000, 44100]))
def test_constants_are_silence_for_pipelines(level, length, rate):
    audio = {"array": np.full(length, level, np.float32), "sampling_rate": rate}
    verify = pipe_of("speaker-verification", CSCForPreTraining)
    result = verify((audio, audio))
    assert result["silent"] and result["decision"] is None
    with pytest.raises(ValueError, match="silent"):
        verify.enrol("anna", audio)
    assert not pipe_of("speech-separation", CSCForSpeechSeparation)(audio)["sources"].any()
