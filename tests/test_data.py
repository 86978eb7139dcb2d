# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import io
import itertools
import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

import csc_hf.data
from csc_hf.data import MixtureStream, UtteranceStream, stream_utterances
from csc_hf.mixing import MixingConfig

CONFIG = MixingConfig(num_identities=5, seconds=0.1)


def encode(samples, rate=16000, format="FLAC") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format)
    return file.getvalue()


def make_rows(count, speakers=8, seed=0, source="studio", prefix="utt"):
    """Rows of 0.15 to 0.35 s."""
    rng = np.random.default_rng(seed)
    return [
        {
            "id": f"{prefix}-{number}",
            "audio": {"bytes": encode(rng.normal(0, 0.1, rng.integers(2400, 5600))), "path": f"{number}.flac"},
            "speaker_id": f"speaker-{number // 3 % speakers}",
            "source": source,
        }
        for number in range(count)
    ]


def write(folder, rows, shards=1):
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        table = pa.Table.from_pylist(rows[shard::shards])
        pq.write_table(table, folder / f"train-{shard:05}-of-{shards:05}.parquet", row_group_size=4)
    return folder


def make_stream(folder, config=CONFIG, columns=None, **options):
    options = {"reservoir_seconds": 4.0, "rows_per_group": 7, "min_seconds": 0.1, "max_seconds": 0.3} | options
    return MixtureStream(stream_utterances(folder, **(columns or {})), config, **options)


def take(stream, count):
    return list(itertools.islice(stream, count))


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            assert torch.equal(batch[name], other[name]), name


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """60 usable rows of 8 speakers in 3 shards, about 15 s, and 6 that are not usable."""
    rows = make_rows(60)
    bad = make_rows(6, prefix="bad")
    for row, samples in zip(bad, [None, np.zeros(4000), np.full(400, 0.1), None, None, None], strict=True):
        row["audio"]["bytes"] = b"not audio" if samples is None else encode(samples)
    for place, row in zip((3, 17, 31, 44, 50, 59), bad, strict=True):
        rows.insert(place, row)
    return write(tmp_path_factory.mktemp("corpus"), rows, shards=3)


@pytest.fixture
def decoded_ids(monkeypatch):
    """The ids of the rows that are decoded from here on."""
    ids = []
    decode = csc_hf.data.Row.decode
    monkeypatch.setattr(csc_hf.data.Row, "decode", lambda row: (ids.append(row.id), decode(row))[1])
    return ids


# --- utterances ----------------------------------------------------------------------------------------------------


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
            np.testing.assert_array_equal(utterance.waveform, expected)
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


@pytest.mark.parametrize("argument", ["audio_column", "speaker_column", "source_column", "id_column"])
def test_a_missing_column_is_named(corpus, argument):
    with pytest.raises(ValueError, match=rf"{argument}='nope'.*\['id', 'audio', 'speaker_id', 'source'\]"):
        stream_utterances(corpus, **{argument: "nope"})


# --- batches -------------------------------------------------------------------------------------------------------


def test_batches(corpus):
    config = MixingConfig(num_identities=7, num_observations=3, seconds=0.1, noise_probability=0)
    batches = take(make_stream(corpus, config), 4)
    for index, batch in enumerate(batches):
        assert batch["input_values"].shape == batch["attention_mask"].shape == (21, 1600)
        assert batch["source_values"].shape == (21, 2, 1600) and batch["speaker_ids"].shape == (21, 2)
        assert batch["input_values"].dtype == batch["source_values"].dtype == torch.float32
        assert batch["attention_mask"].dtype == batch["speaker_ids"].dtype == torch.long
        assert batch["attention_mask"].all()
        torch.testing.assert_close(batch["input_values"], batch["source_values"].sum(1), rtol=0, atol=1e-6)
        ids = batch["speaker_ids"]
        assert torch.equal(ids[:, 0], 7 * index + torch.arange(7).repeat_interleave(3))
        assert ((ids >= 7 * index) & (ids < 7 * index + 7) | (ids == -100)).all()
        assert torch.equal(ids == -100, ~batch["source_values"].any(-1))
    empty = torch.cat([batch["speaker_ids"][:, 1] == -100 for batch in batches])
    assert 0 < empty.sum() < len(empty)


def test_the_stream_is_a_function_of_the_seed(corpus):
    assert_same(take(make_stream(corpus), 8), take(make_stream(corpus), 8))
    for max_seconds in (0.3, 1.0):  # with and without parts of long recordings to draw
        first, second = (next(iter(make_stream(corpus, seed=seed, max_seconds=max_seconds))) for seed in (0, 1))
        assert not torch.equal(first["input_values"], second["input_values"])


