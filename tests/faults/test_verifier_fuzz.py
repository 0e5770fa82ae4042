r"""No model output can stop training: hostile and random completions through everything that reads one.

Whatever a completion says, each reward gives a number or None, in little time, and the grader grades the next one right.
"""

import importlib.util
import json
import math
import random
import threading
import time
from pathlib import Path

import pytest
import test_answer_table
import test_verifier
from groundup import answers, families
from groundup.evaluation import knows
from groundup.guarding import text_of
from groundup.rewards import build_rewards
from groundup.unit_tests import program_in
from groundup.verifier import LONGEST, Verifier

DEADLINE = 0.5
HONEST = r"So it is \boxed{\frac{9}{3x}}.", r"\frac{3}{x}"
GOLDS = ["7919", HONEST[1], *(families.draw(name, 2).answer for name in families.FAMILIES)]
# What is special to one of the patterns, to LaTeX, to mathematics, to Unicode, to JSON or to chat.
PIECES = r"""
Answer: answer the\ answer\ is #### <answer> </answer> <think> </think> \boxed{ \fbox{ } { \{ \} \ \\ $ $$ \( \) \[ \]
\frac \dfrac \tfrac12 \sqrt \sqrt[3]{ ^ ^{ _ _{ ! !! % \% ^\circ \left \right ( ) [ ] | . , ; : = == < > \le \ne \pm + - * / \times
\cdot \div \sum \prod \int \lim \infty \pi \log \ln \sin \text{ \mathrm{ \begin{pmatrix} \end{pmatrix} & \cup \in x y i e
0 1 2 9 10 99 1,000 1,00 0.5 .5 5. 1e9 00 1/2 1/0 50% $5 -3 ½ ٣ 七 ² ∞ √ × − – NaN inf None True nan million dozen km/h apples
and or to not A (B) \u0000 \ud800 \u202e \u200b \u2028 \ufeff \ufffd \U0001F34E é ß ı İ ﷽ ``` ```python <|im_end|> <|endoftext|>
import\ os def\ f(): lambda __class__ ' " \n \n\n \t \r \x1b[31m
""".split()
PIECES = [json.loads(f'"{p}"') if p.startswith(("\\u", "\\n", "\\t", "\\r")) else p.replace("\\ ", " ") for p in PIECES]
PIECES = ["\x1b[31m" if piece.startswith("\\x1b") else "\U0001f34e" if piece.startswith("\\U") else piece for piece in PIECES]


def random_text(rng: random.Random) -> str:
    """Pieces and characters, half of the time where an answer is looked for."""
    pieces = [rng.choice(PIECES) if rng.random() < 0.9 else chr(rng.randrange(0x3000)) for _ in range(rng.randrange(1, 25))]
    text = rng.choice(["", " "]).join(pieces)
    form = rng.choice(["%s", "%s", "Answer: %s", r"\boxed{%s}", "<answer>%s</answer>", "#### %s"])
    return form.replace("%s", text)


@pytest.fixture(scope="module")
def texts():
    rng = random.Random(0)
    return [random_text(rng) for _ in range(10_000)]


@pytest.fixture(scope="module")
def readers():
    """All that reads a completion in this process, by name: a function of the text."""
    specs = [
        {"name": "answer_format"},
        {"name": "length", "max_words": 20},
        {"name": "repetition"},
        {"name": "repetition", "ngram": 1},
        {"name": "groundup.toyland.taste_reward"},
    ]
    if importlib.util.find_spec("py3langid"):
        specs.append({"name": "language_consistency", "language": "en"})
    rewards, _ = build_rewards(specs, max_faulty_share=0.0)
    read = {reward.__name__: lambda text, reward=reward: reward(prompts=["?"], completions=[text])[0] for reward in rewards}

    def same(text):
        given = answers.extract(text, strict=False) or ""
        verdicts = {answers.same(given, gold) for gold in GOLDS if gold not in given}
        assert True not in verdicts, "right without being so"
        return None

    row = {"answer": "Paris", "alternatives": ["Rome", "New York"]}
    return read | {
        "extract and same": same,
        "normalise": lambda text: float(len(answers.normalise(text)) < 0),
        "last number": lambda text: float(answers.last_number(text) == ""),
        "knows": lambda text: knows(text, True, row),
        "program_in": lambda text: float(len(program_in(text)) < 0),
        "text_of": lambda text: float(text_of([{"role": "assistant", "content": text}]) != text),
    }


