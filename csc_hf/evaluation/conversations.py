# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Recordings of which it is known who speaks when: generated conversations, or any with RTTM and UEM files."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from ..audio import SAMPLING_RATE, decode_audio
from ..data.conversations import SPEECH_FRAME, ConversationConfig, draw_conversation, speech_activity
from ..data.mixing import Clip, MixtureRecipe, mix
from ..data.utterances import Utterance
from ..diarization import rttm_name
from .references import Regions, Turns, is_hidden, merge_turns, read_rttm, read_uem

NUM_TALKERS = (2, 3, 4, 5, 6)
OVERLAPS = (0.0, 0.15, 0.35, 0.6)
"""Shares of overlap that conversations are drawn with. What is measured is lower: silence in turns does not count."""


@dataclass(frozen=True)
class Recording:
    """A recording to be diarized.

    Attributes:
        name: it is unique.
        load: gives the waveform, float32 (samples,) at 16 kHz.
        reference: who speaks when.
        scored: the regions in which errors count, in order and apart from each other; None: the whole recording.
    """

    name: str
    load: Callable[[], np.ndarray]
    reference: Turns
    scored: Regions | None = None

    @cached_property
    def scored_reference(self) -> Turns:
        """The reference within what is scored. Turns of one speaker that overlap or touch are one."""
        return merge_turns(self.reference, self.scored)

    @cached_property
    def num_speakers(self) -> int:
        """Number of speakers of what is scored."""
        return len({speaker for _, _, speaker in self.scored_reference})

    @cached_property
    def overlap(self) -> float:
        """Share of the scored speech, in time, in which several people speak."""
        turns = self.scored_reference
        borders = sorted([(start, 1) for start, _, _ in turns] + [(end, -1) for _, end, _ in turns])
        speech = several = 0.0
        count, last = 0, 0.0
        for moment, change in borders:
            speech += (moment - last) * (count > 0)
            several += (moment - last) * (count > 1)
            count, last = count + change, moment
        return several / speech if speech else 0.0


@dataclass
class Conversations:
    """Generated conversations.

    Attributes:
        recipes: by name.
        waveforms: utterances and noise, by id.
        speakers: of the utterances, by id.
    """

    recipes: dict[str, MixtureRecipe]
    waveforms: dict[str, np.ndarray]
    speakers: dict[str, str]

    @cached_property
    def sha256(self) -> str:
        """Hash of the recipes."""
        recipes = {name: recipe.to_dict() for name, recipe in self.recipes.items()}
        return hashlib.sha256(json.dumps(recipes, sort_keys=True).encode()).hexdigest()

    def __iter__(self) -> Iterator[Recording]:
        for name, recipe in self.recipes.items():
            yield Recording(name, partial(self._waveform, recipe), self._reference(recipe))

    def people(self, recipe: MixtureRecipe) -> list[str]:
        """The speakers of a conversation, in the order of its sources."""
        return [self.speakers[source.pieces[0].utterance] for source in recipe.sources]

    def _waveform(self, recipe: MixtureRecipe) -> np.ndarray:
        mixture = mix(recipe, self.waveforms)[0]
        return mixture / max(np.float32(1), np.abs(mixture).max())  # as a file can hold it

    def _reference(self, recipe: MixtureRecipe) -> Turns:
        active = speech_activity(recipe, self.waveforms)
        return activity_turns(active, SPEECH_FRAME / SAMPLING_RATE, self.people(recipe))


