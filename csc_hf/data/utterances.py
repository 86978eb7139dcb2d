# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Read single-speaker audio as a stream of rows that can be split between processes and resumed anywhere.

>>> utterances = stream_utterances("path/to/parquet_folder")
>>> utterance = next(iter(utterances))  # id, waveform (samples,) at 16 kHz, speaker, source
"""

import glob
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, TypeVar

import fsspec
import numpy as np
from datasets import Audio, ClassLabel, IterableDataset, get_dataset_split_names, load_dataset
from datasets.data_files import get_data_patterns
from datasets.iterable_dataset import BufferShuffledExamplesIterable
from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder
from fsspec.utils import glob_translate

from ..audio import SAMPLING_RATE, decode_audio
from ..feature_extraction_csc import high_pass

logger = logging.getLogger(__name__)

BUILDERS = {".parquet": "parquet", ".tar": "webdataset", ".tar.gz": "webdataset", ".tgz": "webdataset"}
"""Builders of `datasets`, by file extension."""

SPLIT_WORD = re.compile("train|valid|dev|val|test|eval", re.IGNORECASE)
"""What a name holds if `datasets` takes its file for a part of a split. Not every such name is."""

NO_LABEL = {"", "nan", "<na>", "none", "null"}
"""What a missing label looks like once it has been written as text, in lower case."""

URL = "://"
"""What tells a path on another file system from one on this machine."""

FOLDER = "folder:"
"""Prefix of a column name that stands for a folder of the audio's path, see `stream_utterances`."""


@dataclass(frozen=True, eq=False)
class Utterance:
    """Audio of one speaker.

    Attributes:
        id: globally unique.
        waveform: float32 (samples,) at 16 kHz.
        speaker: who speaks, None if unknown.
        source: corpus or channel, None if unknown.
        start: sample of the recording at which `waveform` begins.
    """

    id: str
    waveform: np.ndarray
    speaker: str | None = None
    source: str | None = None
    start: int = 0


@dataclass(frozen=True, eq=False)
class Row:
    """A row of the data. Its `audio` is not decoded yet; it can be anything that `decode_audio` takes."""

    id: str
    audio: Any
    speaker: str | None = None
    source: str | None = None

    def decode(self) -> Utterance:
        """Decode the audio, and take off what is below 20 Hz. Raises ValueError if that fails."""
        waveform, _ = high_pass(decode_audio(_fetch(self.audio)), SAMPLING_RATE)
        return Utterance(self.id, waveform, self.speaker, self.source)


HasId = TypeVar("HasId", Row, Utterance)


def label_or_none(value: Any) -> str | None:
    """A label as text, or None if it is missing.

    Missing are None, NaN, the empty string, blanks, and "nan", "none", "null" or "<NA>" in any case. An integer that
    was stored as a float, as pandas does beside missing values, is written as an integer: 7.0 becomes "7".
    """
    if isinstance(value, float | np.floating) and value.is_integer():
        value = int(value)
    label = str(value)
    return None if label.strip().lower() in NO_LABEL else label


def check_unique_ids(rows: Iterable[HasId]) -> Iterator[HasId]:
    """Pass rows or utterances on and check that no id comes twice.

    Raises:
        ValueError: two have the same id. The message names both, counted from 1.
    """
    seen: dict[str, tuple[int, str | None]] = {}
    for number, row in enumerate(rows, start=1):
        if row.id in seen:
            first, speaker = seen[row.id]
            raise ValueError(
                f"rows {first} (speaker {speaker!r}) and {number} (speaker {row.speaker!r}) have the same id "
                f"{row.id!r}: ids must be unique in all of the data. {REPEATED_ID_REMEDY}"
            )
        seen[row.id] = number, row.speaker
        yield row


REPEATED_ID_REMEDY = "Name another id column, or none: the id is then a hash of the audio"


