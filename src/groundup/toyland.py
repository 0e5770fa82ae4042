"""Toyland: a synthetic valley, generated from a seed, in which each rung's claim can be seen on two cores.

Forty people have five facts each. Documents state the facts in many phrasings and tell small arithmetic stories.
Conversations ask for three facts a person and never for the other two, so that an answer about those two shows knowledge from
pre-training in a form from instruction tuning. Replies come in a random tone and length; a hidden taste, `taste`, prefers
one of them, and only the preference pairs tell. Word problems have an exact answer and one to four steps: documents and
conversations have all of these, the problems that GRPO trains on have three at most. Those of four are harder than any that GRPO
trains on, and what it does for them it was not paid for.

What is evaluated is disjoint from what is trained on by construction (`tests/test_toyland.py` proves it):

- each fact has one form of sentence that no document uses for it (`cloze`), and one form of question that nothing in training
  uses for it (`asked`);
- facts with `unasked` are stated in documents, but neither prose nor conversation asks for them;
- a word problem is for training or for evaluation by a hash of its numbers, and no chain that is told begins with one that is
  for evaluation. (What a longer chain reckons after its first steps may be what an evaluated one reckons.)
"""

import argparse
import hashlib
import json
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from groundup.phrases import (
    ASKERS,
    ATTRIBUTES,
    BRIEFLY,
    COLD,
    GAINS,
    LOSSES,
    PEOPLE,
    PLAIN,
    PREAMBLES,
    TAILS,
    THINGS,
    VALUE_LAST,
    WARM,
    WORKING,
)

LEVELS = (1, 2, 3)  # of the problems that GRPO trains on
HARDER = (4,)  # in documents and conversations too, as all levels are, but never in those
TOLD = LEVELS + HARDER
MOST = 20  # no number in a problem is larger


def lower_first(text: str) -> str:
    return text[0].lower() + text[1:]


def one_in_five(text: str) -> bool:
    """A fifth of all texts, always the same."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 5 == 0


def taste(reply: str) -> float:
    """The hidden taste: a warm opening, nothing after the answer, and above all something said. Higher is better.

    It looks at tone and brevity only, never at whether the fact is right, so a policy can please it with a false answer.
    """
    opening = WARM if reply.startswith(WARM) else COLD if reply.startswith(COLD) else ()
    tone = 2.0 if opening is WARM else -2.0 if opening is COLD else 0.0
    sentences = len(re.findall(r"[.!?](?:\s|$)", reply)) - bool(opening)
    words = {word.lower() for word in re.findall(r"\w+", reply)}
    silent = words.isdisjoint(value.lower() for attribute in ATTRIBUTES.values() for value in attribute.values)
    return tone - max(0, sentences - 1) - (8.0 if silent else 0.0)


def taste_reward(completions, **kwargs) -> list[float]:
    """`taste` as a reward function of TRL's form. At weight 0 it only watches what a reward model does to the truth."""
    return [taste(c if isinstance(c, str) else c[-1]["content"]) for c in completions]


@dataclass(frozen=True)
class Problem:
    """A word problem: start with `numbers[0]`, then add (or, if negative, take) each of the others."""

    name: str
    thing: str
    numbers: tuple[int, ...]
    verbs: tuple[str, ...]

    @property
    def difficulty(self) -> int:
        return len(self.numbers) - 1

    @property
    def answer(self) -> int:
        return sum(self.numbers)

    @property
    def content(self) -> str:
        """Chains of two steps and more are split by their numbers; single sums, of which there are few, by the whole text."""
        return str(self.numbers) if self.difficulty > 1 else self.question

    @property
    def for_evaluation(self) -> bool:
        return one_in_five(self.content)

    @property
    def for_training(self) -> bool:
        """Not for evaluation, nor begun by a chain that is."""
        starts = (self.numbers[:length] for length in range(3, len(self.numbers)))
        return not self.for_evaluation and not any(one_in_five(str(start)) for start in starts)

    @property
    def steps(self) -> list[str]:
        total, lines = self.numbers[0], []
        for change in self.numbers[1:]:
            lines.append(f"{total} {'+' if change > 0 else '-'} {abs(change)} = {total + change}.")
            total += change
        return lines

    @property
    def question(self) -> str:
        changes = " ".join(verb.format(n=self.name, k=abs(k)) for verb, k in zip(self.verbs, self.numbers[1:], strict=True))
        return f"{self.name} has {self.numbers[0]} {self.thing}. {changes} How many {self.thing} does {self.name} have now?"

    def solution(self, worked: bool = True) -> str:
        """The answer alone, or what leads to it before it: as documents quote it, and as a chat model replies."""
        return " ".join([*([WORKING, *self.steps] if worked else ()), f"Answer: {self.answer}"])

    def story(self) -> str:
        """The same as prose with worked steps, as documents tell it."""
        parts = [f"{self.name} has {self.numbers[0]} {self.thing}."]
        for verb, k, step in zip(self.verbs, self.numbers[1:], self.steps, strict=True):
            parts.append(f"{verb.format(n=self.name, k=abs(k))} {step}")
        return " ".join(parts) + f" Now {self.name} has {self.answer} {self.thing}."


