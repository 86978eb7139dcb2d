# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Work on audio while it comes in, in constant memory.

Blocks of any size are pushed. Whenever half of the latency has come in, the model looks at the last seconds, and what
is older than the other half is final. So a sample is answered at most the latency after it has come in, plus the time
that the model needs. Results do not depend on the sizes of the blocks.

>>> live = LiveExtractor(model, enrol(model, [anna]).embedding)
>>> for block in blocks:  # float32 (samples,), such as those of `pcm_blocks(sys.stdin.buffer)`
...     play(live.push(block))
>>> play(live.finish())
"""

import copy
from collections.abc import Iterator
from typing import Any, BinaryIO, Generic, TypeVar

import numpy as np
import torch

from .audio import SAMPLING_RATE, SILENCE_POWER, NotFiniteError, power
from .long_audio import Job, check_separates, cross_fade, run, scale_to_mixture
from .modeling_csc import CSCPreTrainedModel

WINDOW_SECONDS = 8.0
LATENCY_SECONDS = 2.0

FADE_SECONDS = 0.1
"""Time over which the voice that one window gives changes into that of the next."""

Answer = TypeVar("Answer")


def pcm_blocks(stream: BinaryIO, sampling_rate: int = SAMPLING_RATE, seconds: float = 0.1) -> Iterator[np.ndarray]:
    """
    Read raw PCM, signed 16-bit little-endian mono, as `arecord -t raw -f S16_LE -r 16000` and `ffmpeg -f s16le -ac 1
    -ar 16000` write it.

    Args:
        stream: Such as `sys.stdin.buffer`. A block is yielded as soon as it is there.
        sampling_rate: Of the stream, in Hz.
        seconds: Length of a block. The last one may be shorter.

    Yields:
        float32 (samples,) in [-1, 1).

    Raises:
        ValueError: The stream ends within a sample.
    """
    size = 2 * max(1, round(seconds * sampling_rate))
    while True:
        content = b""
        while len(content) < size and (read := stream.read(size - len(content))):
            content += read
        if len(content) % 2:
            raise ValueError("the stream ends within a sample: it must be signed 16-bit little-endian mono PCM")
        if content:
            yield np.frombuffer(content, "<i2").astype(np.float32) / 32768
        if len(content) < size:
            return


class _Live(Generic[Answer]):
    """
    Cuts what comes in into windows.

    Args:
        model: A CSC model in evaluation mode.
        window_seconds: How much the model sees at a time, at the most.
        latency_seconds: The most time between a sample's coming in and its answer.
    """

    _state: tuple[str, ...] = ("_held", "_received", "_answered", "_finished")
    """Attributes that change."""

    def __init__(
        self,
        model: CSCPreTrainedModel,
        *,
        window_seconds: float = WINDOW_SECONDS,
        latency_seconds: float = LATENCY_SECONDS,
    ):
        rate = model.config.sampling_rate
        self.model = model
        self.window, latency = round(window_seconds * rate), round(latency_seconds * rate)
        if not 2 <= latency <= self.window:
            raise ValueError(
                f"latency_seconds={latency_seconds} and window_seconds={window_seconds}: the latency must be positive "
                "and not above the window"
            )
        self.hop = latency // 2
        self.lookahead = latency - self.hop
        self._held = np.zeros(0, np.float32)  # the samples of the last window
        self._received = 0  # samples
        self._answered = 0  # samples whose answer is final
        self._finished = False

    @property
    def seconds(self) -> float:
        """How much of what came in is answered."""
        return self._answered / self.model.config.sampling_rate

    def push(self, block: np.ndarray) -> Answer:
        """
        Take in the next samples.

        Args:
            block: float (samples,), of any length, at the sampling rate of the model.

        Raises:
            ValueError: The block has another shape or type, or holds NaN or infinite samples. It is then left out, and
                the next can be pushed. Or `finish` has been called.
        """
        return run(self.model, [self.pushing(block)])[0]

    def finish(self) -> Answer:
        """The answer to what remains. After it, nothing can be pushed."""
        return run(self.model, [self.finishing()])[0]

    def pushing(self, block: np.ndarray) -> Job[Answer]:
        """`push` as a job for `csc_hf.long_audio.run`."""
        self._check(block)
        position = 0
        answers = []
        while position < len(block):
            missing = self.hop - self._received % self.hop
            self._take(block[position : position + missing])
            position += missing
            if self._received % self.hop == 0 and self._received > self.lookahead:
                answers.append((yield from self._look(self._received - self.lookahead)))
        return self._join(answers)

    def finishing(self) -> Job[Answer]:
        """`finish` as a job for `csc_hf.long_audio.run`."""
        if self._finished:
            raise ValueError("finish was called before: make a new object for the next recording")
        self._finished = True
        answers = []
        if self._answered < self._received:
            answers.append((yield from self._look(self._received)))
        return self._join(answers)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on from here: tensors, numbers and lists, which `torch.save` and
        `torch.load` take."""
        state = {name: copy.deepcopy(getattr(self, name)) for name in self._state}
        return {"settings": self._settings(), **_with(state, np.ndarray, torch.from_numpy)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Go on where another object was.

        Args:
            state: From `state_dict` of one with the same settings and model.

        Raises:
            ValueError: The settings differ.
        """
        if state["settings"] != self._settings():
            raise ValueError(
                f"the state is of {state['settings']}, and this object has {self._settings()}: use equal settings"
            )
        for name in self._state:
            setattr(self, name, _with(copy.deepcopy(state[name]), torch.Tensor, torch.Tensor.numpy))

    def _settings(self) -> dict[str, Any]:
        return {"window": self.window, "hop": self.hop, "lookahead": self.lookahead}

    def _check(self, block: np.ndarray) -> None:
        if self._finished:
            raise ValueError("finish was called: make a new object for the next recording")
        if block.ndim != 1 or block.dtype.kind != "f":
            raise ValueError(f"block of shape {block.shape} and type {block.dtype}: give floats of shape (samples,)")
        finite = np.isfinite(block)
        if not finite.all():
            number = int(finite.argmin())
            raise NotFiniteError(
                f"sample {self._received + number} is {block[number]}: repair the block or leave it out"
            )

    def _take(self, samples: np.ndarray) -> None:
        self._held = np.concatenate([self._held, samples.astype(np.float32)])[-self.window :]
        self._received += len(samples)

    def _look(self, end: int) -> Job[Answer]:
        """Answer the samples before `end`."""
        # In silence the model would only hear rounding errors.
        output = None if power(self._held) < SILENCE_POWER else (yield self._held)
        start = self._received - len(self._held)
        answer = self._answer(self._held, output, self._answered - start, end - start)
        self._answered = end
        return answer

    def _answer(self, window: np.ndarray, output: Any, begin: int, end: int) -> Answer:
        """The answer to the samples from `begin` to `end` of a window (samples,), given what the model says of it, or
        None for silence."""
        raise NotImplementedError

    def _join(self, answers: list[Answer]) -> Answer:
        """One answer of several in a row."""
        raise NotImplementedError


def _with(value: Any, kind: type, change: Any) -> Any:
    """A nested value in which all objects of one kind are changed."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {name: _with(one, kind, change) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with(one, kind, change) for one in value)
    return value


GATE_FRAMES = 3
"""Frames around speech that are let through too, so that no beginning or end of a word is cut."""


def speech_gain(activity: np.ndarray, stride: int, num_samples: int) -> np.ndarray:
    """
    Gain that lets speech through and silences the rest.

    Args:
        activity: (frames,) logits of speech.
        stride: Samples of a frame.

    Returns:
        float32 (num_samples,): 1 from `GATE_FRAMES` before speech to as many behind it, 0 elsewhere, with ramps of one
        frame between.
    """
    speech = np.convolve(activity > 0, np.ones(2 * GATE_FRAMES + 1), "same") > 0
    centres = (np.arange(len(speech)) + 0.5) * stride
    return np.interp(np.arange(num_samples), centres, speech).astype(np.float32)


class LiveExtractor(_Live[np.ndarray]):
    """
    Let one voice through.

    In each window, the slot that is most like the enrolled speaker is taken for theirs if the cosine of the two
    reaches the threshold. Where nobody is taken for them, there is silence.

    Args:
        model: A CSC model that separates, in evaluation mode.
        enrolment: (embedding,) of unit length, such as `csc_hf.enrolment.enrol(...).embedding`.
        threshold: Lowest cosine at which a slot is taken for the speaker's.
        window_seconds, latency_seconds: See the top of this module.

    Attributes:
        score: The highest cosine in the latest window; None in silence.
        best_score: The highest one in any window so far; None before the first.
        present: Whether the speaker is in the latest window.
    """

    _state = (*_Live._state, "_tail", "score", "best_score")

    def __init__(
        self,
        model: CSCPreTrainedModel,
        enrolment: np.ndarray,
        *,
        threshold: float,
        window_seconds: float = WINDOW_SECONDS,
        latency_seconds: float = LATENCY_SECONDS,
    ):
        super().__init__(model, window_seconds=window_seconds, latency_seconds=latency_seconds)
        self.enrolment, self.threshold = enrolment, threshold
        self.score: float | None = None
        self.best_score: float | None = None
        self._tail = np.zeros((1, 0), np.float32)  # the voice behind what is answered, by the last window

    @property
    def present(self) -> bool:
        return self.score is not None and self.score >= self.threshold

    def _answer(self, window: np.ndarray, output: Any, begin: int, end: int) -> np.ndarray:
        voice = np.zeros(len(window), np.float32)
        self.score = None
        if output is not None:
            check_separates(self.model, output)
            embeddings, activity, sources = (
                values[0].float().cpu().numpy()
                for values in (output.source_embeddings, output.source_activity, output.sources)
            )
            allowed = (activity > 0) | (activity == activity.max())
            scores = np.where(allowed, embeddings @ self.enrolment, -np.inf)
            best = int(scores.argmax())
            self.score = float(scores[best])
            self.best_score = self.score if self.best_score is None else max(self.best_score, self.score)
            if self.present:
                voice = scale_to_mixture(sources, activity, window)[best]
                frames = getattr(output, "source_frame_activity", None)
                if frames is not None:
                    voice *= speech_gain(
                        frames[0, best].float().cpu().numpy(), self.model.config.activity_stride, len(window)
                    )
                voice *= min(1.0, max(1.0, np.abs(window).max()) / max(np.abs(voice).max(), 1e-30))
        faded = cross_fade(self._tail[:, : len(window) - begin], voice[None, begin:])
        fade = min(self.lookahead, round(FADE_SECONDS * self.model.config.sampling_rate))
        self._tail = faded[:, end - begin : end - begin + fade]
        return faded[0, : end - begin]

    def _join(self, answers: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.float32), *answers])
