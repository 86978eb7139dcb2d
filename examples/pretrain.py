# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Pre-trains CSC on streamed mixtures of single-speaker audio, with Accelerate.

    accelerate launch examples/pretrain.py                                   # the demo: minutes on two CPU cores
    accelerate launch examples/pretrain.py --config examples/configs/base.yaml --train_data path/to/parquet_folder

Every option can stand in the YAML file that --config names, and on the command line, which wins. The YAML file also
has a `model` mapping (`preset` and any field of CSCConfig) and a `mixing` mapping (fields of MixingConfig).
"""

import argparse
import dataclasses
import json
import logging
import os
import shlex
import shutil
import sys
import time
from collections import defaultdict
from datetime import timedelta
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, set_seed
from datasets import get_dataset_split_names
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm
from transformers import get_scheduler

from csc_hf import CSCConfig, CSCFeatureExtractor, CSCForPreTraining
from csc_hf.data import MixtureStream, stream_utterances
from csc_hf.hub import BackgroundPush, save_repository
from csc_hf.mixing import MixingConfig
from csc_hf.verification import build_trials, evaluate, format_report

logger = logging.getLogger("pretrain")
EXAMPLES = Path(__file__).resolve().parent


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
    add("--train_data", help="folder, Parquet file or glob pattern of single-speaker audio")
    add("--dataset_name", help="name of a data set on the Hub, instead of --train_data")
    add("--dataset_config_name", help="configuration of that data set")
    add("--train_split", default="train")
    add("--eval_data", help="as --train_data, of other speakers; default: --eval_split of the training data")
    add("--eval_split", default="test", help="'none' not to evaluate, where no speakers are known")
    add("--audio_column_name", default="audio")
    add("--speaker_column_name", default="speaker_id", help="for evaluation, and for supervision by speaker")
    add("--source_column_name", default="none", help="corpus or channel: most groups are then drawn within one")
    add("--id_column_name", default="id", help="'none' if there is none: audio is then known by its hash")
    add("--reservoir_seconds", type=float, default=3600, help="audio held to draw mixtures from; 64 kB a second")

    training = parser.add_argument_group("training")
    add = training.add_argument
    add("--output_dir", default="runs/pretrain")
    add("--seed", type=int, default=0)
    add("--max_train_steps", type=int, default=100_000)
    add("--per_device_train_batch_size", type=int, default=12, help="identities; each is observed in several mixtures")
    add("--gradient_accumulation_steps", type=int, default=1, help="each contrast still runs over one batch")
    add("--learning_rate", type=float, default=1e-3)
    add("--weight_decay", type=float, default=0.01)
    add("--lr_scheduler_type", default="cosine", help="of transformers.get_scheduler")
    add("--warmup_steps", type=int, default=1000)
    add("--max_grad_norm", type=float, default=5.0)
    add("--ema_decay", type=float, help="evaluate and save an exponential moving average of the weights")
    add("--mixed_precision", choices=["no", "fp16", "bf16"], help="default: what `accelerate config` says")
    add("--cpu_threads", type=int, help="default: the cores shared out among the machine's processes")

    logs = parser.add_argument_group("evaluation, logs and checkpoints")
    add = logs.add_argument
    add("--eval_steps", type=int, help="evaluate every so many steps, besides before and after training")
    add("--eval_seconds", type=float, default=4.0, help="length of the recordings that speakers are verified by")
    add("--eval_recordings", type=int, default=6, help="recordings a speaker")
    add("--logging_steps", type=int, default=10)
    add("--with_tracking", action="store_true", help="log to the trackers of --report_to")
    add("--report_to", default="tensorboard", help="trackers that Accelerate knows, separated by commas, or 'all'")
    add("--checkpointing_steps", type=int, help="save a checkpoint every so many steps")
    add("--resume_from_checkpoint", help="a checkpoint folder of the same run, or 'latest'")
    add("--push_to_hub", action="store_true", help="push checkpoints and the final model")
    add("--hub_model_id", help="user/name; default: the name of --output_dir")
    add("--hub_private", action="store_true")

    config_file = parser.parse_known_args(argv)[0].config
    with open(config_file) as file:
        from_file = yaml.safe_load(file) or {}
    nested = {name: from_file.pop(name, None) or {} for name in ("model", "mixing")}
    allowed = {
        "options": {action.dest for action in parser._actions},
        "model": {field.name for field in dataclasses.fields(CSCConfig)} | {"preset"},
        # These two are --per_device_train_batch_size and the model's.
        "mixing": {field.name for field in dataclasses.fields(MixingConfig)} - {"num_identities", "num_sources"},
    }
    for name, given in {"options": from_file, **nested}.items():
        if unknown := sorted(set(given) - allowed[name]):
            parser.error(f"{config_file} sets unknown {name}: {', '.join(unknown)}")
    parser.set_defaults(**from_file)
    args = parser.parse_args(argv)
    args.model, args.mixing = nested["model"], nested["mixing"]
    if args.train_data and args.dataset_name and not from_file.get("train_data") == args.train_data:
        parser.error("give --train_data or --dataset_name, not both")
    if args.dataset_name:
        args.train_data = None
    if not args.train_data and not args.dataset_name:
        parser.error("give --train_data or --dataset_name")
    whole = args.train_data and args.train_data.endswith(".parquet")  # files have no splits
    if args.eval_split != "none" and not args.eval_data and (whole or args.train_split == args.eval_split):
        parser.error("give --eval_data, of speakers that are not in the training data, or --eval_split none")
    return args


def open_utterances(args: argparse.Namespace, path: str | None, split: str, with_speakers: bool = True):
    """The utterances of a split of `path`, or of the Hub data set where there is none."""

    def column(name: str) -> str | None:
        return None if name == "none" else name

    options = {"name": args.dataset_config_name} if args.dataset_config_name and path is None else {}
    try:
        return stream_utterances(
            path or args.dataset_name,
            split=split,
            audio_column=args.audio_column_name,
            speaker_column=column(args.speaker_column_name) if with_speakers else None,
            source_column=column(args.source_column_name),
            id_column=column(args.id_column_name),
            **options,
        )
    except ValueError as error:
        raise SystemExit(f"{path or args.dataset_name}: {error} (here --..._column_name, --..._split)") from error


def open_held_out(args: argparse.Namespace):
    """The utterances to evaluate on. Data of its own that has but one split is that split, whatever its name."""
    split = args.eval_split
    if args.eval_data and not args.eval_data.endswith(".parquet"):
        splits = get_dataset_split_names(args.eval_data)
        split = splits[0] if len(splits) == 1 else split
    return open_utterances(args, args.eval_data or args.train_data, split)


def find_checkpoint(args: argparse.Namespace) -> Path | None:
    """The folder that --resume_from_checkpoint means."""
    if args.resume_from_checkpoint is None:
        return None
    if args.resume_from_checkpoint != "latest":
        folder = Path(args.resume_from_checkpoint)
        if not (folder / "training_state").is_dir():
            raise SystemExit(f"--resume_from_checkpoint {folder}: no checkpoint of this script is there")
        return folder
    found = [path for path in Path(args.output_dir).glob("checkpoint-*") if path.name[11:].isdigit()]
    if not found:
        logger.warning("no checkpoint in %s yet: starting anew", args.output_dir)
        return None
    return max(found, key=lambda path: int(path.name[11:]))


class Trainer:
    """One pre-training run: model, stream, optimiser, and what is written of them."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.accelerator = Accelerator(
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            mixed_precision=args.mixed_precision,
            log_with=[name.strip() for name in args.report_to.split(",")] if args.with_tracking else None,
            project_config=ProjectConfiguration(args.output_dir, logging_dir=str(Path(args.output_dir) / "logs")),
            # The main process evaluates and pushes alone, while the others wait.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],
        )
        if self.accelerator.device.type == "cpu":
            # `accelerate launch` gives a single process one thread; its processes on a machine share the cores here.
            local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            torch.set_num_threads(args.cpu_threads or max(1, os.cpu_count() // local_processes))
        set_seed(args.seed)

        model_options = {"preset": "base", **args.model}
        preset = model_options.pop("preset")
        if preset not in ("tiny", "small", "base"):
            raise SystemExit(f"model preset {preset!r}: must be tiny, small or base")
        config = getattr(CSCConfig, preset)(**model_options)
        if config.num_sources < 2:
            raise SystemExit(f"num_sources {config.num_sources}: mixtures to separate need at least 2")
        self.feature_extractor = CSCFeatureExtractor(
            sampling_rate=config.sampling_rate, min_samples=config.segment_samples
        )
        mixing = MixingConfig(
            num_identities=args.per_device_train_batch_size, num_sources=config.num_sources, **args.mixing
        )
        self.stream = MixtureStream(
            open_utterances(args, args.train_data, args.train_split, mixing.supervision == "speaker"),
            mixing,
            seed=args.seed,
            reservoir_seconds=args.reservoir_seconds,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )

        model = CSCForPreTraining(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.scheduler = get_scheduler(
            args.lr_scheduler_type, self.optimizer, args.warmup_steps, num_training_steps=args.max_train_steps
        )
        self.accelerator.register_for_checkpointing(self.scheduler)
        self.ema = None
        if args.ema_decay is not None:
            averaged = self.accelerator.unwrap_model(self.model)
            self.ema = AveragedModel(averaged, multi_avg_fn=get_ema_multi_avg_fn(args.ema_decay))
            self.accelerator.register_for_checkpointing(self.ema)

        set_seed(args.seed, device_specific=True)  # the same weights in every process, but not the same dropout
        self.step = 0
        self.training: dict[str, float] = {}  # means over the steps logged last
        self.curve: list[dict] = []  # what each evaluation found
        self.trials = None
        self.hub = None
        if self.accelerator.is_main_process:
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
            if args.eval_split != "none":
                self.trials = build_trials(
                    open_held_out(args),
                    seed=args.seed,
                    seconds=args.eval_seconds,
                    recordings_per_speaker=args.eval_recordings,
                )
            if args.push_to_hub:
                self.hub = BackgroundPush(args.hub_model_id or Path(args.output_dir).name, private=args.hub_private)
        if args.with_tracking:
            self.accelerator.init_trackers("pretrain", config={k: str(v) for k, v in vars(args).items()})

    def run(self) -> int:
        """Train; returns the exit status."""
        args, accelerator = self.args, self.accelerator
        checkpoint = find_checkpoint(args)
        if checkpoint is not None:
            self.load(checkpoint)
        if not self.curve:
            self.evaluate()
        sums = defaultdict(float)
        bar = tqdm(
            total=args.max_train_steps,
            initial=self.step,
            desc="pre-training",
            unit="step",
            disable=not accelerator.is_main_process,
        )
        micro_batches, started, first_step = 0, time.monotonic(), self.step
        self.model.train()
        batches = iter(self.stream)  # each process's own, so Accelerate has nothing to share out
        while self.step < args.max_train_steps:
            batch = {name: tensor.to(accelerator.device) for name, tensor in next(batches).items()}
            with accelerator.accumulate(self.model):
                output = self.model(**batch)
                if not torch.isfinite(output.loss):
                    raise SystemExit(
                        f"the loss is {output.loss.item()} after step {self.step}: lower --learning_rate, or resume "
                        "from an earlier checkpoint"
                    )
                accelerator.backward(output.loss)
                if accelerator.sync_gradients:
                    sums["gradient_norm"] += accelerator.clip_grad_norm_(
                        self.model.parameters(), args.max_grad_norm
                    ).item()
                self.optimizer.step()
                self.optimizer.zero_grad()
            micro_batches += 1
            for name in LOGGED:
                sums[name] += output[name].item()
            if not accelerator.sync_gradients:
                continue
            if accelerator.optimizer_step_was_skipped:
                continue  # float16 overflowed, and its loss scale is lowered
            self.scheduler.step()
            if self.ema is not None:
                self.ema.update_parameters(accelerator.unwrap_model(self.model))
            self.step += 1
            bar.update()
            if self.step % args.logging_steps == 0 or self.step == args.max_train_steps:
                values = {name: sums[name] / micro_batches for name in LOGGED}
                values["gradient_norm"] = sums["gradient_norm"] * args.gradient_accumulation_steps / micro_batches
                values["learning_rate"] = self.scheduler.get_last_lr()[0]
                mixture_seconds = batch["input_values"].numel() / self.feature_extractor.sampling_rate
                per_second = mixture_seconds * args.gradient_accumulation_steps * accelerator.num_processes
                values["audio_seconds_per_second"] = (
                    per_second * (self.step - first_step) / (time.monotonic() - started)
                )
                self.training = values
                bar.set_postfix({short: f"{values[name]:.2f}" for name, short in SHOWN.items()})
                accelerator.log(values, step=self.step)
                sums, micro_batches = defaultdict(float), 0
            if self.step == args.max_train_steps or (args.eval_steps and self.step % args.eval_steps == 0):
                self.evaluate()
            if args.checkpointing_steps and self.step % args.checkpointing_steps == 0:
                self.save_checkpoint()
        bar.close()
        status = 0
        if accelerator.is_main_process:
            status = self.finish()
        accelerator.wait_for_everyone()
        accelerator.end_training()
        return status

    def evaluate(self) -> None:
        """Verify held-out speakers, on the main process."""
        if self.trials is None:
            return
        results = {"step": self.step, **evaluate(self.final_model(), self.trials)}
        self.curve.append(results)
        tqdm.write(f"\nHeld-out speakers after {self.step} steps\n{format_report(results)}\n")
        values = {"si_sdr_improvement": results["si_sdr_improvement"]}
        values |= {f"eer_{name}": condition["eer"] for name, condition in results["conditions"].items()}
        self.accelerator.log({f"eval_{name}": value for name, value in values.items()}, step=self.step)

    def final_model(self) -> CSCForPreTraining:
        """What is evaluated and saved."""
        return self.accelerator.unwrap_model(self.model) if self.ema is None else self.ema.module

    def results(self) -> dict:
        command = shlex.join(["accelerate", "launch", *sys.argv])
        return {"command": command, "arguments": vars(self.args), "training": self.training, "curve": self.curve}

    def save_repository(self, folder: Path) -> None:
        settings = f"`{self.results()['command']}`, step {self.step}, seed {self.args.seed}."
        report = "\n\n".join(
            f"Held-out speakers after {entry['step']} steps:\n\n```\n{format_report(entry)}\n```"
            for entry in (self.curve[:1] + self.curve[-1:] if len(self.curve) > 1 else self.curve)
        )
        repo_id = self.hub.repo_id if self.hub else None
        save_repository(
            folder, self.final_model(), self.feature_extractor, self.results(), f"{settings}\n\n{report}", repo_id
        )

    def save_checkpoint(self) -> None:
        """A complete Hub repository with what resuming needs beside it. It gets its name once it is whole."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.step}"
        unfinished = folder.with_name(folder.name + ".unfinished")
        if self.accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
            self.save_repository(unfinished)
            progress = {"step": self.step, "training": self.training, "curve": self.curve}
            (unfinished / "training_state").mkdir()
            (unfinished / "training_state" / "progress.json").write_text(json.dumps(progress))
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(unfinished / "training_state"))
        stream_state = unfinished / "training_state" / f"stream_{self.accelerator.process_index}.json"
        stream_state.write_text(json.dumps(self.stream.state_dict()))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)
            if self.hub is not None:
                self.hub.push(folder, f"Step {self.step}")

    def load(self, checkpoint: Path) -> None:
        """Go on where a checkpoint stands."""
        state = checkpoint / "training_state"
        self.accelerator.load_state(str(state))
        progress = json.loads((state / "progress.json").read_text())
        self.step, self.training, self.curve = progress["step"], progress["training"], progress["curve"]
        self.stream.load_state_dict(json.loads((state / f"stream_{self.accelerator.process_index}.json").read_text()))
        logger.info("resumed from %s", checkpoint)

    def finish(self) -> int:
        """Save the model, push it, and say what came out; returns the exit status."""
        folder = Path(self.args.output_dir)
        self.save_repository(folder)
        for entry in self.curve[:1] + self.curve[1:][-1:]:
            when = f"After {entry['step']} steps" if entry["step"] else "Before training"
            print(f"{when}, on speakers it never saw:\n{format_report(entry)}\n")
        if self.training:
            print(
                f"Contrastive accuracy {self.training['contrastive_accuracy']:.2f}, mutual information "
                f"{self.training['mutual_information']:.2f} nats, on the last training batches.\n"
            )
        print(f"Saved in {folder}. To load it:\n")
        print("    import csc_hf")
        print("    from transformers import AutoModel")
        print(f'    model = AutoModel.from_pretrained("{folder}")\n')
        if self.hub is None:
            return 0
        self.hub.wait()
        self.hub.push(folder, f"Step {self.step}, final")
        return 1 if self.hub.wait() is not None else 0


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


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    sys.exit(Trainer(parse_args()).run())
