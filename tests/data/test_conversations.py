# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import itertools
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from csc_hf import CSCConfig
from csc_hf.audio import SAMPLING_RATE
from csc_hf.data.conversations import (
    SPEECH_FRAME,
    ConversationConfig,
    activity,
    draw_conversation,
    fill_pauses,
    segment_labels,
    speech_activity,
)
from csc_hf.data.mixing import Clip, MixtureRecipe, Piece, SourceRecipe, mix

CONFIG = ConversationConfig(seconds=6.0, num_speakers=(2, 3), noise_probability=0.0)


def make_clips(speakers=6, source=None, prefix="s", num_samples=32000, start=0):
    return [
        Clip(f"{prefix}{speaker}-{n}", num_samples + 1000 * n, f"{prefix}{speaker}", source, start)
        for speaker in range(speakers)
        for n in range(3)
    ]


CLIPS = make_clips()
WAVEFORMS = {c.id: np.random.default_rng(i).normal(0, 0.1, c.num_samples).astype("f4") for i, c in enumerate(CLIPS)}


def draw_many(config, clips=CLIPS, number=60):
    return [draw_conversation(clips, config, 0, index) for index in range(number)]


def in_order(recipe):
    """The turns (speaker, piece) of a conversation in the order of their beginnings."""
    turns = [(source.identity, piece) for source in recipe.sources for piece in source.pieces]
    return sorted(turns, key=lambda turn: turn[1].position)


def end(piece):
    return piece.position + piece.length


def test_a_conversation_is_a_function_of_seed_and_index():
    recipe = draw_conversation(CLIPS, CONFIG, 3, 5)
    assert recipe == draw_conversation(CLIPS, CONFIG, 3, 5)
    assert recipe != draw_conversation(CLIPS, CONFIG, 3, 6) and recipe != draw_conversation(CLIPS, CONFIG, 4, 5)
    assert MixtureRecipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_activity_is_where_a_source_sounds():
    for recipe in draw_many(CONFIG, number=5):
        mixture, sources, _ = mix(recipe, WAVEFORMS)
        assert mixture.shape == (96000,) and sources.shape == (3, 96000)
        assert np.array_equal(sources != 0, activity(recipe))


def test_turns():
    """Everybody speaks, another one after each turn, from within their own recordings and never over themselves."""
    clips = {clip.id: clip for clip in make_clips(start=500)}
    recipes = draw_many(replace(CONFIG, seconds=20.0), list(clips.values()))
    assert {len(recipe.sources) for recipe in recipes} == {2, 3}
    for recipe in recipes:
        for source in recipe.sources:
            assert len({clips[piece.utterance].speaker for piece in source.pieces}) == 1
            for piece in source.pieces:
                clip = clips[piece.utterance]
                assert clip.start <= piece.start and piece.start + piece.length <= clip.start + clip.num_samples
            assert all(end(piece) <= after.position for piece, after in itertools.pairwise(source.pieces))
        turns = in_order(recipe)
        assert 0 <= turns[0][1].position and max(end(piece) for _, piece in turns) <= recipe.num_samples
    starts = Counter(piece.start for recipe in recipes for _, piece in in_order(recipe))
    assert len(starts) > 100, "parts of utterances are drawn at random"


def test_without_overlap_pauses_are_as_long_as_said():
    recipes = draw_many(replace(CONFIG, overlap_probability=0.0, pause_seconds=(0.1, 0.3)))
    gaps = []
    for recipe in recipes:
        turns = in_order(recipe)
        assert activity(recipe).sum(axis=0).max() == 1
        speakers = [speaker for speaker, _ in turns]
        assert speakers[: len(recipe.sources)] == list(range(len(recipe.sources))), "at first, each in turn"
        assert all(speaker != after for speaker, after in itertools.pairwise(speakers))
        gaps += [after.position - end(piece) for (_, piece), (_, after) in itertools.pairwise(turns)]
    assert 1600 <= min(gaps) < 1800 and 4600 < max(gaps) <= 4800


