# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Continues pre-training, and teaches the embedding of every talker of a mixture who they are: additive angular margin
softmax over the training speakers (ArcFace, arXiv 1801.07698) beside the losses of pre-training. The model that comes
out still separates and still attends. Speakers that it never heard are verified before and after.

    accelerate launch examples/finetune_mixtures.py --model runs/pretrain                # the demo voices
    accelerate launch examples/finetune_mixtures.py --model runs/pretrain --train_data "train/*.parquet" \\
        --eval_data "dev/*.parquet" --source_column_name source --noise_data "noise/*.parquet"
    accelerate launch examples/finetune_mixtures.py --model small --teacher campplus ...   # from nothing

With --teacher, each slot also learns towards what a frozen speaker encoder says of its talker's clean utterance. The
encoder hears each utterance once, without labels.

Every option can stand in the YAML file that --config names, and on the command line, which wins. Fields of the model
and of the mixtures stand in the file's mappings `model` (there, --model is `name`) and `mixing`, and have that name in
front on the command line: --model.xvector_margin 0.3 --mixing.curriculum_batches 0 1000.

For one embedding a recording, `finetune_verification.py` is simpler.
"""

import argparse
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from csc_hf import CSCConfig, CSCForPreTraining
from csc_hf.data.mixing import MixingConfig, MixtureRecipe
from csc_hf.data.stream import MixtureBatch, MixtureStream, Shard
from csc_hf.evaluation.embedders import EMBEDDERS
from csc_hf.files import escape_unprintable
from csc_hf.modeling_csc import additive_angular_margin_loss
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
from csc_hf.training.teacher import centre, read_or_embed

DEMO = Path(__file__).resolve().parent / "demo_speech"

SPEED_RANGE = (0.86, 1.14)
CONDITIONS = ("clean", "noise0", "mix0", "mix0_mix0")
"""What speakers are verified in, see `csc_hf.evaluation.trial_set`."""

NUM_SPEEDS = 3
"""A speaker at a speed that rounds to 0.9, to 1.0 and to 1.1 is three speakers: pitch and formants differ."""


@dataclass
class Arguments(CheckpointArguments, SpeechArguments):
    output_dir: str = option("runs/mixtures", "folder for the model, its feature extractor and results.json")
    learning_rate: float = option(5e-4, "highest learning rate of a cosine schedule")
    noise_data: str | None = option(
        None, "recorded noise, in any form that --train_data takes; if not given, noise is generated"
    )
    seconds: float = option(2.0, "length of a mixture")
    single_speaker_probability: float = option(0.5, "probability of a mixture of one talker alone")
    recorded_noise_probability: float = option(0.5, "share of recorded noises, if there are any")
    speed_probability: float = option(0.0, "probability that an identity has another speed, and is another speaker")
    reverb_probability: float = option(0.0, "probability of a simulated room")
    num_identities: int = option(12, "speakers in a batch, of each device; two mixtures for each")
    num_workers: int = option(0, "background processes that prepare batches, of each training process")
    classification_loss_weight: float = option(0.3, "weight of the classification beside the losses of pre-training")
    teacher: str | None = option(
        None,
        f"encoder whose embeddings of clean utterances slots learn towards: {', '.join(EMBEDDERS)}, a saved model",
    )
    teacher_weight: float = option(5.0, "weight of that beside the losses of pre-training")
    teacher_targets: str | None = option(
        None, "file with the teacher's embeddings; default: teacher.safetensors in OUTPUT_DIR, made if it is not there"
    )
    train_only: str | None = option(
        None, "regular expression: only weights of the model whose names it is found in are trained"
    )
    max_grad_norm: float = option(5.0, "gradients are scaled down to this norm")
    mixed_precision: str = option("no", "type that matrix products are computed in", choices=("no", "fp16", "bf16"))
    attn_implementation: str | None = option(None, 'of Transformers; "eager" is the fastest in bf16 on CPUs')
    eval_seconds: float = option(4.0, "length of the recordings that speakers are verified by")
    eval_recordings: int = option(6, "recordings of each speaker")

    def __post_init__(self) -> None:
        CheckpointArguments.__post_init__(self)
        SpeechArguments.__post_init__(self)
        if self.teacher_targets is not None and self.teacher is None:
            raise ValueError("--teacher_targets needs --teacher, whose embeddings they are")


SET_HERE = {
    "num_identities",
    "num_sources",
    "supervision",
    "seconds",
    "single_speaker_probability",
    "speed_probability",
}
SET_HERE |= {"speed_range", "reverb_probability", "recorded_noise_probability"}
"""Fields of MixingConfig that have options of their own, or that the classification decides."""


def number_slots(recipes: Sequence[MixtureRecipe], number_of: Mapping[str, int], num_speeds: int) -> torch.Tensor:
    """Number the speaker in each slot.

    Args:
        recipes: of the mixtures.
        number_of: number of each utterance's speaker, by the utterance's id, where a speaker is known.
        num_speeds: speakers that a speaker is, by speed.

    Returns:
        (mixtures, slots), -100 in empty slots and where no speaker is known.
    """
    numbers = torch.full((len(recipes), recipes[0].num_sources), -100)
    for row, recipe in enumerate(recipes):
        for slot, source in enumerate(recipe.sources):
            speed = (round(10 * source.speed) - 10) % num_speeds
            number = number_of.get(source.pieces[0].utterance)
            if number is not None:
                numbers[row, slot] = num_speeds * number + speed
    return numbers


def collect_targets(recipes: Sequence[MixtureRecipe], targets: Mapping[str, np.ndarray]) -> torch.Tensor:
    """What the teacher says of the talker in each slot: the mean over the utterances of the crop, by their lengths.

    Args:
        recipes: of the mixtures.
        targets: (embedding,) of each utterance, by its id.

    Returns:
        (mixtures, slots, embedding) of unit length; zeros in empty slots, and where the speed is not 1: the teacher
        has not heard that.
    """
    size = len(next(iter(targets.values())))
    collected = np.zeros((len(recipes), recipes[0].num_sources, size), dtype=np.float32)
    for row, recipe in enumerate(recipes):
        for slot, source in enumerate(recipe.sources):
            if source.speed == 1.0:
                for piece in source.pieces:
                    collected[row, slot] += piece.length * targets[piece.utterance]
    return F.normalize(torch.from_numpy(collected), dim=-1)


def keep_all_but(model: nn.Module, names: str) -> None:
    """Train only the weights whose names a regular expression is found in.

    Raises:
        SystemExit: there are none.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(re.search(names, name) is not None)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise SystemExit(f"--train_only {names!r}: no weight of {type(model).__name__} has such a name")