def build_conversations(
    utterances: Iterable[Utterance],
    noise: Iterable[Utterance] = (),
    seed: int = 0,
    per_condition: int = 5,
    seconds: float = 60.0,
    num_talkers: Sequence[int] = NUM_TALKERS,
    overlaps: Sequence[float] = OVERLAPS,
    config: ConversationConfig | None = None,
) -> Conversations:
    """Draw conversations for each number of talkers and each share of overlap.

    Args:
        utterances: speech with its speakers and sources.
        noise: recorded noise. Without it, noise is generated.
        seed: of the draws.
        per_condition: conversations of each condition.
        seconds: length of a conversation.
        num_talkers, overlaps: of the conditions.
        config: how conversations are drawn, but for what the other arguments say.

    Raises:
        ValueError: as `draw_conversation`.
    """
    config = config or ConversationConfig(
        turn_seconds=(1.0, 8.0),
        pause_seconds=(0.1, 1.5),
        overlap_seconds=(0.5, 4.0),
        join_utterances=True,
        noise_probability=0.5,
        noise_snr_db=(10.0, 30.0),
        reverb_probability=0.5,
    )
    speech, background = list(utterances), list(noise)
    clips = [Clip(u.id, len(u.waveform), u.speaker, u.source) for u in speech]
    noise_clips = [Clip(u.id, len(u.waveform)) for u in background]
    recipes: dict[str, MixtureRecipe] = {}
    for number, talkers, overlap in itertools.product(range(per_condition), num_talkers, overlaps):
        one = replace(config, seconds=seconds, num_speakers=(talkers, talkers), overlap_ratio=overlap)
        name = f"talkers{talkers}-overlap{round(100 * overlap)}-{number}"
        recipes[name] = draw_conversation(clips, one, seed, len(recipes), noise_clips)
    return Conversations(
        recipes,
        {u.id: u.waveform for u in (*speech, *background)},
        {u.id: u.speaker for u in speech if u.speaker is not None},
    )


AUDIO_ENDINGS = frozenset(
    ".3gp .aac .aif .aifc .aiff .amr .au .caf .flac .m4a .m4b .mka .mkv .mov .mp2 .mp3 .mp4 .nist .oga .ogg .opus "
    ".rf64 .snd .sph .spx .voc .w64 .wav .webm .wma .wv".split()
)
"""Endings, in lower case, that tell recordings from what lies beside them, such as .TextGrid, .eaf or .json."""


def read_recordings(folder: Path, rttm: Path, uem: Sequence[Path] | None = None) -> list[Recording]:
    """The recordings of an RTTM file, or of all in a folder: audio files of these names, with any ending of audio
    files, in a folder or the folders in it. White space in the names of audio files is "_" in RTTM.

    Args:
        folder: holds the audio.
        rttm: the file or folder, see [`read_rttm`].
        uem: files or folders that say which parts are scored, see [`read_uem`]. None: the UEM files among the
            recordings and beside the RTTM, if there are any. Empty: recordings are scored whole.

    Raises:
        ValueError: as `read_rttm` and `read_uem`; a recording has no audio file or several; or there are UEM files and
            none of them has a region of it.
    """
    references = read_rttm(rttm)
    audio: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in AUDIO_ENDINGS and path.is_file() and not is_hidden(path.relative_to(folder)):
            audio.setdefault(rttm_name(path.stem), []).append(path)
    files = _uem_beside(folder, rttm) if uem is None else list(uem)
    scored = read_uem(files)
    recordings = []
    for name, turns in references.items():
        found = audio.get(rttm_name(name), [])
        if len(found) != 1:
            which = f" ({', '.join(str(path) for path in found)})" if found else ""
            raise ValueError(f"{len(found)} audio files of the recording {name!r} in {folder}: one is needed{which}")
        if files and name not in scored:
            raise ValueError(
                f"no region of the recording {name!r} in {', '.join(str(file) for file in files[:3])}: add it to "
                "the UEM file, take its turns off the RTTM, or score all recordings whole, with no UEM"
            )
        recordings.append(Recording(name, partial(decode_audio, found[0]), turns, scored.get(name)))
    return recordings


def _uem_beside(folder: Path, rttm: Path) -> list[Path]:
    """UEM files among the recordings and beside the RTTM."""
    beside = rttm.rglob("*") if rttm.is_dir() else rttm.parent.glob("*")
    files = {path.resolve(): path for path in (*folder.rglob("*"), *beside) if path.suffix.lower() == ".uem"}
    return sorted(path for path in files.values() if path.is_file() and not path.name.startswith("."))


def activity_turns(active: np.ndarray, frame_seconds: float, names: Sequence[str]) -> Turns:
    """Turns from activity, bool (speakers, frames)."""
    turns = []
    for name, row in zip(names, active, strict=False):
        edges = np.flatnonzero(np.diff(row.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
        turns += [(start * frame_seconds, end * frame_seconds, name) for start, end in edges.tolist()]
    return sorted(turns)
