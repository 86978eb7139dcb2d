# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Turn streams of single-speaker audio into an endless, resumable stream of mixture groups.

>>> utterances = stream_utterances("path/to/parquet_folder")
>>> stream = MixtureStream(utterances, MixingConfig(num_identities=12, seconds=2.0), seed=0)
>>> batch = next(iter(stream))  # input_values (24, 32000), source_values (24, 2, 32000), ...
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import fsspec
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from ..audio import SAMPLING_RATE
from .mixing import ClipIndex, MixingConfig, MixtureRecipe, count_overlapping_crops, draw_group, mix
from .reservoir import REASONS, Reservoir, ReservoirConfig
from .utterances import UtteranceStream

logger = logging.getLogger(__name__)

NOISE_MIN_SECONDS, NOISE_MAX_SECONDS = 0.1, 10.0
"""Shorter recordings of noise are skipped; of longer ones, a random part of this length is held."""

NOTHING_DRAWN = [0, 0]
"""Utterances that were identities of a group, and those of them whose crops overlapped. States saved by version 0.1 do
not have these counts."""


class MixtureBatch(dict[str, torch.Tensor]):
    """The tensors of a batch, see `MixtureStream`, with the `recipes` that they were mixed by."""

    recipes: list[MixtureRecipe]


def collate_group(
    recipes: Sequence[MixtureRecipe],
    waveforms: Mapping[str, np.ndarray],
    starts: Mapping[str, int] | None = None,
    identities: Sequence[int] | None = None,
) -> MixtureBatch:
    """Mix the recipes of a group (see `mixing.mix`) into a batch (see `MixtureStream`).

    Identity n of the group gets the speaker id `identities[n]`, by default n itself.
    """
    mixtures, sources, _ = zip(*(mix(recipe, waveforms, starts) for recipe in recipes), strict=True)
    input_values = torch.from_numpy(np.stack(mixtures))
    source_values = torch.from_numpy(np.stack(sources))
    speaker_ids = torch.full(source_values.shape[:2], -100)
    for row, recipe in enumerate(recipes):
        for slot, source in enumerate(recipe.sources):
            speaker_ids[row, slot] = source.identity if identities is None else identities[source.identity]
    batch = MixtureBatch(
        input_values=input_values,
        attention_mask=torch.ones(input_values.shape, dtype=torch.long),
        source_values=source_values,
        speaker_ids=speaker_ids,
    )
    batch.recipes = list(recipes)
    return batch


def recording_classes(recipes: Sequence[MixtureRecipe], num_classes: int) -> torch.Tensor:
    """The class of the recording in each slot, long (mixtures, slots), -100 in empty slots.

    A class is the hash of the recording's id and speed, modulo `num_classes`. So all processes agree on it, and the
    data can be streamed; but recordings can share a class. Of n recordings, a share of about n / num_classes do.
    """
    classes = torch.full((len(recipes), recipes[0].num_sources), -100)
    for row, recipe in enumerate(recipes):
        for slot, source in enumerate(recipe.sources):
            name = f"{source.pieces[0].utterance} x {source.speed}"  # at another speed, another speaker
            digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
            classes[row, slot] = int.from_bytes(digest) % num_classes
    return classes


def read_impulse_responses(rooms: UtteranceStream, seconds: float = 600.0) -> dict[str, np.ndarray]:
    """Decode recorded room impulse responses into a mapping from id to waveform (samples,).

    Args:
        rooms: the recordings, for example `stream_utterances(..., corpus="room", speaker_column=None)`.
        seconds: how much of them to hold in memory, from the first row on; 64 kB a second.

    Raises:
        ValueError: one cannot be decoded, or there is none.
    """
    responses: dict[str, np.ndarray] = {}
    num_samples = 0
    for response in rooms:
        responses[response.id] = response.waveform
        num_samples += len(response.waveform)
        if num_samples >= seconds * SAMPLING_RATE:
            logger.info("holding the first %d impulse responses, %.0f s", len(responses), seconds)
            break
    if not responses:
        raise ValueError("the dataset of impulse responses is empty: give another one, or none")
    return responses


@dataclass(frozen=True)
class Shard:
    """Which training process this is, and how many there are."""

    rank: int = 0
    world_size: int = 1

    def __post_init__(self):
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank={self.rank}: must be at least 0 and below world_size={self.world_size}")


