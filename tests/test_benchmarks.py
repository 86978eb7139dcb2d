# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The benchmarks run. What they measure depends on the machine and is not tested."""

import functools
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pretraining_runs
import pyarrow.parquet as pq
import pytest
import speech
import torch
import yaml

from csc_hf import CSCConfig, CSCForPreTraining
from csc_hf.audio import decode_audio
from csc_hf.data.utterances import stream_utterances

ROOT = Path(__file__).resolve().parents[1]
VERIFICATION = ROOT / "benchmarks" / "verification"
LABEL_FREE = ROOT / "benchmarks" / "label_free"
sys.path += [str(ROOT / "benchmarks"), str(VERIFICATION), str(LABEL_FREE)]  # the scripts import each other
import against_peers  # noqa: E402
import contenders  # noqa: E402
import measure  # noqa: E402
import prepare  # noqa: E402
import pretraining_step  # noqa: E402
import split_speakers  # noqa: E402
import tables  # noqa: E402

needs_torchaudio = pytest.mark.skipif(
    importlib.util.find_spec("torchaudio") is None, reason="needs torchaudio: pip install 'csc-hf[baselines]'"
)


@pytest.mark.release
def test_stream_throughput():
    small = ["--rounds", "1", "--groups", "1", "--steps", "1", "--memory_seconds", "1000"]
    script = str(ROOT / "benchmarks" / "stream_throughput.py")
    process = subprocess.run([sys.executable, script, *small], capture_output=True, text=True, timeout=500)
    assert process.returncode == 0, process.stderr
    assert len(re.findall(r"stream, (plain|augmented), [02] workers +\d+ +[\d.]+ x the model's", process.stdout)) == 4
    assert re.search(r"memory after 25 rows \d+ MB, after 250 rows \d+ MB: [+-][\d.]+ %", process.stdout)


@pytest.mark.release
@pytest.mark.timeout(1500)
def test_deploy(tmp_path):
    CSCForPreTraining(CSCConfig.tiny(frame_activity=True)).save_pretrained(tmp_path / "model")
    script, output = str(ROOT / "benchmarks" / "deploy.py"), tmp_path / "deploy.md"
    short = ["--rounds", "1", "--seconds", "1", "--threads", "1", "--recordings", "2", "--output", str(output)]
    command = [sys.executable, script, "--model", str(tmp_path / "model"), *short]
    process = subprocess.run(command, capture_output=True, text=True, timeout=1400)
    assert process.returncode == 0, process.stderr
    report = output.read_text(encoding="utf-8")
    assert report.strip() in process.stdout
    number = r"[\d.]+"
    for way in ("PyTorch", "ONNX Runtime, int8"):
        # EER of each condition, SI-SDRi, size of the file, start-up, memory.
        cells = rf"({number} \| ){{3}}-?{number} \| ({number})? \| {number} \| {number}"
        assert re.search(rf"^\| {re.escape(way)} \| {cells} \|$", report, re.MULTILINE), report
    assert re.search(
        rf"^\| ONNX Runtime \| (the same \| ){{4}}{number} \| {number} \| {number} \|$", report, re.MULTILINE
    )
    for way, count in (("PyTorch, compiled", 1), ("ONNX Runtime", 2), ("ONNX Runtime, int8", 2)):
        row = rf"^\| {re.escape(way)} \| \d+ \({number} ×\) \|$"
        assert len(re.findall(row, report, re.MULTILINE)) == count, report


def test_split_speakers(tmp_path):
    rows = [
        row | {"licence": licence, "seconds": 0.25}
        for source, licence in (("studio", "CC BY 4.0"), ("phone", "MIT"), ("game", "GPL-2"))
        for row in speech.make_rows(24, source=source, prefix=source)
    ]
    for row in rows:
        row["speaker_id"] = f"{row['source']}-{row['speaker_id']}"
    speech.write(tmp_path / "all", rows, shards=2)
    arguments = [str(tmp_path / "all" / "*.parquet"), str(tmp_path), "--leave_out", "GPL", "--dev_share", "0.25"]
    split_speakers.main(arguments)
    parts = {
        name: [row for file in (tmp_path / name).glob("*.parquet") for row in pq.read_table(file).to_pylist()]
        for name in ("train", "dev")
    }
    by_id = {row["id"]: row for row in rows if row["licence"] != "GPL-2"}
    assert {row["id"]: row for part in parts.values() for row in part} == by_id
    speakers = {name: {row["speaker_id"] for row in part} for name, part in parts.items()}
    assert not speakers["train"] & speakers["dev"]
    assert sorted(speaker.split("-")[0] for speaker in speakers["dev"]) == ["phone"] * 2 + ["studio"] * 2


