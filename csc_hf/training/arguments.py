# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The options of pre-training, read from a YAML file and from the command line, which wins.

>>> args = parse_pretraining_arguments(["--config", "examples/configs/base.yaml", "--train_data", "path/to/data"])
>>> args.learning_rate, args.model, args.mixing
(0.0005, {'preset': 'base'}, {'supervision': 'utterance', 'seconds': 3.0, ...})

Each option is a field of one of the dataclasses below. In YAML, the fields of the model and of the mixtures stand in
the mappings `model` and `mixing`; on the command line they have the name of the mapping in front, as in
`--model.hidden_size 64 --mixing.supervision speaker`.
"""

import argparse
import dataclasses
import inspect
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml
from accelerate.utils import LoggerType
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser, PreTrainedConfig, SchedulerType
from transformers.hf_argparser import string_to_bool

from ..audio import SAMPLING_RATE
from ..configuration_csc import PRESETS, CSCConfig
from ..data.mixing import MixingConfig
from ..data.utterances import BUILDERS
from ..evaluation.verification import TRAINING_FIGURES

_SOUND_OPTIONS = {"path", "split", "name", "revision", "audio_column"}
_SPEECH_OPTIONS = _SOUND_OPTIONS | {"speaker_column", "source_column", "id_column"}
DATA_SET_OPTIONS = {
    "train_data": _SPEECH_OPTIONS | {"probability"},
    "eval_data": _SPEECH_OPTIONS,
    "noise_data": _SOUND_OPTIONS,
    "impulse_response_data": _SOUND_OPTIONS,
}
"""What the mapping of a data set may set, by the option that names the data set."""

SET_ELSEWHERE = {"num_identities", "num_sources"}
"""Fields of MixingConfig that have options of their own: `per_device_train_batch_size`, and the model's."""

FILE_ENDINGS = tuple(BUILDERS)
"""Endings of paths and patterns that name files, which have no splits."""


_POSITIVE = "--{} {}: must be above 0", lambda value: value > 0
_NOT_NEGATIVE = "--{} {}: must be at least 0", lambda value: value >= 0
_AT_LEAST_1 = "--{} {}: must be at least 1", lambda value: value >= 1
_AT_LEAST_2 = "--{} {}: must be at least 2", lambda value: value >= 2
_SHARE = "--{} {}: must be between 0 and 1", lambda value: 0 <= value <= 1
_BELOW_ONE = "--{} {}: must be above 0 and below 1", lambda value: 0 < value < 1

LIMITS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys("learning_rate max_grad_norm seconds eval_seconds min_seconds".split(), _POSITIVE),
    **dict.fromkeys("max_seconds reservoir_seconds".split(), _POSITIVE),
    **dict.fromkeys("seed warmup_steps num_workers weight_decay".split(), _NOT_NEGATIVE),
    **dict.fromkeys("classification_loss_weight teacher_weight".split(), _NOT_NEGATIVE),
    **dict.fromkeys(
        "max_steps max_train_steps gradient_accumulation_steps logging_steps eval_steps".split(), _AT_LEAST_1
    ),
    **dict.fromkeys("example_steps checkpointing_steps save_total_limit cpu_threads".split(), _AT_LEAST_1),
    **dict.fromkeys("collapse_patience batch_size enrolment_recordings eval_conversations".split(), _AT_LEAST_1),
    **dict.fromkeys("eval_recordings num_identities per_device_train_batch_size".split(), _AT_LEAST_2),
    **dict.fromkeys("single_speaker_probability recorded_noise_probability speed_probability".split(), _SHARE),
    **dict.fromkeys("reverb_probability interferer_probability noise_probability max_skipped".split(), _SHARE),
    **dict.fromkeys("ema_decay eval_share".split(), _BELOW_ONE),
}
"""What the values of options must be, of all scripts, by the option."""

Config = TypeVar("Config")


def check_limits(args: Any) -> None:
    """Raises ValueError where a value is out of the limits of its option, or no number."""
    for item in dataclasses.fields(args):
        value = getattr(args, item.name)
        if item.name in LIMITS and value is not None:
            message, is_within = LIMITS[item.name]
            if not is_within(value):
                raise ValueError(message.format(item.name, value))


