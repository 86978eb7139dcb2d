# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Real `pipeline()` calls, with tiny models and with ones whose speakers are known."""

import copy
import pickle

import numpy as np
import pytest
import soundfile
import torch
from test_long_audio import RATE, SignSeparator, conversation, sorted_by_sign
from transformers import pipeline

from csc_hf import (
    CSCConfig,
    CSCFeatureExtractor,
    CSCForPreTraining,
    CSCForSequenceClassification,
    CSCForSpeechSeparation,
    CSCForXVector,
    CSCModel,
    CSCModelOutput,
)
from csc_hf.evaluation.calibration import Calibration, fit_calibration
from csc_hf.long_audio import SAME_SPEAKER, separate
from csc_hf.streaming import FALSE_ACCEPT_COST

TINY = {"front_end": "stft", "initializer_range": 0.3}
POSITIVE, NEGATIVE = conversation((1, "p"), seed=1), conversation((1, "n"), seed=2)
BOTH, SILENCE = conversation((1, "pn"), seed=3), conversation((1, ""))


@pytest.fixture(autouse=True)
def no_high_pass(monkeypatch):
    """Most voices here are the signs of samples, which a filter would mix. What it does to a constant is tested with
    other voices, in tests/test_hostile_recordings.py."""
    for module in ("long_audio", "streaming", "enrolment", "feature_extraction_csc"):
        monkeypatch.setattr(f"csc_hf.{module}.high_pass", lambda samples, rate, state=None: (samples, np.zeros(0)))


class SignEncoder(CSCModel):
    """Knows two voices, the positive and the negative part of the waveform; embedding 0 or 1. A slot without signal is
    idle, and has the embedding of the voice that is not there."""

    def __init__(self):
        super().__init__(CSCConfig.tiny())
        self.eval()

    def forward(self, input_values):
        energy = torch.stack([input_values.clamp(min=0), input_values.clamp(max=0)], dim=1).square().sum(-1)
        return CSCModelOutput(
            source_embeddings=torch.eye(2, self.config.speaker_embedding_size)[None],
            source_activity=torch.where(energy > 0, 1 + energy / energy.sum(), -5.0),
        )


def calibrated(model, condition: str = "clean", shift: float = 0.0, enrolment: str = "mean"):
    """The model, with a threshold of 0.5 + shift."""
    scores = np.array([0.8, 0.9, 0.4, 0.2, 0.1, 0.6]) + shift
    fit_calibration(scores, np.array([1, 1, 1, 0, 0, 0]), condition, "abc", enrolment=enrolment).store(model)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved pre-training checkpoint."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    CSCForPreTraining(CSCConfig.tiny(**TINY)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder_folder(folder, tmp_path_factory):
    """A saved encoder, without separator and cross-attention."""
    encoder_folder = tmp_path_factory.mktemp("encoder")
    CSCModel.from_pretrained(folder).save_pretrained(encoder_folder)
    return encoder_folder


# --- speaker verification --------------------------------------------------------------------------------------------


def test_every_form_of_a_trial_gives_the_cosine_of_the_model(folder, tmp_path):
    rng = np.random.default_rng(0)
    first, second = (0.1 * rng.standard_normal(RATE).astype(np.float32) for _ in range(2))
    paths = [str(tmp_path / name) for name in ("first.wav", "second.wav")]
    for path, samples in zip(paths, (first, second), strict=True):
        soundfile.write(path, samples, RATE, subtype="FLOAT")
    contents = [open(path, "rb").read() for path in paths]
    arrays = [{"array": samples, "sampling_rate": RATE} for samples in (first, second)]

    model = CSCModel.from_pretrained(folder).eval()
    with torch.no_grad():
        enrolment, test = (model(torch.from_numpy(samples)[None]) for samples in (first, second))
    embedding = enrolment.source_embeddings[0, enrolment.source_activity[0].argmax()]
    active = (test.source_activity[0] > 0) | (test.source_activity[0] == test.source_activity[0].max())
    expected = (test.source_embeddings[0, active] @ embedding).max().item()

    verify = pipeline("speaker-verification", model=str(folder))
    results = [
        verify(first, second),
        verify(*paths),
        verify(tuple(contents)),
        verify({"enrolment": arrays[0], "test": arrays[1]}),
        verify([first], second),
        *verify([(first, second), {"enrolment": paths[0], "test": paths[1]}]),
        *verify(trial for trial in [tuple(paths)]),
    ]
    assert [result["score"] for result in results] == pytest.approx([expected] * 8, abs=1e-5)


