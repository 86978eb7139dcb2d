# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Goes on with pre-training, and teaches the embedding of every talker of a mixture who he is: additive angular margin
softmax over the training speakers (ArcFace, arXiv 1801.07698) beside the losses of pre-training. What comes out still
separates and still attends. Speakers that it never heard are verified before and after.

    accelerate launch examples/finetune_mixtures.py --model runs/pretrain                # the demo voices
    accelerate launch examples/finetune_mixtures.py --model runs/pretrain --train_data "train/*.parquet" \\
        --eval_data "dev/*.parquet" --source_column_name source --noise_data "noise/*.parquet"

For one embedding a recording, `finetune_verification.py` is the plainer way.
"""

import argparse
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import get_scheduler

from csc_hf import CSCConfig, CSCFeatureExtractor, CSCForPreTraining
from csc_hf.data.mixing import MixingConfig, MixtureRecipe
from csc_hf.data.reservoir import ReservoirConfig
from csc_hf.data.stream import MixtureBatch, MixtureStream, Shard
from csc_hf.data.utterances import UtteranceStream, stream_utterances
from csc_hf.evaluation.reports import format_report
from csc_hf.evaluation.trials import build_trials
from csc_hf.evaluation.verification import evaluate
from csc_hf.modeling_csc import additive_angular_margin_loss
from csc_hf.training.cpu import prepare_cpu

PRESETS = ("tiny", "small", "base")

SPEED_RANGE = (0.86, 1.14)
NUM_SPEEDS = 3
"""A speaker at a speed that rounds to 0.9, to 1.0 and to 1.1 is three speakers: his pitch and formants differ."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the text above as it stands, and defaults."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--model", default="small", help="a saved model (folder or name on the Hub), or a new one: tiny, small, base")
    add(
        "--train_data",
        nargs="+",
        default=[os.path.relpath(Path(__file__).resolve().parent / "demo_speech")],
        help="speech with speakers: folder, Parquet or tar files, name on the Hub; or several",
    )
    add("--eval_data", help="as --train_data, of other speakers; if not given, the split `test` of the training data")
    add("--noise_data", help="recorded noise, in any form that --train_data takes; or noise is generated")
    add("--audio_column_name", default="audio", help="column with the audio")
    add("--speaker_column_name", default="speaker_id", help="column with the speaker")
    add("--source_column_name", help="corpus or channel: most groups are then drawn within one")
    add("--id_column_name", default="id", help="column with an id that no other row has")
    add("--reservoir_seconds", type=float, default=3600.0, help="audio held to draw mixtures from; 64 kB a second")
    add("--seconds", type=float, default=2.0, help="length of a mixture")
    add("--single_speaker_probability", type=float, default=0.5, help="of a mixture of one talker alone")
    add("--recorded_noise_probability", type=float, default=0.5, help="share of recorded noises, if there are any")
    add("--speed_probability", type=float, default=0.0, help="of an identity at another speed, and so another speaker")
    add("--reverb_probability", type=float, default=0.0, help="of a mixture in a simulated room")
    add("--num_identities", type=int, default=12, help="speakers in a batch, of each device; two mixtures for each")
    add("--classification_loss_weight", type=float, default=0.3, help="beside the losses of pre-training")
    add("--max_steps", type=int, default=1000, help="training steps")
    add("--learning_rate", type=float, default=5e-4, help="highest rate, of a cosine schedule")
    add("--warmup_steps", type=int, default=50, help="steps in which the rate rises")
    add("--max_grad_norm", type=float, default=5.0, help="gradients are scaled down to this norm")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), default="no")
    add("--attn_implementation", help='of Transformers; "eager" is the fastest in bf16 on CPUs')
    add("--cpu_threads", type=int, help="of each process; all cores if not given")
    add("--logging_steps", type=int, default=50, help="steps that a logged loss is the mean of")
    add("--eval_seconds", type=float, default=4.0, help="length of the recordings that speakers are verified by")
    add("--eval_recordings", type=int, default=6, help="recordings a speaker")
    add("--seed", type=int, default=0, help="of weights, training data and evaluation")
    add("--output_dir", default="runs/mixtures", help="folder for model, feature extractor and results.json")
    args = parser.parse_args(argv)
    if args.eval_data is None and any(path.endswith((".parquet", ".tar")) for path in args.train_data):
        parser.error("give --eval_data, of speakers that are not in the training data")
    return args


def open_data(args: argparse.Namespace, paths: list[str], split: str) -> list[UtteranceStream]:
    columns = args.audio_column_name, args.speaker_column_name, args.source_column_name, args.id_column_name
    # Each of several has its name put before its speakers and ids, so that they cannot be confused.
    return [stream_utterances(path, split, *columns, corpus=path if len(paths) > 1 else None) for path in paths]


def open_noise(args: argparse.Namespace) -> UtteranceStream | None:
    if args.noise_data is None:
        return None
    columns = args.audio_column_name, None, None, args.id_column_name
    return stream_utterances(args.noise_data, "train", *columns, corpus="noise")


def load_model(args: argparse.Namespace) -> CSCForPreTraining:
    options = {} if args.attn_implementation is None else {"attn_implementation": args.attn_implementation}
    if args.model in PRESETS:
        return CSCForPreTraining(getattr(CSCConfig, args.model)(**options))
    return CSCForPreTraining.from_pretrained(args.model, **options)