def test_overlaps_are_as_long_as_said():
    config = replace(CONFIG, num_speakers=(2, 2), overlap_probability=1.0, overlap_seconds=(0.1, 0.3))
    overlaps = []
    for recipe in draw_many(replace(config, turn_seconds=(1.0, 2.0))):
        turns = [piece for _, piece in in_order(recipe) if end(piece) < recipe.num_samples]  # those not cut short
        overlaps += [end(piece) - after.position for piece, after in itertools.pairwise(turns)]
    assert 1600 <= min(overlaps) < 1800 and 4600 < max(overlaps) <= 4800
    # An overlap longer than what the others say does not reach into one's own last turn.
    for recipe in draw_many(replace(config, turn_seconds=(0.2, 0.3), overlap_seconds=(2.0, 3.0))):
        for source in recipe.sources:
            assert all(end(piece) <= after.position for piece, after in itertools.pairwise(source.pieces))


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.4])
def test_the_share_of_overlap_can_be_set(ratio):
    config = replace(CONFIG, seconds=60.0, overlap_ratio=ratio, overlap_seconds=(0.5, 3.0), turn_seconds=(1.0, 2.0))
    found = [activity(recipe).sum(axis=0) for recipe in draw_many(config, number=10)]
    shares = [(count > 1).sum() / (count > 0).sum() for count in found]
    assert np.mean(shares) == pytest.approx(ratio, abs=0.05)


def test_turns_of_several_utterances():
    """They take the recordings of a speaker one after the other, and none twice before the others."""
    clips = {clip.id: clip for clip in make_clips(num_samples=16000)}
    config = replace(CONFIG, seconds=60.0, join_utterances=True, turn_seconds=(3.0, 4.0), overlap_probability=0.0)
    for recipe in draw_many(config, list(clips.values()), number=5):
        for source in recipe.sources:
            taken = Counter()
            for piece in source.pieces:
                assert piece.start == taken[piece.utterance] % clips[piece.utterance].num_samples, "where it was left"
                taken[piece.utterance] += piece.length
            rounds = [
                taken[name] / clips[name].num_samples for name in clips if name[:2] == source.pieces[0].utterance[:2]
            ]
            assert max(rounds) - min(rounds) <= 1
            lengths = Counter()
            for piece in source.pieces:  # pieces of a turn are joined without a gap
                start = next((begin for begin in lengths if begin + lengths[begin] == piece.position), piece.position)
                lengths[start] += piece.length
            whole = [length for begin, length in lengths.items() if begin + length < recipe.num_samples]
            assert all(48000 <= length <= 64000 for length in whole)


def test_everybody_is_in_one_room():
    config = replace(CONFIG, reverb_probability=1.0)
    for recipe in draw_many(config, number=3):
        rooms = [effect for source in recipe.sources for effect in source.effects]
        assert len(rooms) == len(recipe.sources)
        assert len({room.size for room in rooms}) == 1 and len({room.talker for room in rooms}) == len(rooms)
    plain = draw_many(CONFIG, number=3)
    assert [
        replace(r, sources=tuple(replace(s, effects=()) for s in r.sources)) for r in draw_many(config, number=3)
    ] == plain


def test_recorded_noise():
    config = replace(CONFIG, noise_probability=1.0, noise_snr_db=(7.0, 7.0))
    recipe = draw_conversation(CLIPS, config, 0, 0, [Clip("hum", 20000)])
    assert {piece.utterance for piece in recipe.noise.pieces} == {"hum"} and len(recipe.noise.pieces) == 5
    hum = np.random.default_rng(9).normal(0, 0.1, 20000).astype("f4")
    _, sources, noise = mix(recipe, WAVEFORMS | {"hum": hum})
    assert np.allclose(noise[:20000] / noise[0], hum / hum[0], rtol=1e-3)
    assert 10 * np.log10(
        np.square(sources.sum(0), dtype="f8").mean() / np.square(noise, dtype="f8").mean()
    ) == pytest.approx(7, abs=0.01)


def test_speech_is_where_a_recording_is_loud():
    rng = np.random.default_rng(0)
    words = np.full(32000, 1e-4)  # noise at -80 dB; words at 0.5 to 0.8 s, 1.0 to 1.2 s and 1.6 to 1.9 s
    for start, end in ((0.5, 0.8), (1.0, 1.2), (1.6, 1.9)):
        words[round(start * 16000) : round(end * 16000)] = 0.1
    words = (words * rng.standard_normal(32000)).astype("f4")
    recipe = MixtureRecipe(64000, 2, (SourceRecipe(0, (Piece("a", 0, 32000, 16000),), None),), None)
    spoken = speech_activity(recipe, {"a": words})
    assert spoken.shape == (2, 400) and not spoken[1].any()
    edges = np.flatnonzero(np.diff(spoken[0].astype(int), prepend=0)) * SPEECH_FRAME / SAMPLING_RATE
    assert edges.tolist() == pytest.approx([1.5, 2.2, 2.6, 2.9], abs=0.011), (
        "a pause of 0.2 s is filled, one of 0.4 s not"
    )
    constant = speech_activity(recipe, {"a": np.full(32000, 0.1, "f4")})
    assert constant[0, 100:300].all(), "without pauses, all is speech"


