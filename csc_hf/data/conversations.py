# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Draw conversations from single-speaker utterances, to train and evaluate diarization: pure functions.

A conversation is a mixture whose sources take turns. So it is a `MixtureRecipe` in which each speaker is a source and
each turn is a piece of it: `csc_hf.data.mixing.mix` makes its audio, and its pieces say who speaks when. Like the
simulated conversations of EEND (Fujita et al. 2019, arXiv 1909.05952), they have pauses and overlaps between turns.

>>> recipe = draw_conversation(clips, ConversationConfig(), seed=0, index=0)
>>> waveform, sources, noise = mix(recipe, waveforms)  # (samples,), (speakers, samples), (samples,)
>>> active = activity(recipe)  # (speakers, samples)
>>> spoken = speech_activity(recipe, waveforms)  # (speakers, frames): without the silence in the recordings
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..audio import SAMPLING_RATE
from .augmentation import Effect, find_recording
from .mixing import (
    NOISE_TILT,
    Clip,
    GeneratedNoise,
    MixtureRecipe,
    Piece,
    RecordedNoise,
    SourceRecipe,
    draw_recorded_noise,
)
from .rooms import NUM_POSITIONS, NUM_ROOMS, REVERB_LIMITS, draw_room

SPEECH_FRAME = 160
"""Samples of a frame of `speech_activity`: 10 ms."""

SPEECH_RANGE_DB = 30.0
"""Frames that are further below the loud ones of their piece hold no speech."""

SPEECH_ABOVE_NOISE_DB = 10.0
"""Neither do those that are less above the quiet ones of their piece, unless they are loud."""

LONGEST_PAUSE = 0.3
"""Seconds. A shorter silence between words belongs to the speech around it."""


