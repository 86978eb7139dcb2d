# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The fine-tuning scripts: on the speech that ships, as users run them, and on tones, which are learnt in seconds."""

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pyannote.core import Segment
from pyannote.metrics.diarization import DiarizationErrorRate
from safetensors.torch import load_file
from speech import encode, write
from transformers import AutoFeatureExtractor

from csc_hf import (
    CSCConfig,
    CSCForAudioFrameClassification,
    CSCForPreTraining,
    CSCForSequenceClassification,
    CSCForXVector,
)
from csc_hf.data.mixing import MixtureRecipe, Piece, SourceRecipe
from csc_hf.data.utterances import stream_utterances
from csc_hf.evaluation.trials import build_trials
from csc_hf.evaluation.verification import evaluate

EXAMPLES = Path(__file__).parents[2] / "examples"
MODELS = {
    "verification": CSCForXVector,
    "diarization": CSCForAudioFrameClassification,
    "classification": CSCForSequenceClassification,
}
SHORT = {
    "verification": "--max_steps 3 --batch_size 4 --seconds 1 --eval_recordings 2 --eval_seconds 1",
    "diarization": "--max_steps 3 --batch_size 2 --seconds 3 --eval_conversations 4",
    "classification": "--max_steps 3 --batch_size 4 --seconds 1",
}


