# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Pushing with the real `huggingface_hub` client to a loopback server, and loading from there."""

import os
import subprocess
import sys

import pytest
import torch
from hub_server import TOKEN, running_hub

from csc_hf import CSCConfig, CSCFeatureExtractor, CSCForPreTraining
from csc_hf.hub import save_repository

PUSH = """
import logging, sys
logging.basicConfig()
from csc_hf.hub import BackgroundPush
push = BackgroundPush("user/csc-test")
print("started", push.push(sys.argv[1], "first"))
print("failed", push.wait() is not None)
"""

LOAD = """
import sys
sys.modules["csc_hf"] = None
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForPreTraining
extractor = AutoFeatureExtractor.from_pretrained("user/csc-test", trust_remote_code=True)
model = AutoModel.from_pretrained("user/csc-test", trust_remote_code=True).eval()
audio = torch.load(sys.argv[1])
output = model(**extractor(audio["audio"].numpy(), sampling_rate=16000, return_tensors="pt"))
torch.testing.assert_close(output.source_embeddings, audio["expected"])
print(type(AutoModelForPreTraining.from_pretrained("user/csc-test", trust_remote_code=True)).__name__)
"""


def run(code: str, argument, hub, cache, token: str = TOKEN) -> subprocess.CompletedProcess:
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HOME": str(cache)}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", code, str(argument)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture
def repository(tmp_path):
    torch.manual_seed(0)
    config = CSCConfig.tiny(initializer_range=0.3)
    model = CSCForPreTraining(config).eval()
    folder = tmp_path / "run"
    extractor = CSCFeatureExtractor(min_samples=config.segment_samples)
    save_repository(folder, model, extractor, {"eer": 0.25}, "EER 25 %.", repo_id="user/csc-test")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "big.bin").write_bytes(b"not for the Hub")
    audio = torch.randn(3000)
    with torch.no_grad():
        torch.save({"audio": audio, "expected": model.csc(audio[None]).source_embeddings}, tmp_path / "audio.pt")
    return folder


def test_a_pushed_model_loads_in_a_clean_process(repository, tmp_path):
    with running_hub() as hub:
        pushed = run(PUSH, repository, hub, tmp_path / "cache1")
        assert pushed.stdout.split() == ["started", "True", "failed", "False"], pushed.stderr
        files = hub.repositories["user/csc-test"]
        assert {"config.json", "modeling_csc.py", "model.safetensors", "README.md", "results.json"} <= set(files)
        assert not [name for name in files if name.startswith("checkpoint-")]
        assert TOKEN not in pushed.stdout + pushed.stderr
        loaded = run(LOAD, tmp_path / "audio.pt", hub, tmp_path / "cache2")
        assert loaded.returncode == 0, loaded.stderr
        assert loaded.stdout.split()[-1] == "CSCForPreTraining"


def test_a_failing_push_is_told_and_not_raised(repository, tmp_path):
    with running_hub() as hub:
        hub.fail_commits = 403
        pushed = run(PUSH, repository, hub, tmp_path / "cache")
        assert pushed.returncode == 0 and pushed.stdout.split()[-1] == "True", pushed.stderr
        assert "Push to user/csc-test failed" in pushed.stderr


def test_a_wrong_token_shows_before_training(repository, tmp_path):
    with running_hub() as hub:
        pushed = run(PUSH, repository, hub, tmp_path / "cache", token="hf_wrong")
        assert pushed.returncode != 0 and "started" not in pushed.stdout and "401" in pushed.stderr
        assert "hf_wrong" not in pushed.stderr


def test_the_model_card_says_what_was_measured(repository):
    card = (repository / "README.md").read_text()
    assert card.startswith("---\n") and "library_name: transformers" in card and "license: apache-2.0" in card
    assert "EER 25 %." in card and 'from_pretrained("user/csc-test"' in card and "{{" not in card