def build_from_options(
    build: Callable[..., Config],
    fields: Iterable[str],
    values: Mapping[str, Any],
    options: Mapping[str, str],
    section: str,
) -> Config:
    """Make a configuration of the values of options.

    Args:
        build: makes it; raises ValueError or TypeError where a value is wrong.
        fields: that it has.
        values: by field.
        options: the options of those fields that are not `--SECTION.FIELD`.
        section: that the other fields stand in.

    Raises:
        ValueError: a value is wrong; the message, one line, names the option.
    """
    try:
        return build(**values)
    except (ValueError, TypeError, StrictDataclassError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        message = re.sub(r"^(ValueError|TypeError): ", "", lines[-1].strip())
        for name in sorted(fields, key=len, reverse=True):
            shown = options.get(name, f"--{section}.{name}")
            message = re.sub(rf"Field '{name}'|`{name}`", shown, message)
            message = re.sub(rf"(?<![\w.-]){name}=", f"{shown} ", message)
        raise ValueError(message) from error


def option(default: Any, help: str, **details: Any) -> Any:
    """A field that is an option: its default, its help text, and what else `add_argument` takes."""
    return field(default=default, metadata={"help": help, **details})


@dataclass
class DataArguments:
    """The recordings to learn from and those to evaluate on."""

    # HfArgumentParser takes the second type of a union for that of the command line.

    _argument_group_name = "data"

    train_data: dict | str | None = option(
        None,
        "single-speaker audio: a folder, Parquet or tar files, or a data set on the Hub; in YAML also a mapping of "
        "several, from a name to its path, probability, split and columns",
    )
    train_split: str = option("train", "split of --train_data")
    eval_data: dict | str | None = option(
        None, "as --train_data, of other speakers; if not given, --eval_split of the training data"
    )
    eval_split: str = option("test", "split to evaluate on, or 'none' not to evaluate, where no speakers are known")
    audio_column_name: str = option("audio", "column with the audio")
    speaker_column_name: str = option("speaker_id", "column with the speaker: evaluation and speaker supervision")
    source_column_name: str = option("none", "column with the corpus or channel; most groups are drawn within one")
    id_column_name: str = option("id", "column with a unique id, or 'none': audio is then known by its hash")
    noise_data: dict | str | None = option(
        None, "recorded noise, in any form that --train_data takes; if not given, noise is generated"
    )
    impulse_response_data: dict | str | None = option(
        None, "recorded room impulse responses; if not given, rooms are simulated"
    )
    reservoir_seconds: float = option(3600, "seconds of audio held to draw mixtures from; 64 kB each")
    min_seconds: float = option(0.5, "shorter recordings are skipped")
    max_seconds: float = option(30, "of a longer recording, a random part of this length is held")
    eval_seconds: float = option(4.0, "length of the recordings that speakers are verified by")
    eval_recordings: int = option(6, "recordings of each speaker to evaluate on")


@dataclass
class OptimizationArguments:
    """How the weights are learnt."""

    _argument_group_name = "optimization"

    seed: int = option(0, "of the weights, the mixtures and the evaluation")
    max_train_steps: int = option(100_000, "training steps")
    per_device_train_batch_size: int = option(12, "identities in a batch; each is observed in several mixtures")
    gradient_accumulation_steps: int = option(1, "micro-batches of a step; the contrast is over each of them")
    learning_rate: float = option(1e-3, "highest learning rate of the schedule")
    weight_decay: float = option(0.01, "of matrices; biases, norms and scales do not decay")
    lr_scheduler_type: str = option("cosine", "a schedule of transformers.get_scheduler")
    warmup_steps: int = option(1000, "steps in which the learning rate rises")
    max_grad_norm: float = option(5.0, "gradients are scaled down to this norm")
    ema_decay: float | None = option(None, "evaluate and save an exponential moving average of the weights")
    mixed_precision: str | None = option(
        None, "default: what `accelerate config` says", choices=("no", "fp16", "bf16")
    )


@dataclass
class RunArguments:
    """How the run is carried out, watched and saved. Nothing here changes what is learnt."""

    _argument_group_name = "run"

    config: str | None = option(None, "YAML file with any of these options")
    output_dir: str = option("runs/pretrain", "on a file system that all machines of the run share")
    num_workers: int = option(0, "background processes that prepare batches, of each training process")
    cpu_threads: int | None = option(None, "threads of each process; default: its share of the cores")
    max_skipped: float = option(0.5, "stop if a larger share of the rows cannot be used")
    collapse_patience: int = option(1000, "stop when embeddings have been collapsed for so many steps")
    eval_steps: int | None = option(None, "evaluate every so many steps, besides before and after training")
    best_metric: str | None = option(
        None, "keep the model that is best by this figure in OUTPUT_DIR/best", choices=tuple(TRAINING_FIGURES)
    )
    logging_steps: int = option(10, "log every so many steps")
    with_tracking: bool = option(False, "log to the trackers of --report_to")
    report_to: str = option("tensorboard", "trackers that Accelerate knows, separated by commas, or 'all'")
    example_steps: int = option(1000, "log sound and pictures to the trackers every so many steps")
    log_batches: bool = option(False, "write how each batch was mixed to OUTPUT_DIR/batches-RANK.jsonl")
    checkpointing_steps: int | None = option(None, "save a checkpoint every so many steps")
    save_total_limit: int | None = option(None, "keep only so many checkpoints, the newest")
    resume_from_checkpoint: str | None = option(None, "a checkpoint folder of the same run, or 'latest'")
    push_to_hub: bool = option(False, "push checkpoints and the final model")
    hub_model_id: str | None = option(None, "user/name; default: the name of --output_dir")
    hub_private: bool = option(True, "whether a new repository is private; an existing one stays as it is")


@dataclass
class PretrainingArguments(RunArguments, OptimizationArguments, DataArguments):
    """All options of a pre-training run.

    Attributes:
        model: `preset` ("base" if not given), `attn_implementation`, and fields of CSCConfig.
        mixing: fields of MixingConfig, except for SET_ELSEWHERE.

    Raises:
        ValueError: a value is out of range, or options contradict each other; the message names them.
    """

    model: dict[str, Any] = field(default_factory=dict)
    mixing: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_limits(self)
        if self.lr_scheduler_type not in (types := [kind.value for kind in SchedulerType]):
            raise ValueError(f"--lr_scheduler_type {self.lr_scheduler_type}: choose from {', '.join(types)}")
        loggers = ["all", *map(str, LoggerType)]
        if unknown := {name.strip() for name in self.report_to.split(",")} - set(loggers):
            raise ValueError(f"--report_to {', '.join(sorted(unknown))}: choose from {', '.join(loggers)}")
        if not self.min_seconds <= self.max_seconds:
            raise ValueError(f"--max_seconds {self.max_seconds}: must be at least --min_seconds {self.min_seconds}")
        held = self.reservoir_seconds / max(self.num_workers, 1)
        if held < self.max_seconds:
            of_each = f" in each of {self.num_workers} workers" if self.num_workers > 1 else ""
            raise ValueError(
                f"--reservoir_seconds {self.reservoir_seconds:g}: holds {held:g} s{of_each}, and must hold at least "
                f"--max_seconds {self.max_seconds:g}: raise it, or lower that"
            )
        if not isinstance(self.train_data, str | dict) or not self.train_data:
            raise ValueError("give --train_data, a path or name, or in YAML a mapping of several")
        if self.model.get("num_recording_classes") and self.mixing.get("supervision", "utterance") != "utterance":
            raise ValueError(
                "--model.num_recording_classes needs --mixing.supervision utterance: with speaker labels, an identity "
                "is not one recording"
            )
        if self.eval_split == "none":
            if self.best_metric is not None:
                raise ValueError("--best_metric needs held-out speakers: give --eval_data, or leave it out")
        elif not self.eval_data:
            # Files have no splits, and of several data sets none is the one to evaluate on.
            has_no_splits = not isinstance(self.train_data, str) or self.train_data.endswith(FILE_ENDINGS)
            if has_no_splits or self.train_split == self.eval_split:
                raise ValueError(
                    "give --eval_data, of speakers that are not in the training data, or --eval_split none"
                )

        self.mixing_config(self.model_config().num_sources)

    def model_config(self) -> CSCConfig:
        """The configuration of the model to pre-train.

        Raises:
            ValueError: an unknown preset, a wrong value, or a model that cannot be pre-trained.
        """
        fields = {"preset": "base", **self.model}
        preset = fields.pop("preset")
        if preset not in PRESETS:
            raise ValueError(f"--model.preset {preset}: choose from {', '.join(PRESETS)}")
        names = [field.name for field in dataclasses.fields(CSCConfig)]
        config = build_from_options(PRESETS[preset], names, fields, {}, "model")
        if config.num_sources < 2:
            raise ValueError(f"--model.num_sources {config.num_sources}: mixtures to separate need at least 2")
        if config.sampling_rate != SAMPLING_RATE:
            raise ValueError(f"--model.sampling_rate {config.sampling_rate}: mixtures have {SAMPLING_RATE} Hz")
        return config

    def mixing_config(self, num_sources: int) -> MixingConfig:
        """How mixtures for a model with so many slots are drawn. Raises ValueError where a value is wrong."""
        elsewhere = {"num_identities": self.per_device_train_batch_size, "num_sources": num_sources}
        options = {"num_identities": "--per_device_train_batch_size", "num_sources": "--model.num_sources"}
        names = [field.name for field in dataclasses.fields(MixingConfig)]
        return build_from_options(MixingConfig, names, {**elsewhere, **self.mixing}, options, "mixing")

    def settings(self) -> dict[str, Any]:
        """What the course of a run depends on, apart from its code and the number of its processes."""
        of_the_run = {option.name for option in dataclasses.fields(RunArguments)}
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in of_the_run}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Leaves the description as it is, and shows defaults other than None."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def parse_pretraining_arguments(
    argv: Sequence[str] | None = None, description: str | None = None, demo: str | os.PathLike | None = None
) -> PretrainingArguments:
    """Read the options of a pre-training run. Exits with a message where one is unknown or wrong.

    Args:
        argv: the command line; `sys.argv` if not given.
        description: first part of the help.
        demo: YAML file to read where the command line has neither `--config` nor `--train_data`.
    """
    groups: Any = [DataArguments, OptimizationArguments, RunArguments]
    parser = HfArgumentParser(
        groups,
        usage="%(prog)s [options]",
        description=description,
        formatter_class=HelpFormatter,
    )
    nested = {
        "model": {"preset", "attn_implementation"} | {field.name for field in dataclasses.fields(CSCConfig)},
        "mixing": {field.name for field in dataclasses.fields(MixingConfig)} - SET_ELSEWHERE,
    }
    model = parser.add_argument_group("model")
    for name, help_text in (
        ("preset", f"{', '.join(PRESETS)} (default: base)"),
        ("attn_implementation", "of Transformers, such as sdpa or eager"),
    ):
        model.add_argument(f"--model.{name}", metavar=name.upper(), default=argparse.SUPPRESS, help=help_text)
    of_every_model = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    add_config_options(model, CSCConfig, "model.", leave_out=of_every_model, default_is="of the preset base")
    add_config_options(parser.add_argument_group("mixing"), MixingConfig, "mixing.", leave_out=SET_ELSEWHERE)

    given = vars(parser.parse_known_args(argv)[0])
    config = given["config"]
    if config is None and given["train_data"] is None and demo is not None:
        config = os.path.relpath(demo)
    sections: dict[str, dict[str, Any]] = {"model": {}, "mixing": {}}
    if config is not None:
        options, sections = read_yaml(parser, config, nested)
        parser.set_defaults(**options, config=config)
    namespace: dict[str, Any] = vars(parser.parse_args(argv))
    for name in [name for name in namespace if "." in name]:
        section, key = name.split(".")
        sections[section][key] = namespace.pop(name)
    try:
        return PretrainingArguments(**namespace | sections)
    except ValueError as error:
        parser.error(str(error))