class MixtureStream(IterableDataset):
    """An endless stream of mixture groups, one per batch, that can be saved and resumed exactly.

    A reservoir of utterances is filled before the first group, until it is full or the data ends. Before every later
    group, `rows_per_group` rows are read. When the data ends, the next epoch begins. Each group is drawn from all that
    is held (`mixing.draw_group`), and mixed.

    A batch has num_identities x num_observations mixtures; identity n is the target of rows n * num_observations to
    (n + 1) * num_observations - 1. Its tensors:

        input_values (mixtures, samples): float32 mixtures;
        attention_mask (mixtures, samples): ones, long;
        source_values (mixtures, slots, samples): float32 sources, the target in slot 0, zeros in empty slots;
        speaker_ids (mixtures, slots): long, identity of each slot, -100 in empty slots. With supervision="utterance"
            they differ in every group and process; with "speaker" a speaker (at one speed) has the same everywhere.

    Its attribute `recipes` says how each mixture was made; `mixing.rebuild` makes it again.

    Several processes read a share of the data each. So do the workers of a process: background processes that read,
    decode and mix while the model trains, each with its part of the reservoir.

    Iterating again continues where the stream stands. The stream needs no `DataLoader` and must not run in the workers
    of one.

    Args:
        speech: one dataset, or several with different `corpus` names.
        config: how mixtures are drawn.
        reservoir: how much speech this process holds, and which utterances can be used.
        probabilities: for several datasets, the share of the rows read from each; equal by default. Mixtures are drawn
            from what is held, so these are not shares of the mixtures if a dataset is held as a whole.
        noise: recorded noise; with a `corpus` name, so that ids cannot be confused.
        noise_seconds: how much noise this process holds; of a longer recording, NOISE_MAX_SECONDS.
        impulse_responses: recorded room impulse responses by id, see `read_impulse_responses`.
        seed: every draw is a function of (seed, epoch, index of the group).
        rows_per_group: rows of speech to read before each group.
        shard: this process and the number of processes.
        num_workers: background processes of this process; with 0, a batch is made when it is asked for.

    Raises:
        ValueError: an argument is out of range. While iterating: the data is empty or holds too few identities, or too
            many rows cannot be used.
    """

    def __init__(
        self,
        speech: UtteranceStream | Sequence[UtteranceStream],
        config: MixingConfig,
        *,
        reservoir: ReservoirConfig = ReservoirConfig(),
        probabilities: Sequence[float] | None = None,
        noise: UtteranceStream | None = None,
        noise_seconds: float = 600.0,
        impulse_responses: Mapping[str, np.ndarray] | None = None,
        seed: int = 0,
        rows_per_group: int = 12,
        shard: Shard = Shard(),
        num_workers: int = 0,
    ):
        speech = [speech] if isinstance(speech, UtteranceStream) else list(speech)
        if config.supervision == "speaker" and any(stream.speaker_column is None for stream in speech):
            raise ValueError('supervision="speaker" needs speaker_column: name the column, or use "utterance"')
        if noise is not None and noise.corpus in {None, *(stream.corpus for stream in speech)}:
            raise ValueError(f"noise has the corpus name {noise.corpus!r}: give it one of its own")
        if num_workers < 0:
            raise ValueError(f"num_workers={num_workers}: must not be negative")
        if rows_per_group < 1:
            raise ValueError(f"rows_per_group={rows_per_group}: must be at least 1, or the stream would never move on")
        self.config = config
        self.seed = seed
        self.rows_per_group = rows_per_group
        self.impulse_responses = dict(impulse_responses or {})
        self.shard, self.num_workers = shard, num_workers

        num_readers = max(1, num_workers)
        noise_reservoir = replace(
            reservoir,
            seconds=noise_seconds,
            min_seconds=NOISE_MIN_SECONDS,
            max_seconds=min(NOISE_MAX_SECONDS, reservoir.max_seconds),
        )
        self._shares = []
        for worker in range(num_readers):
            share: dict[str, Any] = {"share": shard.rank * num_readers + worker}
            share["num_shares"] = shard.world_size * num_readers
            of_worker = _divide(reservoir, num_readers)
            held_speech = Reservoir(
                speech, of_worker, probabilities=probabilities, seed=seed, needs_speaker=config.needs_speakers, **share
            )
            held_noise = None
            if noise is not None:
                held_noise = Reservoir([noise], _divide(noise_reservoir, num_readers), seed=seed, **share)
            self._shares.append(_Share(held_speech, held_noise, self, worker))
        self._states = [share.state_dict() for share in self._shares]  # after the batches that were handed out
        for stream in speech if shard.rank == 0 else ():
            if stream.num_shards % (shard.world_size * num_readers):
                _warn_of_shards(stream, shard.world_size, num_readers)

    def __iter__(self) -> Iterator[MixtureBatch]:
        if torch.utils.data.get_worker_info() is not None:
            raise RuntimeError(
                "MixtureStream starts its own workers, and those of a DataLoader would repeat it: set "
                "num_workers=0 in the DataLoader, and num_workers of the stream instead"
            )
        return self._from_workers() if self.num_workers else self._from_here()

    def _from_here(self) -> Iterator[MixtureBatch]:
        while True:
            yield self._shares[0].next_batch()

    def _from_workers(self) -> Iterator[MixtureBatch]:
        loader: DataLoader = DataLoader(
            _Workers(self._shares, self._states),
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=_identity,
            generator=torch.Generator(),  # else it would draw from the generator that dropout uses
        )
        for worker, batch, state in loader:
            self._states[worker] = state  # workers are ahead: what counts is what was handed out
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, no audio. `load_state_dict` reads the rows again."""
        return {
            "rank": self.shard.rank,
            "world_size": self.shard.world_size,
            "num_workers": self.num_workers,
            "shares": list(self._states) if self.num_workers else [self._shares[0].state_dict()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken, by a stream with the same data and settings.

        Only the audio that was held is decoded again. Workers do that when they start.

        Raises:
            ValueError: the state is from another process or number of processes or workers, or the data has changed.
        """
        for name, value in (
            ("rank", self.shard.rank),
            ("world_size", self.shard.world_size),
            ("num_workers", self.num_workers),
        ):
            if state[name] != value:
                raise ValueError(
                    f"{name}={value}: the state was saved with {state[name]}, resume with that or use `take_over`"
                )
        if self.num_workers:
            self._states = list(state["shares"])
        else:
            self._shares[0].load_state_dict(state["shares"][0])

    def take_over(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Continue for the streams of another number of processes or workers.

        What they had not read of the current epoch is read first, each row once. The audio that they held is dropped,
        so the mixtures differ from those without the change.

        Args:
            states: the states of the streams of all former processes, taken at the same step.

        Raises:
            ValueError: a process is missing.
        """
        if sorted(state["rank"] for state in states) != list(range(states[0]["world_size"])):
            raise ValueError(
                f"states of the processes {[state['rank'] for state in states]} of {states[0]['world_size']}: give "
                "all of them"
            )
        shares = [share for state in states for share in state["shares"]]
        for share in self._shares:
            share.take_over(shares)
        self._states = [share.state_dict() for share in self._shares]

    def counters(self) -> dict[str, int]:
        """What this process has read and drawn: its `epoch`; `rows`, and the rows `skipped`, in all and by reason;
        `utterances` drawn as identities, and those too short for crops that do not `overlap` (with
        supervision="utterance")."""
        shares = self.state_dict()["shares"]
        speech = [share["speech"] for share in shares]
        skipped = sum((Counter(state["skipped"]) for state in speech), Counter())
        drawn = [share.get("drawn", NOTHING_DRAWN) for share in shares]
        return {
            "epoch": min(reader["unread"][0]["epoch"] for state in speech for reader in state["readers"]),
            "rows": sum(state["num_rows"] for state in speech),
            "skipped": skipped.total(),
            **{f"skipped/{reason}": skipped[reason] for reason in REASONS},
            "utterances": sum(n for n, _ in drawn),
            "utterances/overlap": sum(n for _, n in drawn),
        }


class _Share:
    """What one worker of one process makes of its share of the data: reservoirs, and the groups drawn from them."""

    def __init__(self, speech: Reservoir, noise: Reservoir | None, stream: MixtureStream, worker: int):
        self.speech, self.noise = speech, noise
        self.stream = stream
        self.worker = worker
        self.step = worker  # of its next group
        self._is_filled = False
        self._drawn = NOTHING_DRAWN
        self._index: ClipIndex | None = None  # of what is held

    def next_batch(self) -> MixtureBatch:
        """The batch of step `step`."""
        stream = self.stream
        for reservoir, num_rows in ((self.speech, stream.rows_per_group), (self.noise, 1)):
            if reservoir is not None and self._is_filled:
                reservoir.advance(num_rows)
            elif reservoir is not None:
                reservoir.fill(progress=stream.shard.rank == 0 and stream.num_workers == 0)
        self._is_filled = True
        index = self.step * stream.shard.world_size + stream.shard.rank
        clips = self.speech.clips()
        if self._index is None or self._index.clips is not clips:
            self._index = ClipIndex(clips, stream.config)
        recipes = draw_group(
            self._index,
            stream.config.at_batch(self.step),
            stream.seed,
            self.speech.epoch,
            index,
            num_parallel=stream.shard.world_size,
            noise=self.noise.clips() if self.noise else (),
            impulse_responses=list(stream.impulse_responses),
        )
        self._count_overlaps(recipes)
        self.step += max(1, stream.num_workers)
        of_noise = self.noise.held if self.noise else {}
        names = {name for recipe in recipes for name in recipe.recording_ids} - stream.impulse_responses.keys()
        used = {name: (self.speech.held.get(name) or of_noise[name]).utterance for name in names}
        return collate_group(
            recipes,
            {name: utterance.waveform for name, utterance in used.items()} | stream.impulse_responses,
            {name: utterance.start for name, utterance in used.items()},
            self._identities(recipes, index),
        )

    def _count_overlaps(self, recipes: Sequence[MixtureRecipe]) -> None:
        config = self.stream.config
        if config.supervision != "utterance":
            return
        overlapping = count_overlapping_crops(recipes)
        first = self.stream.shard.rank == self.worker == 0 and not self._drawn[1]
        if overlapping and first:
            logger.info(
                "%d of the %d utterances of a group are too short for crops that do not overlap: an utterance of %g "
                "s always has room for the up to %d crops of %g s",
                overlapping,
                config.num_identities,
                config.seconds * (config.num_observations * config.num_sources + 1),
                config.num_observations * config.num_sources,
                config.seconds,
            )
        self._drawn = [self._drawn[0] + config.num_identities, self._drawn[1] + overlapping]

    def _identities(self, recipes: Sequence[MixtureRecipe], index: int) -> list[int]:
        """A globally unique number for each identity of a group. A speaker has one number in all groups: in a contrast
        over several processes, they would otherwise be contrasted with themselves."""
        config = self.stream.config
        first = index * config.num_identities
        if config.supervision == "utterance":
            return list(range(first, first + config.num_identities))
        names = {}
        for source in (source for recipe in recipes for source in recipe.sources):
            utterance = self.speech.held[source.pieces[0].utterance].utterance
            who = utterance.speaker or f"utterance {utterance.id}"
            names[source.identity] = f"{who} x {source.speed}"  # at another speed, another speaker
        hashes = {n: hashlib.blake2b(name.encode(), digest_size=8).digest() for n, name in names.items()}
        return [int.from_bytes(hashes[n]) >> 1 for n in range(config.num_identities)]

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "is_filled": self._is_filled,
            "drawn": self._drawn,
            "speech": self.speech.state_dict(),
            "noise": self.noise and self.noise.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._check_data([state])
        self.step, self._is_filled = state["step"], state["is_filled"]
        self._drawn = state.get("drawn", NOTHING_DRAWN)
        self.speech.load_state_dict(state["speech"])
        if self.noise is not None:
            self.noise.load_state_dict(state["noise"])

    def take_over(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Continue for another number of shares, whose `states` these are."""
        self._check_data(states)
        self.step = self.worker + min(state["step"] for state in states)
        self.speech.take_over([state["speech"] for state in states])
        if self.noise is not None:
            self.noise.take_over([state["noise"] for state in states])

    def _check_data(self, states: Sequence[Mapping[str, Any]]) -> None:
        for state in states:
            former, now = len(state["speech"]["readers"]), self.speech.num_streams
            if former != now:
                raise ValueError(f"{now} datasets of speech: the state was saved with {former}, give the same ones")
            if (state["noise"] is None) != (self.noise is None):
                now_and_then = ("no recorded noise", "some") if self.noise is None else ("recorded noise", "none")
                raise ValueError(
                    f"{now_and_then[0]} is given: the state was saved with {now_and_then[1]}, give the same data"
                )


class _Workers(IterableDataset):
    """Runs in the workers of a process. Each continues from the state of its share."""

    def __init__(self, shares: Sequence[_Share], states: Sequence[Mapping[str, Any]]):
        self.shares, self.states = shares, states

    def __iter__(self) -> Iterator[tuple[int, MixtureBatch, dict[str, Any]]]:
        fsspec.asyn.reset_lock()  # else reading from a remote file system hangs in a forked process
        # Worker 0 is asked first, then 1, ...: the first takes the share whose turn it is.
        turns = sorted(range(len(self.states)), key=lambda number: self.states[number]["step"])
        info = torch.utils.data.get_worker_info()
        assert info is not None
        number = turns[info.id]
        share = self.shares[number]
        share.load_state_dict(self.states[number])
        while True:
            yield number, share.next_batch(), share.state_dict()


def _identity(item: Any) -> Any:
    return item


def _divide(config: ReservoirConfig, num_readers: int) -> ReservoirConfig:
    """The part of a reservoir that each of several workers holds."""
    if config.seconds / num_readers < config.max_seconds:
        raise ValueError(
            f"{config.seconds} seconds to hold, {config.seconds / num_readers} in each worker: must be at least "
            f"max_seconds={config.max_seconds} in each"
        )
    return replace(config, seconds=config.seconds / num_readers)


def _warn_of_shards(stream: UtteranceStream, world_size: int, num_workers: int) -> None:
    num_shares = world_size * num_workers
    what = f"{f'{stream.corpus!r} has' if stream.corpus else 'the data has'} {stream.num_shards} shards"
    if stream.num_shards < num_shares:
        consequence = f"each reads all of it, and keeps every {num_shares}th row"
    else:
        consequence = "some read one more than others, whose rows then come more often"
    logger.warning(
        "%s for %d processes x %d workers: %s. A multiple of %d shards would be shared out evenly.",
        what,
        world_size,
        num_workers,
        consequence,
        num_shares,
    )
