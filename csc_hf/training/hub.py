# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Write a Hub repository (weights, configurations, code, model card) into a folder, and push such folders."""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData
from transformers import PreTrainedModel, SequenceFeatureExtractor

logger = logging.getLogger(__name__)

UPLOAD_PROGRAM = Path(__file__).with_name("upload.py")
CARD_TEMPLATE = Path(__file__).with_name("model_card_template.md")


def save_repository(
    folder: str | os.PathLike,
    model: PreTrainedModel,
    feature_extractor: SequenceFeatureExtractor,
    results: dict,
    report: str,
    repo_id: str | None = None,
) -> None:
    """Write a complete Hub repository.

    That is `config.json`, `preprocessor_config.json`, `model.safetensors`, the code that loads it with
    `trust_remote_code=True`, `results.json` and the model card.

    Args:
        folder: made if it is not there.
        model: a CSC model.
        feature_extractor: its feature extractor.
        results: what was measured and how; anything that JSON takes.
        report: the same for people, as the text of the card's results section.
        repo_id: the name that the card's example loads the model by; None for the folder's name.
    """
    folder = Path(folder)
    model.save_pretrained(folder)
    feature_extractor.save_pretrained(folder)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    render_card(model, report, repo_id or folder.name).save(folder / "README.md")


def render_card(model: PreTrainedModel, report: str, repo_id: str) -> ModelCard:
    """The card of a CSC model. The arguments are those of `save_repository`."""
    return ModelCard.from_template(
        ModelCardData(
            library_name="transformers",
            tags=["speech", "speaker-verification", "speech-separation", "contrastive-separative-coding"],
            license="apache-2.0",
        ),
        template_path=str(CARD_TEMPLATE),
        repo_id=repo_id,
        model_class=type(model).__name__,
        num_parameters=f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}",
        front_end=model.config.front_end,
        report=report,
    )


class BackgroundPush:
    """Pushes folders to a Hub repository in the background, one at a time, and never raises while training runs.

    A push is a process of its own (`upload.py`) with a copy of the files. It can be stopped whatever it hangs on, and
    the folder may be changed, renamed or deleted as soon as `push` has returned. If the run crashes, a running push
    still completes. Temporary failures (too many requests, server errors, lost connections, no answer) are retried;
    permanent ones (a refused token, a missing repository) are not.

    The repository is created at once, so that a wrong name or token shows before training. Tokens are those of
    `huggingface_hub` (`hf auth login`, or `HF_TOKEN`).

    Args:
        repo_id: `user/name`.
        private: whether a new repository is private.
        time_limit: seconds that a push may take, all attempts together. The next `push` or `wait` stops one that takes
            longer.
        answer_timeout: seconds to wait for an answer of the Hub before an attempt counts as failed.
        first_wait: about the seconds between the first and the second attempt. The wait doubles from attempt to
            attempt; if the Hub asks for more (`Retry-After`), it is that.

    Raises:
        huggingface_hub.errors.HfHubHTTPError: the repository cannot be created.
    """

    def __init__(
        self,
        repo_id: str,
        private: bool = False,
        *,
        time_limit: float = 3600.0,
        answer_timeout: float = 60.0,
        first_wait: float = 5.0,
    ):
        self.repo_id = HfApi().create_repo(repo_id, private=private, exist_ok=True).repo_id
        self.time_limit = time_limit
        self.answer_timeout = answer_timeout
        self.first_wait = first_wait
        self._process: subprocess.Popen | None = None  # the running push, or one whose end was not reported yet
        self._error: OSError | None = None  # why no push could be started

    def push(self, folder: str | os.PathLike, message: str) -> bool:
        """Start to push the files of a folder, without its subfolders. The next `push` or `wait` reports how it ended.

        Returns:
            Whether it was started: not while an earlier push runs, and not if the files cannot be copied.
        """
        if self._process is not None and self._process.poll() is None and self._left() > 0:
            logger.warning("Not pushed: %s. The push before is still running.", message)
            return False
        self.wait()
        try:
            self._start(Path(folder), message)
        except OSError as error:
            self._error = error
        return self._error is None

    def wait(self, timeout: float | None = None) -> Exception | None:
        """Wait for the running push, if any, and report how the last one ended.

        Args:
            timeout: seconds after which the push is stopped; at most what is left of its time limit.

        Returns:
            Why the last push failed, which is also logged, or None. A failure is reported once.
        """
        error: Exception | None = self._error
        self._error = None
        if self._process is not None:
            left = self._left()
            with self._process as process:
                try:
                    if process.wait(left if timeout is None else min(timeout, left)):
                        printed = process.stdout.read() if process.stdout else ""
                        error = RuntimeError(printed.strip() or f"exit status {process.returncode}")
                except subprocess.TimeoutExpired:
                    process.kill()
                    error = TimeoutError(f"not done after {time.monotonic() - self._started:.1f} s, so it was stopped")
            shutil.rmtree(self._files, ignore_errors=True)  # where the program could not do it
            self._process = None
        if error is not None:
            logger.error("Push to %s failed: %s", self.repo_id, error)
        return error

    def _start(self, folder: Path, message: str) -> None:
        self._files = tempfile.mkdtemp(prefix="csc_hf-push-")
        try:
            for path in folder.iterdir():
                if path.is_file():  # subfolders are a run's checkpoints and logs, and a checkpoint's training state
                    shutil.copy(path, self._files)
            # -P: the program's folder stays off the import path. Its modules' names are not unique.
            command = [sys.executable, "-P", str(UPLOAD_PROGRAM), self.repo_id, self._files, message]
            self._process = subprocess.Popen(
                [*command, str(self.answer_timeout), str(self.first_wait)],
                env=os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},  # they would tear the training's
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
            )
        except OSError:
            shutil.rmtree(self._files)
            raise
        self._started = time.monotonic()

    def _left(self) -> float:
        """Seconds left of the time limit of the running push."""
        return max(0.0, self._started + self.time_limit - time.monotonic())
