# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import contextlib
import dataclasses
import io
import itertools
import json
import logging

import numpy as np
import pytest
import soundfile
import torch
from datasets import IterableDataset
from speech import encode, make_mixed_rows, make_rows, write

import csc_hf.data.utterances
from csc_hf.data.mixing import MixingConfig, rebuild
from csc_hf.data.reservoir import ReservoirConfig, SkippedRows, UnusableRow, skip_unusable, usable_utterance
from csc_hf.data.stream import MixtureStream, Shard, read_impulse_responses, recording_classes
from csc_hf.data.utterances import Row, UtteranceStream, stream_utterances

CONFIG = MixingConfig(num_identities=5, seconds=0.1)


@pytest.fixture
def rows_read(monkeypatch):
    """The ids of the rows that are read from here on, decoded or not."""
    ids = []
    read = csc_hf.data.utterances.Rows.__next__

    def spy(rows):
        row = read(rows)
        ids.append(row.id)
        return row

    monkeypatch.setattr(csc_hf.data.utterances.Rows, "__next__", spy)
    return ids


def make_stream(folder, config=CONFIG, columns=None, **options):
    utterances = stream_utterances(folder, **(columns or {}))
    return MixtureStream(utterances, config, **stream_options(options))


def stream_options(options):
    """Arguments of MixtureStream from one flat mapping, with defaults for small data."""
    options = {"seconds": 4.0, "min_seconds": 0.1, "max_seconds": 0.3, "rows_per_group": 7} | options
    for dataclass, name in ((ReservoirConfig, "reservoir"), (Shard, "shard")):
        fields = [field.name for field in dataclasses.fields(dataclass) if field.name in options]
        options[name] = dataclass(**{field: options.pop(field) for field in fields})
    return options


def reservoir(stream):
    return stream._shares[0].speech


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
    return write(tmp_path_factory.mktemp("corpus"), make_mixed_rows(), shards=3)


@pytest.fixture
def decoded_ids(monkeypatch):
    """The ids of the rows that are decoded from here on."""
    ids = []
    decode = csc_hf.data.utterances.Row.decode
    monkeypatch.setattr(csc_hf.data.utterances.Row, "decode", lambda row: (ids.append(row.id), decode(row))[1])
    return ids


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
    for number, row in enumerate(rows):  # the sign of the pulses tells the source
        row["source"] = "above" if number % 2 else "below"
        row["audio"]["bytes"] = encode((0.1 if number % 2 else -0.1) * (np.arange(3000) % 8 == 4))
    config = MixingConfig(num_identities=5, seconds=0.1, same_source_probability=1.0)
    batches = take(make_stream(write(tmp_path, rows), config), 12)
    signs = [{-1.0, 1.0} & set((batch["source_values"] ** 3).sum(-1).sign().flatten().tolist()) for batch in batches]
    assert all(len(sign) == 1 for sign in signs)
    assert set.union(*signs) == {-1.0, 1.0}


# --- reservoir -----------------------------------------------------------------------------------------------------


def test_the_reservoir_is_bounded_and_moves_on(corpus, decoded_ids):
    stream = make_stream(corpus)
    epochs, ids = set(), set()
    for _ in itertools.islice(stream, 25):
        held = [held.utterance for held in reservoir(stream).held.values()]
        seconds = [len(utterance.waveform) / 16000 for utterance in held]
        assert 4.0 <= sum(seconds) < 4.3
        assert max(seconds) <= 0.3
        epochs.add(stream.counters()["epoch"])
        ids.update(utterance.id for utterance in held)
    assert epochs == {0, 1, 2}
    assert len(ids) == 60
    assert len(decoded_ids) > 100  # what has left is decoded again


def test_a_row_that_is_held_is_not_decoded_again(corpus, decoded_ids):
    stream = make_stream(corpus, seconds=100, max_seconds=1.0)
    take(stream, 30)
    assert stream.counters()["epoch"] == 4
    good = [name for name in decoded_ids if name.startswith("utt")]
    assert len(good) == len(set(good)) == 60


