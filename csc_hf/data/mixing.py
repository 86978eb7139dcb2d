# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Draw mixtures and mix them: pure functions.

A *group* is what one contrast runs over: a number of identities, each of which is the target of several mixtures
("observations") and interferes in mixtures of other identities of the group. `draw_group` draws a list of recipes from
(seed, epoch, index) and the lengths and labels of the audio at hand; it does not need the audio itself. `mix` turns a
recipe and the audio that it names into a mixture. So any mixture can be made again from its recipe (`rebuild`).

Rooms, levels and what else changes a source or a mixture: see `csc_hf.data.augmentation`.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from ..audio import SAMPLING_RATE, SILENCE_POWER, power, resample
from .augmentation import (
    DB_LIMITS,
    AugmentationConfig,
    Drawing,
    Effect,
    check_fields,
    draw_effects,
    effect_from_dict,
    effect_to_dict,
    find_recording,
    interval,
    probability,
)

NOISE_TILT = (0.0, 2.0)
"""The power of generated noise falls as 1 / frequency^t, with t uniform in this interval: from white to brown."""

SPEED_LIMITS = (0.5, 2.0)
"""Speeds that settings can have."""


@dataclass(frozen=True)
class MixingConfig(AugmentationConfig):
    """How mixtures are drawn. Intervals are (low, high); what is drawn is uniform in them.

    Attributes:
        num_identities: identities in a group.
        num_observations: mixtures in which an identity is the target; at least 2, since the contrast compares them.
        num_sources: slots of a mixture, that is, speakers at most.
        seconds: length of a mixture.
        supervision: what an identity is. "utterance": one utterance, no label is used; "speaker": a speaker.
        unlabelled_probability: with supervision="speaker", share of the identities that are an utterance without a
            speaker each. With 0, such utterances are not used.
        sir_db: level of the target relative to each interferer, over the whole crop.
        single_speaker_probability: probability that an observation holds its target alone. Otherwise the number of
            speakers is uniform in 2..num_sources. See `draw_group`.
        noise_probability: probability that noise is added.
        noise_snr_db: level of all the speech relative to the noise.
        recorded_noise_probability: share of the noises that are taken from recorded noise, if there is any. The others
            are generated.
        speed_probability: probability that an identity of a group speaks at another speed (Ko et al., "Audio
            Augmentation for Speech Recognition", 2015). Resampling shifts the pitch as well, which makes another
            speaker of it: an identity has the same speed in all mixtures of the group.
        speed_range: factor of tempo and pitch, in steps of 0.01.
        same_source_probability: probability that all of a group comes from one source (corpus, channel), so that
            identities cannot be told apart by their channel. See `draw_group`.
        curriculum_batches: until the first of these batches, every observation holds its target alone, and noise is
            added with `curriculum_noise_probability`. From there to the second, both probabilities move evenly to
            `single_speaker_probability` and `noise_probability`. See `at_batch`.
        curriculum_noise_probability: probability that noise is added at the beginning of the curriculum.

    and those of `AugmentationConfig`.
    """

    num_identities: int = 12
    num_observations: int = 2
    num_sources: int = 2
    seconds: float = 2.0
    supervision: str = "utterance"
    unlabelled_probability: float = probability(0.0)
    sir_db: tuple[float, float] = interval(-5.0, 5.0, DB_LIMITS)
    single_speaker_probability: float = probability(0.25)
    noise_probability: float = probability(0.5)
    noise_snr_db: tuple[float, float] = interval(0.0, 25.0, DB_LIMITS)
    recorded_noise_probability: float = probability(1.0)
    speed_probability: float = probability(0.0)
    speed_range: tuple[float, float] = interval(0.9, 1.1, SPEED_LIMITS)
    same_source_probability: float = probability(0.75)
    curriculum_batches: tuple[int, int] = interval(0, 0, (0, float("inf")))
    curriculum_noise_probability: float = probability(0.0)

    def __post_init__(self):
        for name, minimum in (("num_identities", 2), ("num_observations", 2), ("num_sources", 1)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {minimum}")
        if self.num_samples < 1:
            raise ValueError(f"seconds={self.seconds}: must be positive")
        if self.supervision not in ("utterance", "speaker"):
            raise ValueError(f'supervision={self.supervision!r}: must be "utterance" or "speaker"')
        check_fields(self)
        if self.unlabelled_probability and self.supervision != "speaker":
            raise ValueError('unlabelled_probability needs supervision="speaker": without it, no label is used')
        needed = 2 * max(itertools.chain([0], *_shifts(self.num_observations, self.num_sources))) + 1
        if self.num_identities < needed:
            raise ValueError(
                f"num_identities={self.num_identities} is too few for num_observations={self.num_observations} and "
                f"num_sources={self.num_sources}: two identities would meet in more than one mixture; raise it to "
                f"{needed} or more"
            )

    @property
    def needs_speakers(self) -> bool:
        """Whether utterances without a speaker cannot be used."""
        return self.supervision == "speaker" and self.unlabelled_probability == 0

    @property
    def num_samples(self) -> int:
        """Samples of a mixture."""
        return round(self.seconds * SAMPLING_RATE)

    def at_batch(self, number: int) -> "MixingConfig":
        """The settings of a batch, by its number from 0 on, as the curriculum has them."""
        first, last = self.curriculum_batches
        if number >= last:
            return self
        share = (number - first) / (last - first) if number > first else 0.0
        start, end = self.curriculum_noise_probability, self.noise_probability
        return replace(
            self,
            single_speaker_probability=1 - share * (1 - self.single_speaker_probability),
            noise_probability=start + share * (end - start),
        )


class TooFewIdentitiesError(ValueError):
    """The recordings at hand are of too few identities for a group."""


@dataclass(frozen=True)
class Clip:
    """What drawing must know of a recording, of which only a part may be held.

    Attributes:
        id: of the recording.
        num_samples: length of the part.
        speaker: who speaks, None if unknown.
        source: corpus or channel, None if unknown.
        start: sample of the recording at which the part begins.
    """

    id: str
    num_samples: int
    speaker: str | None = None
    source: str | None = None
    start: int = 0


@dataclass(frozen=True)
class Piece:
    """Samples `position` to `position + length` of a mixture hold an utterance (or noise) from its sample `start` on.

    At a speed other than 1, they take more or fewer than `length` samples of the recording.
    """

    utterance: str
    start: int
    length: int
    position: int


@dataclass(frozen=True)
class SourceRecipe:
    """One speaker of a mixture.

    Attributes:
        identity: its number in the group, from 0.
        pieces: its audio.
        sir_db: level of the target relative to it. None for the target itself, which keeps its recorded level.
        speed: factor of tempo and pitch, in steps of 0.01.
        effects: what is applied to it before its level is set.
    """

    identity: int
    pieces: tuple[Piece, ...]
    sir_db: float | None
    speed: float = 1.0
    effects: tuple[Effect, ...] = ()


@dataclass(frozen=True)
class GeneratedNoise:
    """Generated noise: the seed of its samples, its tilt (see NOISE_TILT), the level of the speech relative to it."""

    seed: int
    tilt: float
    snr_db: float


@dataclass(frozen=True)
class RecordedNoise:
    """Recorded noise: a part of one recording, or a short one repeated; the level of the speech relative to it."""

    pieces: tuple[Piece, ...]
    snr_db: float


@dataclass(frozen=True)
class MixtureRecipe:
    """How a mixture is made.

    Attributes:
        num_samples: its length.
        num_sources: its slots.
        sources: its speakers, one to `num_sources`, the target first.
        noise: its noise, if any.
        effects: what is applied to all sources and the noise at the end.
    """

    num_samples: int
    num_sources: int
    sources: tuple[SourceRecipe, ...]
    noise: GeneratedNoise | RecordedNoise | None
    effects: tuple[Effect, ...] = ()

    @property
    def recording_ids(self) -> set[str]:
        """Ids of all the audio that the recipe names: utterances, noise, impulse responses."""
        pieces = list(itertools.chain(*(source.pieces for source in self.sources)))
        if isinstance(self.noise, RecordedNoise):
            pieces += self.noise.pieces
        effects = itertools.chain(self.effects, *(source.effects for source in self.sources))
        return {piece.utterance for piece in pieces}.union(*(effect.recordings for effect in effects))

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON can hold it. `from_dict` gives an equal recipe."""
        values = asdict(self)
        values["effects"] = [effect_to_dict(effect) for effect in self.effects]
        for source, source_values in zip(self.sources, values["sources"], strict=True):
            source_values["effects"] = [effect_to_dict(effect) for effect in source.effects]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MixtureRecipe":
        """The recipe that `to_dict` was called on, also after JSON has made lists of its tuples."""

        def pieces_of(part: Mapping[str, Any]) -> tuple[Piece, ...]:
            return tuple(Piece(**piece) for piece in part["pieces"])

        def effects_of(part: Mapping[str, Any]) -> tuple[Effect, ...]:
            return tuple(effect_from_dict(effect) for effect in part["effects"])

        sources = tuple(
            SourceRecipe(**{**source, "pieces": pieces_of(source), "effects": effects_of(source)})
            for source in values["sources"]
        )
        noise = values["noise"]
        if noise is not None:
            is_recorded = "pieces" in noise
            noise = RecordedNoise(pieces_of(noise), noise["snr_db"]) if is_recorded else GeneratedNoise(**noise)
        return cls(**{**values, "sources": sources, "noise": noise, "effects": effects_of(values)})


class ClipIndex:
    """Clips by identity and by source, as drawing needs them. To draw many groups from the same clips, make it once.

    Args:
        clips: ids unique.
        config: its `supervision` and `unlabelled_probability` are used.

    Raises:
        ValueError: a clip has no speaker, and needs one.
    """

    def __init__(self, clips: Sequence[Clip], config: MixingConfig):
        self.clips = clips
        # An identity is whether it is labelled, and its name.
        self.by_identity: dict[tuple[bool, str], list[Clip]] = defaultdict(list)
        self.by_source: dict[str | None, dict[tuple[bool, str], list[Clip]]] = defaultdict(lambda: defaultdict(list))
        for clip in clips:
            identity = (False, clip.id)
            if config.supervision == "speaker" and clip.speaker is not None:
                identity = (True, clip.speaker)
            elif config.needs_speakers:
                raise ValueError(f'utterance {clip.id!r} has no speaker: supervision="speaker" needs one for each')
            self.by_identity[identity].append(clip)
            self.by_source[clip.source][identity].append(clip)

        # How often each identity comes in relation to the others.
        self.weights: dict[tuple[bool, str], float] = dict.fromkeys(self.by_identity, 1)
        num_labelled = sum(is_labelled for is_labelled, _ in self.by_identity)
        num_others = len(self.by_identity) - num_labelled
        if config.unlabelled_probability and num_labelled and num_others:
            of_others = config.unlabelled_probability / num_others
            of_labelled = (1 - config.unlabelled_probability) / num_labelled
            self.weights = {identity: of_labelled if identity[0] else of_others for identity in self.by_identity}


def draw_group(
    clips: Sequence[Clip] | ClipIndex,
    config: MixingConfig,
    seed: int,
    epoch: int,
    index: int,
    num_parallel: int = 1,
    noise: Sequence[Clip] = (),
    impulse_responses: Sequence[str] = (),
) -> list[MixtureRecipe]:
    """Draw the mixtures of one group, a pure function of its arguments.

    Which identities: with `same_source_probability`, all come from one source. It is chosen among the sources that
    have at least `num_identities` identities, in proportion to how many they have. If there is no such source, and in
    the other groups, identities come from all clips. A group from one source takes only audio of that source.

    Who meets whom: any two identities are together in at most one mixture of the group, so an identity never meets the
    same interferer twice. Target n of observation u is mixed with the identities n + s (modulo `num_identities`) of
    the randomly ordered group, with fixed shifts s whose differences are all different.

    How many speak: the same number in observation u of every identity. So all identities are in equally many mixtures
    of each kind, and the contrast cannot be won by counting.

    Which audio: every identity has a different crop in every mixture that it is in, see `_cut_crops`.

    Several groups in one step: with `num_parallel` processes, the contrast runs over one group of each. What is common
    to a group must then be common to all of them, or identities of other groups could be told apart by the number of
    speakers or by the channel instead of the voice. So how many speak in each observation, whether the groups come
    from one source, and the number in 0..1 that chooses the source are drawn once a step, from (seed, index //
    num_parallel). Processes whose clips have the same sources in the same shares choose the same source. Everything
    else is drawn from (seed, epoch, index).

    Args:
        clips: the audio at hand, ids unique; or an index of it.
        index: number of the group, over all epochs and processes.
        num_parallel: how many groups, with consecutive indices, make one training step.
        noise: the recorded noise at hand.
        impulse_responses: ids of the recorded impulse responses at hand.

    Returns:
        num_identities * num_observations recipes; number n * num_observations + u has identity n as its target.

    Raises:
        ValueError: there are fewer identities than a group needs.
    """
    shared = np.random.default_rng([seed, index // num_parallel, 0, 1])  # the last number keeps it apart from `rng`
    one_source, which_source = shared.random() < config.same_source_probability, shared.random()
    shifts = []  # of each observation: from the target to its interferers, in the order of the identities
    for of_observation in _shifts(config.num_observations, config.num_sources):
        alone = shared.random() < config.single_speaker_probability or not of_observation
        shifts.append(of_observation[: 0 if alone else shared.integers(1, config.num_sources)])

    members = []  # of each mixture: its target, then its interferers
    for target, observation in itertools.product(range(config.num_identities), range(config.num_observations)):
        members.append([target, *((target + shift) % config.num_identities for shift in shifts[observation])])
    num_crops = np.bincount(list(itertools.chain(*members)), minlength=config.num_identities)

    rng = np.random.default_rng([seed, epoch, index])
    at_hand = clips if isinstance(clips, ClipIndex) else ClipIndex(clips, config)
    chosen = _choose_identities(at_hand, config, which_source if one_source else None, rng)
    speeds = [_draw_speed(config, rng) for _ in chosen]
    crops = [
        iter(_cut_crops(of_identity, speed, number, config.num_samples, rng))
        for of_identity, speed, number in zip(chosen, speeds, num_crops, strict=True)
    ]
    drawing = Drawing(config, rng, seed, impulse_responses)
    recipes = []
    for identities in members:
        effects = draw_effects(len(identities), drawing, of_mixture=False)
        sources: list[SourceRecipe] = []
        for n, of_source in zip(identities, effects, strict=True):
            sir_db = rng.uniform(*config.sir_db) if sources else None
            sources.append(SourceRecipe(n, next(crops[n]), sir_db, speeds[n], of_source))
        (of_mixture,) = draw_effects(1, drawing, of_mixture=True)
        drawn_noise = _draw_noise(noise, config, rng)
        recipes.append(MixtureRecipe(config.num_samples, config.num_sources, tuple(sources), drawn_noise, of_mixture))
    return recipes


def mix(
    recipe: MixtureRecipe, waveforms: Mapping[str, np.ndarray], starts: Mapping[str, int] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make the mixture of a recipe.

    Sources are cut at their speed, their effects are applied, and then their levels are set, so the levels in the
    recipe are those of the result, unless the mixture is heard through a channel. A silent crop (SILENCE_POWER) has no
    level: if the target or the interferer is silent, the interferer keeps its recorded level; if all the speech is
    silent, no noise is added.

    Args:
        recipe: what to mix.
        waveforms: float32 arrays (samples,) of all recordings that the recipe names (`recording_ids`), by id.
        starts: by id, the sample of the recording at which its waveform begins, if not 0.

    Returns:
        mixture (samples,); sources (slots, samples), the target first, zeros in empty slots; noise (samples,). All are
        float32, and mixture == sources.sum(0) + noise. Sources are reverberant if the recipe has rooms.

    Raises:
        ValueError: a recording is missing, shorter than the recipe says, or not finite; an impulse response is silent.
        ImportError: the recipe has rooms, and pyroomacoustics or SciPy cannot be imported; or it changes the speed,
            and soxr cannot be imported.
    """
    starts = starts or {}
    sources = np.zeros((recipe.num_sources, recipe.num_samples), dtype=np.float32)
    for slot, source in enumerate(recipe.sources):
        for piece in source.pieces:
            end = piece.position + piece.length
            sources[slot, piece.position : end] = _take(piece, source.speed, waveforms, starts)
        for effect in source.effects:
            sources[slot] = effect.apply(sources[slot], waveforms)
        if source.sir_db is not None:
            sources[slot] *= _gain(sources[0], sources[slot], source.sir_db)
    speech = sources.sum(axis=0)

    noise = np.zeros_like(speech)
    if recipe.noise is not None and power(speech) >= SILENCE_POWER:
        if isinstance(recipe.noise, GeneratedNoise):
            noise = _coloured_noise(recipe.num_samples, recipe.noise)
        else:
            for piece in recipe.noise.pieces:
                noise[piece.position : piece.position + piece.length] = _take(piece, 1.0, waveforms, starts)
        noise *= _gain(speech, noise, recipe.noise.snr_db)

    for effect in recipe.effects:
        for slot in range(len(recipe.sources)):
            sources[slot] = effect.apply(sources[slot], waveforms)
        noise = effect.apply(noise, waveforms)
    return sources.sum(axis=0) + noise, sources, noise


def rebuild(recipe: MixtureRecipe | Mapping, recordings: Iterable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make a mixture again from the data itself, to inspect it.

    >>> rows = itertools.chain(speech.rows(), noise.rows())  # of `stream_utterances`
    >>> mixture, sources, noise = rebuild(json.loads(line), rows)

    Args:
        recipe: a recipe, or what its `to_dict` gave.
        recordings: the data, searched in order until all is found. Each has an `id` and a `decode()` that gives an
            object with its whole `waveform`, like `csc_hf.data.utterances.Row`. Only what the recipe names is decoded.

    Returns:
        What `mix` returns.

    Raises:
        ValueError: a recording is not in the data; and as `mix`.
    """
    if isinstance(recipe, Mapping):
        recipe = MixtureRecipe.from_dict(recipe)
    missing, waveforms = recipe.recording_ids, {}
    for recording in recordings:
        if recording.id in missing:
            waveforms[recording.id] = recording.decode().waveform
            missing.remove(recording.id)
        if not missing:
            return mix(recipe, waveforms)
    raise ValueError(
        f"the recipe needs {sorted(missing)}, not among the recordings: give all the data that it was drawn from"
    )


def count_overlapping_crops(recipes: Iterable[MixtureRecipe]) -> int:
    """Number of recordings of which two crops in these mixtures overlap."""
    pieces = defaultdict(list)
    for recipe, source in ((recipe, source) for recipe in recipes for source in recipe.sources):
        for piece in source.pieces:
            pieces[piece.utterance].append((piece.start, piece.start + _recorded_length(piece.length, source.speed)))
    return sum(
        any(end > start for (_, end), (start, _) in itertools.pairwise(sorted(parts))) for parts in pieces.values()
    )


@lru_cache
def _shifts(num_observations: int, num_sources: int) -> tuple[tuple[int, ...], ...]:
    """For each observation, the `num_sources` - 1 cyclic shifts from the target to its interferers.

    Two identities at a distance d in the (cyclic) order of the group meet once for every time that d is the difference
    of two members of an observation's set {0, *shifts}. So no difference may occur twice, in one set or in two. The
    smallest shifts with this property are taken in turn: 1, 2, ..., num_observations for two sources. They are the
    same for every group, since the order of the identities is random. With num_identities > 2 * max(shifts), d and
    num_identities - d are never both differences.
    """
    used: set[int] = set()
    sets: list[tuple[int, ...]] = []
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


def _choose_identities(
    index: ClipIndex, config: MixingConfig, which_source: float | None, rng: np.random.Generator
) -> list[list[Clip]]:
    """The clips of `num_identities` identities, in random order, of all sources or of the one that a number in 0..1
    chooses."""
    if len(index.by_identity) < config.num_identities:
        what = "utterances" if config.supervision == "utterance" else "speakers"
        num_clips, seconds = len(index.clips), sum(clip.num_samples for clip in index.clips) / SAMPLING_RATE
        raise TooFewIdentitiesError(
            f"a group needs num_identities={config.num_identities} different {what}, and the {num_clips} utterances "
            f"at hand ({seconds:.0f} s) hold {len(index.by_identity)}: add data, lower num_identities, or, if the "
            "data has more, hold more of it at a time (reservoir_seconds) or shuffle its rows"
        )
    weights, candidates = index.weights, index.by_identity
    sources = index.by_source
    names = [name for name in sorted(sources, key=str) if len(sources[name]) >= config.num_identities]
    if names and which_source is not None:
        shares = np.cumsum([sum(weights[identity] for identity in sources[name]) for name in names])
        candidates = sources[names[np.searchsorted(shares, which_source * shares[-1], side="right")]]
    clips_of = list(candidates.values())
    p = None  # equally often
    if config.unlabelled_probability:
        p = np.array([weights[identity] for identity in candidates])
        p = p / p.sum()
    return [clips_of[i] for i in rng.choice(len(clips_of), config.num_identities, replace=False, p=p)]


def _draw_speed(config: MixingConfig, rng: np.random.Generator) -> float:
    if rng.random() >= config.speed_probability:
        return 1.0
    low, high = (round(100 * limit) for limit in config.speed_range)
    return int(rng.integers(low, high + 1)) / 100


def _cut_crops(
    clips: Sequence[Clip], speed: float, num_crops: int, num_samples: int, rng: np.random.Generator
) -> list[tuple[Piece, ...]]:
    """Cut `num_crops` crops of `num_samples` samples, at their speed, from the clips of one identity.

    The clips are used in turn, in random order, so crops have different clips as far as there are enough. Short clips
    are joined until the crop is full. Pieces of the same clip are spread evenly over it, from a random start; they do
    not overlap if the clip is at least one crop longer than all of them. If an identity has less audio than a crop, it
    is put at a random position, with zeros around it.
    """
    queue = itertools.cycle([clips[i] for i in rng.permutation(len(clips))])
    plan = []  # of each crop: (clip, length) of its pieces
    uses: dict[str, int] = defaultdict(int)
    for _ in range(num_crops):
        parts: list[tuple[Clip, int]] = []
        missing = num_samples
        while missing and len(parts) < len(clips):  # no clip twice in one crop
            clip = next(queue)
            at_speed = clip.num_samples * 100 // round(100 * speed)
            parts.append((clip, min(at_speed, missing)))
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
            num_starts = clip.num_samples - _recorded_length(length, speed) + 1
            start = int((next(turn[clip.id]) + phase[clip.id]) / uses[clip.id] * num_starts)
            pieces.append(Piece(clip.id, clip.start + start, length, position))
            position += length
        crops.append(tuple(pieces))
    return crops


def _recorded_length(length: int, speed: float) -> int:
    """Samples of a recording that make `length` samples at a speed."""
    return -(-length * round(100 * speed) // 100)


def _draw_noise(
    clips: Sequence[Clip], config: MixingConfig, rng: np.random.Generator
) -> GeneratedNoise | RecordedNoise | None:
    if rng.random() >= config.noise_probability:
        return None
    snr_db = rng.uniform(*config.noise_snr_db)
    if not clips or rng.random() >= config.recorded_noise_probability:
        return GeneratedNoise(int(rng.integers(2**63)), rng.uniform(*NOISE_TILT), snr_db)
    return draw_recorded_noise(clips, config.num_samples, snr_db, rng)


def draw_recorded_noise(
    clips: Sequence[Clip], num_samples: int, snr_db: float, rng: np.random.Generator
) -> RecordedNoise:
    """A random part of one of the clips, or all of a short one, repeated."""
    clip = clips[int(rng.integers(len(clips)))]
    start = clip.start + int(rng.integers(max(clip.num_samples - num_samples, 0) + 1))
    positions = range(0, num_samples, clip.num_samples)
    pieces = [Piece(clip.id, start, min(clip.num_samples, num_samples - p), p) for p in positions]
    return RecordedNoise(tuple(pieces), snr_db)


def _take(piece: Piece, speed: float, waveforms: Mapping[str, np.ndarray], starts: Mapping[str, int]) -> np.ndarray:
    """The samples of a piece, at its speed."""
    waveform = find_recording(piece.utterance, waveforms)
    begin = piece.start - starts.get(piece.utterance, 0)
    end = begin + _recorded_length(piece.length, speed)
    samples = waveform[max(begin, 0) : end]
    if len(samples) != end - begin or not np.isfinite(samples).all():
        raise ValueError(
            f"recording {piece.utterance!r}: samples {piece.start} to {piece.start + end - begin} are missing or not "
            "finite: give the audio that the recipe was drawn for"
        )
    if speed == 1.0:
        return samples
    return resample(samples, round(100 * speed) * SAMPLING_RATE // 100, SAMPLING_RATE)[: piece.length]


def _gain(reference: np.ndarray, samples: np.ndarray, ratio_db: float) -> np.float32:
    """Factor that brings `samples` to `ratio_db` below the reference; 1 if one of them is silent."""
    of_reference, of_samples = power(reference), power(samples)
    if min(of_reference, of_samples) < SILENCE_POWER:
        return np.float32(1)
    return np.float32(np.sqrt(of_reference / of_samples * 10 ** (-ratio_db / 10)))


def _coloured_noise(num_samples: int, recipe: GeneratedNoise) -> np.ndarray:
    """Gaussian noise with a tilted spectrum, flat below 50 Hz, of power about 1: float32 (num_samples,)."""
    spectrum = np.fft.rfft(np.random.default_rng(recipe.seed).standard_normal(num_samples))
    weights = np.maximum(np.fft.rfftfreq(num_samples, 1 / SAMPLING_RATE), 50.0) ** (-recipe.tilt / 2)
    weights /= np.sqrt(np.mean(np.square(weights)))
    return np.fft.irfft(spectrum * weights, num_samples).astype(np.float32)
