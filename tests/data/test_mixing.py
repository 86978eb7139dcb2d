# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import itertools
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest

from csc_hf.data import augmentation
from csc_hf.data.augmentation import CHANNEL_FREQUENCIES, Augmentation, Channel, Gain, RecordedRoom
from csc_hf.data.mixing import (
    Clip,
    ClipIndex,
    GeneratedNoise,
    MixingConfig,
    MixtureRecipe,
    Piece,
    RecordedNoise,
    SourceRecipe,
    count_overlapping_crops,
    draw_group,
    mix,
    rebuild,
)
from csc_hf.data.rooms import SimulatedRoom, align_response, simulate
from csc_hf.data.utterances import Row

TINY = MixingConfig(num_identities=6, seconds=0.1)
EVERYTHING = replace(
    TINY,
    noise_probability=1.0,
    recorded_noise_probability=0.5,
    speed_probability=0.5,
    reverb_probability=0.5,
    level_probability=0.5,
    channel_probability=0.5,
)
NOISE = [Clip("hum", 5000), Clip("click", 700)]  # longer and shorter than a mixture


def make_clips(num_speakers=8, clips_per_speaker=2, num_samples=8000, source=None, prefix=""):
    return [
        Clip(f"{prefix}{speaker}-{number}", num_samples, f"{prefix}{speaker}", source)
        for speaker in range(num_speakers)
        for number in range(clips_per_speaker)
    ]


def make_waveforms(clips, seed=0):
    rng = np.random.default_rng(seed)
    return {clip.id: rng.normal(0, 0.1, clip.num_samples).astype(np.float32) for clip in clips}


def power(samples):
    return np.mean(np.square(samples, dtype=np.float64))


def draw_many(clips, config, groups=50, **options):
    return list(itertools.chain(*(draw_group(clips, config, 0, 0, index, **options) for index in range(groups))))


def room_of(source: SourceRecipe):
    return source.effects[0] if source.effects else None


def gain_of(recipe: MixtureRecipe) -> float:
    return recipe.effects[0].db if recipe.effects else 0.0


def utterance_of(source: SourceRecipe) -> str:
    return source.pieces[0].utterance


# --- drawing -------------------------------------------------------------------------------------------------------


def test_a_group_is_a_function_of_seed_epoch_and_index():
    clips = make_clips()
    group = draw_group(clips, TINY, seed=1, epoch=2, index=3)
    np.random.seed(5)  # the global state plays no part
    assert draw_group(list(clips), replace(TINY), seed=1, epoch=2, index=3) == group
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 4)):
        assert draw_group(clips, TINY, *other) != group


@pytest.mark.parametrize(("identities", "observations", "sources"), [(5, 2, 2), (12, 3, 2), (19, 2, 3), (12, 4, 1)])
def test_two_identities_meet_at_most_once(identities, observations, sources):
    config = MixingConfig(identities, observations, sources, seconds=0.1, single_speaker_probability=0)
    for index in range(5):
        group = draw_group(make_clips(25), config, 0, 0, index)
        assert len(group) == identities * observations
        meetings = Counter()
        for number, recipe in enumerate(group):
            members = [source.identity for source in recipe.sources]
            assert members[0] == number // observations
            assert len(set(members)) == len(members) <= sources
            meetings.update(itertools.combinations(sorted(members), 2))
        assert not meetings or max(meetings.values()) == 1
        # an identity is the same utterance wherever it appears
        utterances = {(source.identity, utterance_of(source)) for recipe in group for source in recipe.sources}
        assert len(utterances) == len({name for _, name in utterances}) == identities


def test_number_of_speakers():
    config = MixingConfig(19, 2, 3, seconds=0.1, single_speaker_probability=0.4)
    counts = Counter()
    for index in range(300):
        recipes = draw_group(make_clips(25), config, 0, 0, index)
        numbers = np.array([len(recipe.sources) for recipe in recipes]).reshape(19, 2)  # (identity, observation)
        # The same in an observation of every identity, or identities could be told apart by counting.
        assert (numbers == numbers[0]).all()
        counts.update(numbers[0].tolist())
    assert counts.keys() == {1, 2, 3}
    assert counts[1] / 600 == pytest.approx(0.4, abs=0.06)
    assert counts[2] / 600 == pytest.approx(0.3, abs=0.06)