def test_only_active_slots_take_part():
    verify = pipeline("speaker-verification", model=calibrated(SignEncoder()))
    expected = {"silent": False, "condition": "clean"}
    same = verify(POSITIVE, BOTH)
    assert same.items() >= (expected | {"score": 1.0, "decision": True, "several_speakers": True}).items()
    assert same["llr"] > 1
    assert verify(NEGATIVE, BOTH)["score"] == 1.0
    other = verify(POSITIVE, NEGATIVE)  # the idle slot of the test has the embedding of the enrolled speaker
    assert other.items() >= (expected | {"score": 0.0, "decision": False, "several_speakers": False}).items()
    assert other["llr"] < -1 and 0 < other["threshold"] < 1


def test_of_an_enrolment_the_most_active_slot_counts():
    verify = pipeline("speaker-verification", model=calibrated(SignEncoder()))
    mostly_negative = np.concatenate([POSITIVE, 3 * NEGATIVE])
    assert verify(mostly_negative, NEGATIVE)["score"] == 1.0
    assert verify(mostly_negative, POSITIVE)["score"] == 0.0


def test_several_recordings_are_averaged():
    verify = pipeline("speaker-verification", model=calibrated(SignEncoder()))
    score = verify([POSITIVE, POSITIVE, NEGATIVE], POSITIVE)["score"]
    assert score == pytest.approx(2 / np.sqrt(5))