def stream_utterances(
    name_or_path: str | os.PathLike,
    split: str = "train",
    audio_column: str = "audio",
    speaker_column: str | None = "speaker_id",
    source_column: str | None = "source",
    id_column: str | None = "id",
    corpus: str | None = None,
    **load_options,
) -> "UtteranceStream":
    """Open a dataset of single-speaker audio for streaming. Nothing is downloaded or decoded as a whole.

    Two forms of column names say more than a column:

    - "json.speaker" is the entry "speaker" of the column "json" (a WebDataset's `.json` files, say);
    - "folder:1" is the name of the folder that holds the audio file, "folder:2" of the folder above it, and so on.
      For VoxCeleb (`speaker/video/file`) and LibriSpeech (`speaker/chapter/file`), use `speaker_column="folder:2"`.

    Args:
        name_or_path: Parquet files or WebDataset tar files (a path or a glob pattern); a folder of either, or of audio
            files (audiofolder); or the name of a dataset on the Hub. Rows should be in random order.
        split: split to read. Files or a glob pattern are one split, whatever its name.
        audio_column: column with the audio, in any form that `decode_audio` takes. For a WebDataset, the file
            extension, such as "flac".
        speaker_column: column with the speaker, None if there is none. Missing values: see `label_or_none`.
        source_column: column with the corpus or channel that the audio comes from, None if there is none.
        id_column: column with a globally unique id; for a WebDataset "__key__". With None, and in rows without a
            value, the id is a hash of the audio's bytes, or its path.
        corpus: name of the dataset. It is put before ids and speakers, so that several datasets can be read together,
            and is the source if there is no `source_column`.
        load_options: passed on to `datasets.load_dataset` (`name`, `data_files`, `revision`, `token`, ...).

    Raises:
        ValueError: a column is missing, or a file has another format; or some files of a folder are in no split, since
            the names of others are taken for names of splits (a speaker called "dev", a file "test.wav").
        FileNotFoundError: no file matches.
        Exception: whatever `datasets.load_dataset` raises if there is no such data.
    """
    if "data_files" not in load_options and os.path.isdir(name_or_path):
        _refuse_files_without_split(os.path.join(name_or_path, load_options.get("data_dir") or ""))
    dataset = load_dataset(split=split, streaming=True, **dataset_arguments(name_or_path, split, **load_options))
    try:
        return UtteranceStream(dataset, audio_column, speaker_column, source_column, id_column, corpus)
    except ValueError as error:
        for name in ("metadata.csv", "metadata.jsonl", "metadata.parquet"):
            if os.path.isfile(path := os.path.join(name_or_path, name)):
                raise ValueError(
                    f"{error}; {path!r} is not read where the audio is in a folder for each split: put a metadata "
                    "file into each of these folders"
                ) from error
        raise


def dataset_arguments(name_or_path: str | os.PathLike, split: str, **load_options) -> dict[str, Any]:
    """Arguments of `datasets.load_dataset`, apart from the split itself, for what `stream_utterances` takes.

    An existing path is a path, whatever its letters; anything else may be a pattern.

    Raises:
        ValueError: a file has another format.
        FileNotFoundError: no file matches.
    """
    path = os.fspath(name_or_path)
    builder = next((name for ending, name in BUILDERS.items() if path.endswith(ending)), None)
    if builder is not None:
        files = [glob.escape(path)] if os.path.isfile(path) else _expand_braces(path)
        for pattern in files:
            if URL not in path and not glob.glob(pattern, recursive=True):
                raise FileNotFoundError(f"no file matches {pattern!r}")
        return {"path": builder, "data_files": {split: files[0] if len(files) == 1 else files}} | load_options
    if _looks_like_pattern(path) and "data_files" not in load_options:
        return _files_of_folder(os.path.abspath(path)) | load_options
    if "data_files" not in load_options:
        _check_format(path)
    return {"path": path} | load_options


def split_names(name_or_path: str | os.PathLike) -> list[str]:
    """The splits of a dataset that `stream_utterances` can read. Files and patterns have none.

    Raises:
        Exception: whatever `datasets` raises if there is no such data.
    """
    path = os.fspath(name_or_path)
    if path.endswith(tuple(BUILDERS)):
        return []
    if _looks_like_pattern(path):
        return list(_files_of_folder(os.path.abspath(path))["data_files"])
    _check_format(path)
    return get_dataset_split_names(path)


def _check_format(path: str) -> None:
    if os.path.isfile(path):
        raise ValueError(
            f"{path!r} is a file that cannot be read as data: give Parquet or tar files "
            f"({', '.join(BUILDERS)}), a folder of them or of audio files, or the name of a data set on the Hub"
        )


