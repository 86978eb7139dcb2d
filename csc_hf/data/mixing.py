# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Draw mixtures and mix them: pure functions.

A *group* is what one contrast runs over: N identities, each the target of U mixtures, in which other identities of the
same group interfere. `draw_group` decides on a group from (seed, epoch, index) and from what audio there is, without
looking into the audio; what it decides is a list of recipes. `mix` turns a recipe and the audio that it names into a
mixture, so that any mixture can be built again from its recipe alone (`rebuild`).
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache

import numpy as np

from ..audio import SAMPLING_RATE, SILENCE_POWER, power, resample
from .rooms import (
    NUM_POSITIONS,
    NUM_ROOMS,
    REVERB_LIMITS,
    SimulatedRoom,
    align_response,
    draw_room,
    reverberate,
    simulate,
)

NOISE_TILT = (0.0, 2.0)
"""Generated noise has a power that falls as 1 / frequency^t, with t uniform in this range: from white to brown."""

DB_LIMITS = (-100.0, 100.0)
SPEED_LIMITS = (0.5, 2.0)
"""What the ranges of MixingConfig must keep to."""


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
        recorded_noise_probability: share of the noises that are taken from the noise data, where there is any. The
            others are generated.
        speed_probability: probability that an identity of a group speaks at another speed (Ko et al., "Audio
            Augmentation for Speech Recognition", 2015). It is resampled, which shifts the pitch as well, and so makes
            another speaker of it: an identity has the same speed in all the mixtures of the group.
        speed_range: factor of tempo and pitch; uniform in this range, in steps of 0.01.
        reverb_probability: probability that a mixture is heard in a room. Where there are recorded impulse responses,
            each source draws one of them. Else all are talkers in one simulated room.
        reverb_seconds: reverberation time (RT60) of simulated rooms; uniform in this range.
        level_probability: probability that the level of a whole mixture, sources and noise, is changed.
        level_db: by how much; uniform in this range.
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
    recorded_noise_probability: float = 1.0
    speed_probability: float = 0.0
    speed_range: tuple[float, float] = (0.9, 1.1)
    reverb_probability: float = 0.0
    reverb_seconds: tuple[float, float] = (0.1, 0.5)
    level_probability: float = 0.0
    level_db: tuple[float, float] = (-20.0, 0.0)
    same_source_probability: float = 0.75

    def __post_init__(self):
        for name, minimum in (("num_identities", 2), ("num_observations", 2), ("num_sources", 1)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {minimum}")
        if self.num_samples < 1:
            raise ValueError(f"seconds={self.seconds}: must be positive")
        if self.supervision not in ("utterance", "speaker"):
            raise ValueError(f'supervision={self.supervision!r}: must be "utterance" or "speaker"')
        for name, (lowest, highest) in (
            ("sir_db", DB_LIMITS),
            ("noise_snr_db", DB_LIMITS),
            ("speed_range", SPEED_LIMITS),
            ("reverb_seconds", REVERB_LIMITS),
            ("level_db", DB_LIMITS),
        ):
            value = tuple(getattr(self, name))  # YAML and JSON give lists
            if len(value) != 2 or not lowest <= value[0] <= value[1] <= highest:
                raise ValueError(
                    f"{name}={value}: must be (low, high), with low <= high, both between {lowest} and {highest}"
                )
            object.__setattr__(self, name, value)
        for name in (field.name for field in fields(self) if field.name.endswith("_probability")):
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
    """What drawing must know of a recording, of which only a part may be at hand.

    Its id, the length of that part in samples, who speaks, where it comes from, and the sample of the recording at
    which the part begins.
    """

    id: str
    num_samples: int
    speaker: str | None = None
    source: str | None = None
    start: int = 0


@dataclass(frozen=True)
class Piece:
    """What samples position..position + length of a mixture hold: an utterance (or noise) from its sample `start` on.

    At a speed other than 1, this is more or less than `length` samples of the recording.
    """

    utterance: str
    start: int
    length: int
    position: int


@dataclass(frozen=True)
class SourceRecipe:
    """One speaker of a mixture: its identity 0..N-1 in the group, its audio, and the level of the target over it.

    The target itself has `sir_db` None: it keeps the level that it was recorded at. `speed` is the factor of tempo and
    pitch, in steps of 0.01. `room` is where it is heard: a simulated room, the id of a recorded impulse response, or
    None for the recording as it is.
    """

    identity: int
    pieces: tuple[Piece, ...]
    sir_db: float | None
    speed: float = 1.0
    room: SimulatedRoom | str | None = None


@dataclass(frozen=True)
class GeneratedNoise:
    """Generated noise: the seed of its samples, its tilt (see NOISE_TILT), the level of the speech over it."""

    seed: int
    tilt: float
    snr_db: float


@dataclass(frozen=True)
class RecordedNoise:
    """Noise from data: a part of one recording, or all of it again and again; the level of the speech over it."""

    pieces: tuple[Piece, ...]
    snr_db: float


@dataclass(frozen=True)
class MixtureRecipe:
    """A mixture of T = `num_samples` samples and C = `num_sources` slots: 1..C sources, the target first; noise; gain.

    `gain_db` is the gain of the whole mixture, sources and noise.
    """

    num_samples: int
    num_sources: int
    sources: tuple[SourceRecipe, ...]
    noise: GeneratedNoise | RecordedNoise | None
    gain_db: float = 0.0

    @property
    def recording_ids(self) -> set[str]:
        """Ids of all the audio that the recipe names: utterances, noise, impulse responses."""
        pieces = list(itertools.chain(*(source.pieces for source in self.sources)))
        if isinstance(self.noise, RecordedNoise):
            pieces += self.noise.pieces
        rooms = {source.room for source in self.sources if isinstance(source.room, str)}
        return rooms | {piece.utterance for piece in pieces}

    def to_dict(self) -> dict:
        """The recipe as JSON has it; `from_dict` gives an equal recipe back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping) -> "MixtureRecipe":
        """The recipe that `to_dict` was called on, also after a passage through JSON."""

        def pieces_of(part: Mapping) -> tuple[Piece, ...]:
            return tuple(Piece(**piece) for piece in part["pieces"])

        sources = []
        for source in values["sources"]:
            room = source["room"]
            if isinstance(room, Mapping):  # JSON has made lists of its tuples
                room = SimulatedRoom(**{k: tuple(v) if isinstance(v, list) else v for k, v in room.items()})
            sources.append(SourceRecipe(**{**source, "pieces": pieces_of(source), "room": room}))
        noise = values["noise"]
        if noise is not None:
            is_recorded = "pieces" in noise
            noise = RecordedNoise(pieces_of(noise), noise["snr_db"]) if is_recorded else GeneratedNoise(**noise)
        return cls(**{**values, "sources": tuple(sources), "noise": noise})


def draw_group(
    clips: Sequence[Clip],
    config: MixingConfig,
    seed: int,
    epoch: int,
    index: int,
    num_parallel: int = 1,
    noise: Sequence[Clip] = (),
    impulse_responses: Sequence[str] = (),
) -> list[MixtureRecipe]:
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

    Several groups in one step: with `num_parallel` processes, the contrast runs over a group of each. What is alike
    within a group must then be alike in all of them, or an identity of another group is told apart by the number of
    speakers or by the channel, and not by its voice. So how many speak in each observation, whether the groups come
    from one source, and the number in 0..1 that chooses the source are drawn once a step, from (seed, index //
    num_parallel). Processes whose clips have the same sources in the same shares choose the same source. Everything
    else is drawn from (seed, epoch, index).

    Args:
        clips: the audio at hand, ids unique.
        index: number of the group, over all epochs and processes.
        num_parallel: how many groups, with consecutive indices, make one training step.
        noise: the recorded noise at hand.
        impulse_responses: ids of the recorded impulse responses at hand.

    Returns:
        N * U recipes; number n * U + u has identity n as its target.

    Raises:
        ValueError: fewer than N identities.
    """
    shared = np.random.default_rng([seed, index // num_parallel, 0, 1])  # the last number keeps it apart from `rng`
    one_source, which_source = shared.random() < config.same_source_probability, shared.random()
    shifts = []  # of each observation: where its interferers stand, in the order of the identities
    for of_observation in _shifts(config.num_observations, config.num_sources):
        alone = shared.random() < config.single_speaker_probability or not of_observation
        shifts.append(of_observation[: 0 if alone else shared.integers(1, config.num_sources)])

    members = []  # of each mixture: its target, then its interferers
    for target, observation in itertools.product(range(config.num_identities), range(config.num_observations)):
        members.append([target, *((target + shift) % config.num_identities for shift in shifts[observation])])
    fills = np.bincount(list(itertools.chain(*members)), minlength=config.num_identities)

    rng = np.random.default_rng([seed, epoch, index])
    chosen = _choose_identities(clips, config, which_source if one_source else None, rng)
    speeds = [_draw_speed(config, rng) for _ in chosen]
    crops = [
        iter(_cut_crops(of_identity, speed, num_crops, config.num_samples, rng))
        for of_identity, speed, num_crops in zip(chosen, speeds, fills, strict=True)
    ]
    recipes = []
    for identities in members:
        rooms = _draw_rooms(len(identities), config, seed, impulse_responses, rng)
        sources = []
        for n, room in zip(identities, rooms, strict=True):
            sir_db = rng.uniform(*config.sir_db) if sources else None
            sources.append(SourceRecipe(n, next(crops[n]), sir_db, speeds[n], room))
        gain_db = rng.uniform(*config.level_db) if rng.random() < config.level_probability else 0.0
        recipes.append(
            MixtureRecipe(
                config.num_samples, config.num_sources, tuple(sources), _draw_noise(noise, config, rng), gain_db
            )
        )
    return recipes


def mix(
    recipe: MixtureRecipe, waveforms: Mapping[str, np.ndarray], starts: Mapping[str, int] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Build the mixture of a recipe.

    Sources are brought to speed, put into their room, and then to their level: what the recipe says of levels is true
    of what is returned. A silent crop (SILENCE_POWER) has no level to set: where the target or the interferer is
    silent, the interferer keeps the level that it was recorded at; where all the speech is silent, no noise is added.

    Args:
        recipe: what to mix.
        waveforms: float32 array (T',) of every recording that the recipe names (`recording_ids`), by id.
        starts: by id, the sample of the recording at which its waveform begins, if not at 0.

    Returns:
        mixture (T,), sources (C, T) with the target first and zeros in empty slots, noise (T,); float32, and
        mixture == sources.sum(0) + noise. Sources are reverberant where the recipe has rooms.

    Raises:
        ValueError: a recording is missing, shorter than the recipe says, or not finite; an impulse response is silent.
        ImportError: the recipe has rooms, and pyroomacoustics or SciPy cannot be imported.
        RuntimeError: the recipe changes the speed, and torchaudio cannot be imported.
    """
    starts = starts or {}
    sources = np.zeros((recipe.num_sources, recipe.num_samples), dtype=np.float32)
    for slot, source in enumerate(recipe.sources):
        for piece in source.pieces:
            sources[slot, piece.position : piece.position + piece.length] = _take(
                piece, source.speed, waveforms, starts
            )
        if source.room is not None:
            sources[slot] = reverberate(sources[slot], _response(source.room, waveforms))
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

    gain = np.float32(10 ** (recipe.gain_db / 20))
    sources *= gain
    noise *= gain
    return sources.sum(axis=0) + noise, sources, noise


def rebuild(recipe: MixtureRecipe | Mapping, recordings: Iterable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Build a mixture again from the data itself, to look into it.

    >>> rows = itertools.chain(speech.rows(), noise.rows())  # of `stream_utterances`
    >>> mixture, sources, noise = rebuild(json.loads(line), rows)

    Args:
        recipe: a recipe, or what its `to_dict` gave.
        recordings: the data, searched in order until all is found. Each has an `id`, and a `decode()` that gives an
            object with its whole `waveform`, as `csc_hf.data.utterances.Row` has. Only what the recipe names is decoded.

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


def _choose_identities(
    clips: Sequence[Clip], config: MixingConfig, which_source: float | None, rng: np.random.Generator
) -> list[list[Clip]]:
    """The clips of N identities, in random order; of one source that the number 0..1 chooses, or of all (None)."""
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
    names = [name for name in sorted(by_source, key=str) if len(by_source[name]) >= config.num_identities]
    if names and which_source is not None:
        shares = np.cumsum([len(by_source[name]) for name in names])
        candidates = by_source[names[np.searchsorted(shares, which_source * shares[-1], side="right")]]
    candidates = list(candidates.values())
    return [candidates[i] for i in rng.choice(len(candidates), config.num_identities, replace=False)]


def _draw_speed(config: MixingConfig, rng: np.random.Generator) -> float:
    if rng.random() >= config.speed_probability:
        return 1.0
    low, high = (round(100 * limit) for limit in config.speed_range)
    return int(rng.integers(low, high + 1)) / 100


def _cut_crops(
    clips: Sequence[Clip], speed: float, num_crops: int, num_samples: int, rng: np.random.Generator
) -> list[tuple[Piece, ...]]:
    """Cut `num_crops` crops of `num_samples` samples, at their speed, from the clips of one identity.

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
    """Samples of a recording that give `length` samples at a speed: the product, rounded up."""
    return -(-length * round(100 * speed) // 100)


def _draw_rooms(
    num_talkers: int,
    config: MixingConfig,
    seed: int,
    impulse_responses: Sequence[str],
    rng: np.random.Generator,
) -> list[SimulatedRoom | str | None]:
    """Where the talkers of a mixture are heard."""
    if rng.random() >= config.reverb_probability:
        return [None] * num_talkers
    if impulse_responses:
        return [impulse_responses[i] for i in rng.integers(len(impulse_responses), size=num_talkers)]
    room, first = int(rng.integers(NUM_ROOMS)), int(rng.integers(NUM_POSITIONS))
    positions = ((first + talker) % NUM_POSITIONS for talker in range(num_talkers))
    return [draw_room(seed, room, position, config.reverb_seconds) for position in positions]


def _draw_noise(
    clips: Sequence[Clip], config: MixingConfig, rng: np.random.Generator
) -> GeneratedNoise | RecordedNoise | None:
    if rng.random() >= config.noise_probability:
        return None
    snr_db = rng.uniform(*config.noise_snr_db)
    if not clips or rng.random() >= config.recorded_noise_probability:
        return GeneratedNoise(int(rng.integers(2**63)), rng.uniform(*NOISE_TILT), snr_db)
    clip = clips[rng.integers(len(clips))]
    start = clip.start + int(rng.integers(max(clip.num_samples - config.num_samples, 0) + 1))
    positions = range(0, config.num_samples, clip.num_samples)  # a short clip is repeated
    return RecordedNoise(
        tuple(Piece(clip.id, start, min(clip.num_samples, config.num_samples - p), p) for p in positions), snr_db
    )


def _take(piece: Piece, speed: float, waveforms: Mapping[str, np.ndarray], starts: Mapping[str, int]) -> np.ndarray:
    """The samples of a piece, at its speed."""
    waveform = _find(piece.utterance, waveforms)
    begin = piece.start - starts.get(piece.utterance, 0)
    end = begin + _recorded_length(piece.length, speed)
    samples = waveform[max(begin, 0) : end]
    if len(samples) != end - begin or not np.isfinite(samples).all():
        raise ValueError(
            f"recording {piece.utterance!r}: samples {piece.start} to {piece.start + end - begin} are missing or not "
            "finite, give the audio that the recipe was drawn for"
        )
    if speed == 1.0:
        return samples
    return resample(samples, round(100 * speed) * SAMPLING_RATE // 100, SAMPLING_RATE)[: piece.length]


def _find(name: str, waveforms: Mapping[str, np.ndarray]) -> np.ndarray:
    if name not in waveforms:
        raise ValueError(f"the recipe needs recording {name!r}, which is not among the waveforms: add it")
    return waveforms[name]


def _response(room: SimulatedRoom | str, waveforms: Mapping[str, np.ndarray]) -> np.ndarray:
    return simulate(room) if isinstance(room, SimulatedRoom) else align_response(_find(room, waveforms), room)


def _gain(reference: np.ndarray, samples: np.ndarray, ratio_db: float) -> np.float32:
    """Factor that puts `samples` `ratio_db` below the reference; 1 if one of them is silent."""
    of_reference, of_samples = power(reference), power(samples)
    if min(of_reference, of_samples) < SILENCE_POWER:
        return np.float32(1)
    return np.float32(np.sqrt(of_reference / of_samples * 10 ** (-ratio_db / 10)))


def _coloured_noise(num_samples: int, recipe: GeneratedNoise) -> np.ndarray:
    """Gaussian noise of shape (num_samples,) with a tilted spectrum (flat below 50 Hz), float32, of power about 1."""
    spectrum = np.fft.rfft(np.random.default_rng(recipe.seed).standard_normal(num_samples))
    weights = np.maximum(np.fft.rfftfreq(num_samples, 1 / SAMPLING_RATE), 50.0) ** (-recipe.tilt / 2)
    weights /= np.sqrt(np.mean(np.square(weights)))
    return np.fft.irfft(spectrum * weights, num_samples).astype(np.float32)
