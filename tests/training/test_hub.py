# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Pushing with the real `huggingface_hub` client to a loopback server that fails on demand, and loading from there."""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

import pytest
import torch
from hub_server import TOKEN
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError

from csc_hf import CSCConfig, CSCFeatureExtractor, CSCForPreTraining
from csc_hf.training.hub import BackgroundPush, save_repository, without_paths

NAME = "user/csc-test"

LOAD = """
import sys
sys.modules["csc_hf"] = None
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForPreTraining
options = {"trust_remote_code": True}
if len(sys.argv) > 2:
    options["revision"] = sys.argv[2]
extractor = AutoFeatureExtractor.from_pretrained("user/csc-test", **options)
model = AutoModel.from_pretrained("user/csc-test", **options).eval()
audio = torch.load(sys.argv[1])
output = model(**extractor(audio["audio"].numpy(), sampling_rate=16000, return_tensors="pt"))
torch.testing.assert_close(output.source_embeddings, audio["expected"])
print(type(AutoModelForPreTraining.from_pretrained("user/csc-test", **options)).__name__)
"""

CRASH = """
import os, sys
import huggingface_hub
huggingface_hub.constants.ENDPOINT = os.environ["HF_ENDPOINT"]  # read before it was set
from csc_hf.training.hub import BackgroundPush
BackgroundPush("user/csc-test", answer_timeout=1.0, first_wait=0.1).push(sys.argv[1], "last words")
raise SystemExit("the training crashed")
"""