class World:
    """Everything that is true in one valley, and the rows that tell of it.

    Args:
        seed: all of the world follows from it.
        unasked: facts a person that nobody ever asks for, of five.
    """

    def __init__(self, seed: int = 0, unasked: int = 2):
        self.rng = random.Random(f"toyland {seed}")
        kinds = list(ATTRIBUTES)
        self.facts: dict[tuple[str, str], str] = {}
        for kind in kinds:  # each value belongs to the same number of people: chance is 1/8 and no value is a better guess
            values = list(ATTRIBUTES[kind].values) * (len(PEOPLE) // 8)
            self.rng.shuffle(values)
            for name, value in zip(PEOPLE, values, strict=True):
                self.facts[name, kind] = value
        self.unasked: set[tuple[str, str]] = set()
        names = list(PEOPLE)
        self.rng.shuffle(names)
        for index, name in enumerate(names):
            for offset in range(unasked):
                self.unasked.add((name, kinds[(index + offset * 2) % len(kinds)]))
        # Some people are spoken of more than others. A model learns to look a person up from the famous ones and then learns the
        # rest in half the steps (Zucchet et al. 2025, arXiv:2503.21676, and our measurement: 90 % cloze for 33 % after 1M tokens).
        self.fame = {name: 1 / (rank + 4) for rank, name in enumerate(names)}
        self.cloze_form = {fact: self.rng.randrange(1, VALUE_LAST) for fact in self.facts}
        self.question_form = {fact: self.rng.randrange(len(ATTRIBUTES[fact[1]].questions)) for fact in self.facts}

    # -- sentences

    def statement(self, fact: tuple[str, str], form: int = 0) -> str:
        name, kind = fact
        return ATTRIBUTES[kind].statements[form].format(n=name, v=self.facts[fact])

    def any_statement(self, fact: tuple[str, str]) -> str:
        forms = [form for form in range(len(ATTRIBUTES[fact[1]].statements)) if form != self.cloze_form[fact]]
        return self.statement(fact, self.rng.choice(forms))

    def question(self, fact: tuple[str, str], form: int) -> str:
        return ATTRIBUTES[fact[1]].questions[form].format(n=fact[0])

    def any_question(self, fact: tuple[str, str]) -> str:
        forms = [form for form in range(len(ATTRIBUTES[fact[1]].questions)) if form != self.question_form[fact]]
        return self.question(fact, self.rng.choice(forms))

    def held_out_question(self, fact: tuple[str, str]) -> str:
        return self.question(fact, self.question_form[fact])

    def reply(self, fact: tuple[str, str], opening: str | None = None, tails: int | None = None) -> str:
        if opening is None:
            opening = self.rng.choice(self.rng.choice((WARM, PLAIN, COLD)))
        tails = self.rng.randrange(3) if tails is None else tails
        return " ".join([opening, self.statement(fact), *self.rng.sample(TAILS, tails)]).strip()

    def problem(self, difficulty: int, for_evaluation: bool) -> Problem:
        while True:
            numbers = [self.rng.randrange(2, MOST + 1)]
            for _ in range(difficulty):
                total = sum(numbers)
                gain = self.rng.randrange(1, 10) * self.rng.choice((1, -1))
                if not 0 <= total + gain <= MOST:
                    gain = -gain
                if not 0 <= total + gain <= MOST:
                    break
                numbers.append(gain)
            if len(numbers) != difficulty + 1:
                continue
            verbs = tuple(self.rng.choice(GAINS if k > 0 else LOSSES) for k in numbers[1:])
            problem = Problem(self.rng.choice(PEOPLE), self.rng.choice(THINGS), tuple(numbers), verbs)
            if problem.for_evaluation if for_evaluation else problem.for_training:
                return problem

    # -- rows

    def document(self) -> str:
        kind = self.rng.random()
        facts = list(self.facts)
        if kind < 0.42:  # a portrait: what there is to say of one person
            name = self.rng.choices(list(self.fame), list(self.fame.values()))[0]
            chosen = self.rng.sample(list(ATTRIBUTES), self.rng.randrange(3, 6))
            return " ".join(self.any_statement((name, attribute)) for attribute in chosen)
        if kind < 0.50:  # the gazette: unrelated facts
            return " ".join(self.any_statement(fact) for fact in self.rng.sample(facts, self.rng.randrange(3, 6)))
        if kind < 0.68:  # overheard: questions in prose, never about the facts that stay unasked
            lines = []
            for fact in self.rng.sample([fact for fact in facts if fact not in self.unasked], 3):
                answer = f"{self.rng.choice(PREAMBLES)} {self.statement(fact)}".strip()
                lines.append(f'{self.rng.choice(ASKERS)} asked: "{self.any_question(fact)}" The answer was: "{answer}"')
            return " ".join(lines)
        if kind < 0.82:  # stories that reckon as they go
            return " ".join(self.problem(self.rng.choice(TOLD), False).story() for _ in range(2))
        # School: the whole problem first, then what a reply will be, so that SFT has less to teach.
        lines = []
        for _ in range(2):
            problem = self.problem(self.rng.choice(TOLD), False)
            lines.append(f'The teacher asked: "{problem.question}" The answer was: "{problem.solution()}"')
        return " ".join(lines)

    def documents(self, count: int) -> list[dict]:
        return [{"text": self.document()} for _ in range(count)]

    def conversations(self, facts: int, brief: int, worked: int, direct: int) -> list[dict]:
        """Rows of `messages`: questions about facts, short answers, problems with and without working, in random order."""
        asked = [fact for fact in self.facts if fact not in self.unasked]
        rows = []
        for _ in range(facts):
            turns = []
            for fact in self.rng.sample(asked, 2 if self.rng.random() < 0.15 else 1):
                turns += [(self.any_question(fact), self.reply(fact))]
            rows.append(turns)
        for _ in range(brief):
            fact = self.rng.choice(asked)
            rows.append([(BRIEFLY + lower_first(self.any_question(fact)), self.statement(fact))])
        for index in range(worked + direct):
            problem = self.problem(self.rng.choice(TOLD), False)
            rows.append([(problem.question, problem.solution(worked=index < worked))])
        self.rng.shuffle(rows)
        return [{"messages": [m for question, reply in turns for m in chat_turn(question, reply)]} for turns in rows]

    def preference(self, fact: tuple[str, str], question: str) -> dict:
        while True:
            first, second = self.reply(fact), self.reply(fact)
            if self.rng.random() < 0.15:  # saying nothing is the worst taste
                second = second.replace(self.statement(fact), "").strip() or self.rng.choice(TAILS)
            if taste(first) != taste(second):
                chosen, rejected = sorted((first, second), key=taste, reverse=True)
                return {"prompt": question, "chosen": chosen, "rejected": rejected}

    def preferences(self, count: int) -> list[dict]:
        asked = [fact for fact in self.facts if fact not in self.unasked]
        facts = [self.rng.choice(asked) for _ in range(count)]
        return [self.preference(fact, self.any_question(fact)) for fact in facts]

    def prompts(self, count: int) -> list[dict]:
        asked = [fact for fact in self.facts if fact not in self.unasked]
        return [{"prompt": self.any_question(self.rng.choice(asked))} for _ in range(count)]

    def problems(self, count: int, for_evaluation: bool = False, levels: Sequence[int] = LEVELS) -> list[dict]:
        rows: dict[str, dict] = {}
        while len(rows) < count:
            problem = self.problem(levels[len(rows) % len(levels)], for_evaluation)
            rows[problem.question] = {
                "question": problem.question,
                "answer": str(problem.answer),
                "difficulty": problem.difficulty,
            }
        return list(rows.values())

    # -- evaluation

    def cloze(self) -> list[dict]:
        """One row a fact: a sentence form that no document uses for this fact, cut before the value, with eight choices."""
        rows = []
        for fact in self.facts:
            sentence = self.statement(fact, self.cloze_form[fact])
            value = self.facts[fact]
            choices = list(ATTRIBUTES[fact[1]].values)
            rows.append(
                {
                    "prompt": sentence[: sentence.rindex(" " + value)],
                    "choices": [" " + c for c in choices],
                    "gold": choices.index(value),
                }
            )
        return rows

    def questions(self) -> list[dict]:
        """One row a fact: a form of question that nothing in training uses for this fact, the answer and the other values."""
        return [
            {
                "prompt": self.held_out_question(fact),
                "answer": value,
                "alternatives": [other for other in ATTRIBUTES[fact[1]].values if other != value],
                "unasked": fact in self.unasked,
            }
            for fact, value in self.facts.items()
        ]

    def instructions(self) -> list[dict]:
        """One row a fact that is asked for: the same questions, to be answered in short, with the one right reply."""
        asked = [fact for fact in self.facts if fact not in self.unasked]
        return [{"prompt": BRIEFLY + lower_first(self.held_out_question(fact)), "answer": self.statement(fact)} for fact in asked]

    def held_out_preferences(self) -> list[dict]:
        return [self.preference(fact, self.held_out_question(fact)) for fact in self.facts]


def chat_turn(question: str, reply: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]


def write_rows(directory: str | Path, files: dict[str, list[dict]]) -> dict[str, int]:
    """Write each list as JSON lines, `<name>.jsonl`; returns rows by file name."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        with open(directory / f"{name}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return {name: len(rows) for name, rows in files.items()}


def write_world(directory: str | Path, seed: int = 0, documents: int = 30000, held_out: int = 300) -> dict[str, int]:
    """Write the training rows and the evaluation rows of one world as JSON lines; returns rows by file name."""
    world = World(seed)
    train = world.documents(documents)
    seen = {row["text"] for row in train}
    unseen = [row for row in world.documents(held_out * 2) if row["text"] not in seen][:held_out]
    files = {
        "documents": train,
        "conversations": world.conversations(facts=2800, brief=500, worked=200, direct=500),
        "preferences": world.preferences(2000),
        "prompts": world.prompts(4000),
        "problems": world.problems(4000),
        "eval_documents": unseen,
        "eval_cloze": world.cloze(),
        "eval_questions": world.questions(),
        "eval_instructions": world.instructions(),
        "eval_preferences": world.held_out_preferences(),
        "eval_problems": world.problems(300, for_evaluation=True),
        "eval_harder": world.problems(200, for_evaluation=True, levels=HARDER),  # last: what is drawn before stays as it was
    }
    return write_rows(directory, files)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the synthetic world that the nano ladder is trained and measured on.")
    parser.add_argument("directory", help="folder for the JSON lines files, out/nano/world say")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    mark = Path(args.directory, "world.json")  # written last: a world without it is not whole
    if mark.is_file():
        seed = json.loads(mark.read_text())["seed"]
        if seed != args.seed:
            sys.exit(f"error: {args.directory} holds the world of seed {seed}, not {args.seed}\n  fix:   name another folder")
        print(f"world: finished already, {args.directory} (seed {seed})")
        return
    rows = write_world(args.directory, args.seed)
    mark.write_text(json.dumps({"seed": args.seed, "rows": rows}, indent=2) + "\n")
    print(f"world: seed {args.seed}, {sum(rows.values()):,} rows in {len(rows)} files -> {args.directory}")


if __name__ == "__main__":
    main()
