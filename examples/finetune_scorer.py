# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Trains a scorer that hears both sides of a trial (`CSCForSpeakerVerification`): does the enrolled person speak in the
test recording, in which others may speak as well? A batch has a mixture for each person, and other recordings of these
people alone to enrol them by. All pairs are learnt from. Speakers that it never heard are verified before and after;
before, the scorer of a pre-trained model scores by cosines alone.

    accelerate launch examples/finetune_scorer.py --model runs/pretrain                   # the demo voices
    accelerate launch examples/finetune_scorer.py --model runs/pretrain --train_data "train/*.parquet" \\
        --eval_data "dev/*.parquet" --source_column_name source --noise_data "noise/*.parquet"

Every option can stand in the YAML file that --config names, and on the command line, which wins. Fields of the
mixtures stand in the file's mapping `mixing`, and have that name in front on the command line:
--mixing.noise_probability 0.7.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch import nn

from csc_hf import CSCForSpeakerVerification
from csc_hf.data.mixing import MixingConfig
from csc_hf.data.stream import MixtureBatch, MixtureStream, Shard
from csc_hf.files import escape_unprintable
from csc_hf.training.arguments import add_config_options, option
from csc_hf.training.distributed import create_accelerator
from csc_hf.training.finetuning import (
    CheckpointArguments,
    SpeechArguments,
    config_of_options,
    load_model,
    open_noise,
    open_speech,
    parse_arguments,
    reservoir_config,
    train_and_verify,
)

DEMO = Path(__file__).resolve().parent / "demo_speech"

CONDITIONS = ("clean", "noise0", "mix0", "mix-5")
"""What speakers are verified in, see `csc_hf.evaluation.trial_set`."""


@dataclass
class Arguments(CheckpointArguments, SpeechArguments):
    output_dir: str = option("runs/scorer", "folder for the model, its feature extractor and results.json")
    learning_rate: float = option(3e-4, "highest learning rate of a cosine schedule")
    noise_data: str | None = option(
        None, "recorded noise, in any form that --train_data takes; if not given, noise is generated"
    )
    seconds: float = option(2.0, "length of a mixture, and of a recording that enrols")
    num_identities: int = option(16, "people in a batch, of each device")
    enrolment_recordings: int = option(1, "recordings that enrol each of them")
    max_grad_norm: float = option(5.0, "gradients are scaled down to this norm")
    mixed_precision: str = option("no", "type that matrix products are computed in", choices=("no", "fp16", "bf16"))
    attn_implementation: str | None = option(None, 'of Transformers; "eager" is the fastest in bf16 on CPUs')
    eval_seconds: float = option(4.0, "length of the recordings that speakers are verified by")
    eval_recordings: int = option(6, "recordings of each speaker")

    def __post_init__(self) -> None:
        CheckpointArguments.__post_init__(self)
        SpeechArguments.__post_init__(self)
        if self.enrolment_recordings < 1:
            raise ValueError(f"--enrolment_recordings {self.enrolment_recordings}: must be at least 1")


SET_HERE = {"num_identities", "num_observations", "num_sources", "seconds", "supervision"}
"""Fields of MixingConfig that have options of their own, or that the task decides."""


def both_sides(batch: MixtureBatch, num_observations: int) -> dict[str, torch.Tensor]:
    """What the model takes: the first mixture of each identity of a batch is a test, and the identity alone, as it
    sounds in its other mixtures, enrols it. No crop is on both sides."""
    tests = batch["speaker_ids"][::num_observations]
    alone = batch["source_values"][:, 0].unflatten(0, (-1, num_observations))
    return {
        "input_values": batch["input_values"][::num_observations],
        "enrolment_values": alone[:, 1:],
        "labels": (tests[:, None] == tests[:, 0, None]).any(-1).long(),
    }


def compute_losses(model: nn.Module, sides: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss, and figures: it, and the shares of pairs of one person, and of others, whose logit has their sign."""
    output = model(**sides)
    says, same = output.logits > 0, sides["labels"] == 1
    figures = {"loss": output.loss, "accepted": says[same].float().mean(), "rejected": (~says[~same]).float().mean()}
    return output.loss, figures


def main(argv: list[str] | None = None) -> None:
    escape_unprintable()

    def add_options(parser: argparse.ArgumentParser) -> None:
        add_config_options(parser.add_argument_group("mixing"), MixingConfig, "mixing.", SET_HERE)

    args, others = parse_arguments(Arguments, argv, __doc__, DEMO, add_options)
    mixing = {name.removeprefix("mixing."): value for name, value in others.items()}
    accelerator = create_accelerator(args.cpu_threads, mixed_precision=args.mixed_precision)
    set_seed(args.seed)
    speech = open_speech(args)
    options = {} if args.attn_implementation is None else {"attn_implementation": args.attn_implementation}
    model = load_model(CSCForSpeakerVerification, args.model, **options)
    num_observations = 1 + args.enrolment_recordings
    stream = MixtureStream(
        speech.training,
        config_of_options(
            MixingConfig,
            args,
            "mixing",
            num_identities=args.num_identities,
            num_observations=num_observations,
            num_sources=model.config.num_sources,
            seconds=args.seconds,
            supervision="speaker",
            **mixing,
        ),
        reservoir=reservoir_config(args),
        noise=open_noise(args),
        seed=args.seed,
        shard=Shard(accelerator.process_index, accelerator.num_processes),
    )

    def compute(model: nn.Module, batch: MixtureBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        sides = both_sides(batch, num_observations)
        return compute_losses(model, {name: tensor.to(accelerator.device) for name, tensor in sides.items()})

    train_and_verify(accelerator, args, speech, stream, model, model, compute, CONDITIONS, enrolment="scorer")


if __name__ == "__main__":
    main()
