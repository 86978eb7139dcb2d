# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import pytest

from csc_hf.evaluation.references import merge_regions, merge_turns, read_rttm, read_uem

ANNA = "SPEAKER call 1 0.5 4.0 <NA> <NA> anna <NA> <NA>"
BEN = "SPEAKER call 1 5.5 3.0 <NA> <NA> ben <NA> <NA>"
TURNS = {"call": [(0.5, 4.5, "anna"), (5.5, 8.5, "ben")]}


def read(folder, text, encoding="utf-8"):
    (folder / "labels.rttm").write_bytes(text.encode(encoding))
    return read_rttm(folder / "labels.rttm")


@pytest.mark.parametrize(
    "text",
    [
        f"{ANNA}\n{BEN}\n",
        f"\ufeff{ANNA}\n{BEN}",
        f"{ANNA}\r\n{BEN}\r\n",
        f"{ANNA}\r{BEN}\r",
        f"{ANNA}\n\n  {BEN}  \n".replace(" ", "\t"),
        f";; made by hand\n# and again\n{ANNA}\n{BEN}\n",
        f"SPKR-INFO call 1 <NA> <NA> <NA> unknown anna <NA> <NA>\n{ANNA}\n{BEN}\n",
        f'LEXEME call 1 0.6 0.2 "hello lex anna <NA> <NA>\n{ANNA}\n{BEN}\n',
        f"{ANNA.removesuffix(' <NA> <NA>')}\n{BEN.removesuffix(' <NA>')}\n",  # 8 and 9 columns
        f"{ANNA}\n{BEN}\n{ANNA}\n",
        f"{ANNA}\n{BEN}\nSPEAKER call 1 7.0 0.000 <NA> <NA> nobody <NA> <NA>\n",
    ],
)
def test_turns_are_read_whatever_stands_around_them(tmp_path, text):
    assert read(tmp_path, text) == TURNS


def test_names_are_kept_as_they_are(tmp_path):
    for name in ('"anna', "o'brien", "007", "NA", "Änne", "a/b"):
        assert read(tmp_path, f"SPEAKER nan 1 1 2 <NA> <NA> {name} <NA> <NA>\n") == {"nan": [(1.0, 3.0, name)]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("SPEAKER call 1 0.5 4.0 <NA> anna", "8 to 10 columns, not 7"),
        ("SPEAKER call 1 0.5 4.0 <NA> <NA> Anna B <NA> <NA>", "8 to 10 columns, not 11: .*names hold no white space"),
        ("SPEAKER my call 1 0.5 4.0 <NA> <NA> anna <NA> <NA>", "8 to 10 columns, not 11"),
        ("SPEAKER call 1 -0.5 4.0 <NA> <NA> anna <NA> <NA>", "the start is '-0.5'"),
        ("SPEAKER call 1 0.5 -4.0 <NA> <NA> anna <NA> <NA>", "the duration is '-4.0'"),
        ("SPEAKER call 1 nan 4.0 <NA> <NA> anna <NA> <NA>", "the start is 'nan'"),
        ("SPEAKER call 1 0.5 inf <NA> <NA> anna <NA> <NA>", "the duration is 'inf'"),
        ("SPEAKER call 1 0.5 1e999 <NA> <NA> anna <NA> <NA>", "the duration is '1e999'"),
        ("SPEAKER call 1 0,5 4.0 <NA> <NA> anna <NA> <NA>", "the start is '0,5'"),
        ("SPEAKER call 1 1_0 4.0 <NA> <NA> anna <NA> <NA>", "the start is '1_0'"),
        ("SPEAKER call 1 <NA> <NA> <NA> <NA> anna <NA> <NA>", "the start is '<NA>'"),
        ("SPEAKER call 1 0.5 4.0 <NA> <NA> <NA> <NA> <NA>", "column 8 has no name, '<NA>'"),
        ("Speaker call 1 0.5 4.0 <NA> <NA> anna <NA> <NA>", "'Speaker' is no record of RTTM"),
        ("NOSCORE call 1 0.5 4.0 <NA> <NA> <NA> <NA> <NA>", "NOSCORE is not read"),
        ("SPEAKER", "names its recording in column 2"),
    ],
)
def test_a_line_that_is_none_is_named_with_its_file(tmp_path, line, message):
    with pytest.raises(ValueError, match=f"labels.rttm', line 3: .*{message}"):
        read(tmp_path, f"{ANNA}\n;; a comment\n{line}\n")


def test_a_file_in_another_code_is_named(tmp_path):
    for encoding in ("utf-16", "cp1252"):
        with pytest.raises(ValueError, match="labels.rttm' is not UTF-8"):
            read(tmp_path, f"{ANNA}\n{BEN}\n".replace("ben", "René"), encoding)