def test_of_a_long_recording_a_random_part_is_held(tmp_path):
    rows = make_rows(6)
    for row in rows:
        row["audio"]["bytes"] = encode(np.linspace(0.1, 0.9, 16000) * np.sin(np.arange(16000)))
    stream = make_stream(write(tmp_path, rows))
    take(stream, 1)
    waveforms = [held.utterance.waveform for held in reservoir(stream).held.values()]
    assert {len(waveform) for waveform in waveforms} == {4800}
    assert len({float(waveform[0]) for waveform in waveforms}) == 6
    assert all(waveform.base is None for waveform in waveforms)  # a view would hold the whole recording


def test_of_a_long_recording_another_part_is_held_in_every_epoch(tmp_path):
    """Also where all the data fits into the reservoir."""
    rows = make_rows(6)
    for row in rows:
        row["audio"]["bytes"] = encode(np.linspace(0.1, 0.9, 16000) * np.sin(np.arange(16000)))
    stream = make_stream(write(tmp_path, rows), seconds=100)
    parts = {name: set() for name in (row["id"] for row in rows)}
    for _ in itertools.islice(stream, 12):
        assert reservoir(stream).num_held_samples == 6 * 4800
        for name, held in reservoir(stream).held.items():
            parts[name].add(held.utterance.start)
    assert stream.counters()["epoch"] > 8 and all(len(starts) > 8 for starts in parts.values())
    assert_resumes(lambda: make_stream(tmp_path, seconds=100), 5)


def test_rows_with_the_same_id_are_told(tmp_path):
    """Keys that start again in every tar file, for example. Rows without an id get a hash."""
    rows = make_rows(60)
    for number, row in enumerate(rows):
        row["id"] = f"row-{number % 20}" if number < 50 else None
    write(tmp_path, rows)
    stream = make_stream(tmp_path, seconds=100.0, max_skipped=0.9)
    take(stream, 1)
    assert stream.counters()["skipped/the id of another row"] == 30
    with pytest.raises(
        ValueError, match=r"30 of 60 rows.*'row-0': the id of another row \(rows 1 and 21 .*another id"
    ):
        take(make_stream(tmp_path, seconds=100.0, max_skipped=0.4), 1)


def test_unusable_rows_are_skipped_counted_and_told_once(corpus, caplog):
    with caplog.at_level(logging.WARNING, logger="csc_hf.data.utterances"):
        stream = make_stream(corpus, seconds=100)
        take(stream, 1)
    assert reservoir(stream).skipped.counts == {"not decodable": 4, "silent": 1, "too short": 1}
    assert len(caplog.records) == 3
    assert "'bad-2': too short (0.03 s)" in caplog.text
    take(stream, 60)  # bad rows come back in every epoch, but the share is that of the first rows
    assert reservoir(stream).skipped.counts["not decodable"] > 20


def test_not_finite_audio_is_skipped(tmp_path):
    rows = make_rows(6)
    samples = np.full(4000, 0.1, dtype=np.float32)
    samples[7] = np.nan
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format="WAV", subtype="FLOAT")
    rows[0]["audio"]["bytes"] = file.getvalue()
    stream = make_stream(write(tmp_path, rows))
    take(stream, 1)
    assert reservoir(stream).skipped.counts == {"not finite": 1}