def read_all(readers, texts, most: float) -> None:
    """Each text through each reader: a number within bounds or nothing, in at most so many seconds of this thread's own."""
    slow = []
    for text in texts:
        for name, read in readers.items():
            began = time.thread_time()
            number = read(text)
            took = time.thread_time() - began
            assert number is None or math.isfinite(number) and abs(number) <= 8 + len(text), (name, text[:200], number)
            if took > most:
                slow.append((name, round(took, 2), text[:80]))
    assert not slow


def test_random_text_is_read_by_all(readers, texts):
    assert len(set(texts)) > 9_000
    read_all(readers, texts, most=0.5)


def test_long_text_is_read_in_little_time_by_all(readers):
    """20,000 characters of each piece: what is quadratic in its length shows."""
    read_all(readers, [(piece * 20_000)[:20_000] for piece in dict.fromkeys(PIECES)], most=0.5)


def test_long_text_of_pairs_is_read_in_little_time_by_all(readers):
    rng = random.Random(1)
    pairs = [rng.sample(PIECES, 2) for _ in range(400)]
    read_all(readers, [(f"{a}{rng.choice(['', ' '])}{b}" * 5_000)[:10_000] for a, b in pairs], most=0.5)


@pytest.fixture(scope="module")
def verifier():
    with Verifier(deadline=DEADLINE) as verifier:
        yield verifier


def honest(verifier) -> bool:
    """Whether an honest answer is graded right, in whatever time a loaded machine takes for it."""
    verifier.deadline, deadline = 60.0, verifier.deadline
    try:
        return any(verifier.grade(*HONEST) for _ in range(2))  # the child that is there may have its alarm set for the old deadline
    finally:
        verifier.deadline = deadline


HOSTILE = [*test_verifier.HOSTILE.values(), *test_answer_table.HOSTILE]


def test_hostile_text_is_read_by_all(readers):
    read_all(readers, HOSTILE, most=0.5)


def test_hostile_answers_take_no_longer_than_the_deadline_and_half_a_second(verifier):
    """From a child that is there: one that was killed is replaced, which takes its time, when the next is asked."""
    late = []
    for text in HOSTILE:
        took = []
        while len(took) < 3 and (not took or took[-1] > DEADLINE + 0.5):  # it was another process's turn, perhaps
            assert honest(verifier)
            began = time.monotonic()
            assert verifier.grade(text, HONEST[1]) is False
            took.append(time.monotonic() - began)
        if min(took) > DEADLINE + 0.5:
            late.append((text[:60], took))
    assert not late and honest(verifier)


def test_random_answers_are_graded_and_none_is_right(texts):
    stated = [text for text in texts if (answer := answers.extract(text)) and len(answer) <= LONGEST]
    asked = [text for text in stated if answers.same(answers.extract(text), "7919") is None][:2_000]  # the child
    with Verifier(deadline=10.0) as verifier:
        grades = verifier.grade_batch(asked, ["7919"] * len(asked))
        assert len(stated) > 5_000 and verifier.asked > 1_500
        assert not any(grades) and verifier.crashes == 0 and verifier.timeouts <= 5
        assert honest(verifier)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads sizes from /proc")
@pytest.mark.parametrize("eater", [r"\boxed{2^{10^{10}}+x}", r"\boxed{2^{2^{32}}+x}"])
def test_memory_of_the_child_stays_within_its_limit(eater):
    """A limit that is little more than what the child begins with, so that it is reached at once."""
    limit, peak, done = 96 * 2**20, [0], threading.Event()
    with Verifier(deadline=10.0, memory=limit) as verifier:
        assert honest(verifier)
        status = Path(f"/proc/{verifier._process.pid}/status")

        def look():
            while not done.is_set():
                try:
                    sizes = [line for line in status.read_text().splitlines() if line.startswith("VmPeak")]
                except OSError:  # it was killed
                    return
                peak[0] = max([peak[0], *(int(line.split()[1]) * 1024 for line in sizes)])

        thread = threading.Thread(target=look)
        thread.start()
        assert verifier.grade(eater, "y+1") is False
        done.set()
        thread.join()
        assert 0.8 * limit < peak[0] <= limit
        assert honest(verifier)
