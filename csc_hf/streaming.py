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
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, BinaryIO, Generic, TypeVar

import numpy as np
import torch
from transformers.utils import logging

from .audio import SAMPLING_RATE, SILENCE_POWER, Begun, NotFiniteError, power
from .configuration_csc import CSCConfig
from .diarization import (
    DiarizationSettings,
    Turn,
    check_enrolled,
    check_frame_activity,
    find_turns,
    listener,
    settings_of,
    speaker_bounds,
    speaker_label,
)
from .evaluation.calibration import Calibration
from .feature_extraction_csc import high_pass
from .long_audio import SAME_SPEAKER, Job, check_separates, cross_fade, run, scale_to_mixture
from .modeling_csc import CSCPreTrainedModel

logger = logging.get_logger(__name__)

WINDOW_SECONDS = 5.0
LATENCY_SECONDS = 2.0

CONTINUITY = 0.3
"""How much more alike, at the most, a slot and a speaker count if they speak at the same time in two windows."""

PAST_FRAMES = 32
"""Final frames that are still looked at, to see where a turn goes on."""

FADE_SECONDS = 0.1
"""Time over which the voice that one window gives changes into that of the next."""

Answer = TypeVar("Answer")


def pcm_blocks(
    stream: BinaryIO | Begun, sampling_rate: int = SAMPLING_RATE, seconds: float = 0.1
) -> Iterator[np.ndarray]:
    """
    Read raw PCM, signed 16-bit little-endian mono, as `arecord -t raw -f S16_LE -r 16000` and `ffmpeg -f s16le -ac 1
    -ar 16000` write it.

    Args:
        stream: Such as `sys.stdin.buffer`. A block is yielded as soon as it is there.
        sampling_rate: Of the stream, in Hz.
        seconds: Length of a block. The last one may be shorter.

    Yields:
        float32 (samples,) in [-1, 1). If the stream ends within a sample, that is left out, with a warning.
    """
    size = 2 * max(1, round(seconds * sampling_rate))
    while True:
        content = b""
        while len(content) < size and (read := stream.read(size - len(content))):
            content += read
        if whole := len(content) // 2:
            yield np.frombuffer(content, "<i2", whole).astype(np.float32) / 32768
        if len(content) < size:
            if len(content) % 2:
                logger.warning("the stream ends within a sample: is it signed 16-bit little-endian mono PCM?")
            return


def latency_bounds(config: CSCConfig, window_seconds: float) -> tuple[float, float]:
    """The lowest and the highest latency in seconds: two frames of a model, and its window."""
    return 2 * config.activity_stride / config.sampling_rate, window_seconds


