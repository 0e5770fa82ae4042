r"""Final answers: find one in a completion, write it in one form, compare two.

What comes in is model output: nothing here evaluates it, and each function takes time linear in its length.
"""

import re
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

LONGEST = 200  # characters: a longer answer is compared as text only
MOST_DIGITS = 50  # a longer number never becomes an int, whose arithmetic is not linear in its length

# --- Find ------------------------------------------------------------------------------------------------------------

TAGS = re.compile(r"<(/?)answer>", re.IGNORECASE)
BRACES = re.compile(r"\\(?:boxed|fbox) ?\{|\\.|[{}]", re.DOTALL)
HASHES = re.compile(r"####([^\n]+)")
# A sentence ends at a full stop that no letter or digit follows: "3.5" holds none.
PHRASE = re.compile(r"\banswer(?: is\b|[ *]{0,4}[:=])[ *:]{0,4}((?:[^\n.!?]|[.](?=\w))+)", re.IGNORECASE)
NUMBER_IN_TEXT = re.compile(r"(?<![\w.])(?:-?\$?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?(?:/[0-9]+)?|-?\.[0-9]+)%?")


class Statement(NamedTuple):
    """`text[start:end]` states the answer `text[left:right]`; `rank` 0 is the most explicit form."""

    rank: int
    start: int
    end: int
    left: int
    right: int


def _statements(text: str) -> list[Statement]:
    """Everything that states a final answer. Text up to the last `</think>` is thought and states nothing."""
    begin = text.rfind("</think>") + len("</think>") if "</think>" in text else 0
    found = _tags(text, begin) + _boxes(text, begin)
    for rank, pattern in enumerate((HASHES, PHRASE), start=2):
        found += [Statement(rank, *m.span(), *m.span(1)) for m in pattern.finditer(text, begin)]
    return found


def _tags(text: str, begin: int = 0) -> list[Statement]:
    found, opening = [], None
    for tag in TAGS.finditer(text, begin):
        if not tag[1]:
            opening = tag
        elif opening:
            found.append(Statement(0, opening.start(), tag.end(), opening.end(), tag.start()))
            opening = None
    return found


def _boxes(text: str, begin: int = 0) -> list[Statement]:
    r"""Every balanced `\boxed{...}`, in one pass: a scan from each opening would make 5,000 nested ones quadratic."""
    found, stack = [], []
    for token in BRACES.finditer(text, begin):
        if token[0] == "}":
            opening = stack.pop() if stack else None
            if opening and opening[0] != "{":
                found.append(Statement(1, opening.start(), token.end(), opening.end(), token.start()))
        elif token[0].endswith("{") and token[0] != r"\{":
            stack.append(token)
    return found


def extract(text: str, strict: bool = True) -> str | None:
    r"""The final answer of a completion as it is written there, or None.

    The last `<answer>x</answer>`; without one the last `\boxed{x}`, then `#### x`, then `Answer: x` or
    `The answer is x` (to the end of the sentence). With `strict=False` the last number serves where there is none.
    """
    found = _statements(text)
    if not found:
        return None if strict else last_number(text)
    best = min(found, key=lambda s: (s.rank, -s.start))
    answer = text[best.left : best.right].strip()
    boxes = _boxes(answer)
    if boxes:
        innermost = max(boxes, key=lambda s: s.start)
        answer = answer[innermost.left : innermost.right].strip()
    return answer


def ends_in_one_answer(text: str) -> bool:
    """Whether exactly one final answer is stated and nothing but punctuation follows it.

    Forms that lie inside one another ("The answer is \\boxed{7}.") are one statement.
    """
    end = count = 0
    for statement in sorted(_statements(text), key=lambda s: (s.start, -s.end)):
        count += statement.start >= end
        end = max(end, statement.end)
    return count == 1 and not text[end:].strip(" \t\r\n.$*") and bool(extract(text))


def last_number(text: str) -> str | None:
    """The last number in the text as it is written there, or None."""
    last = None
    for last in NUMBER_IN_TEXT.finditer(text):  # noqa: B007 (the loop is run for its last match)
        continue
    return last[0] if last else None


# --- Write in one form -----------------------------------------------------------------------------------------------