def test_attention_is_the_trained_cross_attention(folder, encoder_folder):
    rng = np.random.default_rng(0)
    waveforms = [0.1 * rng.standard_normal(length).astype(np.float32) for length in (RATE, RATE // 2, RATE)]
    verify = pipeline("speaker-verification", model=str(folder), enrolment="attention")
    model = verify.model
    num_calls = []
    model.csc.register_forward_hook(lambda *_: num_calls.append(1))
    with torch.no_grad():
        first, second, test = (model.csc(torch.from_numpy(samples)[None]) for samples in waveforms)
        memory = [output.source_hidden_states.reshape(-1, model.config.hidden_size) for output in (first, second)]
        activity = test.source_activity[0]
        queries = test.source_embeddings[0, (activity > 0) | (activity == activity.max())]
        answers = [model.aggregate(query[None], torch.cat(memory)[None])[0] for query in queries]
    expected = max((query @ answer).item() for query, answer in zip(queries, answers, strict=True))
    num_calls.clear()
    assert verify(waveforms[:2], waveforms[2])["score"] == pytest.approx(expected, abs=1e-5)
    assert len(num_calls) == 3, "one forward pass a recording"
    verify.enrol("anna", waveforms[:2])
    assert verify(waveforms[2])[0]["score"] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="CSCModel lacks: use a checkpoint of CSCForPreTraining"):
        pipeline("speaker-verification", model=str(encoder_folder), enrolment="attention")
    with pytest.raises(ValueError, match="'median'"):
        pipeline("speaker-verification", model=model, enrolment="median")


def test_who_is_enrolled_meanwhile_counts_from_the_next_call_on(monkeypatch):
    """A service enrols in one thread and identifies in another."""
    verify = pipeline("speaker-verification", model=calibrated(SignSeparator()))
    verify.enrol("nils", POSITIVE)
    verify.enrol("pia", NEGATIVE)
    score = verify._score

    def enrolling_meanwhile(*arguments):
        verify.enrolled[f"new {len(verify.enrolled)}"] = verify.enrolled["pia"]
        return score(*arguments)

    monkeypatch.setattr(verify, "_score", enrolling_meanwhile)
    assert [result["speaker"] for result in verify(POSITIVE)] == ["nils", "pia"]
    assert len(verify.compare(verify.enrolled["nils"].embedding)) == 4


def test_enrolled_speakers():
    verify = pipeline("speaker-verification", model=calibrated(SignEncoder()))
    with pytest.raises(ValueError, match="nobody is enrolled"):
        verify(POSITIVE)
    verify.enrol("nils", POSITIVE)
    verify.enrol("pia", [POSITIVE, POSITIVE])
    verify.enrol("nils", [NEGATIVE])  # takes the place of the first
    results = verify(POSITIVE)
    assert [(result["speaker"], result["decision"]) for result in results] == [("pia", True), ("nils", False)]
    assert [len(results) for results in verify([POSITIVE, BOTH])] == [2, 2]
    assert "speaker" not in verify(POSITIVE, BOTH)


@pytest.mark.parametrize("enrolment", ["mean", "attention"])
def test_an_embedding_is_compared_as_the_recording_that_it_comes_from(folder, enrolment):
    model = calibrated(CSCForPreTraining.from_pretrained(folder), enrolment=enrolment).eval()
    verify = pipeline("speaker-verification", model=model, enrolment=enrolment)
    verify.enrol("positive", POSITIVE)
    verify.enrol("both", [POSITIVE, NEGATIVE])
    with torch.no_grad():
        found = model.base_model(torch.from_numpy(BOTH)[None])
    active = (found.source_activity[0] > 0) | (found.source_activity[0] == found.source_activity[0].max())
    results = [verify.compare(embedding.numpy()) for embedding in found.source_embeddings[0, active]]
    for expected in verify(BOTH):
        of_speaker = [one for result in results for one in result if one["speaker"] == expected["speaker"]]
        best = max(of_speaker, key=lambda one: one["score"])
        assert best["score"] == pytest.approx(expected["score"], abs=1e-5)
        assert best["decision"] == expected["decision"] and best["llr"] == pytest.approx(expected["llr"], abs=1e-3)
    assert [one["decision"] for one in verify.compare(found.source_embeddings[0, 0].numpy(), threshold=-1.1)] == [
        True
    ] * 2
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        verify.compare(np.zeros(3))
    verify.enrolled.clear()
    with pytest.raises(ValueError, match="nobody is enrolled"):
        verify.compare(found.source_embeddings[0, 0].numpy())


def test_calibration_decides_unless_the_caller_does(caplog):
    model = SignEncoder()
    verify = pipeline("speaker-verification", model=model)
    assert caplog.text.count("no calibration") == 1
    bare = verify(POSITIVE, BOTH)
    assert (bare["llr"], bare["decision"], bare["threshold"], bare["condition"]) == (None,) * 4
    assert verify(POSITIVE, BOTH, threshold=1.0)["decision"] is True
    assert verify(POSITIVE, BOTH, threshold=1.1)["decision"] is False
    assert caplog.text.count("no calibration") == 1, "once is enough"

    calibrated(calibrated(model), "mix0", shift=-0.3)
    verify = pipeline("speaker-verification", model=model)
    assert verify(POSITIVE, BOTH) == verify(POSITIVE, BOTH, condition="mix0"), "two voices are heard in one side"
    assert verify(BOTH, POSITIVE) == verify(BOTH, POSITIVE, condition="mix0")
    alone = verify(POSITIVE, POSITIVE)
    assert alone == verify(POSITIVE, POSITIVE, condition="clean") and alone["threshold"] > 0.4
    verify.enrol("one", POSITIVE)
    verify.enrol("two", BOTH)
    assert {of["speaker"]: of["condition"] for of in verify(POSITIVE)} == {"one": "clean", "two": "mix0"}
    assert {of["condition"] for of in verify(BOTH)} == {"mix0"}
    assert {of["condition"] for of in verify.compare(np.eye(1, model.config.speaker_embedding_size)[0])} == {"mix0"}
    clean, mix0 = (verify(POSITIVE, BOTH, condition=name) for name in ("clean", "mix0"))
    assert (clean["condition"], mix0["condition"]) == ("clean", "mix0")
    assert clean["threshold"] - mix0["threshold"] == pytest.approx(0.3)
    own = verify(POSITIVE, BOTH, threshold=0.9)
    assert (own["threshold"], own["condition"], own["llr"], own["decision"]) == (0.9, None, None, True)
    verify = pipeline("speaker-verification", model=model, condition="mix0")
    assert verify(POSITIVE, BOTH) == mix0
    pipeline("speaker-verification", model=SignEncoder(), threshold=0.5)
    assert caplog.text.count("no calibration") == 1, "the caller's threshold is all that is needed"


def test_a_calibration_decides_for_its_kind_of_enrolment_only(folder, caplog):
    model = calibrated(CSCForPreTraining.from_pretrained(folder))
    attend = pipeline("speaker-verification", model=model, enrolment="attention")
    assert "no calibration for the enrolment 'attention'" in caplog.text
    bare = attend(POSITIVE, BOTH)
    assert (bare["llr"], bare["decision"], bare["threshold"], bare["condition"]) == (None,) * 4
    with pytest.raises(ValueError, match="no calibration of enrolment='attention' for condition 'clean'"):
        attend(POSITIVE, BOTH, condition="clean")
    caplog.clear()
    calibrated(model, shift=0.2, enrolment="attention")
    for enrolment in ("mean", "attention"):
        result = pipeline("speaker-verification", model=model, enrolment=enrolment)(POSITIVE, BOTH)
        assert result["threshold"] == Calibration.load(model, "clean", enrolment).threshold
        assert result["decision"] is not None
    assert "no calibration" not in caplog.text


def test_weights_that_the_checkpoint_lacks_are_told_loudly(folder, encoder_folder, caplog):
    for path in (folder, encoder_folder):
        pipeline("speaker-verification", model=str(path), threshold=0.5)
    pipeline("speech-separation", model=str(folder))
    assert "MEANS NOTHING" not in caplog.text
    run = pipeline("speech-separation", model=str(encoder_folder))
    assert caplog.text.count("MEANS NOTHING") == 1 and "csc.separator" in caplog.text
    # Whoever hands a model over, that one too, may have trained it meanwhile.
    pipeline("speech-separation", model=run.model)
    assert caplog.text.count("MEANS NOTHING") == 1


def _loaded_into_another(model):
    other = CSCModel(model.config)
    other.load_state_dict(model.state_dict())
    return other


def _assigned_to_another(model):
    with torch.device("meta"):
        other = CSCModel(model.config)
    other.load_state_dict(model.state_dict(), assign=True)
    return other


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.to(torch.bfloat16).float(),
        copy.deepcopy,
        lambda model: torch.optim.swa_utils.AveragedModel(model).module,
        lambda model: pickle.loads(pickle.dumps(model)),
        _loaded_into_another,
        _assigned_to_another,
        torch.compile,
        lambda model: CSCForXVector.from_pretrained(model.name_or_path),  # a new classifier does not matter here
    ],
)
def test_there_is_no_false_alarm_of_weights(change, encoder_folder, caplog):
    model = CSCModel.from_pretrained(encoder_folder).eval()
    verify = pipeline("speaker-verification", model=change(model), threshold=0.5)
    assert "MEANS NOTHING" not in caplog.text
    expected = pipeline("speaker-verification", model=model, threshold=0.5)(POSITIVE, BOTH)
    assert verify(POSITIVE, BOTH)["score"] == pytest.approx(expected["score"], abs=0.05)