@pytest.mark.parametrize("usable", [9, 150])
def test_mostly_unusable_rows_stop_the_stream(tmp_path, usable):
    rows = make_rows(usable)
    rows = rows[:5] + make_rows(usable // 9 * 10, prefix="bad") + rows[5:]
    for row in rows:
        if row["id"].startswith("bad"):
            row["audio"]["bytes"] = b"not audio"
    message = r"10 of 19 rows" if usable == 9 else r"95 of 100 rows"
    with pytest.raises(ValueError, match=message + ".*'not decodable'.*'bad-0': not decodable .*soundfile"):
        next(iter(make_stream(write(tmp_path, rows), seconds=100)))


def test_data_that_goes_bad_later_stops_the_stream(tmp_path):
    """At a share that can be set; measured over the last rows, or a long good time would hide it."""
    rows = make_rows(900)
    for row in rows[500:]:
        if int(row["id"][4:]) % 3 == 0:
            row["audio"]["bytes"] = b"not audio"
    write(tmp_path, rows)
    take(make_stream(tmp_path, seconds=2.0, rows_per_group=50), 18)
    with pytest.raises(ValueError, match="33 of 100 rows, up to row 600.*'utt-501'.*max_skipped"):
        take(make_stream(tmp_path, seconds=2.0, rows_per_group=50, max_skipped=0.3), 18)


def test_too_few_identities_are_told(tmp_path):
    folder = write(tmp_path, make_rows(20, speakers=4))
    take(make_stream(folder), 1)
    with pytest.raises(ValueError, match="num_identities=5 different speakers.* hold 4"):
        next(iter(make_stream(folder, MixingConfig(num_identities=5, seconds=0.1, supervision="speaker"))))


def test_no_rows_are_told(tmp_path):
    folder = write(tmp_path, make_rows(1))
    with pytest.raises(ValueError, match="no rows in share 1 of 2"):
        next(iter(make_stream(folder, rank=1, world_size=2)))


def test_speaker_supervision_needs_speakers(tmp_path):
    config = MixingConfig(num_identities=5, seconds=0.1, supervision="speaker")
    rows = make_rows(21)
    rows[3]["speaker_id"] = None
    folder = write(tmp_path, rows)
    stream = make_stream(folder, config)
    take(stream, 1)
    assert reservoir(stream).skipped.counts == {"no speaker": 1}
    with pytest.raises(ValueError, match="needs speaker_column"):
        make_stream(folder, config, columns={"speaker_column": None})
    take(make_stream(folder, columns={"speaker_column": None, "source_column": None}), 1)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"rank": 2, "world_size": 2}, "rank=2"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"rows_per_group": 0}, "rows_per_group=0"),
        ({"max_skipped": 2.0}, "max_skipped=2"),
        ({"min_seconds": 0.4}, "min_seconds=0.4"),
        ({"seconds": 1.0, "num_workers": 4}, "0.25 in each worker: must be at least max_seconds=0.3"),
    ],
)
def test_bad_settings_are_named(corpus, wrong, named):
    with pytest.raises(ValueError, match=named):
        make_stream(corpus, **wrong)


def test_rows_are_skipped_alike_outside_of_the_stream(corpus, caplog):
    """For evaluation and fine-tuning: decoded once, as a whole."""
    rows = stream_utterances(corpus).rows
    skipped = SkippedRows(max_skipped=0.5)
    config = ReservoirConfig(min_seconds=0.1, max_seconds=0.2)
    utterances = list(skip_unusable(rows(), config, skipped=skipped))
    assert len(utterances) == 60 and max(len(u.waveform) for u in utterances) > 0.3 * 16000
    assert skipped.counts == {"not decodable": 4, "silent": 1, "too short": 1} and skipped.num_rows == 66
    assert len(caplog.records) == 3
    with pytest.raises(ValueError, match="6 of 66 rows, up to row 66, .*max_skipped"):
        list(skip_unusable(rows(), ReservoirConfig(min_seconds=0.1, max_skipped=0.05)))
    nobody = Row("a", np.sin(np.arange(9000)), speaker=None)
    with pytest.raises(UnusableRow, match="no speaker"):
        usable_utterance(nobody, config, needs_speaker=True)
    assert usable_utterance(nobody, config, part_seed=[0]).waveform.shape == (3200,)


def test_overlapping_crops_are_counted_and_told_once(tmp_path, caplog):
    rows = make_rows(12)
    for row in rows[:6]:
        row["audio"]["bytes"] = encode(np.random.default_rng(0).normal(0, 0.1, 16000))
    with caplog.at_level(logging.INFO, logger="csc_hf.data.stream"):
        stream = make_stream(write(tmp_path, rows), seconds=100, max_seconds=1.0)
        batches = take(stream, 6)
    drawn = [{p.utterance for r in b.recipes for s in r.sources for p in s.pieces} for b in batches]
    counters = stream.counters()
    assert counters["utterances"] == 30
    assert 0 < counters["utterances/overlap"] <= sum(int(n[4:]) >= 6 for names in drawn for n in names)
    assert caplog.text.count("too short for crops that do not overlap: an utterance of 0.5 s") == 1
    assert make_stream(tmp_path).counters()["utterances"] == 0


# --- resume, several processes -------------------------------------------------------------------------------------


