# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""CSCFeatureExtractor: what it accepts, what it returns, what it refuses and how it says so."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from csc_hf import CSCConfig, CSCFeatureExtractor
from csc_hf.feature_extraction_csc import HIGH_PASS_HZ, high_pass

MIN_SAMPLES = 400


@pytest.fixture
def extractor() -> CSCFeatureExtractor:
    return CSCFeatureExtractor(min_samples=MIN_SAMPLES)


def noise(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(length).astype(np.float32)


class Decoder:
    """The part of AudioDecoder that the extractor uses. Like that, it is no sequence."""

    def __init__(self, samples: np.ndarray, sampling_rate: int):
        self.samples, self.sampling_rate = torch.from_numpy(samples), sampling_rate

    def get_all_samples(self):
        return SimpleNamespace(data=self.samples, sample_rate=self.sampling_rate)


# --- what it accepts -------------------------------------------------------------------------------------------------


def filtered(recording: np.ndarray) -> np.ndarray:
    return high_pass(recording, 16000)[0]


SAME_RECORDING = {
    "float32 array": lambda x: x,
    "float64 array": lambda x: x.astype(np.float64),
    "list of floats": lambda x: x.tolist(),
    "tuple of floats": lambda x: tuple(x.tolist()),
    "list of NumPy floats": list,
    "tensor": torch.from_numpy,
    "tensor that requires grad": lambda x: torch.from_numpy(x).requires_grad_(),
    "array with a channel axis": lambda x: x[None],
    "tensor with a channel axis": lambda x: torch.from_numpy(x)[None],
    "array with the channel last": lambda x: x[:, None],
    "row of an Audio column": lambda x: {"array": x, "sampling_rate": 16000, "path": "a.wav"},
    "AudioDecoder": lambda x: Decoder(x[None], 16000),
}


@pytest.mark.parametrize("form", SAME_RECORDING)
def test_every_form_of_a_recording_gives_the_same_values(extractor, form):
    first, second = noise(1000), noise(1000, seed=1)
    convert = SAME_RECORDING[form]

    one = extractor(convert(first), sampling_rate=16000, return_tensors="np")
    two = extractor([convert(first), convert(second)], sampling_rate=16000, return_tensors="np")

    assert one["input_values"].dtype == np.float32
    np.testing.assert_array_equal(one["input_values"], filtered(first)[None])
    np.testing.assert_array_equal(two["input_values"], np.stack([filtered(first), filtered(second)]))
    assert two["attention_mask"].tolist() == [[1] * 1000] * 2


def test_bfloat16_tensor_is_accepted(extractor):
    recording = torch.from_numpy(noise(1000)).bfloat16()
    values = extractor(recording, sampling_rate=16000, return_tensors="pt")["input_values"]
    assert values.dtype == torch.float32
    np.testing.assert_array_equal(values, filtered(recording.float().numpy())[None])


@pytest.mark.parametrize("offset", [0.0, 0.01, -5.0, 1e30])
def test_the_offset_is_taken_off_and_the_level_is_kept(extractor, offset):
    nothing = extractor(np.full(1000, offset), sampling_rate=16000, return_tensors="np")["input_values"]
    assert not nothing.any(), "a constant of any level is silence from the first sample on"
    if abs(offset) < 1e3:  # else the voice is below the rounding of float32
        tone = 1e-3 * np.sin(2 * np.pi * 200 * np.arange(16000) / 16000)
        values = extractor(tone + offset, sampling_rate=16000, return_tensors="np")["input_values"][0]
        assert np.abs(values[1000:]).max() == pytest.approx(1e-3, rel=1e-2)
        assert abs(values[-8000:].mean()) < 1e-7


def test_what_is_filtered_is_not_filtered_again(extractor):
    recording = np.random.default_rng(0).normal(0.3, 0.1, 2000).astype(np.float32)
    once = extractor(recording, sampling_rate=16000, return_tensors="np")["input_values"][0]
    np.testing.assert_array_equal(once, filtered(recording))
    again = extractor(once, sampling_rate=16000, return_tensors="np", is_filtered=True)["input_values"][0]
    np.testing.assert_array_equal(again, once)
    with pytest.raises(ValueError, match="NaN"):
        extractor(once * np.nan, sampling_rate=16000, is_filtered=True)


def test_high_pass_is_the_butterworth_filter_of_second_order():
    """As SciPy designs and applies it, for an independent check."""
    signal = pytest.importorskip("scipy.signal")
    for rate in (8000, 16000, 48000):
        samples = 0.1 * noise(10 * rate) + 0.3
        sections = signal.butter(2, HIGH_PASS_HZ, "high", fs=rate, output="sos")
        expected = signal.sosfilt(sections, samples.astype(np.float64) - samples[0])
        np.testing.assert_allclose(high_pass(samples, rate)[0], expected, atol=1e-7)


@pytest.mark.parametrize("size", [1, 7, 63, 64, 65, 1000])
def test_blocks_are_filtered_as_the_whole(size):
    samples = noise(1000) + 3
    state, blocks = None, []
    for start in range(-size, len(samples), size):  # the first one is empty
        block, state = high_pass(samples[max(start, 0) : start + size], 16000, state)
        blocks.append(block)
    np.testing.assert_array_equal(np.concatenate(blocks), high_pass(samples, 16000)[0])
    assert state.shape == (3,) and state[0] == samples[0]


def test_high_pass_of_what_fills_float32_is_finite():
    assert np.isfinite(high_pass(np.tile(np.float32([3e38, -3e38]), 500), 16000)[0]).all()


def test_silence_is_accepted(extractor):
    values = extractor(np.zeros(1000), sampling_rate=16000, return_tensors="np")["input_values"]
    assert not values.any()


def test_input_is_not_changed(extractor):
    recording = noise(10)
    before = recording.copy()
    extractor(recording, sampling_rate=16000)["input_values"][0, :5] = 7
    np.testing.assert_array_equal(recording, before)


# --- padding and truncation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, MIN_SAMPLES - 1, MIN_SAMPLES, MIN_SAMPLES + 1])
@pytest.mark.parametrize("padding", [False, True])
def test_short_audio_is_padded_to_one_segment_and_masked(extractor, length, padding):
    recording = noise(length)
    batch = extractor(recording, sampling_rate=16000, padding=padding, return_tensors="np")
    padded = max(length, MIN_SAMPLES)

    assert batch["input_values"].shape == batch["attention_mask"].shape == (1, padded)
    np.testing.assert_array_equal(batch["input_values"][0, :length], filtered(recording))
    assert not batch["input_values"][0, length:].any()
    assert batch["attention_mask"][0].tolist() == [1] * length + [0] * (padded - length)


def test_default_min_samples_is_one_segment_of_the_default_model():
    assert CSCFeatureExtractor().min_samples == CSCConfig().segment_samples


def test_padding_to_the_longest_is_on_the_right_and_masked(extractor):
    lengths = [900, 1500, 100]
    recordings = [noise(length) + 10 for length in lengths]
    batch = extractor(recordings, sampling_rate=16000, padding=True, return_tensors="pt")

    assert batch["input_values"].shape == (3, 1500)
    for row, mask, recording in zip(batch["input_values"], batch["attention_mask"], recordings, strict=True):
        np.testing.assert_array_equal(row[: len(recording)], filtered(recording))
        assert not row[len(recording) :].any()
        assert mask.tolist() == [1] * len(recording) + [0] * (1500 - len(recording))


def test_padding_to_max_length_and_to_a_multiple(extractor):
    recordings = [noise(900), noise(1500)]
    to_max = extractor(recordings, sampling_rate=16000, padding="max_length", max_length=2000, return_tensors="np")
    to_multiple = extractor(
        recordings, sampling_rate=16000, padding=True, pad_to_multiple_of=1024, return_tensors="np"
    )
    assert to_max["input_values"].shape == (2, 2000)
    assert to_multiple["input_values"].shape == (2, 2048)
    assert to_max["attention_mask"].sum(-1).tolist() == to_multiple["attention_mask"].sum(-1).tolist() == [900, 1500]


def test_truncation_keeps_the_beginning(extractor):
    recordings = [noise(900), noise(1500, seed=1), noise(100, seed=2)]
    batch = extractor(
        recordings, sampling_rate=16000, padding=True, truncation=True, max_length=1000, return_tensors="np"
    )
    assert batch["input_values"].shape == (3, 1000)
    np.testing.assert_array_equal(batch["input_values"][1], filtered(recordings[1])[:1000])
    assert batch["attention_mask"].sum(-1).tolist() == [900, 1000, 100]


def test_without_padding_lengths_may_differ_and_pad_completes_them(extractor):
    """As a data collator does: extract one by one, pad the batch later. The mask of short audio must survive."""
    lengths = [100, 900]
    rows = [extractor(noise(length), sampling_rate=16000) for length in lengths]
    rows = [{key: value[0] for key, value in row.items()} for row in rows]
    batch = extractor.pad(rows, padding=True, return_tensors="pt")
    together = extractor([noise(length) for length in lengths], sampling_rate=16000, padding=True, return_tensors="pt")

    assert [len(row["input_values"]) for row in rows] == [MIN_SAMPLES, 900]
    for key in ("input_values", "attention_mask"):
        torch.testing.assert_close(batch[key], together[key], rtol=0, atol=0)


def test_attention_mask_can_be_left_out():
    assert "attention_mask" in CSCFeatureExtractor()(noise(2000), sampling_rate=16000)
    without = CSCFeatureExtractor(return_attention_mask=False)
    batch = without([noise(2000), noise(3000)], sampling_rate=16000, padding=True, return_tensors="pt")
    assert {key: value.shape for key, value in batch.items()} == {"input_values": (2, 3000)}
    asked = without(noise(2000), sampling_rate=16000, return_attention_mask=True)
    assert list(asked) == ["input_values", "attention_mask"]


# --- what it refuses -------------------------------------------------------------------------------------------------


def broken(value: float) -> np.ndarray:
    recording = noise(1000)
    recording[123] = value
    return recording


REFUSED = {
    "wrong rate in the row": ({"array": noise(1000), "sampling_rate": 8000}, r"8000 Hz.*16000 Hz.*resample"),
    "wrong rate of a decoder": (Decoder(noise(1000)[None], 44100), r"44100 Hz.*16000 Hz.*resample"),
    "two channels first": (np.stack([noise(1000)] * 2), r"\(2, 1000\).*one channel.*average"),
    "two channels last": (torch.zeros(1000, 2), r"\(1000, 2\).*one channel.*average"),
    "three axes": (np.zeros((1, 1, 1000)), r"\(1, 1, 1000\).*one channel"),
    "NaN": (broken(np.nan), r"1 NaN or infinite.*nan.* at 123;"),
    "infinity": (broken(-np.inf), r"1 NaN or infinite.*-inf.* at 123;"),
    "beyond float32": (np.full(10, 1e300), r"10 NaN or infinite"),
    "empty array": (np.zeros(0), r"empty"),
    "empty list": ([], r"empty"),
    "empty decoder": (Decoder(np.zeros((1, 0), dtype=np.float32), 16000), r"empty"),
    "int16 PCM": (np.zeros(1000, dtype=np.int16), r"int16.*32768"),
    "integer tensor": (torch.zeros(1000, dtype=torch.int32), r"int32.*32768"),
    "list of integers": ([0, 1, 2], r"int64.*32768"),
    "undecoded row": ({"bytes": b"", "path": "a.wav"}, r"\['bytes', 'path'\].*decode"),
    "path": ("a.wav", r"<U5.*decode"),
    "uneven list": ([0.1, [0.2, 0.3]], r"one waveform"),
    "nothing": (None, r"object"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unusable_recordings_are_refused_by_name(extractor, case):
    recording, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"^raw_speech .*{message}"):
        extractor(recording, sampling_rate=16000)
    with pytest.raises(ValueError, match=rf"^raw_speech\[1\] .*{message}"):
        extractor([noise(1000), recording], sampling_rate=16000)


def test_wrong_sampling_rate_is_refused(extractor):
    with pytest.raises(ValueError, match=r"8000 Hz.*16000 Hz.*resample"):
        extractor(noise(1000), sampling_rate=8000)
    with pytest.raises(ValueError, match=r"8000 Hz"):
        extractor({"array": noise(1000), "sampling_rate": 16000}, sampling_rate=8000)
    CSCFeatureExtractor(sampling_rate=8000)(noise(1000), sampling_rate=8000)


@pytest.mark.parametrize("options", [{"padding": "max_length"}, {"truncation": True}])
def test_max_length_below_one_segment_is_refused(extractor, options):
    with pytest.raises(ValueError, match=rf"max_length={MIN_SAMPLES - 1}.*min_samples={MIN_SAMPLES}"):
        extractor(noise(1000), sampling_rate=16000, max_length=MIN_SAMPLES - 1, **options)
    extractor(noise(1000), sampling_rate=16000, max_length=MIN_SAMPLES, **options)


def test_unknown_arguments_are_refused(extractor):
    with pytest.raises(TypeError, match="paddding"):
        extractor(noise(1000), sampling_rate=16000, paddding=True)


@pytest.mark.parametrize("argument, value", [("padding_side", "left"), ("min_samples", 0), ("feature_size", 80)])
def test_impossible_settings_are_refused(argument, value):
    with pytest.raises(ValueError, match=f"{argument}=.*{value}"):
        CSCFeatureExtractor(**{argument: value})


@pytest.mark.release
def test_a_missing_sampling_rate_is_warned_about_once():
    code = (
        "import numpy as np; from csc_hf import CSCFeatureExtractor as E; e = E(); x = np.zeros(2000)\n"
        "e({'array': x, 'sampling_rate': 16000}); e(x, sampling_rate=16000)\n"
        "print('--', file=__import__('sys').stderr)\n"
        "e([x, x]); e(x)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    quiet, loud = result.stderr.split("--")
    assert "sampling_rate" not in quiet
    assert loud.count("was not told the sampling_rate") == 1


# --- saving ----------------------------------------------------------------------------------------------------------


def test_settings_survive_saving(tmp_path):
    CSCFeatureExtractor(min_samples=123, sampling_rate=8000, return_attention_mask=False).save_pretrained(tmp_path)
    loaded = CSCFeatureExtractor.from_pretrained(tmp_path)
    assert (loaded.min_samples, loaded.sampling_rate, loaded.return_attention_mask) == (123, 8000, False)
    with pytest.raises(ValueError, match='padding_side="left"'):
        CSCFeatureExtractor.from_pretrained(tmp_path, padding_side="left")


def test_saved_folder_loads_where_csc_hf_cannot_be_imported(tmp_path, fresh_python):
    CSCFeatureExtractor(min_samples=123).save_pretrained(tmp_path)
    code = (
        "import sys; sys.modules['csc_hf'] = sys.modules['torchaudio'] = None\n"
        "import numpy as np; from transformers import AutoFeatureExtractor\n"
        f"e = AutoFeatureExtractor.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)\n"
        "print(type(e).__name__, e(np.zeros(5), sampling_rate=16000)['input_values'].shape)"
    )
    result = fresh_python(code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[-2] == "CSCFeatureExtractor (1, 123)"