def test_label_free_training(tmp_path):
    """The speech is prepared as its page says, and the recipe trains on it: here two steps of a smaller model."""

    def rows_of(source, count, licence="MIT"):
        rows = speech.make_rows(count, source=source, prefix=source)
        return [
            row | {"speaker_id": f"{source}-{row['speaker_id']}", "licence": licence, "seconds": 0.25} for row in rows
        ]

    labelled = [*rows_of("sessions", 80), *rows_of("words", 16), *rows_of("game", 16, "GPL-2"), *rows_of("dev", 16)]
    corpus = tmp_path / "corpus"
    speech.write(corpus / "labelled", labelled, shards=2)
    speech.write(corpus / "unlabelled", rows_of("phone", 4), shards=1)
    speech.write(corpus / "noise", rows_of("hum", 4), shards=1)
    options = ["--one_session", "sessions", "--dev_only", "dev", "--leave_out", "GPL", "--dev_share", "0.25"]
    options += ["--min_seconds", "0.2", "--max_seconds", "1.1", "--output_dir", str(tmp_path)]
    options += ["--label_shares", "50", "100"]
    for name in ("labelled", "unlabelled", "noise"):
        options += [f"--{name}", str(corpus / name / "*.parquet")]
    prepare.main(options)
    parts = {
        name: [row for file in (tmp_path / name).glob("part-*.parquet") for row in pq.read_table(file).to_pylist()]
        for name in ("recordings", "people", "dev", "noise", "labels-50", "labels-100")
    }
    speakers = {name: {row["speaker_id"] for row in part} for name, part in parts.items()}
    assert {row["source"] for row in parts["recordings"]} == {"sessions", "phone"}
    assert {row["source"] for row in parts["people"]} == {"words"}
    assert {row["source"] for row in parts["dev"]} == {"sessions", "words", "dev"}
    assert not (speakers["recordings"] | speakers["people"]) & speakers["dev"] and len(parts["noise"]) == 4
    assert speakers["labels-50"] < speakers["labels-100"] and not speakers["labels-100"] & speakers["dev"]
    assert len(speakers["labels-50"]) == len(speakers["labels-100"]) // 2
    heard = speakers["recordings"] | speakers["people"]
    assert {speaker for speaker in heard if not speaker.startswith("phone")} <= speakers["labels-100"]
    seconds = {row["id"]: row["seconds"] for row in parts["recordings"]}
    assert len(seconds) == len(parts["recordings"]) and max(seconds.values()) <= 1.1
    for row in (row for row in parts["recordings"] if row["source"] == "sessions"):
        assert len(decode_audio(row["audio"])) == round(16_000 * row["seconds"])

    recipe = yaml.safe_load((LABEL_FREE / "utterance.yaml").read_text())
    recipe |= {"train_data": str(tmp_path / "recordings" / "*.parquet"), "source_column_name": "source"}
    recipe |= {"noise_data": str(tmp_path / "noise" / "*.parquet"), "min_seconds": 0.2, "reservoir_seconds": 90}
    recipe |= {"per_device_train_batch_size": 5, "max_train_steps": 2, "logging_steps": 1}
    recipe["model"] |= {"hidden_size": 16, "lstm_hidden_size": 16, "num_recording_classes": 30, "mask_hidden_size": 8}
    recipe["mixing"] |= {"seconds": 0.1, "curriculum_batches": [0, 1]}
    assert pretraining_runs.run(tmp_path / "run", "--log_batches", options=recipe) == 0
    first, second = pretraining_runs.batches(tmp_path / "run")["batches-0.jsonl"]
    assert all(len(mixture["sources"]) == 1 for mixture in first["recipes"])
    kinds = {effect["effect"] for mixture in [*first["recipes"], *second["recipes"]] for effect in mixture["effects"]}
    assert kinds == {"Channel"} and 2 < first["recording_loss"] < 6
    trained = CSCForPreTraining.from_pretrained(tmp_path / "run")
    assert trained.config.speaker_block == "conv" and trained.recording_classifier.weight.shape == (30, 192)
    assert trained.csc.speaker_branch.blocks[0].batch_norm.running_mean.any()


