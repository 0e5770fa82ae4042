import sys

import pytest
from groundup.cleaning import FILTERS, build_filters, clean, cut, require_datatrove
from groundup.errors import InputError


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("a\0b\x07c\x1bd\x7f", "abcd"),
        ("one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("\ufeffa\ufeffb", "ab"),
        ("caf\xe9 \x85\x9f\xa0", "caf\xe9 \xa0"),  # C1 controls go, a no-break space stays
        ("\ud800half", "half"),
        ("한국어 \U0001f600", "한국어 \U0001f600"),  # 0xED begins Korean and surrogates alike
        ("a\ufffeb\uffffc\ufffd", "abc\ufffd"),
        ("", ""),
    ],
)
def test_what_no_text_needs_is_taken_out(text, cleaned):
    assert clean(text) == (cleaned, cleaned.encode())


def test_shortcut_over_bytes_agrees_with_the_characters():
    from groundup.cleaning import NO_TEXT

    for code in [*range(0x300), 0xD7FF, 0xD800, 0xDFFF, 0xE000, 0xFEFF, 0xFFFD, 0xFFFE, 0xFFFF, 0x10000]:
        if chr(code) != "\r":
            assert clean(f"a{chr(code)}b")[0] == NO_TEXT.sub("", f"a{chr(code)}b"), hex(code)


def test_pieces_are_the_text_and_none_is_too_long():
    text = "".join(f"Paragraph {n}. {'word ' * 30}\n\n" for n in range(40))
    pieces = list(cut(text, 1000))
    assert "".join(pieces) == text and max(map(len, pieces)) <= 1000
    assert all(piece.endswith("\n\n") for piece in pieces) and len(pieces) < 2 * len(text) / 1000 + 1


@pytest.mark.parametrize(
    ("text", "first"), [("aaa bbb ccc ddd", "aaa bbb "), ("aaaaa\nbb ccc ddd", "aaaaa\n"), ("a" * 15, "a" * 10)]
)
def test_cut_falls_back_to_lines_spaces_and_anywhere(text, first):
    pieces = list(cut(text, 10))
    assert pieces[0] == first and "".join(pieces) == text


def test_short_text_is_one_piece():
    assert list(cut("short", 10)) == ["short"] and list(cut("", 10)) == [""]


PROSE = "It was the best of times, it was the worst of times, and the people of the valley talked with one another of that. " * 3


@pytest.mark.parametrize("name", FILTERS)
def test_filters_judge_without_network(name):
    pytest.importorskip("datatrove")
    from datatrove.data import Document

    (found, judge), *_ = build_filters([{"name": name}])
    assert found == name
    kept = judge(Document(text="x1 x2 ~~ " * 5, id=""))
    assert kept is False or kept[0] is False


def test_filter_takes_its_own_settings():
    pytest.importorskip("datatrove")
    from datatrove.data import Document

    judges = [build_filters([{"name": "gopher_quality", "min_doc_words": least}])[0][1] for least in (10, 1000)]
    first, second = (judge(Document(text=PROSE, id="")) for judge in judges)
    assert first is True and second == (False, "gopher_short_doc")


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"name": "gopher"}, "no such filter"),
        ("gopher_quality", "no such filter"),
        ({"name": "gopher_quality", "least": 3}, "unexpected keyword argument 'least'"),
    ],
)
def test_filter_that_is_wrong(entry, what):
    pytest.importorskip("datatrove")
    with pytest.raises(InputError, match=what) as caught:
        build_filters([entry])
    assert caught.value.where == "entry 1 of `filters`"


def test_missing_datatrove_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datatrove", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"`filters` needs datatrove.*\n.*groundup\[data\]"):
        build_filters([{"name": "gopher_quality"}])
    with pytest.raises(InputError, match="near"):
        require_datatrove("`near_duplicates: drop`")
    assert build_filters([]) == []
