# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Pre-trains CSC on streamed mixtures of single-speaker audio, with Accelerate.

    accelerate launch examples/pretrain.py                                   # the demo: minutes on two CPU cores
    accelerate launch examples/pretrain.py --config examples/configs/base.yaml --train_data path/to/parquet_folder

Every option can stand in the YAML file that --config names, and on the command line, which wins. The YAML file also
has a `model` mapping (`preset`, `attn_implementation`, any field of CSCConfig) and a `mixing` mapping (fields of
MixingConfig), and its `train_data` may be several data sets: a mapping from names to their `path`, `probability`,
`split`, columns, ...
"""

import argparse
import dataclasses
import json
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, ProjectConfiguration, set_seed
from datasets import get_dataset_split_names
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm
from transformers import get_scheduler
from transformers.utils.logging import disable_progress_bar

from csc_hf import CSCConfig, CSCFeatureExtractor, CSCForPreTraining, CSCForPreTrainingOutput
from csc_hf.audio import SAMPLING_RATE
from csc_hf.data.mixing import MixingConfig
from csc_hf.data.reservoir import ReservoirConfig
from csc_hf.data.stream import MixtureBatch, MixtureStream, Shard, read_impulse_responses
from csc_hf.data.utterances import UtteranceStream, stream_utterances
from csc_hf.evaluation.metrics import si_sdr_improvement
from csc_hf.evaluation.reports import format_report
from csc_hf.evaluation.trials import BASIC_CONDITIONS, build_trials
from csc_hf.evaluation.verification import evaluate
from csc_hf.training.checkpoints import begin_folder, delete_checkpoints, finish_folder, list_checkpoints, sync_folder
from csc_hf.training.collapse import CollapsedError, CollapseGuard, collapse_signs
from csc_hf.training.cpu import prepare_cpu
from csc_hf.training.hub import BackgroundPush, save_repository
from csc_hf.training.visualize import log_examples

logger = logging.getLogger("pretrain")
EXAMPLES = Path(__file__).resolve().parent

# Means over the logged steps; the short names stand beside the progress bar.
LOGGED = [
    "loss",
    "separation_loss",
    "contrastive_loss",
    "activity_loss",
    "mutual_information",
    "contrastive_accuracy",
]
SHOWN = {"loss": "loss", "separation_loss": "sep", "contrastive_accuracy": "acc", "mutual_information": "MI"}

# What a held-out evaluation gives, by the names that it is logged and chosen by.
FIGURES = ("eer", "eer_within_source", "retrieval_accuracy")
EVALUATED = ["si_sdr_improvement"]
EVALUATED += [f"{figure}_{condition}" for condition in BASIC_CONDITIONS for figure in FIGURES]

# What can be said of each of several data sets.
COLUMNS = ("audio_column", "speaker_column", "source_column", "id_column")
CORPUS_OPTIONS = {"path", "probability", "split", "name", "revision", *COLUMNS}

NONE_IS_A_NAME = {"eval_split", *(f"{column}_name" for column in COLUMNS)}
AT_LEAST_ONE = {"max_train_steps", "gradient_accumulation_steps", "logging_steps", "eval_steps", "example_steps"}
AT_LEAST_ONE |= {"checkpointing_steps", "save_total_limit"}

# Options that do not change the course of a run.
WITHOUT_EFFECT = {"config", "output_dir", "cpu_threads", "num_workers", "collapse_patience", "logging_steps"}
WITHOUT_EFFECT |= {"with_tracking", "report_to", "example_steps", "log_batches", "checkpointing_steps"}
WITHOUT_EFFECT |= {"save_total_limit", "resume_from_checkpoint", "push_to_hub", "hub_model_id", "hub_private"}
WITHOUT_EFFECT |= {"max_skipped", "best_metric", "eval_steps"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--config",
        default=os.path.relpath(EXAMPLES / "configs" / "demo.yaml"),
        help="YAML file with any of these options",
    )

    data = parser.add_argument_group("data")
    add = data.add_argument
    add(
        "--train_data", help="single-speaker audio: folder, Parquet or tar files, or the name of a data set on the Hub"
    )
    add("--train_split", default="train")
    add("--eval_data", help="as --train_data, of other speakers; default: --eval_split of the training data")
    add("--eval_split", default="test", help="'none' not to evaluate, where no speakers are known")
    add("--audio_column_name", default="audio")
    add("--speaker_column_name", default="speaker_id", help="for evaluation, and for supervision by speaker")
    add("--source_column_name", default="none", help="corpus or channel: most groups are then drawn within one")
    add("--id_column_name", default="id", help="'none' if there is none: audio is then known by its hash")
    add("--noise_data", help="recorded noise, in any form that --train_data takes; default: noise is generated")
    add("--impulse_response_data", help="recorded room impulse responses; default: rooms are simulated")
    add("--reservoir_seconds", type=float, default=3600, help="audio held to draw mixtures from; 64 kB a second")
    add("--min_seconds", type=float, default=0.5, help="shorter recordings are skipped")
    add("--max_seconds", type=float, default=30, help="of a longer recording, a part of this length is held")
    add("--max_skipped", type=float, default=0.5, help="stop if a larger share of the rows cannot be used")
    add("--num_workers", type=int, default=0, help="processes that prepare batches, of each training process")

    training = parser.add_argument_group("training")
    add = training.add_argument
    add("--output_dir", default="runs/pretrain", help="on a file system that all machines of the run share")
    add("--seed", type=int, default=0)
    add("--max_train_steps", type=int, default=100_000)
    add("--per_device_train_batch_size", type=int, default=12, help="identities; each is observed in several mixtures")
    add("--gradient_accumulation_steps", type=int, default=1, help="each contrast is over one of these micro-batches")
    add("--learning_rate", type=float, default=1e-3)
    add("--weight_decay", type=float, default=0.01, help="of matrices; not of biases, norms and scales")
    add("--lr_scheduler_type", default="cosine", help="of transformers.get_scheduler")
    add("--warmup_steps", type=int, default=1000)
    add("--max_grad_norm", type=float, default=5.0)
    add("--ema_decay", type=float, help="evaluate and save an exponential moving average of the weights")
    add("--mixed_precision", choices=["no", "fp16", "bf16"], help="default: what `accelerate config` says")
    add("--cpu_threads", type=int, help="default: the cores shared out among the machine's processes")
    add(
        "--collapse_patience",
        type=int,
        default=1000,
        help="stop when embeddings have been collapsed for so many steps",
    )

    logs = parser.add_argument_group("evaluation, logs and checkpoints")
    add = logs.add_argument
    add("--eval_steps", type=int, help="evaluate every so many steps, besides before and after training")
    add("--eval_seconds", type=float, default=4.0, help="length of the recordings that speakers are verified by")
    add("--eval_recordings", type=int, default=6, help="recordings a speaker")
    add("--best_metric", choices=EVALUATED, help="keep the model that is best by this in OUTPUT_DIR/best")
    add("--logging_steps", type=int, default=10)
    add("--with_tracking", action="store_true", help="log to the trackers of --report_to")
    add("--report_to", default="tensorboard", help="trackers that Accelerate knows, separated by commas, or 'all'")
    add("--example_steps", type=int, default=1000, help="log sound and pictures to the trackers every so many steps")
    add("--log_batches", action="store_true", help="write how each batch was mixed to OUTPUT_DIR/batches-RANK.jsonl")
    add("--checkpointing_steps", type=int, help="save a checkpoint every so many steps")
    add("--save_total_limit", type=int, help="keep only so many checkpoints, the newest")
    add("--resume_from_checkpoint", help="a checkpoint folder of the same run, or 'latest'")
    add("--push_to_hub", action="store_true", help="push checkpoints and the final model")
    add("--hub_model_id", help="user/name; default: the name of --output_dir")
    add("--hub_private", action="store_true")

    config_file = parser.parse_known_args(argv)[0].config
    with open(config_file) as file:
        from_file = yaml.safe_load(file) or {}
    nested = {name: from_file.pop(name, None) or {} for name in ("model", "mixing")}
    given = {"options": from_file, **nested}
    allowed = {
        "options": {action.dest for action in parser._actions},
        "model": {field.name for field in dataclasses.fields(CSCConfig)} | {"preset", "attn_implementation"},
        # These two are --per_device_train_batch_size and the model's.
        "mixing": {field.name for field in dataclasses.fields(MixingConfig)} - {"num_identities", "num_sources"},
    }
    for option in ("train_data", "eval_data", "noise_data", "impulse_response_data"):
        if isinstance(from_file.get(option), dict):
            several = option == "train_data"
            for name, corpus in from_file[option].items() if several else [(option, from_file[option])]:
                given[f"options of {name}"], allowed[f"options of {name}"] = corpus, CORPUS_OPTIONS
                if "path" not in corpus:
                    parser.error(f"{config_file} gives no path of {name}")
    for name in given:
        if unknown := sorted(set(given[name]) - allowed[name]):
            parser.error(f"{config_file} sets unknown {name}: {', '.join(unknown)}")
    for name in NONE_IS_A_NAME & from_file.keys():  # YAML's null
        from_file[name] = "none" if from_file[name] is None else from_file[name]
    if from_file.get("mixed_precision") is False:  # so YAML reads `no`
        from_file["mixed_precision"] = "no"
    parser.set_defaults(**from_file)
    args = parser.parse_args(argv)
    args.model, args.mixing = nested["model"], nested["mixing"]
    for action in parser._actions:  # argparse does not look at defaults
        value = getattr(args, action.dest, None)
        if action.choices is not None and value is not None and value not in action.choices:
            parser.error(f"{config_file} sets {action.dest}={value!r}: choose from {', '.join(action.choices)}")
        if action.dest in AT_LEAST_ONE and value is not None and value < 1:
            parser.error(f"--{action.dest} {value}: must be at least 1")
    if not isinstance(args.train_data, str | dict) or not args.train_data:
        parser.error("give --train_data, a path or name, or in YAML a mapping of several")
    if args.eval_split == "none":
        if args.best_metric is not None:
            parser.error("--best_metric needs held-out speakers: give --eval_data, or leave it out")
    elif not args.eval_data:
        # Files have no splits, and of several data sets none is the one to test on.
        whole = not isinstance(args.train_data, str) or args.train_data.endswith((".parquet", ".tar"))
        if whole or args.train_split == args.eval_split:
            parser.error("give --eval_data, of speakers that are not in the training data, or --eval_split none")
    return args


def open_data(args: argparse.Namespace, data: str | Mapping, split: str, **options) -> UtteranceStream:
    """A data set of --train_data and the like: its path, or a mapping with more to say."""
    data = {"path": data} if isinstance(data, str) else data
    columns = {column: getattr(args, f"{column}_name") for column in COLUMNS}
    options = (
        {"split": split} | columns | {k: v for k, v in data.items() if k not in ("path", "probability")} | options
    )
    options = {name: None if value == "none" else value for name, value in options.items()}
    try:
        return stream_utterances(data["path"], **options)
    except ValueError as error:
        raise SystemExit(f"{data['path']}: {error} (here --..._column_name, --..._split)") from error


def open_held_out(args: argparse.Namespace) -> UtteranceStream:
    """The utterances to evaluate on. Data of its own that has but one split is that split, whatever its name."""
    split = args.eval_split
    if isinstance(args.eval_data, str) and not args.eval_data.endswith((".parquet", ".tar")):
        splits = get_dataset_split_names(args.eval_data)
        split = splits[0] if len(splits) == 1 else split
    return open_data(args, args.eval_data or args.train_data, split)


def open_mixtures(args: argparse.Namespace, num_sources: int, rank: int, world_size: int) -> MixtureStream:
    """The stream of training batches of one process."""
    mixing = MixingConfig(num_identities=args.per_device_train_batch_size, num_sources=num_sources, **args.mixing)
    # Labels that are not used are not asked for.
    unused = {} if mixing.supervision == "speaker" else {"speaker_column": None}
    several = not isinstance(args.train_data, str)
    corpora = args.train_data if several else {None: {"path": args.train_data}}
    speech = [open_data(args, corpus, args.train_split, corpus=name, **unused) for name, corpus in corpora.items()]
    recorded = {"speaker_column": None, "source_column": None, "id_column": None}
    noise, responses = None, None
    if args.noise_data:
        noise = open_data(args, args.noise_data, "train", corpus="noise", **recorded)
    if args.impulse_response_data:
        rooms = open_data(args, args.impulse_response_data, "train", corpus="room", **recorded)
        responses = read_impulse_responses(rooms)
    return MixtureStream(
        speech,
        mixing,
        seed=args.seed,
        probabilities=[corpus.get("probability", 1.0) for corpus in corpora.values()],
        noise=noise,
        impulse_responses=responses,
        reservoir=ReservoirConfig(args.reservoir_seconds, args.min_seconds, args.max_seconds, args.max_skipped),
        shard=Shard(rank, world_size),
        num_workers=args.num_workers,
    )


def find_checkpoint(args: argparse.Namespace) -> Path | None:
    """The folder that --resume_from_checkpoint means."""
    if args.resume_from_checkpoint is None:
        return None
    if args.resume_from_checkpoint != "latest":
        folder = Path(args.resume_from_checkpoint)
        if not (folder / "training_state").is_dir():
            raise SystemExit(f"--resume_from_checkpoint {folder}: no checkpoint of this script is there")
        return folder
    checkpoints = list_checkpoints(Path(args.output_dir))
    if not checkpoints:
        logger.warning("no checkpoint in %s yet: starting anew", args.output_dir)
        return None
    return checkpoints[-1]


class Trainer:
    """One pre-training run: model, stream, optimiser, and what is written of them."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.folder = Path(args.output_dir)
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # or each of several CPU processes takes itself to be alone
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            mixed_precision=args.mixed_precision,
            log_with=[name.strip() for name in args.report_to.split(",")] if args.with_tracking else None,
            project_config=ProjectConfiguration(args.output_dir, logging_dir=str(self.folder / "logs")),
            # The main process evaluates alone, while the others wait.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],
        )
        if self.accelerator.num_processes != int(os.environ.get("WORLD_SIZE", 1)):
            raise SystemExit(
                f"{os.environ['WORLD_SIZE']} processes were started, but each is one of "
                f"{self.accelerator.num_processes}: launch with one of examples/accelerate_configs"
            )
        self.is_sharded = self.accelerator.distributed_type == DistributedType.FSDP
        if self.is_sharded:  # it would round losses and what is summed over processes; autocast does not
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
        if self.accelerator.device.type == "cpu":
            prepare_cpu(args.cpu_threads)
        set_seed(args.seed)

        model_options = {"preset": "base", **args.model}
        preset = model_options.pop("preset")
        if preset not in ("tiny", "small", "base"):
            raise SystemExit(f"model preset {preset!r}: must be tiny, small or base")
        self.config = getattr(CSCConfig, preset)(**model_options)
        if self.config.num_sources < 2:
            raise SystemExit(f"num_sources {self.config.num_sources}: mixtures to separate need at least 2")
        if self.config.sampling_rate != SAMPLING_RATE:
            raise SystemExit(f"sampling_rate {self.config.sampling_rate}: mixtures have {SAMPLING_RATE} Hz")
        self.feature_extractor = CSCFeatureExtractor(
            sampling_rate=self.config.sampling_rate, min_samples=self.config.segment_samples
        )
        self.stream = open_mixtures(
            args, self.config.num_sources, self.accelerator.process_index, self.accelerator.num_processes
        )

        model = CSCForPreTraining(self.config)
        decays = {True: [], False: []}
        for parameter in model.parameters():
            decays[parameter.dim() > 1].append(parameter)
        optimizer = torch.optim.AdamW(
            [
                {"params": decays[True], "weight_decay": args.weight_decay},
                {"params": decays[False], "weight_decay": 0.0},
            ],
            lr=args.learning_rate,
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.scheduler = get_scheduler(
            args.lr_scheduler_type, self.optimizer, args.warmup_steps, num_training_steps=args.max_train_steps
        )
        self.accelerator.register_for_checkpointing(self.scheduler)
        self.ema = None
        if args.ema_decay is not None:
            if self.is_sharded:
                raise SystemExit("--ema_decay averages whole weights, which FSDP shards: use DDP, or leave it out")
            averaged = self.accelerator.unwrap_model(self.model)
            self.ema = AveragedModel(averaged, multi_avg_fn=get_ema_multi_avg_fn(args.ema_decay))
            self.accelerator.register_for_checkpointing(self.ema)

        set_seed(args.seed, device_specific=True)  # the same weights in every process, but not the same dropout
        self.step = 0
        self.training: dict[str, float] = {}  # means over the steps logged last
        self.curve: list[dict] = []  # what each evaluation found
        self.trials = None
        self.hub = None
        self.guard = CollapseGuard(args.collapse_patience, first_step=args.warmup_steps)
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            if args.eval_split != "none":
                self.trials = build_trials(
                    open_held_out(args),
                    seed=args.seed,
                    seconds=args.eval_seconds,
                    recordings_per_speaker=args.eval_recordings,
                )
            if args.push_to_hub:
                self.hub = BackgroundPush(args.hub_model_id or self.folder.name, private=args.hub_private)
        self.accelerator.wait_for_everyone()  # for the folder
        self.batch_log = self.folder / f"batches-{self.accelerator.process_index}.jsonl" if args.log_batches else None
        if args.with_tracking:
            self.accelerator.init_trackers("pretrain", config={k: str(v) for k, v in vars(args).items()})

    # --- training ----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Train; returns the exit status."""
        args, accelerator = self.args, self.accelerator
        checkpoint = find_checkpoint(args)
        if checkpoint is not None:
            self.load(checkpoint)
        later = [path for path in list_checkpoints(self.folder) if int(path.name.split("-")[1]) > self.step]
        if args.checkpointing_steps and later:
            raise SystemExit(
                f"{self.folder} has checkpoints of another run, or of what came after step {self.step}: "
                f"{', '.join(path.name for path in later)}. Delete them, resume from 'latest', or use another "
                "--output_dir"
            )
        if not self.curve:
            self.evaluate()
        if self.batch_log is not None:  # a run that was killed had gone further
            lines = self.batch_log.read_text().splitlines(keepends=True) if self.batch_log.exists() else []
            self.batch_log.write_text(
                "".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] < self.step)
            )
        meter = Meter(accelerator)
        bar = tqdm(
            total=args.max_train_steps,
            initial=self.step,
            desc="pre-training",
            unit="step",
            disable=not accelerator.is_main_process,
        )
        self.model.train()
        batches = iter(self.stream)  # each process's own, so Accelerate has nothing to share out
        while self.step < args.max_train_steps:
            if not self.train_step(batches, meter):
                continue  # float16 overflowed, and its loss scale was lowered
            self.step += 1
            bar.update()
            if self.step % args.logging_steps == 0 or self.step == args.max_train_steps:
                self.log(meter, bar)
            if args.with_tracking and self.step % args.example_steps == 0:
                log_examples(accelerator, self.step, self.whole_model(), meter.batch)
            if self.step == args.max_train_steps or (args.eval_steps and self.step % args.eval_steps == 0):
                self.evaluate()
            if args.checkpointing_steps and self.step % args.checkpointing_steps == 0:
                self.save_checkpoint()
        bar.close()
        return self.finish()

    def train_step(self, batches: Iterator[MixtureBatch], meter: "Meter") -> bool:
        """One step of the optimiser; False if it was left out."""
        args, accelerator = self.args, self.accelerator
        meter.begin_step()
        for _ in range(args.gradient_accumulation_steps):
            batch = meter.next(batches)
            tensors = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
            with accelerator.accumulate(self.model):
                with accelerator.autocast():
                    output = self.model(**tensors)
                accelerator.backward(output.loss)
                figures, norm = meter.add(tensors, output), 0.0
                if accelerator.sync_gradients:
                    norm = float(accelerator.clip_grad_norm_(self.model.parameters(), args.max_grad_norm))
                may_overflow = accelerator.scaler is not None  # float16, whose loss scale is then lowered
                if not math.isfinite(figures["loss"]) or not (may_overflow or math.isfinite(norm)):
                    raise SystemExit(
                        f"after step {self.step} the loss is {figures['loss']}, and the norm of its gradient {norm}: "
                        "lower --learning_rate, or resume from an earlier checkpoint"
                    )
                self.optimizer.step()
                self.optimizer.zero_grad()
            if self.batch_log is not None:
                recipes = [recipe.to_dict() for recipe in batch.recipes]
                with self.batch_log.open("a") as file:
                    file.write(json.dumps({"step": self.step, **figures, "recipes": recipes}) + "\n")
        if accelerator.optimizer_step_was_skipped:
            return False
        meter.end_step(norm)
        self.scheduler.step()
        if self.ema is not None:
            self.ema.update_parameters(accelerator.unwrap_model(self.model))
        return True

    def log(self, meter: "Meter", bar: tqdm) -> None:
        """Write the means since the last log, over all processes, and what the main process's last batch shows."""
        scale = self.accelerator.unwrap_model(self.model).log_contrastive_scale.detach()
        scale = scale.full_tensor() if self.is_sharded else scale
        values = meter.read()
        values |= {"contrastive_scale": scale.exp().item(), "learning_rate": self.scheduler.get_last_lr()[0]}
        counters = self.stream.counters()
        counts = torch.tensor(list(counters.values()), device=self.accelerator.device)
        counts = dict(zip(counters, self.accelerator.reduce(counts, "sum").tolist(), strict=True))
        if not self.accelerator.is_main_process:
            return
        counts["epoch"] = counters["epoch"]  # of this process
        values |= meter.signs()
        self.training = values
        bar.set_postfix({short: f"{values[name]:.2f}" for name, short in SHOWN.items()})
        self.accelerator.log(values | {f"data/{name}": count for name, count in counts.items()}, step=self.step)
        try:
            self.guard.check(self.step, values)
        except CollapsedError as error:
            raise SystemExit(str(error)) from error

    # --- evaluation --------------------------------------------------------------------------------------------------

    def whole_model(self) -> CSCForPreTraining | None:
        """What is evaluated and saved. Where FSDP shards the weights, all processes have to ask for it, and only the
        main process gets it."""
        if self.ema is not None:
            return self.ema.module
        if not self.is_sharded:
            return self.accelerator.unwrap_model(self.model)
        weights = self.accelerator.get_state_dict(self.model)
        if not self.accelerator.is_main_process:
            return None
        with torch.device("meta"):  # without drawing weights, and so from the generator of dropout
            model = CSCForPreTraining(self.config)
        model.load_state_dict(weights, assign=True)
        return model.to(self.accelerator.device)

    def evaluate(self) -> None:
        """Verify held-out speakers, on the main process, and keep the model if it is the best yet."""
        if self.args.eval_split == "none":
            return
        model = self.whole_model()
        if not self.accelerator.is_main_process:
            return
        results = {"step": self.step, **evaluate(model, self.trials)}
        tqdm.write(f"\nHeld-out speakers after {self.step} steps\n{format_report(results)}\n")
        values = {name: value for name, value in evaluated(results).items() if value is not None}
        self.accelerator.log({f"eval_{name}": value for name, value in values.items()}, step=self.step)
        self.curve.append(results)
        metric = self.args.best_metric
        if metric is None:
            return
        if metric not in values:
            raise SystemExit(f"--best_metric {metric}: the held-out data does not give it, choose another")
        sign, best = -1 if metric.startswith("eer") else 1, self.best()
        if best is None or sign * values[metric] > sign * evaluated(best)[metric]:
            begin_folder(self.folder / "best")
            self.save_repository(self.folder / "best.unfinished", model)
            finish_folder(self.folder / "best")

    def best(self) -> dict | None:
        """The evaluation of the model in OUTPUT_DIR/best; None if there is none of this run."""
        file = self.folder / "best" / "results.json"
        results = json.loads(file.read_text())["curve"][-1] if file.exists() else None
        return results if results in self.curve else None

    # --- what is written ---------------------------------------------------------------------------------------------

    def results(self) -> dict:
        command = shlex.join(["accelerate", "launch", *sys.argv])
        return {"command": command, "arguments": vars(self.args), "training": self.training, "curve": self.curve}

    def save_repository(self, folder: Path, model: CSCForPreTraining) -> None:
        settings = f"`{self.results()['command']}`, step {self.step}, seed {self.args.seed}."
        report = "\n\n".join(
            f"Held-out speakers after {entry['step']} steps:\n\n```\n{format_report(entry)}\n```"
            for entry in (self.curve[:1] + self.curve[-1:] if len(self.curve) > 1 else self.curve)
        )
        repo_id = self.hub.repo_id if self.hub else None
        save_repository(folder, model, self.feature_extractor, self.results(), f"{settings}\n\n{report}", repo_id)

    def save_checkpoint(self) -> None:
        """A complete Hub repository with what resuming needs beside it. It gets its name once it is whole."""
        folder = self.folder / f"checkpoint-{self.step}"
        unfinished, model = folder.with_name(folder.name + ".unfinished"), self.whole_model()
        if self.accelerator.is_main_process:
            begin_folder(folder)
            self.save_repository(unfinished, model)
            (unfinished / "training_state").mkdir()
            progress = {"step": self.step, "training": self.training, "curve": self.curve, "settings": self.settings()}
            progress["collapsed_since"] = self.guard.since
            (unfinished / "training_state" / "progress.json").write_text(json.dumps(progress))
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(unfinished / "training_state"))
        stream_state = unfinished / "training_state" / f"stream_{self.accelerator.process_index}.json"
        stream_state.write_text(json.dumps(self.stream.state_dict()))
        self.accelerator.wait_for_everyone()  # while one still writes, there are files that come and go
        sync_folder(unfinished)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            finish_folder(folder)
            if self.hub is not None:
                self.hub.push(folder, f"Step {self.step}")
            if self.args.save_total_limit is not None:
                delete_checkpoints(self.folder, keep=self.args.save_total_limit)

    def settings(self) -> dict[str, Any]:
        """What the course of a run depends on, apart from its code and the number of its processes."""
        return {name: value for name, value in vars(self.args).items() if name not in WITHOUT_EFFECT}

    def load(self, checkpoint: Path) -> None:
        """Go on where a checkpoint stands."""
        state = checkpoint / "training_state"
        progress = json.loads((state / "progress.json").read_text())
        for name, value in json.loads(json.dumps(self.settings())).items():
            if value != (former := progress["settings"].get(name)):
                logger.warning(
                    "%s was %r before and is %r now: the run goes on, but not as it would have", name, former, value
                )
        self.accelerator.load_state(str(state))
        self.step, self.training, self.curve = progress["step"], progress["training"], progress["curve"]
        self.guard.since = progress["collapsed_since"]
        streams = [json.loads(path.read_text()) for path in sorted(state.glob("stream_*.json"))]
        former = streams[0]["world_size"], streams[0]["num_workers"]
        now = self.stream.world_size, self.stream.num_workers
        if former == now:
            (own,) = (stream for stream in streams if stream["rank"] == self.accelerator.process_index)
            self.stream.load_state_dict(own)
        else:
            logger.warning(
                "the checkpoint was made by %d processes with %d workers each, this run has %d with %d: rows not read "
                "yet in their epoch are read next, each once, and the audio held then is let go; the batches are not "
                "those that they would have been",
                *former,
                *now,
            )
            self.stream.take_over(streams)
        logger.info("resumed from %s", checkpoint)

    def finish(self) -> int:
        """Save the model, push it, and say what came out; returns the exit status."""
        model = self.whole_model()
        if self.accelerator.is_main_process:
            self.save_repository(self.folder, model)
            self.report()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        if self.hub is None:
            return 0
        # The other processes are done and may leave.
        self.hub.wait()
        self.hub.push(self.folder, f"Step {self.step}, final")
        return 1 if self.hub.wait() is not None else 0

    def report(self) -> None:
        for entry in self.curve[:1] + self.curve[1:][-1:]:
            when = f"After {entry['step']} steps" if entry["step"] else "Before training"
            print(f"{when}, on speakers it never saw:\n{format_report(entry)}\n")
        if self.training:
            print(
                f"Contrastive accuracy {self.training['contrastive_accuracy']:.2f}, mutual information "
                f"{self.training['mutual_information']:.2f} nats, on the last training batches.\n"
            )
        if self.args.best_metric is not None and (best := self.best()) is not None:
            figure = evaluated(best)[self.args.best_metric]
            print(
                f"Best {self.args.best_metric}: {figure:.3f} after {best['step']} steps, in {self.folder / 'best'}.\n"
            )
        print(f"Saved in {self.folder}. To load it:\n")
        print("    import csc_hf")
        print("    from transformers import AutoModel")
        print(f'    model = AutoModel.from_pretrained("{self.folder}")\n')


