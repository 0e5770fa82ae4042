"""Documents made fit to train on: what no text needs is taken out, what is too long is cut, and filters judge what is left."""

import importlib.util
import re
from collections.abc import Callable, Iterator
from typing import Any

from groundup.errors import InputError

# Control characters but tab and line feed, byte order marks, what Unicode says is no character, and halves of surrogate pairs.
NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff\ud800-\udfff]")
CONTROLS = bytes(byte for byte in [*range(32), 127] if chr(byte) not in "\t\n")
OTHERS = (b"\xed", b"\xef")  # first bytes of the rest of NO_TEXT, and of much that is text
C1 = re.compile(b"\xc2[\x80-\x9f]")

# Name in YAML -> module and class in datatrove. C4's filter of lines is not here: it rewrites a document, these only judge it.
FILTERS = {
    "gopher_quality": ("gopher_quality_filter", "GopherQualityFilter"),  # arXiv:2112.11446, table A1
    "gopher_repetition": ("gopher_repetition_filter", "GopherRepetitionFilter"),  # the same
    "fineweb_quality": ("fineweb_quality_filter", "FineWebQualityFilter"),  # arXiv:2406.17557
    "c4_paragraphs": ("c4_filters", "C4ParagraphFilter"),  # of mC4, arXiv:2010.11934
}


def clean(text: str) -> tuple[str, bytes]:
    """The text without what is no text, line ends as line feeds; and its UTF-8."""
    text = text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
    raw = text.encode(errors="surrogatepass")
    # Nearly all text is clean, and its bytes say so three times as fast as a search of its characters would.
    clean = text.isascii() or not (any(other in raw for other in OTHERS) or C1.search(raw))
    if clean and len(raw.translate(None, CONTROLS)) == len(raw):
        return text, raw
    text = NO_TEXT.sub("", text)
    return text, text.encode()


def cut(text: str, longest: int) -> Iterator[str]:
    """Pieces of at most `longest` characters that joined are the text, each as long as it can be; cut behind a blank line where
    there is one in the second half of a piece, else behind a line, else behind a space, else anywhere."""
    start = 0
    while len(text) - start > longest:
        middle, end = start + longest // 2, start + longest
        found = (text.rfind(mark, middle, end) + len(mark) for mark in ("\n\n", "\n", " ") if text.rfind(mark, middle, end) >= 0)
        end = next(found, end)
        yield text[start:end]
        start = end
    yield text[start:]


def require_datatrove(what: str) -> None:
    """Refuse `what` where datatrove is not installed.

    Raises:
        InputError: names the extra that brings it.
    """
    if importlib.util.find_spec("datatrove") is None:
        raise InputError(f"{what} needs datatrove, which is not installed", fix="pip install 'groundup[data]'")


def build_filters(entries: list[dict[str, Any]]) -> list[tuple[str, Callable]]:
    """datatrove's filters by the names in FILTERS, each a function from a document to True, False, or False and a reason.

    Args:
        entries: `{name: gopher_quality}`, with any of the filter's own settings beside the name.

    Raises:
        InputError: an unknown name or setting, or datatrove is not installed.
    """
    filters = []
    if entries:
        require_datatrove("`filters`")
    for number, entry in enumerate(entries, 1):
        where = f"entry {number} of `filters`"
        if not isinstance(entry, dict) or entry.get("name") not in FILTERS:
            raise InputError(f"no such filter: {entry}", where, f"write `{{name: NAME}}`, one of {', '.join(FILTERS)}")
        module, kind = FILTERS[entry["name"]]
        settings = {key: value for key, value in entry.items() if key != "name"}
        if entry["name"] != "c4_paragraphs":
            from groundup.minhash import WordSplitter  # late: it imports datatrove

            settings["language"] = WordSplitter()
        try:
            made = getattr(importlib.import_module(f"datatrove.pipeline.filters.{module}"), kind)(**settings)
        except TypeError as error:
            raise InputError(f"{kind}: {error}", where, "see its settings in datatrove's documentation") from None
        filters.append((entry["name"], made.filter))
    return filters
