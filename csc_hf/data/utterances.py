# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Single-speaker audio, wherever it lies, as a stream of rows that can be shared out, and read on from any place.

>>> utterances = stream_utterances("path/to/parquet_folder")
>>> utterance = next(iter(utterances))  # id, waveform (T,) at 16 kHz, speaker, source
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Audio, ClassLabel, IterableDataset, load_dataset

from ..audio import decode_audio

BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}
"""What `datasets` reads files with, by how their names end."""


@dataclass(frozen=True, eq=False)
class Utterance:
    """Audio of one speaker: float32 `waveform` (T,) at 16 kHz; who speaks and where it comes from, if known."""

    id: str
    waveform: np.ndarray
    speaker: str | None = None
    source: str | None = None


@dataclass(frozen=True, eq=False)
class Row:
    """A row of the data whose `audio` is not decoded yet (what `decode_audio` takes)."""

    id: str
    audio: Any
    speaker: str | None = None
    source: str | None = None

    def decode(self) -> Utterance:
        """Decode the audio; ValueError if that cannot be done."""
        return Utterance(self.id, decode_audio(self.audio), self.speaker, self.source)


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
    """Open a data set of single-speaker audio for streaming; nothing is downloaded or decoded as a whole.

    A column inside another one is named with a dot: the speaker of a WebDataset's `.json` files, say, by
    `speaker_column="json.speaker"`.

    Args:
        name_or_path: Parquet files or WebDataset tar files (a path or a glob pattern); a folder of either, or of audio
            files (audiofolder); or the name of a data set on the Hub. Rows should be in random order.
        split: split to read. Files or a glob pattern are one split, whatever its name.
        audio_column: column with the audio, in any form that `decode_audio` takes; of a WebDataset the file ending,
            such as "flac".
        speaker_column: column with the speaker, None if there is none.
        source_column: column with the corpus or channel that the audio comes from, None if there is none.
        id_column: column with an id that no other row has; of a WebDataset "__key__". None: the id is a hash of the
            audio's bytes, or its path.
        corpus: name of the data set, for streams of several: it is put before ids and speakers, so that those of two
            data sets cannot be confused, and is the source where there is no `source_column`.
        load_options: passed on to `datasets.load_dataset` (`name`, `data_files`, `revision`, `token`, ...).

    Raises:
        ValueError: a column is missing; and what `datasets.load_dataset` raises if there is no such data.
    """
    path = os.fspath(name_or_path)
    builder = BUILDERS.get(os.path.splitext(path)[1])
    if builder is not None:
        load_options = {"path": builder, "data_files": {split: path}} | load_options
    else:
        load_options = {"path": path} | load_options
    dataset = load_dataset(split=split, streaming=True, **load_options)
    return UtteranceStream(dataset, audio_column, speaker_column, source_column, id_column, corpus)