@dataclass(frozen=True)
class ConversationConfig:
    """How conversations are drawn. Intervals are (low, high); what is drawn is uniform in them.

    Attributes:
        seconds: length of a conversation.
        num_speakers: speakers of a conversation; every recipe has the higher number of slots.
        turn_seconds: length of a turn. It is shorter if its utterance is, and at the end of the conversation.
        pause_seconds: silence before a turn that does not overlap.
        overlap_probability: probability that a turn begins before the previous speech ends.
        overlap_ratio: share of the speech, in time, in which several speak. If it is set, a turn overlaps as long as
            the share is lower, whatever the `overlap_probability`.
        overlap_seconds: length of the overlap. It is shorter if the speaker's own last turn has not ended.
        join_utterances: whether a turn that is longer than its utterance goes on with the speaker's next one. Then an
            utterance goes on where it was left, and none is heard again before the speaker's others have been.
        level_db: level of the first speaker relative to each other speaker, while they speak.
        noise_probability: probability that noise is added. It is generated, unless there are recordings of noise.
        noise_snr_db: level of all the speech, pauses included, relative to the noise.
        reverb_probability: probability that the conversation is in a simulated room, each speaker at a place there.
        reverb_seconds: reverberation time (RT60) of the room.
    """

    seconds: float = 10.0
    num_speakers: tuple[int, int] = (2, 2)
    turn_seconds: tuple[float, float] = (0.5, 4.0)
    pause_seconds: tuple[float, float] = (0.0, 1.0)
    overlap_probability: float = 0.4
    overlap_ratio: float | None = None
    overlap_seconds: tuple[float, float] = (0.2, 2.0)
    join_utterances: bool = False
    level_db: tuple[float, float] = (-5.0, 5.0)
    noise_probability: float = 0.5
    noise_snr_db: tuple[float, float] = (5.0, 25.0)
    reverb_probability: float = 0.0
    reverb_seconds: tuple[float, float] = (0.2, 0.6)

    def __post_init__(self):
        if self.num_samples < 1:
            raise ValueError(f"seconds={self.seconds}: must be positive")
        for name, lowest in (
            ("num_speakers", 2),
            ("turn_seconds", 1 / SAMPLING_RATE),
            ("pause_seconds", 0),
            ("overlap_seconds", 0),
            ("level_db", -np.inf),
            ("noise_snr_db", -np.inf),
            ("reverb_seconds", REVERB_LIMITS[0]),
        ):
            low, high = getattr(self, name)
            if not lowest <= low <= high:
                raise ValueError(f"{name}={(low, high)}: must be (low, high), with {lowest:g} <= low <= high")
        if self.pause_seconds[1] >= self.seconds:
            raise ValueError(f"pause_seconds={self.pause_seconds}: must end below seconds={self.seconds}")
        if self.reverb_seconds[1] > REVERB_LIMITS[1]:
            raise ValueError(f"reverb_seconds={self.reverb_seconds}: must end at {REVERB_LIMITS[1]} or before")
        if self.reverb_probability > 0 and self.num_speakers[1] > NUM_POSITIONS:
            raise ValueError(f"num_speakers={self.num_speakers}: a room has places for {NUM_POSITIONS}")
        for name in ("overlap_probability", "overlap_ratio", "noise_probability", "reverb_probability"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: must be between 0 and 1")

    @property
    def num_samples(self) -> int:
        """Samples of a conversation."""
        return round(self.seconds * SAMPLING_RATE)


def draw_conversation(
    clips: Sequence[Clip], config: ConversationConfig, seed: int, index: int, noise: Sequence[Clip] = ()
) -> MixtureRecipe:
    """Draw a conversation, a pure function of its arguments.

    Its speakers come from one source (corpus, channel) if that has enough of them, so that they cannot be told apart
    by their channel. At first each speaks once, in random order; then anybody but the last speaker. Turns of one
    speaker do not overlap. Of an utterance that is longer than its turn, a random part is taken.

    Args:
        clips: the utterances at hand, with their speakers.
        seed: drawn from (seed, index).
        index: number of the conversation.
        noise: recordings of noise. A short one is repeated.

    Returns:
        A recipe with one source per speaker; fewer if the conversation ends before all had a turn.

    Raises:
        ValueError: there are fewer speakers than slots, or a clip has no speaker.
    """
    rng = np.random.default_rng([seed, index])
    speakers = _choose_speakers(clips, config.num_speakers, rng)
    tapes = [_Tape(clips_of, rng) for clips_of in speakers] if config.join_utterances else []
    turns: list[list[Piece]] = [[] for _ in speakers]
    num_speaking = np.zeros(-(-config.num_samples // SPEECH_FRAME), int)
    latest_end, last, number = 0, None, 0
    while True:
        speaker = number if number < len(speakers) else rng.choice([n for n in range(len(speakers)) if n != last])
        own_end = turns[speaker][-1].position + turns[speaker][-1].length if turns[speaker] else 0
        if number and _overlaps(config, num_speaking, rng):
            position = max(latest_end - _samples(config.overlap_seconds, rng), own_end)
        else:
            position = latest_end + _samples(config.pause_seconds, rng)
        if position >= config.num_samples:
            break
        if config.join_utterances:
            length = min(_samples(config.turn_seconds, rng), config.num_samples - position)
            turns[speaker] += tapes[speaker].cut(length, position)
        else:
            clip = speakers[speaker][rng.integers(len(speakers[speaker]))]
            length = min(_samples(config.turn_seconds, rng), clip.num_samples)
            start = clip.start + int(rng.integers(clip.num_samples - length + 1))
            length = min(length, config.num_samples - position)
            turns[speaker].append(Piece(clip.id, start, length, position))
        num_speaking[position // SPEECH_FRAME : (position + length) // SPEECH_FRAME] += 1
        latest_end, last, number = max(latest_end, position + length), speaker, number + 1

    turns = [pieces for pieces in turns if pieces]
    spoken = [sum(piece.length for piece in pieces) for pieces in turns]
    levels: list[float | None] = [None]
    for n in range(1, len(turns)):
        # The level in a recipe is over the whole mixture, ours is over the time while they speak.
        levels.append(float(rng.uniform(*config.level_db) + 10 * np.log10(spoken[0] / spoken[n])))
    background = _draw_noise(config, noise, rng) if rng.random() < config.noise_probability else None
    rooms: list[tuple[Effect, ...]] = [()] * len(turns)
    if config.reverb_probability and rng.random() < config.reverb_probability:
        room = int(rng.integers(NUM_ROOMS))
        rooms = [(draw_room(seed, room, place, config.reverb_seconds),) for place in range(len(turns))]
    sources = [
        SourceRecipe(n, tuple(pieces), level, effects=effects)
        for n, (pieces, level, effects) in enumerate(zip(turns, levels, rooms, strict=True))
    ]
    return MixtureRecipe(config.num_samples, config.num_speakers[1], tuple(sources), background)


def activity(recipe: MixtureRecipe) -> np.ndarray:
    """Who speaks when: bool (slots, samples), true in the pieces of each source, pauses inside them included."""
    active = np.zeros((recipe.num_sources, recipe.num_samples), dtype=bool)
    for slot, source in enumerate(recipe.sources):
        for piece in source.pieces:
            active[slot, piece.position : piece.position + piece.length] = True
    return active


def speech_activity(recipe: MixtureRecipe, waveforms: Mapping[str, np.ndarray]) -> np.ndarray:
    """Who speaks when, by the levels of their own recordings: bool (slots, frames), `SPEECH_FRAME` samples a frame.

    Recordings begin and end with silence, which `activity` counts as speech and this does not. Pauses of less than
    `LONGEST_PAUSE` between two words of a turn count as speech. Rooms and noise change nothing.

    Args:
        recipe: without changes of speed.
        waveforms: the audio that the recipe names, by id, each from its first sample on.
    """
    active = np.zeros((recipe.num_sources, -(-recipe.num_samples // SPEECH_FRAME)), dtype=bool)
    for slot, source in enumerate(recipe.sources):
        for piece in source.pieces:
            samples = find_recording(piece.utterance, waveforms)[piece.start : piece.start + piece.length]
            frames = np.pad(samples, (0, -len(samples) % SPEECH_FRAME)).reshape(-1, SPEECH_FRAME)
            level = 10 * np.log10(np.square(frames, dtype=np.float64).mean(axis=1) + 1e-12)
            quiet, loud = np.percentile(level, (5, 95))
            floor = max(loud - SPEECH_RANGE_DB, min(quiet + SPEECH_ABOVE_NOISE_DB, loud - SPEECH_RANGE_DB / 2))
            first = round(piece.position / SPEECH_FRAME)
            speech = (level > floor)[: active.shape[1] - first]
            active[slot, first : first + len(speech)] |= speech
    return np.stack([fill_pauses(row, round(LONGEST_PAUSE * SAMPLING_RATE / SPEECH_FRAME)) for row in active])


def fill_pauses(active: np.ndarray, longest: int) -> np.ndarray:
    """Activity (frames,) with the pauses of fewer than `longest` frames between active ones made active."""
    edges = np.flatnonzero(np.diff(active.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    filled = active.copy()
    for (_, end), (begin, _) in itertools.pairwise(edges):
        if begin - end < longest:
            filled[end:begin] = True
    return filled


def segment_labels(active: np.ndarray, centres: Sequence[int]) -> np.ndarray:
    """Activity at a model's segment rate, as labels of `CSCForAudioFrameClassification`.

    Args:
        active: (slots, samples), from `activity`.
        centres: sample at the centre of each segment, `model.config.segment_centres(samples)`.

    Returns:
        float32 (segments, slots): who speaks at the centre of each segment, or in the last sample if the centre lies
        after the end.
    """
    return active[:, np.minimum(centres, active.shape[1] - 1)].T.astype(np.float32)


def _choose_speakers(
    clips: Sequence[Clip], num_speakers: tuple[int, int], rng: np.random.Generator
) -> list[list[Clip]]:
    """The clips of each speaker of one conversation, the speakers in random order."""
    everybody = _by_speaker(clips)
    if len(everybody) < num_speakers[1]:
        raise ValueError(
            f"num_speakers={num_speakers} needs {num_speakers[1]} speakers, and the {len(clips)} utterances at hand "
            f"have {len(everybody)}: add data, or lower it"
        )
    number = int(rng.integers(num_speakers[0], num_speakers[1] + 1))
    of_anybody = everybody[sorted(everybody)[rng.integers(len(everybody))]]
    source = of_anybody[rng.integers(len(of_anybody))].source
    candidates = _by_speaker([clip for clip in clips if clip.source == source])
    if len(candidates) < number:
        candidates = everybody
    return [candidates[speaker] for speaker in rng.choice(sorted(candidates), number, replace=False)]


def _by_speaker(clips: Sequence[Clip]) -> dict[str, list[Clip]]:
    clips_of = defaultdict(list)
    for clip in clips:
        if clip.speaker is None:
            raise ValueError(f"utterance {clip.id!r} has no speaker: conversations need one for each")
        clips_of[clip.speaker].append(clip)
    return clips_of


class _Tape:
    """The recordings of a speaker one behind the other, in random order, without end."""

    def __init__(self, clips: Sequence[Clip], rng: np.random.Generator):
        self._clips = itertools.chain.from_iterable(
            [clips[n] for n in rng.permutation(len(clips))] for _ in itertools.count()
        )
        self._clip, self._used = next(self._clips), 0

    def cut(self, length: int, position: int) -> Iterator[Piece]:
        """The next `length` samples, as pieces of a mixture from `position` on."""
        while length > 0:
            if self._used == self._clip.num_samples:
                self._clip, self._used = next(self._clips), 0
            taken = min(length, self._clip.num_samples - self._used)
            yield Piece(self._clip.id, self._clip.start + self._used, taken, position)
            self._used, position, length = self._used + taken, position + taken, length - taken


def _overlaps(config: ConversationConfig, speakers: np.ndarray, rng: np.random.Generator) -> bool:
    """Whether the next turn begins before the previous speech ends, after frames with so many speakers."""
    if config.overlap_ratio is None:
        return rng.random() < config.overlap_probability
    return bool((speakers > 1).sum() < config.overlap_ratio * (speakers > 0).sum())


def _draw_noise(
    config: ConversationConfig, clips: Sequence[Clip], rng: np.random.Generator
) -> GeneratedNoise | RecordedNoise:
    if clips:
        return draw_recorded_noise(clips, config.num_samples, rng.uniform(*config.noise_snr_db), rng)
    return GeneratedNoise(int(rng.integers(2**63)), rng.uniform(*NOISE_TILT), rng.uniform(*config.noise_snr_db))


def _samples(seconds: tuple[float, float], rng: np.random.Generator) -> int:
    """A number of samples, drawn from an interval in seconds."""
    return round(rng.uniform(*seconds) * SAMPLING_RATE)
