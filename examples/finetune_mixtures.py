# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Continues pre-training, and teaches the embedding of every talker of a mixture who they are: additive angular margin
softmax over the training speakers (ArcFace, arXiv 1801.07698) beside the losses of pre-training. The model that comes
out still separates and still attends. Speakers that it never heard are verified before and after.

    accelerate launch examples/finetune_mixtures.py --model runs/pretrain                # the demo voices
    accelerate launch examples/finetune_mixtures.py --model runs/pretrain --train_data "train/*.parquet" \\
        --eval_data "dev/*.parquet" --source_column_name source --noise_data "noise/*.parquet"

For one embedding a recording, `finetune_verification.py` is simpler.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn
from torch.nn import functional as F

from csc_hf import CSCForPreTraining
from csc_hf.data.mixing import MixingConfig, MixtureRecipe
from csc_hf.data.stream import MixtureBatch, MixtureStream, Shard
from csc_hf.evaluation.reports import format_report
from csc_hf.evaluation.verification import evaluate
from csc_hf.modeling_csc import additive_angular_margin_loss
from csc_hf.training.arguments import option
from csc_hf.training.corpora import UNLABELLED, open_data
from csc_hf.training.distributed import create_accelerator
from csc_hf.training.finetuning import (
    SpeechArguments,
    load_model,
    open_speech,
    parse_arguments,
    reservoir_config,
    save,
    train,
)

DEMO = Path(__file__).resolve().parent / "demo_speech"

SPEED_RANGE = (0.86, 1.14)
NUM_SPEEDS = 3
"""A speaker at a speed that rounds to 0.9, to 1.0 and to 1.1 is three speakers: pitch and formants differ."""


@dataclass
class Arguments(SpeechArguments):
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
    classification_loss_weight: float = option(0.3, "weight of the classification beside the losses of pre-training")
    max_grad_norm: float = option(5.0, "gradients are scaled down to this norm")
    mixed_precision: str = option("no", "type that matrix products are computed in", choices=("no", "fp16", "bf16"))
    attn_implementation: str | None = option(None, 'of Transformers; "eager" is the fastest in bf16 on CPUs')
    eval_seconds: float = option(4.0, "length of the recordings that speakers are verified by")
    eval_recordings: int = option(6, "recordings of each speaker")


def number_slots(recipes: Sequence[MixtureRecipe], number_of: Mapping[str, int], num_speeds: int) -> torch.Tensor:
    """Number the speaker in each slot.

    Args:
        recipes: of the mixtures.
        number_of: number of each utterance's speaker, by the utterance's id.
        num_speeds: speakers that a speaker is, by speed.

    Returns:
        (mixtures, slots), -100 in empty slots.
    """
    numbers = torch.full((len(recipes), recipes[0].num_sources), -100)
    for row, recipe in enumerate(recipes):
        for slot, source in enumerate(recipe.sources):
            speed = (round(10 * source.speed) - 10) % num_speeds
            numbers[row, slot] = num_speeds * number_of[source.pieces[0].utterance] + speed
    return numbers


class SlotClassifier(nn.Module):
    """The model of pre-training, and a classifier of the speaker in each slot."""

    def __init__(self, model: CSCForPreTraining, num_speakers: int, weight: float):
        super().__init__()
        self.model = model
        self.speakers = nn.Parameter(torch.empty(num_speakers, model.config.speaker_embedding_size))
        nn.init.xavier_normal_(self.speakers)  # only directions count, and the shorter, the sooner they turn
        self.weight = weight

    def forward(self, speakers: torch.Tensor, batch: MixtureBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            speakers: number of the speaker in each slot (mixtures, slots), negative in empty ones.
            batch: what the model takes.

        Returns:
            The loss, the classification loss, and the share of the speakers that are classified right.
        """
        output = self.model(**batch)
        # The separated waveforms tell which slot holds whom.
        embeddings = output.source_embeddings.take_along_dim(output.permutation[..., None], dim=1)
        speaking = speakers >= 0
        with torch.autocast(embeddings.device.type, enabled=False):
            cosines = embeddings[speaking].float() @ F.normalize(self.speakers.float(), dim=-1).T
        config, labels = self.model.config, speakers[speaking]
        loss = additive_angular_margin_loss(cosines, labels, config.xvector_margin, config.xvector_scale)
        return output.loss + self.weight * loss, loss, (cosines.argmax(-1) == labels).float().mean()


def main(argv: list[str] | None = None) -> None:
    args, _ = parse_arguments(Arguments, argv, __doc__, DEMO)
    accelerator = create_accelerator(args.cpu_threads, mixed_precision=args.mixed_precision)
    set_seed(args.seed)
    speech = open_speech(args)
    of_speaker = {speaker: number for number, speaker in enumerate(speech.speakers)}
    number_of = {utterance: of_speaker[speaker] for utterance, speaker in speech.speaker_of.items()}

    options = {} if args.attn_implementation is None else {"attn_implementation": args.attn_implementation}
    pretrained = load_model(CSCForPreTraining, args.model, **options)
    noise = None
    if args.noise_data is not None:
        unlabelled = UNLABELLED | {"id_column": args.id_column_name}
        noise = open_data(args, args.noise_data, "train", corpus="noise", **unlabelled)
    stream = MixtureStream(
        speech.training,
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
        reservoir=reservoir_config(args),
        noise=noise,
        seed=args.seed,
        shard=Shard(accelerator.process_index, accelerator.num_processes),
    )
    num_speeds = NUM_SPEEDS if args.speed_probability else 1
    model = SlotClassifier(pretrained, len(speech.speakers) * num_speeds, args.classification_loss_weight)

    def compute_losses(model: nn.Module, batch: MixtureBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        numbers = number_slots(batch.recipes, number_of, num_speeds).to(accelerator.device)
        tensors = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        loss, classification_loss, accuracy = model(numbers, tensors)
        return loss, {"loss": classification_loss, "accuracy": accuracy}

    results: dict[str, Any] = {"num_processes": accelerator.num_processes}
    if accelerator.is_main_process:
        trials = speech.build_trials(args.seed, args.eval_seconds, args.eval_recordings)
        results["before"] = evaluate(pretrained.to(accelerator.device), trials)
    results |= train(accelerator, args, model, stream, compute_losses, args.max_grad_norm)
    if accelerator.is_main_process:
        results |= {"after": evaluate(pretrained, trials), "rows": stream.counters()}
        lines = [f"{len(speech.speakers)} training speakers, {len(speech.speaker_of)} utterances."]
        lines += [f"{moment} fine-tuning: {format_report(results[moment])}" for moment in ("before", "after")]
        save(args, pretrained, results, "\n".join(lines))
    accelerator.end_training()


if __name__ == "__main__":
    main()
