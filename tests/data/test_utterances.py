# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import gzip
import io
import itertools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
from datasets import Dataset, IterableDataset
from speech import encode, make_mixed_rows, make_rows, write, write_files, write_tars

from csc_hf.data.reservoir import ReservoirConfig, skip_unusable
from csc_hf.data.utterances import (
    Row,
    UtteranceStream,
    check_unique_ids,
    dataset_arguments,
    label_or_none,
    split_names,
    stream_utterances,
)
from csc_hf.feature_extraction_csc import high_pass


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write(tmp_path_factory.mktemp("corpus"), make_mixed_rows(), shards=3)


def test_utterances_of_parquet(tmp_path):
    rows = make_rows(6)
    folder = write(tmp_path / "data", rows, shards=2)
    for where in (folder, f"{folder}/*.parquet"):
        utterances = list(stream_utterances(where))
        assert [u.id for u in utterances] == [f"utt-{number}" for number in (0, 2, 4, 1, 3, 5)]
        for utterance in utterances:
            row = rows[int(utterance.id[4:])]
            assert (utterance.speaker, utterance.source) == (row["speaker_id"], row["source"])
            expected, _ = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
            np.testing.assert_array_equal(utterance.waveform, high_pass(expected, 16000)[0])
    assert [u.id for u in stream_utterances(folder / "train-00001-of-00002.parquet")] == ["utt-1", "utt-3", "utt-5"]


def test_utterances_of_an_audio_feature(tmp_path):
    """Parquet that datasets wrote with its Audio feature, other column names, 8 kHz stereo."""
    from datasets import Audio, Dataset

    stereo = np.random.default_rng(0).normal(0, 0.1, (1000, 2))
    data = {"sound": [{"bytes": encode(stereo, 8000), "path": None}], "reader": [17], "corpus": [None], "key": [3]}
    Dataset.from_dict(data).cast_column("sound", Audio(decode=False)).to_parquet(str(tmp_path / "a.parquet"))
    columns = {"speaker_column": "reader", "source_column": "corpus", "id_column": "key"}
    (utterance,) = stream_utterances(tmp_path / "a.parquet", audio_column="sound", **columns)
    assert (utterance.id, utterance.speaker, utterance.source) == ("3", "17", None)
    assert utterance.waveform.shape == (2000,)


def test_utterances_of_an_audiofolder(tmp_path):  # without torchcodec
    rows = make_rows(3)
    for number, row in enumerate(rows):
        (tmp_path / f"{number}.flac").write_bytes(row["audio"]["bytes"])
    columns = {"speaker_column": None, "source_column": None, "id_column": None}
    utterances = list(stream_utterances(tmp_path, **columns))
    assert [u.waveform.size for u in utterances] == [
        soundfile.info(io.BytesIO(row["audio"]["bytes"])).frames for row in rows
    ]
    assert len({u.id for u in utterances}) == 3
    assert [u.id for u in stream_utterances(tmp_path, **columns)] == [u.id for u in utterances]


def test_the_order_of_rows_is_a_function_of_the_epoch(corpus):
    utterances = stream_utterances(corpus)
    epochs = [[row.id for row in utterances.rows(epoch)] for epoch in (0, 1, 2, 3, 2, 1, 0)]
    assert epochs == epochs[::-1]
    assert {frozenset(ids) for ids in epochs} == {frozenset(epochs[0])}
    assert len({tuple(ids) for ids in epochs}) > 1  # the shards change places


def test_without_an_id_column_the_id_follows_from_the_audio(tmp_path):
    rows = make_rows(6)
    for row in rows:
        row["audio"]["path"] = "same.flac"
    first = {u.id: u.waveform for u in stream_utterances(write(tmp_path / "a", rows), id_column=None)}
    second = {u.id: u.waveform for u in stream_utterances(write(tmp_path / "b", rows[::-1]), id_column=None)}
    assert len(first) == 6 and first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_rows_without_audio_and_id_are_told_apart(tmp_path):
    """They end no run: decoding them says what is missing."""
    rows = make_rows(5)
    rows[1]["audio"] = None
    rows[2]["audio"] = rows[3]["audio"] = {"bytes": None, "path": None}
    utterances = stream_utterances(write(tmp_path, rows), id_column=None)
    names = [row.id for row in check_unique_ids(utterances.rows())]
    assert names[1:4] == ["row 2", "row 3", "row 4"]
    assert [
        u.speaker for u in skip_unusable(utterances.rows(), ReservoirConfig(min_seconds=0.01, max_skipped=1.0))
    ] == [
        rows[0]["speaker_id"],
        rows[4]["speaker_id"],
    ]