LATEX_NOISE = re.compile(r"\\left|\\right|\\[!,;: ]|\^ ?\{? ?\\circ ?\}?|°|\\?\$|[€£]|~")
LATEX_TEXT = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox) ?\{([^{}]*)\}")
LATEX_FRACTION = re.compile(r"\\[dt]?frac ?(?:\{([0-9]+)\} ?\{([0-9]+)\}|([0-9])([0-9]))")
WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
NUMBER = re.compile(
    rf"(?P<sign>[+-]?) ?(?:(?P<mixed>[0-9]+) (?=[0-9]+/))?(?P<top>{WHOLE}(?:\.[0-9]*)?|\.[0-9]+)"
    rf"(?: ?/ ?(?P<below>{WHOLE}))?(?P<rest>.*)"
)
UNIT = re.compile(r" [^\W\d_]{2,}(?:[ -][^\W\d_]+){0,3}| ?(?:km|m|cm|mm|kg|g|mg|l|ml|h|min|s|km/h|mph|lb|oz|ft)[23]?")
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
# Words that are part of what is said about a number, so that neither unit nor plain words are left when they occur.
# fmt: off
MATHEMATICAL = {
    "and", "or", "to", "not", "than", "plus", "minus", "times", "over", "divided", "by", "squared", "cubed", "root",
    "sqrt", "pi", "sin", "cos", "tan", "log", "ln", "exp",
}
# fmt: on
PLAIN_WORDS = re.compile(r"[^\W\d_]+(?:[ ,.'’:-]+[^\W_]+)*")


class Number(NamedTuple):
    value: Fraction
    unit: str
    ratio: bool  # written as a/b


def _bare(answer: str) -> str:
    """The answer without the dress: case, spaces, currency, LaTeX spacing and text, full stop."""
    answer = " ".join(answer.casefold().split())
    if len(answer) > LONGEST:
        return answer
    answer = answer.replace("−", "-").replace("{,}", ",").replace(r"\%", "%")
    answer = LATEX_TEXT.sub(r" \1 ", LATEX_NOISE.sub(" ", answer))
    answer = re.sub(r"(?<=[0-9])(?=\\[dt]?frac)", " ", answer)  # a mixed number, not a product
    answer = LATEX_FRACTION.sub(lambda m: f"{m[1] or m[3]}/{m[2] or m[4]}", answer)
    answer = " ".join(answer.split()).strip("*").rstrip(". ")
    if re.fullmatch(r"\([a-z]\)|\{[^{}]*\}", answer):
        answer = answer[1:-1].strip()
    return re.sub(r"^([+-]) ", r"\1", answer)


def _number(bare: str) -> Number | None:
    if len(bare) > LONGEST or sum(c.isdigit() for c in bare) > MOST_DIGITS:
        return None
    match = NUMBER.fullmatch(bare)
    if match is None:
        return None
    rest, scale = match["rest"], 1
    first, _, after = rest.strip().partition(" ")
    if first in SCALES:
        rest, scale = " " * bool(after) + after, SCALES[first]
    unit = "%" if rest.strip() in ("%", "percent", "per cent") else rest.strip()
    if unit not in ("", "%") and (not UNIT.fullmatch(rest) or MATHEMATICAL & set(unit.split())):
        return None
    below = int((match["below"] or "1").replace(",", ""))
    if below == 0:
        return None
    value = Fraction(match["top"].replace(",", "")) / below + int(match["mixed"] or 0)
    return Number((-value if match["sign"] == "-" else value) * scale, unit, match["below"] is not None)


def normalise(answer: str) -> str:
    """One form for all ways to write an answer: "1,000 apples." and "1000.0" give "1000", "50%" gives "1/2"."""
    bare = _bare(answer)
    number = _number(bare)
    if number is None:
        return bare
    return str(number.value / 100 if number.unit == "%" else number.value)


# --- Compare ---------------------------------------------------------------------------------------------------------

POWER_OF_TEN = re.compile(r"(?:\\times|\\cdot|[*×·]) ?10 ?\^")
ROW = re.compile(r"[0-9]+(?: [0-9]+)+")  # to math-verify "9 5 3" is a product, and equal to "3 5 9"
OPERATION = re.compile(r"[0-9)}!%] ?(?:[+*×·÷/-]|\\times|\\cdot|\\div|\^ ?\{?(?=[0-9])) ?[0-9({\\]|[0-9)}] ?!")