def test_each_background_process_gets_a_copy(tmp_path):
    rows = [row | {"licence": "MIT", "seconds": 0.25} for row in speech.make_rows(24, speakers=8)]
    speech.write(tmp_path / "labelled", rows)
    options = ["--labelled", str(tmp_path / "labelled" / "*.parquet"), "--output_dir", str(tmp_path), "--keep_rows"]
    prepare.main([*options, "--copies", "2", "--num_shards", "3"])
    with pytest.raises(SystemExit):  # nothing would be copied
        prepare.main([*options[:-1], "--copies", "2"])
    kept = {row["id"] for file in (tmp_path / "train").glob("*") for row in pq.read_table(file).to_pylist()}
    stream = stream_utterances(str(tmp_path / "train-copies" / "*.parquet"))
    shares = [[row.id for row in stream.rows(share=copy, num_shares=2)] for copy in range(2)]
    assert sorted(shares[1]) == sorted(f"copy 1/{id}" for id in kept) and not set(shares[0]) & set(shares[1])
    assert [id.partition("/")[2] for id in shares[0]] == [id.partition("/")[2] for id in shares[1]]


@needs_torchaudio
@pytest.mark.release
@pytest.mark.timeout(900)
def test_label_free_comparison(tmp_path, monkeypatch, capsys):
    """run.sh trains, fine-tunes from what it trained and from nothing, verifies each, and goes on where it was cut
    off; tables.py reads what it leaves."""
    rng = np.random.default_rng(0)
    rows = [
        row | {"audio": {"bytes": speech.encode(rng.normal(0, 0.1, 9600)), "path": None}}
        for row in speech.make_rows(64, source="words")
    ]
    for folder in ("recordings", "labels-100", "noise"):
        speech.write(tmp_path / "data" / folder, rows, shards=4)
    others = [row | {"speaker_id": f"other {row['speaker_id']}"} for row in rows]
    speech.write(tmp_path / "data" / "dev", others, shards=1)
    speech.write(tmp_path / "phone" / "heldout", rows, shards=1)
    speech.write(tmp_path / "phone" / "noise", rows[:4], shards=1)
    (noise,) = (tmp_path / "phone" / "noise").glob("*.parquet")
    noise.rename(noise.with_name("heldout.parquet"))
    size = (
        "--model.hidden_size 16 --model.lstm_hidden_size 16 --model.speaker_hidden_size 16 --model.num_hidden_layers 1"
    )
    short = "--reservoir_seconds 90 --per_device_train_batch_size 5 --mixing.seconds 0.1 --log_batches"
    settings = {"STEPS": "2", "LABEL_STEPS": "2", "SHARES": "100", "PEERS": "mfcc", "VERIFY": "--seconds 0.5"}
    settings |= {"PRETRAIN": f"{size} {short}", "FINETUNE": "--seconds 0.1 --num_identities 5 --eval_seconds 0.5"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "out"
    command = [str(LABEL_FREE / "run.sh"), str(tmp_path / "data"), str(out), str(tmp_path / "phone")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert process.returncode == 0, process.stderr
    assert [len(pretraining_runs.batches(out / name)["batches-0.jsonl"]) for name in ("untrained", "label_free")] == [
        20,
        2,
    ]

    def heard(name):
        recipes = [r for entry in pretraining_runs.batches(out / name)["batches-0.jsonl"] for r in entry["recipes"]]
        return {piece["utterance"] for r in recipes for source in r["sources"] for piece in source["pieces"]}

    for name, shards in (("label_free-25", 1), ("label_free-50", 2)):
        assert heard(name) <= {row["id"] for shard in range(shards) for row in rows[shard::4]}

    def weights(name):
        return CSCForPreTraining.from_pretrained(out / name).csc.speaker_branch.embedding.weight

    assert not torch.equal(weights("untrained"), weights("label_free"))
    for start in ("untrained", "label_free"):
        change = (weights(f"labels-100-from-{start}") - weights(start)).abs().max()
        assert 0 < change < 0.01  # two short steps from these weights
    tables.main([str(out), "--picture", str(tmp_path / "labels.png"), "--shares", "100"])
    printed = capsys.readouterr().out
    for system in ("mfcc", "untrained", "untrained_v1", "label_free", "label_free-25", "labels-100-from-untrained"):
        assert re.search(rf"^\| {system} \|( [\d.]+ \([\d.]+–[\d.]+\) / [\d.]+ \|){{4}}", printed, re.MULTILINE), (
            printed
        )
    assert (tmp_path / "labels.png").stat().st_size > 10_000
    assert (out / "probe.md").read_text().count("| label_free |") == 3


@pytest.mark.parametrize(
    "name, changes",
    [
        ("utterance", {"mixing.supervision": "utterance"}),
        ("no_cross_attention", {"model.use_cross_attention": False}),
        ("no_separation", {"model.separation_loss_weight": 0.0}),
        ("mingru", {"model.local_layer": "mingru"}),
        ("three_observations", {"per_device_train_batch_size": 8, "mixing.num_observations": 3}),
    ],
)
def test_the_runs_differ_in_one_thing(name, changes):
    def flat(name):
        options = yaml.safe_load((VERIFICATION / f"{name}.yaml").read_text())
        nested = {f"{part}.{key}": value for part in ("model", "mixing") for key, value in options.pop(part).items()}
        return options | nested

    assert flat(name) == flat("speaker") | changes


# --- measure ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module, shape, expected",
    [
        (torch.nn.Linear(3, 5), (7, 3), 7 * 3 * 5),
        (torch.nn.Conv1d(2, 5, 4, bias=False), (1, 2, 10), 7 * 2 * 5 * 4),
        (torch.nn.LSTM(5, 7, batch_first=True), (2, 3, 5), 2 * 3 * 4 * 7 * (5 + 7)),
        (torch.nn.LSTM(5, 7, 2, bidirectional=True), (3, 2, 5), 2 * 3 * 2 * 4 * 7 * ((5 + 7) + (14 + 7))),
    ],
)
def test_multiply_accumulates(module, shape, expected):
    inputs = torch.randn(shape)
    with torch.no_grad():
        assert measure.multiply_accumulates(lambda: module(inputs)) == expected

    def train():
        output = module(inputs.clone().requires_grad_())
        (output[0] if isinstance(output, tuple) else output).sum().backward()

    assert measure.multiply_accumulates(train) == 3 * expected


def test_multiply_accumulates_of_attention():
    query, key = torch.randn(1, 2, 8, 4), torch.randn(1, 2, 6, 4)
    attend = functools.partial(torch.nn.functional.scaled_dot_product_attention, query, key, key)
    assert measure.multiply_accumulates(attend) == 2 * 8 * 6 * (4 + 4)


def test_parameters():
    assert measure.parameters(torch.nn.Linear(3, 5)) == 20
    assert measure.parameters(torch.nn.LSTM(5, 7)) == 4 * 7 * (5 + 7 + 2)


def test_interleave():
    """Every round runs every step, after one that does not count."""
    calls = []
    steps = {name: functools.partial(calls.append, name) for name in "ab"}
    seconds = measure.interleave(steps, rounds=3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert {name: times.shape for name, times in seconds.items()} == {"a": (3,), "b": (3,)}


def memory_of_arrays() -> tuple[float, int]:
    """Peak memory of 64 MB in a process that had 256 MB before, and its threads."""
    np.ones(2**25)
    return measure.peak_memory(lambda: np.ones(2**23)), torch.get_num_threads()


@pytest.mark.release
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_peak_memory(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    held = np.ones(2**26)  # 512 MB of the parent do not count
    memory, threads = measure.alone(memory_of_arrays, threads=1)
    assert held.nbytes / 1e6 > 500
    assert memory == pytest.approx(67, abs=5)
    assert threads == 1


def test_table_and_spread():
    assert measure.spread(np.array([3.0, 1.0, 2.0, 5.0, 4.0])) == "3.00 (2.00 to 4.00)"
    assert measure.table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


# --- against peers ---------------------------------------------------------------------------------------------------


def build_absent() -> torch.nn.Module:
    import a_package_that_nobody_has  # noqa: F401


def test_compare(monkeypatch):
    """A peer that is not installed does not keep the others from being measured."""
    # In this process: that of `alone` is tested above.
    monkeypatch.setattr(against_peers, "alone", lambda function, *args, threads: function(*args))
    entries = [
        against_peers.Contender("wide", functools.partial(torch.nn.Linear, 16, 32)),
        against_peers.Contender("narrow", functools.partial(torch.nn.Linear, 16, 8)),
        against_peers.Contender("absent", build_absent, "pip install it"),
    ]
    workload = against_peers.Workload((10, 16), audio_seconds=1.0, training=True)
    rows = against_peers.compare(entries, workload, rounds=2, threads=1, memory=False)
    assert (rows["wide"].parameters, rows["narrow"].parameters) == (544, 136)
    assert (rows["wide"].macs, rows["narrow"].macs) == (3 * 5120, 3 * 1280)
    assert rows["narrow"].seconds.shape == (2,)
    assert "a_package_that_nobody_has" in rows["absent"] and "pip install it" in rows["absent"]
    shown = against_peers.show(rows, "wide", workload)
    assert [line.split("|")[1].strip() for line in shown.splitlines()[2:]] == ["wide", "narrow", "absent"]
    assert against_peers.quotient(rows, "absent", "wide") == "not measured"
    rows["wide"].seconds, rows["narrow"].seconds = np.array([2.0, 4.0]), np.array([1.0, 1.0])
    assert against_peers.quotient(rows, "wide", "narrow") == "3.00 (2.50 to 3.50) ×"


@needs_torchaudio
def test_we_are_no_larger_than_what_we_are_compared_with():
    with torch.device("meta"):
        ours, conv_tasnet = contenders.csc_separation(), contenders.TorchaudioConvTasNet()
    assert measure.parameters(ours) <= measure.parameters(conv_tasnet)


def test_contenders_take_the_same_input():
    for layer in ("lstm", "mingru"):
        assert contenders.GALRTrunk(layer)(torch.randn(1, 3, 100, 64)).shape == (1, 300, 64)
        with torch.no_grad():
            assert contenders.csc_separation(layer)(torch.randn(1, 8000)).shape == (1, 2, 8000)
            assert contenders.csc_small_embeddings(layer)(torch.randn(2, 8000)).shape == (2, 2, 192)


# --- the step of pre-training ----------------------------------------------------------------------------------------


def test_every_slot_takes_part_in_the_contrast():
    batch = pretraining_step.make_batch(num_identities=6, length=0.1)
    assert batch["speaker_ids"].flatten().bincount().tolist() == [4] * 6
    assert len(batch["speaker_ids"].unique(dim=0)) == 12  # with another interferer each time
    output = CSCForPreTraining(CSCConfig.tiny())(**batch)
    assert (output.global_speaker_vectors.norm(dim=-1) > 0.99).all()


def test_shares_of_parts():
    variant = pretraining_step.Variant("tiny", CSCConfig.tiny(), num_identities=6)
    shares = pretraining_step.shares_of_parts(*pretraining_step.make_step(variant, length=0.1))
    assert set(shares) == {*pretraining_step.PARTS.values(), "the rest"}
    assert all(0 < share < 1 for share in shares.values())
    assert sum(shares.values()) == pytest.approx(1)


# --- all of it -------------------------------------------------------------------------------------------------------


@pytest.mark.release
def test_run_all(tmp_path):
    small = ["--rounds", "1", "--scale", "0.01", "--threads", "1", "--output", str(tmp_path / "README.md")]
    script = str(ROOT / "benchmarks" / "run_all.py")
    process = subprocess.run([sys.executable, script, *small], capture_output=True, text=True, timeout=500)
    assert process.returncode == 0, process.stderr
    text = (tmp_path / "README.md").read_text()
    assert re.findall("^## (.*)$", text, re.M) == [
        "GALR against DPRNN",
        "Speaker embeddings",
        "Separation",
        "Growth",
        "Pre-training step",
        *(["Pre-training step on a GPU"] if torch.cuda.is_available() else []),
    ]
    assert "--rounds 1 --scale 0.01" in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert all(len(row) in (2, 4, 6, 7) for row in rows)
    summary = {row[0] for row in rows if len(row) == 2}
    assert len(summary) >= 2 + 16  # with its header
    measured = {row[0] for row in rows if len(row) == 7 and re.fullmatch(r"[\d.]+ M", row[1])}
    assert {"GALR (csc_hf)", "small (csc_hf)", "WavLM base x-vector (Transformers)"} <= measured
    assert "CSC, conv front end (csc_hf)" in measured