def test_a_stream_of_a_shuffled_dataset_resumes_exactly():
    dataset = IterableDataset.from_generator(make_rows, gen_kwargs={"count": 30})

    def make():
        speech = UtteranceStream(dataset.shuffle(seed=1, buffer_size=15))
        return MixtureStream(speech, CONFIG, **stream_options({"seconds": 2.0, "rows_per_group": 11}))

    assert_resumes(make, 5)


@pytest.mark.parametrize(("supervision", "seconds"), [("utterance", 4.0), ("speaker", 100.0)])
def test_interrupted_equals_uninterrupted(corpus, supervision, seconds):
    """Saved again and again: over the ends of epochs, with rows leaving or all held."""
    config = MixingConfig(num_identities=5, seconds=0.1, supervision=supervision)
    assert_resumes(lambda: make_stream(corpus, config, seconds=seconds, rows_per_group=17), 9)


def place(state):
    """Where a stream stands, without what `datasets` notes of it, which may be put in several ways."""
    shares = [
        (
            share["step"],
            [(r["place"], r["next_epoch"], len(r["marks"])) for r in share["speech"]["readers"]],
            [
                share[kind][key]
                for kind in ("speech", "noise")
                if share[kind]
                for key in ("held", "num_rows", "skipped")
            ],
        )
        for share in state["shares"]
    ]
    return json.dumps(shares)


def assert_resumes(make, count):
    """A stream saved after every second of `count` groups and loaded into a new one continues alike, twice."""
    whole = make()
    states, batches = [json.dumps(whole.state_dict())], []
    for batch in itertools.islice(whole, count):
        batches.append(batch)
        states.append(json.dumps(whole.state_dict()))
    assert whole.counters()["epoch"] >= 1
    for done, state in list(enumerate(states))[::2]:
        resumed = make()
        resumed.load_state_dict(json.loads(state))
        assert json.dumps(resumed.state_dict()) == state
        ahead = min(3, count - done)
        resumed_batches = take(resumed, min(1, ahead))
        state = json.dumps(resumed.state_dict())
        resumed = make()
        resumed.load_state_dict(json.loads(state))
        resumed_batches += take(resumed, ahead - len(resumed_batches))
        assert_same(resumed_batches, batches[done : done + ahead])
        assert [batch.recipes for batch in resumed_batches] == [b.recipes for b in batches[done : done + ahead]]
        assert place(resumed.state_dict()) == place(json.loads(states[done + ahead]))


def test_interrupted_equals_uninterrupted_of_many_parts(corpus, tmp_path):
    """Two data sets, by shards and by rows, long recordings, recorded noise, the second of two processes."""
    rows = make_rows(30)
    for row in rows[::2]:
        row["audio"]["bytes"] = encode(np.random.default_rng(0).normal(0, 0.1, 9000))
    write(tmp_path / "other", rows)
    write(tmp_path / "noise", make_rows(50), shards=2)

    def make():
        speech = [stream_utterances(corpus, corpus="a"), stream_utterances(tmp_path / "other", corpus="b")]
        noise = stream_utterances(tmp_path / "noise", corpus="noise")
        return MixtureStream(
            speech,
            MixingConfig(num_identities=5, seconds=0.1, noise_probability=1.0),
            probabilities=[0.3, 0.7],
            noise=noise,
            noise_seconds=1.0,
            **stream_options({"seconds": 3.0, "rows_per_group": 13, "rank": 1, "world_size": 2}),
        )

    assert_resumes(make, 8)


def test_resuming_reads_little(tmp_path, rows_read):
    """Not the data from its beginning on, as it would be far behind in a large data set."""
    stream = make_stream(write(tmp_path, make_rows(700)), seconds=2.0)
    take(stream, 80)
    state = stream.state_dict()
    assert state["shares"][0]["speech"]["num_rows"] > 500
    rows_read.clear()
    resumed = make_stream(tmp_path, seconds=2.0)
    resumed.load_state_dict(state)
    assert len(rows_read) < 64 + 2 * len(state["shares"][0]["speech"]["held"])
    assert len(json.dumps(state)) < 4000
    assert_same(take(resumed, 2), take(stream, 2))