class SlotClassifier(nn.Module):
    """The model of pre-training, a classifier of the speaker in each slot, and what compares slots with a teacher.

    Args:
        model: its embeddings are taught.
        num_speakers: classes.
        weight: of the classification loss.
        teacher_size: size of the teacher's embeddings, None without a teacher.
        teacher_weight: of the teacher loss, 1 - cosine.
    """

    def __init__(
        self,
        model: CSCForPreTraining,
        num_speakers: int,
        weight: float,
        teacher_size: int | None = None,
        teacher_weight: float = 0.0,
    ):
        super().__init__()
        self.model = model
        size = model.config.speaker_embedding_size
        self.speakers = nn.Parameter(torch.empty(num_speakers, size))
        nn.init.xavier_normal_(self.speakers)  # only directions count, and the shorter, the sooner they turn
        self.projection = nn.Identity() if teacher_size in (None, size) else nn.Linear(size, teacher_size)
        self.weight, self.teacher_weight = weight, teacher_weight

    def forward(
        self, speakers: torch.Tensor, batch: MixtureBatch, targets: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        Args:
            speakers: number of the speaker in each slot (mixtures, slots), negative in empty ones and where no speaker
                is known.
            batch: what the model takes.
            targets: the teacher's embedding of the talker in each slot (mixtures, slots, embedding), zeros for none.

        Returns:
            The loss, and figures: the classification `loss`, the share of the speakers that are classified right, the
            losses of pre-training, the mean cosine to the `teacher`.
        """
        output = self.model(**batch)
        # The separated waveforms tell which slot holds whom.
        embeddings = output.source_embeddings.take_along_dim(output.permutation[..., None], dim=1)
        config, known = self.model.config, speakers >= 0
        labels = speakers[known]
        with torch.autocast(embeddings.device.type, enabled=False):
            cosines = embeddings[known].float() @ F.normalize(self.speakers.float(), dim=-1).T
            loss, accuracy = cosines.sum(), cosines.new_zeros(())  # 0 where no speaker is known
            if len(labels):
                loss = additive_angular_margin_loss(cosines, labels, config.xvector_margin, config.xvector_scale)
                accuracy = (cosines.argmax(-1) == labels).float().mean()
            total = output.loss + self.weight * loss
            figures = {
                "loss": loss,
                "accuracy": accuracy,
                "separation_loss": output.separation_loss,
                "activity_loss": output.activity_loss,
                "mutual_information": output.mutual_information,
            }
            if targets is not None:
                present = targets.any(-1)
                similarity = F.cosine_similarity(self.projection(embeddings.float()), targets, dim=-1)
                num_present = present.sum().clamp(min=1)
                figures["teacher"] = (similarity * present).sum() / num_present
                total = total + self.teacher_weight * ((1 - similarity) * present).sum() / num_present
        return total, figures


def main(argv: list[str] | None = None) -> None:
    escape_unprintable()

    def add_options(parser: argparse.ArgumentParser) -> None:
        of_every_model = {field.name for field in dataclasses.fields(PreTrainedConfig)}
        add_config_options(
            parser.add_argument_group("model"),
            CSCConfig,
            "model.",
            of_every_model,
            "of a new model, before its preset",
        )
        add_config_options(parser.add_argument_group("mixing"), MixingConfig, "mixing.", SET_HERE)

    args, others = parse_arguments(Arguments, argv, __doc__, DEMO, add_options)
    options: dict[str, dict[str, Any]] = {"model": {}, "mixing": {}}
    for name, value in others.items():
        section, key = name.split(".")
        options[section][key] = value
    if args.attn_implementation is not None:
        options["model"]["attn_implementation"] = args.attn_implementation
    accelerator = create_accelerator(args.cpu_threads, mixed_precision=args.mixed_precision)
    set_seed(args.seed)
    speech = open_speech(args)
    of_speaker = {speaker: number for number, speaker in enumerate(speech.speakers)}
    number_of = {utterance: of_speaker[speaker] for utterance, speaker in speech.speaker_of.items()}

    pretrained = load_model(CSCForPreTraining, args.model, **options["model"])
    stream = MixtureStream(
        speech.training,
        config_of_options(
            MixingConfig,
            args,
            "mixing",
            num_identities=args.num_identities,
            num_sources=pretrained.config.num_sources,
            seconds=args.seconds,
            supervision="speaker",
            single_speaker_probability=args.single_speaker_probability,
            speed_probability=args.speed_probability,
            speed_range=SPEED_RANGE,
            reverb_probability=args.reverb_probability,
            recorded_noise_probability=args.recorded_noise_probability,
            **options["mixing"],
        ),
        reservoir=reservoir_config(args),
        noise=open_noise(args),
        seed=args.seed,
        shard=Shard(accelerator.process_index, accelerator.num_processes),
        num_workers=args.num_workers,
    )
    targets: dict[str, np.ndarray] | None = None
    if args.teacher is not None:
        with accelerator.main_process_first():  # the others read what it has written
            targets = centre(read_or_embed(args.teacher, speech.training, args.output_dir, args.teacher_targets))
    if args.train_only is not None:
        keep_all_but(pretrained, args.train_only)
    num_speeds = NUM_SPEEDS if args.speed_probability else 1
    model = SlotClassifier(
        pretrained,
        len(speech.speakers) * num_speeds,
        args.classification_loss_weight,
        len(next(iter(targets.values()))) if targets else None,
        args.teacher_weight,
    )

    def compute_losses(model: nn.Module, batch: MixtureBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        numbers = number_slots(batch.recipes, number_of, num_speeds).to(accelerator.device)
        tensors = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        taught = collect_targets(batch.recipes, targets).to(accelerator.device) if targets else None
        return model(numbers, tensors, taught)

    train_and_verify(accelerator, args, speech, stream, model, pretrained, compute_losses, CONDITIONS)


if __name__ == "__main__":
    main()
