"""Problems with a dial: seven families whose difficulty goes from 1 up without a top, for GRPO on models of 1M to 1B parameters.

| family | what the difficulty makes longer |
|---|---|
| counting | the list: 3 + 2 d words, of which one is counted |
| comparing | the numbers: three of d + 1 digits, alike up to some digit |
| sorting | the list: d + 2 numbers |
| arithmetic | the numbers: d + 1 digits; sums, differences, products with one digit |
| chains | the story: d gains and losses, as in toyland's word problems |
| two_hop | the path: d friends, then what the last one sells, told among other facts |
| logic | the people: d + 2 by height from clues two at a time, or d + 1 who lie or tell the truth about each other |

Questions say all that is needed, in the few words that toyland speaks, and have one right answer, which `correct_answer` grades.
There are as many as one asks for. A problem is for training or for evaluation by a hash of its content, never by a draw.
"""

import argparse
import itertools
import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from groundup.errors import InputError
from groundup.phrases import ATTRIBUTES, GAINS, LOSSES, PEOPLE, THINGS
from groundup.toyland import MOST, Problem, chat_turn, one_in_five, write_rows

REPEATS = 1000  # so many draws in a row that were seen before mean that there is nothing new


class Drawn(NamedTuple):
    """What a family draws. `content` is what makes two problems the same, whatever the order they are told in."""

    question: str
    steps: list[str]
    answer: str
    content: str


@dataclass(frozen=True)
class Puzzle:
    """A problem, its solution line by line, and its one right answer."""

    family: str
    difficulty: int
    question: str
    steps: tuple[str, ...]
    answer: str
    content: str

    @property
    def for_evaluation(self) -> bool:
        return one_in_five(self.content)

    @property
    def row(self) -> dict:
        return {"question": self.question, "answer": self.answer, "difficulty": self.difficulty, "family": self.family}

    @property
    def conversation(self) -> dict:
        return {"messages": chat_turn(self.question, " ".join([*self.steps, f"Answer: {self.answer}"]))}