def test_iterating_again_goes_on(corpus):
    stream = make_stream(corpus)
    assert_same(take(stream, 2) + take(stream, 2), take(make_stream(corpus), 4))


def test_a_data_loader_takes_it_without_workers(corpus, monkeypatch):
    loader = torch.utils.data.DataLoader(make_stream(corpus), batch_size=None)
    assert_same(take(loader, 2), take(make_stream(corpus), 2))
    monkeypatch.setattr(torch.utils.data, "get_worker_info", object)  # as if in a worker
    with pytest.raises(RuntimeError, match="num_workers=0"):
        next(iter(make_stream(corpus)))


def test_groups_come_from_one_source(tmp_path):
    rows = make_rows(20)
    for number, row in enumerate(rows):  # the sign of the waveform tells the source
        row["source"] = "above" if number % 2 else "below"
        row["audio"]["bytes"] = encode(np.full(3000, 0.1 if number % 2 else -0.1))
    config = MixingConfig(num_identities=5, seconds=0.1, same_source_probability=1.0)
    batches = take(make_stream(write(tmp_path, rows), config), 12)
    signs = [{-1.0, 1.0} & set(batch["source_values"].sum(-1).sign().flatten().tolist()) for batch in batches]
    assert all(len(sign) == 1 for sign in signs)
    assert set.union(*signs) == {-1.0, 1.0}


# --- reservoir -----------------------------------------------------------------------------------------------------


def test_the_reservoir_is_bounded_and_moves_on(corpus, decoded_ids):
    stream = make_stream(corpus)
    epochs, ids = set(), set()
    for _ in itertools.islice(stream, 25):
        held = [held.utterance for held in stream._held.values()]
        seconds = [len(utterance.waveform) / 16000 for utterance in held]
        assert 4.0 <= sum(seconds) < 4.3
        assert max(seconds) <= 0.3
        epochs.add(stream.state_dict()["epoch"])
        ids.update(utterance.id for utterance in held)
    assert epochs == {0, 1, 2}
    assert len(ids) == 60
    assert len(decoded_ids) > 100  # what has left is decoded again


def test_a_row_that_is_held_is_not_decoded_again(corpus, decoded_ids):
    stream = make_stream(corpus, reservoir_seconds=100)
    take(stream, 30)
    assert stream.state_dict()["epoch"] == 4
    good = [name for name in decoded_ids if name.startswith("utt")]
    assert len(good) == len(set(good)) == 60


def test_of_a_long_recording_a_random_part_is_held(tmp_path):
    rows = make_rows(6)
    for row in rows:
        row["audio"]["bytes"] = encode(np.linspace(0.1, 0.9, 16000))
    stream = make_stream(write(tmp_path, rows))
    take(stream, 1)
    waveforms = [held.utterance.waveform for held in stream._held.values()]
    assert {len(waveform) for waveform in waveforms} == {4800}
    assert len({float(waveform[0]) for waveform in waveforms}) == 6
    assert all(waveform.base is None for waveform in waveforms)  # a view would hold the whole recording


def test_unusable_rows_are_skipped_counted_and_told_once(corpus, caplog):
    with caplog.at_level(logging.WARNING, logger="csc_hf.data"):
        stream = make_stream(corpus, reservoir_seconds=100)
        take(stream, 1)
    assert stream.skipped == {"not decodable": 4, "silent": 1, "too short": 1}
    assert len(caplog.records) == 3
    assert "'bad-2': too short (0.03 s)" in caplog.text
    take(stream, 60)  # bad rows come back in every epoch, but the share is that of the first rows
    assert stream.skipped["not decodable"] > 20


def test_not_finite_audio_is_skipped(tmp_path):
    rows = make_rows(6)
    samples = np.full(4000, 0.1, dtype=np.float32)
    samples[7] = np.nan
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format="WAV", subtype="FLOAT")
    rows[0]["audio"]["bytes"] = file.getvalue()
    stream = make_stream(write(tmp_path, rows))
    take(stream, 1)
    assert stream.skipped == {"not finite": 1}