class _Live(Generic[Answer]):
    """
    Cuts what comes in into windows.

    Args:
        model: A CSC model in evaluation mode.
        window_seconds: How much the model sees at a time, at the most.
        latency_seconds: The most time between a sample's coming in and its answer.
    """

    _state: tuple[str, ...] = ("_held", "_received", "_answered", "_finished", "_filter")
    """Attributes that change."""

    def __init__(self, model: CSCPreTrainedModel, window_seconds: float, latency_seconds: float):
        rate, frame = model.config.sampling_rate, model.config.activity_stride
        self.model = model
        least, most = latency_bounds(model.config, window_seconds)
        if not least <= latency_seconds <= most:
            raise ValueError(
                f"latency_seconds={latency_seconds}: must be at least {least:g}, two frames of the model, and not "
                f"above the window of {most:g} s"
            )
        self.hop = round(latency_seconds * rate / 2) // frame * frame
        self.window = round(window_seconds * rate) // frame * frame
        self._held = np.zeros(0, np.float32)  # the last `window` samples
        self._received = 0  # samples
        self._answered = 0  # samples whose answer is final
        self._finished = False
        self._filter = np.zeros(0)  # state of `high_pass`

    @property
    def seconds(self) -> float:
        """How much of what came in is answered."""
        return self._answered / self.model.config.sampling_rate

    def push(self, block: np.ndarray | torch.Tensor | Sequence[float]) -> Answer:
        """
        Take in the next samples.

        Args:
            block: float (samples,), of any length, at the sampling rate of the model: an array, a tensor, or a list of
                numbers. What is below 20 Hz, an offset above all, is taken off.

        Raises:
            ValueError: The block has another shape or type, or holds NaN or infinite samples. It is then left out, and
                the next can be pushed. Or `finish` has been called.
        """
        return run(self._network, [self.pushing(block)])[0]

    def finish(self) -> Answer:
        """The answer to what remains. After it, nothing can be pushed."""
        return run(self._network, [self.finishing()])[0]

    def pushing(self, block: np.ndarray | torch.Tensor | Sequence[float]) -> Job[Answer]:
        """`push` as a job for `csc_hf.long_audio.run`."""
        block, self._filter = high_pass(self._checked(block), self.model.config.sampling_rate, self._filter)
        position = 0
        answers = []
        while position < len(block):
            missing = self.hop - self._received % self.hop
            self._take(block[position : position + missing])
            position += missing
            if self._received % self.hop == 0 and self._received > self.hop:
                answers.append((yield from self._look(self._received - self.hop)))
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
            state: From `state_dict` of one with the same settings, enrolled speakers and model.

        Raises:
            ValueError: The settings or the enrolled speakers differ.
        """
        theirs, own = state["settings"], self._settings()
        differing = [name for name in {**own, **theirs} if own.get(name) != theirs.get(name)]
        if differing:
            saved, here = (
                ", ".join(f"{name}={settings.get(name)!r}" for name in differing) for settings in (theirs, own)
            )
            raise ValueError(f"the state is of {saved}, and this object has {here}: use equal settings")
        for name in self._state:
            setattr(self, name, _with(copy.deepcopy(state[name]), torch.Tensor, torch.Tensor.numpy))

    @property
    def _network(self) -> CSCPreTrainedModel:
        """The model that the jobs need."""
        return self.model

    def _settings(self) -> dict[str, Any]:
        return {"window": self.window, "hop": self.hop}

    def _checked(self, block: Any) -> np.ndarray:
        """A block as float32 (samples,)."""
        if self._finished:
            raise ValueError("finish was called: make a new object for the next recording")
        if isinstance(block, torch.Tensor):  # NumPy has no bfloat16
            block = block.detach().cpu()
            block = (block.float() if block.is_floating_point() else block).numpy()
        elif isinstance(block, list | tuple) and not any(isinstance(one, list | tuple) for one in block):
            block = np.asarray(block, dtype=None if block else np.float32)
        if not isinstance(block, np.ndarray):
            raise ValueError(
                f"a block is a {type(block).__name__}: give floats of shape (samples,); for 16-bit PCM, "
                "np.frombuffer(block, '<i2') / 32768"
            )
        if block.ndim != 1 or block.dtype.kind != "f":
            raise ValueError(f"block of shape {block.shape} and type {block.dtype}: give floats of shape (samples,)")
        with np.errstate(over="ignore"):  # what becomes infinite is refused
            samples = block.astype(np.float32)
        finite = np.isfinite(samples)
        if not finite.all():
            number = int(finite.argmin())
            raise NotFiniteError(
                f"sample {self._received + number} is {block[number]}: repair the block or leave it out"
            )
        return samples

    def _take(self, samples: np.ndarray) -> None:
        self._held = np.concatenate([self._held, samples])[-self.window :]
        self._received += len(samples)

    def _look(self, end: int) -> Job[Answer]:
        """Answer the samples before `end`."""
        start = self._received - len(self._held)
        window = self._held[-start % self.model.config.activity_stride :]  # the last one may be shorter
        start = self._received - len(window)
        # In silence the model would only hear rounding errors.
        output = None if power(window) < SILENCE_POWER else (yield window)
        answer = self._answer(window, output, self._answered - start, end - start)
        self._answered = end
        return answer

    def _answer(self, window: np.ndarray, output: Any, begin: int, end: int) -> Answer:
        """The answer to the samples from `begin` to `end` of a window (samples,), given what the model says of it, or
        None for silence."""
        raise NotImplementedError

    def _join(self, answers: list[Answer]) -> Answer:
        """One answer of several in a row."""
        raise NotImplementedError


def _digest(embedding: np.ndarray) -> str:
    """Tells whether embeddings are equal, in few letters."""
    return hashlib.sha256(embedding.tobytes()).hexdigest()[:12]


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


FALSE_ACCEPT_COST = 6.0
"""What it costs to let another voice through, relative to silencing the enrolled speaker. With it, csc-small is silent
for nine of ten absent people, among those on whom this was chosen."""


def speaker_threshold(model: CSCPreTrainedModel, condition: str | None = None) -> float:
    """
    Cosine with the embedding of an enrolled speaker from which on a slot is taken for theirs: that at which the
    model's calibration says so if a false accept costs `FALSE_ACCEPT_COST` times as much as in verification. Where it
    has none, `SAME_SPEAKER`, with a warning.

    Args:
        condition: Condition whose calibration is used, if the model has several.

    Raises:
        ValueError: As `Calibration.load`.
    """
    calibration = Calibration.load(model, condition)
    if calibration is not None:
        return calibration.threshold + math.log(FALSE_ACCEPT_COST) / calibration.scale
    logger.warning_once(
        "This model has no calibration: WHO IS TAKEN FOR THE ENROLLED SPEAKER IS A GUESS, by a cosine of "
        f"{SAME_SPEAKER}. Learn a calibration on trials of your own (examples/evaluate_verification.py "
        "--store_calibration mix0), or give a threshold"
    )
    return SAME_SPEAKER


class LiveExtractor(_Live[np.ndarray]):
    """
    Let one voice through.

    In each window, the slot that is most like the enrolled speaker is taken for theirs if the cosine of the two
    reaches the threshold. Where nobody is taken for them, there is silence.

    Args:
        model: A CSC model that separates, in evaluation mode.
        enrolment: (embedding,) of unit length, such as `csc_hf.enrolment.enrol(...).embedding`.
        threshold: Lowest cosine at which a slot is taken for the speaker's. By default, `speaker_threshold(model)`.
        latency_seconds: See the top of this module.
        window_seconds: How much the model sees at a time, at the most.

    Attributes:
        score: The highest cosine in the latest window; None in silence.
        best_score: The highest one in any window so far; None before the first.
    """

    _state = (*_Live._state, "_tail", "score", "best_score")

    def __init__(
        self,
        model: CSCPreTrainedModel,
        enrolment: np.ndarray,
        *,
        threshold: float | None = None,
        latency_seconds: float = LATENCY_SECONDS,
        window_seconds: float = WINDOW_SECONDS,
    ):
        super().__init__(model, window_seconds, latency_seconds)
        size = model.config.speaker_embedding_size
        self.enrolment = check_enrolled({"enrolment": enrolment}, size)["enrolment"]
        self.threshold = speaker_threshold(model) if threshold is None else threshold
        self.score: float | None = None
        self.best_score: float | None = None
        self._tail = np.zeros((1, 0), np.float32)  # the voice behind what is answered, by the last window

    @property
    def present(self) -> bool:
        """Whether the speaker is in the latest window."""
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
                limit = max(1.0, np.abs(window).max())
                voice *= np.float32(limit / max(limit, np.abs(voice).max()))
                voice = voice.clip(-limit, limit)  # rounding can leave a sample beyond
        faded = cross_fade(self._tail[:, : len(window) - begin], voice[None, begin:])
        fade = min(self.hop, round(FADE_SECONDS * self.model.config.sampling_rate))
        self._tail = faded[:, end - begin : end - begin + fade]
        return faded[0, : end - begin]

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "threshold": self.threshold, "enrolment": _digest(self.enrolment)}

    def _join(self, answers: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.float32), *answers])


class LiveDiarizer(_Live[list[Turn]]):
    """
    Who speaks when, told while they speak.

    As in `csc_hf.diarization`, with its settings, but each window is given to speakers as it comes: to those whose
    voices are near enough, or to new ones. What was told keeps its label.

    Turns are told piece by piece: `push` returns what has become final, cut where the final part ends. A piece that
    begins where the last piece of the same speaker has ended goes on with their turn; `join_turns` joins them.

    Args:
        model: A CSC model with `config.frame_activity`, in evaluation mode.
        latency_seconds: See the top of this module.
        enrolled: Embeddings (embedding,) of known speakers by their names. The others are "speaker_1", ... by their
            place among all speakers in order of appearance; a number is passed over where somebody enrolled has that
            name.
        max_speakers: The most speakers, the enrolled ones included. None: any number.
        settings: In place of those of the model.

    Raises:
        ValueError: The model has no frame activity; an enrolled embedding does not fit it, or its name is not one of a
            file; the latency is beyond the window; `max_speakers` is below 1 or the number of enrolled speakers.
    """

    _state = (*_Live._state, "_sums", "_weights", "_names", "_appeared", "_heard", "_nearness", "_past")

    def __init__(
        self,
        model: CSCPreTrainedModel,
        latency_seconds: float = LATENCY_SECONDS,
        enrolled: Mapping[str, np.ndarray] | None = None,
        *,
        max_speakers: int | None = None,
        settings: DiarizationSettings | None = None,
    ):
        check_frame_activity(model)
        self.settings = settings or settings_of(model)
        super().__init__(model, self.settings.chunk_seconds, latency_seconds)
        self._light = listener(model)
        enrolled = check_enrolled(enrolled or {}, model.config.speaker_embedding_size)
        _, self.max_speakers = speaker_bounds(None, None, max_speakers)
        if self.max_speakers is not None and self.max_speakers < len(enrolled):
            raise ValueError(
                f"max_speakers={self.max_speakers} is below the number of enrolled speakers, {len(enrolled)}, who are "
                "among them: give more, or enrol fewer"
            )
        self._num_enrolled = len(enrolled)
        self._enrolled = {name: _digest(embedding) for name, embedding in enrolled.items()}
        # Of each speaker: the sum of their embeddings, weighted by the seconds of each slot; these seconds; the name,
        # None before they appear.
        self._sums = np.array(list(enrolled.values())).reshape(-1, model.config.speaker_embedding_size)
        self._weights = np.ones(len(enrolled))
        self._names: list[str | None] = list(enrolled)
        self._appeared: list[int] = []
        # Of the frames that are not final: (speakers, frames) and (frames,), sums of what the windows say of them and
        # of its weights. Of those before: (speakers, frames) probabilities.
        self._heard = np.zeros((len(enrolled), 0))
        self._nearness = np.zeros(0)
        self._past = np.zeros((len(enrolled), 0))

    @property
    def embeddings(self) -> dict[str, np.ndarray]:
        """Embedding of each speaker so far, float32 (embedding,) of unit length, in order of appearance."""
        means = self._sums / np.linalg.norm(self._sums, axis=1, keepdims=True)
        return {str(self._names[number]): means[number].astype(np.float32) for number in self._appeared}

    @property
    def _network(self) -> CSCPreTrainedModel:
        return self._light

    def _settings(self) -> dict[str, Any]:
        return {
            **super()._settings(),
            **asdict(self.settings),
            "max_speakers": self.max_speakers,
            "enrolled": self._enrolled,
        }

    def _join(self, answers: list[list[Turn]]) -> list[Turn]:
        return [turn for answer in answers for turn in answer]

    def _answer(self, window: np.ndarray, output: Any, begin: int, end: int) -> list[Turn]:
        config = self.model.config
        first, final = begin // config.activity_stride, config.num_activity_frames(end)
        num_frames = config.num_activity_frames(len(window))
        probability = np.zeros((0, num_frames))
        speakers: list[int] = []
        if output is not None:
            activity = output.source_frame_activity[0].float().sigmoid().cpu().numpy()
            active = np.flatnonzero(activity.max(axis=1) > self.settings.onset)
            probability = activity[active]
            speakers = self._assign(output.source_embeddings[0].float().cpu().numpy()[active], probability, first)
        heard = np.zeros((len(self._names), num_frames))
        for row, speaker in zip(probability, speakers, strict=True):
            heard[speaker] = np.maximum(heard[speaker], row)
        # As in a file: what a window says near its end counts less.
        near = np.arange(num_frames, 0, -1) / num_frames
        self._heard = _sum(self._heard, (near * heard)[:, first:])
        self._nearness = _sum(self._nearness[None], near[None, first:])[0]
        return self._tell(final - first)

    def _assign(self, embeddings: np.ndarray, probability: np.ndarray, first: int) -> list[int]:
        """
        The speaker of each slot of a window, which may be a new one; -1 where there is no place for another.

        Args:
            embeddings: (slots, embedding).
            probability: (slots, frames) of activity.
            first: Frame of the window that is the first that is not final.
        """
        from scipy.optimize import linear_sum_assignment

        num_slots, num_known = len(embeddings), len(self._names)
        active = probability > self.settings.onset
        counts = np.where(active.sum(axis=0) == 1, 1.0, self.settings.overlap_weight)
        seconds = (active * counts).sum(axis=1) * self._frame_seconds
        nearest = np.full(num_known, 1 - self.settings.threshold)
        nearest[: self._num_enrolled] = self.settings.name_threshold
        likeness = embeddings @ (self._sums / self._weights[:, None]).T - nearest
        # Who speaks where the last windows heard somebody is probably the same.
        before = np.concatenate([self._past, self._heard / self._nearness], axis=1)
        begin = first - self._past.shape[1]
        now = probability[:, max(begin, 0) : begin + before.shape[1]]
        before = before[:, max(-begin, 0) :]
        both = np.minimum(now[:, None], before).sum(axis=2)
        either = np.maximum(now[:, None], before).sum(axis=2)
        likeness = likeness + CONTINUITY * both / np.maximum(either, 1e-9)
        room = num_slots if self.max_speakers is None else max(0, self.max_speakers - num_known)
        long_enough = (seconds >= self.settings.min_slot_seconds) | (num_known == 0)
        new = np.where(long_enough, 0.0, -2.0)[:, None].repeat(min(room, num_slots), axis=1)
        shared = [likeness - self.settings.apart * copy for copy in range(num_slots)]
        slots, columns = linear_sum_assignment(-np.concatenate([*shared, new], axis=1))
        speakers = [-1] * num_slots
        for slot, column in zip(slots, columns, strict=True):
            if column >= num_slots * num_known:
                self._names.append(None)
                self._sums = np.concatenate([self._sums, np.zeros_like(embeddings[:1])])
                self._weights = np.append(self._weights, 0.0)
                speaker = len(self._names) - 1
            else:
                speaker = int(column) % num_known
            speakers[slot] = speaker
            is_new = self._weights[speaker] == 0
            if speaker >= self._num_enrolled and (is_new or seconds[slot] >= self.settings.min_slot_seconds):
                weight = max(seconds[slot], self._frame_seconds)
                self._sums[speaker] += weight * embeddings[slot]
                self._weights[speaker] += weight
        return speakers

    def _tell(self, num_final: int) -> list[Turn]:
        """Pieces of turns in the next frames that become final."""
        num_past = self._past.shape[1]
        probability = _sum(
            np.pad(self._past, ((0, 0), (0, self._heard.shape[1]))),
            np.pad(self._heard / self._nearness, ((0, 0), (num_past, 0))),
        )
        offset = self._answered // self.model.config.activity_stride - num_past
        pieces = []
        for speaker, row in enumerate(probability):
            for first, end in find_turns(row, self._frame_seconds, self.settings):
                first, end = max(first, num_past), min(end, num_past + num_final)
                if first < end:
                    pieces.append((first + offset, end + offset, speaker, float(row[first:end].mean())))
        turns = []
        for first, end, speaker, score in sorted(pieces):
            if speaker not in self._appeared:
                self._appeared.append(speaker)
                if self._names[speaker] is None:
                    taken = [name for name in self._names if name is not None]
                    self._names[speaker] = speaker_label(len(self._appeared), taken)
            stop = min(end * self._frame_seconds, self._received / self.model.config.sampling_rate)
            turns.append(Turn(first * self._frame_seconds, stop, str(self._names[speaker]), score))
        self._past = probability[:, : num_past + num_final][:, -PAST_FRAMES:]
        self._heard, self._nearness = self._heard[:, num_final:], self._nearness[num_final:]
        return turns

    @property
    def _frame_seconds(self) -> float:
        return self.model.config.activity_stride / self.model.config.sampling_rate


def _sum(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Sum of two arrays (rows, columns), as large as the larger one; what is missing counts as zero."""
    total = np.zeros(np.maximum(first.shape, second.shape))
    total[: first.shape[0], : first.shape[1]] += first
    total[: second.shape[0], : second.shape[1]] += second
    return total


def join_turns(pieces: Iterable[Turn]) -> list[Turn]:
    """
    Join the pieces of `LiveDiarizer` that go on with a turn.

    Returns:
        Turns, by their beginning. Their scores are the means over their pieces, by length.
    """
    turns: list[Turn] = []
    last: dict[str, int] = {}  # of each speaker
    for piece in sorted(pieces, key=lambda piece: piece.start):
        place = last.get(piece.speaker)
        if place is not None and piece.start - turns[place].end < 1e-6:
            turn = turns[place]
            lengths = turn.end - turn.start, piece.end - piece.start
            score = (turn.score * lengths[0] + piece.score * lengths[1]) / sum(lengths)
            turns[place] = Turn(turn.start, piece.end, turn.speaker, score)
        else:
            last[piece.speaker] = len(turns)
            turns.append(piece)
    return turns
