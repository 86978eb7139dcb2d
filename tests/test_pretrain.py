# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The pre-training script, launched by Accelerate as users launch it, on the speech that ships."""

import contextlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import TOKEN, Hub, running_hub
from safetensors.torch import load_file
from transformers import AutoModel

import csc_hf  # noqa: F401, registers the Auto classes

ROOT = Path(__file__).resolve().parents[1]

TINY = {
    "train_data": str(ROOT / "examples" / "demo_speech"),
    "max_train_steps": 4,
    "per_device_train_batch_size": 5,
    "warmup_steps": 1,
    "logging_steps": 1,
    "reservoir_seconds": 60,
    "eval_seconds": 1.0,
    "eval_recordings": 2,
    "checkpointing_steps": 2,
    "eval_steps": 2,
    "model": {"preset": "tiny", "front_end": "stft"},
    "mixing": {"seconds": 0.5},
}


def launch(
    folder: Path,
    *arguments: str,
    options: dict | None = None,
    processes: int = 1,
    hub: Hub | None = None,
    status: int = 0,
) -> str:
    """Runs the script with its output in `folder`; returns what it printed."""
    config = folder.parent / f"{folder.name}.yaml"
    config.write_text(yaml.safe_dump(TINY | (options or {})))
    launcher = ["accelerate.commands.launch", "--cpu", "--num_processes=1", "--num_machines=1"]
    launcher += ["--mixed_precision=no", "--dynamo_backend=no"]
    if processes > 1:  # Accelerate's launcher starts several CPU processes by MPI only
        launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    script = [str(ROOT / "examples" / "pretrain.py"), "--config", str(config), "--output_dir", str(folder)]
    environment = {}
    if hub is not None:
        environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(folder.parent / "cache")}
    process = subprocess.run(
        [sys.executable, "-m", *launcher, *script, "--cpu_threads", "1", *arguments],
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | {"ACCELERATE_USE_CPU": "true"} | environment,
    )
    assert process.returncode == status, process.stdout + process.stderr
    return process.stdout + process.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain") / "run"
    printed = launch(folder, "--with_tracking", "--ema_decay", "0.5")
    return folder, printed


def test_it_reports_what_it_learnt(finished):
    folder, printed = finished
    results = json.loads((folder / "results.json").read_text())
    assert [entry["step"] for entry in results["curve"]] == [0, 2, 4]
    assert len({entry["trials_sha256"] for entry in results["curve"]}) == 1
    for entry in results["curve"]:
        for condition in ("clean", "mix0", "mix0_mix0"):
            eer = entry["conditions"][condition]["eer"]
            assert 0 <= eer <= 1 and f"{100 * eer:.1f}" in printed
        assert f"SI-SDR improvement {entry['si_sdr_improvement']:.1f} dB" in printed
    assert results["curve"][0]["si_sdr_improvement"] != results["curve"][1]["si_sdr_improvement"]
    assert f'AutoModel.from_pretrained("{folder}")' in printed
    training = results["training"]
    assert f"Contrastive accuracy {training['contrastive_accuracy']:.2f}, mutual information" in printed
    assert list((folder / "logs" / "pretrain").glob("events.out.tfevents.*"))


def test_what_it_saves_is_a_hub_repository(finished):
    folder, _ = finished
    for repository in (folder, folder / "checkpoint-2", folder / "checkpoint-4"):
        names = {path.name for path in repository.iterdir()}
        assert {
            "README.md",
            "config.json",
            "configuration_csc.py",
            "feature_extraction_csc.py",
            "model.safetensors",
            "modeling_csc.py",
            "preprocessor_config.json",
            "results.json",
        } <= names
    assert not list(folder.glob("*.unfinished"))
    card = (folder / "README.md").read_text()
    assert "library_name: transformers" in card and "Held-out speakers after 4 steps" in card
    model = AutoModel.from_pretrained(folder)
    assert type(model).__name__ == "CSCModel" and model(torch.randn(1, 8000)).source_embeddings.isfinite().all()


def test_a_resumed_run_equals_one_never_stopped(finished):
    folder, _ = finished
    resumed = folder.parent / "resumed"
    shutil.copytree(folder / "checkpoint-2", resumed / "checkpoint-2")
    launch(resumed, "--resume_from_checkpoint", "latest", "--ema_decay", "0.5")
    expected = load_file(folder / "model.safetensors")
    for name, tensor in load_file(resumed / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name
    curves = [json.loads((run / "results.json").read_text())["curve"] for run in (folder, resumed)]
    assert curves[0] == curves[1] and len(curves[1]) == 3
    assert not torch.equal(
        expected["csc.slots.weight"], load_file(folder / "checkpoint-2" / "model.safetensors")["csc.slots.weight"]
    )


def test_two_processes_train_on_different_groups(tmp_path):
    printed = launch(tmp_path / "two", processes=2, options={"max_train_steps": 2})
    states = [
        json.loads((tmp_path / "two" / "checkpoint-2" / "training_state" / f"stream_{rank}.json").read_text())
        for rank in (0, 1)
    ]
    held = [{name for _, _, name in state["held"]} for state in states]
    assert held[0] and held[1] and held[0].isdisjoint(held[1])
    assert "After 2 steps" in printed


def test_checkpoints_and_the_final_model_are_pushed(tmp_path):
    push = ["--push_to_hub", "--hub_model_id", "user/csc-demo", "--with_tracking"]
    options = {"max_train_steps": 2, "eval_split": "none"}
    with running_hub() as hub:
        launch(tmp_path / "run", *push, options=options, hub=hub)
        files = hub.repositories["user/csc-demo"]
        assert files["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
        assert not [name for name in files if "/" in name], "logs, checkpoints and training state stay at home"
        assert 'from_pretrained("user/csc-demo"' in files["README.md"].decode()
        # A Hub out of order does not stop the training, and is told at the end.
        hub.fail_commits = 403
        printed = launch(tmp_path / "again", *push, options=options, hub=hub, status=1)
        assert "Push to user/csc-demo failed" in printed and "Saved in" in printed


def test_unlabelled_speech_trains_without_evaluation(tmp_path):
    options = {"max_train_steps": 2, "speaker_column_name": "none", "id_column_name": "none", "eval_split": "none"}
    printed = launch(
        tmp_path / "run", "--gradient_accumulation_steps", "2", "--mixed_precision", "bf16", options=options
    )
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["curve"] == [] and results["training"]["loss"] == results["training"]["loss"]
    assert "Saved in" in printed


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"learning_rat": 1.0}, "learning_rat"),
        ({"train_data": "nowhere/at/all"}, "nowhere/at/all"),
        ({"model": {"preset": "huge"}}, "huge"),
        ({"model": {"hiden_size": 3}}, "hiden_size"),
        ({"mixing": {"num_identities": 3}}, "num_identities"),
        ({"train_data": "some/*.parquet"}, "--eval_data"),
        ({"eval_split": "train"}, "--eval_data"),
        ({"id_column_name": "key"}, "key"),
    ],
)
def test_wrong_options_are_named(options, named, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(TINY | options))
    specification = importlib.util.spec_from_file_location("pretrain", ROOT / "examples" / "pretrain.py")
    pretrain = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(pretrain)
    printed = io.StringIO()
    with pytest.raises((SystemExit, FileNotFoundError)) as error, contextlib.redirect_stderr(printed):
        pretrain.Trainer(pretrain.parse_args(["--config", str(config), "--output_dir", str(tmp_path / "run")]))
    assert named in printed.getvalue() + str(error.value)