# --- as in the pipelines of Transformers -----------------------------------------------------------------------------


def assert_alike(found, expected, path: str = "result") -> None:
    """Equal, but for rounding of numbers."""
    assert type(found) is type(expected), path
    if isinstance(found, dict):
        assert list(found) == list(expected), path
        for key in found:
            assert_alike(found[key], expected[key], f"{path}[{key!r}]")
    elif isinstance(found, list):
        assert len(found) == len(expected), path
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_alike(one, other, f"{path}[{number}]")
    elif isinstance(found, float | np.ndarray):
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=path)
    else:
        assert found == expected, path


def test_batches_give_what_single_calls_give(folder):
    recordings = [
        BOTH[: RATE // 2],
        {"audio": {"array": BOTH, "sampling_rate": RATE}, "id": 7},
        conversation((3, "pn")),
        BOTH[:1],
        conversation((2, "pn"), seed=1),
    ]
    loading = {"batch_size": 2, "local_files_only": True, "dtype": "float32", "device": "cpu"}
    verify = pipeline("speaker-verification", model=str(folder), threshold=0.5, **loading)
    verify.enrol("anna", POSITIVE)
    separate = pipeline("speech-separation", model=str(folder), chunk_seconds=2.0, overlap_seconds=0.5, **loading)
    extract = pipeline("target-speaker-extraction", model=str(folder), enrolment=BOTH, threshold=0.5, **loading)
    trials = [{"enrolment": POSITIVE, "test": recording, "label": 1} for recording in recordings]  # rows, as well
    for run, inputs in ((verify, recordings), (separate, recordings), (extract, recordings), (verify, trials)):
        expected = [run(recording) for recording in inputs]
        for batch_size in (None, 100):
            assert_alike(run(inputs, batch_size=batch_size), expected)
        assert_alike(list(run(recording for recording in inputs)), expected)
    assert verify([]) == []
    assert len(verify(Recordings(recordings), batch_size=3)) == 5, "as those of Transformers' own pipelines"


class Recordings(torch.utils.data.Dataset):
    """A data set that notes what has been read."""

    def __init__(self, recordings):
        self.recordings, self.read = recordings, []

    def __len__(self):
        return len(self.recordings)

    def __getitem__(self, number):
        self.read.append(number)
        return self.recordings[number]


def test_recordings_of_like_length_go_through_the_model_together(folder):
    verify = pipeline("speaker-verification", model=str(folder), threshold=0.5)
    verify.enrol("anna", POSITIVE)
    shapes = []
    verify.model.csc.register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(tuple(inputs["input_values"].shape)), with_kwargs=True
    )
    lengths = [300, 9000, 100, 10000, 200, 8000, 12 * RATE]
    recordings = Recordings([BOTH[:length] if length <= RATE else conversation((12, "pn")) for length in lengths])
    results = verify(recordings, batch_size=3)
    assert recordings.read == [], "nothing is read before it is asked for"
    assert len(list(results)) == 7
    # The long one has two chunks. The second goes alone.
    assert shapes == [(3, 300), (3, 10000), (1, 10 * RATE), (1, 10 * RATE)]
    one_by_one = iter(verify(recordings))
    recordings.read.clear()
    next(one_by_one)
    assert recordings.read == [0]