def add_config_options(
    group: argparse._ActionsContainer,
    config_class: type,
    prefix: str = "",
    leave_out: Collection[str] = (),
    default_is: str = "",
) -> None:
    """Add an option for each field of a configuration that has a plain default, or is an integer or None. What is not
    given is not set.

    Args:
        group: parser, or group of one.
        config_class: dataclass, whose docstring describes the fields. A pair of numbers takes two values.
        prefix: stands before the field's name.
        leave_out: fields without an option.
        default_is: what the defaults in the help texts are.
    """
    help_texts = field_descriptions(config_class)
    for option in dataclasses.fields(config_class):
        default, is_optional = option.default, option.type == int | None
        if option.name in leave_out or not (is_optional or isinstance(default, bool | int | float | str | tuple)):
            continue
        kind = int if is_optional else type(default)
        form: dict[str, Any] = {"type": string_to_bool if kind is bool else kind}
        form["metavar"] = option.name.upper()
        shown = default
        if isinstance(default, tuple):
            form = {"type": type(default[0]), "nargs": 2, "metavar": ("LOW", "HIGH")}
            shown = " ".join(map(str, default))
        help_text = f"{help_texts.get(option.name, '')} (default{default_is and f' {default_is}'}: {shown})"
        help_text = help_text.strip().replace("%", "%%")
        action = group.add_argument(f"--{prefix}{option.name}", default=argparse.SUPPRESS, help=help_text, **form)
        setattr(action, "is_optional", is_optional)  # YAML can say so: null


