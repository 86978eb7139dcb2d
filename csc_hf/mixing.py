# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Draw mixtures and mix them: pure NumPy functions.

A *group* is what one contrast runs over: N identities, each the target of U mixtures, in which other identities of the
same group interfere. `draw_group` decides on a group from (seed, epoch, index) and from what audio there is, without
looking into the audio; what it decides is a list of recipes. `mix` turns a recipe and the audio that it names into a
mixture, so that any mixture can be built again from its recipe alone.
"""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .audio import SAMPLING_RATE

SILENCE_POWER = 1e-8
"""Mean square below which audio counts as silent (-80 dB relative to full scale)."""

NOISE_TILT = (0.0, 2.0)
"""Generated noise has a power that falls as 1 / frequency^t, with t uniform in this range: from white to brown."""


@dataclass(frozen=True)
class MixingConfig:
    """How mixtures are drawn. "Uniform in" ranges are (low, high).

    Attributes:
        num_identities: N, identities in a group.
        num_observations: U, mixtures in which an identity is the target; at least 2, the contrast needs another one.
        num_sources: C, slots of a mixture: at most C speakers.
        seconds: length of a mixture.
        supervision: what an identity is. "utterance": one utterance, no label used; "speaker": a speaker.
        sir_db: level of the target relative to each interferer, over the whole crop; uniform in this range.
        single_speaker_probability: probability that an observation holds its target alone. Otherwise the number of
            speakers is uniform in 2..C. See `draw_group`.
        noise_probability: probability that noise is added.
        noise_snr_db: level of all the speech relative to the noise; uniform in this range.
        same_source_probability: probability that a group comes from one source (corpus, channel) alone, so that
            identities cannot be told apart by their channel. See `draw_group`.
    """

    num_identities: int = 12
    num_observations: int = 2
    num_sources: int = 2
    seconds: float = 2.0
    supervision: str = "utterance"
    sir_db: tuple[float, float] = (-5.0, 5.0)
    single_speaker_probability: float = 0.25
    noise_probability: float = 0.5
    noise_snr_db: tuple[float, float] = (0.0, 25.0)
    same_source_probability: float = 0.75

    def __post_init__(self):
        for name, minimum in (("num_identities", 2), ("num_observations", 2), ("num_sources", 1)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {minimum}")
        if self.num_samples < 1:
            raise ValueError(f"seconds={self.seconds}: must be positive")
        if self.supervision not in ("utterance", "speaker"):
            raise ValueError(f'supervision={self.supervision!r}: must be "utterance" or "speaker"')
        for name in ("sir_db", "noise_snr_db"):
            value = tuple(getattr(self, name))  # YAML and JSON give lists
            if len(value) != 2 or not value[0] <= value[1]:
                raise ValueError(f"{name}={value}: must be (low, high) in dB, with low <= high")
            object.__setattr__(self, name, value)
        for name in ("single_speaker_probability", "noise_probability", "same_source_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be between 0 and 1")
        needed = 2 * max(itertools.chain([0], *_shifts(self.num_observations, self.num_sources))) + 1
        if self.num_identities < needed:
            raise ValueError(
                f"num_identities={self.num_identities} is too few for num_observations={self.num_observations} and "
                f"num_sources={self.num_sources}: two identities would meet in more than one mixture; raise it to "
                f"{needed} or more"
            )

    @property
    def num_samples(self) -> int:
        """T, samples of a mixture."""
        return round(self.seconds * SAMPLING_RATE)


@dataclass(frozen=True)
class Clip:
    """What drawing must know of an utterance: its id, its length in samples, who speaks, where it comes from."""

    id: str
    num_samples: int
    speaker: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Piece:
    """Samples start..start + length of an utterance, put at `position` of the mixture."""

    utterance: str
    start: int
    length: int
    position: int


@dataclass(frozen=True)
class SourceRecipe:
    """One speaker of a mixture: its identity 0..N-1 in the group, its audio, and the level of the target over it.

    The target itself has `sir_db` None: it keeps the level that it was recorded at.
    """

    identity: int
    pieces: tuple[Piece, ...]
    sir_db: float | None


@dataclass(frozen=True)
class NoiseRecipe:
    """Generated noise: the seed of its samples, its tilt (see NOISE_TILT), the level of the speech over it."""

    seed: int
    tilt: float
    snr_db: float


@dataclass(frozen=True)
class MixtureRecipe:
    """A mixture of T = `num_samples` samples and C = `num_sources` slots: 1..C sources, the target first; noise."""

    num_samples: int
    num_sources: int
    sources: tuple[SourceRecipe, ...]
    noise: NoiseRecipe | None


def draw_group(clips: Sequence[Clip], config: MixingConfig, seed: int, epoch: int, index: int) -> list[MixtureRecipe]:
    """Draw the mixtures of one group, a pure function of its arguments.

    Which identities: with `same_source_probability`, all from one source, chosen among the sources that have at least
    N identities in proportion to how many they have; where there is no such source, and in the other groups, from all
    the clips. A group from one source takes only audio of that source.

    Who meets whom: any two identities are in at most one mixture of the group together, so the interference of an
    identity is never twice the same speaker. Target n of observation u is interfered with by the identities n + s
    (modulo N) of the randomly ordered group, with fixed shifts s that have no difference twice.

    How many speak: the same number in observation u of every identity, so that all identities are in as many
    mixtures of each kind, and the contrast cannot be won by counting.

    Which audio: every identity has its own crop in every mixture that it is in, see `_cut_crops`.

    Args:
        clips: the audio at hand, ids unique.
        index: number of the group, over all epochs and processes.

    Returns:
        N * U recipes; number n * U + u has identity n as its target.

    Raises:
        ValueError: fewer than N identities.
    """
    rng = np.random.default_rng([seed, epoch, index])
    chosen = _choose_identities(clips, config, rng)
    shifts = []  # of each observation: where its interferers stand, in the order of the identities
    for of_observation in _shifts(config.num_observations, config.num_sources):
        alone = rng.random() < config.single_speaker_probability or not of_observation
        shifts.append(of_observation[: 0 if alone else rng.integers(1, config.num_sources)])

    members = []  # of each mixture: its target, then its interferers
    for target, observation in itertools.product(range(config.num_identities), range(config.num_observations)):
        members.append([target, *((target + shift) % config.num_identities for shift in shifts[observation])])

    fills = np.bincount(list(itertools.chain(*members)), minlength=config.num_identities)
    crops = [iter(_cut_crops(chosen[n], fills[n], config.num_samples, rng)) for n in range(config.num_identities)]
    recipes = []
    for target, *interferers in members:
        sources = [SourceRecipe(target, next(crops[target]), None)]
        sources += [SourceRecipe(n, next(crops[n]), rng.uniform(*config.sir_db)) for n in interferers]
        noise = None
        if rng.random() < config.noise_probability:
            noise = NoiseRecipe(int(rng.integers(2**63)), rng.uniform(*NOISE_TILT), rng.uniform(*config.noise_snr_db))
        recipes.append(MixtureRecipe(config.num_samples, config.num_sources, tuple(sources), noise))
    return recipes


def mix(recipe: MixtureRecipe, waveforms: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Build the mixture of a recipe.

    A silent crop (SILENCE_POWER) has no level to set: where the target or the interferer is silent, the interferer
    keeps the level that it was recorded at; where all the speech is silent, no noise is added.

    Args:
        recipe: what to mix.
        waveforms: float32 array (T',) of every utterance that the recipe names, by utterance id.

    Returns:
        mixture (T,), sources (C, T) with the target first and zeros in empty slots, noise (T,); float32, and
        mixture == sources.sum(0) + noise.

    Raises:
        ValueError: an utterance is missing, shorter than the recipe says, or not finite.
    """
    sources = np.zeros((recipe.num_sources, recipe.num_samples), dtype=np.float32)
    for slot, source in enumerate(recipe.sources):
        for piece in source.pieces:
            sources[slot, piece.position : piece.position + piece.length] = _take(piece, waveforms)
        if source.sir_db is not None:
            sources[slot] *= _gain(sources[0], sources[slot], source.sir_db)
    speech = sources.sum(axis=0)

    noise = np.zeros_like(speech)
    if recipe.noise is not None and _power(speech) >= SILENCE_POWER:
        noise = _coloured_noise(recipe.num_samples, recipe.noise)
        noise *= _gain(speech, noise, recipe.noise.snr_db)
    return speech + noise, sources, noise


