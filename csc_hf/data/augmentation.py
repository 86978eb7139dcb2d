# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Augmentations of mixtures: what is drawn, with which settings, and what it does to a waveform.

To add an augmentation, such as a spectral tilt of each source, edit this file only:

1. write its effect: a frozen dataclass of numbers, strings and tuples, with `recordings` and `apply` (see `Effect`);
2. write a function that draws it (see `Augmentation`);
3. give it fields in `AugmentationConfig`, among them a probability of 0 by default;
4. put it into the list AUGMENTATIONS.

Drawing, mixing, recipes in JSON, the check of settings and the options of the training script follow from these.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

import numpy as np

from ..audio import SAMPLING_RATE
from .rooms import (
    NUM_POSITIONS,
    NUM_ROOMS,
    REVERB_LIMITS,
    SimulatedRoom,
    align_response,
    draw_room,
    reverberate,
)

DB_LIMITS = (-100.0, 100.0)
"""Levels, in dB, that settings can have."""

CHANNEL_FREQUENCIES = (100.0, 200.0, 400.0, 800.0, 1600.0, 3200.0, 6400.0)
"""Where the gains of a channel are drawn, in Hz."""


# --- settings --------------------------------------------------------------------------------------------------------


def probability(default: float) -> Any:
    """A field that holds a probability."""
    return field(default=default, metadata={"probability": True})


def interval(low: float, high: float, limits: tuple[float, float]) -> Any:
    """A field that holds an interval (low, high) within limits, to draw uniformly from."""
    return field(default=(low, high), metadata={"limits": limits})


