# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Write a Hub repository (weights, configurations, code, model card) into a folder, and push such folders."""

import glob
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard, ModelCardData
from transformers import PreTrainedModel, SequenceFeatureExtractor
from transformers.utils import cached_file

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
    `trust_remote_code=True`, `results.json` and the model card. Weights that were loaded from another model have its
    licence, and name it as their base model where it is on the Hub.

    Args:
        folder: made if it is not there.
        model: a CSC model.
        feature_extractor: its feature extractor.
        results: what was measured and how; anything that JSON takes.
        report: the same for people, as the text of the card's results section.
        repo_id: the name that the card's example loads the model by; None for the folder's name.
    """
    folder = Path(folder)
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    model.save_pretrained(folder)
    feature_extractor.save_pretrained(folder)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    origin: dict[str, Any] = {}
    trained_from = None
    if model.name_or_path:
        origin, trained_from = inherited(model.name_or_path, getattr(model.config, "_commit_hash", None))
    render_card(model, report, repo_id or folder.name, origin, trained_from).save(folder / "README.md")


LICENSE_FIELDS = ("license", "license_name", "license_link")


def card_origin(name: str, revision: str | None = None) -> dict[str, Any]:
    """What the card of a model says of its licence and of its base model; empty where it says nothing.

    Args:
        name: a folder, or a name on the Hub.
        revision: on the Hub.
    """
    try:
        path = cached_file(name, "README.md", revision=revision, _raise_exceptions_for_missing_entries=False)
        data = ModelCard(Path(path).read_text(encoding="utf-8")).data if path is not None else None
    except (OSError, ValueError, yaml.YAMLError) as error:
        logger.warning("the card of %s cannot be read, so its licence is not known: %s", name, error)
        return {}
    fields = {field: data.get(field) for field in LICENSE_FIELDS} if data is not None else {}
    base = data.get("base_model") if data is not None else None
    # Paths in older cards, or in those of others, are not passed on.
    fields["base_model"] = [item for item in (base if isinstance(base, list) else [base]) if is_hub_name(item)]
    if not isinstance(base, list):
        fields["base_model"] = next(iter(fields["base_model"]), None)
    return {field: value for field, value in fields.items() if value}


def is_hub_name(name: Any) -> bool:
    """Whether this is `user/name`, and no folder on this machine."""
    return (
        isinstance(name, str)
        and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None
        and not os.path.exists(name)
    )


def inherited(name: str, revision: str | None = None) -> tuple[dict[str, Any], str]:
    """The licence and the base model of weights that were trained from those of another model.

    The base model is that model. A folder goes by the name on the Hub that its card has; else it was not
    published, and its own base model stands for it, if it has one.

    Args:
        name: the other model, a folder or a name on the Hub.
        revision: on the Hub.

    Returns:
        Fields of the metadata, and what the text calls the other model: its name on the Hub or that of its folder.
    """
    origin = card_origin(name, revision)
    if not os.path.isdir(name):
        return origin | {"base_model": name}, name
    card = Path(name, "README.md")
    title = re.search(r"^# (\S+)$", card.read_text(encoding="utf-8"), re.MULTILINE) if card.is_file() else None
    if title is not None and is_hub_name(title[1]):
        return origin | {"base_model": title[1]}, title[1]
    return origin, Path(name).resolve().name


def without_paths(value: Any) -> Any:
    """What is published of settings: in place of each path on this machine, the name of its file or folder.

    Args:
        value: anything that JSON takes. Of text, all of it is taken for a path, or what follows the "=" of an option.
    """
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    if not isinstance(value, str | os.PathLike):
        return value
    option, equals, path = re.fullmatch(r"(?s)(?:(--[\w.-]+)(=))?(.*)", os.fspath(value)).groups()  # type: ignore
    is_path = path.startswith(("/", "~", ".")) or os.path.isabs(path) or os.path.exists(path) or glob.has_magic(path)
    if is_path and "://" not in path and os.path.basename(path.rstrip(os.sep)) != path:
        path = os.path.basename(os.path.abspath(path))
    return f"{option or ''}{equals or ''}{path}"


def render_card(
    model: PreTrainedModel,
    report: str,
    repo_id: str,
    origin: Mapping[str, Any] = MappingProxyType({}),
    trained_from: str | None = None,
) -> ModelCard:
    """The card of a CSC model.

    Args:
        model: as in `save_repository`, as `report` and `repo_id`.
        report: as above.
        repo_id: as above.
        origin: fields of the metadata that tell the licence and the base model, from `inherited` or `card_origin`.
            Without it, the card claims no licence.
        trained_from: name of the model whose weights training began with; None for a new model.
    """
    return ModelCard.from_template(
        ModelCardData(
            library_name="transformers",
            tags=["speech", "speaker-verification", "speech-separation", "contrastive-separative-coding"],
            **origin,
        ),
        template_path=str(CARD_TEMPLATE),
        repo_id=repo_id,
        model_class=type(model).__name__,
        num_parameters=f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}",
        front_end=model.config.front_end,
        report=report,
        trained_from=trained_from,
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
        private: bool = True,
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

    def push(self, folder: str | os.PathLike, message: str, files: Collection[str] | None = None) -> bool:
        """Start to push the files of a folder, without its subfolders. The next `push` or `wait` reports how it ended.

        Args:
            folder: where the files are.
            message: of the commit.
            files: names of the files to push; all of the folder if not given.

        Returns:
            Whether it was started: not while an earlier push runs, and not if the files cannot be copied.
        """
        if self._process is not None and self._process.poll() is None and self._left() > 0:
            logger.warning("Not pushed: %s. The push before is still running.", message)
            return False
        self.wait()
        try:
            self._start(Path(folder), message, files)
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

    def _start(self, folder: Path, message: str, files: Collection[str] | None) -> None:
        self._files = tempfile.mkdtemp(prefix="csc_hf-push-")
        try:
            # Subfolders are a run's checkpoints and logs, and a checkpoint's training state.
            for path in folder.iterdir():
                if path.is_file() and (files is None or path.name in files):
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
