r"""Over three hundred completions and what a checker must say of them: right, wrong, hostile; and where math-verify differs."""

import pytest
from groundup import answers
from groundup.verifier import Verifier

# gold -> completions that are right, completions that are wrong
TABLE = {
    # whole numbers, in every form that states an answer
    "7": (
        [
            "Answer: 7",
            "The answer is 7.",
            "**Answer:** 7",
            "answer = 7",
            r"\boxed{7}",
            r"so \fbox{7}.",
            "<answer>7</answer>",
            "#### 7",
            "<answer> 7.0 </answer>",
            r"Answer: $7$",
            r"\boxed{ 7 }",
            "Answer: +7",
            "Answer: 07",
            "Answer: 7 apples",
            "Answer: x = 7",
            r"\boxed{x=7}",
            "3 + 4 = 7. Answer: 7.",
            "Answer: 5. No, wait. Answer: 7",
            "<think>Answer: 9</think>Answer: 7",
            "Answer: 14/2 = 7",
            r"\boxed{\boxed{7}}",
            "Answer: 7.00",
            r"Answer: \(7\)",
            r"Answer: \text{7}",
            "Answer: 7 pieces",
        ],
        [
            "Answer: 8",
            "Answer: -7",
            "Answer: 70",
            "Answer: 7.5",
            "Answer: 7/2",
            "Answer: 0.7",
            "Answer: 77",
            "Answer: 7%0",
            "7 apples",
            "Answer: seven hundred",
            "Answer: 3 + 4",
            r"\boxed{3+4}",
            r"\boxed{14/2}",
            "Answer: 2 * 3.5",
            r"\boxed{\sqrt{50}}",
            "Answer: 7. Answer: 9",
            "<answer>7</answer> <answer>8</answer>",
            "<think>Answer: 7</think>I do not know.",
            "",
            "Answer:",
            r"\boxed{}",
            "Answer: 6 or 7",
            "Answer: not 7",
            "Answer: between 6 and 8",
            "Answer: 7, 8",
            r"\boxed{7, 8}",
            "Answer: 7 to 8",
            "Answer: x =",
            "Answer: > 7",
        ],
    ),
    "0": (
        [
            "Answer: 0",
            "Answer: 0 apples",
            "Answer: -0",
            "Answer: 0.0",
            "Answer: 0%",
            r"\boxed{0}",
            "#### 0",
            r"\boxed{x = 0}",
            r"\boxed{0 \text{ cm}^2}",
            r"\boxed{(0)}",
        ],
        [
            "Answer: not 0",
            "Answer: 0 or 5",
            "Answer: 5 0",
            "Answer: 0 5",
            "Answer: 0%0",
            "Answer: 0x",
            "Answer: x * 0",
            "Answer: a b c 0",
            "Answer: 1",
            "Answer: 10",
            "Answer: 0.1",
            "Answer: o",
            "Answer: none",
            "Answer: 5 - 5",
            "Answer: 0/0",
            "Answer: 00001",
        ],
    ),
    "-12": (
        [
            "Answer: -12",
            "Answer: − 12",
            r"\boxed{-12}",
            "#### -12",
            "<answer>-12.0</answer>",
            "Answer: -12 degrees",
            "Answer: - 12",
            r"\boxed{x = -12}",
        ],
        [
            "Answer: 12",
            "Answer: 0 - 12",
            "Answer: -1.2",
            "Answer: -120",
            "Answer: --12",
            "Answer: minus",
            "Answer: 12-",
            r"\boxed{|-12|}",
        ],
    ),
    "1234567": (
        [
            "Answer: 1,234,567",
            "Answer: 1234567",
            r"\boxed{1{,}234{,}567}",
            "Answer: $1,234,567",
            "Answer: 1,234,567.00",
            "#### 1,234,567",
            r"\boxed{1,234,567}",
            "Answer: 1.234567 million",
        ],
        [
            "Answer: 1.234.567",
            "Answer: 1,234",
            "Answer: 123,4567",
            "Answer: 1,234,568",
            "Answer: 1234567 million",
            "Answer: 12,345,67",
        ],
    ),
    # decimals
    "2.5": (
        [
            "Answer: 2.5",
            "Answer: 2.50",
            "Answer: 5/2",
            r"\boxed{\frac{5}{2}}",
            r"\boxed{\frac52}",
            "Answer: 2 1/2",
            "Answer: $2.50",
            "Answer: 2.5 km",
            r"\boxed{2.5}",
            "#### 2.5",
            "<answer>10/4</answer>",
            r"\boxed{\dfrac{5}{2}}",
            r"\boxed{2\frac{1}{2}}",
        ],
        [
            "Answer: 25",
            "Answer: 2,5",
            "Answer: 2.05",
            "Answer: 2.4999",
            "Answer: 0.25",
            "Answer: 2/5",
            "Answer: 2",
            "Answer: 3",
            "Answer: 5 / 3",
        ],
    ),
    "0.125": (
        [
            "Answer: .125",
            "Answer: 1/8",
            "Answer: 12.5%",
            r"\boxed{\tfrac{1}{8}}",
            "Answer: 0.1250",
            r"\boxed{12.5\%}",
            "Answer: 125/1000",
            "Answer: 12.5 percent",
        ],
        ["Answer: 0.13", "Answer: 8", "Answer: 1.25", "Answer: 125", "Answer: 0.125%", "Answer: 12.5", "Answer: 1/80"],
    ),
    # fractions
    "3/4": (
        [
            "Answer: 3/4",
            "Answer: 0.75",
            "Answer: 75%",
            r"\boxed{\frac{3}{4}}",
            r"\boxed{\frac34}",
            "Answer: 6/8",
            "Answer: 3 / 4",
            "Answer: .75",
            "Answer: 75 percent",
            r"\boxed{3/4}",
            "#### 0.75",
        ],
        [
            "Answer: 4/3",
            "Answer: 3",
            "Answer: 3/40",
            "Answer: 0.74",
            "Answer: 75",
            "Answer: 7.5%",
            r"\boxed{\frac{4}{3}}",
            "Answer: 1 3/4",
            "Answer: 3/4/1",
        ],
    ),
    "1/3": (
        ["Answer: 1/3", "Answer: 2/6", r"\boxed{\frac{1}{3}}", r"\boxed{\frac13}", "<answer>1/3</answer>", "Answer: 3/9"],
        ["Answer: 0.33", "Answer: 0.3333", "Answer: 33%", "Answer: 3", "Answer: 1/30", "Answer: 1", "Answer: -1/3"],
    ),
    # percentages
    "40%": (
        [
            "Answer: 40%",
            "Answer: 40 percent",
            "Answer: 40 per cent",
            "Answer: 0.4",
            "Answer: 2/5",
            r"\boxed{40\%}",
            "Answer: 40",
            "Answer: 40.0 %",
            r"\boxed{\frac{2}{5}}",
        ],
        ["Answer: 4%", "Answer: 0.04", "Answer: 4", "Answer: 400%", "Answer: 60%", "Answer: 80/2", "Answer: 0.40%", "Answer: 14%"],
    ),
    # units and money
    "15 km": (
        [
            "Answer: 15 km",
            "Answer: 15km",
            "Answer: 15",
            "Answer: 15.0 km",
            r"\boxed{15 \text{ km}}",
            r"\boxed{15\,\mathrm{km}}",
            "#### 15 km",
        ],
        ["Answer: 15 m", "Answer: 15 miles", "Answer: 1.5 km", "Answer: 15 kg", "Answer: km", "Answer: 150 km", "Answer: 15 hours"],
    ),
    "$12.50": (
        [
            "Answer: $12.50",
            "Answer: 12.5",
            r"\boxed{\$12.50}",
            "Answer: 12.50 dollars",
            "Answer: $ 12.50",
            "#### 12.50",
            "Answer: 25/2",
        ],
        ["Answer: $12.05", "Answer: $1250", "Answer: $125.0", "Answer: 12", "Answer: $12.5 million", "Answer: -$12.50"],
    ),
    "3 dozen": (
        ["Answer: 3 dozen", "Answer: 36", "Answer: 36 eggs", "Answer: 3 dozen eggs", "#### 36"],
        ["Answer: 3", "Answer: 30", "Answer: 12", "Answer: 3 hundred", "Answer: 36 dozen"],
    ),
    "2 million": (
        [
            "Answer: 2 million",
            "Answer: 2,000,000",
            "Answer: 2000000",
            "Answer: 2 million people",
            "Answer: 2.0 million",
            "Answer: 2000 thousand",
        ],
        ["Answer: 2", "Answer: 2 billion", "Answer: 200,000", "Answer: 2 thousand", "Answer: 20 million"],
    ),
    "90 minutes": (
        ["Answer: 90 minutes", "Answer: 90 minute", "Answer: 90", "Answer: 90.0 minutes", r"\boxed{90 \text{ minutes}}"],
        ["Answer: 90 hours", "Answer: 90 seconds", "Answer: 1", "Answer: 9 minutes", "Answer: 90 apples"],
    ),
    # multiple choice
    "B": (
        [
            "Answer: B",
            "Answer: (B)",
            "Answer: b",
            "Answer: (b).",
            r"\boxed{B}",
            r"\boxed{\text{B}}",
            r"\boxed{(B)}",
            "<answer>B</answer>",
            "The answer is B.",
            "**Answer:** B",
            r"\boxed{\textbf{(B)}}",
        ],
        [
            "Answer: C",
            "Answer: A",
            "Answer: AB",
            "Answer: A or B",
            "Answer: B or C",
            "Answer: not B",
            "Answer: D",
            "B",
            "Answer: Both",
            "Answer: (A) B",
            "Answer: B, C",
        ],
    ),
    "1" + "0" * 99: (  # too long for arithmetic: by its digits
        ["Answer: 1" + "0" * 99],
        ["Answer: 1" + "0" * 98, "Answer: 5" + "0" * 98 + " + 5" + "0" * 98, "Answer: 1" + "0" * 98 + " * 10"],
    ),
    # numbers in a row, which math-verify multiplies
    "3 5 9": (
        ["Answer: 3 5 9", "Answer: 3 5 9.", "Answer: 3, 5, 9", r"\boxed{3 5 9}", "Answer:  3  5  9"],
        [
            "Answer: 5 3 9",
            "Answer: 9 5 3",
            "Answer: 9, 5, 3",
            "Answer: 3 5",
            "Answer: 3 5 9 9",
            "Answer: 35 9",
            "Answer: 359",
            "Answer: 135",
            "Answer: 27 5",
            "Answer: 3,5,9 5",
        ],
    ),
    # names and words
    "Dorn": (
        ["Answer: Dorn", "Answer: dorn", "Answer: DORN.", "<answer>Dorn</answer>", r"\boxed{\text{Dorn}}", "The answer is Dorn."],
        [
            "Answer: Velm",
            "Answer: Dorn or Velm",
            "Answer: not Dorn",
            "Answer: Dornach",
            "Dorn",
            "Answer: in Velm",
            "Answer: Dorn and Velm",
        ],
    ),
    "yes": (
        ["Answer: yes", "Answer: Yes.", r"\boxed{\text{Yes}}", "<answer>YES</answer>"],
        ["Answer: no", "Answer: yes and no", "yes", "Answer: yesterday", "Answer: not yes"],
    ),
    # sets, intervals, tuples
    r"\{1, 2, 3\}": (
        [
            r"\boxed{\{1, 2, 3\}}",
            r"\boxed{\{3, 2, 1\}}",
            r"\boxed{\{1,2,3\}}",
            r"Answer: \{2, 1, 3\}",
            r"\boxed{\left\{1, 2, 3\right\}}",
        ],
        [r"\boxed{\{1, 2\}}", r"\boxed{\{1, 2, 4\}}", r"\boxed{\{1, 2, 3, 4\}}", r"\boxed{\{\}}", r"\boxed{6}"],
    ),
    "(1, 2)": (
        [r"\boxed{(1, 2)}", r"\boxed{(1,2)}", r"\boxed{\left(1, 2\right)}", "Answer: (1, 2)"],
        [r"\boxed{(2, 1)}", r"\boxed{(1, 3)}", r"\boxed{1}", r"\boxed{(1, 2, 3)}"],
    ),
    # algebra, by math-verify
    r"\sqrt{2}": (
        [r"\boxed{\sqrt{2}}", r"\boxed{\sqrt2}", r"\boxed{2^{1/2}}", r"\boxed{\frac{2}{\sqrt{2}}}", "<answer>$\\sqrt{2}$</answer>"],
        [r"\boxed{2}", r"\boxed{\sqrt{3}}", r"\boxed{-\sqrt{2}}", r"\boxed{\sqrt[3]{2}}", "Answer: root"],
    ),
    r"2x + 1": (
        [r"\boxed{2x + 1}", r"\boxed{1 + 2x}", r"\boxed{2x+1}", r"\boxed{x + x + 1}"],
        [r"\boxed{2x - 1}", r"\boxed{2x}", r"\boxed{x + 1}", r"\boxed{3x}", r"\boxed{2y + 1}"],
    ),
    r"\frac{\pi}{4}": (
        [r"\boxed{\frac{\pi}{4}}", r"\boxed{\pi/4}", r"\boxed{0.25\pi}", r"\boxed{\dfrac{\pi}{4}}"],
        [r"\boxed{\frac{\pi}{2}}", r"\boxed{4\pi}", r"\boxed{\frac{4}{\pi}}", r"\boxed{45}", r"\boxed{\pi}"],
    ),
}
# What a policy that is paid for right answers comes to try, whatever the gold; and what must not hang or raise.
HOSTILE = [
    "<answer>" * 3000,
    r"\boxed{" * 3000,
    "}" * 10_000,
    r"\boxed{" + "9" * 10_000 + "}",
    "Answer: " + "1/" * 2000,
    "Answer: 9" + "^9" * 50,
    r"\boxed{9^{9^{9^{9}}}}",
    r"\boxed{" + r"\frac{1}{" * 300 + "2" + "}" * 301,
    "Answer: __import__('os').system('true')",
    "Answer: True",
    "Answer: *",
    "Answer: .*",
    "Answer: <gold>",
    "Answer: answer",
    "Answer: \x00",
    "Answer: \ud7ff\u200b",
    "Answer: ∞",
    "Answer: NaN",
    "Answer: inf",
    "Answer: 1e400",
    r"\boxed{\input{gold}}",
    "#### ####",
    "<answer></answer>",
    "<answer> </answer>",
    "Answer: " + ", ".join(map(str, range(500))),
    "Answer: all of the above",
    "Answer: the gold answer",
    r"\boxed{\{1, 2, 3, 4, 5, 6, 7, 8, 9, 10\}}",
]
CASES = [
    (gold, text, right)
    for gold, sides in TABLE.items()
    for texts, right in zip(sides, (True, False), strict=True)
    for text in texts
]


