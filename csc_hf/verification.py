# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Speaker verification of held-out speakers, by condition: recordings → trials → embeddings → scores → error rates.

A *recording* is a few seconds of one speaker. A *signal* is what the model hears: a recording alone ("clean") or with
one of another speaker at 0 dB ("mix0"). A *trial* asks whether an enrolment signal and a test signal hold the same
target speaker. A *condition* says what kind of signal the two are.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from .audio import SAMPLING_RATE
from .data import Utterance
from .metrics import best_permutation, equal_error_rate, si_sdr_improvement
from .mixing import SILENCE_POWER

CONDITIONS = {"clean": ("clean", "clean"), "mix0": ("clean", "mix0"), "mix0_mix0": ("mix0", "mix0")}
"""Name of a condition -> kind of its enrolment signals and of its test signals."""


@dataclass(frozen=True, eq=False)
class Trials:
    """The P trials of one condition.

    Attributes:
        kinds: kind of the enrolment signals and of the test signals.
        enrolment: (P,) number of the enrolment signal among those of its kind.
        test: (P,) number of the test signal among those of its kind.
        is_target: (P,) whether one speaker is the target of both.
        within_source: (P,) number of the source that the targets of both come from, so that the channel does not tell
            them apart; -1 if they come from two, or it is unknown.
    """

    kinds: tuple[str, str]
    enrolment: np.ndarray
    test: np.ndarray
    is_target: np.ndarray
    within_source: np.ndarray


@dataclass(frozen=True, eq=False)
class TrialSet:
    """Recordings of held-out speakers and the trials over them, by condition. Made by `build_trials`.

    Attributes:
        recordings: N recordings; the id of one is "speaker:clip+clip+...".
        talkers: for each kind of signal, (N, talkers) numbers of the recordings that are in it, the target first.
        conditions: the trials of each condition, by its name in `CONDITIONS`.
        seed: what the recordings and their interferers were drawn from.
        seconds: length of a recording.
        speakers_left_out: speakers with too little speech for two recordings.
    """

    recordings: tuple[Utterance, ...]
    talkers: dict[str, np.ndarray]
    conditions: dict[str, Trials]
    seed: int
    seconds: float
    speakers_left_out: tuple[str, ...]

    @property
    def num_speakers(self) -> int:
        return len({recording.speaker for recording in self.recordings})

    def sources(self, kind: str, number: int) -> np.ndarray:
        """The sources (talkers, T) of a signal, target first, all of the target's energy. The signal is their sum."""
        sources = np.stack([self.recordings[i].waveform for i in self.talkers[kind][number]])
        energy = np.square(sources, dtype=np.float64).sum(axis=1, keepdims=True)
        return (sources * np.sqrt(energy[0] / energy)).astype(np.float32)

    @property
    def sha256(self) -> str:
        """Hash of the trial list: the seed, what clips are in which signal, and each trial of each condition."""
        header = {
            "seed": self.seed,
            "seconds": self.seconds,
            "recordings": [recording.id for recording in self.recordings],
            "talkers": {kind: numbers.tolist() for kind, numbers in self.talkers.items()},
        }
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        for name, trials in self.conditions.items():
            digest.update(name.encode())
            for column in (trials.enrolment, trials.test, trials.is_target, trials.within_source):
                digest.update(column.astype("<i4").tobytes())
        return digest.hexdigest()


