# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Saves what a Hub repository needs (weights, configs, code, model card) into a folder, and pushes such folders."""

import json
import logging
import os
from concurrent.futures import Future
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData
from transformers import PreTrainedModel, SequenceFeatureExtractor

logger = logging.getLogger(__name__)

CARD_TEMPLATE = Path(__file__).with_name("model_card_template.md")


def save_repository(
    folder: str | os.PathLike,
    model: PreTrainedModel,
    feature_extractor: SequenceFeatureExtractor,
    results: dict,
    report: str,
    repo_id: str | None = None,
) -> None:
    """
    Write a complete Hub repository: `config.json`, `preprocessor_config.json`, `model.safetensors`, the code files by
    which it loads with `trust_remote_code=True`, `results.json` and the model card.

    Args:
        folder: Where to; made if it is not there.
        model: A CSC model.
        feature_extractor: Its feature extractor.
        results: What was measured and how (any JSON), written as it is.
        report: The same for people, as the text of the card's results section.
        repo_id: Name of the repository that the card's example loads; the folder's name if it is not pushed.
    """
    folder = Path(folder)
    model.save_pretrained(folder)
    feature_extractor.save_pretrained(folder)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    card = ModelCard.from_template(
        ModelCardData(
            library_name="transformers",
            tags=["speech", "speaker-verification", "speech-separation", "contrastive-separative-coding"],
            license="apache-2.0",
        ),
        template_path=str(CARD_TEMPLATE),
        repo_id=repo_id or folder.name,
        model_class=type(model).__name__,
        num_parameters=f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}",
        front_end=model.config.front_end,
        report=report,
    )
    card.save(folder / "README.md")


class BackgroundPush:
    """
    Pushes folders to one Hub repository in the background, one at a time, and never raises while training runs.

    The repository is made at once, so that a wrong name or token shows before any training. Tokens are those of
    `huggingface_hub` (`hf auth login`, or `HF_TOKEN`).

    Args:
        repo_id: `user/name`.
        private: Whether a new repository is private.
    """

    def __init__(self, repo_id: str, private: bool = False):
        self.api = HfApi()
        self.repo_id = self.api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        self._in_flight: Future | None = None

    def push(self, folder: str | os.PathLike, message: str) -> bool:
        """Start to push the folder's repository files; passed over, with `False`, while an earlier push runs."""
        if self._in_flight is not None and not self._in_flight.done():
            logger.warning("Not pushed: %s. The push before is still running.", message)
            return False
        self.wait()
        self._in_flight = self.api.upload_folder(
            repo_id=self.repo_id,
            folder_path=folder,
            commit_message=message,
            # A run's root folder holds its checkpoints and logs, a checkpoint its training state.
            ignore_patterns=["checkpoint-*", "logs/*", "training_state/*"],
            run_as_future=True,
        )
        return True

    def wait(self) -> Exception | None:
        """Wait for the push that runs, if any; its failure is logged and returned."""
        if self._in_flight is None:
            return None
        error = self._in_flight.exception()
        self._in_flight = None
        if error is not None:
            logger.error("Push to %s failed: %s", self.repo_id, error)
        return error