@pytest.mark.parametrize("samples", [SILENCE, SILENCE[:1], 1e-6 * POSITIVE])
def test_silence_is_flagged_and_nothing_is_decided(folder, samples):
    model = calibrated(CSCModel.from_pretrained(folder))
    verify = pipeline("speaker-verification", model=model)
    for trial in ((samples, BOTH), (BOTH, samples), ([BOTH, samples], BOTH)):
        result = verify(trial)
        assert result["silent"] and result["decision"] is None
        assert np.isfinite([result["score"], result["llr"]]).all()
    with pytest.raises(ValueError, match="a recording of 'silent' is silent, number 2"):
        verify.enrol("silent", [BOTH, samples])
    verify.enrol("both", BOTH)
    assert [(result["speaker"], result["silent"]) for result in verify(samples)] == [("both", True)]


@pytest.mark.parametrize("num_samples", [1, 10, 400])
def test_short_audio_has_finite_scores(folder, num_samples):
    model = calibrated(CSCModel.from_pretrained(folder))
    result = pipeline("speaker-verification", model=model)(BOTH[:num_samples], BOTH)
    assert np.isfinite(result["score"]) and result["decision"] in (True, False) and not result["silent"]
    separation = pipeline("speech-separation", model=str(folder))(BOTH[:num_samples])
    assert separation["sources"].shape == (2, num_samples) and np.isfinite(separation["sources"]).all()


@pytest.mark.parametrize("level", [1e-30, 1e19, 1e37])
def test_recordings_of_any_level_have_finite_results(level, folder):
    loud = (level * BOTH).astype(np.float32)
    result = pipeline("speaker-verification", model=str(folder), enrolment="attention")(loud, BOTH)
    separation = pipeline("speech-separation", model=str(folder))(loud)
    assert np.isfinite(result["score"]) and np.isfinite(separation["sources"]).all()
    assert np.abs(separation["sources"]).max() > 0.1 * np.abs(loud).max()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((POSITIVE, np.where(np.arange(RATE) == 7, np.nan, POSITIVE)), "nan|NaN"),
        ((POSITIVE, "missing.wav"), "test: .*missing.wav"),
        (([POSITIVE, POSITIVE[:0]], POSITIVE), "recording 2 of the enrolment: .* no samples"),
        (([], POSITIVE), "without recordings"),
        ((POSITIVE, POSITIVE, POSITIVE), "a tuple of 3"),
        ({"enrollment": POSITIVE, "test": POSITIVE}, r"\['enrollment', 'test'\]"),
    ],
)
def test_bad_trials_are_named(inputs, message):
    with pytest.raises(ValueError, match=message):
        pipeline("speaker-verification", model=SignEncoder())(inputs)