def build_trials(
    utterances: Iterable[Utterance], seed: int = 0, seconds: float = 4.0, recordings_per_speaker: int = 6
) -> TrialSet:
    """Make recordings of every speaker and all trials between them.

    The speaker's clips, in an order drawn from `seed`, make recordings of exactly `seconds`: a clip that is long
    enough makes one by itself, shorter ones are joined; what is left over of a clip is not used again. Each recording
    gets an interferer: a recording of another speaker of the same source, or of any other speaker where the source has
    no second one or is unknown. The interferers of one speaker are as many different speakers as there are.

    Target trials pair two recordings of one speaker; two mixtures of a target trial have different interferers. In a
    non-target trial no speaker, in whatever role, is in both signals. All such pairs are trials.

    Args:
        utterances: Clips at 16 kHz with their speakers, in any order; all of them are held in memory.
        seed: Draws the clips of each recording, and the interferers.
        seconds: Length of a recording.
        recordings_per_speaker: At most so many; at least 2.

    Raises:
        ValueError: a clip without a speaker or with a repeated id, samples that are not finite, a silent recording, or
            fewer than two speakers with two recordings.
    """
    if recordings_per_speaker < 2:
        raise ValueError(
            f"recordings_per_speaker must be at least 2 to make target trials, got {recordings_per_speaker}"
        )
    num_samples = round(seconds * SAMPLING_RATE)
    if num_samples < 1:
        raise ValueError(f"seconds must be at least one sample, 1 / {SAMPLING_RATE}, got {seconds}")

    # Sorted, so that the trials do not depend on the order of the clips.
    clips = sorted(utterances, key=lambda clip: clip.id)
    _check_clips(clips)
    rng = np.random.default_rng(seed)
    clips_of: dict[str, list[Utterance]] = {}
    for clip in clips:
        clips_of.setdefault(clip.speaker, []).append(clip)
    recordings: list[Utterance] = []
    speakers_left_out = []
    for speaker, its_clips in sorted(clips_of.items()):
        made = _make_recordings(its_clips, num_samples, rng)
        if len(made) < 2:
            speakers_left_out.append(speaker)
        else:
            recordings += made[:recordings_per_speaker]
    speakers = np.unique([recording.speaker for recording in recordings], return_inverse=True)[1]
    if speakers.max(initial=0) < 1:
        raise ValueError(
            f"trials need at least 2 speakers with two recordings of {seconds} s each, got "
            f"{len(clips_of) - len(speakers_left_out)} of {len(clips_of)} speakers: give more speech or fewer seconds"
        )

    # Unknown sources are negative: they are nobody's source.
    names = sorted({recording.source for recording in recordings if recording.source is not None})
    sources = np.array([-1 if r.source is None else names.index(r.source) for r in recordings])
    alone = np.arange(len(recordings))
    talkers = {"clean": alone[:, None], "mix0": np.stack([alone, _draw_interferers(speakers, sources, rng)], axis=1)}
    return TrialSet(
        recordings=tuple(recordings),
        talkers=talkers,
        conditions={name: _pair(kinds, talkers, speakers, sources) for name, kinds in CONDITIONS.items()},
        seed=seed,
        seconds=seconds,
        speakers_left_out=tuple(speakers_left_out),
    )


def _check_clips(clips: list[Utterance]) -> None:
    """Raises ValueError for what no trial list can be made from. `clips` are sorted by id."""
    for clip in clips:
        if clip.speaker is None:
            raise ValueError(f"utterance {clip.id!r} has no speaker: trials need the speaker of every utterance")
        if not np.isfinite(clip.waveform).all():
            raise ValueError(f"utterance {clip.id!r} holds NaN or infinite samples: leave it out")
    for clip, other in itertools.pairwise(clips):
        if clip.id == other.id:
            raise ValueError(f"two utterances have the id {clip.id!r}: one clip must not be on both sides of a trial")


def _make_recordings(clips: list[Utterance], num_samples: int, rng: np.random.Generator) -> list[Utterance]:
    """All recordings (num_samples,) that one speaker's clips allow, each of clips of one source, in a drawn order."""
    recordings = []
    waiting: dict[str | None, list[Utterance]] = {}  # by source: short clips of the recording that is being joined
    for i in rng.permutation(len(clips)):
        clip = clips[i]
        joined = [clip]
        if len(clip.waveform) < num_samples:
            joined = waiting.setdefault(clip.source, [])
            joined.append(clip)
            if sum(len(part.waveform) for part in joined) < num_samples:
                continue
            del waiting[clip.source]
        # A copy, since a view would keep the rest of a long clip in memory.
        waveform = np.concatenate([part.waveform for part in joined])[:num_samples].copy()
        recording_id = f"{clip.speaker}:{'+'.join(part.id for part in joined)}"
        if np.square(waveform, dtype=np.float64).mean() < SILENCE_POWER:
            raise ValueError(f"recording {recording_id!r} is silent: leave out silent utterances")
        recordings.append(Utterance(id=recording_id, waveform=waveform, speaker=clip.speaker, source=clip.source))
    return recordings