class Meter:
    """What happened since the last log: sums over the steps, and the last batch."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self._reset()

    def _reset(self) -> None:
        self.sums = dict.fromkeys(LOGGED, 0.0)
        self.micro_batches, self.audio_seconds, self.waiting = 0, 0.0, 0.0
        self.gradient_norm, self.steps, self.seconds = 0.0, 0, 0.0

    def begin_step(self) -> None:
        self.started = time.monotonic()

    def next(self, batches: Iterator[MixtureBatch]) -> MixtureBatch:
        """The next batch, and how long it was waited for."""
        started = time.monotonic()
        batch = next(batches)
        self.waiting += time.monotonic() - started
        return batch

    def add(self, batch: Mapping[str, torch.Tensor], output: CSCForPreTrainingOutput) -> dict[str, float]:
        """Count a micro-batch; returns its figures."""
        figures = torch.stack([output[name].detach().float() for name in LOGGED]).tolist()
        figures = dict(zip(LOGGED, figures, strict=True))
        self.sums = {name: self.sums[name] + figure for name, figure in figures.items()}
        self.micro_batches += 1
        self.audio_seconds += batch["input_values"].numel() / SAMPLING_RATE
        self.batch = batch
        self.estimates = output.sources.detach()
        self.embeddings = output.source_embeddings.detach().take_along_dim(output.permutation[..., None], dim=1)
        return figures

    def end_step(self, gradient_norm: float) -> None:
        self.gradient_norm += gradient_norm
        self.steps += 1
        self.seconds += time.monotonic() - self.started

    def read(self) -> dict[str, float]:
        """Means since the last log over all processes, which must all ask; then it begins anew."""
        values = {name: total / self.micro_batches for name, total in self.sums.items()}
        values["gradient_norm"] = self.gradient_norm / self.steps
        values["audio_seconds_per_second"] = self.audio_seconds / self.seconds
        values["data_waiting_share"] = self.waiting / self.seconds
        means = torch.tensor(list(values.values()), device=self.accelerator.device)
        values = dict(zip(values, self.accelerator.reduce(means, "mean").tolist(), strict=True))
        values["audio_seconds_per_second"] *= self.accelerator.num_processes
        values["real_time_factor"] = 1 / values["audio_seconds_per_second"]
        self._reset()
        return values

    def signs(self) -> dict[str, float]:
        """Signs of collapse, and SI-SDR improvement of overlapped speech, of the last batch of this process."""
        sources, mixtures = (self.batch[name].float().cpu().numpy() for name in ("source_values", "input_values"))
        values = collapse_signs(self.embeddings.float().cpu().numpy(), self.batch["speaker_ids"].cpu().numpy())
        present = sources.any(axis=-1)
        overlapped = np.flatnonzero(present.sum(axis=1) > 1)
        if len(overlapped):
            estimates = self.estimates.float().cpu().numpy()
            values["si_sdr_improvement"] = float(
                np.mean(
                    [si_sdr_improvement(estimates[i], sources[i, present[i]], mixtures[i]).mean() for i in overlapped]
                )
            )
        return values


def evaluated(results: dict) -> dict[str, float | None]:
    """What `verification.evaluate` returns, by the names of EVALUATED."""
    values = {"si_sdr_improvement": results["si_sdr_improvement"]}
    for name, condition in results["conditions"].items():
        values |= {f"{figure}_{name}": condition[figure] for figure in FIGURES}
    return values


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
    for name in ("csc_hf", "pretrain"):  # others tell of each request
        logging.getLogger(name).setLevel(logging.INFO)
    disable_progress_bar()  # of saving, which would tear that of the training
    sys.exit(Trainer(parse_args()).run())