def test_a_model_in_training_mode_is_taken_out_of_it(folder):
    for task in ("speaker-verification", "speech-separation"):
        run = pipeline(task, model=CSCForSpeechSeparation.from_pretrained(folder).train())
        trial = (POSITIVE, BOTH) if task == "speaker-verification" else BOTH
        assert not run.model.training and run(trial)


def test_unknown_options_are_named(folder):
    with pytest.raises(TypeError, match="treshold"):
        pipeline("speaker-verification", model=SignEncoder())(POSITIVE, BOTH, treshold=0.5)
    with pytest.raises(TypeError, match="chunk_length"):
        pipeline("speech-separation", model=str(folder), chunk_length=3)


# --- speech separation -----------------------------------------------------------------------------------------------


def test_separation_of_short_and_long_audio(folder):
    model = CSCForSpeechSeparation.from_pretrained(folder).eval()
    run = pipeline("speech-separation", model=str(folder))
    waveform = conversation((5, "pn"))
    for options in ({}, {"chunk_seconds": 2.0, "overlap_seconds": 0.5}):
        result, expected = run(waveform, **options), separate(model, waveform, **options)
        assert np.array_equal(result["sources"], expected.sources)
        assert np.array_equal(result["embeddings"], expected.embeddings)
        assert np.array_equal(result["activity"], expected.activity)
        assert result["sampling_rate"] == RATE
    assert len(run([waveform, BOTH])) == 2
    with pytest.raises(ValueError, match="nan|NaN"):
        run(np.full(100, np.nan))


def test_sources_do_not_clip_where_the_recording_does_not():
    class Opposite(SignSeparator):
        """Its sources are far louder than their sum."""

        def forward(self, input_values):
            output = super().forward(input_values)
            noise = 50 * torch.randn(input_values.shape, generator=torch.Generator().manual_seed(0))
            output.sources = torch.stack([input_values + noise, -noise], dim=1)
            return output

    loud = 0.9 * BOTH / np.abs(BOTH).max()
    assert np.abs(separate(Opposite(), loud).sources).max() > 1.5
    result = pipeline("speech-separation", model=Opposite())(loud)
    assert np.abs(result["sources"]).max() == pytest.approx(1.0)
    clipped = pipeline("speech-separation", model=SignSeparator())(2 * loud)
    np.testing.assert_allclose(clipped["sources"].sum(axis=0), 2 * loud, atol=1e-2)


# --- target speaker extraction ---------------------------------------------------------------------------------------


def test_one_voice_is_extracted():
    mixture = conversation((7, "pn"))
    positive, negative = sorted_by_sign(separate(SignSeparator(), mixture, 2.0, 0.5).sources)
    extract = pipeline("target-speaker-extraction", model=SignSeparator(noise=0.02), threshold=0.5, enrolment=POSITIVE)
    result = extract(mixture)
    assert sorted(result) == ["present", "sampling_rate", "score", "source", "threshold"]
    np.testing.assert_allclose(result["source"], positive, atol=1e-3)
    assert result["present"] and result["score"] > 0.9 and result["threshold"] == 0.5
    assert not extract(mixture, threshold=1.1)["source"].any()
    extract.enrol([NEGATIVE, NEGATIVE])
    np.testing.assert_allclose(extract(mixture)["source"], negative, atol=1e-3)
    alone = extract(POSITIVE)
    assert not alone["present"] and not alone["source"].any() and alone["score"] < 0.3
    silent = extract(SILENCE)
    assert (silent["present"], silent["score"]) == (False, None) and not silent["source"].any()


