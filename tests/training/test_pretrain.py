# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The pre-training script, launched by Accelerate as users launch it, on the speech that ships."""

import contextlib
import importlib.util
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import Hub, running_hub
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModel

import csc_hf  # noqa: F401, registers the Auto classes

ROOT = Path(__file__).resolve().parents[2]

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


def command(folder: Path, *arguments: str, options: dict | None = None, processes: int = 1) -> list[str]:
    """The command line that runs the script with its output in `folder`."""
    config = folder.parent / f"{folder.name}.yaml"
    config.write_text(yaml.safe_dump(TINY | (options or {})))
    launcher = ["--cpu", "--num_processes=1", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    if processes > 1:
        launcher = ["--config_file", str(ROOT / "examples" / "accelerate_configs" / "cpu_2_processes.yaml")]
    script = [str(ROOT / "examples" / "pretrain.py"), "--config", str(config), "--output_dir", str(folder)]
    return [sys.executable, "-m", "accelerate.commands.launch", *launcher, *script, "--cpu_threads", "1", *arguments]


def launch(folder: Path, *arguments: str, hub: Hub | None = None, status: int = 0, **options) -> str:
    """Runs the script; returns what it printed."""
    environment = {}
    if hub is not None:
        environment = hub.environment(folder.parent / "cache")
    process = subprocess.run(
        command(folder, *arguments, **options),
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | environment,
    )
    assert process.returncode == status, process.stdout + process.stderr
    return process.stdout + process.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain") / "run"
    arguments = ["--with_tracking", "--example_steps", "3", "--best_metric", "eer_mix0"]
    printed = launch(folder, "--ema_decay", "0.5", *arguments)
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


def test_it_logs_what_a_run_is_judged_by(finished):
    folder, _ = finished
    events = EventAccumulator(str(folder / "logs" / "pretrain"), size_guidance={"images": 0, "audio": 0})
    events.Reload()
    tags = events.Tags()
    expected = {"loss", "separation_loss", "contrastive_loss", "activity_loss", "mutual_information"}
    expected |= {"contrastive_accuracy", "contrastive_scale", "gradient_norm", "learning_rate", "si_sdr_improvement"}
    expected |= {"embedding_rank", "uniformity", "alignment", "data/epoch", "data/rows", "data/skipped"}
    expected |= {"audio_seconds_per_second", "real_time_factor", "data_waiting_share"}
    expected |= {"eval_si_sdr_improvement", "eval_eer_clean", "eval_retrieval_accuracy_mix0_mix0"}
    assert expected <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("eval_eer_clean")] == [0, 2, 4]
    values = {tag: [event.value for event in events.Scalars(tag)] for tag in tags["scalars"]}
    assert values["contrastive_scale"][0] > 0 and values["data/rows"][3] > values["data/rows"][0] > 0
    assert values["real_time_factor"][0] == pytest.approx(1 / values["audio_seconds_per_second"][0], rel=1e-5)
    results = json.loads((folder / "results.json").read_text())
    assert values["loss"][3] == pytest.approx(results["training"]["loss"])
    assert {"example_1/mixture", "example_1/estimate_1"} <= set(tags["audio"])
    assert {"example_1/spectrograms", "example_1/attention"} <= set(tags["images"])
    assert [event.step for event in events.Audio("example_1/mixture")] == [3]