def test_the_curriculum_begins_with_clean_single_talkers():
    config = replace(TINY, single_speaker_probability=0.2, noise_probability=0.8, curriculum_batches=[4, 8])
    config = replace(config, curriculum_noise_probability=0.4)
    for number, alone, noisy in ((0, 1.0, 0.4), (4, 1.0, 0.4), (5, 0.8, 0.5), (6, 0.6, 0.6), (8, 0.2, 0.8)):
        drawn = config.at_batch(number)
        assert drawn.single_speaker_probability == pytest.approx(alone)
        assert drawn.noise_probability == pytest.approx(noisy)
    assert config.at_batch(8) is config and TINY.at_batch(0) is TINY
    assert replace(config, curriculum_batches=(3, 3)).at_batch(2).noise_probability == pytest.approx(0.4)


def test_levels_and_noise_are_drawn_from_their_ranges():
    config = replace(TINY, sir_db=[-3, 7], noise_snr_db=[10, 12], noise_probability=0.3)
    assert config == replace(config, sir_db=(-3, 7), noise_snr_db=(10, 12))  # lists, as YAML has them, are the same
    recipes = draw_many(make_clips(), config)
    assert all(recipe.sources[0].sir_db is None for recipe in recipes)
    sir = [source.sir_db for recipe in recipes for source in recipe.sources[1:]]
    assert -3 <= min(sir) < -2.5 and 6.5 < max(sir) <= 7
    noises = [recipe.noise for recipe in recipes if recipe.noise]
    assert len(noises) / len(recipes) == pytest.approx(0.3, abs=0.06)
    assert all(10 <= noise.snr_db <= 12 for noise in noises)
    assert len({noise.seed for noise in noises}) == len(noises)


def test_crops_of_a_long_utterance_do_not_overlap():
    config = MixingConfig(num_identities=5, seconds=0.1)  # at most U * C = 4 crops of 1600 samples each
    crops = {}
    for recipe in draw_group(make_clips(5, 1, num_samples=8 * 1600), config, 0, 0, 0):
        for source in recipe.sources:
            (piece,) = source.pieces
            assert (piece.length, piece.position) == (1600, 0)
            assert 0 <= piece.start <= 7 * 1600
            crops.setdefault(piece.utterance, []).append(piece.start)
    assert max(len(starts) for starts in crops.values()) >= 3
    assert count_overlapping_crops(draw_group(make_clips(5, 1, num_samples=8 * 1600), config, 0, 0, 0)) == 0
    assert count_overlapping_crops(draw_group(make_clips(5, 1, num_samples=1700), config, 0, 0, 0)) == 5
    for starts in crops.values():
        assert np.diff(np.sort(starts)).min(initial=1600) >= 1600


def test_crops_reach_every_part_of_an_utterance():
    starts = [source.pieces[0].start for recipe in draw_many(make_clips(), TINY) for source in recipe.sources]
    assert min(starts) < 100 and max(starts) > 6300 and max(starts) <= 6400


def test_a_short_utterance_is_put_at_a_random_place():
    pieces = [s.pieces for recipe in draw_many(make_clips(num_samples=600), TINY, 20) for s in recipe.sources]
    assert all(len(crop) == 1 and (crop[0].start, crop[0].length) == (0, 600) for crop in pieces)
    positions = [crop[0].position for crop in pieces]
    assert min(positions) < 50 and max(positions) > 950 and max(positions) <= 1000


def test_speaker_observations_are_different_utterances():
    config = MixingConfig(num_identities=5, seconds=0.1, supervision="speaker")
    used = {}
    for recipe in draw_group(make_clips(5, 4), config, 0, 0, 0):
        for source in recipe.sources:
            (piece,) = source.pieces
            used.setdefault(source.identity, []).append(piece.utterance)
    assert max(len(names) for names in used.values()) >= 3
    for names in used.values():
        assert len({name.split("-")[0] for name in names}) == 1  # one speaker
        assert len(set(names)) == len(names)


def test_short_clips_of_a_speaker_are_joined():
    config = MixingConfig(num_identities=5, seconds=0.1, supervision="speaker")
    for recipe in draw_group(make_clips(5, 3, num_samples=700), config, 0, 0, 0):
        for source in recipe.sources:
            assert [(piece.position, piece.length) for piece in source.pieces] == [(0, 700), (700, 700), (1400, 200)]
            assert len({piece.utterance for piece in source.pieces}) == 3
    for recipe in draw_group(make_clips(5, 2, num_samples=700), config, 0, 0, 0):  # too little to fill the crop
        for source in recipe.sources:
            first, second = source.pieces
            assert first.utterance != second.utterance and first.length == second.length == 700
            assert second.position == first.position + 700 <= 900