@pytest.mark.parametrize("groups", [1, 4])
def test_workers_resume_exactly(corpus, groups):
    """Whichever worker's turn it is."""

    def make():
        return make_stream(corpus, num_workers=2, rank=1, world_size=2)

    whole = make()
    iterator = iter(whole)
    for _ in range(groups):
        next(iterator)
    state = json.loads(json.dumps(whole.state_dict()))
    expected = [next(iterator) for _ in range(5)]
    resumed = make()
    resumed.load_state_dict(state)
    batches = take(resumed, 5)
    assert_same(batches, expected)
    assert [batch.recipes for batch in batches] == [batch.recipes for batch in expected]
    assert place(resumed.state_dict()) == place(whole.state_dict())
    assert_same(take(whole, 2), take(resumed, 2))  # and iterating again goes on
    assert resumed.counters()["rows"] > 50 and resumed.counters()["skipped"] > 0


def test_workers_leave_the_random_numbers_of_the_training_alone(corpus):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    stream = make_stream(corpus, num_workers=1)
    take(stream, 1)
    assert torch.equal(torch.rand(1), expected)


def test_workers_hold_a_part_of_the_reservoir_each(corpus):
    stream = make_stream(corpus, num_workers=2, seconds=4.0)
    take(stream, 4)
    lengths = {u.id: len(u.waveform) for u in usable(corpus)}
    for share in stream.state_dict()["shares"]:
        assert 2.0 <= sum(min(4800, lengths[name]) for *_, name in share["speech"]["held"]) / 16000 < 2.4


def usable(folder):
    for row in stream_utterances(folder).rows():
        with contextlib.suppress(ValueError):
            yield row.decode()


def test_workers_share_the_data_and_number_the_steps(corpus):
    streams = [make_stream(corpus, num_workers=2, rank=r, world_size=2, seconds=100.0) for r in (0, 1)]
    batches = [take(stream, 4) for stream in streams]
    for step in range(4):
        for rank in (0, 1):
            ids = batches[rank][step]["speaker_ids"]
            assert ids.max() // 5 == 2 * step + rank and ids[ids >= 0].min() // 5 == 2 * step + rank
    names = [
        [{name for *_, name in share["speech"]["held"]} for share in stream.state_dict()["shares"]]
        for stream in streams
    ]
    held = names[0] + names[1]
    assert len(held) == 4 and all(held) and sum(map(len, held)) == len(set.union(*held)) == 60


def test_processes_draw_the_same_kinds(corpus):
    """So that the contrast over the groups of a step is not won by counting speakers."""
    config = MixingConfig(num_identities=5, seconds=0.1, single_speaker_probability=0.5)
    streams = [make_stream(corpus, config, rank=rank, world_size=3, seconds=100.0) for rank in range(3)]
    kinds = [[(batch["speaker_ids"] >= 0).sum(1).tolist() for batch in take(stream, 8)] for stream in streams]
    assert kinds[0] == kinds[1] == kinds[2]
    assert len({tuple(kind) for kind in kinds[0]}) > 1


def test_a_speaker_is_one_identity_in_all_processes(tmp_path):
    """Or the contrast over processes would push a speaker away from themselves."""
    folder = write(tmp_path, make_rows(60), shards=2)
    config = MixingConfig(num_identities=5, seconds=0.1, supervision="speaker", speed_probability=0.5)
    speakers = {row["id"]: row["speaker_id"] for row in make_rows(60)}
    ids = {}
    for rank in range(2):
        for batch in take(make_stream(folder, config, rank=rank, world_size=2), 4):
            for recipe, row in zip(batch.recipes, batch["speaker_ids"], strict=True):
                for source, number in zip(recipe.sources, row.tolist(), strict=False):  # empty slots have no source
                    names = {(speakers[piece.utterance], source.speed) for piece in source.pieces}
                    ids.setdefault(number, set()).update(names)
    assert all(len(names) == 1 and number >= 0 for number, names in ids.items())
    assert len(ids) == len(set.union(*ids.values())) > 8


