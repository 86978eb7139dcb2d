# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Pre-training runs on the speech that ships. One is launched as users launch it; most run in this process."""

import contextlib
import json
import logging
import os
import random
import shutil
import signal
import time

import pytest
import torch
from pretraining_runs import (
    SCRIPT,
    TINY,
    batches,
    command,
    forked,
    launch,
    pretrainer,
    print_into,
    results_of,
    run,
)
from safetensors.torch import load_file
from speech import make_rows, write
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModel

import csc_hf.training.pretrainer
from csc_hf.modeling_csc import saved_name
from csc_hf.training.arguments import PretrainingArguments
from csc_hf.training.corpora import refuse_training_data
from csc_hf.training.hub import save_repository


def assert_same_weights(one, other):
    expected = load_file(one / "model.safetensors")
    for name, tensor in load_file(other / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A launched run: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("pretrain") / "run"
    more = ["--ema_decay", "0.5", "--with_tracking", "--example_steps", "3", "--best_metric", "eer_mix0"]
    return folder, launch(command(folder, *more))


def test_it_reports_what_it_learnt(finished):
    folder, printed = finished
    results = results_of(folder)
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
    assert results["arguments"]["mixing"] == {"seconds": 0.5} and results["arguments"]["ema_decay"] == 0.5


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
    assert values["loss"][3] == pytest.approx(results_of(folder)["training"]["loss"])
    assert {"example_1/mixture", "example_1/estimate_1"} <= set(tags["audio"])
    assert {"example_1/spectrograms", "example_1/attention"} <= set(tags["images"])
    assert [event.step for event in events.Audio("example_1/mixture")] == [3]


def test_the_best_model_is_kept(finished):
    folder, printed = finished
    best = min(results_of(folder)["curve"], key=lambda entry: entry["conditions"]["mix0"]["eer"])
    assert results_of(folder / "best")["curve"][-1] == best
    assert f"Best eer_mix0: {best['conditions']['mix0']['eer']:.3f} after {best['step']} steps" in printed
    same = {0: None, 2: folder / "checkpoint-2", 4: folder}[best["step"]]
    if same is not None:
        assert (folder / "best" / "model.safetensors").read_bytes() == (same / "model.safetensors").read_bytes()
    assert type(AutoModel.from_pretrained(folder / "best")).__name__ == "CSCModel"


def test_what_it_saves_is_a_hub_repository(finished):
    folder, _ = finished
    for repository in (folder, folder / "checkpoint-2", folder / "checkpoint-4"):
        assert {path.name for path in repository.iterdir()} >= {
            "README.md",
            "config.json",
            "configuration_csc.py",
            "feature_extraction_csc.py",
            "model.safetensors",
            "modeling_csc.py",
            "preprocessor_config.json",
            "results.json",
        }
        assert f'from_pretrained("{repository.name}"' in (repository / "README.md").read_text()
    assert not list(folder.glob("*.unfinished")) and not list(folder.glob("final*"))
    card = (folder / "README.md").read_text()
    assert "library_name: transformers" in card and "Held-out speakers after 4 steps" in card
    model = AutoModel.from_pretrained(folder)
    assert type(model).__name__ == "CSCModel" and model(torch.randn(1, 8000)).source_embeddings.isfinite().all()


def test_a_resumed_run_equals_one_never_stopped(finished, caplog):
    folder, _ = finished
    resumed = folder.parent / "resumed"
    shutil.copytree(folder / "checkpoint-2", resumed / "checkpoint-2")
    with caplog.at_level(logging.INFO, "csc_hf"):
        run(resumed, "--resume_from_checkpoint", "latest", "--ema_decay", "0.5")
    assert_same_weights(folder, resumed)
    curves = [results_of(path)["curve"] for path in (folder, resumed)]
    assert curves[0] == curves[1] and len(curves[1]) == 3
    weights = [load_file(path / "model.safetensors")["csc.slots.weight"] for path in (folder, folder / "checkpoint-2")]
    assert not torch.equal(*weights)
    assert "resumed from" in caplog.text and "not as it would have" not in caplog.text


SLOW_WRITER = """
import runpy, sys, time
from pathlib import Path
from accelerate import Accelerator

save_state = Accelerator.save_state

def slow(self, folder, **options):
    files = [Path(folder) / f".tmp{number}" for number in range(200)]
    end = time.monotonic() + 3
    while self.is_main_process and time.monotonic() < end:
        for file in files:
            file.touch()
        for file in files:
            file.unlink()
    save_state(self, folder, **options)

Accelerator.save_state = slow
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    """A run of two processes, of which one is slow to write, and what it printed."""
    folder = tmp_path_factory.mktemp("two") / "run"
    started = command(folder, options={"max_train_steps": 2}, processes=2)
    (folder.parent / "slow.py").write_text(SLOW_WRITER)
    started.insert(started.index(str(SCRIPT)), str(folder.parent / "slow.py"))
    return folder, launch(started)


@pytest.mark.release
def test_what_one_process_still_writes_does_not_disturb_the_others(of_two_processes):
    """Writers make files that are gone again before another process can look at them."""
    folder, printed = of_two_processes
    assert (folder / "checkpoint-2" / "training_state").is_dir() and "After 2 steps" in printed


@pytest.mark.release
def test_another_number_of_processes_goes_on_and_says_so(of_two_processes, caplog):
    """Two processes, then one with a worker; a setting was changed as well."""
    folder, _ = of_two_processes
    held = []
    for rank in (0, 1):
        state = json.loads((folder / "checkpoint-2" / "training_state" / f"stream_{rank}.json").read_text())
        held.append({name for *_, name in state["shares"][0]["speech"]["held"]})
    assert held[0] and held[1] and held[0].isdisjoint(held[1])
    more = ["--resume_from_checkpoint", "latest", "--num_workers", "1", "--learning_rate", "0.002", "--log_batches"]
    run(folder, *more)
    assert "made by 2 processes with 0 workers each, this run has 1 with 1" in caplog.text
    assert "learning_rate was 0.001 before and is 0.002 now" in caplog.text
    assert "reservoir_seconds was" not in caplog.text
    assert [entry["step"] for entry in batches(folder)["batches-0.jsonl"]] == [2, 3]


@pytest.mark.parametrize(
    ("processes", "workers"),
    [(1, 2), *(pytest.param(*case, marks=pytest.mark.release) for case in ((1, 0), (2, 0), (2, 2)))],
)
def test_a_killed_run_equals_one_never_stopped(tmp_path, processes, workers):
    """Killed by SIGKILL, with all its processes, at any moment behind its first checkpoint."""
    options = {"max_train_steps": 6, "eval_split": "none", "mixing": {"seconds": 0.5, "reverb_probability": 0.2}}
    more = ["--log_batches", "--num_workers", str(workers), "--save_total_limit", "2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def finish(folder, *arguments):
        if processes == 1:
            run(folder, *more, *arguments, options=options)
        else:
            launch(command(folder, *more, *arguments, options=options, processes=processes))

    import pyroomacoustics  # noqa: F401 (here once, not in each worker)

    def start():
        os.setsid()
        print_into(os.open(os.devnull, os.O_WRONLY))
        finish(killed)

    process = forked(start)
    while not (killed / "checkpoint-2").exists():
        assert process.is_alive()
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.6))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    finish(whole)
    finish(killed, "--resume_from_checkpoint", "latest")
    expected = batches(whole)
    assert len(expected) == processes
    for entries in expected.values():
        assert [entry["step"] for entry in entries] == list(range(6))
        assert len({str(entry["recipes"]) for entry in entries}) == 6
    assert batches(killed) == expected
    assert_same_weights(whole, killed)
    for folder in (whole, killed):
        assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]


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
from csc_hf.training.arguments import parse_pretraining_arguments
from csc_hf.training.pretrainer import Pretrainer
run = Pretrainer(parse_pretraining_arguments())
assert run.is_sharded and type(run.accelerator.unwrap_model(run.model)).__name__.startswith("FSDP")
sys.exit(run.run())
"""


@pytest.mark.release
def test_sharded_weights_are_saved_whole_and_resume(tmp_path):
    (tmp_path / "sharded.py").write_text(SHARDED)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for folder in (whole, resumed):
        more = ["--with_tracking", "--example_steps", "2", "--mixed_precision", "bf16"]
        if folder is resumed:
            shutil.copytree(whole / "checkpoint-2", resumed / "checkpoint-2")
            more += ["--resume_from_checkpoint", "latest"]
        started = command(folder, *more, processes=2)
        started[started.index(str(SCRIPT))] = str(tmp_path / "sharded.py")
        launch(started)
    results = [results_of(folder) for folder in (whole, resumed)]
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
    run(tmp_path / "run", "--log_batches", options=options)
    recipes = [recipe for entry in batches(tmp_path / "run")["batches-0.jsonl"] for recipe in entry["recipes"]]
    corpora = {p["utterance"].split(":")[0] for r in recipes for source in r["sources"] for p in source["pieces"]}
    assert corpora == {"women", "men"}
    assert {r["noise"]["pieces"][0]["utterance"].split(":")[0] for r in recipes} == {"noise"}
    rooms = {
        effect["recording"].split(":")[0] for r in recipes for source in r["sources"] for effect in source["effects"]
    }
    assert rooms == {"room"}


def test_a_collapse_stops_the_run(tmp_path):
    """In two dimensions, embeddings have a rank of two at most."""
    options = {"model": TINY["model"] | {"speaker_embedding_size": 2}, "max_train_steps": 20, "eval_split": "none"}
    with pytest.raises(SystemExit, match="since step 1 their effective rank is 1.*Remedy"):
        run(tmp_path / "run", "--collapse_patience", "3", options=options)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_checkpoints_and_the_final_model_are_pushed(tmp_path, hub, caplog, capsys):
    push = ["--push_to_hub", "--hub_model_id", "user/csc-demo", "--with_tracking", "--log_batches"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("of nobody else")
    options = {"max_train_steps": 2, "eval_split": "none"}
    assert run(tmp_path / "run", *push, options=options) == 0
    files = hub.repositories["user/csc-demo"]
    assert files["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert not [name for name in files if "/" in name], "logs, checkpoints and training state stay at home"
    assert "results.json" in files and not {"notes.txt", "batches-0.jsonl"} & set(files)
    assert not [name for name in files if str(tmp_path).encode() in files[name]], "paths stay at home"
    assert 'from_pretrained("user/csc-demo"' in files["README.md"].decode()
    # A Hub out of order does not stop the training, and is told at the end.
    hub.fail("commit", 403)
    assert run(tmp_path / "again", *push, options=options) == 1
    assert "Push to user/csc-demo failed" in caplog.text and "Saved in" in capsys.readouterr().out


def test_unlabelled_speech_trains_without_evaluation(tmp_path, capsys):
    options = {"max_train_steps": 2, "speaker_column_name": "none", "id_column_name": "none", "eval_split": "none"}
    run(tmp_path / "run", "--gradient_accumulation_steps", "2", "--mixed_precision", "bf16", options=options)
    results = results_of(tmp_path / "run")
    assert results["curve"] == [] and results["training"]["loss"] == results["training"]["loss"]
    assert "Saved in" in capsys.readouterr().out


def test_a_final_model_is_replaced_file_by_file(tmp_path, monkeypatch):
    """A run that ends while it writes leaves what was there, and no file in part."""
    trainer = pretrainer(tmp_path / "run", options={"eval_split": "none"})
    trainer.finish()
    before = {path.name: path.read_bytes() for path in trainer.folder.iterdir() if path.is_file()}

    def stop_in_the_middle(folder, *arguments):
        save_repository(folder, *arguments)
        (folder / "model.safetensors").write_bytes(b"a part")
        raise KeyboardInterrupt

    monkeypatch.setattr(csc_hf.training.pretrainer, "save_repository", stop_in_the_middle)
    with torch.no_grad():
        trainer.model.csc.slots.weight.zero_()
    with pytest.raises(KeyboardInterrupt):
        trainer.finish()
    assert {path.name: path.read_bytes() for path in trainer.folder.iterdir() if path.is_file()} == before


def test_held_out_rows_that_cannot_be_used_are_skipped(tmp_path, caplog):
    rows = make_rows(24)
    rows[5]["audio"]["bytes"], rows[7]["speaker_id"] = b"not audio", "nan"
    write(tmp_path / "held_out", rows)
    options = {"eval_data": str(tmp_path / "held_out" / "*.parquet"), "eval_seconds": 0.1}
    trainer = pretrainer(tmp_path / "run", options=options)
    speakers = {recording.speaker for recording in trainer.trials.recordings}
    assert len(speakers) == 8 and "nan" not in speakers
    assert "'utt-5': not decodable" in caplog.text and "'utt-7': no speaker" in caplog.text


@pytest.fixture
def trainer(tmp_path):
    options = {"eval_split": None, "mixed_precision": False, "weight_decay": 0.5}
    return pretrainer(tmp_path / "run", options=options)


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


def flatten_as_on_a_gpu(model):
    """Make the weights of each LSTM parts of one buffer, as cuDNN has them."""
    for module in model.modules():
        if isinstance(module, torch.nn.LSTM):
            weights = list(module.parameters())
            buffer = torch.cat([weight.data.flatten() for weight in weights])
            for weight, part in zip(weights, buffer.split([weight.numel() for weight in weights]), strict=True):
                weight.data = part.view_as(weight)


def test_a_checkpoint_has_all_weights_of_a_model_on_a_gpu(tmp_path):
    trainer = pretrainer(tmp_path / "run")
    flatten_as_on_a_gpu(trainer.model)
    trainer.save_checkpoint()
    (checkpoint,) = trainer.folder.glob("checkpoint-*")
    weights = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.zero_()
    trainer.load(checkpoint)
    torch.testing.assert_close(trainer.model.state_dict(), weights, rtol=0, atol=0)
    saved = {saved_name(name): weight for name, weight in weights.items()}
    torch.testing.assert_close(load_file(checkpoint / "model.safetensors"), saved, rtol=0, atol=0)


class Evil:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


def test_resuming_runs_no_code_of_a_checkpoint(tmp_path):
    options = {"eval_split": None, "mixed_precision": False, "ema_decay": 0.5}
    trainer = pretrainer(tmp_path / "run", options=options)
    trainer.save_checkpoint()
    (checkpoint,) = trainer.folder.glob("checkpoint-*")
    pickles = [path for path in (checkpoint / "training_state").iterdir() if path.suffix in (".bin", ".pkl", ".pt")]
    assert len(pickles) == 5  # weights, optimizer, random numbers, schedule, average
    for path in pickles:
        content = path.read_bytes()
        torch.save(Evil(tmp_path / "mark"), path)
        with contextlib.suppress(Exception):
            trainer.load(checkpoint)
        assert not (tmp_path / "mark").exists(), path.name
        path.write_bytes(content)
    trainer.load(checkpoint)


def test_the_training_data_does_not_judge(tmp_path):
    data = tmp_path / "speech.parquet"
    data.touch()
    with pytest.raises(SystemExit, match="--eval_data .*: also the training data"):
        refuse_training_data(PretrainingArguments(train_data=str(data), eval_data=f"{tmp_path}/./speech.parquet"))