def test_most_groups_come_from_one_source():
    clips = make_clips(12, 1, source="studio", prefix="s") + make_clips(6, 1, source="phone", prefix="p")
    clips += make_clips(3, 1, source="small", prefix="x")
    config = replace(TINY, same_source_probability=0.75)
    kinds = Counter()
    for index in range(400):
        group = draw_group(clips, config, 0, 0, index)
        kinds[frozenset(utterance_of(recipe.sources[0])[0] for recipe in group)] += 1
    assert frozenset("x") not in kinds
    studio, phone = kinds[frozenset("s")] / 400, kinds[frozenset("p")] / 400
    assert studio + phone == pytest.approx(0.75, abs=0.06)
    assert studio / phone == pytest.approx(2, abs=0.7)


def test_a_group_from_one_source_takes_no_audio_of_another():
    """Speakers that were recorded in two sources."""
    clips = make_clips(8, 3, source="studio") + make_clips(8, 3, source="phone", num_samples=400)
    clips = [replace(clip, id=f"{clip.source}-{clip.id}") for clip in clips]
    config = replace(TINY, supervision="speaker", same_source_probability=1.0)
    for index in range(10):
        group = draw_group(clips, config, 0, 0, index)
        pieces = [piece for recipe in group for source in recipe.sources for piece in source.pieces]
        assert len({piece.utterance.split("-")[0] for piece in pieces}) == 1


@pytest.mark.parametrize("same_source_probability", [0.0, 1.0])
def test_utterances_without_a_speaker_are_identities_of_their_own(same_source_probability):
    """As often as the settings say, however many there are."""
    clips = make_clips(20, 3, source="studio") + [
        replace(clip, speaker=None) for clip in make_clips(200, 1, source="phone", prefix="u")
    ]
    config = replace(TINY, supervision="speaker", same_source_probability=same_source_probability)
    with pytest.raises(ValueError, match="'u0-0' has no speaker"):
        draw_group(clips, config, 0, 0, 0)
    config = replace(config, unlabelled_probability=0.3)
    index, num_unlabelled = ClipIndex(clips, config), 0
    for number in range(200):
        group = draw_group(index, config, 0, 0, number)
        assert group == draw_group(clips, config, 0, 0, number) or number > 3
        by_identity = {}
        for source in (source for recipe in group for source in recipe.sources):
            by_identity.setdefault(source.identity, set()).update(piece.utterance for piece in source.pieces)
        for utterances in by_identity.values():
            is_unlabelled = any(name.startswith("u") for name in utterances)
            num_unlabelled += is_unlabelled
            assert len(utterances) == 1 or not is_unlabelled
    assert num_unlabelled / (200 * config.num_identities) == pytest.approx(0.3, abs=0.1)
    with pytest.raises(ValueError, match="unlabelled_probability needs"):
        replace(TINY, unlabelled_probability=0.3)


def test_without_a_large_enough_source_groups_are_mixed():
    clips = make_clips(4, 1, source="a", prefix="a") + make_clips(4, 1, source="b", prefix="b")
    group = draw_group(clips, replace(TINY, same_source_probability=1.0), 0, 0, 0)
    assert {utterance_of(recipe.sources[0])[0] for recipe in group} == {"a", "b"}


def test_the_groups_of_a_step_are_of_one_kind():
    """Processes with other clips, and in other epochs: what the contrast over all of them could count is the same."""
    config = MixingConfig(19, 2, 3, seconds=0.1, single_speaker_probability=0.4, same_source_probability=0.5)
    sources = {"studio": 24, "phone": 36, "tiny": 5}
    kinds = Counter()
    for step in range(40):
        of_step = []
        for rank in range(3):
            clips = []
            for source in sorted(sources, reverse=rank == 1):  # in whatever order they come
                clips += make_clips(sources[source], 1, source=source, prefix=f"{source}/{rank}.")
            group = draw_group(clips, config, 0, rank, 3 * step + rank, num_parallel=3)
            counts = tuple(len(recipe.sources) for recipe in group)
            used = {utterance_of(source).split("/")[0] for recipe in group for source in recipe.sources}
            of_step.append((counts, used if len(used) == 1 else "several"))
        assert of_step[0] == of_step[1] == of_step[2]
        kinds[str(of_step[0])] += 1
    assert len(kinds) > 10  # the steps differ
    one_process = [draw_group(clips, config, 0, 0, index) for index in range(9)]  # each group is a step of its own
    assert len({tuple(len(recipe.sources) for recipe in group) for group in one_process}) > 3


def test_augmentation_is_off_by_default():
    for recipe in draw_many(make_clips(), TINY, 10, impulse_responses=["hall"]):
        assert recipe.effects == ()
        assert all((source.speed, source.effects) == (1.0, ()) for source in recipe.sources)
        assert not isinstance(recipe.noise, RecordedNoise)