def test_the_best_model_is_kept(finished):
    folder, printed = finished
    curve = json.loads((folder / "results.json").read_text())["curve"]
    best = min(curve, key=lambda entry: entry["conditions"]["mix0"]["eer"])
    assert json.loads((folder / "best" / "results.json").read_text())["curve"][-1] == best
    assert f"Best eer_mix0: {best['conditions']['mix0']['eer']:.3f} after {best['step']} steps" in printed
    same = {0: None, 2: folder / "checkpoint-2", 4: folder}[best["step"]]
    if same is not None:
        assert (folder / "best" / "model.safetensors").read_bytes() == (same / "model.safetensors").read_bytes()
    assert type(AutoModel.from_pretrained(folder / "best")).__name__ == "CSCModel"


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
    printed = launch(resumed, "--resume_from_checkpoint", "latest", "--ema_decay", "0.5")
    expected = load_file(folder / "model.safetensors")
    for name, tensor in load_file(resumed / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name
    curves = [json.loads((run / "results.json").read_text())["curve"] for run in (folder, resumed)]
    assert curves[0] == curves[1] and len(curves[1]) == 3
    assert not torch.equal(
        expected["csc.slots.weight"], load_file(folder / "checkpoint-2" / "model.safetensors")["csc.slots.weight"]
    )
    assert "not as it would have" not in printed


SLOW_WRITER = """
import runpy, sys, time
from pathlib import Path
from accelerate import Accelerator

save_state = Accelerator.save_state

def slow(self, folder):
    files = [Path(folder) / f".tmp{number}" for number in range(200)]
    end = time.monotonic() + 3
    while self.is_main_process and time.monotonic() < end:
        for file in files:
            file.touch()
        for file in files:
            file.unlink()
    save_state(self, folder)

Accelerator.save_state = slow
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_what_one_process_still_writes_does_not_disturb_the_others(tmp_path):
    """Writers make files that are gone again before another process can look at them."""
    options = {"max_train_steps": 2, "eval_split": "none", "mixing": {"seconds": 0.5}}
    started = command(tmp_path / "run", options=options, processes=2)
    (tmp_path / "slow.py").write_text(SLOW_WRITER)
    started.insert(started.index(str(ROOT / "examples" / "pretrain.py")), str(tmp_path / "slow.py"))
    process = subprocess.run(started, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "run" / "checkpoint-2" / "training_state").is_dir()


def batches(folder: Path) -> dict[str, list[dict]]:
    """What each process noted of its batches: step, losses, recipes."""
    return {path.name: [json.loads(line) for line in path.open()] for path in sorted(folder.glob("batches-*.jsonl"))}


@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2)])
def test_a_killed_run_equals_one_never_stopped(tmp_path, processes, workers):
    """Killed by SIGKILL, with all its processes, at any moment behind its first checkpoint."""
    options = {"max_train_steps": 10, "eval_split": "none", "mixing": {"seconds": 0.5, "reverb_probability": 0.2}}
    arguments = ["--log_batches", "--num_workers", str(workers), "--save_total_limit", "2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    launch(whole, *arguments, options=options, processes=processes)
    started = command(killed, *arguments, options=options, processes=processes)
    with subprocess.Popen(
        started, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        while not (killed / "checkpoint-2").exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.6))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    printed = launch(killed, *arguments, "--resume_from_checkpoint", "latest", options=options, processes=processes)
    assert "resumed from" in printed
    expected = batches(whole)
    assert len(expected) == processes
    for entries in expected.values():
        assert [entry["step"] for entry in entries] == list(range(10))
        assert len({json.dumps(entry["recipes"]) for entry in entries}) == 10
    assert batches(killed) == expected
    weights = load_file(whole / "model.safetensors")
    for name, tensor in load_file(killed / "model.safetensors").items():
        assert torch.equal(tensor, weights[name]), name
    for run in (whole, killed):
        assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-8"]


def test_another_number_of_processes_goes_on_and_says_so(tmp_path):
    """Two processes, then one with a worker; a setting was changed as well."""
    two = tmp_path / "two"
    printed = launch(two, processes=2, options={"max_train_steps": 2})
    assert "After 2 steps" in printed
    states = [json.loads((two / "checkpoint-2" / "training_state" / f"stream_{r}.json").read_text()) for r in (0, 1)]
    held = [{name for *_, name in state["shares"][0]["speech"]["held"]} for state in states]
    assert held[0] and held[1] and held[0].isdisjoint(held[1])
    arguments = ["--resume_from_checkpoint", "latest", "--num_workers", "1", "--learning_rate", "0.002"]
    printed = launch(two, *arguments, "--log_batches", options={"max_train_steps": 4})
    assert "made by 2 processes with 0 workers each, this run has 1 with 1" in printed
    assert "learning_rate was 0.001 before and is 0.002 now" in printed and "reservoir_seconds was" not in printed
    assert [entry["step"] for entry in batches(two)["batches-0.jsonl"]] == [2, 3]


SHARDED = """
import sys
import accelerate
from accelerate import DistributedType, FullyShardedDataParallelPlugin, PartialState

class Sharded(accelerate.Accelerator):
    '''Accelerate has no FSDP on CPUs, but all that it lacks is to call it so.'''
    def __init__(self, **options):
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
        )
        super().__init__(fsdp_plugin=plugin, **options)
        for state in (PartialState(), self.state):
            state.distributed_type = DistributedType.FSDP
        self.state.fsdp_plugin = plugin

