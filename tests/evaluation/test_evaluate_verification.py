# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from speech import encode, make_rows, write
from tones import tone
from transformers import pipeline

from csc_hf import CSCConfig, CSCFeatureExtractor, CSCForPreTraining
from csc_hf.evaluation.metrics import equal_error_rate
from csc_hf.evaluation.plots import det_figure, histogram_figure

EXAMPLE = Path(__file__).parents[2] / "examples" / "evaluate_verification.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def voices(first: int, count: int, folder: Path) -> str:
    """Parquet files of speakers who are tones in noise, of two sources."""
    rng = np.random.default_rng(first)
    rows = []
    for speaker in range(first, first + count):
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
    return f"{write(folder, rows, shards=2)}/*.parquet"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voices")
    return {
        "test": voices(0, 6, folder / "test"),
        "dev": voices(6, 6, folder / "dev"),
        "cohort": voices(12, 6, folder / "cohort"),
        "noise": f"{write(folder / 'noise', make_rows(4, prefix='noise'))}/*.parquet",
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    CSCForPreTraining(CSCConfig.tiny(front_end="stft")).save_pretrained(folder)
    CSCFeatureExtractor().save_pretrained(folder)
    return str(folder)


def test_all_of_it(script, data, model, spectrum, tmp_path, capsys):
    script.main(
        [model, spectrum, "--data", data["test"], "--calibrate_on", data["dev"], "--cohort", data["cohort"]]
        + [
            "--noise_data",
            data["noise"],
            "--source_column_name",
            "source",
            "--seconds",
            "0.5",
            "--num_resamples",
            "20",
        ]
        + ["--conditions", "clean", "noise0", "mix0", "--cache_dir", f"{tmp_path}/cache"]
        + ["--output_dir", f"{tmp_path}/out", "--write_trials", f"{tmp_path}/trials"]
    )
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(report["results"]) == [model, spectrum] and report["seed"] == 0
    assert "--calibrate_on" in report["command"]
    assert report["commit"] is None or re.fullmatch("[0-9a-f]{40}", report["commit"])
    for results in report["results"].values():
        assert list(results["conditions"]) == ["clean", "noise0", "mix0"]
        for figures in results["conditions"].values():
            low, high = figures["eer_interval"]
            assert 0 <= low <= high <= 1 and figures["cllr"] > 0 and figures["eer_within_source"] is not None
            assert f"{100 * figures['eer']:.1f}" in printed
        assert results["trials_sha256"][:12] in printed
    assert report["results"][model]["conditions"]["mix0"]["si_sdr_improvement"] is not None
    assert printed.splitlines()[-4].split()[-2:] == [model, spectrum]  # the comparison
    for name in (model.strip("/").replace("/", "_"), spectrum):
        rows = (tmp_path / "out" / name / "scores.csv").read_text().splitlines()
        assert rows[0] == "condition,enrolment,test,is_target,score,llr"
        results = report["results"][model]["conditions"].values()
        assert len(rows) == 1 + sum(figures["num_target"] + figures["num_nontarget"] for figures in results)
        for picture in ("det.png", "scores.png"):
            assert (tmp_path / "out" / name / picture).read_bytes().startswith(b"\x89PNG")
    # Three data sets and models: recordings of clean, noise0 and mix0, of the trials and of the development set, once
    # for each model; and the cohort's.
    assert len(list((tmp_path / "cache").iterdir())) == 2 * (3 + 3 + 1)

    # The trials that were written, by the other door.
    script.main(
        [spectrum, "--trials", f"{tmp_path}/trials/mix0.txt", "--root", f"{tmp_path}/trials", "--num_resamples", "0"]
        + ["--cohort", data["cohort"], "--seconds", "0.5", "--source_column_name", "source"]
    )
    eer = report["results"][spectrum]["conditions"]["mix0"]["eer"]
    assert capsys.readouterr().out.splitlines()[-1].split() == ["mix0", f"{100 * eer:.1f}"]


def test_a_calibration_is_stored_where_pipelines_find_it(script, data, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    for file in folder.glob("*.py"):  # as in the model card of csc-small
        file.unlink()
        file.symlink_to(EXAMPLE.parents[1] / "csc_hf" / file.name)
    command = [str(folder), "--data", data["test"], "--calibrate_on", data["dev"], "--source_column_name", "source"]
    command += ["--seconds", "0.5", "--num_resamples", "0", "--conditions", "basic", "--store_calibration"]
    script.main([*command, "clean"])
    script.main([*command, "mix0"])
    stored = CSCConfig.from_pretrained(folder).calibration
    assert set(stored) == {"clean/mean", "mix0/mean"} and stored["clean/mean"]["condition"] == "clean"
    assert stored["clean/mean"]["threshold"] != stored["mix0/mean"]["threshold"]
    rng = np.random.default_rng(0)
    recordings = rng.normal(0, 0.1, (2, 8000)).astype(np.float32)
    verify = pipeline("speaker-verification", model=str(folder), condition="mix0")
    result, of_mean = verify(*recordings), stored["mix0/mean"]
    assert result["threshold"] == of_mean["threshold"] and result["decision"] in (True, False)
    assert result["llr"] == pytest.approx(of_mean["scale"] * result["score"] + of_mean["offset"])

    script.main([*command, "mix0", "--enrolment", "attention"])
    stored = CSCConfig.from_pretrained(folder).calibration
    assert stored["mix0/attention"]["enrolment"] == "attention" and stored["mix0/mean"] == of_mean
    attend = pipeline("speaker-verification", model=str(folder), condition="mix0", enrolment="attention")
    assert attend(*recordings)["threshold"] == stored["mix0/attention"]["threshold"] != of_mean["threshold"]


def test_several_recordings_enrol_and_what_is_left_out_is_told(script, data, model, tmp_path, capsys):
    rows = make_rows(8) + [{"id": "broken", "audio": {"bytes": b"?"}, "speaker_id": "speaker-0", "source": "studio"}]
    rows.append({"id": "silent", "audio": {"bytes": encode(np.zeros(900))}, "speaker_id": "new", "source": "studio"})
    rows.append(rows[0] | {"id": "nobody", "speaker_id": None})
    for row in rows:
        row["audio"].setdefault("path", None)
    path = f"{write(tmp_path / 'rows', rows)}/*.parquet"
    script.main(
        [model, "--data", path, "--seconds", "0.1", "--enrolment_recordings", "2", "--enrolment", "attention"]
        + ["--num_resamples", "0", "--conditions", "basic"]
    )
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("mix0 ") and "mix0_mix0" not in out
    assert "3 recordings left out, such as broken (not decodable (cannot decode" in err
    assert "silent (silent), nobody (no speaker)" in err
    assert "1 speakers with too little speech left out, such as speaker-2" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --data or --trials"),
        (["--data", "a", "--trials", "b"], "give --data or --trials"),
        (["--trials", "b"], "--trials needs --root"),
        (["--trials", "b", "--root", ".", "--calibrate_on", "c"], "leave out --calibrate_on"),
        (["--data", "a", "--store_calibration", "clean"], "needs --calibrate_on"),
        (["--data", "a", "--calibrate_on", "b", "--store_calibration", "loud"], "loud: not among the conditions"),
        (["--data", "a", "--calibrate_on", "b", "--store_calibration", "clean"], "which 'mfcc' is not"),
    ],
)
def test_options_that_do_not_go_together_are_named(script, options, message, capsys):
    with pytest.raises(SystemExit):
        script.main(["mfcc", *options])
    assert message in capsys.readouterr().err