@pytest.mark.parametrize("argument", ["audio_column", "speaker_column", "source_column", "id_column"])
def test_a_missing_column_is_named(corpus, argument):
    with pytest.raises(ValueError, match=rf"{argument}='nope'.*\['id', 'audio', 'speaker_id', 'source'\]"):
        stream_utterances(corpus, **{argument: "nope"})


TAR_COLUMNS = {
    "audio_column": "flac",
    "speaker_column": "json.speaker",
    "source_column": None,
    "id_column": "__key__",
}
FILE_COLUMNS = {"speaker_column": "label", "source_column": None, "id_column": None}
FORMS = {
    "parquet": (write, {}),
    "tar": (write_tars, TAR_COLUMNS),
    "files": (write_files, FILE_COLUMNS),
}


def test_utterances_of_a_web_dataset(tmp_path):
    rows = make_rows(6)
    write_tars(tmp_path, rows, shards=2)
    for where in (tmp_path, f"{tmp_path}/*.tar"):
        utterances = list(stream_utterances(where, **TAR_COLUMNS))
        assert [u.id for u in utterances] == [f"utt-{number}" for number in (0, 2, 4, 1, 3, 5)]
        for utterance in utterances:
            row = rows[int(utterance.id[4:])]
            assert (utterance.speaker, utterance.source) == (row["speaker_id"], None)
            expected, _ = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
            np.testing.assert_array_equal(utterance.waveform, high_pass(expected, 16000)[0])
    without = stream_utterances(tmp_path, **TAR_COLUMNS | {"speaker_column": "json.reader"})
    assert next(iter(without)).speaker is None


def test_folders_name_the_speakers(tmp_path):
    rows = make_rows(9)
    utterances = list(stream_utterances(write_files(tmp_path, rows), **FILE_COLUMNS))
    assert {(u.id.split("/")[-1], u.speaker) for u in utterances} == {
        (f"{r['id']}.flac", r["speaker_id"]) for r in rows
    }


UNLABELLED = {"speaker_column": None, "source_column": None, "id_column": None}


def put_files(folder, names):
    """The same short audio under each of these names."""
    audio = make_rows(1)[0]["audio"]["bytes"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(audio)


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (["anna/1.flac", "ben/2.flac", "dev/3.flac"], "validation", "2 of 3 files, such as 'anna/1.flac', .*'dev/3"),
        (["anna/1.flac", "ben/2.flac", "dev/3.flac"], "train", "'dev/3.flac' is in the split 'validation'"),
        (["a.flac", "b.flac", "my test-3.wav"], "test", "2 of 3 files, such as 'a.flac', .*'my test-3.wav'"),
        (["my [1]/a.flac", "my [1]/val.flac"], "train", "1 of 2 files, such as 'my .1./a.flac'"),
    ],
)
def test_files_without_a_split_are_named(tmp_path, names, split, message):
    """`datasets` reads only the files whose names look like splits, where there are any."""
    put_files(tmp_path, names)
    with pytest.raises(ValueError, match=message):
        stream_utterances(tmp_path, split, **UNLABELLED)
    everything = stream_utterances(tmp_path, "train", data_files="**", **UNLABELLED)
    assert sorted(row.audio.removeprefix(f"{tmp_path}/") for row in everything.rows()) == names


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (
            ["train-clean/1.flac", "train-clean/2.flac", "test-clean/3.flac", "INFO.TXT"],
            {"train": 2, "test": 1},
        ),
        (["train.flac", "test_1.flac", "test_2.flac", ".hidden/a.flac", "._b.flac"], {"train": 1, "test": 2}),
        (["latest/1.flac", "devon/2.flac"], {"train": 2}),
    ],
)
def test_splits_of_folders(tmp_path, names, numbers):
    put_files(tmp_path, names)
    found = {split: len(list(stream_utterances(tmp_path, split, **UNLABELLED).rows())) for split in numbers}
    assert found == numbers and sorted(split_names(tmp_path)) == sorted(numbers)