@lru_cache
def _shifts(num_observations: int, num_sources: int) -> tuple[tuple[int, ...], ...]:
    """For each observation, C - 1 cyclic shifts from the target to its interferers.

    Two identities at a distance d in the (cyclic) order of the group meet once for every time that d is the difference
    of two members of an observation's set {0, *shifts}. So no difference may come twice, in one set or in two. The
    smallest shifts that obey are taken in turn: 1, 2, ..., U for C = 2. They are the same for every group, since the
    order of the identities is random. With N > 2 * max(shifts), d and N - d are never both differences.
    """
    used, sets = set(), []
    for _ in range(num_observations):
        members = [0]
        while len(members) < num_sources:
            for shift in itertools.count(members[-1] + 1):
                differences = {shift - member for member in members}
                if used.isdisjoint(differences):
                    break
            used |= differences
            members.append(shift)
        sets.append(tuple(members[1:]))
    return tuple(sets)


def _choose_identities(clips: Sequence[Clip], config: MixingConfig, rng: np.random.Generator) -> list[list[Clip]]:
    """The clips of N identities, in random order."""
    by_source = defaultdict(lambda: defaultdict(list))  # source -> identity -> clips
    everything = defaultdict(list)
    for clip in clips:
        identity = clip.id if config.supervision == "utterance" else clip.speaker
        if identity is None:
            raise ValueError(f'utterance {clip.id!r} has no speaker: supervision="speaker" needs one for each')
        by_source[clip.source][identity].append(clip)
        everything[identity].append(clip)
    if len(everything) < config.num_identities:
        what = "utterances" if config.supervision == "utterance" else "speakers"
        raise ValueError(
            f"a group needs num_identities={config.num_identities} different {what}, and the {len(clips)} utterances "
            f"at hand ({sum(clip.num_samples for clip in clips) / SAMPLING_RATE:.0f} s) hold {len(everything)}: add "
            "data, lower num_identities, or, if the data has more, hold more of it at a time (reservoir_seconds) or "
            "shuffle its rows"
        )

    candidates = everything
    large_enough = [identities for identities in by_source.values() if len(identities) >= config.num_identities]
    if large_enough and rng.random() < config.same_source_probability:
        sizes = np.array([len(identities) for identities in large_enough])
        candidates = large_enough[rng.choice(len(large_enough), p=sizes / sizes.sum())]
    candidates = list(candidates.values())
    return [candidates[i] for i in rng.choice(len(candidates), config.num_identities, replace=False)]