def test_pauses_are_filled_between_speech_only():
    active = np.array([0, 1, 0, 0, 1, 0, 0, 0, 1, 0], bool)
    assert fill_pauses(active, 3).astype(int).tolist() == [0, 1, 1, 1, 1, 0, 0, 0, 1, 0]
    assert not fill_pauses(np.zeros(5, bool), 3).any()


def test_levels_hold_while_somebody_speaks():
    for recipe in draw_many(replace(CONFIG, level_db=(3.0, 3.0)), number=5):
        _, sources, _ = mix(recipe, WAVEFORMS)
        powers = [
            np.square(s[a], dtype="f8").mean() for s, a in zip(sources, activity(recipe), strict=True) if a.any()
        ]
        assert 10 * np.log10(powers[0] / np.array(powers[1:])) == pytest.approx(3.0, abs=0.01)


def test_noise_is_added():
    (recipe,) = draw_many(replace(CONFIG, noise_probability=1.0, noise_snr_db=(7.0, 7.0)), number=1)
    _, sources, noise = mix(recipe, WAVEFORMS)
    speech = sources.sum(axis=0, dtype="f8")
    assert 10 * np.log10(np.square(speech).mean() / np.square(noise, dtype="f8").mean()) == pytest.approx(7, abs=0.01)


def test_speakers_come_from_one_source_where_it_has_enough():
    clips = make_clips(3, "studio", "a") + make_clips(3, "telephone", "b") + make_clips(1, "lonely", "c")
    pairs = Counter()
    for recipe in draw_many(replace(CONFIG, num_speakers=(2, 2)), clips, number=200):
        pairs[tuple(sorted(source.pieces[0].utterance[0] for source in recipe.sources))] += 1
    alone = pairs.pop(("a", "c"), 0) + pairs.pop(("b", "c"), 0)
    # Every seventh conversation begins with the lonely one's source, and is then drawn from all speakers.
    assert set(pairs) <= {("a", "a"), ("b", "b"), ("a", "b")}
    assert pairs["a", "a"] > 60 and pairs["b", "b"] > 60 and pairs["a", "b"] + alone < 60 and alone > 0


def test_segment_labels_say_who_speaks_at_the_centre():
    config = CSCConfig.tiny()
    active = np.zeros((2, 4000), dtype=bool)
    active[0, :800] = True
    active[1, 600:] = True
    labels = segment_labels(active, config.segment_centres(4000))
    assert config.segment_stride == 256 and labels.shape == (config.num_segments(4000), 2)
    assert labels.dtype == np.float32
    assert labels[:, 0].tolist() == [1.0] * 4 + [0.0] * (len(labels) - 4)  # centres 0, 256, 512, 768
    assert labels[:, 1].tolist() == [0.0] * 3 + [1.0] * (len(labels) - 3)
    config = CSCConfig.tiny(segment_length=16, segment_overlap=False)
    labels = segment_labels(active, config.segment_centres(4000))
    assert config.segment_stride == 256 and labels.shape == (config.num_segments(4000), 2)
    assert labels[:, 0].tolist() == [1.0] * 3 + [0.0] * (len(labels) - 3)  # centres 128, 384, 640
    assert labels[:, 1].tolist() == [0.0] * 2 + [1.0] * (len(labels) - 2)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seconds": 0.0}, "seconds=0.0"),
        ({"num_speakers": (1, 2)}, "num_speakers"),
        ({"num_speakers": (3, 2)}, "num_speakers"),
        ({"turn_seconds": (0.0, 1.0)}, "turn_seconds"),
        ({"pause_seconds": (-1.0, 1.0)}, "pause_seconds"),
        ({"pause_seconds": (0.0, 10.0)}, "pause_seconds"),
        ({"overlap_seconds": (2.0, 1.0)}, "overlap_seconds"),
        ({"level_db": (float("nan"), 1.0)}, "level_db"),
        ({"overlap_probability": 1.5}, "overlap_probability=1.5"),
        ({"overlap_ratio": -0.1}, "overlap_ratio=-0.1"),
        ({"reverb_probability": 2.0}, "reverb_probability=2.0"),
        ({"reverb_probability": 0.5, "num_speakers": (2, 9)}, "a room has places for 8"),
        ({"reverb_seconds": (0.2, 3.0)}, "reverb_seconds"),
    ],
)
def test_impossible_values_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        ConversationConfig(**options)


def test_too_few_speakers_are_named():
    with pytest.raises(ValueError, match="needs 3 speakers.*have 2"):
        draw_conversation(make_clips(2), CONFIG, 0, 0)
    with pytest.raises(ValueError, match="'x' has no speaker"):
        draw_conversation([*CLIPS, Clip("x", SAMPLING_RATE)], CONFIG, 0, 0)
