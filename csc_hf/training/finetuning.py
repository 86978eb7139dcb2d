# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""What the fine-tuning scripts share: options, data, the model with its new head, the loop, what is saved."""

import argparse
import dataclasses
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm
from transformers import HfArgumentParser, PreTrainedModel, TrainerCallback, TrainingArguments, get_scheduler

from ..configuration_csc import PRESETS, CSCConfig
from ..data.mixing import Clip, MixtureRecipe, mix
from ..data.reservoir import Reservoir, ReservoirConfig
from ..data.stream import MixtureStream
from ..data.utterances import UtteranceStream, check_unique_ids
from ..evaluation.reports import format_report
from ..evaluation.trial_set import BASIC_CONDITIONS, TrialSet
from ..evaluation.trials import build_trials
from ..evaluation.verification import evaluate
from ..feature_extraction_csc import CSCFeatureExtractor
from .arguments import FILE_ENDINGS, Config, HelpFormatter, build_from_options, check_limits, option, read_yaml
from .checkpoints import (
    begin_folder,
    delete_checkpoints,
    find_checkpoint,
    load_checkpoint,
    move_files,
    refuse_later_checkpoints,
    save_checkpoint,
)
from .collapse import OverflowGuard
from .corpora import UNLABELLED, name_too_few, only_split, open_data, usable_utterances
from .distributed import create_training_arguments
from .hub import save_repository, without_paths

logger = logging.getLogger(__name__)

Arguments = TypeVar("Arguments", bound="FinetuningArguments")
Model = TypeVar("Model", bound=PreTrainedModel)


# --- options -------------------------------------------------------------------------------------------------------


@dataclass
class FinetuningArguments:
    """Options of every fine-tuning script."""

    model: str = option("small", f"a saved model (folder or name on the Hub), or a new one: {', '.join(PRESETS)}")
    eval_data: str | None = option(None, "as --train_data, of recordings that are not in the training data")
    audio_column_name: str = option("audio", "column with the audio")
    max_steps: int = option(1000, "training steps")
    learning_rate: float = option(1e-3, "highest learning rate of a cosine schedule")
    warmup_steps: int = option(50, "steps in which the learning rate rises")
    logging_steps: int = option(50, "steps over which a logged loss is averaged")
    cpu_threads: int | None = option(None, "threads of each process; default: its share of the cores")
    seed: int = option(0, "of the weights, the training data and the evaluation")
    output_dir: str = option("runs/finetuned", "folder for the model, its feature extractor and results.json")
    config: str | None = option(None, "YAML file with any of these options")


@dataclass
class SpeechArguments(FinetuningArguments):
    """Options of the scripts that learn from speech with known speakers.

    Raises:
        ValueError: there is nothing to evaluate on.
    """

    train_data: list[str] = field(
        default_factory=list,
        metadata={"help": "speech with speakers: a folder, Parquet or tar files, a data set on the Hub; or several"},
    )
    eval_data: str | None = option(
        None, "as --train_data, of other speakers; if not given, the split `test` of the training data"
    )
    speaker_column_name: str = option("speaker_id", "column with the speaker")
    source_column_name: str | None = option(None, "column with the corpus or channel, if there is one")
    id_column_name: str = option("id", "column with a unique id, or 'none': audio is then known by its hash")
    reservoir_seconds: float = option(3600.0, "seconds of audio held to draw from; 64 kB each")

    def __post_init__(self) -> None:
        if self.eval_data is None and any(path.endswith(FILE_ENDINGS) for path in self.train_data):
            raise ValueError("give --eval_data, of speakers that are not in the training data")


