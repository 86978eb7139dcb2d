# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Fine-tunes CSC to classify recordings (emotion, command, language, speaker, ...), with Transformers' Trainer.

    python examples/finetune_classification.py --model runs/pretrain --max_steps 300   # which demo voice is it?
    python examples/finetune_classification.py --model runs/pretrain --train_data user/name --label_column_name emotion

The data is any data set with a column of audio and one of labels; rows without a label are left out. Accuracy is
reported before and after, with that of always saying the commonest label, and balanced accuracy: the mean over the
labels of the share of each that is found.
"""

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Audio, ClassLabel, concatenate_datasets, load_dataset
from datasets import Dataset as Table
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, set_seed

from csc_hf import CSCFeatureExtractor, CSCForSequenceClassification
from csc_hf.audio import SAMPLING_RATE
from csc_hf.data.reservoir import ANY_LENGTH, SkippedRows, UnusableRow, usable_utterance
from csc_hf.data.utterances import Row, dataset_arguments, label_or_none
from csc_hf.files import escape_unprintable
from csc_hf.training.arguments import option
from csc_hf.training.corpora import in_words_of_options
from csc_hf.training.finetuning import (
    FinetuningArguments,
    StopAtNonFiniteLoss,
    load_model,
    parse_arguments,
    save,
    trainer_arguments,
)

logger = logging.getLogger(__name__)

DEMO = Path(__file__).resolve().parent / "demo_speech"


@dataclass
class Arguments(FinetuningArguments):
    train_data: str = option("", "recordings with labels: a folder, Parquet files, or a data set on the Hub")
    train_split: str = option("train", "split of --train_data")
    eval_data: str | None = option(None, "as --train_data; if not given, --eval_share of the training data")
    eval_split: str = option("test", "split of --eval_data")
    eval_share: float = option(0.34, "share of the training data that is held out, of each label")
    label_column_name: str = option("speaker_id", "column with the label")
    output_dir: str = option("runs/classification", "folder for the model, its feature extractor and results.json")
    batch_size: int = option(16, "recordings, of each device")
    freeze_encoder: bool = option(False, "train the classifier alone")
    seconds: float = option(4.0, "a random part of this length is heard of longer recordings; in evaluation the first")


def open_table(path: str, split: str, audio_column: str, label_column: str) -> tuple[Table, list[str]]:
    """The labelled rows of a split, with their audio alone, not decoded, and the label of each."""
    try:
        table = load_dataset(split=split, **dataset_arguments(path, split))
    except (ValueError, FileNotFoundError, ConnectionError) as error:
        raise SystemExit(f"{path}: {in_words_of_options(str(error))}") from error
    for name, column in (("audio", audio_column), ("label", label_column)):
        if column not in table.column_names:
            raise SystemExit(f"--{name}_column_name {column}: the data has {table.column_names}, name one of them")
    feature = table.features[label_column]
    labels = [label_or_none(label) for label in table[label_column]]
    if isinstance(feature, ClassLabel):  # -1 is the missing label of `datasets`
        numbers = [-1 if label is None else int(label) for label in labels]
        labels = [None if number < 0 else feature.int2str(number) for number in numbers]
    kept = [number for number, label in enumerate(labels) if label is not None]
    if len(kept) < len(labels):
        logger.warning(
            "%s: %d of %d rows have no label in column %s and are left out",
            path,
            len(labels) - len(kept),
            len(labels),
            label_column,
        )
        table = table.select(kept)
    table = table.select_columns(audio_column).cast_column(audio_column, Audio(decode=False))
    table = table if audio_column == "audio" else table.rename_column(audio_column, "audio")
    return table, [label for label in labels if label is not None]


def load_tables(args: Arguments) -> tuple[Table, Table]:
    """Rows to train on and to evaluate on: `audio`, and a number for the label in the column `labels`."""
    columns = args.audio_column_name, args.label_column_name
    train, labels = open_table(args.train_data, args.train_split, *columns)
    feature = ClassLabel(names=sorted(set(labels)))
    train = train.add_column("labels", feature.str2int(labels), feature=feature)
    if args.eval_data is None:
        counts = Counter(labels)
        single = [number for number, label in enumerate(labels) if counts[label] == 1]
        if not single:
            return split_by_label(train, args.eval_share, args.seed)
        logger.warning("%d labels have a single recording each, which is trained on and not evaluated", len(single))
        others = train.select([number for number, label in enumerate(labels) if counts[label] > 1])
        kept, held_out = split_by_label(others, args.eval_share, args.seed)
        return concatenate_datasets([kept, train.select(single)]), held_out
    held_out, labels = open_table(args.eval_data, args.eval_split, *columns)
    if unknown := sorted(set(labels) - set(feature.names)):
        raise SystemExit(f"--eval_data {args.eval_data}: no training data has the labels {unknown}, leave them out")
    return train, held_out.add_column("labels", feature.str2int(labels), feature=feature)


def split_by_label(table: Table, share: float, seed: int) -> tuple[Table, Table]:
    """Hold out a share of the rows of each label, at least one, and leave at least one."""
    numbers = np.array(table["labels"])
    generator = np.random.default_rng(seed)
    held_out: list[int] = []
    left = 0.0  # of the share, by rounding
    for label in np.unique(numbers):
        rows = generator.permutation(np.flatnonzero(numbers == label))
        exact = share * len(rows) + left
        number_held = min(max(round(exact), 1), len(rows) - 1)
        left = min(max(exact - number_held, -0.5), 0.5)
        held_out += rows[:number_held].tolist()
    kept = np.setdiff1d(np.arange(len(numbers)), held_out)
    return table.select(kept), table.select(sorted(held_out))


class Recordings(Dataset):
    """Recordings of at most `seconds`, decoded when they are asked for.

    One that cannot be used is skipped, counted and named, and the next one takes its place.
    """

    def __init__(self, table: Table, seconds: float, at_random: bool, skipped: SkippedRows | None = None):
        self.table = table
        self.seconds = seconds
        self.at_random = at_random
        self.skipped = skipped or SkippedRows(ANY_LENGTH.max_skipped)

    def __len__(self) -> int:
        return len(self.table)

    def decode(self, number: int) -> np.ndarray | None:
        """The waveform of a recording; None if it cannot be used."""
        audio = self.table[number]["audio"]
        row = Row(f"row {number} ({audio.get('path') or 'no path'})", audio)
        self.skipped.num_rows += 1
        try:
            return usable_utterance(row, ANY_LENGTH).waveform
        except UnusableRow as error:
            self.skipped.skip(row, error)
            return None
        finally:
            self.skipped.end_row()

    def __getitem__(self, number: int) -> dict:
        while (waveform := self.decode(number)) is None:
            number = (number + 1) % len(self)
        start, num_samples = 0, round(self.seconds * SAMPLING_RATE)
        if self.at_random:
            start = int(torch.randint(max(len(waveform) - num_samples, 0) + 1, ()))
        return {"waveform": waveform[start : start + num_samples], "labels": self.table[number]["labels"]}

    def usable(self) -> "Recordings":
        """Without those that cannot be used. Raises ValueError if there are too many of them."""
        usable = [number for number in range(len(self)) if self.decode(number) is not None]
        self.skipped.end_epoch()
        return Recordings(self.table.select(usable), self.seconds, self.at_random, self.skipped)


def accuracy(predictions: EvalPrediction) -> dict[str, float]:
    """Accuracy, and the mean over the labels that occur of the share of each that is found."""
    correct = np.asarray(predictions.predictions).argmax(axis=-1) == predictions.label_ids
    found = [correct[predictions.label_ids == label].mean() for label in np.unique(predictions.label_ids)]
    return {"accuracy": float(correct.mean()), "balanced_accuracy": float(np.mean(found))}


def evaluate(trainer: Trainer) -> dict[str, float]:
    """Loss and accuracies on the held-out recordings."""
    metrics = trainer.evaluate()
    return {name: metrics[f"eval_{name}"] for name in ("loss", "accuracy", "balanced_accuracy")}


def main(argv: list[str] | None = None) -> None:
    escape_unprintable()
    args, _ = parse_arguments(Arguments, argv, __doc__, DEMO)
    training_args = trainer_arguments(
        args,
        args.batch_size,
        per_device_eval_batch_size=args.batch_size,
        remove_unused_columns=False,  # the model does not know the columns that `collate` needs
    )
    set_seed(args.seed)
    train_table, held_out_table = load_tables(args)
    labels = train_table.features["labels"].names
    train = Recordings(train_table, args.seconds, at_random=True)
    held_out = Recordings(held_out_table, args.seconds, at_random=False).usable()
    model = load_model(CSCForSequenceClassification, args.model, labels)
    if args.freeze_encoder:
        model.freeze_base_model()
    extractor = CSCFeatureExtractor(min_samples=model.config.segment_samples)

    def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
        waveforms = [example["waveform"] for example in examples]
        batch = extractor(waveforms, padding=True, sampling_rate=SAMPLING_RATE, return_tensors="pt", is_filtered=True)
        return {**batch, "labels": torch.tensor([example["labels"] for example in examples])}

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=collate,
        compute_metrics=accuracy,
        callbacks=[StopAtNonFiniteLoss()],
    )
    commonest = np.bincount(train_table["labels"]).argmax()
    results = {
        "labels": labels,
        "num_train": len(train),
        "num_held_out": len(held_out),
        "accuracy_of_commonest_label": float((np.array(held_out.table["labels"]) == commonest).mean()),
        "before": evaluate(trainer),
    }
    trainer.train()
    results["loss"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    results["after"] = evaluate(trainer)
    results["skipped"] = dict(train.skipped.counts + held_out.skipped.counts)
    if trainer.is_world_process_zero():
        lines = [f"{len(train)} recordings with {len(labels)} labels, {len(held_out)} held out."]
        lines.append(f"commonest label: accuracy {results['accuracy_of_commonest_label']:.3f}")
        for moment in ("before", "after"):
            figures = (f"{name} {value:.3f}" for name, value in results[moment].items())
            lines.append(f"{moment}: {', '.join(figures)}")
        save(args, model, results, "\n".join(lines))


if __name__ == "__main__":
    main()