def test_the_threshold_of_extraction_is_by_the_calibration(caplog):
    def accepts(threshold: float, calibration: Calibration) -> bool:
        """Whether theirs is FALSE_ACCEPT_COST times as likely there as at the threshold of verification."""
        more = calibration.llr(threshold) - calibration.llr(calibration.threshold)
        return np.exp(more) == pytest.approx(FALSE_ACCEPT_COST)

    extract = pipeline("target-speaker-extraction", model=calibrated(SignSeparator()), enrolment=POSITIVE)
    assert accepts(extract(BOTH)["threshold"], Calibration.load(extract.model))
    calibrated(extract.model, "mix0", shift=-0.3)
    assert accepts(extract(BOTH)["threshold"], Calibration.load(extract.model, "mix0"))  # others may talk, too
    calibrated(extract.model, "mix5", shift=-0.2)
    with pytest.raises(ValueError, match="'clean', 'mix0', 'mix5'"):
        extract(BOTH)
    assert accepts(extract(BOTH, condition="mix0")["threshold"], Calibration.load(extract.model, "mix0"))
    assert "IS A GUESS" not in caplog.text
    bare = pipeline("target-speaker-extraction", model=SignSeparator(), enrolment=POSITIVE)
    assert bare(BOTH)["threshold"] == SAME_SPEAKER and "IS A GUESS" in caplog.text


def test_an_enrolment_for_extraction_is_checked(folder):
    extract = pipeline("target-speaker-extraction", model=str(folder), threshold=0.5)
    with pytest.raises(ValueError, match="nobody is enrolled"):
        extract(BOTH)
    for recordings, message in (([], "without recordings"), ([BOTH, SILENCE], "silent"), ("missing.wav", "missing")):
        with pytest.raises(ValueError, match=message):
            extract.enrol(recordings)
    with pytest.raises(TypeError, match="treshold"):
        extract(BOTH, treshold=0.5)


# --- saving, and the stock pipelines ---------------------------------------------------------------------------------


def test_a_saved_pipeline_is_a_model(folder, tmp_path):
    verify = pipeline("speaker-verification", model=calibrated(CSCModel.from_pretrained(folder)))
    verify.save_pretrained(tmp_path / "saved")
    saved = {file.name for file in (tmp_path / "saved").glob("*.py")}
    assert saved <= {f"{part}_csc.py" for part in ("configuration", "feature_extraction", "modeling")}
    again = pipeline("speaker-verification", model=str(tmp_path / "saved"))
    assert again(POSITIVE, BOTH) == verify(POSITIVE, BOTH)
    assert again(POSITIVE, BOTH)["condition"] == "clean"


def test_stock_audio_classification(tmp_path):
    config = CSCConfig.tiny(**TINY, id2label={0: "calm", 1: "angry", 2: "glad"}, label2id={})
    model = CSCForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    extractor = CSCFeatureExtractor(min_samples=config.segment_samples)
    extractor.save_pretrained(tmp_path)
    classify = pipeline("audio-classification", model=str(tmp_path))
    long, short = BOTH, BOTH[:400]
    for samples in (long, {"array": long, "sampling_rate": RATE}, short):
        array = samples["array"] if isinstance(samples, dict) else samples
        with torch.no_grad():
            expected = model(torch.from_numpy(array)[None]).logits[0].softmax(-1)
        found = {entry["label"]: entry["score"] for entry in classify(samples)}
        assert found == pytest.approx(dict(zip(("calm", "angry", "glad"), expected.tolist(), strict=True)), abs=1e-5)
    padded = classify([short, long], batch_size=2, top_k=1)
    assert [entry[0]["score"] for entry in padded] == pytest.approx(
        [classify(short)[0]["score"], classify(long)[0]["score"]], abs=1e-5
    )
    with pytest.raises(ValueError, match="NaN"):
        classify(np.full(RATE, np.nan, np.float32))


def test_stock_feature_extraction(folder):
    # That pipeline is made for text: what turns the input into tensors is what it calls the tokenizer.
    model = CSCModel.from_pretrained(folder).eval()
    extractor = CSCFeatureExtractor(min_samples=model.config.segment_samples)
    extract = pipeline("feature-extraction", model=model, tokenizer=extractor, tokenize_kwargs={"sampling_rate": RATE})
    with torch.no_grad():
        expected = model(torch.from_numpy(BOTH)[None]).last_hidden_state
    torch.testing.assert_close(extract(BOTH, return_tensors=True), expected, atol=1e-5, rtol=1e-5)