def _expand_braces(pattern: str) -> list[str]:
    """WebDataset's patterns of shards: "{000..127}" stands for each number, "{a,b}" for either."""
    braces = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if braces is None:
        return [pattern]
    first, last, either = braces.groups()
    if either is None:
        parts = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        parts = either.split(",")
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [expanded for part in parts for expanded in _expand_braces(f"{before}{part}{after}")]


def _looks_like_pattern(path: str) -> bool:
    """Whether `datasets` would take a folder for a glob pattern."""
    return os.path.isdir(path) and glob.has_magic(os.path.abspath(path))


def _files_of_folder(folder: str) -> dict[str, Any]:
    """Arguments of `load_dataset` for a folder whose path it would take for a glob pattern."""
    escaped = glob.escape(folder)
    patterns = get_data_patterns(escaped)
    data_files = {str(split): [f"{escaped}/{name}" for name in names] for split, names in patterns.items()}
    for extension, builder in BUILDERS.items():
        if glob.glob(f"{escaped}/**/*{extension}", recursive=True):
            return {"path": builder, "data_files": data_files}
    return {"path": "audiofolder", "data_files": data_files}


def _refuse_files_without_split(folder: str) -> None:
    """Raises ValueError if `datasets` would leave out files, because the names of others look like those of splits."""
    endings = (*BUILDERS, *AudioFolder.EXTENSIONS)
    files = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        within = PurePath(os.path.relpath(place, folder))
        files += [(within / name).as_posix() for name in names if not name.startswith(".")]
    readme = os.path.join(folder, "README.md")
    if not any(map(SPLIT_WORD.search, files)) or (os.path.isfile(readme) and _names_splits(readme)):
        return
    split_of: dict[str, str] = {}
    for split, patterns in get_data_patterns(glob.escape(os.path.abspath(folder))).items():
        matches = re.compile("|".join(map(glob_translate, patterns))).match
        split_of |= {file: str(split) for file in files if matches(file)}
    files = sorted(file for file in files if file.lower().endswith(endings))
    left_out = [file for file in files if file not in split_of]
    if left_out and len(left_out) < len(files):
        read = next(file for file in files if file in split_of)
        raise ValueError(
            f"{len(left_out)} of {len(files)} files, such as {left_out[0]!r}, are in no split, because {read!r} is in "
            f"the split {split_of[read]!r} by its name: rename that file or folder, or give data_files='**', by which "
            "all files are the split 'train'"
        )


def _names_splits(readme: str) -> bool:
    """Whether a dataset card says which files are in which split."""
    with open(readme, encoding="utf-8", errors="replace") as file:
        return any(line.startswith("configs:") for line in file)


class _UndecodedAudio(Audio):
    """Passes on what the data holds. Even with `decode=False`, `Audio` needs torchcodec for rows that are not Arrow
    tables (audiofolder, WebDataset)."""

    def encode_example(self, value: Any) -> Any:
        return value