def _cut_crops(
    clips: Sequence[Clip], num_crops: int, num_samples: int, rng: np.random.Generator
) -> list[tuple[Piece, ...]]:
    """Cut `num_crops` crops of `num_samples` samples from the clips of one identity.

    The clips are used in turn, in random order, so that crops differ in their clips as far as there are enough; short
    clips are joined until the crop is full. Pieces of the same clip are spread over it evenly, from a random start. An
    identity with less audio than a crop is put at a random place, with zeros around it.
    """
    queue = itertools.cycle([clips[i] for i in rng.permutation(len(clips))])
    plan = []  # of each crop: (clip, length) of its pieces
    uses = defaultdict(int)
    for _ in range(num_crops):
        parts, missing = [], num_samples
        while missing and len(parts) < len(clips):  # no clip twice in one crop
            clip = next(queue)
            parts.append((clip, min(clip.num_samples, missing)))
            missing -= parts[-1][1]
            uses[clip.id] += 1
        plan.append(parts)

    phase = {clip.id: rng.random() for clip in clips}
    turn = {clip.id: iter(rng.permutation(uses[clip.id])) for clip in clips}
    crops = []
    for parts in plan:
        position = int(rng.integers(num_samples - sum(length for _, length in parts) + 1))
        pieces = []
        for clip, length in parts:
            start = int((next(turn[clip.id]) + phase[clip.id]) / uses[clip.id] * (clip.num_samples - length + 1))
            pieces.append(Piece(clip.id, start, length, position))
            position += length
        crops.append(tuple(pieces))
    return crops


def _take(piece: Piece, waveforms: Mapping[str, np.ndarray]) -> np.ndarray:
    if piece.utterance not in waveforms:
        raise ValueError(f"the recipe needs utterance {piece.utterance!r}, which is not among the waveforms: add it")
    samples = waveforms[piece.utterance][piece.start : piece.start + piece.length]
    if len(samples) != piece.length or not np.isfinite(samples).all():
        raise ValueError(
            f"utterance {piece.utterance!r} is shorter than {piece.start + piece.length} samples or not finite there: "
            "give the audio that the recipe was drawn for"
        )
    return samples


def _power(samples: np.ndarray) -> float:
    """Mean square."""
    return float(np.mean(np.square(samples, dtype=np.float64)))


def _gain(reference: np.ndarray, samples: np.ndarray, ratio_db: float) -> np.float32:
    """Factor that puts `samples` `ratio_db` below the reference; 1 if one of them is silent."""
    reference_power, power = _power(reference), _power(samples)
    if min(reference_power, power) < SILENCE_POWER:
        return np.float32(1)
    return np.float32(np.sqrt(reference_power / power * 10 ** (-ratio_db / 10)))


def _coloured_noise(num_samples: int, recipe: NoiseRecipe) -> np.ndarray:
    """Gaussian noise of shape (num_samples,) with a tilted spectrum (flat below 50 Hz), float32, of power about 1."""
    spectrum = np.fft.rfft(np.random.default_rng(recipe.seed).standard_normal(num_samples))
    weights = np.maximum(np.fft.rfftfreq(num_samples, 1 / SAMPLING_RATE), 50.0) ** (-recipe.tilt / 2)
    weights /= np.sqrt(np.mean(np.square(weights)))
    return np.fft.irfft(spectrum * weights, num_samples).astype(np.float32)
