# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""From streams of single-speaker audio to an endless, resumable stream of mixture groups.

>>> utterances = stream_utterances("path/to/parquet_folder")
>>> stream = MixtureStream(utterances, MixingConfig(num_identities=12, seconds=2.0), seed=0)
>>> batch = next(iter(stream))  # input_values (24, 32000), source_values (24, 2, 32000), ...
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import fsspec
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from ..audio import SAMPLING_RATE
from .mixing import MixingConfig, MixtureRecipe, draw_group, mix
from .reservoir import REASONS, Reservoir
from .utterances import UtteranceStream

logger = logging.getLogger(__name__)


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

    Identity n of the group gets the speaker id `identities[n]`, n itself by default.
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


def read_impulse_responses(rooms: UtteranceStream, seconds: float = 600.0) -> dict[str, np.ndarray]:
    """Decode recorded room impulse responses into a mapping from id to waveform (T,).

    Args:
        rooms: where they lie; `stream_utterances(..., corpus="room", speaker_column=None)`, say.
        seconds: how much of them to hold in memory, from the first row on; 64 kB a second.

    Raises:
        ValueError: one cannot be decoded, or there is none.
    """
    responses, num_samples = {}, 0
    for response in rooms:
        responses[response.id] = response.waveform
        num_samples += len(response.waveform)
        if num_samples >= seconds * SAMPLING_RATE:
            logger.info("holding the first %d impulse responses, %.0f s", len(responses), seconds)
            break
    if not responses:
        raise ValueError("the data set of impulse responses is empty: give one that is not, or none")
    return responses