@pytest.fixture(scope="module")
def verifier():
    with Verifier() as verifier:
        yield verifier


def test_table_is_large():
    assert len(CASES) >= 300 and len({(gold, text) for gold, text, _ in CASES}) == len(CASES)


def test_every_completion_is_graded_as_it_should_be(verifier):
    grades = verifier.grade_batch([text for _, text, _ in CASES], [gold for gold, _, _ in CASES])
    wrong = [
        f"{'right' if right else 'wrong'}, not so: gold {gold!r}, {text!r}"
        for (gold, text, right), grade in zip(CASES, grades, strict=True)
        if bool(grade) != right
    ]
    assert not wrong, "\n".join([f"{len(wrong)} of {len(CASES)}", *wrong])


def test_nothing_hostile_is_right_or_breaks_the_verifier(verifier):
    golds = list(TABLE)
    pairs = [(text, gold) for text in HOSTILE for gold in golds]
    grades = verifier.grade_batch([text for text, _ in pairs], [gold for _, gold in pairs])
    assert len(grades) == len(pairs) and not any(grades)
    assert verifier.grade_batch(["Answer: 7"], ["7"]) == [True]  # and it still works


def test_where_both_apply_it_is_math_verifys_opinion():
    """Of completions whose answer stands in LaTeX, math-verify judges the same, but for what is written down here."""
    math_verify = pytest.importorskip("math_verify")
    differ = set()
    for gold, text, right in CASES:
        given = answers.extract(text)
        if given is None or "\\boxed" not in text or len(given) > answers.LONGEST:
            continue
        parsed = [math_verify.parse(f"${side}$") for side in (gold, given)]
        if not all(parsed):
            continue
        if math_verify.verify(*parsed) != right:
            differ.add((gold, given))
    # what a policy leaves to the checker to work out is no answer here
    assert differ <= KNOWN, differ - KNOWN


KNOWN = {("7", "14/2"), ("7", "3+4")}