def field_descriptions(config_class: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say of each field, by name, in `Args:` or `Attributes:`."""
    found: list[tuple[str, str]] = []
    for documented in reversed(config_class.__mro__):
        docstring = re.sub(r" \[[A-Z]\]", "", inspect.getdoc(documented) or "")  # marks of where a choice comes from
        found += re.findall(r"^    (\w+)(?: \(.*?\))?: (.*(?:\n     .*)*)", docstring, flags=re.MULTILINE)
    fields = {field.name for field in dataclasses.fields(config_class)}
    return {name: " ".join(text.split()).removesuffix(".") for name, text in found if name in fields}


def read_yaml(
    parser: argparse.ArgumentParser, path: str | os.PathLike, nested: Mapping[str, Collection[str]]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The options in a YAML file, and its mappings `nested`, by name the fields that each may have. Exits where one
    is unknown, or not of its type.

    Where the name of a mapping is an option itself, the file may have the option's value there instead, or in the
    mapping's field `name`."""
    with open(path, encoding="utf-8") as file:
        options = yaml.safe_load(file) or {}
    if not isinstance(options, dict):
        parser.error(f"{path} must be a mapping from options to their values")
    actions = {action.dest: action for action in parser._actions if "." not in action.dest}
    sections = {}
    for name in nested:
        values = options.pop(name, None) or {}
        if name in actions:
            if isinstance(values, str):
                values = {"name": values}
            if isinstance(values, dict) and "name" in values:
                options[name] = values["name"]
                values = {field: value for field, value in values.items() if field != "name"}
        sections[name] = values
    _refuse_unknown(parser, path, "options", options, actions)
    for name, values in sections.items():
        _refuse_unknown(parser, path, name, values, nested[name])
        _check_section(parser, path, name, values)
    for option, known in DATA_SET_OPTIONS.items():
        if isinstance(options.get(option), dict):
            data_sets = options[option] if option == "train_data" else {option: options[option]}
            for name, values in data_sets.items():
                _refuse_unknown(parser, path, f"options of {name}", values, known)
                if "path" not in values:
                    parser.error(f"{path} gives no path of {name}")
    for name in {"eval_split", *(name for name in actions if name.endswith("_column_name"))} & options.keys():
        options[name] = "none" if options[name] is None else options[name]
    if options.get("mixed_precision") is False:  # YAML reads `no` as false
        options["mixed_precision"] = "no"
    for name, value in options.items():
        if actions[name].nargs in ("+", "*"):
            values = options[name] = value if isinstance(value, list) else [value]
        else:
            values = [value]
        for item in values:
            _check_value(parser, path, actions[name], item)
    return options, sections


def _refuse_unknown(
    parser: argparse.ArgumentParser, path: str | os.PathLike, what: str, values: Any, known: Iterable[str]
) -> None:
    if not isinstance(values, dict):
        parser.error(f"{path} sets {what} to {values!r}: must be a mapping")
    if unknown := sorted(set(values) - set(known)):
        parser.error(f"{path} sets unknown {what}: {', '.join(map(str, unknown))}")


def _check_section(
    parser: argparse.ArgumentParser, path: str | os.PathLike, section: str, values: dict[str, Any]
) -> None:
    """Check the values of a mapping, and make numbers of those that YAML reads as text."""
    actions = {action.dest: action for action in parser._actions}
    for name, value in values.items():
        action = actions.get(f"{section}.{name}")
        if action is None or (value is None and getattr(action, "is_optional", False)):
            continue
        if action.nargs == 2 and not (isinstance(value, list) and len(value) == 2):
            parser.error(f"{path} sets {action.dest}={value!r}: must be two values, [low, high]")
        items = value if action.nargs == 2 else [value]
        for item in items:
            _check_value(parser, path, action, item)
        if action.type is float and any(isinstance(item, str) for item in items):
            try:
                numbers = [float(item) for item in items]
            except ValueError:
                parser.error(f"{path} sets {action.dest}={value!r}: must be a number")
            values[name] = numbers if action.nargs == 2 else numbers[0]


def _check_value(
    parser: argparse.ArgumentParser, path: str | os.PathLike, action: argparse.Action, value: Any
) -> None:
    """argparse checks what stands on the command line, and strings, but no other defaults."""
    given = f"{path} sets {action.dest}={value!r}"
    if value is None:
        if action.default is not None:
            parser.error(f"{given}: give a value, or leave it out")
        return
    if action.choices is not None and value not in action.choices:
        parser.error(f"{given}: choose from {', '.join(map(str, action.choices))}")
    if action.type is float and isinstance(value, str):
        return  # YAML reads 1e-3 as text; argparse makes a number of it
    kinds: dict[Any, tuple[type, ...]] = {int: (int,), float: (float, int), string_to_bool: (bool,)}
    expected = kinds.get(action.type, (str, dict) if action.dest.endswith("_data") else (str,))
    if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
        names = {str: "text", dict: "a mapping", int: "an integer", float: "a number", bool: "true or false"}
        shown = expected[:1] if float in expected else expected  # an integer is a number
        parser.error(f"{given}: must be {' or '.join(names[kind] for kind in shown)}")