def _draw_interferers(speakers: np.ndarray, sources: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For every recording, the number (N,) of one of another speaker, of the same source if that has another one."""
    interferers = np.empty_like(speakers)
    for speaker in range(speakers.max() + 1):
        # In turn through the others in an order of this speaker's own, so that target trials of two mixtures (with
        # different interferers) exist wherever they can.
        rank = rng.permutation(speakers.max() + 1)
        for turn, number in enumerate(rng.permutation(np.flatnonzero(speakers == speaker))):
            others = (speakers != speaker) & (sources == sources[number]) & (sources >= 0)
            if not others.any():
                others = speakers != speaker
            candidates = sorted(set(speakers[others]), key=lambda other: rank[other])
            interfering = candidates[turn % len(candidates)]
            interferers[number] = rng.choice(np.flatnonzero(others & (speakers == interfering)))
    return interferers


def _pair(kinds: tuple[str, str], talkers: dict[str, np.ndarray], speakers: np.ndarray, sources: np.ndarray) -> Trials:
    """All trials between an enrolment kind and a test kind of signal."""
    enrolments, tests = talkers[kinds[0]], talkers[kinds[1]]
    same_target = speakers[enrolments[:, None, 0]] == speakers[tests[None, :, 0]]
    num_shared = (speakers[enrolments][:, None, :, None] == speakers[tests][None, :, None, :]).sum(axis=(2, 3))
    is_trial = np.where(same_target, num_shared == 1, num_shared == 0)  # (enrolments, tests)
    is_trial &= enrolments[:, None, 0] != tests[None, :, 0]
    if kinds[0] == kinds[1]:
        is_trial = np.triu(is_trial)  # each pair once
    enrolment, test = np.nonzero(is_trial)
    source, test_source = sources[enrolments[enrolment, 0]], sources[tests[test, 0]]
    within_source = np.where(source == test_source, source, -1)
    return Trials(kinds, enrolment, test, same_target[enrolment, test], within_source)


@dataclass(frozen=True, eq=False)
class _Embedded:
    """What the model made of the N signals of one kind.

    Attributes:
        embeddings: (N, C, E) of unit length.
        allowed_slots: (N, C) whether the slot may be scored.
        true_slots: (N, C) True for the one slot whose separated source is the target; None without a separator.
        si_sdr_improvement: (N, talkers) in dB; None without a separator.
    """

    embeddings: np.ndarray
    allowed_slots: np.ndarray
    true_slots: np.ndarray | None
    si_sdr_improvement: np.ndarray | None


def evaluate(model: torch.nn.Module, trials: TrialSet, batch_size: int = 16, progress: bool = True) -> dict:
    """Equal error rates of a model by condition, and how well it separates the mixtures.

    A trial's score is the highest cosine between an allowed slot of the one signal and an allowed slot of the other.
    A clean signal allows its most active slot; a mixture all whose activity is above one half, or else its most
    active. "Slot known" scores instead the slot whose separated source is the target under the best permutation, which
    tells poor embeddings from a poor choice of slots. It needs the true sources, so it is a diagnosis and no result.

    Args:
        model: Called with `input_values` (B, T) and `attention_mask` (B, T); returns `source_embeddings` (B, C, E),
            `source_activity` (B, C) logits and, where it separates, `sources` (B, C, T): `CSCForPreTraining`,
            `CSCForSpeechSeparation`, `CSCModel`. Put into eval mode here; each of its modules gets its mode back.
        trials: From `build_trials`.
        batch_size: Signals a forward pass.
        progress: Whether to show a progress bar.

    Returns:
        A dict that `json.dumps` takes. Error rates are fractions; where a class has no trial, or the model no
        separator, a figure is None.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    total = sum(len(talkers) for talkers in trials.talkers.values())
    try:
        with (
            torch.inference_mode(),
            tqdm(total=total, desc="verification", unit="signal", disable=not progress) as bar,
        ):
            embedded = {kind: _embed(model, trials, kind, batch_size, bar) for kind in trials.talkers}
    finally:
        for module, training in modes:
            module.training = training

    improvement = embedded["mix0"].si_sdr_improvement
    return {
        "trials_sha256": trials.sha256,
        "seed": trials.seed,
        "seconds": trials.seconds,
        "num_speakers": trials.num_speakers,
        "num_speakers_left_out": len(trials.speakers_left_out),
        "num_recordings": len(trials.recordings),
        "si_sdr_improvement": None if improvement is None else float(improvement.mean()),
        "conditions": {name: _measure(condition, embedded) for name, condition in trials.conditions.items()},
    }


def _embed(model: torch.nn.Module, trials: TrialSet, kind: str, batch_size: int, bar: tqdm) -> _Embedded:
    """Run the model once over all signals of one kind."""
    device = next(model.parameters()).device
    embeddings, activity, true_slots, improvement = [], [], [], []
    for start in range(0, len(trials.talkers[kind]), batch_size):
        numbers = range(start, min(start + batch_size, len(trials.talkers[kind])))
        references = np.stack([trials.sources(kind, number) for number in numbers])  # (B, talkers, T)
        mixtures = references.sum(axis=1)
        input_values = torch.from_numpy(mixtures).to(device)
        output = model(input_values=input_values, attention_mask=torch.ones_like(input_values, dtype=torch.long))
        embeddings.append(_to_numpy(output.source_embeddings))
        activity.append(_to_numpy(output.source_activity))
        if output.sources is not None:
            for estimate, reference, mixture in zip(_to_numpy(output.sources), references, mixtures, strict=True):
                true_slots.append(best_permutation(estimate, reference)[0])
                improvement.append(si_sdr_improvement(estimate, reference, mixture))
        bar.update(len(numbers))

    embeddings, activity = np.concatenate(embeddings), np.concatenate(activity)
    slots = np.arange(activity.shape[1])
    allowed_slots = slots == activity.argmax(axis=1)[:, None]
    if trials.talkers[kind].shape[1] > 1:
        allowed_slots |= activity > 0  # a logit: above one half
    return _Embedded(
        embeddings=embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True),
        allowed_slots=allowed_slots,
        true_slots=slots == np.array(true_slots)[:, None] if true_slots else None,
        si_sdr_improvement=np.array(improvement) if improvement else None,
    )


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def _measure(trials: Trials, embedded: dict[str, _Embedded]) -> dict:
    """Error rates and numbers of trials of one condition."""
    enrolment, test = (embedded[kind] for kind in trials.kinds)
    cosine = np.tensordot(enrolment.embeddings, test.embeddings, axes=(2, 2))  # (N, C, N, C)

    def score(enrolment_slots: np.ndarray, test_slots: np.ndarray) -> np.ndarray:
        allowed = enrolment_slots[:, :, None, None] & test_slots[None, None]
        return np.where(allowed, cosine, -np.inf).max(axis=(1, 3))[trials.enrolment, trials.test]

    scores, slot_known = score(enrolment.allowed_slots, test.allowed_slots), None
    if enrolment.true_slots is not None:
        slot_known = score(enrolment.true_slots, test.true_slots)
    return {
        "eer": _eer(scores, trials.is_target),
        "eer_within_source": _eer_within_source(scores, trials),
        "eer_slot_known": None if slot_known is None else _eer(slot_known, trials.is_target),
        "eer_slot_known_within_source": None if slot_known is None else _eer_within_source(slot_known, trials),
        "retrieval_accuracy": _retrieval_accuracy(scores, trials),
        "num_target": int(trials.is_target.sum()),
        "num_nontarget": int((~trials.is_target).sum()),
        "num_target_within_source": int((trials.is_target & (trials.within_source >= 0)).sum()),
        "num_nontarget_within_source": int((~trials.is_target & (trials.within_source >= 0)).sum()),
    }