class _UndecodedAudio(Audio):
    """Passes on what the data holds. `Audio` itself, even undecoded, asks for torchcodec where rows are not Arrow
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
        columns = dataset.column_names or list(next(iter(dataset)))
        for argument, column in (
            ("audio_column", audio_column),
            ("speaker_column", speaker_column),
            ("source_column", source_column),
            ("id_column", id_column),
        ):
            if column is not None and column.split(".")[0] not in columns:
                remedy = f"set {argument} to one of them" + ("" if argument == "audio_column" else ", or to None")
                raise ValueError(f"{argument}={column!r}: the data has no such column, but {columns}; {remedy}")
        if dataset.features is not None and isinstance(dataset.features.get(audio_column), Audio):
            dataset = dataset.cast_column(audio_column, _UndecodedAudio(decode=False))
        self.dataset = dataset
        self.audio_column = audio_column
        self.speaker_column = speaker_column
        self.source_column = source_column
        self.id_column = id_column
        self.corpus = corpus

    @property
    def num_shards(self) -> int:
        """Files that the data set consists of, more or less: what can be read independently."""
        return self.dataset.num_shards

    def __iter__(self) -> Iterator[Utterance]:
        for row in self.rows():
            yield row.decode()

    def rows(
        self, epoch: int = 0, share: int = 0, num_shares: int = 1, state: Mapping[str, Any] | None = None
    ) -> "Rows":
        """The rows of one epoch, or of one of `num_shares` shares of them, not decoded.

        A share is every `num_shares`-th shard; where there are fewer shards than shares, every `num_shares`-th row of
        all of them. The order of the shards is a function of the epoch.

        Args:
            state: `Rows.state_dict()` of an iterator over the same epoch and share, to go on behind it.
        """
        return Rows(self, epoch, share, num_shares, state)

    def row(self, values: Mapping[str, Any]) -> Row:
        """The row of what `datasets` gives for one."""
        audio = _value(values, self.audio_column)
        name = _content_id(audio) if self.id_column is None else str(_value(values, self.id_column))
        speaker, source = self._label(values, self.speaker_column), self._label(values, self.source_column)
        if self.corpus is not None:
            name = f"{self.corpus}:{name}"
            speaker = speaker and f"{self.corpus}:{speaker}"
            source = self.corpus if self.source_column is None else source and f"{self.corpus}:{source}"
        return Row(name, audio, speaker, source)

    def _label(self, values: Mapping[str, Any], column: str | None) -> str | None:
        value = None if column is None else _value(values, column)
        feature = (self.dataset.features or {}).get(column)
        if isinstance(feature, ClassLabel) and value is not None:  # folders of an audiofolder
            value = feature.int2str(value)
        return None if value is None else str(value)


class Rows:
    """Iterator over rows, with a `state_dict` by which `UtteranceStream.rows` goes on where it stands."""

    def __init__(
        self, utterances: UtteranceStream, epoch: int, share: int, num_shares: int, state: Mapping[str, Any] | None
    ):
        if not 0 <= share < num_shares:
            raise ValueError(f"share={share}: must be between 0 and num_shares={num_shares}, exclusively")
        self._utterances = utterances
        whole_shards = utterances.num_shards >= num_shares
        self._every, self._offset = (1, 0) if whole_shards else (num_shares, share)
        # `shard` gives a data set of its own, whose epoch and state no other reader shares.
        self._dataset = utterances.dataset.shard(*((num_shares, share) if whole_shards else (1, 0)), contiguous=False)
        self._dataset.set_epoch(epoch)
        self._dataset.load_state_dict(state and state["dataset"])
        self._state = state
        self._number = state["number"] if state else 0  # rows read, those of other shares among them
        # Plain iteration would divide the data set once more, among the workers of a DataLoader.
        self._batches = self._dataset.iter(batch_size=1)

    def __iter__(self) -> "Rows":
        return self

    def __next__(self) -> Row:
        while True:
            values = {column: value[0] for column, value in next(self._batches).items()}
            self._state = None  # behind the one that it began with
            self._number += 1
            if (self._number - 1) % self._every == self._offset:
                return self._utterances.row(values)

    def state_dict(self) -> Mapping[str, Any] | None:
        """Plain numbers and strings; None at the beginning."""
        if self._state is not None or self._number == 0:
            return self._state
        return {"dataset": self._dataset.state_dict(), "number": self._number}


def _value(values: Mapping[str, Any], column: str) -> Any:
    """The value of a column, of which dots name parts; None where it, or what holds it, is missing."""
    for name in column.split("."):
        values = None if values is None else values.get(name)
    return values


def _content_id(audio: Any) -> str:
    """An id for audio that has none: its path, or a hash of its bytes or samples."""
    if isinstance(audio, Mapping):
        audio = next((audio[key] for key in ("bytes", "path", "array") if audio.get(key) is not None), b"")
    if isinstance(audio, str):
        return audio
    content = audio if isinstance(audio, bytes) else np.asarray(audio).tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()
