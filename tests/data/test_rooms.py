# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import sys

import numpy as np
import pytest

from csc_hf.data.rooms import LEAD, NUM_POSITIONS, SimulatedRoom, align_response, draw_room, reverberate, simulate


def measured_rt60(response):
    """Schroeder's backward integration: the decay from -5 to -25 dB, times three."""
    energy = np.cumsum(np.square(response[::-1], dtype=np.float64))[::-1]
    level = 10 * np.log10(energy / energy[0])
    return 3 * (np.argmax(level < -25) - np.argmax(level < -5)) / 16000


def test_a_room_is_a_function_of_its_numbers():
    room = draw_room(1, 2, 3, (0.2, 0.4))
    assert draw_room(1, 2, 3, (0.2, 0.4)) == room
    others = [draw_room(0, 2, 3, (0.2, 0.4)), draw_room(1, 0, 3, (0.2, 0.4))]
    assert len({room.size for room in (room, *others)}) == 3
    places = {draw_room(1, 2, position, (0.2, 0.4)).talker for position in range(NUM_POSITIONS)}
    assert len(places) == NUM_POSITIONS


def test_rooms_have_their_reverberation_time_and_everybody_is_inside():
    for seconds in ((0.1, 0.1), (0.4, 0.4), (1.0, 1.0)):
        measured = []
        for number in range(7):
            room = draw_room(0, number, number % NUM_POSITIONS, seconds)
            for place in (room.talker, room.microphone):
                assert (np.array(place) > 0.1 * np.array(room.size)).all()
                assert (np.array(place) < 0.9 * np.array(room.size)).all()
            response = simulate(room)
            assert response.dtype == np.float32
            assert 0.5 * 16000 * seconds[0] < len(response) <= LEAD + 16000 * seconds[0]
            assert np.linalg.norm(response) == pytest.approx(1)
            measured.append(measured_rt60(response) / seconds[0])
        assert np.median(measured) == pytest.approx(1, abs=0.25)
        assert 0.4 < min(measured) and max(measured) < 1.8
    assert len({draw_room(0, number, 0, (0.1, 0.5)).rt60 for number in range(5)}) == 5


def test_the_direct_path_comes_without_delay():
    """Close to the talker, where the direct path is by far the strongest."""
    for distance in (0.2, 0.33, 0.41):
        room = SimulatedRoom((6.0, 5.0, 3.0), 0.3, (2.0, 2.0, 1.5), (2.0 + distance, 2.0, 1.5))
        response = simulate(room)
        assert abs(np.abs(response).argmax() - LEAD) <= 1
        click = np.zeros(1000, dtype=np.float32)
        click[500] = 1
        heard = reverberate(click, response)
        assert heard.dtype == np.float32 and heard.shape == (1000,)
        assert abs(np.abs(heard).argmax() - 500) <= 1
        assert np.abs(heard[:450]).max() < 1e-3


def test_a_simulation_is_pure():
    room = draw_room(0, 5, 1, (0.4, 0.4))
    first = simulate(room)
    assert simulate(room) is first  # kept
    assert np.array_equal(simulate.__wrapped__(room), first)


def test_recorded_responses_are_cut_at_the_direct_path():
    rng = np.random.default_rng(0)
    recording = np.concatenate([np.zeros(3000), [1.0], rng.normal(0, 0.05, 30000)]).astype(np.float32)
    response = align_response(recording, "hall")
    assert response.dtype == np.float32 and len(response) == LEAD + 16000
    assert response.argmax() == LEAD
    np.testing.assert_allclose(response / response[LEAD], recording[3000 - LEAD : 3000 + 16000], rtol=1e-5)
    assert np.linalg.norm(response) == pytest.approx(1)
    assert align_response(np.array([-2.0, 1.0]), "hall").argmin() == LEAD  # one that begins with the direct path


@pytest.mark.parametrize("wrong", [[], [0.0, 0.0], [1.0, np.nan], [np.inf]])
def test_a_response_that_is_none(wrong):
    with pytest.raises(ValueError, match="'hall' is empty, silent or not finite"):
        align_response(np.array(wrong, dtype=np.float32), "hall")


def test_without_pyroomacoustics_the_extra_is_named(monkeypatch):
    """Drawing needs nothing but NumPy."""
    monkeypatch.setitem(sys.modules, "pyroomacoustics", None)
    monkeypatch.setitem(sys.modules, "scipy.signal", None)
    room = draw_room(0, 0, 0, (0.1, 0.5))
    for needs, call in (
        ("pyroomacoustics", lambda: simulate(room)),
        ("scipy.signal", lambda: reverberate(np.ones(9), np.ones(50))),
    ):
        with pytest.raises(ImportError, match=rf"rooms need {needs}.*csc-hf\[train\].*reverb_probability"):
            call()
