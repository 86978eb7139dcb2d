# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The fine-tuning scripts, on the speech that ships and on tones, which are learnt in seconds."""

import contextlib
import functools
import importlib.util
import io
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from pretraining_runs import LAUNCH, TWO_PROCESSES, launch, reset_accelerate, results_of
from pyannote.core import Segment
from pyannote.metrics.diarization import DiarizationErrorRate
from safetensors import safe_open
from safetensors.torch import load_file
from speech import encode, write
from transformers import AutoFeatureExtractor

from csc_hf import (
    CSCConfig,
    CSCForAudioFrameClassification,
    CSCForPreTraining,
    CSCForSequenceClassification,
    CSCForSpeakerVerification,
    CSCForXVector,
)
from csc_hf.data.mixing import MixingConfig, MixtureRecipe, Piece, SourceRecipe
from csc_hf.data.stream import MixtureStream
from csc_hf.data.utterances import stream_utterances
from csc_hf.evaluation.trials import build_trials
from csc_hf.evaluation.verification import evaluate
from csc_hf.training import teacher
from csc_hf.training.finetuning import SpeechArguments, SpeechReservoir, load_model, open_speech

EXAMPLES = Path(__file__).parents[2] / "examples"
MODELS = {
    "verification": CSCForXVector,
    "diarization": CSCForAudioFrameClassification,
    "classification": CSCForSequenceClassification,
}
SHORT = {
    "verification": "--max_steps 3 --batch_size 4 --seconds 0.5 --eval_recordings 2 --eval_seconds 0.5",
    "diarization": "--max_steps 3 --batch_size 2 --seconds 3 --eval_conversations 4",
    "classification": "--max_steps 3 --batch_size 4 --seconds 0.5",
    "mixtures": "--max_steps 3 --num_identities 5 --seconds 0.5 --eval_seconds 0.5 --eval_recordings 2",
    "scorer": "--max_steps 3 --num_identities 5 --seconds 0.5 --eval_seconds 0.5 --eval_recordings 2",
}