@dataclass
class CheckpointArguments:
    """Options of a training that is evaluated on its way, and can be resumed.

    Raises:
        ValueError: a number of steps is not positive.
    """

    eval_steps: int | None = option(None, "evaluate every so many steps, besides before and after training")
    checkpointing_steps: int | None = option(None, "save a checkpoint every so many steps")
    save_total_limit: int | None = option(None, "keep only so many checkpoints, the newest")
    resume_from_checkpoint: str | None = option(None, "a checkpoint folder of the same run, or 'latest'")

    def __post_init__(self) -> None:
        for name in ("eval_steps", "checkpointing_steps", "save_total_limit"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: must be at least 1")


def parse_arguments(
    arguments_class: type[Arguments],
    argv: Sequence[str] | None,
    description: str | None,
    demo: str | os.PathLike,
    add_options: Callable[[argparse.ArgumentParser], None] | None = None,
) -> tuple[Arguments, dict[str, Any]]:
    """Read the options of a script. Exits with a message where one is unknown or wrong.

    Args:
        arguments_class: dataclass whose fields are the options.
        argv: the command line; None for that of the process.
        description: first part of the help.
        demo: default of `--train_data`.
        add_options: adds options that are no fields.

    Returns:
        The options, and those of `add_options`, by name. Those with a dot in their name stand in a mapping of the YAML
        file: `mixing.seconds` in `mixing`.
    """
    types: Any = arguments_class
    parser = HfArgumentParser(
        types, usage="%(prog)s [options]", description=description, formatter_class=HelpFormatter
    )
    several = arguments_class.__dataclass_fields__["train_data"].type == list[str]
    path = os.path.relpath(demo)
    parser.set_defaults(train_data=[path] if several else path)
    if add_options is not None:
        add_options(parser)
    sections: dict[str, dict[str, Any]] = {}
    if (config := vars(parser.parse_known_args(argv)[0])["config"]) is not None:
        nested: dict[str, set[str]] = {}
        for section, _, name in (action.dest.partition(".") for action in parser._actions):
            if name:
                nested.setdefault(section, set()).add(name)
        options, sections = read_yaml(parser, config, nested)
        parser.set_defaults(**options)
    namespace: dict[str, Any] = vars(parser.parse_args(argv))
    in_file = {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
    names = {field.name for field in dataclasses.fields(arguments_class)}
    try:
        arguments = arguments_class(**{name: value for name, value in namespace.items() if name in names})
        check_limits(arguments)
    except ValueError as error:
        parser.error(str(error))
    return arguments, in_file | {name: value for name, value in namespace.items() if name not in names}


def config_of_options(config_class: type[Config], args: Any, section: str, **values: Any) -> Config:
    """A configuration whose fields are options: of the script itself where it has one of that name, else of a section.

    Raises:
        SystemExit: a value is wrong; the message names the option.
    """
    fields = [field.name for field in dataclasses.fields(cast(Any, config_class))]
    own = {name: f"--{name}" for name in fields if hasattr(args, name) or not section}
    try:
        return build_from_options(config_class, fields, values, own, section)
    except ValueError as error:
        raise SystemExit(str(error)) from error


# --- speech with speakers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelledSpeech:
    """Speech to train on, and speech of other people to evaluate on.

    Attributes:
        training: the data sets to train on.
        held_out: those to evaluate on.
        speaker_of: the speaker of each labelled row of the training data, by its id.
        speakers: the training speakers, in alphabetical order.
    """

    training: list[UtteranceStream]
    held_out: list[UtteranceStream]
    speaker_of: dict[str, str]
    speakers: list[str]

    def build_trials(
        self, seed: int, seconds: float, recordings_per_speaker: int, conditions: Sequence[str] = BASIC_CONDITIONS
    ) -> TrialSet:
        """Trials of the held-out speakers, see `csc_hf.evaluation.trials.build_trials`.

        Raises:
            SystemExit: there is too little speech for trials.
        """
        utterances = usable_utterances(self.held_out)
        try:
            return build_trials(utterances, seed, seconds, recordings_per_speaker, conditions)
        except ValueError as error:
            raise SystemExit(f"--eval_data: {error} (--eval_seconds {seconds:g})") from error


def open_speech(args: SpeechArguments) -> LabelledSpeech:
    """Open the speech that the options name, and read who speaks in it, without decoding audio.

    Raises:
        SystemExit: a person is in the training data and held out.
        ValueError: two rows have the same id.
    """
    training = _open_all(args, args.train_data, "train")
    if args.eval_data is None:
        held_out = _open_all(args, args.train_data, "test")
    else:
        held_out = _open_all(args, [args.eval_data], only_split(args.eval_data) or "test")
    rows = itertools.chain.from_iterable(stream.rows() for stream in training)
    speaker_of = {row.id: row.speaker for row in check_unique_ids(rows) if row.speaker is not None}
    speakers = sorted(set(speaker_of.values()))
    # Also without the names of several data sets.
    names = {name.removeprefix(f"{stream.corpus}:") for stream in training for name in speakers}
    held_out_rows = itertools.chain.from_iterable(stream.rows() for stream in held_out)
    if both := {row.speaker for row in held_out_rows if row.speaker} & {*speakers, *names}:
        raise SystemExit(f"speakers {sorted(both)[:3]} are in the training data and in --eval_data: keep them apart")
    return LabelledSpeech(training, held_out, speaker_of, speakers)


def open_noise(args: Any) -> UtteranceStream | None:
    """The recorded noise that `--noise_data` names; None where noise is to be generated.

    Args:
        args: the options, those of `SpeechArguments` and `noise_data` among them.
    """
    if args.noise_data is None:
        return None
    return open_data(args, args.noise_data, "train", corpus="noise", **UNLABELLED | {"id_column": args.id_column_name})


def _open_all(args: SpeechArguments, paths: Sequence[str], split: str) -> list[UtteranceStream]:
    # The name of each of several data sets is put before its speakers and ids, so that they cannot be confused.
    return [open_data(args, path, split, corpus=path if len(paths) > 1 else None) for path in paths]


def reservoir_config(args: SpeechArguments) -> ReservoirConfig:
    """How much speech is held, and what of a long recording."""
    longest = min(ReservoirConfig.max_seconds, args.reservoir_seconds)
    return ReservoirConfig(seconds=args.reservoir_seconds, max_seconds=longest)


class SpeechReservoir:
    """A bounded amount of the speech of known speakers, to draw recipes from and to mix them.

    Rows that cannot be used are skipped, counted and named, see `csc_hf.data.reservoir.Reservoir`.

    Args:
        streams: the data sets.
        args: how much is held, and the seed.
        rank: this process.
        world_size: the processes, each of which reads its share.
    """

    def __init__(self, streams: Sequence[UtteranceStream], args: SpeechArguments, rank: int = 0, world_size: int = 1):
        self.reservoir = Reservoir(
            streams, reservoir_config(args), seed=args.seed, needs_speaker=True, share=rank, num_shares=world_size
        )
        self.reservoir.fill(progress=rank == 0)

    def clips(self) -> list[Clip]:
        """What is held."""
        return self.reservoir.clips()

    def mix(self, recipe: MixtureRecipe) -> np.ndarray:
        """The mixture (samples,) of a recipe that was drawn from the clips."""
        held = {name: self.reservoir.held[name].utterance for name in recipe.recording_ids}
        waveforms = {name: utterance.waveform for name, utterance in held.items()}
        return mix(recipe, waveforms, {name: utterance.start for name, utterance in held.items()})[0]

    def speaker(self, recipe: MixtureRecipe) -> str:
        """The speaker of a recipe's first source."""
        speaker = self.reservoir.held[recipe.sources[0].pieces[0].utterance].utterance.speaker
        assert speaker is not None  # rows without one are skipped
        return speaker

    @property
    def skipped(self) -> dict[str, int]:
        """Rows that were skipped, by reason."""
        return dict(self.reservoir.skipped.counts)

    def advance(self, num_rows: int) -> None:
        """Read so many rows more; the oldest audio gives way."""
        self.reservoir.advance(num_rows)


# --- model ---------------------------------------------------------------------------------------------------------


def load_model(model_class: type[Model], name: str, labels: Sequence[str] | None = None, **options: Any) -> Model:
    """A new model, or a saved one with a head for these labels.

    The head is that of the saved model if it has these very labels. Otherwise it is new; where another one is
    replaced, that is logged. Calibration and settings of diarization are left behind: they were learnt for the saved
    weights, and not for what training makes of them.

    Args:
        model_class: what to load.
        name: a preset, or the folder or Hub name of a saved model.
        labels: what the head tells apart; None for a model without labels.
        options: fields of the configuration, `attn_implementation`.

    Raises:
        SystemExit: there is no such `attn_implementation` here.
    """
    try:
        return _load_model(model_class, name, labels, options)
    except (ValueError, ImportError) as error:
        if (chosen := options.get("attn_implementation")) is None or "attention" not in str(error).lower():
            raise
        raise SystemExit(f"--attn_implementation {chosen}: {str(error).strip().splitlines()[0]}") from error


def _load_model(
    model_class: type[Model], name: str, labels: Sequence[str] | None, options: Mapping[str, Any]
) -> Model:
    options = {**options, "calibration": None, "diarization": None}
    id2label = dict(enumerate(labels or ()))
    if labels is not None:
        options |= {"id2label": id2label, "label2id": {label: number for number, label in id2label.items()}}
    if name in PRESETS:
        return model_class(PRESETS[name](**options))
    saved = CSCConfig.from_pretrained(name)
    has_head = labels is not None and model_class.__name__ in (saved.architectures or [])
    former = saved.id2label or {}
    if not has_head or former == id2label:
        return model_class.from_pretrained(name, **options)
    logger.warning(
        "%s has a head for %d other labels (%s, ...): a new one for %d labels (%s, ...) takes its place",
        name,
        len(former),
        next(iter(former.values()), None),
        len(id2label),
        id2label[0],
    )
    model: Any = model_class(CSCConfig.from_pretrained(name, **options))
    loaded = model_class.from_pretrained(name)
    model.csc.load_state_dict(cast(Any, loaded).csc.state_dict())
    model.name_or_path = model.config.name_or_path = name  # whose licence the card names
    model.config._commit_hash = getattr(loaded.config, "_commit_hash", None)
    return model


# --- training ------------------------------------------------------------------------------------------------------


class Milestones:
    """What happens on the way of a training that can be resumed: evaluations and checkpoints.

    Args:
        accelerator: from `create_accelerator`.
        args: the options, those of `CheckpointArguments` among them.
        stream: the batches, whose place is saved.
        evaluate: measures the model as it is; called on the main process.
        write_repository: writes a Hub repository with the model as it is into a folder, given what was measured;
            called on the main process.

    Attributes:
        curve: the results of each evaluation, with their `step`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        args: Any,
        stream: MixtureStream,
        evaluate: Callable[[], dict[str, Any]],
        write_repository: Callable[[Path, dict[str, Any]], None],
    ):
        self.accelerator, self.args, self.stream = accelerator, args, stream
        self.evaluate_model, self.write_repository = evaluate, write_repository
        self.folder = Path(args.output_dir)
        self.curve: list[dict[str, Any]] = []

    def begin(self, progress: "Progress") -> None:
        """Evaluate; or continue from the checkpoint that the options name. Call when all is prepared."""
        checkpoint = find_checkpoint(self.args.resume_from_checkpoint, self.folder)
        if checkpoint is not None:
            state = load_checkpoint(self.accelerator, checkpoint, self.settings(), self.stream)
            progress.step, progress.curves, progress.recent = state["step"], state["curves"], state["recent"]
            self.curve = state["curve"]
        if self.args.checkpointing_steps:
            refuse_later_checkpoints(self.folder, progress.step)
        if checkpoint is None:
            self.evaluate(0)

    def pass_by(self, progress: "Progress") -> None:
        """Call after each step."""
        step, args = progress.step, self.args
        if step == args.max_steps or (args.eval_steps and step % args.eval_steps == 0):
            self.evaluate(step)
        if args.checkpointing_steps and step % args.checkpointing_steps == 0:
            self.save(progress)

    def evaluate(self, step: int) -> None:
        if self.accelerator.is_main_process:
            self.curve.append({"step": step, **self.evaluate_model()})
            tqdm.write(f"\nAfter {step} steps: {format_report(self.curve[-1])}\n")

    def save(self, progress: "Progress") -> None:
        state = dataclasses.asdict(progress) | {"curve": self.curve, "settings": self.settings()}
        results = progress.curves | {"curve": self.curve}
        folder = self.folder / f"checkpoint-{progress.step}"
        save_checkpoint(
            self.accelerator, folder, lambda unfinished: self.write_repository(unfinished, results), state, self.stream
        )
        if self.accelerator.is_main_process and self.args.save_total_limit is not None:
            delete_checkpoints(self.folder, keep=self.args.save_total_limit)

    def settings(self) -> dict[str, Any]:
        """What the course of the training depends on."""
        of_the_run = {option.name for option in dataclasses.fields(CheckpointArguments)} | {"output_dir", "config"}
        return {name: value for name, value in dataclasses.asdict(self.args).items() if name not in of_the_run}


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        step: steps done.
        curves: the figures, averaged over processes and over each `logging_steps` steps.
        recent: the figures of each step since.
    """

    step: int = 0
    curves: dict[str, list[float]] = field(default_factory=dict)
    recent: list[dict[str, float]] = field(default_factory=list)


def train(
    accelerator: Accelerator,
    args: FinetuningArguments,
    model: torch.nn.Module,
    batches: Iterable,
    compute_losses: Callable[[torch.nn.Module, Any], tuple[torch.Tensor, dict[str, torch.Tensor]]],
    max_grad_norm: float,
    milestones: Milestones | None = None,
) -> dict[str, list[float]]:
    """Train a model for `max_steps` steps.

    Args:
        accelerator: from `create_accelerator`.
        args: the options; `learning_rate`, `warmup_steps` and `max_steps` make a cosine schedule.
        model: the model itself; its parameters that require a gradient are trained.
        batches: batches of this process; a `DataLoader` is shared out among the processes.
        compute_losses: takes the wrapped model and a batch, and returns the loss and the figures to log.
        max_grad_norm: gradients are scaled down to this norm.
        milestones: evaluates, saves checkpoints and resumes.

    Returns:
        The figures, averaged over processes and over each `logging_steps` steps.

    Raises:
        SystemExit: the loss or its gradient is not finite, or there are too few speakers for a batch.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=args.learning_rate)
    # Accelerate steps the schedule once for every process.
    warmup_steps, max_steps = (steps * accelerator.num_processes for steps in (args.warmup_steps, args.max_steps))
    scheduler = get_scheduler("cosine", optimizer, warmup_steps, max_steps)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    if isinstance(batches, torch.utils.data.DataLoader):
        batches = accelerator.prepare(batches)

    progress = Progress()
    if milestones is not None:
        milestones.begin(progress)
    model.train()
    overflow = OverflowGuard()
    bar = tqdm(
        range(progress.step + 1, args.max_steps + 1),
        desc="training",
        initial=progress.step,
        total=args.max_steps,
        disable=not accelerator.is_main_process,
    )
    for step, batch in zip(bar, name_too_few(batches, "--num_identities"), strict=False):
        loss, figures = compute_losses(model, batch)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(learning, max_grad_norm)
        _check_finite(accelerator, step, loss, norm)
        optimizer.step()
        overflow.check(step, not accelerator.optimizer_step_was_skipped)
        scheduler.step()
        optimizer.zero_grad()
        values = {name: accelerator.reduce(figure.detach(), "mean").item() for name, figure in figures.items()}
        progress.step = step
        progress.recent.append(values)
        if step % args.logging_steps == 0:
            for name in figures:
                mean = float(np.mean([values[name] for values in progress.recent]))
                progress.curves.setdefault(name, []).append(mean)
            progress.recent.clear()
            bar.set_postfix({name: f"{curve[-1]:.3f}" for name, curve in progress.curves.items()})
        if milestones is not None:
            milestones.pass_by(progress)
    return progress.curves


def train_and_verify(
    accelerator: Accelerator,
    args: Any,
    speech: LabelledSpeech,
    stream: MixtureStream,
    learner: torch.nn.Module,
    model: PreTrainedModel,
    compute_losses: Callable[[torch.nn.Module, Any], tuple[torch.Tensor, dict[str, torch.Tensor]]],
    conditions: Sequence[str],
    enrolment: str = "mean",
) -> None:
    """Train on mixtures; verify the held-out speakers before, after and on the way; save the model and the results.

    Args:
        accelerator: from `create_accelerator`.
        args: the options, those of `SpeechArguments` and `CheckpointArguments` among them, and `max_grad_norm`,
            `eval_seconds` and `eval_recordings`.
        speech: whose held-out speakers are verified.
        stream: batches of mixtures of this process.
        learner: what is trained: the model, or a module around it.
        model: what is verified and saved.
        compute_losses: see `train`.
        conditions: what speakers are verified in, see `csc_hf.evaluation.trial_set`.
        enrolment: how they are enrolled, see `csc_hf.evaluation.verification.evaluate`.

    Raises:
        SystemExit: see `train`.
    """
    trials = None
    if accelerator.is_main_process:
        trials = speech.build_trials(args.seed, args.eval_seconds, args.eval_recordings, conditions)

    def measure() -> dict[str, Any]:
        assert trials is not None, "only the main process measures"
        return evaluate(model, trials, enrolment=enrolment)

    def write(folder: Path, results: dict[str, Any]) -> None:
        report = format_report(results["curve"][-1])
        write_repository(folder, args, model, results, report, folder.name.removesuffix(".unfinished"))

    milestones = Milestones(accelerator, args, stream, measure, write)
    results: dict[str, Any] = {"num_processes": accelerator.num_processes}
    results |= train(accelerator, args, learner, stream, compute_losses, args.max_grad_norm, milestones)
    if accelerator.is_main_process:
        curve = milestones.curve
        results |= {"before": curve[0], "after": curve[-1], "curve": curve, "rows": stream.counters()}
        lines = [f"{len(speech.speakers)} training speakers, {len(speech.speaker_of)} utterances."]
        lines += [f"{moment} fine-tuning: {format_report(results[moment])}" for moment in ("before", "after")]
        save(args, model, results, "\n".join(lines))
    accelerator.end_training()


def _check_finite(accelerator: Accelerator, step: int, loss: torch.Tensor, norm: torch.Tensor | None) -> None:
    """Raises SystemExit where a step would make the weights NaN."""
    # The gradients of float16 overflow now and then: its loss scale is then lowered, and the step left out.
    may_overflow = accelerator.scaler is not None or norm is None
    if not loss.isfinite() or not (may_overflow or torch.as_tensor(norm).isfinite()):
        raise SystemExit(
            f"at step {step} the loss is {loss.item()}, and the norm of its gradient {norm}: lower --learning_rate, "
            "or resume from an earlier checkpoint where there is one"
        )


class StopAtNonFiniteLoss(TrainerCallback):
    """Ends training by Transformers' `Trainer` at the first logged loss or gradient that is NaN or infinite."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        figures = {name: logs[name] for name in ("loss", "grad_norm") if name in (logs or {})}
        if not all(map(math.isfinite, figures.values())):
            raise SystemExit(
                f"by step {state.global_step} the loss is {figures.get('loss')}, and the norm of its gradient "
                f"{figures.get('grad_norm')}: lower --learning_rate, or check the model that training began with"
            )


def trainer_arguments(args: FinetuningArguments, batch_size: int, **options: Any) -> TrainingArguments:
    """What Transformers' `Trainer` needs to know of the options; `options` are more of its own."""
    return create_training_arguments(
        args.cpu_threads,
        output_dir=args.output_dir,
        max_steps=args.max_steps,
        per_device_train_batch_size=batch_size,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=args.warmup_steps,
        logging_steps=args.logging_steps,
        logging_nan_inf_filter=False,  # StopAtNonFiniteLoss sees what is logged
        save_strategy="no",
        seed=args.seed,
        report_to="none",
        **options,
    )


def save(args: FinetuningArguments, model: PreTrainedModel, results: dict[str, Any], report: str) -> None:
    """Write the model, its feature extractor, its card and results.json to `output_dir`, and print the report."""
    folder = Path(args.output_dir)
    unfinished = begin_folder(folder / "final")
    write_repository(unfinished, args, model, results, report, folder.name)
    move_files(unfinished, folder)
    print(f"{report}\nSaved in {folder}")


def write_repository(
    folder: Path, args: FinetuningArguments, model: PreTrainedModel, results: dict[str, Any], report: str, name: str
) -> None:
    """Write a Hub repository into a folder. Its card loads the model by `name`."""
    extractor = CSCFeatureExtractor(min_samples=model.config.segment_samples)
    settings = without_paths(dataclasses.asdict(args))
    save_repository(folder, model, extractor, {"settings": settings, **results}, report, repo_id=name)
