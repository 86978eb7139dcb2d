# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""What a frozen speaker encoder, the teacher, says of each utterance, for a model to learn towards.

>>> targets = read_or_embed("campplus", speech.training, Path("runs/mixtures/teacher.safetensors"))
>>> centre(targets)["utterance-7"]  # (embedding,), of unit length
"""

import itertools
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm

from ..audio import SAMPLING_RATE
from ..data.reservoir import ReservoirConfig, skip_unusable
from ..data.utterances import Utterance, UtteranceStream
from ..evaluation.embedders import Slots, load_embedder

logger = logging.getLogger(__name__)

TEACHER_SECONDS = 6.0
"""Of a longer utterance, the teacher hears this much from the middle."""

BATCH_SIZE = 16
"""Utterances that the teacher is given at a time."""


def read_or_embed(
    teacher: str, streams: Iterable[UtteranceStream], folder: str | os.PathLike, known: str | os.PathLike | None = None
) -> dict[str, np.ndarray]:
    """The teacher's embedding of each usable utterance, by its id. What is in a file is not computed again.

    Args:
        teacher: what `load_embedder` takes.
        streams: the training data.
        folder: its file `teacher.safetensors` is read, or written where embeddings are new.
        known: another file of that kind to read instead.

    Returns:
        Arrays (embedding,) of unit length.

    Raises:
        SystemExit: a file holds the embeddings of another teacher.
        ValueError: the teacher gives several embeddings a recording.
    """
    file = Path(folder) / "teacher.safetensors"
    targets = _read(known or file, teacher) if known is not None or file.exists() else {}
    rows = (row for stream in streams for row in stream.rows() if row.id not in targets)
    first = next(rows, None)
    if first is None:
        return targets
    embed = load_embedder(teacher)
    new = skip_unusable(itertools.chain([first], rows), ReservoirConfig(max_skipped=1.0))
    for utterances in _batches(tqdm(new, desc=f"embedding by {teacher}", unit="utterance", delay=3)):
        embeddings = embed([_middle(utterance.waveform) for utterance in utterances])
        if isinstance(embeddings, Slots):
            raise ValueError(
                f"teacher {teacher!r} gives an embedding of each slot: choose one that gives a single one"
            )
        for utterance, embedding in zip(utterances, embeddings, strict=True):
            targets[utterance.id] = (embedding / np.linalg.norm(embedding)).astype(np.float32)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    metadata = {"teacher": teacher, "ids": json.dumps(list(targets))}
    save_file({"embeddings": np.stack(list(targets.values()))}, unfinished, metadata)
    unfinished.replace(file)
    return targets


def centre(targets: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Embeddings without their mean, at unit length: what all utterances have in common tells nobody apart."""
    mean = np.mean(list(targets.values()), axis=0)
    return {name: (target - mean) / np.linalg.norm(target - mean) for name, target in targets.items()}


def _read(file: str | os.PathLike, teacher: str) -> dict[str, np.ndarray]:
    with safe_open(file, framework="np") as stored:
        metadata, embeddings = stored.metadata() or {}, stored.get_tensor("embeddings")
    if metadata.get("teacher") != teacher:
        raise SystemExit(f"{file} holds embeddings of the teacher {metadata.get('teacher')!r}, not of {teacher!r}")
    return dict(zip(json.loads(metadata["ids"]), embeddings, strict=True))


def _middle(waveform: np.ndarray) -> np.ndarray:
    length = round(TEACHER_SECONDS * SAMPLING_RATE)
    start = max(0, len(waveform) - length) // 2
    return waveform[start : start + length]


def _batches(utterances: Iterable[Utterance]) -> Iterator[list[Utterance]]:
    iterator = iter(utterances)
    return iter(lambda: list(itertools.islice(iterator, BATCH_SIZE)), [])
