# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Open the data sets that the options name: speech to train and to evaluate on, noise, impulse responses."""

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from ..data.mixing import TooFewIdentitiesError
from ..data.reservoir import ANY_LENGTH, ReservoirConfig, skip_unusable
from ..data.stream import MixtureStream, Shard, read_impulse_responses
from ..data.utterances import Utterance, UtteranceStream, split_names, stream_utterances
from .arguments import FILE_ENDINGS, PretrainingArguments

Batch = TypeVar("Batch")

UNLABELLED: dict[str, Any] = {"speaker_column": None, "source_column": None, "id_column": None}
"""Columns of noise and impulse responses."""


class ColumnArguments(Protocol):
    """Options that name columns; "none" or None where there is no such column."""

    @property
    def audio_column_name(self) -> str: ...
    @property
    def speaker_column_name(self) -> str: ...
    @property
    def source_column_name(self) -> str | None: ...
    @property
    def id_column_name(self) -> str: ...


def open_data(args: ColumnArguments, data: str | Mapping[str, Any], split: str, **options: Any) -> UtteranceStream:
    """Open one data set.

    Args:
        args: options that name the columns.
        data: its path or name; or a mapping with `path` and, where they differ from the options, `split`, columns
            and arguments of `datasets.load_dataset`.
        split: split to read.
        options: arguments of `stream_utterances` that win over all that.

    Raises:
        SystemExit: the data has no such column or split; the message names the data and the remedy.
    """
    described = {"path": data} if isinstance(data, str) else dict(data)
    path = described.pop("path")
    described.pop("probability", None)
    settings: dict[str, Any] = {"split": split}
    for column in ("audio_column", "speaker_column", "source_column", "id_column"):
        settings[column] = getattr(args, f"{column}_name")
    settings |= described | options
    settings = {name: None if value == "none" else value for name, value in settings.items()}
    try:
        return stream_utterances(path, **settings)
    except (ValueError, FileNotFoundError, ConnectionError) as error:
        raise SystemExit(f"{path}: {in_words_of_options(str(error))}") from error


def in_words_of_options(message: str) -> str:
    """A message of `stream_utterances` or `datasets`, for those who gave options."""
    message = " ".join(message.split())
    if split := re.match(r"Bad split: (.*?)\. Available splits: (\[.*\])", message):
        return (
            f"has no split {split[1]!r}, but {split[2]}: name one of them (--train_split, --eval_split, where the "
            "script has them), or give --eval_data, of other speakers"
        )
    message = re.sub(r"\b(audio|speaker|source|id)_column=('[^']*')", r"--\1_column_name \2", message)
    return re.sub(r"\b(audio|speaker|source|id)_column\b", r"--\1_column_name", message).replace("None", "none")


def open_held_out(args: PretrainingArguments) -> UtteranceStream:
    """The utterances to evaluate on."""
    split = args.eval_split
    if isinstance(args.eval_data, str):
        split = only_split(args.eval_data) or split
    data = args.eval_data or args.train_data
    assert data is not None
    return open_data(args, data, split)


def refuse_training_data(args: PretrainingArguments) -> None:
    """Raises SystemExit where the recordings to evaluate on are those to train on."""
    if args.eval_split == "none" or not args.eval_data:
        return

    def place(data: Any, split: str) -> tuple[Any, ...]:
        described = {"path": data} if isinstance(data, str) else data
        path = described["path"]
        path = os.path.realpath(path) if os.path.exists(path) else path
        # Files are one split, whatever its name.
        split = "" if path.endswith(FILE_ENDINGS) else described.get("split", split)
        return path, split, described.get("name"), described.get("revision")

    corpora = args.train_data.values() if isinstance(args.train_data, dict) else [args.train_data]
    training = {place(data, args.train_split) for data in corpora}
    split = args.eval_split
    if isinstance(args.eval_data, str) and place(args.eval_data, "")[0] in {path for path, *_ in training}:
        split = only_split(args.eval_data) or split
    if place(args.eval_data, split) in training:
        raise SystemExit(
            f"--eval_data {args.eval_data}: also the training data; give speech of other speakers, or "
            "--eval_split none"
        )


def only_split(path: str) -> str | None:
    """The name of the split of a data set to evaluate on that has a single one; None for others, and for files.

    Raises:
        SystemExit: there is no such data.
    """
    try:
        splits = split_names(path)
    except (ValueError, FileNotFoundError, ConnectionError) as error:
        raise SystemExit(f"--eval_data {path}: {in_words_of_options(str(error))}") from error
    return splits[0] if len(splits) == 1 else None


def name_too_few(batches: Iterable[Batch], option: str) -> Iterator[Batch]:
    """Pass batches on.

    Args:
        option: that says how many identities a batch has.

    Raises:
        SystemExit: the data at hand has too few identities for a batch.
    """
    try:
        yield from batches
    except TooFewIdentitiesError as error:
        # An error of a background process has its traceback before the message.
        message = str(error).strip().splitlines()[-1].rpartition("Error: ")[2]
        message = re.sub(r"num_identities(=)?", lambda found: f"{option} " if found[1] else option, message)
        raise SystemExit(message.replace("(reservoir_seconds)", "(--reservoir_seconds)")) from error


def usable_utterances(streams: Iterable[UtteranceStream]) -> Iterator[Utterance]:
    """The utterances of speakers to verify, of any length. Rows that cannot be used are skipped, counted and named."""
    rows = itertools.chain.from_iterable(stream.rows() for stream in streams)
    return skip_unusable(rows, ANY_LENGTH, needs_speaker=True)


def open_mixtures(args: PretrainingArguments, num_sources: int, shard: Shard) -> MixtureStream:
    """The stream of training batches of one process."""
    mixing = args.mixing_config(num_sources)
    # Labels that are not used are not asked for.
    unused: dict[str, Any] = {} if mixing.supervision == "speaker" else {"speaker_column": None}
    corpora: dict[str | None, Any] = {None: {"path": args.train_data}}
    if isinstance(args.train_data, dict):
        corpora = {**args.train_data}
    speech = [open_data(args, corpus, args.train_split, corpus=name, **unused) for name, corpus in corpora.items()]
    noise, responses = None, None
    if args.noise_data:
        noise = open_data(args, args.noise_data, "train", corpus="noise", **UNLABELLED)
    if args.impulse_response_data:
        rooms = open_data(args, args.impulse_response_data, "train", corpus="room", **UNLABELLED)
        responses = read_impulse_responses(rooms)
    return MixtureStream(
        speech,
        mixing,
        reservoir=ReservoirConfig(args.reservoir_seconds, args.min_seconds, args.max_seconds, args.max_skipped),
        probabilities=[corpus.get("probability", 1.0) for corpus in corpora.values()],
        noise=noise,
        impulse_responses=responses,
        seed=args.seed,
        shard=shard,
        num_workers=args.num_workers,
    )