def test_a_recording_has_one_class_in_all_processes(tmp_path):
    folder = write(tmp_path, make_rows(60), shards=2)
    config = MixingConfig(num_identities=5, seconds=0.1, speed_probability=0.5)
    classes = {}
    for rank in range(2):
        for batch in take(make_stream(folder, config, rank=rank, world_size=2), 4):
            of_batch = recording_classes(batch.recipes, 100_000)
            assert ((of_batch >= 0) == (batch["speaker_ids"] >= 0)).all() and of_batch.max() < 100_000
            for recipe, row in zip(batch.recipes, of_batch.tolist(), strict=True):
                for source, number in zip(recipe.sources, row, strict=False):
                    classes.setdefault((source.pieces[0].utterance, source.speed), set()).add(number)
    assert all(len(numbers) == 1 for numbers in classes.values())
    assert len(set.union(*classes.values())) == len(classes) > 20
    assert recording_classes(batch.recipes, 3).max() < 3


def test_a_curriculum_follows_the_batches(corpus):
    config = dataclasses.replace(CONFIG, single_speaker_probability=0.0, curriculum_batches=(3, 4))
    for num_workers in (0, 2):
        stream = make_stream(corpus, config, num_workers=num_workers)
        alone = [bool((batch["speaker_ids"][:, 1] < 0).all()) for batch in take(stream, 6)]
        assert alone == [True] * 4 + [False] * 2


def test_resuming_decodes_only_what_was_held(corpus, decoded_ids):
    stream = make_stream(corpus)
    take(stream, 15)
    state = stream.state_dict()
    decoded_ids.clear()
    make_stream(corpus).load_state_dict(state)
    assert sorted(decoded_ids) == sorted(name for *_, name in state["shares"][0]["speech"]["held"])


def test_a_state_that_does_not_fit_is_refused(corpus, tmp_path):
    stream = make_stream(corpus)
    take(stream, 2)
    for other in ({"world_size": 2}, {"num_workers": 1}):
        with pytest.raises(ValueError, match=f"{next(iter(other))}=.: .*saved with"):
            make_stream(corpus, **other).load_state_dict(stream.state_dict())
    for rows in (make_rows(60, prefix="other"), make_rows(2)):
        with pytest.raises(ValueError, match="changed"):
            make_stream(write(tmp_path, rows)).load_state_dict(stream.state_dict())


@pytest.mark.parametrize("now", [{"world_size": 1}, {"world_size": 3}, {"world_size": 1, "num_workers": 2}])
@pytest.mark.parametrize("shards", [5, 1])
def test_another_number_of_processes_reads_each_row_once(tmp_path, shards, now):
    """With 5 shards, of the two former processes one is an epoch ahead."""
    folder = write(tmp_path, make_rows(120), shards)
    former = [make_stream(folder, rank=rank, world_size=2, seconds=2.0) for rank in (0, 1)]
    for stream in former:
        take(stream, 9)
    states = [stream.state_dict() for stream in former]
    epochs = [stream.counters()["epoch"] for stream in former]
    assert epochs == ([0, 1] if shards == 5 else [1, 1])
    present = [make_stream(folder, rank=rank, **now) for rank in range(now["world_size"])]
    for stream in present:
        stream.take_over(states)
    steps = [[share.step for share in stream._shares] for stream in present]
    assert steps == ([[9, 10]] if "num_workers" in now else [[9]] * len(present))

    def read_to_the_end_of(epoch, streams):
        found = []
        for share in itertools.chain(*(stream._shares for stream in streams)):
            (reader,) = share.speech._readers
            while reader.epoch <= epoch:
                with contextlib.suppress(StopIteration):
                    found.append((reader.epoch, next(reader).id))
        return sorted(found)

    rows = sum(stream.counters()["rows"] for stream in present)
    assert rows == sum(stream.counters()["rows"] for stream in former)
    for stream in present[: "num_workers" in now]:  # the workers go on there, too
        take(stream, 3)
        assert stream.counters()["rows"] > rows
        for share, state in zip(stream._shares, states, strict=True):
            assert share.speech._readers[0]._leftovers[0] == state["shares"][0]["speech"]["readers"][0]["unread"][0]
    found = read_to_the_end_of(max(epochs), present)
    assert len(found) == len(set(found)) > 20
    assert found == read_to_the_end_of(max(epochs), former)
    whole = read_to_the_end_of(max(epochs) + 1, present)
    assert [name for _, name in whole] == sorted(f"utt-{number}" for number in range(120))