def test_speed_is_one_per_identity_and_in_its_range():
    config = replace(TINY, speed_probability=0.5, speed_range=(0.8, 1.15))
    speeds = []
    for index in range(100):
        of_group = {
            (source.identity, source.speed)
            for recipe in draw_group(make_clips(), config, 0, 0, index)
            for source in recipe.sources
        }
        assert len(of_group) == 6
        speeds += [speed for _, speed in of_group]
    assert np.mean(np.array(speeds) == 1) == pytest.approx(0.5 + 0.5 / 36, abs=0.06)
    assert {*speeds} == {percent / 100 for percent in range(80, 116)}


@pytest.mark.parametrize("num_samples", [1700, 900, 1601])
@pytest.mark.parametrize("speed", [0.83, 1.07])
def test_crops_at_another_speed_use_the_recording_to_its_end_and_no_further(num_samples, speed):
    config = replace(TINY, speed_probability=1.0, speed_range=(speed, speed))
    clips = [replace(clip, start=300) for clip in make_clips(num_samples=num_samples)]
    waveforms = make_waveforms(clips)
    last = 0
    for recipe in draw_many(clips, config, 20):
        for source in recipe.sources:
            (piece,) = source.pieces
            assert piece.length == min(1600, int(num_samples / speed))
            last = max(last, piece.start - 300 + int(np.ceil(piece.length * speed)))
    mix(recipe, waveforms, {clip.id: 300 for clip in clips})
    assert num_samples - 20 <= last <= num_samples


def test_talkers_are_in_one_room_at_different_places():
    config = MixingConfig(19, 2, 3, seconds=0.1, reverb_probability=0.5, reverb_seconds=(0.2, 0.3))
    recipes = draw_many(make_clips(25), config, 20)
    rooms = [[room_of(source) for source in recipe.sources] for recipe in recipes]
    assert np.mean([of_mixture[0] is None for of_mixture in rooms]) == pytest.approx(0.5, abs=0.06)
    for of_mixture in rooms:
        if of_mixture[0] is None:
            assert not any(of_mixture)
        else:
            assert len({(room.size, room.rt60, room.microphone) for room in of_mixture}) == 1
            assert len({room.talker for room in of_mixture}) == len(of_mixture)
            assert 0.2 <= of_mixture[0].rt60 <= 0.3
    assert 100 < len({*itertools.chain(*rooms)}) <= 64 * 8 + 1  # a bank


def test_recorded_impulse_responses_are_drawn_for_each_source():
    names = ["hall", "car", "church"]
    recipes = draw_many(make_clips(), replace(TINY, reverb_probability=1.0), impulse_responses=names)
    assert {room_of(source) for recipe in recipes for source in recipe.sources} == {*map(RecordedRoom, names)}
    pairs = {tuple(room_of(source) for source in recipe.sources) for recipe in recipes if len(recipe.sources) == 2}
    assert len(pairs) == 9


def test_noise_comes_from_the_noise_data():
    recipes = draw_many(make_clips(), replace(EVERYTHING, recorded_noise_probability=0.7), 40, noise=NOISE)
    recorded = [recipe.noise for recipe in recipes if isinstance(recipe.noise, RecordedNoise)]
    assert len(recorded) / len(recipes) == pytest.approx(0.7, abs=0.06)
    starts = []
    for noise in recorded:
        if noise.pieces[0].utterance == "hum":
            (piece,) = noise.pieces
            assert (piece.length, piece.position) == (1600, 0)
            starts.append(piece.start)
        else:  # repeated
            assert noise.pieces == tuple(Piece("click", 0, n, p) for n, p in ((700, 0), (700, 700), (200, 1400)))
    assert 0.3 < len(starts) / len(recorded) < 0.7
    assert min(starts) < 200 and 3200 < max(starts) <= 3400


def test_positions_are_those_of_the_recording():
    """A clip that is a later part of its recording: the same draws, from there on."""
    whole, part = make_clips(), [replace(clip, start=4000) for clip in make_clips()]
    noise = [replace(clip, start=70) for clip in NOISE]
    recipes = zip(
        draw_many(whole, EVERYTHING, 5, noise=NOISE), draw_many(part, EVERYTHING, 5, noise=noise), strict=True
    )
    for first, second in recipes:
        for one, other in zip(first.sources, second.sources, strict=True):
            assert other.pieces == tuple(replace(piece, start=piece.start + 4000) for piece in one.pieces)
        if isinstance(first.noise, RecordedNoise):
            assert [piece.start + 70 for piece in first.noise.pieces] == [p.start for p in second.noise.pieces]


def test_level_is_drawn_from_its_range():
    config = replace(TINY, level_probability=0.5, level_db=(-12, 3))
    gains = np.array([gain_of(recipe) for recipe in draw_many(make_clips(), config)])
    assert np.mean(gains == 0) == pytest.approx(0.5, abs=0.06)
    assert -12 <= gains.min() < -11 and 2 < gains.max() <= 3