def same(given: str, gold: str) -> bool | None:
    """Whether two answers are equal, or None where that takes mathematics: ask math-verify, in the verifier's child.

    A unit is ignored where the other side has none; 50% equals 50 and 0.5, but 0.5% not 0.5. Numbers in a row ("3 5 9") are equal
    in that order only. Where the gold answer is a number, an expression that still has to be worked out ("12 * 4", for a whole
    number also "96/2") is not an answer: math-verify would accept it, and a policy that is paid for it learns to copy the problem.
    """
    given, gold = _bare(given), _bare(gold)
    if not given or not gold:
        return False
    if given == gold:
        return True
    if ROW.fullmatch(gold):
        return given.replace(", ", " ") == gold
    if "=" not in gold:  # "x = 7" answers 7
        given = re.split(r"(?<![<>!:=])=(?!=)", given)[-1].strip()
        if not given:
            return False
    expression = OPERATION.search(POWER_OF_TEN.sub(" ", given))
    if expression and gold.removeprefix("-").isdecimal():  # of any length
        return False
    if max(len(given), len(gold)) > LONGEST:
        return None
    mine, theirs = _number(given), _number(gold)
    if mine and theirs:
        return _same_number(mine, theirs)
    if theirs and (expression or given[0] in "<>≤≥≠"):
        return False
    if theirs and theirs.value == 0 and _multiplies(given):
        return False
    if all(number or _is_words(bare) for number, bare in ((mine, given), (theirs, gold))):
        return given == gold
    return None


def _same_number(given: Number, gold: Number) -> bool:
    if given.ratio and not gold.ratio and gold.value.denominator == 1 and gold.unit != "%":
        return False
    if (given.unit == "%") != (gold.unit == "%"):
        part, other = (given, gold) if given.unit == "%" else (gold, given)
        sign_left_out = other.value == part.value and abs(part.value) > 1 and not given.ratio  # 0.5% is not 0.5, nor 80/2 40%
        return sign_left_out or other.value == part.value / 100
    if given.unit and gold.unit and not set(_stems(given.unit)) & set(_stems(gold.unit)):
        return False
    return given.value == gold.value


def _multiplies(given: str) -> bool:
    """Whether math-verify would take what stands beside a 0 for factors: "not 0" and "5 0" equal 0 to it."""
    plain = re.sub(r"\\[a-z]+", " ", given)
    return re.search(r"[^\W0_]|0[^0]+0", plain) is not None and not re.fullmatch(r"0 [a-z]+ ?\^ ?\{?[23]\}?", plain)


def _stems(unit: str) -> list[str]:
    return [word.rstrip("s") or word for word in re.split("[ -]", unit)]


def _is_words(bare: str) -> bool:
    """Whether this is plain words, which mathematics cannot make equal to others: not "xy" or "2 pi r"."""
    words = re.split(r"[ ,.'’:-]+", bare)
    return (
        PLAIN_WORDS.fullmatch(bare) is not None
        and not MATHEMATICAL & set(words)
        and (len(bare) == 1 or any(len(word) > 2 for word in words))
    )


def states(text: str, value: str, alternatives: Iterable[str]) -> bool:
    """Whether the text names `value` and none of the alternatives: whole words, any case; "not Paris" names Paris.

    Of two names that overlap the longer is read: "New York" does not name "York".
    """
    names = {" ".join(name.casefold().split()): name for name in (value, *alternatives) if name.strip()}
    patterns = [r"\s+".join(map(re.escape, name.split())) for name in sorted(names, key=len, reverse=True)]
    if not patterns:
        return False
    # A number is not named by a part of a longer one: "5" is not in "2.5", nor in "5.2" or "5,000".
    pattern = rf"(?<!\w)(?<![0-9][.,])(?:{'|'.join(patterns)})(?!\w|[.,][0-9])"
    found = {" ".join(m[0].casefold().split()) for m in re.finditer(pattern, text, re.IGNORECASE)}
    return found == {" ".join(value.casefold().split())}