accelerate.Accelerator = Sharded
sys.path.insert(0, sys.argv.pop(1))
import pretrain
trainer = pretrain.Trainer(pretrain.parse_args())
assert trainer.is_sharded and type(trainer.accelerator.unwrap_model(trainer.model)).__name__.startswith("FSDP")
sys.exit(trainer.run())
"""


def test_sharded_weights_are_saved_whole_and_resume(tmp_path):
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for folder in (whole, resumed):
        arguments = ["--with_tracking", "--example_steps", "2", "--mixed_precision", "bf16"]
        if folder is resumed:
            shutil.copytree(whole / "checkpoint-2", resumed / "checkpoint-2")
            arguments += ["--resume_from_checkpoint", "latest"]
        line = command(folder, *arguments, processes=2)
        place = line.index(str(ROOT / "examples" / "pretrain.py"))
        line[place : place + 1] = [str(script), str(ROOT / "examples")]
        process = subprocess.run(line, capture_output=True, text=True, timeout=500)
        assert process.returncode == 0, process.stdout + process.stderr
    results = [json.loads((folder / "results.json").read_text()) for folder in (whole, resumed)]
    assert [entry["step"] for entry in results[1]["curve"]] == [0, 2, 4]
    assert results[1]["training"]["loss"] == pytest.approx(results[0]["training"]["loss"], rel=1e-4)
    expected = load_file(whole / "model.safetensors")
    for name, tensor in load_file(resumed / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-4)
    assert {path.name for path in whole.glob("*.py")} == {
        "configuration_csc.py",
        "feature_extraction_csc.py",
        "modeling_csc.py",
    }


def test_several_corpora_noise_and_rooms(tmp_path):
    """What can be said in YAML only."""
    demo = TINY["train_data"]
    options = {
        "train_data": {
            "women": {"path": demo, "probability": 0.7},
            "men": {"path": demo, "split": "test", "speaker_column": "speaker_id"},
        },
        "noise_data": demo,
        "impulse_response_data": {"path": demo, "split": "test"},
        "eval_split": "none",
        "max_train_steps": 2,
        "mixing": {"seconds": 0.5, "supervision": "speaker", "noise_probability": 1.0, "reverb_probability": 1.0},
    }
    launch(tmp_path / "run", "--log_batches", options=options)
    recipes = [recipe for entry in batches(tmp_path / "run")["batches-0.jsonl"] for recipe in entry["recipes"]]
    corpora = {p["utterance"].split(":")[0] for r in recipes for source in r["sources"] for p in source["pieces"]}
    assert corpora == {"women", "men"}
    assert {r["noise"]["pieces"][0]["utterance"].split(":")[0] for r in recipes} == {"noise"}
    assert {source["room"].split(":")[0] for r in recipes for source in r["sources"]} == {"room"}


def test_a_collapse_stops_the_run(tmp_path):
    """In two dimensions, embeddings have a rank of two at most."""
    options = {"model": TINY["model"] | {"speaker_embedding_size": 2}, "max_train_steps": 20, "eval_split": "none"}
    printed = launch(tmp_path / "run", "--collapse_patience", "3", options=options, status=1)
    assert "since step 1 their effective rank is 1." in printed and "Remedy" in printed
    assert not (tmp_path / "run" / "model.safetensors").exists()


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
        hub.fail("commit", 403)
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


@pytest.fixture(scope="module")
def pretrain():
    specification = importlib.util.spec_from_file_location("pretrain", ROOT / "examples" / "pretrain.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def trainer(pretrain, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(TINY | {"eval_split": None, "mixed_precision": False, "weight_decay": 0.5}))
    return pretrain.Trainer(pretrain.parse_args(["--config", str(config), "--output_dir", str(tmp_path / "run")]))


def test_only_matrices_decay(trainer):
    decaying, others = trainer.optimizer.param_groups
    assert decaying["weight_decay"] == 0.5 and others["weight_decay"] == 0.0
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    assert {names[id(p)] for p in others["params"]} >= {"log_contrastive_scale", "csc.slots.bias"}
    assert names[id(decaying["params"][0])].endswith("weight")
    assert len(decaying["params"]) + len(others["params"]) == len(names)


def test_checkpoints_of_another_run_are_not_mixed_with_those_of_this_one(trainer):
    (trainer.folder / "checkpoint-12").mkdir()
    with pytest.raises(SystemExit, match="checkpoint-12. Delete them, resume"):
        trainer.run()
    assert (trainer.folder / "checkpoint-12").exists()


def test_a_loss_that_is_not_finite_stops_the_run(trainer):
    with torch.no_grad():
        trainer.model.csc.slots.weight.fill_(float("nan"))
    with pytest.raises(SystemExit, match="after step 0 the loss is nan"):
        trainer.run()
    assert not list(trainer.folder.glob("checkpoint-*"))


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
        ({"train_data": {"a": {"path": "x", "speker_column": "y"}}}, "speker_column"),
        ({"train_data": {"a": {"split": "train"}}}, "no path of a"),
        ({"save_total_limit": 0}, "save_total_limit"),
        ({"logging_steps": 0}, "logging_steps"),
        ({"best_metric": "eer_mix"}, "best_metric='eer_mix': choose from si_sdr_improvement"),
        ({"train_data": ["a", "b"]}, "train_data"),
        ({"model": TINY["model"] | {"sampling_rate": 8000}}, "sampling_rate 8000"),
        ({"eval_split": "none", "best_metric": "eer_clean"}, "best_metric"),
    ],
)
def test_wrong_options_are_named(pretrain, options, named, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(TINY | options))
    printed = io.StringIO()
    with pytest.raises((SystemExit, FileNotFoundError)) as error, contextlib.redirect_stderr(printed):
        pretrain.Trainer(pretrain.parse_args(["--config", str(config), "--output_dir", str(tmp_path / "run")]))
    assert named in printed.getvalue() + str(error.value)