def test_where_there_is_no_turn(tmp_path):
    for text in ("", "\ufeff", ";; nothing\n", "SPKR-INFO call 1 <NA> <NA> <NA> unknown anna <NA> <NA>\n"):
        with pytest.raises(ValueError, match="no turns in .*labels.rttm"):
            read(tmp_path, text)
    found = read(tmp_path, f"{ANNA}\n{BEN}\nSPKR-INFO silence 1 <NA> <NA> <NA> unknown ben <NA>\n")
    assert found == TURNS | {"silence": []}


def test_a_folder_of_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "call.RTTM").write_text(f"{ANNA}\n{BEN}\n")
    (tmp_path / "silence.rttm").write_text("")
    (tmp_path / "._call.rttm").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "notes.txt").write_text("none of RTTM")
    assert read_rttm(tmp_path) == TURNS | {"silence": []}
    (tmp_path / "sub" / "call.RTTM").unlink()
    with pytest.raises(ValueError, match="no turns in"):
        read_rttm(tmp_path)


def test_a_recording_in_two_files_is_refused(tmp_path):
    """The public references of AMI: all meetings in test.rttm, and each in a file of its own."""
    meetings = [f"SPEAKER {name} 1 0.5 4.0 <NA> <NA> MEE071 <NA> <NA>\n" for name in ("EN2002a", "ES2004a")]
    (tmp_path / "test").mkdir()
    (tmp_path / "test.rttm").write_text("".join(meetings))
    for line in meetings:
        (tmp_path / "test" / f"{line.split()[1]}.rttm").write_text(line)
    with pytest.raises(ValueError, match=r"'EN2002a' is in '.*test/EN2002a.rttm' and in '.*test.rttm'"):
        read_rttm(tmp_path)
    assert read_rttm(tmp_path / "test") == read_rttm(tmp_path / "test.rttm")


def test_uem(tmp_path):
    path = tmp_path / "a.uem"
    path.write_bytes(b";; parts\r\ncall 1 0.000 8.5\r\n")
    assert read_uem([path]) == {"call": [(0.0, 8.5)]}
    path.write_text("\ufeffcall 1 10 20\ncall 1 0 5\ncall\t2\t4\t6\nnan 1 0 1\n", encoding="utf-8")
    assert read_uem([path]) == {"call": [(0.0, 6.0), (10.0, 20.0)], "nan": [(0.0, 1.0)]}
    (tmp_path / "b.uem").write_text("call 1 0 6\ncall 1 10 20\n")
    assert read_uem([tmp_path]) == read_uem([path])
    (tmp_path / "b.uem").write_text("call 1 0 60\n")
    with pytest.raises(ValueError, match="'call' has other regions in '.*a.uem' than in '.*b.uem'"):
        read_uem([tmp_path])
    assert read_uem([]) == {}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("call 1 0", "4 columns, recording channel start end, not 3"),
        ("my call 1 0 1", "4 columns, recording channel start end, not 5"),
        ("call 1 5 5", "the region ends at 5 s, not after its start at 5 s"),
        ("call 1 -1 5", "the start is '-1'"),
        ("call 1 0 nan", "the end is 'nan'"),
    ],
)
def test_a_line_that_is_no_uem_is_named(tmp_path, line, message):
    (tmp_path / "a.uem").write_text(f"call 1 0 1\n{line}\n")
    with pytest.raises(ValueError, match=f"a.uem', line 2: .*{message}"):
        read_uem([tmp_path / "a.uem"])


def test_an_empty_uem_is_named(tmp_path):
    (tmp_path / "a.uem").write_text("")
    with pytest.raises(ValueError, match="no regions in '.*a.uem'"):
        read_uem([tmp_path / "a.uem"])


def test_regions_and_turns_are_merged():
    assert merge_regions([(4, 6), (0, 2), (1, 3), (3, 4), (1, 2)]) == [(0, 6)]
    assert merge_regions([(0, 1), (2, 3)]) == [(0, 1), (2, 3)]
    turns = [(0.0, 4.0, "a"), (3.0, 6.0, "a"), (1.0, 2.0, "a"), (5.0, 7.0, "b"), (6.0, 6.0, "a")]
    assert merge_turns(turns) == [(0.0, 6.0, "a"), (5.0, 7.0, "b")]
    assert merge_turns(turns, [(1.0, 2.0), (5.5, 9.0)]) == [(1.0, 2.0, "a"), (5.5, 6.0, "a"), (5.5, 7.0, "b")]
    assert merge_turns(turns, []) == []
