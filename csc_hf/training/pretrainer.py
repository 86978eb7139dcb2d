# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The pre-training loop: mixtures → model → losses → weights, with evaluation, logs, checkpoints and pushes.

>>> args = parse_pretraining_arguments(["--train_data", "path/to/data", "--eval_split", "none"])
>>> exit_status = Pretrainer(args).run()
"""

import dataclasses
import json
import logging
import math
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import DistributedType, ProjectConfiguration, set_seed
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm
from transformers import get_scheduler

from ..data.stream import MixtureBatch, Shard, recording_classes
from ..evaluation.reports import format_report
from ..evaluation.trials import build_trials
from ..evaluation.verification import TRAINING_FIGURES, evaluate, training_figures
from ..feature_extraction_csc import CSCFeatureExtractor
from ..modeling_csc import CSCForPreTraining
from .arguments import PretrainingArguments
from .checkpoints import (
    begin_folder,
    delete_checkpoints,
    find_checkpoint,
    finish_folder,
    load_checkpoint,
    move_files,
    refuse_later_checkpoints,
    save_checkpoint,
)
from .collapse import CollapsedError, CollapseGuard, OverflowGuard
from .corpora import name_too_few, open_held_out, open_mixtures, refuse_training_data, usable_utterances
from .distributed import create_accelerator
from .hub import BackgroundPush, save_repository, without_paths
from .meter import Meter
from .visualize import log_examples

logger = logging.getLogger(__name__)

SHOWN = {"loss": "loss", "separation_loss": "sep", "contrastive_accuracy": "acc", "mutual_information": "MI"}
"""Figures beside the progress bar, with their short names."""


class Pretrainer:
    """One pre-training run: model, stream, optimizer, and what is written of them.

    Args:
        args: all options.

    Raises:
        SystemExit: an option cannot be followed; the message names it and the remedy.
    """

    def __init__(self, args: PretrainingArguments):
        self.args = args
        self.folder = Path(args.output_dir)
        self.accelerator = create_accelerator(
            args.cpu_threads,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            mixed_precision=args.mixed_precision,
            log_with=[name.strip() for name in args.report_to.split(",")] if args.with_tracking else None,
            project_config=ProjectConfiguration(args.output_dir, logging_dir=str(self.folder / "logs")),
        )
        self.is_sharded = self.accelerator.distributed_type == DistributedType.FSDP
        if self.is_sharded:  # it would round losses and what is summed over processes; autocast does not
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
        set_seed(args.seed)
        refuse_training_data(args)

        self.config = args.model_config()
        self.feature_extractor = CSCFeatureExtractor(
            sampling_rate=self.config.sampling_rate, min_samples=self.config.segment_samples
        )
        shard = Shard(self.accelerator.process_index, self.accelerator.num_processes)
        self.stream = open_mixtures(args, self.config.num_sources, shard)
        self._build_model_and_optimizer()

        set_seed(args.seed, device_specific=True)  # the same weights in every process, but not the same dropout
        self.step = 0
        self.training: dict[str, float] = {}  # means over the steps logged last
        self.curve: list[dict] = []  # the results of each evaluation
        self.guard = CollapseGuard(args.collapse_patience, first_step=args.warmup_steps)
        self._prepare_main_process()
        self.accelerator.wait_for_everyone()  # until the folder is there
        self.batch_log = self.folder / f"batches-{self.accelerator.process_index}.jsonl" if args.log_batches else None
        if args.with_tracking:
            options = {name: str(value) for name, value in dataclasses.asdict(args).items()}
            self.accelerator.init_trackers("pretrain", config=options)

    def _build_model_and_optimizer(self) -> None:
        args = self.args
        try:
            model = CSCForPreTraining(self.config)
        except (ValueError, ImportError) as error:
            if "attn_implementation" not in args.model:
                raise
            reason = str(error).strip().splitlines()[0]
            raise SystemExit(f"--model.attn_implementation {args.model['attn_implementation']}: {reason}") from error
        decaying = [parameter for parameter in model.parameters() if parameter.dim() > 1]
        others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
        optimizer = torch.optim.AdamW(
            [{"params": decaying, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=args.learning_rate,
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.scheduler = get_scheduler(
            args.lr_scheduler_type, self.optimizer, args.warmup_steps, num_training_steps=args.max_train_steps
        )
        self.ema: AveragedModel | None = None
        if args.ema_decay is not None:
            if self.is_sharded:
                raise SystemExit("--ema_decay averages whole weights, which FSDP shards: use DDP, or leave it out")
            averaged = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            self.ema = AveragedModel(averaged, multi_avg_fn=get_ema_multi_avg_fn(args.ema_decay))

    def _extra_states(self) -> dict[str, Any]:
        """What Accelerate does not save by itself."""
        return {"scheduler": self.scheduler} | ({} if self.ema is None else {"average": self.ema})

    def _prepare_main_process(self) -> None:
        """What the main process needs besides: the folder, the trials of the evaluation, the Hub repository."""
        self.trials, self.hub = None, None
        if not self.accelerator.is_main_process:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.args.eval_split != "none":
            self.trials = build_trials(
                usable_utterances([open_held_out(self.args)]),
                seed=self.args.seed,
                seconds=self.args.eval_seconds,
                recordings_per_speaker=self.args.eval_recordings,
            )
        if self.args.push_to_hub:
            repo_id = self.args.hub_model_id or self.folder.name
            self.hub = BackgroundPush(repo_id, private=self.args.hub_private)

    # --- training ----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Train, from the beginning or from the checkpoint that `resume_from_checkpoint` names.

        Returns:
            The exit status: 1 where the last push to the Hub failed, else 0.
        """
        args = self.args
        checkpoint = find_checkpoint(args.resume_from_checkpoint, self.folder)
        if checkpoint is not None:
            self.load(checkpoint)
        if args.checkpointing_steps:
            refuse_later_checkpoints(self.folder, self.step)
        if not self.curve:
            self.evaluate()
        if self.batch_log is not None:
            self._cut_batch_log(self.batch_log)
        meter = Meter(self.accelerator)
        bar = tqdm(
            total=args.max_train_steps,
            initial=self.step,
            desc="pre-training",
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        self.model.train()
        # Each process has its own, so Accelerate has nothing to share out.
        batches = name_too_few(self.stream, "--per_device_train_batch_size")
        overflow = OverflowGuard()
        while self.step < args.max_train_steps:
            was_updated = self.train_step(batches, meter)
            overflow.check(self.step, was_updated)
            if not was_updated:
                continue  # float16 overflowed, and its loss scale was lowered
            self.step += 1
            bar.update()
            is_last = self.step == args.max_train_steps
            if self.step % args.logging_steps == 0 or is_last:
                self.log(meter, bar)
            if args.with_tracking and self.step % args.example_steps == 0:
                log_examples(self.accelerator, self.step, self.whole_model(), meter.batch)
            if is_last or (args.eval_steps and self.step % args.eval_steps == 0):
                self.evaluate()
            if args.checkpointing_steps and self.step % args.checkpointing_steps == 0:
                self.save_checkpoint()
        bar.close()
        return self.finish()

    def train_step(self, batches: Iterator[MixtureBatch], meter: Meter) -> bool:
        """One step of the optimizer.

        Returns:
            Whether the weights were updated: not where float16 overflowed.
        """
        accelerator = self.accelerator
        meter.begin_step()
        for _ in range(self.args.gradient_accumulation_steps):
            batch = meter.next_batch(batches)
            if self.config.num_recording_classes is not None:
                batch["recording_ids"] = recording_classes(batch.recipes, self.config.num_recording_classes)
            tensors = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
            with accelerator.accumulate(self.model):
                with accelerator.autocast():
                    output = self.model(**tensors)
                accelerator.backward(output.loss)
                figures, norm = meter.add(tensors, output), 0.0
                if accelerator.sync_gradients:
                    norm = float(accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm))
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
            self.ema.update_parameters(accelerator.unwrap_model(self.model, keep_torch_compile=False))
        return True

    def log(self, meter: Meter, bar: tqdm) -> None:
        """Log the means since the last log, over all processes, and what the main process's last batch shows.

        Raises:
            SystemExit: the embeddings have collapsed.
        """
        scale = self.accelerator.unwrap_model(self.model).log_contrastive_scale.detach()
        scale = scale.full_tensor() if self.is_sharded else scale
        values = meter.read()
        values |= {"contrastive_scale": scale.exp().item(), "learning_rate": self.scheduler.get_last_lr()[0]}
        counters = self.stream.counters()
        counts = torch.tensor(list(counters.values()), device=self.accelerator.device)
        totals = dict(zip(counters, self.accelerator.reduce(counts, "sum").tolist(), strict=True))
        if not self.accelerator.is_main_process:
            return
        totals["epoch"] = counters["epoch"]  # of this process
        values |= meter.read_last_batch()
        self.training = values
        bar.set_postfix({short: f"{values[name]:.2f}" for name, short in SHOWN.items()})
        self.accelerator.log(values | {f"data/{name}": count for name, count in totals.items()}, step=self.step)
        try:
            self.guard.check(self.step, values)
        except CollapsedError as error:
            raise SystemExit(str(error)) from error

    # --- evaluation --------------------------------------------------------------------------------------------------

    def whole_model(self) -> CSCForPreTraining | None:
        """The model to evaluate and to save: the moving average, where there is one.

        Where FSDP shards the weights, every process has to call this, and only the main process gets the model.
        """
        if self.ema is not None:
            return cast(CSCForPreTraining, self.ema.module)
        if not self.is_sharded:
            return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        weights = self.accelerator.get_state_dict(self.model)
        if not self.accelerator.is_main_process:
            return None
        with torch.device("meta"):  # no weights are drawn, which would change the random numbers of dropout
            model = CSCForPreTraining(self.config)
        model.load_state_dict(weights, assign=True)
        return model.to(self.accelerator.device)

    def evaluate(self) -> None:
        """Verify held-out speakers, on the main process, and keep the model if it is the best yet."""
        if self.args.eval_split == "none":
            return
        model = self.whole_model()
        if model is None or self.trials is None:  # not the main process
            return
        results = {"step": self.step, **evaluate(model, self.trials)}
        tqdm.write(f"\nHeld-out speakers after {self.step} steps\n{format_report(results)}\n")
        values = training_figures(results)
        self.accelerator.log({f"eval_{name}": value for name, value in values.items()}, step=self.step)
        self.curve.append(results)
        metric = self.args.best_metric
        if metric is None:
            return
        if metric not in values:
            raise SystemExit(f"--best_metric {metric}: the held-out data does not give it, choose another")
        sign, best = 1 if TRAINING_FIGURES[metric] else -1, self.best()  # whether higher is better
        if best is None or sign * values[metric] > sign * training_figures(best)[metric]:
            self.write_repository(begin_folder(self.folder / "best"), model, "best")
            finish_folder(self.folder / "best")

    def best(self) -> dict | None:
        """The evaluation of the model in OUTPUT_DIR/best; None if there is none of this run."""
        file = self.folder / "best" / "results.json"
        results = json.loads(file.read_text())["curve"][-1] if file.exists() else None
        return results if results in self.curve else None

    # --- what is written ---------------------------------------------------------------------------------------------

    def results(self) -> dict[str, Any]:
        """What goes into results.json."""
        command = shlex.join(["accelerate", "launch", *without_paths(sys.argv)])
        arguments = without_paths(dataclasses.asdict(self.args))
        return {"command": command, "arguments": arguments, "training": self.training, "curve": self.curve}

    def write_repository(self, folder: Path, model: CSCForPreTraining | None, name: str) -> None:
        """Write a Hub repository into `folder`. Its card loads the model by `name`, or from where it is pushed to."""
        assert model is not None, "only the main process has the whole model"
        settings = f"`{self.results()['command']}`, step {self.step}, seed {self.args.seed}."
        first_and_last = self.curve[:1] + self.curve[1:][-1:]
        reports = [
            f"Held-out speakers after {results['step']} steps:\n\n```\n{format_report(results)}\n```"
            for results in first_and_last
        ]
        report = "\n\n".join([settings, *reports])
        repo_id = self.hub.repo_id if self.hub else name
        save_repository(folder, model, self.feature_extractor, self.results(), report, repo_id)

    def save_checkpoint(self) -> None:
        """Write a complete Hub repository and, in `training_state`, what resuming needs besides."""
        folder = self.folder / f"checkpoint-{self.step}"
        model = self.whole_model()
        progress = {
            "step": self.step,
            "training": self.training,
            "curve": self.curve,
            "settings": self.args.settings(),
            "collapsed_since": self.guard.since,
        }

        def write(unfinished: Path) -> None:
            self.write_repository(unfinished, model, folder.name)

        save_checkpoint(self.accelerator, folder, write, progress, self.stream, self._extra_states())
        if self.accelerator.is_main_process:
            if self.hub is not None:
                self.hub.push(folder, f"Step {self.step}")
            if self.args.save_total_limit is not None:
                delete_checkpoints(self.folder, keep=self.args.save_total_limit)

    def load(self, checkpoint: Path) -> None:
        """Continue from a checkpoint, exactly where the number of processes and workers is the same."""
        progress = load_checkpoint(
            self.accelerator, checkpoint, self.args.settings(), self.stream, self._extra_states()
        )
        self.step, self.training, self.curve = progress["step"], progress["training"], progress["curve"]
        self.guard.since = progress["collapsed_since"]

    def _cut_batch_log(self, batch_log: Path) -> None:
        """Drop the batches that a killed run had logged after its last checkpoint."""
        lines = batch_log.read_text().splitlines(keepends=True) if batch_log.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < self.step]
        batch_log.write_text("".join(kept))

    def finish(self) -> int:
        """Save the model, push it, and report; returns the exit status."""
        model = self.whole_model()
        files: list[str] = []
        if self.accelerator.is_main_process:
            unfinished = begin_folder(self.folder / "final")
            self.write_repository(unfinished, model, self.folder.name)
            files = move_files(unfinished, self.folder)
            self.report()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        if self.hub is None:
            return 0
        # The other processes are done and may leave.
        self.hub.wait()
        self.hub.push(self.folder, f"Step {self.step}, final", files)  # not logs and notes beside them
        return 1 if self.hub.wait() is not None else 0

    def report(self) -> None:
        """Print what came out."""
        for results in self.curve[:1] + self.curve[1:][-1:]:
            when = f"After {results['step']} steps" if results["step"] else "Before training"
            print(f"{when}, on the held-out speakers:\n{format_report(results)}\n")
        if self.training:
            print(
                f"Contrastive accuracy {self.training['contrastive_accuracy']:.2f}, mutual information "
                f"{self.training['mutual_information']:.2f} nats, on the last training batches.\n"
            )
        if self.args.best_metric is not None and (best := self.best()) is not None:
            figure = training_figures(best)[self.args.best_metric]
            print(
                f"Best {self.args.best_metric}: {figure:.3f} after {best['step']} steps, in {self.folder / 'best'}.\n"
            )
        print(f"Saved in {self.folder}. To load it:\n")
        print("    import csc_hf")
        print("    from transformers import AutoModel")
        print(f'    model = AutoModel.from_pretrained("{self.folder}")\n')
