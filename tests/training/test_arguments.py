# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The options of pre-training, from YAML and from the command line."""

import contextlib
import dataclasses
import io
import re

import pytest
import yaml
from pretraining_runs import ROOT, TINY, pretrainer
from transformers import PreTrainedConfig

from csc_hf import CSCConfig
from csc_hf.data.mixing import MixingConfig
from csc_hf.training.arguments import field_descriptions, parse_pretraining_arguments

DEMO = ROOT / "examples" / "configs" / "demo.yaml"


def test_the_demo_is_for_those_who_say_nothing():
    demo = parse_pretraining_arguments([], demo=DEMO)
    assert demo.max_train_steps == 280 and demo.train_data == "examples/demo_speech" and demo.config
    own = parse_pretraining_arguments(["--train_data", "some/data"], demo=DEMO)
    assert own.max_train_steps == 100_000 and own.config is None and own.model == own.mixing == {}
    assert parse_pretraining_arguments(["--max_train_steps", "3"], demo=DEMO).max_train_steps == 3


def test_the_command_line_wins(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(TINY | {"learning_rate": 2e-4, "seed": 7}))
    line = "--seed 8 --model.hidden_size 32 --model.num_mel_bins 20 --model.use_cross_attention false"
    line += " --mixing.sir_db -3 4 --with_tracking"
    args = parse_pretraining_arguments(["--config", str(config), *line.split()])
    assert (args.learning_rate, args.seed, args.with_tracking) == (2e-4, 8, True)
    assert args.model == TINY["model"] | {"hidden_size": 32, "num_mel_bins": 20, "use_cross_attention": False}
    assert args.mixing == {"seconds": 0.5, "sir_db": [-3.0, 4.0]}
    assert MixingConfig(**args.mixing).sir_db == (-3.0, 4.0)


def test_numbers_that_yaml_reads_as_text(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("train_data: some/data\nlearning_rate: 1e-3\nmixed_precision: no\neval_split: null\n")
    args = parse_pretraining_arguments(["--config", str(config)])
    assert (args.learning_rate, args.mixed_precision, args.eval_split) == (0.001, "no", "none")


def test_help_shows_every_option_its_meaning_and_its_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "10000")  # no line is broken
    with pytest.raises(SystemExit):
        parse_pretraining_arguments(["--help"], "What it does.", demo=DEMO)
    printed = " ".join(capsys.readouterr().out.split())
    assert "What it does." in printed and "training steps (default: 100000)" in printed
    for name in {field.name for field in dataclasses.fields(MixingConfig)} - {"num_identities", "num_sources"}:
        assert f"--mixing.{name}" in printed and field_descriptions(MixingConfig)[name] in printed
    of_every_model = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    for name in (
        {field.name for field in dataclasses.fields(CSCConfig)} - of_every_model - {"calibration", "diarization"}
    ):
        assert f"--model.{name}" in printed and field_descriptions(CSCConfig)[name] in printed
    assert f"{field_descriptions(MixingConfig)['seconds']} (default: 2.0)" in printed
    assert "(default of the preset base: 128)" in printed


def test_settings_are_what_the_weights_depend_on():
    one = parse_pretraining_arguments(["--train_data", "a", "--output_dir", "x", "--num_workers", "2"])
    other = parse_pretraining_arguments(["--train_data", "a", "--output_dir", "y", "--with_tracking"])
    assert one.settings() == other.settings()
    assert parse_pretraining_arguments(["--train_data", "a", "--seed", "1"]).settings() != one.settings()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"learning_rat": 1.0}, "learning_rat"),
        ({"train_data": "nowhere/at/all"}, "nowhere/at/all"),
        ({"model": {"preset": "huge"}}, "huge"),
        ({"model": {"hiden_size": 3}}, "hiden_size"),
        ({"mixing": {"num_identities": 3}}, "num_identities"),
        ({"mixing": ["seconds"]}, "mixing"),
        ({"train_data": "some/*.parquet"}, "--eval_data"),
        ({"eval_split": "train"}, "--eval_data"),
        ({"id_column_name": "key"}, "key"),
        ({"train_data": {"a": {"path": "x", "speker_column": "y"}}}, "speker_column"),
        ({"train_data": {"a": {"split": "train"}}}, "no path of a"),
        ({"noise_data": {"path": "x", "speaker_column": "y"}}, "unknown options of noise_data: speaker_column"),
        ({"eval_data": {"path": "x", "probability": 0.5}}, "unknown options of eval_data: probability"),
        ({"save_total_limit": 0}, "save_total_limit"),
        ({"logging_steps": 0}, "logging_steps"),
        ({"max_train_steps": 2.5}, "max_train_steps=2.5: must be an integer"),
        ({"max_train_steps": None}, "max_train_steps=None: give a value"),
        ({"with_tracking": "yes please"}, "with_tracking='yes please': must be true or false"),
        ({"best_metric": "eer_mix"}, "best_metric='eer_mix': choose from si_sdr_improvement"),
        ({"train_data": ["a", "b"]}, "train_data=['a', 'b']: must be text or a mapping"),
        ({"model": TINY["model"] | {"sampling_rate": 8000}}, "sampling_rate 8000"),
        ({"eval_split": "none", "best_metric": "eer_clean"}, "best_metric"),
        ({"model": {"num_recording_classes": 9}, "mixing": {"supervision": "speaker"}}, "num_recording_classes"),
    ],
)
def test_wrong_options_are_named(options, named, tmp_path):
    printed = io.StringIO()
    with pytest.raises((SystemExit, FileNotFoundError)) as error, contextlib.redirect_stderr(printed):
        pretrainer(tmp_path / "run", options=options)
    assert named in printed.getvalue() + str(error.value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"per_device_train_batch_size": 4}, "--per_device_train_batch_size 4 is too few"),
        ({"reservoir_seconds": 10}, "--reservoir_seconds 10: .*--max_seconds 30"),
        ({"lr_scheduler_type": "cosin"}, "--lr_scheduler_type cosin: choose from linear, cosine"),
        ({"ema_decay": 2}, "--ema_decay 2: must be"),
        ({"report_to": "foo"}, "--report_to foo: choose from"),
        ({"model": {"preset": "tiny", "hidden_size": "x"}}, "model.hidden_size='x': must be an integer"),
        ({"model": {"preset": "tiny", "hidden_size": -3}}, "--model.hidden_size must be positive"),
        ({"model": {"preset": "tiny", "layer_norm_eps": None}}, "model.layer_norm_eps=None: give a value"),
        ({"mixing": {"seconds": "x"}}, "mixing.seconds='x': must be a number"),
        ({"mixing": {"seconds": -1}}, "--mixing.seconds -1: must be positive"),
        ({"mixing": {"sir_db": 3}}, "mixing.sir_db=3: must be two values"),
        ({"mixing": {"sir_db": [5, 1]}}, "--mixing.sir_db \\(5, 1\\)"),
    ],
)
def test_wrong_values_are_one_line_that_names_the_option(options, named, tmp_path, capsys):
    path = tmp_path / "options.yaml"
    path.write_text(yaml.safe_dump({"train_data": "x", "eval_split": "none"} | options))
    with pytest.raises(SystemExit):
        parse_pretraining_arguments(["--config", str(path)])
    message = capsys.readouterr().err.split("error: ")[1].strip()
    assert re.search(named, message) and "\n" not in message