class _Share:
    """What one worker of one process makes of its share of the data: reservoirs, and the groups drawn from them."""

    def __init__(self, speech: Reservoir, noise: Reservoir | None, stream: "MixtureStream", worker: int):
        self.speech, self.noise = speech, noise
        self.stream = stream
        self.worker = worker
        self.step = worker  # that its next group is for
        self._is_filled = False

    def next_batch(self) -> MixtureBatch:
        """The batch of step `step`."""
        stream = self.stream
        for reservoir, num_rows in ((self.speech, stream.rows_per_group), (self.noise, 1)):
            if reservoir is not None and self._is_filled:
                reservoir.advance(num_rows)
            elif reservoir is not None:
                reservoir.fill(progress=stream.rank == 0 and stream.num_workers == 0)
        self._is_filled = True
        index = self.step * stream.world_size + stream.rank
        recipes = draw_group(
            self.speech.clips(),
            stream.config,
            stream.seed,
            self.speech.epoch,
            index,
            num_parallel=stream.world_size,
            noise=self.noise.clips() if self.noise else (),
            impulse_responses=list(stream.impulse_responses),
        )
        self.step += max(1, stream.num_workers)
        held = self.speech.held | (self.noise.held if self.noise else {})
        return collate_group(
            recipes,
            {name: held.utterance.waveform for name, held in held.items()} | stream.impulse_responses,
            {name: held.start for name, held in held.items()},
            self._identities(recipes, index),
        )

    def _identities(self, recipes: Sequence[MixtureRecipe], index: int) -> list[int]:
        """A number for each identity of a group that no other identity has. A speaker has one number in all groups, or
        in a contrast over several processes he would be told from himself."""
        config = self.stream.config
        first = index * config.num_identities
        if config.supervision == "utterance":
            return list(range(first, first + config.num_identities))
        names = {}
        for source in (source for recipe in recipes for source in recipe.sources):
            utterance = self.speech.held[source.pieces[0].utterance].utterance
            names[source.identity] = f"{utterance.speaker} x {source.speed}"  # sped up, somebody else
        hashes = {n: hashlib.blake2b(name.encode(), digest_size=8).digest() for n, name in names.items()}
        return [int.from_bytes(hashes[n]) >> 1 for n in range(config.num_identities)]

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "is_filled": self._is_filled,
            "speech": self.speech.state_dict(),
            "noise": self.noise and self.noise.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._check_data([state])
        self.step, self._is_filled = state["step"], state["is_filled"]
        self.speech.load_state_dict(state["speech"])
        if self.noise is not None:
            self.noise.load_state_dict(state["noise"])

    def take_over(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on for shares of another number, whose `states` these are."""
        self._check_data(states)
        self.step = self.worker + min(state["step"] for state in states)
        self.speech.take_over([state["speech"] for state in states])
        if self.noise is not None:
            self.noise.take_over([state["noise"] for state in states])

    def _check_data(self, states: Sequence[Mapping[str, Any]]) -> None:
        for state in states:
            former, now = len(state["speech"]["readers"]), self.speech.num_streams
            if former != now:
                raise ValueError(f"{now} data sets of speech: the state was saved with {former}, give the same ones")
            if (state["noise"] is None) != (self.noise is None):
                raise ValueError(
                    f"{'no ' if self.noise is None else ''}recorded noise is given: when the state was saved it was "
                    "the other way round, give what was given then"
                )


class MixtureStream(IterableDataset):
    """An endless stream of mixture groups, one batch each, that can be saved and resumed exactly.

    A reservoir holds `reservoir_seconds` of utterances, see `Reservoir`. It is filled before the first group, until it
    is full or the data ends. Before every later group, `rows_per_group` rows are read. When the data ends, the next
    epoch follows. Each group is then drawn from all that is held (`mixing.draw_group`), and mixed.

    A batch, with B = N * U mixtures (row n * U + u has identity n as its target), C slots and T samples:
        input_values (B, T): float32 mixtures;
        attention_mask (B, T): ones, long;
        source_values (B, C, T): float32 sources, the target in slot 0, zeros in empty slots;
        speaker_ids (B, C): long, identity of each slot; -100 in empty slots. With supervision="utterance" different in
            every group and process, with "speaker" the same for a speaker (at one speed) wherever he is.
    Its attribute `recipes` says how each mixture was made; `mixing.rebuild` makes it again.

    Several processes read a share of the data each. So do the workers of a process, if there are any: background
    processes that read, decode and mix while the model trains, each with its part of the reservoir.

    Iterating again goes on where the stream stands. It needs no `DataLoader`, and must not run in the workers of one.

    Args:
        utterances: where the speech comes from; one data set, or several with a `corpus` name each.
        config: how mixtures are drawn.
        seed: every draw is a function of (seed, epoch, index of the group).
        probabilities: of several data sets, the share of the rows that is read from each; by default equal. Mixtures
            are drawn from what is held, so of a data set that is held as a whole they do not hold more for it.
        noise: where recorded noise comes from, if any; with a `corpus` name, so that ids cannot be confused.
        impulse_responses: recorded room impulse responses, by id; see `read_impulse_responses`.
        reservoir_seconds: speech to hold in this process, in seconds; 64 kB of memory each.
        noise_seconds: the same for noise, of which up to 10 s of a recording are held.
        rows_per_group: rows of speech to read for each group.
        min_seconds: shorter utterances are skipped.
        max_seconds: of a longer utterance, so much from a random place is held, another one in every epoch.
        max_skipped: share of the rows that may be skipped before the stream stops with an error.
        rank, world_size: this process and the number of processes.
        num_workers: background processes of this process; 0: all is done in this one, when a batch is asked for.

    Raises:
        ValueError: an argument is out of range; and while iterating, if the data is empty or holds too few identities,
            or if too many rows cannot be used.
    """

    def __init__(
        self,
        utterances: UtteranceStream | Sequence[UtteranceStream],
        config: MixingConfig,
        seed: int = 0,
        probabilities: Sequence[float] | None = None,
        noise: UtteranceStream | None = None,
        impulse_responses: Mapping[str, np.ndarray] | None = None,
        reservoir_seconds: float = 1800.0,
        noise_seconds: float = 600.0,
        rows_per_group: int = 12,
        min_seconds: float = 0.5,
        max_seconds: float = 30.0,
        max_skipped: float = 0.5,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ):
        utterances = [utterances] if isinstance(utterances, UtteranceStream) else list(utterances)
        if config.supervision == "speaker" and any(stream.speaker_column is None for stream in utterances):
            raise ValueError('supervision="speaker" needs speaker_column: name the column, or use "utterance"')
        if noise is not None and noise.corpus in {None, *(stream.corpus for stream in utterances)}:
            raise ValueError(f"noise has the corpus name {noise.corpus!r}: give it one of its own")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank}: must be between 0 and world_size={world_size}, exclusively")
        if num_workers < 0:
            raise ValueError(f"num_workers={num_workers}: must not be negative")
        if rows_per_group < 1:
            raise ValueError(f"rows_per_group={rows_per_group}: must be at least 1, or the stream would never move on")
        self.config = config
        self.seed = seed
        self.rows_per_group = rows_per_group
        self.impulse_responses = dict(impulse_responses or {})
        self.rank, self.world_size, self.num_workers = rank, world_size, num_workers

        shares = max(1, num_workers)
        common = {"seed": seed, "max_skipped": max_skipped, "num_shares": world_size * shares}
        self._shares = []
        for worker in range(shares):
            common["share"] = rank * shares + worker
            speech = Reservoir(
                utterances,
                probabilities,
                reservoir_seconds / shares,
                min_seconds=min_seconds,
                max_seconds=max_seconds,
                needs_speaker=config.supervision == "speaker",
                **common,
            )
            held_noise = noise and Reservoir(
                [noise], None, noise_seconds / shares, min_seconds=0.1, max_seconds=min(10.0, max_seconds), **common
            )
            self._shares.append(_Share(speech, held_noise, self, worker))
        self._states = [share.state_dict() for share in self._shares]  # behind the batches that were handed out
        for stream in utterances if rank == 0 else ():
            if stream.num_shards % (world_size * shares):
                _warn_of_shards(stream, world_size, shares)

    def __iter__(self) -> Iterator[MixtureBatch]:
        if torch.utils.data.get_worker_info() is not None:
            raise RuntimeError(
                "MixtureStream starts workers of its own, those of a DataLoader would repeat it: set the DataLoader's "
                "num_workers=0, and the stream's"
            )
        return self._from_workers() if self.num_workers else self._from_here()

    def _from_here(self) -> Iterator[MixtureBatch]:
        while True:
            yield self._shares[0].next_batch()

    def _from_workers(self) -> Iterator[MixtureBatch]:
        loader = DataLoader(
            _Workers(self._shares, self._states),
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # else it would take a number from the generator that dropout draws from
        )
        for worker, batch, state in loader:
            self._states[worker] = state  # workers are ahead: what counts is what was handed out
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: plain numbers and strings, no audio. `load_state_dict` reads the rows again."""
        return {
            "rank": self.rank,
            "world_size": self.world_size,
            "num_workers": self.num_workers,
            "shares": list(self._states) if self.num_workers else [self._shares[0].state_dict()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly as the stream that `state` was taken of would have.

        The stream must have been made with the same data and settings. Only the audio that was held is decoded again.
        Workers do that when they start.

        Raises:
            ValueError: the state is of another process or number of processes or workers, or the data has changed.
        """
        for name in ("rank", "world_size", "num_workers"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)}: the state was saved with {state[name]}, resume with that or use "
                    "`take_over`"
                )
        if self.num_workers:
            self._states = list(state["shares"])
        else:
            self._shares[0].load_state_dict(state["shares"][0])

    def take_over(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on for the streams of another number of processes or workers.

        What they had not read yet in the current epoch is read first, each row once; nothing is left out. The audio
        that they held, and had drawn from, is let go. The mixtures are others than without the change.

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
        """What this process has read: its `epoch`, `rows`, and the rows `skipped`, in all and by reason."""
        speech = [share["speech"] for share in self.state_dict()["shares"]]
        skipped = sum((Counter(state["skipped"]) for state in speech), Counter())
        return {
            "epoch": min(reader["unread"][0]["epoch"] for state in speech for reader in state["readers"]),
            "rows": sum(state["num_rows"] for state in speech),
            "skipped": skipped.total(),
            **{f"skipped/{reason}": skipped[reason] for reason in REASONS},
        }


class _Workers(IterableDataset):
    """What the workers of a process run: each goes on from the state of its share."""

    def __init__(self, shares: Sequence[_Share], states: Sequence[Mapping[str, Any]]):
        self.shares, self.states = shares, states

    def __iter__(self) -> Iterator[tuple[int, MixtureBatch, dict[str, Any]]]:
        fsspec.asyn.reset_lock()  # or reading from a remote file system hangs in a forked process
        # Worker 0 is asked first, then 1, ...: the first is the share whose turn it is.
        turns = sorted(range(len(self.states)), key=lambda number: self.states[number]["step"])
        number = turns[torch.utils.data.get_worker_info().id]
        share = self.shares[number]
        share.load_state_dict(self.states[number])
        while True:
            yield number, share.next_batch(), share.state_dict()


def _as_it_is(item: Any) -> Any:
    return item


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
