# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Speech in rooms: draw a room, get its impulse response, convolve.

draw_room(seed, room, position, ...)  ->  SimulatedRoom
simulate(SimulatedRoom)               ->  response
align_response(recording)             ->  response
reverberate(waveform, response)       ->  waveform

Each seed has a bank of NUM_ROOMS simulated rooms with NUM_POSITIONS talkers each. Simulating a response takes longer
than all the rest of mixing, so responses are simulated when they are first needed, and cached.
"""

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..audio import SAMPLING_RATE

NUM_ROOMS = 64
NUM_POSITIONS = 8
REVERB_LIMITS = (0.1, 1.0)
"""Reverberation times (RT60), in seconds, that rooms can be simulated for."""

LEAD = 40
"""Samples of a response before the direct path (2.5 ms), for the ripples of a fractional delay."""

_SMALLEST, _LARGEST = (3.0, 3.0, 2.4), (9.0, 7.0, 3.5)  # metres
_MARGIN = 0.15  # nobody stands nearer to a wall than this share of the room's side
_MAX_ABSORPTION = 0.7  # Sabine's formula does not hold beyond it
_MAX_ORDER = 40  # reflections of an image source; the cost of a simulation grows with its cube


@dataclass(frozen=True)
class SimulatedRoom:
    """A talker and a microphone in a box-shaped room with equal walls: all that its impulse response depends on.

    Attributes:
        size: sides of the room (x, y, z), in metres.
        rt60: reverberation time by Sabine's formula: seconds until the sound has decayed by 60 dB.
        microphone: position (x, y, z), in metres.
        talker: position (x, y, z), in metres.
    """

    size: tuple[float, float, float]
    rt60: float
    microphone: tuple[float, float, float]
    talker: tuple[float, float, float]

    @property
    def recordings(self) -> tuple[str, ...]:
        return ()

    def apply(self, waveform: np.ndarray, waveforms: Mapping[str, np.ndarray]) -> np.ndarray:
        """What is heard of a waveform (samples,) in this room; see `csc_hf.data.augmentation.Effect`."""
        return reverberate(waveform, simulate(self))


def draw_room(seed: int, room: int, position: int, reverb_seconds: tuple[float, float]) -> SimulatedRoom:
    """Talker `position` (0..NUM_POSITIONS-1) in room `room` (0..NUM_ROOMS-1): a pure function of the arguments.

    The talkers of a room share its microphone. The reverberation time is uniform in `reverb_seconds`. Rooms that would
    need walls softer than possible for it are made smaller.
    """
    rng = np.random.default_rng([seed, room, 0, 2])  # the last number: other draws than those of `mixing`
    rt60 = rng.uniform(*reverb_seconds)
    size = rng.uniform(_SMALLEST, _LARGEST)
    surface = 2 * (size[0] * size[1] + size[0] * size[2] + size[1] * size[2])
    absorption = 0.161 * size.prod() / (surface * rt60)  # Sabine
    size *= min(1.0, _MAX_ABSORPTION / absorption)
    places = rng.uniform(_MARGIN, 1 - _MARGIN, (1 + NUM_POSITIONS, 3)) * size
    return SimulatedRoom(tuple(size.tolist()), rt60, tuple(places[0].tolist()), tuple(places[1 + position].tolist()))


@lru_cache(maxsize=NUM_ROOMS * NUM_POSITIONS)
def simulate(room: SimulatedRoom) -> np.ndarray:
    """The impulse response of a simulated room, by the image source method (pyroomacoustics).

    Returns:
        float32 array (at most LEAD + rt60 in samples,), of unit energy; the direct path arrives at sample LEAD.

    Raises:
        ImportError: pyroomacoustics cannot be imported.
    """
    with _train_extra():
        import pyroomacoustics

    # Each thread adds up its share of the reflections, so rounding depends on the number of threads.
    pyroomacoustics.constants.set("num_threads", 1)
    absorption, order = pyroomacoustics.inverse_sabine(room.rt60, room.size)
    box = pyroomacoustics.ShoeBox(
        room.size,
        fs=SAMPLING_RATE,
        materials=pyroomacoustics.Material(absorption),
        max_order=min(order, _MAX_ORDER),
    )
    box.add_source(room.talker)
    box.add_microphone(room.microphone)
    box.compute_rir()
    distance = np.linalg.norm(np.subtract(room.talker, room.microphone))
    filter_delay = pyroomacoustics.constants.get("frac_delay_length") // 2
    return _cut(box.rir[0][0], round(distance / box.c * SAMPLING_RATE) + filter_delay, room.rt60)


def align_response(response: np.ndarray, name: str) -> np.ndarray:
    """Cut a recorded impulse response (samples,) so that it can be used like a simulated one.

    Its strongest sample is taken for the direct path. The tail is cut off after REVERB_LIMITS[1] seconds. `name` is
    for error messages.

    Returns:
        float32 array (at most LEAD + REVERB_LIMITS[1] in samples,), of unit energy.

    Raises:
        ValueError: the response is empty, silent, or not finite.
    """
    if not np.isfinite(response).all() or not np.any(response):
        raise ValueError(f"impulse response {name!r} is empty, silent or not finite: leave it out of the data")
    return _cut(response, int(np.argmax(np.abs(response))), REVERB_LIMITS[1])


def reverberate(waveform: np.ndarray, response: np.ndarray) -> np.ndarray:
    """What is heard of a waveform (samples,) in the room of a response (`simulate`, `align_response`).

    Returns:
        float32 (samples,). The direct sound is not delayed. White noise keeps its level, speech roughly does.
    """
    with _train_extra():
        from scipy.signal import fftconvolve

    return fftconvolve(waveform, response)[LEAD : LEAD + len(waveform)]


def _cut(response: np.ndarray, arrival: int, seconds: float) -> np.ndarray:
    """From LEAD samples before the direct path to `seconds` after it, scaled to unit energy."""
    response = np.pad(response, (LEAD, 0))[arrival : arrival + LEAD + round(seconds * SAMPLING_RATE)]
    return (response / np.linalg.norm(response)).astype(np.float32)


@contextmanager
def _train_extra():
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"rooms need {error.name}, which cannot be imported: install csc-hf[train], or set reverb_probability to 0"
        ) from error