def test_a_stream_that_took_over_trains_on_and_resumes(corpus):
    former = [make_stream(corpus, rank=rank, world_size=2) for rank in (0, 1)]
    for stream in former:
        take(stream, 3)
    states = [stream.state_dict() for stream in former]

    def make():
        stream = make_stream(corpus)
        stream.take_over(states)
        return stream

    assert next(iter(make()))["speaker_ids"][0, 0] == 15  # its fourth step
    assert_resumes(make, 6)
    again = [make_stream(corpus, rank=rank, world_size=3) for rank in range(3)]
    for stream in again:
        stream.take_over([make().state_dict()])
    leftovers = [passes for stream in again for passes in reservoir(stream)._readers[0]._leftovers]
    assert leftovers == reservoir(make())._readers[0]._leftovers and len(leftovers) > 1
    with pytest.raises(ValueError, match="give all of them"):
        make_stream(corpus).take_over(states[:1])


@pytest.mark.parametrize("world_size", [3, 2])
def test_processes_share_the_data_and_not_the_draws(corpus, world_size):
    """3 shards: one for each of 3 processes, two and one for 2."""
    streams = [make_stream(corpus, rank=rank, world_size=world_size, seconds=100) for rank in range(world_size)]
    batches = [take(stream, 12) for stream in streams]
    held = [set(reservoir(stream).held) for stream in streams]
    assert sum(map(len, held)) == len(set.union(*held)) == 60
    first_ids = [[int(batch["speaker_ids"][0, 0]) // 5 for batch in share] for share in batches]
    assert sorted(itertools.chain(*first_ids)) == list(range(12 * world_size))
    if world_size == 2:  # the smaller share is read more often, and nobody waits
        assert streams[1].counters()["epoch"] > streams[0].counters()["epoch"]


@pytest.mark.parametrize(
    ("world_size", "num_workers", "told"),
    [(3, 0, None), (1, 3, None), (2, 0, "one more than others"), (2, 2, "keeps every 4th row")],
)
def test_shards_that_do_not_divide_are_told(corpus, caplog, world_size, num_workers, told):
    with caplog.at_level(logging.WARNING, logger="csc_hf"):
        for rank in range(world_size):
            make_stream(corpus, rank=rank, world_size=world_size, num_workers=num_workers)
    assert len(caplog.records) == (told is not None)
    assert told is None or told in caplog.text and "3 shards" in caplog.text


# --- several data sets, noise, rooms --------------------------------------------------------------------------------


def test_rows_come_from_data_sets_by_their_probabilities(tmp_path):
    """Groups are drawn within one data set where there is no other source; ids and speakers are kept apart."""
    streams = []
    for corpus, count in (("a", 200), ("b", 100)):
        write(tmp_path / corpus, make_rows(count))
        streams.append(stream_utterances(tmp_path / corpus, source_column=None, corpus=corpus))
    config = MixingConfig(num_identities=5, seconds=0.1, same_source_probability=1.0, supervision="speaker")
    stream = MixtureStream(
        streams,
        config,
        probabilities=[3, 1],
        **stream_options({"seconds": 15.0, "max_seconds": 1.0, "rows_per_group": 20}),
    )
    batches = take(stream, 30)
    held = reservoir(stream).held.values()
    assert {h.utterance.source for h in held} == {"a", "b"}
    assert {h.utterance.speaker[:9] for h in held} == {"a:speaker", "b:speaker"}
    readers = reservoir(stream)._readers
    read = [reader.number * size + reader.row for reader, size in zip(readers, (200, 100), strict=True)]
    assert sum(read) == reservoir(stream).skipped.num_rows and 0.68 < read[0] / sum(read) < 0.82
    sources = [{piece.utterance[0] for r in b.recipes for s in r.sources for piece in s.pieces} for b in batches]
    assert all(len(source) == 1 for source in sources) and set.union(*sources) == {"a", "b"}
    with pytest.raises(ValueError, match="corpus names"):
        MixtureStream([stream_utterances(tmp_path / "a")] * 2, config)
    with pytest.raises(ValueError, match="probabilities"):
        MixtureStream(streams, config, probabilities=[1.0])


def test_utterances_without_a_speaker_take_part_in_the_contrast(tmp_path):
    rows = make_rows(60)
    for row in rows[::2]:
        row["speaker_id"] = None
    write(tmp_path, rows)
    config = MixingConfig(num_identities=5, seconds=0.1, supervision="speaker", unlabelled_probability=0.5)
    stream = MixtureStream(stream_utterances(tmp_path), config, **stream_options({}))
    utterances_of = {}
    for batch in take(stream, 30):
        for recipe, ids in zip(batch.recipes, batch["speaker_ids"].tolist(), strict=True):
            for source, speaker_id in zip(recipe.sources, ids, strict=False):
                utterances_of.setdefault(speaker_id, set()).update(piece.utterance for piece in source.pieces)
    speaker_of = {row["id"]: row["speaker_id"] or row["id"] for row in rows}
    found = [{speaker_of[name] for name in names} for names in utterances_of.values()]
    assert all(len(names) == 1 for names in found) and len(set.union(*found)) == len(found)
    assert len([names for names in found if names.pop().startswith("utt")]) > 10
    assert stream.counters()["skipped/no speaker"] == 0


def test_any_mixture_can_be_rebuilt_from_its_recipe_alone(tmp_path):
    """With recorded noise and rooms, speed, level, and long recordings that are held in part."""
    for name in ("speech", "noise", "rooms"):
        rows = make_rows(30, prefix=name)
        for row in rows:
            row["audio"]["bytes"] = encode(np.random.default_rng(len(row["id"])).normal(0, 0.1, 9000))
        write(tmp_path / name, rows)
    speech = stream_utterances(tmp_path / "speech")
    noise = stream_utterances(tmp_path / "noise", corpus="noise")
    rooms = stream_utterances(tmp_path / "rooms", corpus="rooms")
    config = MixingConfig(
        num_identities=5,
        seconds=0.1,
        noise_probability=1.0,
        reverb_probability=0.5,
        speed_probability=1.0,
        level_probability=1.0,
    )
    responses = read_impulse_responses(rooms)
    stream = MixtureStream(
        speech,
        config,
        noise=noise,
        impulse_responses=responses,
        noise_seconds=2,
        **stream_options({"seconds": 2.0}),
    )
    take(stream, 2)
    batch = next(iter(stream))
    starts = {p.start for recipe in batch.recipes for source in recipe.sources for p in source.pieces}
    assert max(starts) > 0.3 * 16000
    for number in (0, 7):
        recipe = json.loads(json.dumps(batch.recipes[number].to_dict()))
        recordings = itertools.chain(speech.rows(), noise.rows(), rooms.rows())
        mixture, sources, _ = rebuild(recipe, recordings)
        assert torch.equal(torch.from_numpy(mixture), batch["input_values"][number])
        assert torch.equal(torch.from_numpy(sources), batch["source_values"][number])


def test_recorded_noise_moves_on(corpus, tmp_path):
    write(tmp_path, make_rows(40, prefix="noise"))
    config = MixingConfig(num_identities=5, seconds=0.1, noise_probability=1.0)
    noise = stream_utterances(tmp_path, corpus="noise")
    stream = make_stream(corpus, config, noise=noise, noise_seconds=1.0)
    used = [{p.utterance for r in batch.recipes for p in r.noise.pieces} for batch in take(stream, 40)]
    assert len(used[0]) < 8 and len(set.union(*used)) > 30
    state = stream.state_dict()
    for change in (
        lambda: make_stream(corpus, config).load_state_dict(state),
        lambda: make_stream(corpus, config, num_workers=1).take_over([state]),
    ):
        with pytest.raises(ValueError, match="no recorded noise is given"):
            change()
    two = [stream_utterances(corpus, corpus=name) for name in "ab"]
    with pytest.raises(ValueError, match="2 datasets of speech: the state was saved with 1"):
        MixtureStream(two, config).take_over([state])


def test_noise_and_impulse_responses_are_checked(corpus, tmp_path):
    with pytest.raises(ValueError, match="corpus name None"):
        make_stream(corpus, noise=stream_utterances(corpus))
    rows = make_rows(4)
    rows[2]["audio"]["bytes"] = b"nothing"
    with pytest.raises(ValueError, match="cannot decode"):
        read_impulse_responses(stream_utterances(write(tmp_path, rows)))
    assert len(read_impulse_responses(stream_utterances(tmp_path), seconds=0.1)) == 1