def script(name):
    """The module of a script."""
    specification = importlib.util.spec_from_file_location(f"finetune_{name}", EXAMPLES / f"finetune_{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    config = CSCConfig.tiny(front_end="stft", hidden_dropout=0.0, attention_dropout=0.0)
    CSCForPreTraining(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=MODELS)
def finished(request, pretrained, tmp_path_factory):
    """A run on the demo speech: its name, its folder and what it printed."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    options = ["--model", pretrained, "--output_dir", folder, "--logging_steps", "1", *SHORT[name].split()]
    process = subprocess.run(
        [sys.executable, EXAMPLES / f"finetune_{name}.py", *options],
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return name, folder, process.stdout


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """Half a second of a tone and a little noise, where each pitch is a speaker: folders `train` and `test`."""
    folder = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    time = np.arange(8000) / 16000
    for part, pitches in (("train", (300, 600, 1200, 2400, 4800, 5500)), ("test", (400, 900, 1800, 3600))):
        rows = []
        for number in range(10 * len(pitches)):
            pitch = pitches[number % len(pitches)]
            samples = 0.2 * np.sin(2 * np.pi * pitch * time + rng.uniform(0, 6)) + rng.normal(0, 0.01, 8000)
            audio = {"bytes": encode(samples), "path": None}
            rows.append({"id": f"{part}-{number}", "audio": audio, "speaker_id": f"{pitch} Hz"})
        write(folder / part, rows)
    return folder


def tune(name, model, tones, folder, *options):
    """Runs a script on the tones in this process."""
    arguments = ["--model", model, "--train_data", tones / "train" / "*.parquet", "--output_dir", folder]
    if name != "classification":
        arguments += ["--eval_data", tones / "test" / "*.parquet"]
    arguments += ["--warmup_steps", "1", "--learning_rate", "0.01", *options]
    script(name).main([str(argument) for argument in arguments])


def test_it_reports_before_and_after(finished):
    name, folder, printed = finished
    results = results_of(folder)
    before, after = results["before"], results["after"]
    assert before != after
    for moment in (before, after):
        if name == "verification":
            figures = [f"{100 * moment['conditions'][c]['eer']:.1f}" for c in ("clean", "mix0", "mix0_mix0")]
            assert moment["num_speakers"] == 26
        elif name == "diarization":
            parts = moment["missed detection"] + moment["false alarm"] + moment["confusion"]
            assert parts == pytest.approx(moment["error_rate"])
            figures = [f"error_rate {100 * moment['error_rate']:.1f} %"]
        else:
            figures = [f"accuracy {moment['accuracy']:.3f}"]
        assert all(figure in printed for figure in figures)
    assert len(results["loss"]) == 3 and np.isfinite(results["loss"]).all()


def test_the_saved_folder_gives_the_same_figures(finished):
    name, folder, _ = finished
    module = script(name)
    results = results_of(folder)
    args = module.parse_args([])
    vars(args).update(results["settings"])
    model = MODELS[name].from_pretrained(folder).eval()
    assert AutoFeatureExtractor.from_pretrained(folder).min_samples == model.config.segment_samples
    if name == "verification":
        utterances = module.load_utterances(args, args.train_data, "test")
        trials = module.build_trials(utterances, args.seed, args.eval_seconds, args.eval_recordings)
        assert module.verify(model, AutoFeatureExtractor.from_pretrained(folder), trials) == results["after"]
    elif name == "diarization":
        utterances = module.load_utterances(args, args.train_data, "test")
        config = module.ConversationConfig(**{name: getattr(args, name) for name in module.CONVERSATION})
        unheard = module.Conversations(utterances, config, model.config, args.seed, args.eval_conversations)
        assert module.diarization_errors(model, unheard) == pytest.approx(results["after"])
    else:
        _, held_out = module.load_data(args)
        rows = held_out.with_transform(module.prepare("audio", args.seconds, at_random=False))
        with torch.no_grad():
            found = [model(torch.from_numpy(row["waveform"])[None]).logits.argmax().item() for row in rows]
        assert np.mean(np.array(found) == held_out["labels"]) == pytest.approx(results["after"]["accuracy"])
        assert model.config.id2label[found[0]].startswith("train-")


def moved(pretrained, folder):
    """Which parts of the encoder differ from the pre-trained one."""
    before, after = (load_file(path / "model.safetensors") for path in (pretrained, folder))
    shared = [key for key in after if key.startswith("csc.")]
    assert shared and set(shared) <= set(before)
    return {key.split(".")[1] for key in shared if not torch.equal(before[key], after[key])}


def test_the_whole_encoder_learns(finished, pretrained):
    _, folder, _ = finished
    assert moved(pretrained, folder) >= {"front_end", "layers", "slots", "speaker_branch"}


@pytest.mark.parametrize(("name", "learning"), [("verification", {"speaker_branch"}), ("diarization", set())])
def test_a_frozen_encoder_stays(name, learning, pretrained, tones, tmp_path):
    tune(name, pretrained, tones, tmp_path, "--freeze_encoder", *SHORT[name].split())
    assert moved(pretrained, tmp_path) == learning
    results = results_of(tmp_path)
    assert results["before"] != results["after"]


def test_classification_learns_pitches(pretrained, tones, tmp_path):
    options = ["--max_steps", "20", "--logging_steps", "5"]
    tune("classification", pretrained, tones, tmp_path / "full", *options)
    results = results_of(tmp_path / "full")
    assert results["loss"][-1] < 0.3 * results["loss"][0]
    assert results["before"]["accuracy"] < 0.5 and results["after"]["accuracy"] == 1.0
    assert results["num_held_out"] == 21 and results["accuracy_of_commonest_label"] < 0.2
    module = script("classification")
    parts = module.load_data(module.parse_args(["--train_data", str(tones / "train" / "*.parquet")]))
    assert [set(np.bincount(part["labels"])) for part in parts] == [{6, 7}, {3, 4}], "of each label a share"
    tune("classification", pretrained, tones, tmp_path / "frozen", "--freeze_encoder", *options)
    frozen = results_of(tmp_path / "frozen")
    assert moved(pretrained, tmp_path / "frozen") == set()
    assert frozen["loss"][-1] < frozen["loss"][0] and frozen["after"]["accuracy"] > frozen["before"]["accuracy"]


def test_verification_learns_pitches(pretrained, tones, tmp_path):
    options = "--max_steps 30 --batch_size 8 --logging_steps 5 --seconds 0.5 --eval_seconds 0.5"
    tune("verification", pretrained, tones, tmp_path, *options.split())
    loss = results_of(tmp_path)["loss"]
    assert loss[-1] < 0.3 * loss[0]


def test_diarization_learns_pitches(pretrained, tones, tmp_path):
    options = "--max_steps 40 --logging_steps 5 --seconds 3 --eval_conversations 10 --turn_seconds 0.3 0.5"
    options += " --overlap_seconds 0.1 0.4 --noise_probability 0"
    tune("diarization", pretrained, tones, tmp_path, *options.split())
    results = results_of(tmp_path)
    assert results["loss"][-1] < 0.7 * results["loss"][0]
    assert results["after"]["error_rate"] < 0.7 * results["after"]["error_rate_of_one_speaker"]


def test_the_diarization_loss_is_that_of_the_best_order():
    module = script("diarization")
    torch.manual_seed(0)
    model = CSCForAudioFrameClassification(CSCConfig.tiny(num_labels=3)).eval()
    audio = torch.randn(1, 3000)
    labels = torch.randint(0, 2, (1, model.config.num_segments(3000), 3)).float()
    with torch.no_grad():
        logits = model(audio).logits
        loss = module.permutation_invariant_loss(logits, labels)
        own = [model(audio, labels=labels[..., list(order)]).loss for order in module.itertools.permutations(range(3))]
    torch.testing.assert_close(loss, min(own))
    assert max(own) > min(own) + 1e-4
    # Each conversation of a batch has its own best order.
    perfect = torch.stack([labels[0], labels[0][:, [2, 0, 1]]])
    assert module.permutation_invariant_loss(20 * labels.expand(2, -1, -1) - 10, perfect) < 1e-3


def test_diarization_is_scored_in_time():
    """Segment s stands for the samples about s times the stride; overlaps count for each speaker."""
    module = script("diarization")
    active = np.zeros((2, 16000), dtype=bool)
    active[0, 2000:8000] = True
    active[1, 6000:] = True
    reference = module.annotation(active, 16000)
    assert [(s.start, s.end) for s in reference.get_timeline()] == [(0.125, 0.5), (0.375, 1.0)]

    class Perfect(torch.nn.Module):
        config = CSCConfig.tiny()

        def forward(self, waveform):
            labels = module.segment_labels(active, self.config.num_segments(16000), self.config.segment_stride)
            return SimpleNamespace(logits=torch.from_numpy(labels)[None] - 0.5)

    found = module.diarize(Perfect(), torch.zeros(16000))
    assert found.get_timeline().extent().end == 1.0
    # Three edges are off by at most half a stride, of 16 ms; the fourth is the end of the recording.
    error = DiarizationErrorRate()(reference, found, uem=Segment(0, 1))
    assert 0 < error <= 3 * 0.008


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("verification", ["--train_data", "some/*.parquet"], "--eval_data"),
        ("diarization", ["--train_data", "some/*.parquet"], "--eval_data"),
        (
            "verification",
            ["--eval_data", "{tones}/train/*.parquet", "--train_data", "{tones}/train"],
            "keep them apart",
        ),
        (
            "diarization",
            ["--eval_data", "{tones}/train/*.parquet", "--train_data", "{tones}/train"],
            "keep them apart",
        ),
        ("classification", ["--label_column_name", "mood"], "--label_column_name mood"),
        ("classification", ["--train_data", "{tones}/train", "--eval_data", "{tones}/test/*.parquet"], "'1800 Hz'"),
    ],
)
def test_wrong_options_are_named(name, options, named, tones, tmp_path, capsys):
    options = [option.format(tones=tones) for option in options]
    with pytest.raises(SystemExit) as error:
        script(name).main(["--model", "tiny", "--output_dir", str(tmp_path), *options])
    assert named in capsys.readouterr().err + str(error.value)


# --- finetune_mixtures.py: every talker of a mixture -----------------------------------------------------------------


def test_mixtures_are_classified_slot_by_slot(pretrained):
    """Whatever the order of a mixture's talkers; but who is in which slot matters."""
    model = script("mixtures").SlotClassifier(CSCForPreTraining.from_pretrained(pretrained), 5, 0.5).eval()
    torch.manual_seed(0)
    sources = torch.randn(4, 2, 8000)
    sources[3, 1] = 0
    speakers = torch.tensor([[0, 1], [2, 0], [1, 2], [4, -100]])

    def losses(sources, ids, speakers):
        batch = {"input_values": sources.sum(1), "source_values": sources, "speaker_ids": ids}
        with torch.no_grad():
            return model(speakers, batch)

    expected = losses(sources, speakers, speakers)
    swapped = losses(sources.flip(1), speakers.flip(1), speakers.flip(1))
    torch.testing.assert_close(swapped, expected, atol=1e-4, rtol=1e-4)
    mistaken = losses(sources, speakers, torch.tensor([[1, 0], [0, 2], [2, 1], [4, -100]]))
    assert not torch.isclose(mistaken[1], expected[1], rtol=1e-4)
    output = model.model(sources.sum(1), source_values=sources, speaker_ids=speakers)
    torch.testing.assert_close(expected[0], output.loss + 0.5 * expected[1])


def test_mixtures_teach_who_speaks(pretrained, tones, tmp_path):
    options = "--max_steps 25 --num_identities 5 --seconds 0.5 --eval_seconds 0.5 --logging_steps 1 --cpu_threads 1"
    tune("mixtures", pretrained, tones, tmp_path / "run", *options.split())
    results = results_of(tmp_path / "run")
    assert np.mean(results["accuracy"][-5:]) > 0.6 > 0.4 > np.mean(results["accuracy"][:3])  # of six
    assert results["loss"][-1] < results["loss"][0]
    assert results["before"]["num_speakers"] == 4
    model = CSCForPreTraining.from_pretrained(tmp_path / "run")
    held_out = stream_utterances(str(tones / "test" / "*.parquet"), "test", "audio", "speaker_id", None, "id")
    assert evaluate(model, build_trials(held_out, 0, 0.5, 6)) == results["after"]


@pytest.fixture
def two_data_sets(tones, tmp_path):
    """The same tones twice."""
    shutil.copytree(tones / "train", tmp_path / "other")
    return [str(folder / "*.parquet") for folder in (tones / "train", tmp_path / "other")]


def test_mixtures_of_several_data_sets_at_several_speeds(pretrained, tones, two_data_sets, tmp_path):
    """A speaker of another data set is another one, and he is three by his speeds."""
    module, numbers = script("mixtures"), []
    number_slots = module.number_slots
    module.number_slots = lambda *args: numbers.append(number_slots(*args)) or numbers[-1]
    options = "--max_steps 6 --num_identities 5 --seconds 0.5 --eval_seconds 0.5 --cpu_threads 1"
    options += " --speed_probability 1 --reverb_probability 0.5"
    folders = ["--model", str(pretrained), "--output_dir", str(tmp_path / "run")]
    data = ["--train_data", *two_data_sets, "--eval_data", str(tones / "test" / "*.parquet")]
    module.main([*folders, *data, *options.split()])
    numbers = set(torch.cat(numbers).flatten().tolist()) - {-100}
    assert numbers <= set(range(2 * 6 * 3))
    assert {number // 18 for number in numbers} == {0, 1} and {number % 3 for number in numbers} == {0, 1, 2}


def test_mixtures_in_two_processes(pretrained, tones, tmp_path):
    rows = [row for file in sorted((tones / "train").glob("*")) for row in pq.read_table(file).to_pylist()]
    again = [row | {"id": f"again {row['id']}"} for row in rows[1:] + rows[:1]]  # now each half has all pitches
    write(tmp_path / "data", rows + again)
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    launcher += ["--config_file", EXAMPLES / "accelerate_configs" / "cpu_2_processes.yaml"]
    data = [f"--train_data={tmp_path / 'data' / '*.parquet'}", f"--eval_data={tones / 'test' / '*.parquet'}"]
    options = "--max_steps 2 --num_identities 5 --seconds 0.5 --eval_seconds 0.5 --cpu_threads 1 --logging_steps 1"
    process = subprocess.run(
        [*launcher, EXAMPLES / "finetune_mixtures.py", "--model", pretrained, "--output_dir", tmp_path / "run"]
        + [*data, *options.split()],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert results_of(tmp_path / "run")["num_processes"] == 2
    before, after = (load_file(folder / "model.safetensors") for folder in (pretrained, tmp_path / "run"))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_speaker_is_three_by_his_speeds():
    piece = Piece("utterance", 0, 100, 0)

    def recipe(*speeds):
        sources = [SourceRecipe(n, (piece,), None, speed) for n, speed in enumerate(speeds)]
        return MixtureRecipe(100, 2, tuple(sources), None)

    number = functools.partial(script("mixtures").number_slots, number_of={"utterance": 5})
    recipes = [recipe(1.0, 1.14), recipe(0.86), recipe(0.95, 1.05), recipe(0.94, 1.06)]
    assert number(recipes[:1], num_speeds=1).tolist() == [[5, 5]]
    assert number(recipes, num_speeds=3).tolist() == [[15, 16], [17, -100], [15, 15], [17, 16]]


@pytest.mark.parametrize("num_data_sets", [1, 2])
def test_mixtures_need_other_speakers_to_be_judged_by(num_data_sets, pretrained, two_data_sets, tmp_path):
    folders = ["--model", str(pretrained), "--output_dir", str(tmp_path / "run")]
    data = ["--train_data", *two_data_sets[:num_data_sets], "--eval_data", two_data_sets[0]]
    with pytest.raises(SystemExit, match="keep them apart"):
        script("mixtures").main(folders + data)
