# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from speech import encode, write
from tones import tone

from csc_hf import CSCConfig, CSCForPreTraining
from csc_hf.data.utterances import stream_utterances

EXAMPLE = Path(__file__).parents[2] / "examples" / "evaluate_extraction.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Speakers who are tones in noise, of two sources."""
    rng = np.random.default_rng(0)
    rows = []
    for speaker in range(6):
        for number in range(3):
            audio = tone(speaker, 9000, seed=100 * speaker + number) + rng.normal(0, 0.05, 9000)
            rows.append(
                {
                    "id": f"s{speaker}-{number}",
                    "audio": {"bytes": encode(audio / 2), "path": None},
                    "speaker_id": f"s{speaker}",
                    "source": ("studio", "phone")[speaker % 2],
                }
            )
    return f"{write(tmp_path_factory.mktemp('voices'), rows)}/*.parquet"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    CSCForPreTraining(CSCConfig.tiny(front_end="stft", frame_activity=True)).save_pretrained(folder)
    return str(folder)


def test_all_of_it(script, data, model, tmp_path, capsys):
    options = [model, "--data", data, "--source_column_name", "source", "--seconds", "0.5", "--num_resamples", "20"]
    options += ["--latency", "0.2", "--output_dir", str(tmp_path)]
    script.main([*options, "--threshold", "-1"])
    everything = json.loads((tmp_path / "results.json").read_text())
    assert list(everything["results"]) == ["two talkers", "two others", "one other"]
    for condition, of in everything["results"].items():
        assert of["recordings"] == 12
        assert of["found"] == [1.0, 1.0, 1.0], "whatever the score is"
        assert (of["improvement"] is not None) == (condition == "two talkers")
        low, high = of["silent"][1:]
        assert 0 <= low <= of["silent"][0] <= high <= 1
    printed = capsys.readouterr().out
    assert "6 people, 12 recordings of 0.5 s, seed 0" in printed and everything["trials_sha256"][:12] in printed

    script.main([*options, "--threshold", "1.1"])
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    for of in results.values():
        assert (of["found"][0], of["silent"][0], of["improvement"]) == (0, 1, None), "all is silent"


def test_who_is_absent_is_in_no_signal(script, data):
    rows = stream_utterances(data, "test").rows()
    trials = script.build_trials(script.decode_usable(rows, {}), 0, 0.5, 2, ["mix0"])
    names = [recording.speaker for recording in trials.recordings]
    for number in range(len(names)):
        talkers = {names[n] for n in trials.talkers[number, :2]}
        enrolled = {
            condition: found[0]
            for condition, found in script.signals(trials, number, np.random.default_rng(0)).items()
        }
        assert names[enrolled["two talkers"]] == names[number] and enrolled["two talkers"] != number
        assert names[enrolled["two others"]] not in talkers
        assert names[enrolled["one other"]] != names[trials.talkers[number, 1]]
