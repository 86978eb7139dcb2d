# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The released models: they load as from the Hub, do what their cards say, and their cards are up to date."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoFeatureExtractor, pipeline

import csc_hf
from csc_hf import CSCConfig, CSCForPreTraining
from csc_hf.data.utterances import stream_utterances
from csc_hf.evaluation.calibration import Calibration
from csc_hf.evaluation.trials import build_trials
from csc_hf.evaluation.verification import evaluate

ROOT = Path(__file__).resolve().parents[1]
CARDS = ROOT / "model_cards"
MODELS = sorted(path.parent.name for path in CARDS.glob("*/model.safetensors"))
CLASSES = {name: getattr(csc_hf, CSCConfig.from_pretrained(CARDS / name).architectures[0]) for name in MODELS}
ENROLMENTS = {"csc-small": ["mean", "attention"], "csc-small-label-free": ["mean"], "csc-small-scorer": ["scorer"]}
"""What each is calibrated for."""
REMEDY = "python model_cards/release.py {} brings it up to date"


def results_of(name: str) -> dict:
    return json.loads((CARDS / name / "results.json").read_text())


def test_there_is_one():
    assert ENROLMENTS.keys() == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_it_loads_where_csc_hf_is_not_installed(name, fresh_python):
    code = """
import sys
sys.modules["csc_hf"] = None  # not importable
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
config = AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)
own_class = get_class_from_dynamic_module(f"modeling_csc.{config.architectures[0]}", sys.argv[1])
for some_class, options in ((own_class, {}), (AutoModel, {"trust_remote_code": True})):
    model, loading = some_class.from_pretrained(sys.argv[1], output_loading_info=True, **options)
    assert not loading["missing_keys"] and not loading["mismatched_keys"], loading
extractor = AutoFeatureExtractor.from_pretrained(sys.argv[1], trust_remote_code=True)
noise = torch.randn(16000, generator=torch.Generator().manual_seed(0)).numpy()
embeddings = model.eval()(**extractor(noise, sampling_rate=16000, return_tensors="pt")).source_embeddings
assert embeddings.isfinite().all()
"""
    process = fresh_python(code, CARDS / name)
    assert process.returncode == 0, process.stderr


def test_it_returns_what_it_returned_when_it_was_released():
    """Whatever the code has become since."""
    seconds = torch.arange(16000, dtype=torch.float64) / 16000
    chirp = torch.sin(2 * torch.pi * (100 * seconds + 900 * seconds**2)) * torch.cos(6 * torch.pi * seconds)
    model, loading = CSCForPreTraining.from_pretrained(CARDS / "csc-small", output_loading_info=True)
    assert not any(loading.values()), loading
    with torch.no_grad():
        output = model.eval()(chirp.float()[None])
    embeddings = [
        [0.0020389, 0.0121648, 0.0350706, 0.0035834, 0.1057639],
        [0.0153368, -0.0087101, 0.0511723, 0.0171942, 0.0745464],
    ]
    activity = [-2.138537, -0.021883]
    sources = [[0.018363, -0.012602, -0.0416564], [-0.0002451, -0.382485, -0.7065178]]
    torch.testing.assert_close(output.source_embeddings[0, :, :5], torch.tensor(embeddings), atol=2e-6, rtol=0)
    torch.testing.assert_close(output.source_activity[0], torch.tensor(activity), atol=2e-5, rtol=0)
    when = [[-0.625272, -0.9982754, -1.4873784], [-0.1181434, -0.238982, -0.5056967]]
    torch.testing.assert_close(output.source_frame_activity[0, :, 10:13], torch.tensor(when), atol=2e-5, rtol=0)
    torch.testing.assert_close(output.sources[0, :, 8000:8003], torch.tensor(sources), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_its_folder_is_a_whole_repository(name):
    names = "README.md config.json preprocessor_config.json model.safetensors results.json training.yaml"
    for file in names.split():
        assert (CARDS / name / file).stat().st_size > 0
    assert (CARDS / name / "model.safetensors").stat().st_size < 25e6
    for file in ("configuration_csc.py", "feature_extraction_csc.py", "modeling_csc.py"):
        assert (CARDS / name / file).resolve() == ROOT / "csc_hf" / file, REMEDY.format(name)


@pytest.mark.parametrize("name", MODELS)
def test_its_card_says_what_was_measured(name):
    specification = importlib.util.spec_from_file_location("release", CARDS / "release.py")
    release = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(release)
    card = release.render(name)
    assert (CARDS / name / "README.md").read_text().strip() == str(card).strip(), REMEDY.format(name)
    figures = {figure.dataset_config: figure.metric_value for figure in card.data.eval_results}
    conditions = results_of(name)["evaluations"][ENROLMENTS[name][0]]["results"][name]["conditions"]
    assert figures == {condition: round(100 * of["eer"], 2) for condition, of in conditions.items()}


@pytest.mark.release
@pytest.mark.parametrize("name", MODELS)
def test_its_figures(name):
    """On the synthetic voices that ship, which it has not heard."""
    expected = results_of(name)["evaluations"]["demo"]["results"][name]
    trials = build_trials(
        stream_utterances(ROOT / "examples" / "demo_speech" / "test" / "*.parquet", "test", source_column=None),
        conditions=list(expected["conditions"]),
    )
    assert trials.sha256 == expected["trials_sha256"]
    found = evaluate(CLASSES[name].from_pretrained(CARDS / name).eval(), trials, enrolment=ENROLMENTS[name][0])
    for condition, figures in expected["conditions"].items():
        assert found["conditions"][condition]["eer"] == pytest.approx(figures["eer"], abs=0.01), condition
    if expected["si_sdr_improvement"] is not None:
        assert found["si_sdr_improvement"] == pytest.approx(expected["si_sdr_improvement"], abs=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_calibrated(name):
    model = CLASSES[name].from_pretrained(CARDS / name)
    assert {calibration["enrolment"] for calibration in model.config.calibration.values()} == set(ENROLMENTS[name])
    for stored in model.config.calibration.values():
        calibration = Calibration.load(model, stored["condition"], stored["enrolment"])
        assert calibration.to_dict() == stored
        assert calibration.scale > 0 and abs(calibration.llr(calibration.threshold)) < 1e-6


@pytest.mark.parametrize("name, enrolment", [(name, kind) for name, kinds in ENROLMENTS.items() for kind in kinds])
def test_it_decides_who_speaks_in_the_recordings_that_ship(name, enrolment, caplog):
    verify = pipeline("speaker-verification", model=str(CARDS / name), enrolment=enrolment)
    audio = ROOT / "examples" / "audio"
    assert verify(audio / "anna.flac", audio / "meeting.flac")["decision"]
    assert not verify(audio / "anna.flac", audio / "ben.flac")["decision"]
    assert "no calibration" not in caplog.text


@pytest.mark.parametrize("name", MODELS)
def test_its_feature_extractor_fits(name):
    extractor = AutoFeatureExtractor.from_pretrained(CARDS / name)
    assert extractor.sampling_rate == CLASSES[name].from_pretrained(CARDS / name).config.sampling_rate