def test_a_channel_is_of_one_mixture_and_in_its_range():
    recipes = draw_many(make_clips(), replace(TINY, channel_probability=0.5, channel_db=(-12, 3)))
    channels = [effect for recipe in recipes for effect in recipe.effects]
    assert 0.4 * len(recipes) < len(channels) < 0.6 * len(recipes)
    assert len({channel.db for channel in channels}) == len(channels)
    gains = np.array([channel.db for channel in channels])
    assert gains.shape[1] == len(CHANNEL_FREQUENCIES)
    assert -12 <= gains.min() < -11 and 2 < gains.max() <= 3


def test_a_channel_that_is_off_changes_no_draw(monkeypatch):
    config = replace(EVERYTHING, channel_probability=0.0)
    expected = draw_many(make_clips(), config, 2)
    monkeypatch.setattr(augmentation, "AUGMENTATIONS", augmentation.AUGMENTATIONS[:2])
    assert draw_many(make_clips(), config, 2) == expected


def test_a_channel_has_its_gains_and_no_delay():
    impulse = np.zeros(16_000, dtype=np.float32)
    impulse[8000] = 1
    gains = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)
    heard = Channel(gains).apply(impulse, {})
    assert heard.dtype == np.float32 and heard.argmax() == 8000
    spectrum = 20 * np.log10(np.abs(np.fft.rfft(heard)))  # a bin is 1 Hz wide
    np.testing.assert_allclose(spectrum[[int(f) for f in CHANNEL_FREQUENCIES]], gains, atol=1e-3)
    np.testing.assert_allclose(spectrum[[1, 50, 8000]], [-6, -6, 6], atol=1e-3)
    assert spectrum[566] == pytest.approx(-1, abs=0.01)  # half-way between 400 and 800 Hz


def test_a_recipe_goes_through_json():
    options = {"noise": NOISE, "impulse_responses": ["hall"]}
    recipes = draw_many(make_clips(), EVERYTHING, 3) + draw_many(make_clips(), EVERYTHING, 3, **options)
    recipes += draw_many(make_clips(), TINY, 3)
    for recipe in recipes:
        again = MixtureRecipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
        assert again == recipe and hash(again) == hash(recipe)
    kinds = {type(part) for r in recipes for part in (r.noise, *map(room_of, r.sources), *r.effects)}
    assert kinds == {type(None), GeneratedNoise, RecordedNoise, SimulatedRoom, RecordedRoom, Gain, Channel}


@dataclass(frozen=True)
class Inversion:
    """An effect that is not in the package: the sign of each talker."""

    signs: tuple[int, ...]
    recordings = ()

    def apply(self, waveform, waveforms):
        return waveform * np.float32(self.signs[0])


def test_an_augmentation_is_added_in_one_list(monkeypatch):
    """It is drawn, goes through JSON and is applied, without other changes; what else is drawn stays as it was."""
    config = replace(EVERYTHING, reverb_probability=0.0)
    before = draw_many(make_clips(), config, 2)
    entry = Augmentation(lambda count, drawing: [Inversion((-1, 1)), *[None] * (count - 1)], (Inversion,))
    monkeypatch.setattr(augmentation, "AUGMENTATIONS", (*augmentation.AUGMENTATIONS, entry))
    waveforms = make_waveforms(make_clips())
    for old, recipe in zip(before, draw_many(make_clips(), config, 2), strict=True):
        assert recipe.sources[0].effects == (*old.sources[0].effects, Inversion((-1, 1)))
        assert replace(recipe, sources=recipe.sources[1:]) == replace(old, sources=old.sources[1:])
        recipe = MixtureRecipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
        np.testing.assert_allclose(mix(recipe, waveforms)[1][0], -mix(old, waveforms)[1][0], atol=1e-6)


def test_too_few_identities():
    with pytest.raises(ValueError, match=r"num_identities=6 different utterances.* 4 utterances.* hold 4: .*lower"):
        draw_group(make_clips(4, 1), TINY, 0, 0, 0)
    with pytest.raises(ValueError, match=r"num_identities=6 different speakers.* 20 utterances.* hold 2: "):
        draw_group(make_clips(2, 10), replace(TINY, supervision="speaker"), 0, 0, 0)
    with pytest.raises(ValueError, match="'a' has no speaker"):
        draw_group([Clip("a", 100)], replace(TINY, supervision="speaker"), 0, 0, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_identities": 1},
        {"num_observations": 1},
        {"num_sources": 0},
        {"seconds": 0},
        {"supervision": "label"},
        {"sir_db": (5, -5)},
        {"noise_snr_db": (1, 2, 3)},
        {"noise_snr_db": (float("nan"), 3)},
        {"speed_range": (0.0, 1.0)},
        {"reverb_seconds": (0.01, 0.5)},
        {"reverb_seconds": (0.5, 2.0)},
        {"level_db": (0, -20)},
        {"single_speaker_probability": 1.5},
        {"noise_probability": -0.1},
        {"same_source_probability": 2},
        {"recorded_noise_probability": 2},
        {"speed_probability": -1},
        {"reverb_probability": 1.1},
        {"level_probability": float("nan")},
        {"curriculum_batches": (8, 4)},
        {"channel_db": (3, -3)},
    ],
)
def test_bad_settings_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(TINY, **wrong)