def test_a_dataset_card_names_the_splits(tmp_path):
    put_files(tmp_path, ["anna/1.flac", "dev/2.flac"])
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: anna/*\n---\n"
    (tmp_path / "README.md").write_text(card)
    assert len(list(stream_utterances(tmp_path, "train", **UNLABELLED).rows())) == 1


def test_a_corpus_keeps_ids_and_speakers_apart(corpus):
    row = next(stream_utterances(corpus, corpus="a").rows())
    assert (row.id, row.speaker, row.source) == ("a:utt-0", "a:speaker-0", "a:studio")
    row = next(stream_utterances(corpus, source_column=None, speaker_column=None, corpus="a").rows())
    assert (row.id, row.speaker, row.source) == ("a:utt-0", None, "a")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("shards", "num_shares"), [(3, 1), (3, 2), (2, 3)])
@pytest.mark.parametrize("epoch", [0, 2])
def test_rows_go_on_from_any_place(tmp_path, form, shards, num_shares, epoch):
    """By whole shards, of which one share has more, and by rows."""
    write_form, columns = FORMS[form]
    rows = make_rows(14)
    write_form(tmp_path, rows, *([shards] if form != "files" else []))
    utterances = stream_utterances(tmp_path, **columns)
    seen = []
    for share in range(num_shares):
        iterator = utterances.rows(epoch, share, num_shares)
        states, ids = [json.dumps(iterator.state_dict())], []
        for row in iterator:
            ids.append(row.id)
            states.append(json.dumps(iterator.state_dict()))
        for done, state in enumerate(states):
            resumed = utterances.rows(epoch, share, num_shares, json.loads(state))
            assert resumed.state_dict() == json.loads(state)
            assert [row.id for row in resumed] == ids[done:]
        seen += ids
    assert len(seen) == len(set(seen)) == len(rows)


def test_rows_of_a_shuffled_dataset_go_on_exactly():
    """The state of a dataset with a shuffle buffer does not hold the buffer."""
    dataset = IterableDataset.from_generator(make_rows, gen_kwargs={"count": 30})
    utterances = UtteranceStream(dataset.shuffle(seed=1, buffer_size=8))
    iterator = utterances.rows(epoch=1)
    ids = [row.id for row in itertools.islice(iterator, 13)]
    state = json.loads(json.dumps(iterator.state_dict()))
    rest = [row.id for row in iterator]
    assert sorted(ids + rest) == sorted(row["id"] for row in make_rows(30))
    assert [row.id for row in utterances.rows(epoch=1, state=state)] == rest
    assert [row.id for row in utterances.rows(epoch=2)] != ids + rest


# --- labels and ids ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "label"),
    [
        *((missing, None) for missing in (None, float("nan"), np.float32("nan"), "", " \t", "nan", "None", "NULL")),
        *((pd.NA, None), (pd.NaT, "NaT"), ("<NA>", None), (float("inf"), "inf")),
        *((7, "7"), (7.0, "7"), (np.float64(7), "7"), (7.5, "7.5"), (0, "0"), (False, "False"), ("nano", "nano")),
    ],
)
def test_labels(value, label):
    assert label_or_none(value) == label


def test_missing_labels_of_a_column(tmp_path):
    """As pandas writes them: numbers with NaN; and as CSV files have them."""
    rows = make_rows(4)
    for labels in ([1.0, float("nan"), 2.0, None], ["1", "", "2", "None"]):
        for row, label in zip(rows, labels, strict=True):
            row["speaker_id"] = label
        speakers = [row.speaker for row in stream_utterances(write(tmp_path, rows)).rows()]
        assert speakers == ["1", None, "2", None]


def test_repeated_ids_are_named():
    rows = [Row(name, b"", speaker) for name, speaker in (("0.wav", "a"), ("1.wav", "a"), ("0.wav", "b"))]
    assert list(check_unique_ids(rows[:2])) == rows[:2]
    with pytest.raises(
        ValueError, match=r"rows 1 \(speaker 'a'\) and 3 \(speaker 'b'\) have the same id '0.wav'.*hash"
    ):
        list(check_unique_ids(rows))


# --- folders and paths ---------------------------------------------------------------------------------------------


def write_sessions(folder, rows):
    """Audio files as in VoxCeleb: speaker/session/file."""
    for number, row in enumerate(rows):
        path = folder / row["speaker_id"] / f"session-{number % 2}" / f"{row['id']}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row["audio"]["bytes"])
    return folder


def test_speakers_of_sessions(tmp_path, caplog):
    """Without the option, the label is the session, which is warned of."""
    rows = make_rows(9)
    write_sessions(tmp_path, rows)
    utterances = stream_utterances(tmp_path, **FILE_COLUMNS | {"speaker_column": "folder:2"})
    assert {(row.id.split("/")[-1], row.speaker) for row in utterances.rows()} == {
        (f"{r['id']}.flac", r["speaker_id"]) for r in rows
    }
    assert next(iter(utterances)).waveform.size
    assert not caplog.records
    labelled = stream_utterances(tmp_path, **FILE_COLUMNS)
    assert {row.speaker for row in labelled.rows()} == {"session-0", "session-1"}
    (record,) = caplog.records
    assert "speaker-0" in record.getMessage() and "'folder:2'" in record.getMessage()
    for wrong in ("folder:0", "folder:-1", "folder:x"):
        with pytest.raises(ValueError, match='write "folder:1"'):
            stream_utterances(tmp_path, **FILE_COLUMNS | {"speaker_column": wrong})


def test_files_in_an_archive(tmp_path):
    """They are on another file system, like those of a data set of audio files on the Hub."""
    rows = make_rows(3)
    archive = shutil.make_archive(str(tmp_path / "speech"), "zip", write_sessions(tmp_path / "files", rows))
    options = {"data_files": {"train": archive}, "drop_labels": True}
    utterances = stream_utterances("audiofolder", **FILE_COLUMNS | {"speaker_column": "folder:2"}, **options)
    found = {utterance.id.split("::")[0].split("/")[-1]: utterance for utterance in utterances}
    for row in rows:
        utterance = found[f"{row['id']}.flac"]
        expected, _ = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
        np.testing.assert_array_equal(utterance.waveform, high_pass(expected, 16000)[0])
        assert utterance.speaker == row["speaker_id"]
    with pytest.raises(ValueError, match="no audio file at 'zip://nobody.flac::"):
        Row("nobody", f"zip://nobody.flac::{archive}").decode()


def test_folders_of_paths_in_parquet(tmp_path, caplog):
    rows = make_rows(2)
    rows[0]["audio"]["path"], rows[1]["audio"]["path"] = "id7/5r0d/1.wav", "1.wav"
    utterances = stream_utterances(write(tmp_path, rows), speaker_column="folder:2", source_column="folder:1")
    assert [(row.speaker, row.source) for row in utterances.rows()] == [("id7", "5r0d"), (None, None)]
    # One speaker, one folder: nothing to warn of.
    list(stream_utterances(write_files(tmp_path / "files", make_rows(9)), **FILE_COLUMNS).rows())
    assert not caplog.records


@pytest.mark.parametrize("form", FORMS)
def test_an_existing_path_is_a_path(tmp_path, form):
    """Brackets and stars in it are no pattern."""
    write_form, columns = FORMS[form]
    folder = tmp_path / "my [1] data*"
    write_form(folder, make_rows(6))
    other = make_rows(6, prefix="other")
    write_form(tmp_path / "my 1 data", other)
    paths = [folder] if form == "files" else [folder, next(folder.iterdir())]
    for path in paths:
        assert sorted(row.id.split("/")[-1].split(".")[0] for row in stream_utterances(path, **columns).rows()) == [
            f"utt-{number}" for number in range(6)
        ]
        assert split_names(path) == (["train"] if path.is_dir() else [])


def test_data_without_rows_is_named():
    with pytest.raises(ValueError, match="the data has no rows"):
        UtteranceStream(IterableDataset.from_generator(lambda: iter(())))


def test_labels_of_a_dataset_of_tensors():
    table = Dataset.from_dict({"audio": [[0.0] * 800], "speaker_id": [7], "id": ["a"]})
    rows = UtteranceStream(table.to_iterable_dataset().with_format("torch"), source_column=None).rows()
    assert next(iter(rows)).speaker == "7"


def test_compressed_shards_are_read(tmp_path):
    write_tars(tmp_path, make_rows(2))
    content = gzip.compress((tmp_path / "00000.tar").read_bytes())
    for name in ("a.tar.gz", "b.tgz"):
        (tmp_path / name).write_bytes(content)
        utterances = list(stream_utterances(tmp_path / name, **TAR_COLUMNS))
        assert [utterance.id for utterance in utterances] == ["utt-0", "utt-1"]


def test_a_file_of_another_format_is_named(tmp_path):
    path = tmp_path / "wav.scp"
    path.write_text("utt-0 utt-0.wav\n")
    for read in (stream_utterances, split_names):
        with pytest.raises(ValueError, match=r"wav.scp' is a file that cannot be read as data: give Parquet or tar"):
            read(path)


def test_patterns_of_shards(tmp_path):
    for name in ("a-000.tar", "a-001.tar", "b.tar.gz"):
        (tmp_path / name).touch()
    files = dataset_arguments(f"{tmp_path}/a-{{000..001}}.tar", "train")["data_files"]["train"]
    assert files == [f"{tmp_path}/a-000.tar", f"{tmp_path}/a-001.tar"]
    assert dataset_arguments(f"{tmp_path}/*.tar.gz", "train")["path"] == "webdataset"
    with pytest.raises(FileNotFoundError, match="a-002.tar"):
        dataset_arguments(f"{tmp_path}/a-{{000..002}}.tar", "train")


def test_all_columns_that_are_missing_are_named_at_once(corpus):
    with pytest.raises(ValueError, match="speaker_column='who', id_column='key'.*'folder:2'"):
        stream_utterances(corpus, speaker_column="who", id_column="key")