def some_people(rng: random.Random, count: int) -> list[str]:
    """Different names; where forty people are too few, all have double names, or triple ones."""
    parts = next(n for n in itertools.count(1) if len(PEOPLE) ** n >= count)
    picked = rng.sample(range(len(PEOPLE) ** parts), count)
    return ["-".join(PEOPLE[number // len(PEOPLE) ** n % len(PEOPLE)] for n in range(parts)) for number in picked]


# --- The families ----------------------------------------------------------------------------------------------------


def counting(rng: random.Random, difficulty: int) -> Drawn:
    wanted, *others = rng.sample(ATTRIBUTES["pet"].values, 3)
    length = 3 + 2 * difficulty
    count = rng.randint(0, length)  # evenly: the middle would be a good guess otherwise
    words = [wanted] * count + rng.choices(others, k=length - count)
    rng.shuffle(words)
    steps = [f"{word}: {words[: n + 1].count(wanted)}." for n, word in enumerate(words)]
    question = f"Listen: {', '.join(words)}. How often was {wanted} said?"
    return Drawn(question, steps, str(count), question)


def comparing(rng: random.Random, difficulty: int) -> Drawn:
    alike, low = rng.randint(0, difficulty), 10**difficulty
    prefix = rng.randrange(low, 10 * low)
    unit = 10 ** (difficulty + 1 - alike)
    start = prefix // unit * unit
    numbers: list[int] = []
    while len(numbers) < 3:
        number = rng.randrange(max(low, start), start + unit)
        if number not in numbers:
            numbers.append(number)
    name, best = rng.choice((("largest", max), ("smallest", min)))
    steps, found = [], numbers[0]
    for number in numbers[1:]:
        steps.append(f"{found} {'<' if found < number else '>'} {number}.")
        found = best(found, number)
    question = f"Which number is the {name}: {', '.join(map(str, numbers))}?"
    return Drawn(question, steps, str(found), f"comparing {sorted(numbers)}")


def sorting(rng: random.Random, difficulty: int) -> Drawn:
    """Worked by merging: each step sorts two parts that are sorted."""
    length = difficulty + 2
    numbers = rng.sample(range(10, max(100, 4 * length)), length)
    steps, parts = [], [[number] for number in numbers]
    while len(parts) > 1:
        merged = [sorted(left + right) for left, right in zip(parts[::2], parts[1::2], strict=False)]
        for left, right, both in zip(parts[::2], parts[1::2], merged, strict=False):
            steps.append(f"{listed(left)} and {listed(right)}: {listed(both)}.")
        parts = merged + parts[2 * len(merged) :]
    return Drawn(
        f"Sort from the smallest to the largest: {listed(numbers)}.", steps, listed(parts[0]), f"sorting {sorted(numbers)}"
    )


def listed(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers))


def arithmetic(rng: random.Random, difficulty: int) -> Drawn:
    """Worked in columns from the right, as on paper."""
    low = 10**difficulty
    a, b = sorted((rng.randrange(low, 10 * low), rng.randrange(low, 10 * low)), reverse=True)
    sign = rng.choice("+-*")
    if sign == "*":
        b = rng.randrange(2, 10)
    shown = (a, b) if sign == "-" or rng.random() < 0.5 else (b, a)
    steps, carry = [], 0
    for n in range(difficulty + 1):
        x, y = a // 10**n % 10, b if sign == "*" else b // 10**n % 10
        if sign == "-":
            short = x < y + carry
            left = f"{'10 + ' * short}{x} - {y}{' - 1' * carry}"
            total, carry = x - y - carry + 10 * short, int(short)
            steps.append(f"{left} = {total}{', borrow 1' * short}.")
            continue
        left = f"{x} {sign} {y}{f' + {carry}' * bool(carry)}"
        total = carry + (x + y if sign == "+" else x * y)
        carry = total // 10
        more = carry and n < difficulty
        steps.append(f"{left} = {total}{f', write {total % 10}, carry {carry}' * bool(more)}.")
    answer = {"+": a + b, "-": a - b, "*": a * b}[sign]
    return Drawn(f"What is {shown[0]} {sign} {shown[1]}?", steps, str(answer), f"{a} {sign} {b}")


def chains(rng: random.Random, difficulty: int) -> Drawn:
    """A word problem none of whose beginnings is for evaluation, so that to work it tells nothing of one that is."""
    numbers: list[int] = []
    while len(numbers) <= difficulty:
        if not numbers:
            numbers = [rng.randrange(2, MOST + 1)]
        total, last = sum(numbers), len(numbers) == difficulty
        changes = [k for k in range(-9, 10) if k and 0 <= total + k <= MOST]
        if len(numbers) > 1 and not last:
            changes = [k for k in changes if not one_in_five(str((*numbers, k)))]
        numbers = [*numbers, rng.choice(changes)] if changes else []
    verbs = tuple(rng.choice(GAINS if k > 0 else LOSSES) for k in numbers[1:])
    problem = Problem(rng.choice(PEOPLE), rng.choice(THINGS), tuple(numbers), verbs)
    return Drawn(problem.question, problem.steps, str(problem.answer), problem.content)


def two_hop(rng: random.Random, difficulty: int) -> Drawn:
    people = some_people(rng, difficulty + 3)
    friends = [f"The friend of {one} is {other}." for one, other in zip(people, [*people[1:], people[0]], strict=True)]
    goods = [rng.choice(THINGS) for _ in people]
    sells = [f"{name} sells {thing}." for name, thing in zip(people, goods, strict=True)]
    facts = friends + sells
    rng.shuffle(facts)
    asked = f"What does {'the friend of ' * difficulty}{people[0]} sell?"
    steps = [*friends[:difficulty], sells[difficulty]]
    return Drawn(" ".join([*facts, asked]), steps, goods[difficulty], " ".join([*sorted(facts), asked]))


def logic(rng: random.Random, difficulty: int) -> Drawn:
    return rng.choice((heights, liars))(rng, difficulty)


def heights(rng: random.Random, difficulty: int) -> Drawn:
    """Clues about neighbours only: they make one order, and none can be left out."""
    people = some_people(rng, difficulty + 2)
    pairs = list(itertools.pairwise(people))
    rng.shuffle(pairs)
    clues = [rng.choice((f"{a} is taller than {b}.", f"{b} is shorter than {a}.")) for a, b in pairs]
    place = rng.randint(1, len(people))
    asked = f"From the tallest down, who is number {place}?"
    steps = [f"{n}: {name}." for n, name in enumerate(people[:place], start=1)]
    return Drawn(" ".join([*clues, asked]), steps, people[place - 1], " ".join([" > ".join(people), asked]))


def liars(rng: random.Random, difficulty: int) -> Drawn:
    """One is known, each other one speaks of somebody before: what is said of the known makes the speaker known."""
    people = some_people(rng, difficulty + 1)
    says = {True: "tells the truth", False: "lies"}
    honest = [rng.random() < 0.5]
    clues = steps = [f"{people[0]} {says[honest[0]]}."]
    for name in people[1:]:
        of, claim = rng.randrange(len(honest)), rng.random() < 0.5
        honest.append(claim == honest[of])
        said = f"{name} says that {people[of]} {says[claim]}"
        clues, steps = [*clues, f"{said}."], [*steps, f"{said}, so {name} {says[honest[-1]]}."]
    clues = rng.sample(clues, len(clues))
    asked = "How many of them lie?"
    return Drawn(" ".join([*clues, asked]), steps, str(honest.count(False)), " ".join([*sorted(clues), asked]))


FAMILIES: dict[str, Callable[[random.Random, int], Drawn]] = {
    family.__name__: family for family in (counting, comparing, sorting, arithmetic, chains, two_hop, logic)
}


# --- Supply ----------------------------------------------------------------------------------------------------------


def draw(family: str, difficulty: int, seed: int = 0, index: int = 0, for_evaluation: bool = False) -> Puzzle:
    """One problem; all of it follows from the arguments.

    Raises:
        InputError: no such family, or a difficulty below 1.
    """
    if family not in FAMILIES:
        raise InputError(f"no family is called `{family}`", "families", f"take some of {', '.join(FAMILIES)}")
    if difficulty < 1:
        raise InputError(f"there is no difficulty {difficulty}", "difficulties", "1 is the easiest")
    rng = random.Random(f"{family} {difficulty} {seed} {index}")
    while True:
        puzzle = Puzzle(family, difficulty, *FAMILIES[family](rng, difficulty))
        if puzzle.for_evaluation == for_evaluation:
            return puzzle


def supply(family: str, difficulty: int, seed: int = 0, for_evaluation: bool = False) -> Iterator[Puzzle]:
    """Problems without end; the same one may come twice."""
    return (draw(family, difficulty, seed, index, for_evaluation) for index in itertools.count())


def take(supplies: Sequence[Iterator[Puzzle]], count: int, seen: set[str]) -> list[Puzzle]:
    """`count` problems from the supplies in turn, none whose question was seen before; adds theirs to `seen`.

    Raises:
        InputError: a supply that has nothing new.
    """
    taken: list[Puzzle] = []
    for n in range(count):
        draws = itertools.islice(supplies[n % len(supplies)], REPEATS)
        puzzle = next((puzzle for puzzle in draws if puzzle.question not in seen), None)
        if puzzle is None:
            last = next(supplies[n % len(supplies)])
            raise InputError(
                f"there are no {count} different problems",
                f"{last.family}, difficulty {last.difficulty}",
                "ask for fewer, or for more families or difficulties",
            )
        seen.add(puzzle.question)
        taken.append(puzzle)
    return taken


def write_problems(
    directory: str | Path,
    families: Sequence[str],
    difficulties: Sequence[int],
    count: int,
    held_out: int = 300,
    conversations: int = 0,
    seed: int = 0,
) -> dict[str, int]:
    """Write rows for training and evaluation as JSON lines; returns rows by file name.

    Args:
        count: problems for training, evenly over families and difficulties.
        held_out: problems of each of the two evaluation files: of the same difficulties, and one above the hardest.
        conversations: worked problems for instruction tuning, none of which is among the `count`.

    Raises:
        InputError: no such family or difficulty, or fewer different problems than are asked for.
    """

    def supplies(levels: Iterable[int], for_evaluation: bool) -> list[Iterator[Puzzle]]:
        return [supply(family, level, seed, for_evaluation) for level in levels for family in families]

    trained, seen = supplies(difficulties, False), set()
    files = {
        "problems": [puzzle.row for puzzle in take(trained, count, seen)],
        "eval_problems": [puzzle.row for puzzle in take(supplies(difficulties, True), held_out, seen)],
        "eval_harder": [puzzle.row for puzzle in take(supplies([max(difficulties) + 1], True), held_out, seen)],
    }
    if conversations:
        files["conversations"] = [puzzle.conversation for puzzle in take(trained, conversations, seen)]
    return write_rows(directory, files)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write problems of the families, for training and held out.")
    parser.add_argument("directory", help="folder for the JSON lines files")
    parser.add_argument(
        "--families", nargs="+", default=list(FAMILIES), choices=FAMILIES, metavar="FAMILY", help=", ".join(FAMILIES)
    )
    parser.add_argument("--difficulties", nargs="+", type=int, default=[1, 2, 3], metavar="D", help="from 1 up")
    parser.add_argument("--count", type=int, default=4000, help="problems for training")
    parser.add_argument("--held_out", type=int, default=300, help="problems of each evaluation file")
    parser.add_argument("--conversations", type=int, default=0, help="worked problems for instruction tuning")
    parser.add_argument("--seed", type=int, default=0)
    settings = vars(parser.parse_args())
    directory = settings.pop("directory")
    mark = Path(directory, "families.json")  # written last: problems without it are not whole
    try:
        if mark.is_file():
            held = json.loads(mark.read_text())["settings"]
            if held != settings:
                different = {key: value for key, value in held.items() if settings.get(key) != value}
                raise InputError(f"the problems there were made with {different}", directory, "name another folder")
            print(f"families: finished already, {directory}")
            return
        rows = write_problems(directory, **settings)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    mark.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")
    print(f"families: {sum(rows.values()):,} rows in {len(rows)} files -> {directory}")


if __name__ == "__main__":
    main()