def test_too_few_identities_for_the_interference_to_differ():
    with pytest.raises(ValueError, match="num_identities=6 .*num_observations=3 and num_sources=2.* 7 or more"):
        MixingConfig(num_identities=6, num_observations=3)
    MixingConfig(num_identities=7, num_observations=3)
    with pytest.raises(ValueError, match="19 or more"):
        MixingConfig(num_identities=12, num_sources=3)


# --- mixing --------------------------------------------------------------------------------------------------------


def test_a_mixture_is_the_sum_of_its_sources_and_noise_at_the_levels_of_the_recipe():
    clips = make_clips(25, 3, num_samples=900)
    waveforms = make_waveforms(clips)
    config = MixingConfig(19, 2, 3, seconds=0.1, supervision="speaker", noise_probability=0.5)
    for recipe in draw_group(clips, config, 0, 0, 0):
        mixture, sources, noise = mix(recipe, waveforms)
        assert (mixture.shape, sources.shape, noise.shape) == ((1600,), (3, 1600), (1600,))
        assert {mixture.dtype, sources.dtype, noise.dtype} == {np.dtype(np.float32)}
        np.testing.assert_allclose(mixture, sources.sum(0) + noise, atol=1e-6)
        for slot in range(3):
            if slot >= len(recipe.sources):
                assert not sources[slot].any()
            elif slot:
                sir = 10 * np.log10(power(sources[0]) / power(sources[slot]))
                assert sir == pytest.approx(recipe.sources[slot].sir_db, abs=1e-3)
        if recipe.noise is None:
            assert not noise.any()
        else:
            snr = 10 * np.log10(power(sources.sum(0)) / power(noise))
            assert snr == pytest.approx(recipe.noise.snr_db, abs=1e-3)


@pytest.mark.parametrize("options", [{}, {"noise": NOISE, "impulse_responses": ["hall"]}])
def test_augmented_mixtures_are_sums_at_the_levels_of_the_recipe(options):
    clips = make_clips()
    waveforms = make_waveforms([*clips, *NOISE, Clip("hall", 400)])
    for recipe in draw_many(clips, EVERYTHING, 2, **options):
        mixture, sources, noise = mix(recipe, waveforms)
        assert {mixture.dtype, sources.dtype, noise.dtype} == {np.dtype(np.float32)}
        np.testing.assert_array_equal(mixture, sources.sum(0) + noise)
        if any(isinstance(effect, Channel) for effect in recipe.effects):
            continue  # it changes levels, but differently for each signal
        for source, samples in zip(recipe.sources[1:], sources[1:], strict=False):
            assert 10 * np.log10(power(sources[0]) / power(samples)) == pytest.approx(source.sir_db, abs=1e-3)
        snr = 10 * np.log10(power(sources.sum(0)) / power(noise))
        assert snr == pytest.approx(recipe.noise.snr_db, abs=1e-3)
        for quiet, loud in zip(mix(recipe, waveforms), mix(replace(recipe, effects=()), waveforms), strict=True):
            np.testing.assert_allclose(quiet, loud * 10 ** (gain_of(recipe) / 20), atol=1e-6)


@pytest.mark.parametrize("speed", [0.8, 0.93, 1.0, 1.1])
def test_speed_shifts_the_pitch_and_the_tempo(speed):
    time = np.arange(40000) / 16000
    waveform = np.sin(2 * np.pi * 1000 * time).astype(np.float32)
    waveform[int(16000 * speed) :] = 0  # a tone that will have ended after one second
    source = SourceRecipe(0, (Piece("tone", 0, 20000, 0),), None, speed)
    _, (heard,), _ = mix(MixtureRecipe(20000, 1, (source,), None), {"tone": waveform})
    peak = np.abs(np.fft.rfft(heard[:16000])).argmax()  # bins of one hertz
    assert peak == pytest.approx(1000 * speed, abs=1)
    assert power(heard[15000:15900]) == pytest.approx(0.5, rel=0.02)
    assert power(heard[16100:]) < 1e-4


