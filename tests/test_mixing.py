# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import itertools
import json
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest

from csc_hf.mixing import Clip, MixingConfig, MixtureRecipe, NoiseRecipe, Piece, SourceRecipe, draw_group, mix

TINY = MixingConfig(num_identities=6, seconds=0.1)


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


def draw_many(clips, config, groups=50):
    return list(itertools.chain(*(draw_group(clips, config, 0, 0, index) for index in range(groups))))


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


def test_without_a_large_enough_source_groups_are_mixed():
    clips = make_clips(4, 1, source="a", prefix="a") + make_clips(4, 1, source="b", prefix="b")
    group = draw_group(clips, replace(TINY, same_source_probability=1.0), 0, 0, 0)
    assert {utterance_of(recipe.sources[0])[0] for recipe in group} == {"a", "b"}


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
        {"single_speaker_probability": 1.5},
        {"noise_probability": -0.1},
        {"same_source_probability": 2},
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


def test_a_mixture_is_rebuilt_from_its_recipe_and_the_audio_it_names():
    clips = make_clips()
    waveforms = make_waveforms(clips)
    recipe = next(r for r in draw_many(clips, TINY) if r.noise and len(r.sources) == 2)
    needed = {piece.utterance: waveforms[piece.utterance] for source in recipe.sources for piece in source.pieces}
    for first, second in zip(mix(recipe, waveforms), mix(recipe, needed), strict=True):
        np.testing.assert_array_equal(first, second)
    assert json.loads(json.dumps(asdict(recipe)))["sources"][0]["identity"] == recipe.sources[0].identity


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
    noise = NoiseRecipe(seed=0, tilt=1.0, snr_db=0.0)

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
        _, _, noise = mix(MixtureRecipe(32000, 1, (source,), NoiseRecipe(3, tilt, 0.0)), waveforms)
        spectrum = np.square(np.abs(np.fft.rfft(noise)))  # bins of half a hertz
        octaves = np.array([spectrum[low : 2 * low].sum() for low in (500, 1000, 2000, 4000)])
        np.testing.assert_allclose(octaves[1:] / octaves[:-1], step, rtol=0.15)


def test_audio_that_does_not_fit_the_recipe():
    recipe = MixtureRecipe(8, 1, (SourceRecipe(0, (Piece("a", 4, 4, 0),), None),), None)
    with pytest.raises(ValueError, match="needs utterance 'a'"):
        mix(recipe, {})
    with pytest.raises(ValueError, match="'a' is shorter than 8"):
        mix(recipe, {"a": np.zeros(7, dtype=np.float32)})
    with pytest.raises(ValueError, match="not finite"):
        mix(recipe, {"a": np.full(8, np.nan, dtype=np.float32)})
