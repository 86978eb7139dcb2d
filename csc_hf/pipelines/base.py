# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
# mypy: disable-error-code="override"
"""What the pipelines share: recordings, enrolled speakers, and loading by name."""

import os
from collections.abc import Callable, Iterator, Sized
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers.pipelines import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import logging

from ..audio import OneChannel, decode_audio
from ..enrolment import Enrolment, check_name, enrol, is_silent
from ..long_audio import Job, run
from ..modeling_csc import CSCPreTrainedModel

logger = logging.get_logger(__name__)

BATCHES_HELD = 8
"""Batches whose recordings are decoded and put in order of length at a time."""

_NEW_WEIGHTS = "_weights_not_in_checkpoint"
"""Attribute by which a loader hands the names of newly initialised weights to the pipeline, which removes it. Only a
model that `pipeline` itself has loaded has it, so a model that was trained, copied or averaged raises no alarm."""


class _CSCPipeline(Pipeline):
    """What all pipelines share. They decode audio themselves, so they need no feature extractor."""

    model: Any
    _load_processor = False  # type: ignore[assignment]  # Transformers declares them as None
    _load_image_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]

    def __init__(self, *args, **kwargs):
        kwargs.pop("local_files_only", None)  # `pipeline` has loaded the model, and passes this on
        super().__init__(*args, **kwargs)
        self.model.eval()
        new = self.model.__dict__.pop(_NEW_WEIGHTS, ())
        if new:
            logger.warning(
                f"{len(new)} weights of this {type(self.model).__name__} (such as {new[0]}) are not in the checkpoint "
                "and were newly initialised: WHAT THE PIPELINE RETURNS MEANS NOTHING until they are trained."
            )

    def __call__(self, inputs, **options):
        if isinstance(inputs, list) and not inputs:
            return []
        if _is_waveform(inputs):
            inputs = np.asarray(inputs)
        elif hasattr(inputs, "column_names"):  # of `datasets`, whose classes are none of torch's
            inputs = _Rows(inputs) if isinstance(inputs, Sized) else (row for row in inputs)
        return super().__call__(inputs, **options)

    def _preprocess_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """What all pipelines pass to `preprocess`, taken out of the parameters of a call."""
        return {name: parameters.pop(name) for name in ("channel",) if name in parameters}

    def get_iterator(
        self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params
    ) -> "_Results":
        """Results in the order of the inputs. Recordings of like length go through the model together."""
        if isinstance(inputs, Sized):
            dataset: Dataset = PipelineDataset(inputs, self.preprocess, preprocess_params)
        else:
            num_workers = min(num_workers, 1)  # each worker would read all of an iterator
            dataset = PipelineIterator(inputs, self.preprocess, preprocess_params)
        held = batch_size if batch_size == 1 else BATCHES_HELD * batch_size
        loader: DataLoader = DataLoader(dataset, num_workers=num_workers, batch_size=held, collate_fn=list)

        def process(trials: list[dict]) -> list[Any]:
            order = sorted(range(len(trials)), key=lambda number: self._num_samples(trials[number]))
            found = self.forward([trials[number] for number in order], batch_size=batch_size, **forward_params)
            outputs = dict(zip(order, found, strict=True))
            return [self.postprocess(outputs[number], **postprocess_params) for number in range(len(trials))]

        return _Results(loader, process)

    def run_single(self, inputs, preprocess_params, forward_params, postprocess_params):
        return next(iter(self.get_iterator([inputs], 0, 1, preprocess_params, forward_params, postprocess_params)))

    def _forward(self, trials: list[dict], batch_size: int, **options) -> list[Any]:
        return run(self._network, [self._job(trial, **options) for trial in trials], batch_size)

    @property
    def _network(self) -> CSCPreTrainedModel:
        """The model that the jobs need."""
        return self.model

    def _num_samples(self, trial: dict) -> int:
        """Samples by which trials are put in order."""
        raise NotImplementedError

    def _job(self, trial: dict, **options) -> Job[Any]:
        """What is done with a trial, which `preprocess` has made."""
        raise NotImplementedError

    def _decode(self, recording, role: str, channel: int | None = None) -> np.ndarray:
        """A recording as float32 (samples,); `role` names it in errors."""
        try:
            return decode_audio(OneChannel(recording, channel), self.model.config.sampling_rate)
        except ValueError as error:
            raise ValueError(f"{role}: {error}") from error

    def _enrol(self, name: str, recordings, with_memory: bool = False, channel: int | None = None) -> Enrolment:
        """A speaker by their recordings. Raises a ValueError for a name that they cannot have, or a silent one."""
        check_name(name)
        waveforms = self._decode_enrolment(recordings, channel)
        enrolled = enrol(self.model, waveforms, with_memory)
        if enrolled.silent:
            rate = self.model.config.sampling_rate
            number = next(number for number, waveform in enumerate(waveforms) if is_silent(waveform, rate))
            recording = recordings[number] if isinstance(recordings, list) else recordings
            recording = recording.audio if isinstance(recording, OneChannel) else recording
            which = repr(str(recording)) if isinstance(recording, str | os.PathLike) else f"number {number + 1}"
            raise ValueError(f"a recording of {name!r} is silent, {which}: leave it out")
        return enrolled

    def _decode_enrolment(self, recordings, channel: int | None = None) -> list[np.ndarray]:
        """One recording, or several in a list."""
        if not isinstance(recordings, list) or _is_waveform(recordings):
            return [self._decode(recordings, "enrolment", channel)]
        if not recordings:
            raise ValueError("an enrolment without recordings: give at least one")
        return [
            self._decode(recording, f"recording {number} of the enrolment", channel)
            for number, recording in enumerate(recordings, start=1)
        ]


def _is_waveform(inputs: Any) -> bool:
    """Whether a list holds the samples of one recording; any other list holds recordings."""
    return isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], int | float | np.number)


class _Rows(Dataset):
    """The rows of a `datasets.Dataset`."""

    def __init__(self, rows: Any):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index]


class _Results(IterableDataset):
    """Results of a list, generator or dataset, as they are asked for. Like the iterators of Transformers' pipelines,
    it has the length of what is loaded."""

    def __init__(self, loader: DataLoader, process: Callable[[list[dict]], list[Any]]):
        self._loader = loader
        self._process = process

    def __len__(self) -> int:
        dataset: Any = self._loader.dataset
        return len(dataset)

    def __iter__(self) -> Iterator[Any]:
        for trials in self._loader:
            yield from self._process(trials)


def load_by_name(model_class: type[CSCPreTrainedModel], name, **kwargs) -> CSCPreTrainedModel:
    loaded: Any = model_class.from_pretrained(name, output_loading_info=True, **kwargs)
    model, loading = loaded
    setattr(model, _NEW_WEIGHTS, sorted(loading["missing_keys"]))
    return model