@pytest.mark.parametrize("recorded", [False, True])
def test_a_reverberant_source_is_a_convolution(recorded):
    response = np.zeros(900)
    response[[100, 130, 800]] = 1.0, -0.5, 0.25
    waveforms = {**make_waveforms([Clip("a", 1600)]), "hall": response.astype(np.float32)}
    room = RecordedRoom("hall") if recorded else SimulatedRoom((4.0, 5.0, 3.0), 0.2, (1.0, 1.0, 1.0), (3.0, 3.5, 1.5))
    source = SourceRecipe(0, (Piece("a", 0, 1600, 0),), None, effects=(room,))
    _, (heard,), _ = mix(MixtureRecipe(1600, 1, (source,), None), waveforms)
    expected = np.zeros(1600)
    for delay, weight in enumerate(align_response(response, "hall") if recorded else simulate(room), start=-40):
        for n in range(max(delay, 0), min(1600, 1600 + delay)):
            expected[n] += weight * waveforms["a"][n - delay]
    np.testing.assert_allclose(heard, expected, atol=1e-5)


def test_a_short_response_delays_nothing():
    waveforms = {**make_waveforms([Clip("a", 1600)]), "dry": np.array([0, 0, 3, 0], dtype=np.float32)}
    source = SourceRecipe(0, (Piece("a", 0, 1600, 0),), None, effects=(RecordedRoom("dry"),))
    _, (heard,), _ = mix(MixtureRecipe(1600, 1, (source,), None), waveforms)
    np.testing.assert_allclose(heard, waveforms["a"], atol=1e-6)


def test_recorded_noise_is_the_recording():
    waveforms = {"a": np.ones(8, dtype=np.float32), "hum": np.arange(1, 6, dtype=np.float32)}
    source = SourceRecipe(0, (Piece("a", 0, 8, 0),), None)
    noise = RecordedNoise((Piece("hum", 0, 5, 0), Piece("hum", 0, 3, 5)), 20.0)
    _, _, heard = mix(MixtureRecipe(8, 1, (source,), noise), waveforms)
    np.testing.assert_allclose(heard / heard[0], [1, 2, 3, 4, 5, 1, 2, 3], rtol=1e-6)
    assert power(heard) == pytest.approx(0.01)


def test_part_of_a_recording_is_enough():
    clips = make_clips()
    waveforms = make_waveforms([*clips, *NOISE])
    config = replace(EVERYTHING, reverb_probability=0.0)
    held = [Clip(clip.id, 3000, start=2500) for clip in clips]
    recipes = draw_many(held, config, 1, noise=[Clip("hum", 2000, start=2900)])
    parts = {clip.id: waveforms[clip.id][2500:5500] for clip in clips} | {"hum": waveforms["hum"][2900:4900]}
    starts = {clip.id: 2500 for clip in clips} | {"hum": 2900}
    for recipe in recipes:
        for whole, part in zip(mix(recipe, waveforms), mix(recipe, parts, starts), strict=True):
            np.testing.assert_array_equal(whole, part)


def test_a_mixture_is_rebuilt_from_the_data():
    clips = make_clips()
    waveforms = make_waveforms([*clips, *NOISE, Clip("hall", 400)])
    decoded = []

    class LoggedRow(Row):
        def decode(self):
            decoded.append(self.id)
            return super().decode()

    rows = [LoggedRow(name, waveform) for name, waveform in waveforms.items()]
    waveforms = {row.id: row.decode().waveform for row in rows}
    rows.append(LoggedRow("broken", b"no audio"))
    for recipe in draw_many(clips, EVERYTHING, 1, noise=NOISE, impulse_responses=["hall"]):
        decoded.clear()
        for again in (recipe, json.loads(json.dumps(recipe.to_dict()))):
            for first, second in zip(mix(recipe, waveforms), rebuild(again, iter(rows)), strict=True):
                np.testing.assert_array_equal(first, second)
        assert Counter(decoded) == {name: 2 for name in recipe.recording_ids}  # once each time
        assert recipe.recording_ids <= waveforms.keys()
    recipe = next(r for r in draw_many(clips, EVERYTHING, noise=NOISE[:1]) if isinstance(r.noise, RecordedNoise))
    with pytest.raises(ValueError, match=r"needs \['hum'\]"):
        rebuild(recipe, [row for row in rows if row.id != "hum"])