@functools.cache
def script(name):
    """The module of a script."""
    specification = importlib.util.spec_from_file_location(f"finetune_{name}", EXAMPLES / f"finetune_{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # where dataclasses look for their types
    specification.loader.exec_module(module)
    return module


def main(name, *arguments):
    """Run a script in this process; returns what it printed."""
    reset_accelerate()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        script(name).main([str(argument) for argument in (*arguments, "--cpu_threads", 1)])
    return printed.getvalue()


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
    return name, folder, main(name, *options)


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
    """Run a script on the tones in this process."""
    arguments = ["--model", model, "--train_data", tones / "train" / "*.parquet", "--output_dir", folder]
    if name != "classification":
        arguments += ["--eval_data", tones / "test" / "*.parquet"]
    return main(name, *arguments, "--warmup_steps", "1", "--learning_rate", "0.01", *options)


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
    settings = dict(results["settings"])
    demo = str(Path(__file__).parents[2] / "examples" / "demo_speech")
    published = settings["train_data"]  # without the path of this machine
    assert published in ("demo_speech", ["demo_speech"])
    settings["train_data"] = demo if isinstance(published, str) else [demo]
    args = module.Arguments(**settings)
    model = MODELS[name].from_pretrained(folder).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    assert extractor.min_samples == model.config.segment_samples
    if name == "verification":
        trials = open_speech(args).build_trials(args.seed, args.eval_seconds, args.eval_recordings)
        assert module.verify(model, trials) == results["after"]
        assert model.config.id2label[0].startswith("train-")
    elif name == "diarization":
        config = module.ConversationConfig(**results["conversation"])
        unheard = SpeechReservoir(open_speech(args).held_out, args)
        unheard = module.Conversations(unheard, config, model.config, args.seed, args.eval_conversations)
        assert module.diarization_errors(model, unheard) == pytest.approx(results["after"])
    else:
        _, held_out = module.load_tables(args)
        rows = [row for row in module.Recordings(held_out, args.seconds, at_random=False)]
        with torch.no_grad():
            found = [model(torch.from_numpy(row["waveform"])[None]).logits.argmax().item() for row in rows]
        right = [label == row["labels"] for label, row in zip(found, rows, strict=True)]
        assert np.mean(right) == pytest.approx(results["after"]["accuracy"])
        assert model.config.id2label[found[0]].startswith("train-")
    assert f'from_pretrained("{folder.name}"' in (folder / "README.md").read_text()


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
    options = ["--max_steps", "16", "--logging_steps", "4"]
    tune("classification", pretrained, tones, tmp_path / "full", *options)
    results = results_of(tmp_path / "full")
    assert results["loss"][-1] < 0.3 * results["loss"][0]
    assert results["before"]["accuracy"] < 0.5 and results["after"]["accuracy"] == 1.0
    assert results["num_held_out"] == 20 and results["accuracy_of_commonest_label"] < 0.2
    module = script("classification")
    parts = module.load_tables(module.Arguments(train_data=str(tones / "train" / "*.parquet")))
    assert [set(np.bincount(part["labels"])) for part in parts] == [{6, 7}, {3, 4}], "of each label a share"
    tune("classification", pretrained, tones, tmp_path / "frozen", "--freeze_encoder", *options)
    frozen = results_of(tmp_path / "frozen")
    assert moved(pretrained, tmp_path / "frozen") == set()
    assert frozen["loss"][-1] < frozen["loss"][0] and frozen["after"]["accuracy"] > frozen["before"]["accuracy"]


def test_verification_learns_pitches(pretrained, tones, tmp_path):
    options = "--max_steps 20 --batch_size 8 --logging_steps 4 --seconds 0.5 --eval_seconds 0.5"
    tune("verification", pretrained, tones, tmp_path, *options.split())
    loss = results_of(tmp_path)["loss"]
    assert loss[-1] < 0.3 * loss[0]


def test_diarization_learns_pitches(pretrained, tones, tmp_path):
    options = "--max_steps 25 --logging_steps 5 --seconds 3 --eval_conversations 6 --turn_seconds 0.3 0.5"
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


@pytest.mark.parametrize("options", [{}, {"segment_length": 16, "segment_overlap": False}])
def test_diarization_is_scored_in_time(options):
    """A segment stands for the samples about its centre; overlaps count for each speaker."""
    module = script("diarization")
    active = np.zeros((2, 16000), dtype=bool)
    active[0, 2000:8000] = True
    active[1, 6000:] = True
    reference = module.annotation(active, 16000)
    assert [(s.start, s.end) for s in reference.get_timeline()] == [(0.125, 0.5), (0.375, 1.0)]

    class Perfect(torch.nn.Module):
        config = CSCConfig.tiny(**options)

        def forward(self, waveform):
            labels = module.segment_labels(active, self.config.segment_centres(16000))
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
        main(name, "--model", "tiny", "--output_dir", tmp_path, *options)
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
    assert not torch.isclose(mistaken[1]["loss"], expected[1]["loss"], rtol=1e-4)
    output = model.model(sources.sum(1), source_values=sources, speaker_ids=speakers)
    torch.testing.assert_close(expected[0], output.loss + 0.5 * expected[1]["loss"])


def test_mixtures_teach_who_speaks(pretrained, tones, tmp_path):
    options = "--max_steps 25 --num_identities 5 --seconds 0.5 --eval_seconds 0.5 --logging_steps 1"
    tune("mixtures", pretrained, tones, tmp_path / "run", *options.split())
    results = results_of(tmp_path / "run")
    assert np.mean(results["accuracy"][-5:]) > 0.6 > 0.4 > np.mean(results["accuracy"][:3])  # of six
    assert results["loss"][-1] < results["loss"][0]
    assert results["before"]["num_speakers"] == 4
    model = CSCForPreTraining.from_pretrained(tmp_path / "run")
    held_out = stream_utterances(str(tones / "test" / "*.parquet"), "test", "audio", "speaker_id", None, "id")
    trials = build_trials(held_out, 0, 0.5, 6, ["clean", "noise0", "mix0", "mix0_mix0"])
    assert {"step": 25, **evaluate(model, trials)} == results["after"]


def test_a_new_part_is_trained_alone(pretrained, tones, tmp_path):
    """A saved model gets an activity by frames, and stays as it is otherwise."""
    options = "--max_steps 3 --num_identities 5 --seconds 0.5 --eval_seconds 0.5 --eval_recordings 2"
    options += " --model.frame_activity true --train_only frame_activity --classification_loss_weight 0"
    tune("mixtures", pretrained, tones, tmp_path / "run", *options.split())
    before, after = (load_file(folder / "model.safetensors") for folder in (pretrained, tmp_path / "run"))
    assert {name for name in after if name not in before} == {"csc.frame_activity.weight", "csc.frame_activity.bias"}
    assert after["csc.frame_activity.bias"] != 0
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    with pytest.raises(SystemExit, match="no weight of CSCForPreTraining has such a name"):
        tune("mixtures", pretrained, tones, tmp_path / "wrong", *options.replace("only frame", "only fame").split())


@pytest.fixture
def two_data_sets(tones, tmp_path):
    """The same tones twice."""
    shutil.copytree(tones / "train", tmp_path / "other")
    return [str(folder / "*.parquet") for folder in (tones / "train", tmp_path / "other")]


def test_mixtures_of_several_data_sets_at_several_speeds(pretrained, tones, two_data_sets, tmp_path, monkeypatch):
    """A speaker of another data set is another one, and three by speed."""
    module, numbers = script("mixtures"), []
    number_slots = module.number_slots
    monkeypatch.setattr(module, "number_slots", lambda *args: numbers.append(number_slots(*args)) or numbers[-1])
    options = "--max_steps 6 --num_identities 5 --seconds 0.5 --eval_seconds 0.5"
    options += " --speed_probability 1 --reverb_probability 0.5"
    folders = ["--model", str(pretrained), "--output_dir", str(tmp_path / "run")]
    data = ["--train_data", *two_data_sets, "--eval_data", str(tones / "test" / "*.parquet")]
    main("mixtures", *folders, *data, *options.split())
    numbers = set(torch.cat(numbers).flatten().tolist()) - {-100}
    assert numbers <= set(range(2 * 6 * 3))
    assert {number // 18 for number in numbers} == {0, 1} and {number % 3 for number in numbers} == {0, 1, 2}


def test_a_speaker_is_three_by_speed():
    piece = Piece("utterance", 0, 100, 0)

    def recipe(*speeds):
        sources = [SourceRecipe(n, (piece,), None, speed) for n, speed in enumerate(speeds)]
        return MixtureRecipe(100, 2, tuple(sources), None)

    number = functools.partial(script("mixtures").number_slots, number_of={"utterance": 5})
    recipes = [recipe(1.0, 1.14), recipe(0.86), recipe(0.95, 1.05), recipe(0.94, 1.06)]
    assert number(recipes[:1], num_speeds=1).tolist() == [[5, 5]]
    assert number(recipes, num_speeds=3).tolist() == [[15, 16], [17, -100], [15, 15], [17, 16]]


@pytest.mark.parametrize("teacher_size", [32, 5])
def test_slots_learn_towards_the_teacher(pretrained, teacher_size):
    """The teacher's embedding of the talker in each slot; a slot without one is not taught."""
    torch.manual_seed(0)
    sources = torch.randn(4, 2, 3000)
    batch = {"input_values": sources.sum(1), "source_values": sources}
    nobody = torch.full((4, 2), -100)
    targets = torch.nn.functional.normalize(torch.randn(4, 2, teacher_size), dim=-1)
    targets[3, 1] = 0
    model = script("mixtures").SlotClassifier(
        CSCForPreTraining.from_pretrained(pretrained), 5, 0.5, teacher_size, teacher_weight=100.0
    )
    assert isinstance(model.projection, torch.nn.Identity) == (
        teacher_size == model.model.config.speaker_embedding_size
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    cosines = []
    for _ in range(40):
        loss, figures = model(nobody, batch, targets)
        cosines.append(figures["teacher"].item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert figures["loss"] == 0 and loss.isfinite()  # nobody to classify
    assert cosines[-1] > 0.6 > 0.4 > cosines[0]
    output = model.model(**batch)
    found = model.projection(output.source_embeddings.take_along_dim(output.permutation[..., None], dim=1))
    similarity = torch.nn.functional.cosine_similarity(found, targets, dim=-1)
    torch.testing.assert_close(model(nobody, batch, targets)[1]["teacher"], similarity.flatten()[:7].mean())


def test_a_crop_of_several_utterances_is_taught_their_mean():
    targets = {"a": np.array([1.0, 0.0], np.float32), "b": np.array([0.0, 1.0], np.float32)}
    both = (Piece("a", 0, 300, 0), Piece("b", 0, 400, 300))
    sources = [SourceRecipe(0, both, None), SourceRecipe(1, (Piece("a", 0, 700, 0),), 0.0, 1.1)]
    recipes = [MixtureRecipe(700, 2, tuple(sources), None), MixtureRecipe(700, 2, tuple(sources[:1]), None)]
    expected = torch.tensor([[[0.6, 0.8], [0.0, 0.0]], [[0.6, 0.8], [0.0, 0.0]]])
    torch.testing.assert_close(script("mixtures").collect_targets(recipes, targets), expected)


@pytest.fixture(scope="module")
def half_labelled(tones, tmp_path_factory):
    """The tones, every third without a speaker."""
    rows = rows_of(tones)
    for row in rows[::3]:
        row["speaker_id"] = None
    return write(tmp_path_factory.mktemp("half"), rows)


RESUMABLE = """
model:
  name: {model}
  hidden_dropout: 0.1
mixing:
  unlabelled_probability: 0.3
  curriculum_batches: [1, 4]
  curriculum_noise_probability: 0.2
train_data: {data}
teacher: spectrum
max_steps: 4
num_identities: 5
seconds: 0.5
eval_seconds: 0.5
eval_recordings: 2
eval_steps: 2
checkpointing_steps: 2
logging_steps: 3
warmup_steps: 1
"""


def test_mixtures_with_a_teacher_resume_where_they_stopped(
    pretrained, tones, half_labelled, spectrum, tmp_path, monkeypatch
):
    """Everything comes out as without the stop: weights, curves, evaluations. The teacher hears each utterance once,
    those without a speaker too; the curriculum is that of the steps."""
    (tmp_path / "run.yaml").write_text(RESUMABLE.format(model=pretrained, data=half_labelled / "*.parquet"))
    run = tmp_path / "run"
    options = ["--config", tmp_path / "run.yaml", "--eval_data", tones / "test" / "*.parquet", "--output_dir", run]
    probabilities = []
    at_batch = MixingConfig.at_batch
    monkeypatch.setattr(
        MixingConfig, "at_batch", lambda *args: probabilities.append(at_batch(*args)) or probabilities[-1]
    )
    main("mixtures", *options)
    expected, weights = results_of(run), load_file(run / "model.safetensors")
    assert [config.single_speaker_probability for config in probabilities] == pytest.approx([1, 1, 5 / 6, 4 / 6])
    assert [config.noise_probability for config in probabilities] == pytest.approx([0.2, 0.2, 0.3, 0.4])
    assert [results["step"] for results in expected["curve"]] == [0, 2, 4]
    assert set(expected["after"]["conditions"]) == {"clean", "noise0", "mix0", "mix0_mix0"}
    assert len(expected["teacher"]) == 1 and "skipped/no speaker" in expected["rows"]
    assert expected["rows"]["skipped"] == 0
    assert CSCForPreTraining.from_pretrained(run / "checkpoint-2").config.hidden_dropout == 0.1
    ids = json.loads(safe_open(run / "teacher.safetensors", "pt").metadata()["ids"])
    assert sorted(ids) == sorted(row["id"] for row in rows_of(tones))

    shutil.rmtree(run / "checkpoint-4")
    (run / "model.safetensors").unlink()
    monkeypatch.setattr(teacher, "load_embedder", None)  # it would be called again
    main("mixtures", *options, "--resume_from_checkpoint", "latest")
    torch.testing.assert_close(load_file(run / "model.safetensors"), weights, rtol=0, atol=0)
    assert {**results_of(run), "settings": None} == {**expected, "settings": None}

    with pytest.raises(SystemExit, match="checkpoint-4"):
        main("mixtures", *options)
    with pytest.raises(SystemExit, match="of the teacher 'spectrum', not of 'campplus'"):
        targets = ["--teacher_targets", run / "teacher.safetensors"]
        main("mixtures", *options, "--output_dir", tmp_path / "other", "--teacher", "campplus", *targets)


def test_mixtures_of_background_processes_resume_where_they_stopped(pretrained, tones, tmp_path, monkeypatch):
    options = "--max_steps 4 --num_identities 5 --seconds 0.5 --eval_seconds 0.5 --eval_recordings 2"
    options += " --num_workers 2 --checkpointing_steps 2"
    started = []
    monkeypatch.setattr(MixtureStream, "_from_workers", spy(MixtureStream._from_workers, started))
    write(tmp_path / "data" / "train", halves_alike(tones))
    shutil.copytree(tones / "test", tmp_path / "data" / "test")
    tune("mixtures", pretrained, tmp_path / "data", tmp_path / "run", *options.split())
    expected, weights = results_of(tmp_path / "run"), load_file(tmp_path / "run" / "model.safetensors")
    assert [stream.num_workers for stream in started] == [2]
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    resume = ["--resume_from_checkpoint", "latest"]
    tune("mixtures", pretrained, tmp_path / "data", tmp_path / "run", *options.split(), *resume)
    torch.testing.assert_close(load_file(tmp_path / "run" / "model.safetensors"), weights, rtol=0, atol=0)
    assert {**results_of(tmp_path / "run"), "settings": None} == {**expected, "settings": None}


def spy(method, calls):
    def spied(self, *args):
        calls.append(self)
        return method(self, *args)

    return spied


def test_a_loss_that_is_not_finite_stops_the_training(pretrained, tones, tmp_path):
    with pytest.raises(SystemExit, match="at step [2-9] the loss is nan.* lower --learning_rate"):
        options = "--max_steps 9 --num_identities 5 --seconds 0.5 --eval_seconds 0.5 --eval_recordings 2"
        tune("mixtures", pretrained, tones, tmp_path / "run", *options.split(), "--learning_rate", "1e30")


@pytest.mark.parametrize("num_data_sets", [1, 2])
def test_mixtures_need_other_speakers_to_be_judged_by(num_data_sets, pretrained, two_data_sets, tmp_path):
    folders = ["--model", str(pretrained), "--output_dir", str(tmp_path / "run")]
    data = ["--train_data", *two_data_sets[:num_data_sets], "--eval_data", two_data_sets[0]]
    with pytest.raises(SystemExit, match="keep them apart"):
        main("mixtures", *folders, *data)


# --- finetune_scorer.py: both sides of a trial -----------------------------------------------------------------------


def test_no_crop_is_on_both_sides(tones):
    """A test holds its person and perhaps another; each is enrolled by other recordings of them alone."""
    speech = stream_utterances(str(tones / "train" / "*.parquet"), source_column=None)
    config = MixingConfig(
        num_identities=5,
        num_observations=2,
        seconds=0.4,
        supervision="speaker",
        single_speaker_probability=0.0,
        noise_probability=0.0,
    )
    batch = next(iter(MixtureStream(speech, config, seed=1)))
    sides = script("scorer").both_sides(batch, 2)
    recipes = batch.recipes
    assert sides["input_values"].shape == (5, 6400) and sides["enrolment_values"].shape == (5, 1, 6400)
    for test in range(5):
        torch.testing.assert_close(sides["input_values"][test], batch["source_values"][2 * test].sum(0))
        in_test = {source.identity: set(source.pieces) for source in recipes[2 * test].sources}
        assert len(in_test) == 2
        for person in range(5):
            enrolling = recipes[2 * person + 1].sources[0]
            assert enrolling.identity == person
            torch.testing.assert_close(sides["enrolment_values"][person, 0], batch["source_values"][2 * person + 1, 0])
            assert sides["labels"][test, person] == (person in in_test)
            assert not in_test.get(person, set()) & set(enrolling.pieces)


SCORING = "--num_identities 5 --seconds 0.5 --eval_seconds 0.5 --logging_steps 1"


@pytest.mark.release
def test_a_scorer_learns_who_speaks(pretrained, tones, tmp_path):
    options = f"--max_steps 60 {SCORING} --learning_rate 0.003"
    options += " --mixing.noise_probability 0.2 --mixing.single_speaker_probability 0.5"
    tune("scorer", pretrained, tones, tmp_path / "run", *options.split())
    results = results_of(tmp_path / "run")
    assert np.mean(results["loss"][-10:]) < 0.6 * np.mean(results["loss"][:10])
    assert min(np.mean(results[figure][-10:]) for figure in ("accepted", "rejected")) > 0.8
    before, after = (results[moment]["conditions"]["mix0"]["eer"] for moment in ("before", "after"))
    assert after < 0.85 * before, "tones that it never heard"
    model = CSCForSpeakerVerification.from_pretrained(tmp_path / "run")
    assert (model.head_logit.weight != 0).all()
    held_out = stream_utterances(str(tones / "test" / "*.parquet"), "test", "audio", "speaker_id", None, "id")
    trials = build_trials(held_out, 0, 0.5, 6, ["clean", "noise0", "mix0", "mix-5"])
    assert {"step": 60, **evaluate(model, trials, enrolment="scorer")} == results["after"]
    assert results["after"]["enrolment"] == "scorer"


def test_a_scorer_resumes_where_it_stopped(pretrained, tones, tmp_path):
    options = f"--max_steps 4 {SCORING} --eval_recordings 2 --checkpointing_steps 2"
    tune("scorer", pretrained, tones, tmp_path / "run", *options.split())
    expected, weights = results_of(tmp_path / "run"), load_file(tmp_path / "run" / "model.safetensors")
    assert CSCForSpeakerVerification.from_pretrained(tmp_path / "run" / "checkpoint-2").config.architectures == [
        "CSCForSpeakerVerification"
    ]
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    (tmp_path / "run" / "model.safetensors").unlink()
    tune("scorer", pretrained, tones, tmp_path / "run", *options.split(), "--resume_from_checkpoint", "latest")
    torch.testing.assert_close(load_file(tmp_path / "run" / "model.safetensors"), weights, rtol=0, atol=0)
    assert {**results_of(tmp_path / "run"), "settings": None} == {**expected, "settings": None}


# --- what all scripts have to bear -----------------------------------------------------------------------------------


@pytest.mark.release
@pytest.mark.parametrize("name", SHORT)
def test_two_processes_train_one_model(name, pretrained, tones, tmp_path):
    write(tmp_path / "data", halves_alike(tones))
    options = f"{SHORT[name]} --logging_steps 1 --cpu_threads 1"
    data = ["--train_data", tmp_path / "data" / "*.parquet"]
    if name != "classification":
        data += ["--eval_data", tones / "test" / "*.parquet"]
    started = [*LAUNCH, "--config_file", TWO_PROCESSES, EXAMPLES / f"finetune_{name}.py"]
    started += ["--model", pretrained, "--output_dir", tmp_path / "run", *data, *options.split()]
    printed = launch([str(argument) for argument in started])
    assert printed.count("Saved in") == 1
    if name in ("diarization", "mixtures", "scorer"):
        assert results_of(tmp_path / "run")["num_processes"] == 2
    assert len(results_of(tmp_path / "run")["loss"]) == 3
    before, after = (load_file(folder / "model.safetensors") for folder in (pretrained, tmp_path / "run"))
    assert any(not torch.equal(before[key], after[key]) for key in before.keys() & after.keys())


def halves_alike(tones):
    """Each tone twice, so that there is every pitch in every second row."""
    rows = rows_of(tones)
    return rows + [row | {"id": f"again {row['id']}"} for row in rows[1:] + rows[:1]]


def rows_of(tones):
    return [row for file in sorted((tones / "train").glob("*")) for row in pq.read_table(file).to_pylist()]


@pytest.mark.parametrize("name", SHORT)
def test_rows_that_cannot_be_used_are_skipped_and_named(name, tones, tmp_path, caplog):
    """A file without a sample, one that is no audio, and labels that say that there is none."""
    rows = rows_of(tones)
    rows[3]["audio"]["bytes"] = encode(np.zeros(0), format="WAV")
    rows[7]["audio"] = {"bytes": b"not audio", "path": None}
    for number, label in ((10, None), (11, "nan"), (12, "None"), (13, " ")):
        rows[number]["speaker_id"] = label
    write(tmp_path / "train", rows)
    shutil.copytree(tones / "test", tmp_path / "test")
    options = SHORT[name]
    if name == "classification":
        options += " --max_steps 12"  # which reads all recordings
    tune(name, "tiny", tmp_path, tmp_path / "run", *options.split())
    results = results_of(tmp_path / "run")
    if name == "classification":
        assert "4 of 60 rows have no label in column speaker_id" in caplog.text
        assert results["labels"] == sorted({row["speaker_id"] for row in rows_of(tones)})
        assert results["skipped"]["not decodable"] + results["skipped"].get("too short", 0) >= 2
        assert "skipping rows that cannot be used, the first of this kind is 'row " in caplog.text
    else:
        assert "'train-7': not decodable" in caplog.text or "'train-3': not decodable" in caplog.text
        assert "'train-10': no speaker" in caplog.text
        counted = {"no speaker": results["rows"]["skipped/no speaker"]} if "rows" in results else results["skipped"]
        assert counted["no speaker"] >= 4
    if name == "verification":
        assert set(CSCConfig.from_pretrained(tmp_path / "run").id2label.values()) == {
            row["speaker_id"] for row in rows_of(tones)
        }


def test_a_label_with_a_single_recording_is_trained_on(tones, tmp_path, caplog):
    rows = rows_of(tones)
    rows[5]["speaker_id"] = "rare"
    folder = write(tmp_path / "my [1] data", rows)  # no pattern
    module = script("classification")
    train, held_out = module.load_tables(module.Arguments(train_data=str(folder)))
    rare = train.features["labels"].str2int("rare")
    assert rare in train["labels"] and rare not in held_out["labels"] and "1 labels have a single" in caplog.text


def test_held_out_recordings_that_are_all_broken_are_refused(tones, tmp_path):
    rows = [row | {"audio": {"bytes": b"not audio", "path": None}} for row in rows_of(tones)[:6]]
    module = script("classification")
    table, _ = module.open_table(str(write(tmp_path, rows)), "train", "audio", "speaker_id")
    with pytest.raises(ValueError, match="6 of 6 rows, up to row 6, cannot be used"):
        module.Recordings(table, seconds=1.0, at_random=False).usable()


@pytest.mark.parametrize("name", ["verification", "diarization", "mixtures", "scorer"])
def test_ids_that_are_unique_within_a_speaker_only_are_refused(name, tones, tmp_path):
    rows = rows_of(tones)
    for number, row in enumerate(rows):
        row["id"] = f"{number // 6:05}.wav"
    write(tmp_path / "train", rows)
    shutil.copytree(tones / "test", tmp_path / "test")
    with pytest.raises(ValueError, match=r"rows 1 \(.*\) and 2 \(.*\) have the same id '00000.wav'"):
        tune(name, "tiny", tmp_path, tmp_path / "run", *SHORT[name].split())


@pytest.mark.parametrize("model_class", MODELS.values())
def test_a_fine_tuned_model_gets_a_new_head_for_other_labels(model_class, tmp_path, caplog):
    former = ["a", "b", "c"]
    saved = load_model(model_class, "tiny", former)
    saved.save_pretrained(tmp_path)
    same = load_model(model_class, str(tmp_path), former)
    assert all(torch.equal(tensor, saved.state_dict()[name]) for name, tensor in same.state_dict().items())
    assert not caplog.records
    for labels in (["x", "y"], ["x", "y", "z"]):
        caplog.clear()
        model = load_model(model_class, str(tmp_path), labels)
        assert list(model.config.id2label.values()) == labels
        changed = {
            name
            for name, tensor in model.state_dict().items()
            if name.startswith("csc.") and not torch.equal(tensor, saved.state_dict()[name])
        }
        assert not changed
        assert model(torch.randn(2, 4000)).logits.shape[-1] == len(labels)
        head = [name for name in model.state_dict() if name.startswith("classifier") and name.endswith("weight")]
        assert head and not any(torch.equal(model.state_dict()[n], saved.state_dict()[n]) for n in head)
        (record,) = caplog.records
        assert f"has a head for 3 other labels (a, ...): a new one for {len(labels)} labels (x, ...)" in record.message


def test_what_was_learnt_for_the_saved_weights_is_left_behind(tmp_path):
    """A threshold for embeddings that training has changed would decide wrongly, and nobody would see it."""
    saved = CSCForXVector(CSCConfig.tiny(num_labels=2, calibration={"mix0/mean": {}}, diarization={"onset": 0.5}))
    saved.save_pretrained(tmp_path)
    for labels in (None, ["x", "y", "z"], list(saved.config.id2label.values())):
        config = load_model(CSCForXVector, str(tmp_path), labels).config
        assert (config.calibration, config.diarization) == (None, None)


def test_speech_is_held_within_bounds(tones, tmp_path):
    rows = [row | {"id": f"{row['id']}-{part}"} for part in range(4) for row in rows_of(tones)]
    write(tmp_path, rows)
    args = SpeechArguments(train_data=[str(tmp_path / "*.parquet")], eval_data=str(tones / "test"))
    args.reservoir_seconds = 10.0
    speech = open_speech(args)
    assert len(speech.speaker_of) == 240 and len(speech.speakers) == 6
    held = SpeechReservoir(speech.training, args)
    seen = set()
    for _ in range(24):
        ids = {clip.id for clip in held.clips()}
        assert len(ids) == 20  # of half a second each
        seen |= ids
        held.advance(10)
    assert seen == set(speech.speaker_of)


@pytest.mark.parametrize("name", ["diarization", "classification"])
def test_a_loss_that_is_not_finite_stops_the_run(name, pretrained, tones, tmp_path):
    """In the loop of ours, and in that of Transformers' Trainer."""
    options = ["--max_steps", "9", "--logging_steps", "1", *SHORT[name].split()[2:], "--learning_rate", "1e30"]
    with pytest.raises(SystemExit, match="step . the loss is .*nan.*: lower --learning_rate"):
        tune(name, pretrained, tones, tmp_path, *options)
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("verification", ["--sir_db", "5", "1"], r"--sir_db \(5.0, 1.0\)"),
        ("verification", ["--interferer_probability", "2"], "--interferer_probability 2.0: must be between 0 and 1"),
        (
            "verification",
            ["--reservoir_seconds", "1.5", "--eval_seconds", "1"],
            "--reservoir_seconds 1.5: fewer than 5 speakers",
        ),
        ("mixtures", ["--attn_implementation", "wrong"], "--attn_implementation wrong: "),
        ("scorer", ["--attn_implementation", "wrong"], "--attn_implementation wrong: "),
        (
            "mixtures",
            ["--num_identities", "40", "--eval_seconds", "1"],
            "--num_identities 40 different speakers.*hold .*--reservoir_seconds",
        ),
        ("mixtures", ["--eval_data", "nowhere/here"], "--eval_data nowhere/here: "),
        ("classification", ["--train_data", "nowhere/here"], "nowhere/here: "),
        ("classification", ["--train_data", __file__], "cannot be read as data: give Parquet or tar"),
    ],
)
def test_wrong_values_of_options_are_one_line(name, options, named, pretrained, tones, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        tune(name, pretrained, tones, tmp_path, "--max_steps", "1", *options)
    # What the parser refuses is printed, after how the script is used.
    printed = capsys.readouterr().err.split("error: ")[-1].strip()
    message = printed if error.value.code == 2 else str(error.value)
    assert re.search(named, message) and "\n" not in message, message


def test_each_label_is_on_both_sides_of_a_split():
    numbers = [label for label in range(10) for _ in range(2)]
    kept, held_out = script("classification").split_by_label(Dataset.from_dict({"labels": numbers}), 0.34, 0)
    assert sorted(kept["labels"]) == sorted(held_out["labels"]) == list(range(10))
