# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Fine-tunes CSC for speaker verification on labelled speech, with Transformers' Trainer: additive angular margin softmax
over the training speakers (ArcFace, arXiv 1801.07698). Speakers that it never heard are verified before and after.

    python examples/finetune_verification.py --model runs/pretrain                       # the demo voices
    python examples/finetune_verification.py --model runs/pretrain --train_data "train/*.parquet" \\
        --eval_data "heldout/*.parquet" --source_column_name source

The model learns from crops with noise and, in some of them, a second talker (`csc_hf.data.mixing`). The label is the
louder one: `CSCForXVector` gives one embedding a recording, that of the slots weighted by their activity, so it learns
to make the louder talker the active one. To know everybody in a mixture, use `CSCModel` and its slots.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import Trainer, set_seed

from csc_hf import CSCFeatureExtractor, CSCForXVector
from csc_hf.data.mixing import MixingConfig, TooFewIdentitiesError, draw_group
from csc_hf.evaluation.embedders import XVectorEmbedder
from csc_hf.evaluation.reports import format_report
from csc_hf.evaluation.scoring import score_trials
from csc_hf.evaluation.trial_set import TrialSet
from csc_hf.evaluation.verification import measure
from csc_hf.files import escape_unprintable
from csc_hf.training.arguments import option
from csc_hf.training.finetuning import (
    SpeechArguments,
    SpeechReservoir,
    StopAtNonFiniteLoss,
    config_of_options,
    load_model,
    open_speech,
    parse_arguments,
    save,
    trainer_arguments,
)

DEMO = Path(__file__).resolve().parent / "demo_speech"


@dataclass
class Arguments(SpeechArguments):
    output_dir: str = option("runs/verification", "folder for the model, its feature extractor and results.json")
    batch_size: int = option(32, "crops, of each device")
    freeze_encoder: bool = option(
        False, "keep front end, shared trunk and slots; train the speaker branch, which the embedding comes from"
    )
    seconds: float = option(2.0, "length of a training crop; shorter utterances are joined")
    interferer_probability: float = option(0.25, "probability of a second talker in a training crop")
    sir_db: list[float] = field(
        default_factory=lambda: [5.0, 20.0],
        metadata={"help": "lowest and highest level of the labelled talker over the second one"},
    )
    noise_probability: float = option(0.5, "probability of noise in a training crop, at 0 to 25 dB")
    eval_seconds: float = option(4.0, "length of the recordings that speakers are verified by")
    eval_recordings: int = option(6, "recordings of each speaker")


class SpeakerCrops(Dataset):
    """Crops, and the number of the speaker who is loudest in each.

    A crop is drawn from the speech that is held when it is asked for; then a row more is read.
    """

    def __init__(self, speech: SpeechReservoir, speakers: list[str], mixing: MixingConfig, seed: int, length: int):
        self.speech = speech
        self.number_of = {speaker: number for number, speaker in enumerate(speakers)}
        self.mixing = mixing
        self.seed = seed
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        # The first recipe of a group, which pre-training would use as a whole.
        try:
            recipe = draw_group(self.speech.clips(), self.mixing, self.seed, 0, number)[0]
        except TooFewIdentitiesError as error:
            raise SystemExit(
                f"--train_data, --reservoir_seconds {self.speech.reservoir.config.seconds:g}: fewer than "
                f"{self.mixing.num_identities} speakers are held: add speakers, hold more, or shuffle the rows"
            ) from error
        example = {
            "input_values": torch.from_numpy(self.speech.mix(recipe)),
            "labels": torch.tensor(self.number_of[self.speech.speaker(recipe)]),
        }
        self.speech.advance(1)
        return example


def freeze_encoder(model: CSCForXVector) -> None:
    """Train the speaker branch and the classifier. The classifier alone would not change the embedding."""
    model.csc.requires_grad_(False)
    model.csc.speaker_branch.requires_grad_(True)


def verify(model: CSCForXVector, trials: TrialSet) -> dict:
    """Error rates of the head's embedding. With two talkers at 0 dB, none is louder: one embedding does little."""
    extractor = CSCFeatureExtractor(min_samples=model.config.segment_samples)
    return measure(score_trials(XVectorEmbedder(model.eval(), extractor), trials))


def main(argv: list[str] | None = None) -> None:
    escape_unprintable()
    args, _ = parse_arguments(Arguments, argv, __doc__, DEMO)
    training_args = trainer_arguments(args, args.batch_size)
    set_seed(args.seed)
    mixing = config_of_options(
        MixingConfig,
        args,
        "mixing",
        num_identities=5,  # the fewest that a group can be drawn from
        seconds=args.seconds,
        supervision="speaker",
        single_speaker_probability=1 - args.interferer_probability,
        sir_db=tuple(args.sir_db),
        noise_probability=args.noise_probability,
        same_source_probability=0.0,  # each speaker comes as often as any other
    )
    speech = open_speech(args)
    held = SpeechReservoir(speech.training, args, training_args.process_index, training_args.world_size)
    num_crops = args.max_steps * args.batch_size * training_args.world_size
    crops = SpeakerCrops(held, speech.speakers, mixing, args.seed, num_crops)
    model = load_model(CSCForXVector, args.model, speech.speakers)
    if args.freeze_encoder:
        freeze_encoder(model)
    trainer = Trainer(model=model, args=training_args, train_dataset=crops, callbacks=[StopAtNonFiniteLoss()])

    results: dict = {}
    is_main_process = trainer.is_world_process_zero()
    if is_main_process:
        trials = speech.build_trials(args.seed, args.eval_seconds, args.eval_recordings)
        results["before"] = verify(model, trials)
    trainer.train()
    if is_main_process:
        results["loss"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        results["after"] = verify(model, trials)
        results["skipped"] = held.skipped
        lines = [f"{len(speech.speakers)} training speakers, {len(speech.speaker_of)} utterances."]
        lines += [f"{moment} fine-tuning: {format_report(results[moment])}" for moment in ("before", "after")]
        save(args, model, results, "\n".join(lines))


if __name__ == "__main__":
    main()