@pytest.mark.release
def test_a_recipe_gives_the_same_bits_in_another_process(tmp_path):
    clips = make_clips(num_samples=4000)
    waveforms = make_waveforms(clips)
    recipes = draw_many(clips, replace(EVERYTHING, reverb_probability=1.0), 1)[:4]
    (tmp_path / "recipes.json").write_text(json.dumps([recipe.to_dict() for recipe in recipes]))
    np.savez(tmp_path / "waveforms.npz", **waveforms)
    code = (
        "import json, sys, numpy as np; from csc_hf.data.mixing import MixtureRecipe, mix; folder = sys.argv[1]\n"
        "recipes = [MixtureRecipe.from_dict(values) for values in json.load(open(folder + '/recipes.json'))]\n"
        "waveforms = np.load(folder + '/waveforms.npz')\n"
        "np.savez(folder + '/mixed.npz', *(part for recipe in recipes for part in mix(recipe, waveforms)))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    there = np.load(tmp_path / "mixed.npz")
    here = [part for recipe in recipes for part in mix(recipe, waveforms)]
    for number, part in enumerate(here):
        np.testing.assert_array_equal(part, there[f"arr_{number}"])
    for number, part in enumerate(part for recipe in recipes for part in mix(recipe, waveforms)):
        np.testing.assert_array_equal(part, here[number])


def test_pieces_go_where_the_recipe_says():
    waveforms = {"a": np.arange(1, 11, dtype=np.float32), "b": -np.ones(3, dtype=np.float32)}
    source = SourceRecipe(0, (Piece("a", 2, 4, 1), Piece("b", 0, 3, 5)), None)
    mixture, sources, _ = mix(MixtureRecipe(9, 2, (source,), None), waveforms)
    expected = np.array([0, 3, 4, 5, 6, -1, -1, -1, 0], dtype=np.float32)
    np.testing.assert_array_equal(sources, [expected, np.zeros(9)])
    np.testing.assert_array_equal(mixture, expected)
    np.testing.assert_array_equal(waveforms["a"], np.arange(1, 11))  # the audio itself is left alone


def test_silence_keeps_its_level_and_gives_no_nan():
    speech = make_waveforms([Clip("speech", 1600)])["speech"]
    waveforms = {"speech": speech, "zero": np.zeros_like(speech), "faint": speech * np.float32(1e-5)}
    noise = GeneratedNoise(seed=0, tilt=1.0, snr_db=0.0)

    def recipe(target, interferer):
        names = (target, interferer)
        sources = [SourceRecipe(n, (Piece(name, 0, 1600, 0),), 3.0 if n else None) for n, name in enumerate(names)]
        return MixtureRecipe(1600, 2, tuple(sources), noise)

    for names in itertools.product(("speech", "zero", "faint"), repeat=2):
        mixture, sources, added = mix(recipe(*names), waveforms)
        assert np.isfinite(mixture).all() and np.isfinite(sources).all()
        if names != ("speech", "speech"):
            np.testing.assert_array_equal(sources, [waveforms[name] for name in names])
        assert added.any() == ("speech" in names)


def test_noise_is_tilted():
    """Power per octave: white noise doubles, brown noise halves."""
    source = SourceRecipe(0, (Piece("a", 0, 32000, 0),), None)
    waveforms = make_waveforms([Clip("a", 32000)])
    for tilt, step in ((0.0, 2.0), (1.0, 1.0), (2.0, 0.5)):
        _, _, noise = mix(MixtureRecipe(32000, 1, (source,), GeneratedNoise(3, tilt, 0.0)), waveforms)
        spectrum = np.square(np.abs(np.fft.rfft(noise)))  # bins of half a hertz
        octaves = np.array([spectrum[low : 2 * low].sum() for low in (500, 1000, 2000, 4000)])
        np.testing.assert_allclose(octaves[1:] / octaves[:-1], step, rtol=0.15)


def test_audio_that_does_not_fit_the_recipe():
    recipe = MixtureRecipe(8, 1, (SourceRecipe(0, (Piece("a", 4, 4, 0),), None),), None)
    with pytest.raises(ValueError, match="needs recording 'a'"):
        mix(recipe, {})
    with pytest.raises(ValueError, match="'a': samples 4 to 8 are missing"):
        mix(recipe, {"a": np.zeros(7, dtype=np.float32)})
    with pytest.raises(ValueError, match="'a': samples 4 to 8 are missing"):
        mix(recipe, {"a": np.zeros(8, dtype=np.float32)}, {"a": 9})
    with pytest.raises(ValueError, match="not finite"):
        mix(recipe, {"a": np.full(8, np.nan, dtype=np.float32)})
    in_hall = replace(recipe, sources=(replace(recipe.sources[0], effects=(RecordedRoom("hall"),)),))
    with pytest.raises(ValueError, match="needs recording 'hall'"):
        mix(in_hall, {"a": np.zeros(8, dtype=np.float32)})