class UtteranceStream:
    """The utterances of a `datasets.IterableDataset`. Iterating decodes them, in the order of epoch 0.

    See `stream_utterances` for the columns and `corpus`.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        audio_column: str = "audio",
        speaker_column: str | None = "speaker_id",
        source_column: str | None = "source",
        id_column: str | None = "id",
        corpus: str | None = None,
    ):
        dataset = dataset.with_format(None)  # labels are to be read as they are, not as tensors
        columns = dataset.column_names or list(next(iter(dataset), {}))
        if not columns:
            raise ValueError("the data has no rows")
        missing = {}
        for argument, column in (
            ("audio_column", audio_column),
            ("speaker_column", speaker_column),
            ("source_column", source_column),
            ("id_column", id_column),
        ):
            if column is None:
                continue
            if column.startswith(FOLDER) and argument != "audio_column":
                if not column.removeprefix(FOLDER).isdigit() or int(column.removeprefix(FOLDER)) < 1:
                    raise ValueError(f'{argument}={column!r}: write "folder:1" for the folder that holds the file')
            elif column.split(".")[0] not in columns:
                missing[argument] = column
        if missing:
            given = ", ".join(f"{argument}={column!r}" for argument, column in missing.items())
            remedies = [f"set {' and '.join(missing)} to one of them"]
            if optional := [argument for argument in missing if argument != "audio_column"]:
                remedies.append(f"{' and '.join(optional)} also to None, where there is none")
            if "speaker_column" in missing:
                remedies.append(
                    "where folders are named after speakers, set speaker_column to 'folder:1' (that of the file) or "
                    "'folder:2' (the one above: VoxCeleb, LibriSpeech)"
                )
            raise ValueError(f"{given}: the data has no such column, but {columns}; {'; '.join(remedies)}")
        if dataset.features is not None and isinstance(dataset.features.get(audio_column), Audio):
            dataset = dataset.cast_column(audio_column, _UndecodedAudio(decode=False))
        self.dataset = dataset
        self._features = dataset.features or {}  # reading them from the dataset copies them all
        self.audio_column = audio_column
        self.speaker_column = speaker_column
        self.source_column = source_column
        self.id_column = id_column
        self.corpus = corpus
        self.has_exact_state = not _is_buffer_shuffled(dataset)
        self._parent_of_labels: str | None = None  # folder of the first audiofolder label that was read

    @property
    def num_shards(self) -> int:
        """Parts of the dataset that can be read independently: its files, more or less."""
        return self.dataset.num_shards

    def __iter__(self) -> Iterator[Utterance]:
        for row in self.rows():
            yield row.decode()

    def rows(
        self, epoch: int = 0, share: int = 0, num_shares: int = 1, state: Mapping[str, Any] | None = None
    ) -> "Rows":
        """The rows of one epoch, or of one of `num_shares` shares of them, not decoded.

        A share is every `num_shares`-th shard. If there are fewer shards than shares, it is every `num_shares`-th row
        of all shards. The order of the shards is a function of the epoch.

        Args:
            state: `Rows.state_dict()` of an iterator over the same epoch and share, to continue from there.
        """
        return Rows(self, epoch, share, num_shares, state)

    def row(self, values: Mapping[str, Any], number: int) -> Row:
        """Make a row from the values that `datasets` gives. Without an id and readable audio, `number` names it."""
        audio = _value(values, self.audio_column)
        name = self._label(values, self.id_column) or _content_id(audio) or f"row {number}"
        speaker, source = self._label(values, self.speaker_column), self._label(values, self.source_column)
        if self.corpus is not None:
            name = f"{self.corpus}:{name}"
            speaker = speaker and f"{self.corpus}:{speaker}"
            source = self.corpus if self.source_column is None else source and f"{self.corpus}:{source}"
        return Row(name, audio, speaker, source)

    def _label(self, values: Mapping[str, Any], column: str | None) -> str | None:
        if column is None:
            return None
        if column.startswith(FOLDER):
            return self._folder(values, int(column.removeprefix(FOLDER)))
        value = _value(values, column)
        feature = self._features.get(column)
        if isinstance(feature, ClassLabel) and value is not None:
            value = None if value < 0 else feature.int2str(value)  # -1 is the missing label of `datasets`
            if column == self.speaker_column == "label":
                self._warn_of_sessions(_path(_value(values, self.audio_column)))
        return label_or_none(value)

    def _folder(self, values: Mapping[str, Any], level: int) -> str | None:
        path = _path(_value(values, self.audio_column))
        folders = PurePath(path).parts[:-1] if path else ()
        return folders[-level] if len(folders) >= level else None

    def _warn_of_sessions(self, path: str | None) -> None:
        """Warn once if folders are `speaker/session/file`: `datasets` takes the session for the label."""
        parent = path and os.path.dirname(os.path.dirname(path))
        if not parent or self._parent_of_labels == "":
            return
        if self._parent_of_labels is None:
            self._parent_of_labels = parent
        elif self._parent_of_labels != parent:
            logger.warning(
                "the speaker is taken from the innermost folder (column 'label'), but these folders lie in several "
                "others, such as %r and %r. If the layout is speaker/session/file, as in VoxCeleb and LibriSpeech, "
                "use the speaker column 'folder:2'.",
                self._parent_of_labels,
                parent,
            )
            self._parent_of_labels = ""


class Rows:
    """Iterator over rows whose `state_dict` lets `UtteranceStream.rows` continue from the same place."""

    def __init__(
        self, utterances: UtteranceStream, epoch: int, share: int, num_shares: int, state: Mapping[str, Any] | None
    ):
        if not 0 <= share < num_shares:
            raise ValueError(f"share={share}: must be at least 0 and below num_shares={num_shares}")
        self._utterances = utterances
        whole_shards = utterances.num_shards >= num_shares
        self._every, self._offset = (1, 0) if whole_shards else (num_shares, share)
        # `shard` returns a new dataset: no other reader shares its epoch and state.
        self._dataset = utterances.dataset.shard(*((num_shares, share) if whole_shards else (1, 0)), contiguous=False)
        self._dataset.set_epoch(epoch)
        self._dataset.load_state_dict(state and state["dataset"])
        self._state = state
        self._number = state["number"] if state else 0  # rows read, including those of other shares
        # Plain iteration would split the dataset once more, between the workers of a DataLoader.
        self._batches = self._dataset.iter(batch_size=1)
        if state and state["dataset"] is None:
            for _ in range(self._number):
                next(self._batches)

    def __iter__(self) -> "Rows":
        return self

    def __next__(self) -> Row:
        while True:
            values = {column: value[0] for column, value in next(self._batches).items()}
            self._state = None  # no longer where it began
            self._number += 1
            if (self._number - 1) % self._every == self._offset:
                return self._utterances.row(values, self._number)

    def state_dict(self) -> Mapping[str, Any] | None:
        """Plain numbers and strings. None at the beginning."""
        if self._state is not None or self._number == 0:
            return self._state
        exact = self._utterances.has_exact_state
        return {"dataset": self._dataset.state_dict() if exact else None, "number": self._number}


def _is_buffer_shuffled(dataset: IterableDataset) -> bool:
    """Whether `IterableDataset.shuffle` was called. The state of such a dataset lacks what is in the shuffle buffer,
    so its rows are read again from the beginning of the epoch instead. `datasets` has no public way to ask."""
    nodes = [getattr(dataset, "_ex_iterable", None)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, BufferShuffledExamplesIterable):
            return True
        nodes += [getattr(node, "ex_iterable", None)] if hasattr(node, "ex_iterable") else []
        nodes += getattr(node, "ex_iterables", [])
    return False


def _value(values: Mapping[str, Any], column: str) -> Any:
    """The value of a column whose name may have dots; None where it is missing."""
    value: Any = values
    for name in column.split("."):
        value = None if value is None else value.get(name)
    return value


def _path(audio: Any) -> str | None:
    """The path of an undecoded audio value, if it has one; in an archive, the path there."""
    path = audio.get("path") if isinstance(audio, Mapping) else audio
    if not isinstance(path, str | os.PathLike):
        return None
    path = os.fspath(path)
    return path.split("::")[0] if URL in path else path  # zip://folder/file.flac::path/to/archive.zip


def _fetch(audio: Any) -> Any:
    """The same audio; a file on another file system (the Hub, an archive), which `decode_audio` cannot open, is read.

    Raises:
        ValueError: there is no such file.
    """
    path = audio
    if isinstance(audio, Mapping):
        path = None if any(audio.get(key) is not None for key in ("bytes", "array")) else audio.get("path")
    if not isinstance(path, str) or URL not in path:
        return audio
    try:
        with fsspec.open(path) as file:
            return {"bytes": file.read(), "path": path}
    except (FileNotFoundError, KeyError) as error:  # the latter: it is not in the archive
        raise ValueError(f"no audio file at {path!r}") from error


def _content_id(audio: Any) -> str | None:
    """An id for audio without one: its path, or a hash of its bytes or samples. None if there is no audio."""
    if isinstance(audio, Mapping):
        audio = next((audio[key] for key in ("bytes", "path", "array") if audio.get(key) is not None), None)
    if isinstance(audio, str):
        return audio
    if not isinstance(audio, bytes | np.ndarray | list):  # already decoded by `datasets`
        try:
            audio = decode_audio(audio)
        except ValueError:
            return None
    content = audio if isinstance(audio, bytes) else np.asarray(audio).tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()