@pytest.mark.parametrize("usable", [9, 150])
def test_mostly_unusable_rows_stop_the_stream(tmp_path, usable):
    rows = make_rows(usable)
    rows = rows[:5] + make_rows(usable // 9 * 10, prefix="bad") + rows[5:]
    for row in rows:
        if row["id"].startswith("bad"):
            row["audio"]["bytes"] = b"not audio"
    message = r"10 of the first 19 rows" if usable == 9 else r"95 of the first 100 rows"
    with pytest.raises(ValueError, match=message + ".*'not decodable'.*'bad-0': not decodable .*soundfile"):
        next(iter(make_stream(write(tmp_path, rows), reservoir_seconds=100)))


def test_too_few_identities_are_told(tmp_path):
    folder = write(tmp_path, make_rows(20, speakers=4))
    take(make_stream(folder), 1)
    with pytest.raises(ValueError, match="num_identities=5 different speakers.* hold 4"):
        next(iter(make_stream(folder, MixingConfig(num_identities=5, seconds=0.1, supervision="speaker"))))


def test_no_rows_are_told(tmp_path):
    folder = write(tmp_path, make_rows(1))
    with pytest.raises(ValueError, match="no rows in epoch 0 of process 1"):
        next(iter(make_stream(folder, rank=1, world_size=2)))


def test_speaker_supervision_needs_speakers(tmp_path):
    config = MixingConfig(num_identities=5, seconds=0.1, supervision="speaker")
    rows = make_rows(21)
    rows[3]["speaker_id"] = None
    folder = write(tmp_path, rows)
    stream = make_stream(folder, config)
    take(stream, 1)
    assert stream.skipped == {"no speaker": 1}
    with pytest.raises(ValueError, match="needs speaker_column"):
        make_stream(folder, config, columns={"speaker_column": None})
    take(make_stream(folder, columns={"speaker_column": None, "source_column": None}), 1)


@pytest.mark.parametrize(
    "wrong", [{"rank": 2, "world_size": 2}, {"rows_per_group": 0}, {"min_seconds": 0.4}, {"reservoir_seconds": 0.2}]
)
def test_bad_settings_are_named(corpus, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make_stream(corpus, **wrong)


# --- resume, several processes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("supervision", "reservoir_seconds"), [("utterance", 4.0), ("speaker", 100.0)])
def test_interrupted_equals_uninterrupted(corpus, supervision, reservoir_seconds):
    """Saved after every one of 14 groups: over the ends of epochs, with rows leaving or all held."""
    config = MixingConfig(num_identities=5, seconds=0.1, supervision=supervision)
    options = {"reservoir_seconds": reservoir_seconds, "rows_per_group": 11}
    whole = make_stream(corpus, config, **options)
    states, batches = [json.dumps(whole.state_dict())], []
    for batch in itertools.islice(whole, 14):
        batches.append(batch)
        states.append(json.dumps(whole.state_dict()))
    assert whole.state_dict()["epoch"] >= 2
    for done, state in enumerate(states):
        resumed = make_stream(corpus, config, **options)
        resumed.load_state_dict(json.loads(state))
        assert json.dumps(resumed.state_dict()) == state
        count = min(3, len(batches) - done)
        assert_same(take(resumed, count), batches[done : done + count])
        if count == 3:
            continue
        assert resumed.state_dict() == whole.state_dict()


def test_resuming_decodes_only_what_was_held(corpus, decoded_ids):
    stream = make_stream(corpus)
    take(stream, 15)
    state = stream.state_dict()
    decoded_ids.clear()
    make_stream(corpus).load_state_dict(state)
    assert sorted(decoded_ids) == sorted(name for _, _, name in state["held"])


def test_a_state_that_does_not_fit_is_refused(corpus, tmp_path):
    stream = make_stream(corpus)
    take(stream, 2)
    with pytest.raises(ValueError, match="world_size=2: .*saved with 1"):
        make_stream(corpus, world_size=2).load_state_dict(stream.state_dict())
    for rows in (make_rows(60, prefix="other"), make_rows(2)):
        with pytest.raises(ValueError, match="has changed since"):
            make_stream(write(tmp_path, rows)).load_state_dict(stream.state_dict())


@pytest.mark.parametrize("world_size", [3, 2])
def test_processes_share_the_data_and_not_the_draws(corpus, world_size):
    """3 shards: one for each of 3 processes, every second row for each of 2."""
    streams = [
        make_stream(corpus, rank=rank, world_size=world_size, reservoir_seconds=100) for rank in range(world_size)
    ]
    batches = [take(stream, 3) for stream in streams]
    held = [set(stream._held) for stream in streams]
    assert sum(map(len, held)) == len(set.union(*held)) == 60
    first_ids = [[int(batch["speaker_ids"][0, 0]) // 5 for batch in share] for share in batches]
    assert sorted(itertools.chain(*first_ids)) == list(range(3 * world_size))
    assert isinstance(streams[0]._utterances, UtteranceStream)