def check_fields(config: Any) -> None:
    """Check the probabilities and intervals of a frozen dataclass, and make tuples of the lists that YAML and JSON
    give. Raises ValueError."""
    for item in fields(config):
        value = getattr(config, item.name)
        if "probability" in item.metadata and not 0 <= value <= 1:
            raise ValueError(f"{item.name}={value}: must be between 0 and 1")
        if "limits" in item.metadata:
            lowest, highest = item.metadata["limits"]
            if len(value) != 2 or not lowest <= value[0] <= value[1] <= highest:
                raise ValueError(
                    f"{item.name}={tuple(value)}: must be (low, high), with low <= high, both between {lowest} and "
                    f"{highest}"
                )
            object.__setattr__(config, item.name, tuple(value))


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Settings of AUGMENTATIONS. Intervals are (low, high); what is drawn is uniform in them.

    Attributes:
        reverb_probability: probability that a mixture is heard in a room. If there are recorded impulse responses,
            each source draws one of them. Else all talkers are in one simulated room.
        reverb_seconds: reverberation time (RT60) of simulated rooms.
        level_probability: probability that the level of a whole mixture, sources and noise, is changed.
        level_db: the change of level.
        channel_probability: probability that a mixture, sources and noise, is heard through a channel of its own, as
            through another microphone. Without it, mixtures of one recording can be told by its channel.
        channel_db: its gain at each of CHANNEL_FREQUENCIES.
    """

    reverb_probability: float = probability(0.0)
    reverb_seconds: tuple[float, float] = interval(0.1, 0.5, REVERB_LIMITS)
    level_probability: float = probability(0.0)
    level_db: tuple[float, float] = interval(-20.0, 0.0, DB_LIMITS)
    channel_probability: float = probability(0.0)
    channel_db: tuple[float, float] = interval(-8.0, 8.0, DB_LIMITS)


# --- effects ---------------------------------------------------------------------------------------------------------


class Effect(Protocol):
    """A change of a waveform. All that it depends on is in its fields and in recordings that it names."""

    @property
    def recordings(self) -> tuple[str, ...]:
        """Ids of the recordings that `apply` needs."""

    def apply(self, waveform: np.ndarray, waveforms: Mapping[str, np.ndarray]) -> np.ndarray:
        """Change a waveform: float32 (samples,) to float32 (samples,). `waveforms` holds recordings by id."""


@dataclass(frozen=True)
class RecordedRoom:
    """The room of a recorded impulse response, named by its id."""

    recording: str

    @property
    def recordings(self) -> tuple[str, ...]:
        return (self.recording,)

    def apply(self, waveform: np.ndarray, waveforms: Mapping[str, np.ndarray]) -> np.ndarray:
        return reverberate(waveform, align_response(find_recording(self.recording, waveforms), self.recording))


@dataclass(frozen=True)
class Gain:
    """Another level."""

    db: float

    @property
    def recordings(self) -> tuple[str, ...]:
        return ()

    def apply(self, waveform: np.ndarray, waveforms: Mapping[str, np.ndarray]) -> np.ndarray:
        return waveform * np.float32(10 ** (self.db / 20))


@dataclass(frozen=True)
class Channel:
    """A filter without delay, with a gain at each of CHANNEL_FREQUENCIES. Between them, the gain in dB is linear in
    the logarithm of frequency; outside, it is that of the nearest one."""

    db: tuple[float, ...]

    @property
    def recordings(self) -> tuple[str, ...]:
        return ()

    def apply(self, waveform: np.ndarray, waveforms: Mapping[str, np.ndarray]) -> np.ndarray:
        num_samples = len(waveform)
        frequencies = np.fft.rfftfreq(num_samples, 1 / SAMPLING_RATE).clip(CHANNEL_FREQUENCIES[0])
        gains = 10 ** (np.interp(np.log(frequencies), np.log(CHANNEL_FREQUENCIES), self.db) / 20)
        return np.fft.irfft(np.fft.rfft(waveform) * gains, num_samples).astype(np.float32)


def find_recording(name: str, waveforms: Mapping[str, np.ndarray]) -> np.ndarray:
    """A recording by its id. Raises ValueError if it is missing."""
    if name not in waveforms:
        raise ValueError(f"the recipe needs recording {name!r}, which is not among the waveforms: add it")
    return waveforms[name]


# --- drawing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawing:
    """What the effects of a mixture are drawn from: settings, random numbers, the seed of the run, and the ids of the
    recorded impulse responses at hand."""

    config: AugmentationConfig
    rng: np.random.Generator
    seed: int = 0
    impulse_responses: Sequence[str] = ()


def draw_rooms(count: int, drawing: Drawing) -> Sequence[Effect | None]:
    """Where each of `count` talkers is heard."""
    config, rng = drawing.config, drawing.rng
    if rng.random() >= config.reverb_probability:
        return [None] * count
    if drawing.impulse_responses:
        chosen = rng.integers(len(drawing.impulse_responses), size=count)
        return [RecordedRoom(drawing.impulse_responses[i]) for i in chosen]
    room, first = int(rng.integers(NUM_ROOMS)), int(rng.integers(NUM_POSITIONS))
    positions = ((first + talker) % NUM_POSITIONS for talker in range(count))
    return [draw_room(drawing.seed, room, position, config.reverb_seconds) for position in positions]


def draw_level(count: int, drawing: Drawing) -> Sequence[Effect | None]:
    """The level of a mixture."""
    config, rng = drawing.config, drawing.rng
    return [Gain(rng.uniform(*config.level_db)) if rng.random() < config.level_probability else None] * count


def draw_channel(count: int, drawing: Drawing) -> Sequence[Effect | None]:
    """The channel of a mixture."""
    config, rng = drawing.config, drawing.rng
    if not config.channel_probability or rng.random() >= config.channel_probability:
        return [None] * count
    return [Channel(tuple(rng.uniform(*config.channel_db, size=len(CHANNEL_FREQUENCIES)).tolist()))] * count


@dataclass(frozen=True)
class Augmentation:
    """An entry of AUGMENTATIONS.

    Attributes:
        draw: function of (count, Drawing) that gives `count` effects, or None where there is none. If the probability
            is 0, it must not draw random numbers: then runs that do not use the augmentation stay as they were.
        effects: the classes of the effects that it gives.
        of_mixture: False: an effect for each source, applied before the sources are brought to their levels. True: one
            for the whole mixture, applied to all sources and the noise at the end.
    """

    draw: Callable[[int, Drawing], Sequence[Effect | None]]
    effects: tuple[type, ...]
    of_mixture: bool = False


AUGMENTATIONS = (
    Augmentation(draw_rooms, (SimulatedRoom, RecordedRoom)),
    Augmentation(draw_level, (Gain,), of_mixture=True),
    Augmentation(draw_channel, (Channel,), of_mixture=True),
)
"""All augmentations, in the order in which they are drawn and applied. (For the sake of old seeds, the first two draw
a number also if their probability is 0.)"""


def draw_effects(count: int, drawing: Drawing, of_mixture: bool) -> list[tuple[Effect, ...]]:
    """Draw the effects of each of `count` sources, or of one mixture."""
    drawn = [item.draw(count, drawing) for item in AUGMENTATIONS if item.of_mixture == of_mixture]
    return [tuple(effect for effect in effects if effect is not None) for effects in zip(*drawn, strict=True)]


def effect_to_dict(effect: Any) -> dict[str, Any]:
    """An effect as JSON can hold it."""
    return {"effect": type(effect).__name__, **asdict(effect)}


def effect_from_dict(values: Mapping[str, Any]) -> Effect:
    """The effect that `effect_to_dict` was given, also after JSON has made lists of its tuples."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    classes = {effect.__name__: effect for augmentation in AUGMENTATIONS for effect in augmentation.effects}
    return classes[values.pop("effect")](**values)