def number_slots(recipes: Sequence[MixtureRecipe], number_of: Mapping[str, int], num_speeds: int) -> torch.Tensor:
    """Who speaks in each slot, (B, C), from the number of each utterance's speaker, who is `num_speeds` speakers by
    his speeds; −100 where nobody does."""
    numbers = torch.full((len(recipes), recipes[0].num_sources), -100)
    for row, recipe in enumerate(recipes):
        for slot, source in enumerate(recipe.sources):
            speed = (round(10 * source.speed) - 10) % num_speeds
            numbers[row, slot] = num_speeds * number_of[source.pieces[0].utterance] + speed
    return numbers


class SlotClassifier(nn.Module):
    """Pre-training, and who speaks in each slot."""

    def __init__(self, model: CSCForPreTraining, num_speakers: int, weight: float):
        super().__init__()
        self.model = model
        self.speakers = nn.Parameter(torch.empty(num_speakers, model.config.speaker_embedding_size))
        nn.init.xavier_normal_(self.speakers)  # only directions count, and the shorter, the sooner they turn
        self.weight = weight

    def forward(self, speakers: torch.Tensor, batch: MixtureBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Numbers of the speakers of each mixture (B, C), negative where there is none, and the batch → the loss, the
        classification loss and how many of the slots are classified right."""
        output = self.model(**batch)
        # Which slot holds whom is known from the separated waveforms.
        embeddings = output.source_embeddings.take_along_dim(output.permutation[..., None], dim=1)
        speaking = speakers >= 0
        with torch.autocast(embeddings.device.type, enabled=False):
            cosines = embeddings[speaking].float() @ F.normalize(self.speakers.float(), dim=-1).T
        config, labels = self.model.config, speakers[speaking]
        loss = additive_angular_margin_loss(cosines, labels, config.xvector_margin, config.xvector_scale)
        return output.loss + self.weight * loss, loss, (cosines.argmax(-1) == labels).float().mean()


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    # Without `cpu`, each of several processes on CPUs takes itself to be alone.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=args.mixed_precision)
    if accelerator.device.type == "cpu":
        prepare_cpu(args.cpu_threads)
    set_seed(args.seed)

    training = open_data(args, args.train_data, "train")
    speaker_of = {row.id: row.speaker for row in itertools.chain(*(stream.rows() for stream in training))}
    speakers = sorted(set(speaker_of.values()) - {None})
    number_of = {utterance: speakers.index(speaker) for utterance, speaker in speaker_of.items() if speaker}
    held_out = open_data(args, [args.eval_data] if args.eval_data else args.train_data, "test")
    names = {name.removeprefix(f"{stream.corpus}:") for stream in training for name in speakers}
    if both := {row.speaker for stream in held_out for row in stream.rows()} & {*speakers, *names}:
        raise SystemExit(f"speakers {sorted(both)[:3]} are in the training data and in --eval_data: keep them apart")
    trials = build_trials(itertools.chain(*held_out), args.seed, args.eval_seconds, args.eval_recordings)

    pretrained = load_model(args)
    stream = MixtureStream(
        training,
        MixingConfig(
            num_identities=args.num_identities,
            num_sources=pretrained.config.num_sources,
            seconds=args.seconds,
            supervision="speaker",
            single_speaker_probability=args.single_speaker_probability,
            speed_probability=args.speed_probability,
            speed_range=SPEED_RANGE,
            reverb_probability=args.reverb_probability,
            recorded_noise_probability=args.recorded_noise_probability,
        ),
        reservoir=ReservoirConfig(args.reservoir_seconds),
        noise=open_noise(args),
        seed=args.seed,
        shard=Shard(accelerator.process_index, accelerator.num_processes),
    )
    num_speeds = NUM_SPEEDS if args.speed_probability else 1
    model = SlotClassifier(pretrained, len(speakers) * num_speeds, args.classification_loss_weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    # Accelerate steps the schedule once for every process.
    steps = [count * accelerator.num_processes for count in (args.warmup_steps, args.max_steps)]
    scheduler = get_scheduler("cosine", optimizer, *steps)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)

    results = {"settings": vars(args), "num_processes": accelerator.num_processes, "loss": [], "accuracy": []}
    if accelerator.is_main_process:
        results["before"] = evaluate(pretrained, trials)
    model.train()
    recent = []
    progress = tqdm(range(1, args.max_steps + 1), desc="training", disable=not accelerator.is_main_process)
    for step, batch in zip(progress, stream, strict=False):
        numbers = number_slots(batch.recipes, number_of, num_speeds)
        batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        loss, *figures = model(numbers.to(accelerator.device), batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        recent.append([accelerator.reduce(figure.detach(), "mean").item() for figure in figures])
        if step % args.logging_steps == 0:
            for name, column in zip(("loss", "accuracy"), zip(*recent, strict=True), strict=True):
                results[name].append(sum(column) / len(column))
            recent.clear()
            progress.set_postfix({name: f"{results[name][-1]:.3f}" for name in ("loss", "accuracy")})

    if accelerator.is_main_process:
        results["after"] = evaluate(pretrained, trials)
        pretrained.save_pretrained(args.output_dir)
        CSCFeatureExtractor(min_samples=pretrained.config.segment_samples).save_pretrained(args.output_dir)
        Path(args.output_dir, "results.json").write_text(json.dumps(results, indent=2) + "\n")
        print(f"{len(speakers)} training speakers, {len(speaker_of)} utterances. Saved in {args.output_dir}")
        for moment in ("before", "after"):
            print(f"{moment} fine-tuning: {format_report(results[moment])}")


if __name__ == "__main__":
    main()
