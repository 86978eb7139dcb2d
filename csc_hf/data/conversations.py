# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Draw conversations from single-speaker utterances, to train and evaluate diarization: pure functions.

A conversation is a mixture whose sources take turns. So it is a `MixtureRecipe` in which each speaker is a source and
each turn is a piece of it: `csc_hf.data.mixing.mix` makes its audio, and its pieces say who speaks when. Like the
simulated conversations of EEND (Fujita et al. 2019, arXiv 1909.05952), they have pauses and overlaps between turns.

>>> recipe = draw_conversation(clips, ConversationConfig(), seed=0, index=0)
>>> waveform, sources, noise = mix(recipe, waveforms)  # (samples,), (speakers, samples), (samples,)
>>> active = activity(recipe)  # (speakers, samples)
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..audio import SAMPLING_RATE
from .mixing import NOISE_TILT, Clip, GeneratedNoise, MixtureRecipe, Piece, SourceRecipe


@dataclass(frozen=True)
class ConversationConfig:
    """How conversations are drawn. Intervals are (low, high); what is drawn is uniform in them.

    Attributes:
        seconds: length of a conversation.
        num_speakers: speakers of a conversation; every recipe has the higher number of slots.
        turn_seconds: length of a turn. It is shorter if its utterance is, and at the end of the conversation.
        pause_seconds: silence before a turn that does not overlap.
        overlap_probability: probability that a turn begins before the previous speech ends.
        overlap_seconds: length of the overlap. It is shorter if the speaker's own last turn has not ended.
        level_db: level of the first speaker relative to each other speaker, while they speak.
        noise_probability: probability that noise is added. The noise is generated.
        noise_snr_db: level of all the speech, pauses included, relative to the noise.
    """

    seconds: float = 10.0
    num_speakers: tuple[int, int] = (2, 2)
    turn_seconds: tuple[float, float] = (0.5, 4.0)
    pause_seconds: tuple[float, float] = (0.0, 1.0)
    overlap_probability: float = 0.4
    overlap_seconds: tuple[float, float] = (0.2, 2.0)
    level_db: tuple[float, float] = (-5.0, 5.0)
    noise_probability: float = 0.5
    noise_snr_db: tuple[float, float] = (5.0, 25.0)

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
        ):
            low, high = getattr(self, name)
            if not lowest <= low <= high:
                raise ValueError(f"{name}={(low, high)}: must be (low, high), with {lowest:g} <= low <= high")
        if self.pause_seconds[1] >= self.seconds:
            raise ValueError(f"pause_seconds={self.pause_seconds}: must end below seconds={self.seconds}")
        for name in ("overlap_probability", "noise_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be between 0 and 1")

    @property
    def num_samples(self) -> int:
        """Samples of a conversation."""
        return round(self.seconds * SAMPLING_RATE)


def draw_conversation(clips: Sequence[Clip], config: ConversationConfig, seed: int, index: int) -> MixtureRecipe:
    """Draw a conversation, a pure function of its arguments.

    Its speakers come from one source (corpus, channel) if that has enough of them, so that they cannot be told apart
    by their channel. At first each speaks once, in random order; then anybody but the last speaker. Turns of one
    speaker do not overlap. Of an utterance that is longer than its turn, a random part is taken.

    Args:
        clips: the utterances at hand, with their speakers.
        seed: drawn from (seed, index).
        index: number of the conversation.

    Returns:
        A recipe with one source per speaker; fewer if the conversation ends before all had a turn.

    Raises:
        ValueError: there are fewer speakers than slots, or a clip has no speaker.
    """
    rng = np.random.default_rng([seed, index])
    speakers = _choose_speakers(clips, config.num_speakers, rng)
    turns: list[list[Piece]] = [[] for _ in speakers]
    latest_end, last, number = 0, None, 0
    while True:
        speaker = number if number < len(speakers) else rng.choice([n for n in range(len(speakers)) if n != last])
        own_end = turns[speaker][-1].position + turns[speaker][-1].length if turns[speaker] else 0
        if number and rng.random() < config.overlap_probability:
            position = max(latest_end - _samples(config.overlap_seconds, rng), own_end)
        else:
            position = latest_end + _samples(config.pause_seconds, rng)
        if position >= config.num_samples:
            break
        clip = speakers[speaker][rng.integers(len(speakers[speaker]))]
        length = min(_samples(config.turn_seconds, rng), clip.num_samples)
        start = clip.start + int(rng.integers(clip.num_samples - length + 1))
        length = min(length, config.num_samples - position)
        turns[speaker].append(Piece(clip.id, start, length, position))
        latest_end, last, number = max(latest_end, position + length), speaker, number + 1

    turns = [pieces for pieces in turns if pieces]
    spoken = [sum(piece.length for piece in pieces) for pieces in turns]
    sources = [SourceRecipe(0, tuple(turns[0]), None)]
    for n in range(1, len(turns)):
        # The level in a recipe is over the whole mixture, ours is over the time while they speak.
        sir_db = rng.uniform(*config.level_db) + 10 * np.log10(spoken[0] / spoken[n])
        sources.append(SourceRecipe(n, tuple(turns[n]), float(sir_db)))
    noise = None
    if rng.random() < config.noise_probability:
        noise = GeneratedNoise(int(rng.integers(2**63)), rng.uniform(*NOISE_TILT), rng.uniform(*config.noise_snr_db))
    return MixtureRecipe(config.num_samples, config.num_speakers[1], tuple(sources), noise)


def activity(recipe: MixtureRecipe) -> np.ndarray:
    """Who speaks when: bool (slots, samples), true in the pieces of each source, pauses inside them included."""
    active = np.zeros((recipe.num_sources, recipe.num_samples), dtype=bool)
    for slot, source in enumerate(recipe.sources):
        for piece in source.pieces:
            active[slot, piece.position : piece.position + piece.length] = True
    return active


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


def _samples(seconds: tuple[float, float], rng: np.random.Generator) -> int:
    """A number of samples, drawn from an interval in seconds."""
    return round(rng.uniform(*seconds) * SAMPLING_RATE)