def run(code: str, *arguments: object, environment: dict[str, str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | environment)


def save_model(folder, seed: int, audio: torch.Tensor) -> dict[str, torch.Tensor]:
    """A repository with a small model; returns what the model makes of the audio."""
    torch.manual_seed(seed)
    config = CSCConfig.tiny(initializer_range=0.3)
    model = CSCForPreTraining(config).eval()
    extractor = CSCFeatureExtractor(min_samples=config.segment_samples)
    save_repository(folder, model, extractor, {"eer": 0.25}, "EER 25 %.", repo_id=NAME)
    with torch.no_grad():
        heard = extractor(audio.numpy(), sampling_rate=16000, return_tensors="pt")
        return {"audio": audio, "expected": model.csc(**heard).source_embeddings}


@pytest.fixture
def folder(tmp_path):
    """Looks like a checkpoint: weights, small files, training state."""
    folder = tmp_path / "checkpoint-1"
    (folder / "training_state").mkdir(parents=True)
    (folder / "training_state" / "optimizer.bin").write_bytes(b"not for the Hub")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (folder / "config.json").write_text("{}\n")
    (folder / "model.safetensors").write_bytes(random.Random(0).randbytes(300_000))
    return folder


@pytest.fixture
def told(caplog, capfd):
    """Function that returns what this process has logged and what it and its pushes have printed."""

    def told() -> str:
        text = caplog.text + "".join(capfd.readouterr())
        assert TOKEN not in text
        return text

    return told


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.release
def test_a_pushed_model_loads_in_a_clean_process_at_any_revision(hub, tmp_path):
    audio = torch.randn(3000)
    push = BackgroundPush(NAME)
    environment = hub.environment(tmp_path / "other cache")
    for seed in (0, 1):
        torch.save(save_model(tmp_path / "run", seed, audio), tmp_path / f"audio{seed}.pt")
        assert push.push(tmp_path / "run", f"weights {seed}") and push.wait() is None
    _, first, second = hub.revisions[NAME]
    assert len(hub.lfs_objects) == 2, "weights go by LFS"
    loaded = run(LOAD, tmp_path / "audio1.pt", environment=environment)
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.split()[-1] == "CSCForPreTraining"
    loaded = run(LOAD, tmp_path / "audio0.pt", first, environment=environment)
    assert loaded.returncode == 0, loaded.stderr


def test_the_files_of_a_folder_are_pushed_and_its_subfolders_stay(hub, folder, told):
    push = BackgroundPush(NAME)
    assert push.push(folder, "first") and push.wait() is None
    assert hub.repositories[NAME] == contents(folder)
    assert "%|" not in told(), "a progress bar of the upload"
    assert not os.listdir(tempfile.gettempdir())


def test_a_folder_may_go_while_it_is_pushed(hub, folder):
    expected = contents(folder)
    push = BackgroundPush(NAME)
    assert push.push(folder, "first")
    shutil.rmtree(folder)
    assert push.wait() is None
    assert hub.repositories[NAME] == expected


@pytest.mark.parametrize(
    ("step", "kind"),
    [("commit", 500), ("commit", "cut"), ("commit", "stall"), ("preupload", 429), ("put", 500), ("put", "cut")],
)
def test_what_may_pass_is_tried_again(hub, folder, step, kind):
    push = BackgroundPush(NAME, time_limit=60.0, answer_timeout=1.0, first_wait=0.05)
    hub.fail(step, kind, times=1)
    assert push.push(folder, "first") and push.wait() is None
    assert hub.requests[step] == 2
    assert hub.repositories[NAME] == contents(folder)
    assert hub.requests["put"] == (2 if step == "put" else 1), "weights that arrived are not sent again"


def test_attempts_have_an_end(hub, folder, told):
    push = BackgroundPush(NAME, first_wait=0.001)
    hub.fail("commit", 503)
    assert push.push(folder, "first")
    assert "503" in str(push.wait())
    assert hub.requests["commit"] == 8
    text = told()
    assert "Attempt 8 of 8" in text and f"Push to {NAME} failed" in text


def test_the_hub_says_how_long_to_wait(hub, folder, told):
    push = BackgroundPush(NAME, first_wait=0.001)
    hub.fail("commit", 429, times=1, retry_after=2)
    assert push.push(folder, "first") and push.wait() is None
    assert "429" in (text := told()) and "Attempt 2 of 8 in 2.0 s" in text


def test_a_commit_whose_confirmation_is_lost_is_not_made_twice(hub, folder):
    push = BackgroundPush(NAME, first_wait=0.05)
    hub.fail("commit", "cut answer", times=1)
    assert push.push(folder, "first") and push.wait() is None
    assert hub.repositories[NAME] == contents(folder)
    assert len(hub.revisions[NAME]) == 2, "the empty one and the push"
    assert hub.requests["preupload"] == 2, "it was tried again"


@pytest.mark.parametrize(
    ("step", "status"),
    [("preupload", 401), ("preupload", 404), ("put", 403), ("commit", 400), ("commit", 403), ("commit", 413)],
)
def test_what_will_not_pass_is_not_tried_again(hub, folder, told, step, status):
    push = BackgroundPush(NAME, first_wait=0.001)
    hub.fail(step, status)
    assert push.push(folder, "first")
    error = push.wait()
    assert ("Bad request" if status == 400 else str(status)) in str(error)
    assert hub.requests[step] == 1
    assert f"Push to {NAME} failed: {error}" in told()
    assert push.wait() is None, "it is told once"


def test_one_push_at_a_time_and_a_stall_does_not_hold_up_the_end(hub, folder, told):
    push = BackgroundPush(NAME)
    hub.fail("preupload", "stall")
    assert push.push(folder, "first")
    assert not push.push(folder, "second")
    assert "Not pushed: second. The push before is still running." in told()
    process = push._process
    assert isinstance(push.wait(timeout=0.5), TimeoutError)
    assert process.returncode is not None, "the push still runs"
    assert f"Push to {NAME} failed: not done after" in told()
    assert not os.listdir(tempfile.gettempdir())
    hub.fail("preupload", "stall", times=0)
    assert push.push(folder, "third") and push.wait() is None
    assert hub.repositories[NAME] == contents(folder)


def test_the_next_push_tells_that_one_failed(hub, folder, told):
    push = BackgroundPush(NAME)
    hub.fail("commit", 403, times=1)
    assert push.push(folder, "first")
    push._process.wait()
    assert push.push(folder, "second")
    assert f"Push to {NAME} failed: 403" in told()
    assert push.wait() is None
    assert hub.repositories[NAME] == contents(folder)


def test_a_push_beyond_its_time_limit_gives_way_to_the_next(hub, folder, told):
    push = BackgroundPush(NAME, time_limit=0.0)
    hub.fail("preupload", "stall")
    assert push.push(folder, "first")
    assert push.push(folder, "second")
    assert f"Push to {NAME} failed: not done after" in told()
    assert isinstance(push.wait(), TimeoutError)


def test_what_cannot_be_read_is_a_failed_push_and_not_raised(hub, tmp_path):
    push = BackgroundPush(NAME)
    assert not push.push(tmp_path / "nowhere", "first")
    assert "nowhere" in str(push.wait())
    assert push.wait() is None


def test_a_push_outlives_a_crash(hub, folder, tmp_path, fresh_python):
    hub.fail("preupload", "stall", times=1)
    crashed = fresh_python(CRASH, folder, env={"TMPDIR": str(tmp_path / "temp")})
    assert crashed.returncode == 1 and "the training crashed" in crashed.stderr
    deadline = time.monotonic() + 60
    while list((tmp_path / "temp").glob("csc_hf-push-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert hub.repositories[NAME] == contents(folder)
    assert not list((tmp_path / "temp").glob("csc_hf-push-*"))


def test_a_wrong_token_shows_before_training(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HfHubHTTPError, match="401") as failure:
        BackgroundPush(NAME)
    assert "hf_wrong" not in str(failure.value)


def test_the_model_card_says_what_was_measured(tmp_path):
    save_model(tmp_path / "run", 0, torch.randn(3000))
    card = (tmp_path / "run" / "README.md").read_text()
    assert card.startswith("---\n") and "library_name: transformers" in card and "license:" not in card
    assert "EER 25 %." in card and f'from_pretrained("{NAME}"' in card and "{{" not in card


def test_only_what_was_written_is_pushed(hub, tmp_path):
    folder = tmp_path / "run"
    for name in ("config.json", "README.md", "batches-0.jsonl"):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("{}\n")
    push = BackgroundPush(NAME)
    assert push.push(folder, "final", ["config.json", "README.md"])
    assert push.wait() is None
    assert set(hub.repositories[NAME]) == {"config.json", "README.md"}


def test_fine_tuned_weights_inherit_the_licence(tmp_path):
    model = CSCForPreTraining(CSCConfig.tiny())
    extractor = CSCFeatureExtractor(min_samples=model.config.segment_samples)
    base, first, second = tmp_path / "base", tmp_path / "first", tmp_path / "second"
    save_repository(base, model, extractor, {}, "none", "user/base")
    card = ModelCard.load(base / "README.md")
    assert card.data.license is None and card.data.base_model is None
    card.data.license, card.data.license_name, card.data.license_link = "other", "own", "LICENSE"
    card.save(base / "README.md")

    save_repository(first, CSCForPreTraining.from_pretrained(base), extractor, {}, "none", "first")
    save_repository(second, torch.compile(CSCForPreTraining.from_pretrained(first)), extractor, {}, "none", "user/me")
    for folder in (first, second):
        card = ModelCard.load(folder / "README.md")
        assert (card.data.license, card.data.license_name, card.data.license_link) == ("other", "own", "LICENSE")
        assert card.data.base_model == "user/base"
        assert "`CSCForPreTraining`" in card.text and "OptimizedModule" not in card.text


def test_no_folder_is_published_as_the_base_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = CSCForPreTraining(CSCConfig.tiny())
    extractor = CSCFeatureExtractor(min_samples=model.config.segment_samples)
    save_repository("runs/base", model, extractor, {}, "none")
    save_repository(tmp_path / "first", CSCForPreTraining.from_pretrained("runs/base"), extractor, {}, "none")
    card = ModelCard.load(tmp_path / "first" / "README.md")
    assert card.data.base_model is None and "Trained from the weights of `base`." in card.text
    for wrong in (f"{tmp_path}/runs/base", "runs/base", "base"):
        card.data.base_model = wrong  # as a card of others may have it
        card.save(tmp_path / "first" / "README.md")
        save_repository(tmp_path / "second", CSCForPreTraining.from_pretrained("first"), extractor, {}, "none")
        assert ModelCard.load(tmp_path / "second" / "README.md").data.base_model is None
        for path in (tmp_path / "second").iterdir():
            assert str(tmp_path).encode() not in path.read_bytes(), path.name


def test_published_settings_have_names_for_paths(tmp_path):
    settings = {
        "train_data": {"anna": {"path": str(tmp_path / "voices"), "probability": 0.5}},
        "noise_data": "shards/*.tar",
        "model": "user/name",
        "seed": 3,
        "eval_data": None,
    }
    assert without_paths(settings) == {
        "train_data": {"anna": {"path": "voices", "probability": 0.5}},
        "noise_data": "*.tar",
        "model": "user/name",
        "seed": 3,
        "eval_data": None,
    }
    assert without_paths([f"--train_data={tmp_path}/voices", "hf://x/*"]) == ["--train_data=voices", "hf://x/*"]
