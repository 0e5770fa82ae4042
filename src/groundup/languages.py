"""How much of a text is in one language, by py3langid: a naive Bayes model of 4.6 MB, offline and deterministic."""

import functools
import re
import unicodedata
from collections import defaultdict

import regex
from groundup.errors import InputError

# Fenced and inline code, mathematics, addresses, tags, and commands of LaTeX are in no language. Mathematics holds no second
# opening: a thousand that nothing closes are then read once, and not each to the end of the text.
NO_LANGUAGE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$[^$]*\$\$|\$(?!\s)[^$\n]*(?<!\s)\$(?!\d)|\\\((?:(?!\\\()[^\n])*?\\\)|\\\[(?:(?!\\\[).)*?\\\]"
    r"|https?://\S+|</?\w+>|\\[a-zA-Z]+",
    re.DOTALL,
)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|[。！？\n]+")
CJK = r"[\p{Han}\p{Hiragana}\p{Katakana}ー]"
WORD = regex.compile(rf"(?P<cjk>{CJK}+)|(?:(?!{CJK})\p{{L}})(?:(?!{CJK})[\p{{L}}\p{{M}}'’])+")
CONFIDENCE = 0.4  # of py3langid, from 0 to 1; below it even sentences of some length are often taken for another language


def share_in(text: str, language: str) -> float | None:
    """The share of the words that are in `language` (ISO 639-1), or None where no sentence is long enough to tell.

    Each sentence is judged as a whole, or in parts where it mixes scripts; those that could be of several languages do not
    count, nor do code, formulas, and single letters. A character of Chinese or Japanese counts as a word.
    """
    judge = identifier(language)
    right = certain = 0
    for sentence in SENTENCE_END.split(NO_LANGUAGE.sub(" ", text)):
        parts = defaultdict(list)
        for match in WORD.finditer(sentence):
            parts["CJK" if match["cjk"] else unicodedata.name(match[0][0], "?").split()[0]].append(match[0])
        for script, words in parts.items():
            found, confidence = judge.classify(" ".join(words))
            if confidence >= CONFIDENCE:
                count = sum(map(len, words)) if script == "CJK" else len(words)
                certain += count
                right += count * (found == language)
    return right / certain if certain else None


@functools.cache
def identifier(language: str):
    """py3langid's model over the languages with an ISO 639-1 code; an InputError where `language` is not one of them."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise InputError("telling languages apart needs py3langid", fix="pip install 'groundup[language]'") from error
    model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    known = sorted(label for label in model.labels if len(label) == 2)
    if language not in known:
        raise InputError(f"`{language}` is not a language that can be told", fix=f"write one of {', '.join(known)}")
    model.set_languages(known)
    return model