def _eer(scores: np.ndarray, is_target: np.ndarray) -> float | None:
    """Equal error rate, or None where there are no trials of one class and so nothing to measure."""
    return equal_error_rate(scores, is_target) if is_target.any() and not is_target.all() else None


def _retrieval_accuracy(scores: np.ndarray, trials: Trials) -> float | None:
    """Share of the test signals whose best-scoring enrolment is of their speaker, among those with trials of both
    classes; None if there is none. Where both signals are of one kind, each is a test signal of its trials."""
    tests, is_target = trials.test, trials.is_target
    if trials.kinds[0] == trials.kinds[1]:
        tests = np.concatenate([trials.test, trials.enrolment])
        scores, is_target = np.tile(scores, 2), np.tile(is_target, 2)
    best = np.full((2, tests.max(initial=0) + 1), -np.inf)  # of the non-target trials, of the target trials
    np.maximum.at(best, (is_target.astype(int), tests), scores)
    other, target = best[:, np.isfinite(best).all(axis=0)]
    return float((target > other).mean()) if len(target) else None


def _eer_within_source(scores: np.ndarray, trials: Trials) -> float | None:
    """Mean of the sources' equal error rates, weighted by their target trials; None where no source has both classes.

    Each source has a threshold of its own: scores run higher in some channels than in others, and one threshold for
    all would measure that."""
    rates, weights = [], []
    for source in np.unique(trials.within_source[trials.within_source >= 0]):
        of_source = trials.within_source == source
        rate = _eer(scores[of_source], trials.is_target[of_source])
        if rate is not None:
            rates.append(rate)
            weights.append(trials.is_target[of_source].sum())
    return float(np.average(rates, weights=weights)) if rates else None


def format_report(results: dict) -> str:
    """A plain table of what `evaluate` returns: a line a condition, error rates in %, "-" for None."""

    def percent(rate: float | None) -> str:
        return "-" if rate is None else f"{100 * rate:.1f}"

    summary = (
        f"{results['num_speakers']} speakers, {results['num_recordings']} recordings of {results['seconds']:g} s, "
        f"seed {results['seed']}, trials {results['trials_sha256'][:12]}"
    )
    lines = [
        summary,
        f"{'':12}{'EER %':>18}{'slot known, EER %':>20}{'trials':>22}",
        f"{'condition':12}" + f"{'pooled':>8}{'within':>10}{'pooled':>10}{'within':>10}{'target':>10}{'other':>12}",
    ]
    for name, condition in results["conditions"].items():
        lines.append(
            f"{name:12}{percent(condition['eer']):>8}{percent(condition['eer_within_source']):>10}"
            f"{percent(condition['eer_slot_known']):>10}{percent(condition['eer_slot_known_within_source']):>10}"
            f"{condition['num_target']:>10,}{condition['num_nontarget']:>12,}"
        )
    improvement = results["si_sdr_improvement"]
    lines.append("SI-SDR improvement " + ("-" if improvement is None else f"{improvement:.1f} dB"))
    return "\n".join(lines)