def test_trials_of_any_kind_of_file_are_heard_in_their_whole_length(script, spectrum, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for speaker in range(3):
        for number in range(2):
            samples = tone(4 * speaker, int(rng.integers(5000, 9000)), seed=number)
            soundfile.write(tmp_path / f"{speaker}{number}.flac", samples / 2, 16000)
    pairs = [(a, b) for a in range(3) for b in range(3)]
    (tmp_path / "list.txt").write_text("".join(f"{int(a == b)} {a}0.flac {b}1.flac\n" for a, b in pairs))
    script.main([spectrum, "--trials", f"{tmp_path}/list.txt", "--root", str(tmp_path), "--num_resamples", "0"])
    assert capsys.readouterr().out.splitlines()[-1].split() == ["list", "0.0"]


@pytest.mark.parametrize("labels", ["00", "11", "10"])
def test_results_are_written_where_a_class_is_missing(script, labels, spectrum, tmp_path, capsys):
    for name in "abc":
        soundfile.write(tmp_path / f"{name}.wav", tone(ord(name) % 7, 4000, seed=0), 16000)
    (tmp_path / "list.txt").write_text(f"{labels[0]} a.wav b.wav\n{labels[1]} a.wav c.wav\n")
    script.main(
        [spectrum, "--trials", f"{tmp_path}/list.txt", "--root", str(tmp_path), "--output_dir", f"{tmp_path}/out"]
    )
    out, err = capsys.readouterr()
    figures = json.loads((tmp_path / "out" / "results.json").read_text())["results"][spectrum]["conditions"]["list"]
    assert len((tmp_path / "out" / spectrum / "scores.csv").read_text().splitlines()) == 3
    one_class = labels != "10"
    assert [figures[key] is None for key in ("eer", "eer_interval", "min_dcf", "retrieval_accuracy")] == [
        one_class
    ] * 4
    assert (out.split()[-1] == "-") == ("no plots of list" in err) == one_class
    assert (tmp_path / "out" / spectrum / "det.png").exists() != one_class


def test_a_det_plot_crosses_the_diagonal_at_the_equal_error_rate():
    rng = np.random.default_rng(0)
    is_target = rng.random(20000) < 0.3
    scores = rng.normal(0, 1, 20000) + 2 * is_target  # EER: normal deviate -1
    (axes,) = det_figure({"normal": (scores, is_target)}).axes
    diagonal, line, dot = axes.lines
    assert [*dot.get_xdata(), *dot.get_ydata()] == pytest.approx([-1, -1], abs=0.05)
    # Normal scores of equal variance: a straight line, x + y = -2.
    x, y = line.get_xdata(), line.get_ydata()
    middle = (np.abs(x) < 1.5) & (np.abs(y) < 1.5)
    assert middle.sum() > 100 and np.abs(x[middle] + y[middle] + 2).max() < 0.15
    (legend,) = axes.get_legend().get_texts()
    assert legend.get_text() == f"normal: EER {100 * equal_error_rate(scores, is_target):.1f} %"


def test_histograms_have_a_panel_for_each_name():
    is_target = np.arange(100) < 30
    scores = np.where(is_target, 0.9, 0.1)
    figure = histogram_figure({name: (scores, is_target) for name in ("clean", "mix0", "mix3", "noise0")})
    assert [axes.get_title() for axes in figure.axes] == ["clean", "mix0", "mix3", "noise0"]
    for axes in figure.axes:
        other, same = axes.containers
        assert [max(range(60), key=lambda bin: bars[bin].get_height()) for bars in (other, same)] == [0, 59]
