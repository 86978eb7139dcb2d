# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""References and error rates agree with other tools, on whatever people say who speaks when.

Where they do not, a test says how. `docs/diarize.md` has the table.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyannote.core import Annotation, Segment, Timeline
from pyannote.database.util import load_rttm, load_uem
from pyannote.metrics.diarization import DiarizationErrorRate, JaccardErrorRate

from csc_hf.evaluation.conversations import Recording
from csc_hf.evaluation.diarization import score, summarise
from csc_hf.evaluation.references import merge_turns, read_rttm, read_uem

SECONDS = 20
SILENCE = np.zeros(SECONDS * 16_000, np.float32)

TIMES = st.integers(0, SECONDS * 100).map(lambda centiseconds: centiseconds / 100)
NAMES = st.sampled_from(["anna", "ben", "Änne", "o'brien", "007", "7"])


@st.composite
def turns(draw, names=NAMES, at_least=0):
    """Turns in any order, which may overlap each other and be of one speaker."""
    parts = st.lists(st.tuples(TIMES, st.integers(1, 600), names), min_size=at_least, max_size=8)
    return [(start, start + length / 100, who) for start, length, who in draw(parts)]


@st.composite
def regions(draw):
    """Regions in order and apart from each other."""
    borders = sorted(draw(st.lists(TIMES, min_size=2, max_size=6, unique=True)))
    return list(zip(borders[::2], borders[1::2], strict=False))


def rttm(of, recording="call"):
    return "".join(f"SPEAKER {recording} 1 {s:.2f} {e - s:.2f} <NA> <NA> {who} <NA> <NA>\n" for s, e, who in of)


def annotation(of):
    result = Annotation()
    for number, (start, end, speaker) in enumerate(of):
        result[Segment(start, end), number] = speaker
    return result


@given(turns(at_least=1), turns())
def test_rttm_is_read_as_pyannote_reads_it(tmp_path_factory, one, other):
    path = tmp_path_factory.getbasetemp() / "both.rttm"
    path.write_text(rttm(one, "one") + rttm(other, "other"), encoding="utf-8")
    ours, theirs = read_rttm(path), load_rttm(path)
    assert set(ours) == set(theirs)
    for name, found in ours.items():
        # Of lines that say the same, they keep all.
        assert set(found) == {(s.start, s.end, who) for s, _, who in theirs[name].itertracks(yield_label=True)}


@given(regions())
def test_uem_is_read_as_pyannote_reads_it(tmp_path_factory, scored):
    path = tmp_path_factory.getbasetemp() / "call.uem"
    path.write_text("".join(f"call 1 {start:.2f} {end:.2f}\n" for start, end in scored))
    assert read_uem([path])["call"] == [(s.start, s.end) for s in load_uem(path)["call"]]


def rates(reference, found, scored=None):
    """Our errors, with the diarization error rate and the Jaccard error rate of the recording alone."""
    errors = score(Recording("call", lambda: SILENCE, reference, scored), SILENCE, found, 1.0)
    summary = summarise([errors], 0)
    return errors, summary["der"], summary["jer"]


def clear(of):
    """Turns as they are within the recording, of which those of one speaker do not overlap."""
    return merge_turns(of, [(0.0, SECONDS)])


@given(turns(), turns(), regions() | st.none())
def test_rates_are_those_of_pyannote(reference, found, scored):
    reference, found = clear(reference), clear(found)
    uem = Timeline([Segment(*region) for region in scored or [(0, SECONDS)]])
    pair = annotation(reference), annotation(found)
    der, jer = DiarizationErrorRate()(*pair, uem=uem), JaccardErrorRate()(*pair, uem=uem)
    errors, our_der, our_jer = rates(reference, found, scored)
    assert our_der == pytest.approx(der, abs=1e-6)
    if not errors.num_speakers and not errors.num_found:
        assert (jer, our_jer) == (1, 0)  # nobody speaks and nobody is found: theirs is an error of 1
    else:
        assert our_jer == pytest.approx(jer, abs=1e-6)


@given(turns(), turns())
def test_turns_of_a_speaker_that_overlap_each_other_count_once(reference, found):
    """pyannote.metrics counts them twice; its own `Annotation.support` merges them."""
    uem = Timeline([Segment(0, SECONDS)])
    merged = annotation(reference).support(), annotation(found).support()
    _, der, _ = rates(reference, found)
    assert der == pytest.approx(DiarizationErrorRate()(*merged, uem=uem), abs=1e-6)


@given(turns(at_least=1), turns(at_least=1), regions() | st.none())
def test_rates_are_those_of_spyder(reference, found, scored):
    """spyder merges them as well. It has no rate without reference speech, and takes no empty list."""
    spyder = pytest.importorskip("spyder", reason="spy-der has no wheels, so dev lacks it: pip install spy-der")
    errors, der, _ = rates(reference, found, scored)
    if errors.speech:
        swapped = [[(who, start, end) for start, end, who in of] for of in (reference, found)]
        theirs = spyder.DER(*swapped, uem=scored or [(0.0, float(SECONDS))])
        assert der == pytest.approx(theirs.der, abs=1e-4)
        assert errors.speech == pytest.approx(theirs.duration, abs=1e-3)
