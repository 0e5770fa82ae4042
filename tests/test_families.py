"""Each problem solved a second way, from its question's text alone; graded right when right and wrong when wrong; held apart."""

import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
from groundup import families, rewards
from groundup.answers import ends_in_one_answer
from groundup.errors import InputError
from groundup.families import FAMILIES, draw, write_problems
from groundup.phrases import THINGS
from groundup.toyland import Problem, one_in_five

LEVELS = (1, 2, 3, 6, 10, 20)
SAYS = r"tells the truth|lies"


def some(family, difficulty, count=40, for_evaluation=False):
    return [draw(family, difficulty, seed=n % 3, index=n, for_evaluation=for_evaluation) for n in range(count)]


def numbers_in(text):
    return [int(number) for number in re.findall(r"\d+", text)]


# ---- A second solver: text in, answer out


def solve_counting(question):
    words, wanted = re.fullmatch(r"Listen: (.*)\. How often was (\w+) said\?", question).groups()
    return str(words.split(", ").count(wanted))


def solve_comparing(question):
    name, numbers = re.fullmatch(r"Which number is the (largest|smallest): ([\d, ]+)\?", question).groups()
    return str(sorted(numbers_in(numbers))[-1 if name == "largest" else 0])


def solve_sorting(question):
    (numbers,) = re.fullmatch(r"Sort from the smallest to the largest: ([\d ]+)\.", question).groups()
    return " ".join(sorted(numbers.split(), key=int))


def solve_arithmetic(question):
    a, sign, b = re.fullmatch(r"What is (\d+) ([-+*]) (\d+)\?", question).groups()
    return str({"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[sign](int(a), int(b)))


def solve_chains(question):
    (start,) = re.match(r"\w+ has (\d+) ", question).groups()
    gains = re.findall(r"(?:finds|buys|gets) (\d+) more\.", question)
    losses = re.findall(r"(?:gives away|loses|sells) (\d+)\.", question)
    assert len(gains) + len(losses) + 1 == len(numbers_in(question))
    return str(int(start) + sum(map(int, gains)) - sum(map(int, losses)))


def solve_two_hop(question):
    friends = re.findall(r"The friend of ([\w-]+) is ([\w-]+)\.", question)
    sells = re.findall(r"([\w-]+) sells (\w+)\.", question)
    path, name = re.search(r"What does ((?:the friend of )+)([\w-]+) sell\?$", question).groups()
    reached = {name}
    for _ in range(path.count("friend")):
        reached = {other for one, other in friends if one in reached}
    (answer,) = {thing for seller, thing in sells if seller in reached}  # one, whoever else is told of
    return answer


def orders(question):
    """Every order, from the tallest, that the clues allow, by trying all."""
    taller = re.findall(r"([\w-]+) is taller than ([\w-]+)\.", question)
    taller += [(a, b) for b, a in re.findall(r"([\w-]+) is shorter than ([\w-]+)\.", question)]
    people = sorted({name for pair in taller for name in pair})
    if len(people) > 6:  # too many to try: who is nobody's shorter comes first
        left, order = set(people), []
        while left:
            (first,) = left - {b for a, b in taller if a in left}  # one, or the order is not the only one
            order.append(first)
            left.remove(first)
        return [tuple(order)]
    return [order for order in itertools.permutations(people) if all(order.index(a) < order.index(b) for a, b in taller)]


def truths(question):
    """Every way to be honest or not that the clues allow, by trying all."""
    said = re.findall(rf"([\w-]+) says that ([\w-]+) ({SAYS})\.", question)
    known = re.findall(rf"(?:^|\. )([\w-]+) ({SAYS})\.", question)
    people = sorted({name for clue in (*said, *known) for name in clue[:-1]})
    allowed = []
    for values in itertools.product((True, False), repeat=len(people)):
        honest = dict(zip(people, values, strict=True))
        told = all(honest[name] == (claim == "tells the truth") for name, claim in known)
        if told and all(honest[name] == (honest[of] == (claim == "tells the truth")) for name, of, claim in said):
            allowed.append(honest)
    return allowed


def solve_logic(question):
    if question.endswith("How many of them lie?"):
        (honest,) = truths(question)
        return str(list(honest.values()).count(False))
    (order,) = orders(question)
    return order[int(re.search(r"who is number (\d+)\?$", question)[1]) - 1]


SOLVERS = {name.removeprefix("solve_"): solver for name, solver in list(globals().items()) if name.startswith("solve_")}


def test_there_is_a_solver_for_each():
    assert set(SOLVERS) == set(FAMILIES) and len(FAMILIES) == 7


@pytest.mark.parametrize("difficulty", LEVELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_second_solution_agrees(family, difficulty):
    few = family == "logic" and difficulty > 6  # 2 ** 21 ways
    for puzzle in some(family, min(difficulty, 10) if few else difficulty, count=8 if few else 40):
        assert SOLVERS[family](puzzle.question) == puzzle.answer, puzzle


def test_both_kinds_of_logic_are_asked():
    kinds = Counter(puzzle.question.endswith("lie?") for puzzle in some("logic", 2, 100))
    assert min(kinds[True], kinds[False]) > 25


def test_solvers_by_hand():
    assert solve_chains("Leo has 9 coins. Leo sells 2. Leo gets 5 more. How many coins does Leo have now?") == "12"
    assert solve_logic("Ada lies. Leo says that Ada lies. Mira says that Leo lies. How many of them lie?") == "2"
    clues = "Ada is shorter than Leo. Ada is taller than Mira."
    assert solve_logic(f"{clues} From the tallest down, who is number 3?") == "Mira"
    assert len(orders(clues.replace("Ada is taller", "Leo is taller"))) == 2  # not told: the solver sees it
    assert len(truths("Ada says that Leo lies. Leo says that Ada lies. How many of them lie?")) == 2


# ---- The working


def check_step(puzzle, step, before):
    """Whether one line is true, given the question and the lines before."""
    question, at = puzzle.question, len(before)
    if puzzle.family == "counting":
        words = re.search(r": (.*?)\.", question)[1].split(", ")[: at + 1]
        wanted = re.search(r"was (\w+) said", question)[1]
        return step == f"{words[-1]}: {words.count(wanted)}."
    if puzzle.family == "comparing":
        a, sign, b = re.fullmatch(r"(\d+) ([<>]) (\d+)\.", step).groups()
        return (int(a) < int(b)) == (sign == "<") and int(b) == numbers_in(question)[at + 1]
    if puzzle.family == "sorting":
        left, right, both = map(numbers_in, re.fullmatch(r"([\d ]+) and ([\d ]+): ([\d ]+)\.", step).groups())
        return left == sorted(left) and right == sorted(right) and both == sorted(left + right)
    if puzzle.family in ("arithmetic", "chains"):
        left, total, write, carry = re.fullmatch(r"([\d +*-]+) = (\d+)(?:, write (\d), carry (\d)|, borrow 1)?\.", step).groups()
        return eval(left) == int(total) and (write is None or int(total) == 10 * int(carry) + int(write))
    if puzzle.family == "two_hop" or step.count("says") == 0 and re.search(SAYS, step):
        return step in question
    if ": " in step:
        number, name = re.fullmatch(r"(\d+): ([\w-]+)\.", step).groups()
        return int(number) == at + 1 and orders(question)[0][at] == name
    said, name, is_honest = re.fullmatch(rf"(.*), so ([\w-]+) ({SAYS})\.", step).groups()
    return f"{said}." in question and truths(question)[0][name] == (is_honest == "tells the truth")


@pytest.mark.parametrize("difficulty", (1, 2, 4, 8))
@pytest.mark.parametrize("family", FAMILIES)
def test_each_step_is_true(family, difficulty):
    for puzzle in some(family, difficulty, 12):
        for n, step in enumerate(puzzle.steps):
            assert check_step(puzzle, step, puzzle.steps[:n]), (step, puzzle)


def test_columns_make_the_answer():
    """What is written in each column, from the right, and the last column whole."""
    for difficulty in (1, 4, 11):
        for puzzle in some("arithmetic", difficulty):
            totals = [int(re.search(r"= (\d+)", step)[1]) for step in puzzle.steps]
            assert int(str(totals[-1]) + "".join(str(total % 10) for total in totals[-2::-1])) == int(puzzle.answer)
            for step, after in itertools.pairwise(puzzle.steps):  # what is carried or borrowed is used, and nothing else
                carried = re.search(r"carry (\d)", step)
                assert not carried or f" + {carried[1]} =" in after
                assert ("borrow" in step) == (" - 1 =" in after and after.count("-") == 2)


def test_sorted_parts_end_in_the_whole():
    for puzzle in some("sorting", 6):
        assert puzzle.steps[-1].endswith(f": {puzzle.answer}.")


# ---- The grader


def wrong_answers(puzzle):
    """Answers that a policy could try, none of them right."""
    answer, words = puzzle.answer, puzzle.answer.split()
    tries = [puzzle.question.rstrip("?."), f"not {answer}", ""]
    if len(words) > 1:
        tries += [" ".join(words[::-1]), " ".join(words[:-1]), " ".join([*words, words[-1]]), "".join(words), "".join(words[:2])]
        tries += [" ".join([words[1], words[0], *words[2:]]), " ".join(words[:1]), ", ".join(words[::-1])]
        tries += [re.search(r": ([\d ]+)", puzzle.question)[1]] if puzzle.family == "sorting" else []
    elif answer.isdigit():
        tries += [
            str(int(answer) + 1),
            f"-{int(answer) or 1}",
            f"{answer}0" if answer != "0" else "10",
            f"{answer}.5",
            answer + "%0",
        ]
        tries += numbers if (numbers := [str(n) for n in numbers_in(puzzle.question)]) else []
        tries += [re.search(r"(\d+ [-+*] \d+)", puzzle.question)[1]] if puzzle.family == "arithmetic" else []
    else:
        others = THINGS if puzzle.family == "two_hop" else re.findall(r"[A-Z][\w-]+", puzzle.question)
        tries += [
            *others,
            f"{answer} {others[0]}",
            f"{others[0]} and {others[1]}",
            f"{answer} or {next(name for name in others if name != answer)}",
            answer[:-1],
        ]
    return [text for text in dict.fromkeys(tries) if text != answer]


@pytest.mark.parametrize("difficulty", (*LEVELS, 60, 110))
@pytest.mark.parametrize("family", FAMILIES)
def test_right_is_graded_right_and_wrong_wrong(family, difficulty):
    puzzles = some(family, difficulty, 20 if difficulty < 60 else 3)
    replies = [puzzle.conversation["messages"][1]["content"] for puzzle in puzzles]
    golds = [puzzle.answer for puzzle in puzzles]
    assert rewards.correct_answer([f"Answer: {gold}" for gold in golds], golds) == [1.0] * len(golds)
    assert rewards.correct_answer(replies, golds) == [1.0] * len(golds)
    assert all(map(ends_in_one_answer, replies))
    pairs = [(f"Answer: {text}", puzzle.answer) for puzzle in puzzles for text in wrong_answers(puzzle)]
    assert len(pairs) > 5 * len(puzzles)
    graded = rewards.correct_answer(*zip(*pairs, strict=True))
    assert not [pair for pair, grade in zip(pairs, graded, strict=True) if grade]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_answer_is_a_good_guess(family):
    (_, most), *_ = Counter(puzzle.answer for puzzle in some(family, 3, 300)).most_common(1)
    assert most < 0.4 * 300


# ---- The dial


@pytest.mark.parametrize("difficulty", (1, 2, 7, 40))
def test_difficulty_is_what_it_says(difficulty):
    def measures(family, of):
        return {of(puzzle) for puzzle in some(family, difficulty, 20)}

    assert measures("counting", lambda p: len(p.steps)) == {3 + 2 * difficulty}
    assert measures("comparing", lambda p: tuple(len(str(n)) for n in numbers_in(p.question))) == {(difficulty + 1,) * 3}
    assert measures("sorting", lambda p: len(set(p.answer.split()))) == {difficulty + 2}
    assert measures("arithmetic", lambda p: max(len(str(n)) for n in numbers_in(p.question))) == {difficulty + 1}
    assert measures("chains", lambda p: len(p.steps)) == {difficulty}
    assert measures("two_hop", lambda p: len(p.steps)) == {difficulty + 1}
    assert measures("logic", lambda p: p.question.count(".")) == {difficulty + 1}
    assert all(
        puzzle.difficulty == difficulty and puzzle.family == name for name in FAMILIES for puzzle in some(name, difficulty, 3)
    )


def test_more_people_than_there_are_names():
    import random

    for count, parts in ((40, 1), (41, 2), (1601, 3)):
        people = families.some_people(random.Random(0), count)
        assert len(set(people)) == count and {name.count("-") + 1 for name in people} == {parts}


def test_numbers_that_are_compared_are_alike_up_to_anywhere():
    def alike(puzzle):
        return len(os.path.commonprefix([str(number) for number in numbers_in(puzzle.question)]))

    assert {alike(puzzle) for puzzle in some("comparing", 3, 200)} == {0, 1, 2, 3}


@pytest.mark.parametrize(("family", "difficulty"), [("addition", 1), ("sorting", 0), ("sorting", -1)])
def test_what_there_is_not_is_refused(family, difficulty):
    with pytest.raises(InputError):
        draw(family, difficulty)


# ---- What is measured was not trained on


@pytest.mark.parametrize("difficulty", (1, 3, 9))
@pytest.mark.parametrize("family", FAMILIES)
def test_training_and_evaluation_share_nothing(family, difficulty):
    train, held_out = (some(family, difficulty, 300, for_evaluation=which) for which in (False, True))
    assert not {puzzle.content for puzzle in train} & {puzzle.content for puzzle in held_out}
    assert not {puzzle.question for puzzle in train} & {puzzle.question for puzzle in held_out}
    assert len({puzzle.question for puzzle in held_out}) > 100


@pytest.mark.parametrize(
    ("family", "one", "other"),
    [
        ("comparing", "largest: 12, 31, 7?", "smallest: 31, 7, 12?"),
        ("sorting", "31 7 12", "7 12 31"),
        ("arithmetic", "47 + 38", "38 + 47"),
    ],
)
def test_another_order_is_the_same_problem(family, one, other):
    """By content, over all that is drawn at the easy end: the same numbers never on both sides."""
    assert sorted(numbers_in(one)) == sorted(numbers_in(other))
    sides = {}
    for which in (False, True):
        for puzzle in some(family, 1, 2000, for_evaluation=which):
            sign = re.search(r" [-+*] ", puzzle.question)
            sides.setdefault((tuple(sorted(numbers_in(puzzle.question))), sign and sign[0]), set()).add(which)
    assert {len(which) for which in sides.values()} == {1}


def test_chains_keep_toylands_rule():
    """No training chain begins with one that is for evaluation, in toyland's files either."""
    for for_evaluation in (False, True):
        for puzzle in some("chains", 5, 60, for_evaluation):
            gains = re.findall(r"(finds|buys|gets|gives away|loses|sells) (\d+)", puzzle.question)
            changes = [int(k) * (1 if verb in ("finds", "buys", "gets") else -1) for verb, k in gains]
            numbers = (numbers_in(puzzle.question)[0], *changes)
            problem = Problem("Ada", "eggs", numbers, ("{n} finds {k} more.",) * 5)
            assert problem.for_evaluation == for_evaluation and problem.for_training == (not for_evaluation)
            assert one_in_five(str(numbers)) == for_evaluation
            total = numbers[0]
            for change in changes:
                total += change
                assert 0 <= total <= 20


# ---- Files


def read(directory, name):
    return [json.loads(line) for line in (directory / f"{name}.jsonl").read_text().splitlines()]


def test_files(tmp_path):
    counts = write_problems(tmp_path, ["counting", "logic"], [1, 3], 200, held_out=30, conversations=50)
    assert counts == {"problems": 200, "eval_problems": 30, "eval_harder": 30, "conversations": 50}
    rows = {name: read(tmp_path, name) for name in counts}
    assert counts == {name: len(of) for name, of in rows.items()}
    combinations = Counter((row["family"], row["difficulty"]) for row in rows["problems"])
    assert combinations == {(family, level): 50 for family in ("counting", "logic") for level in (1, 3)}
    assert {row["difficulty"] for row in rows["eval_problems"]} == {1, 3}
    assert {row["difficulty"] for row in rows["eval_harder"]} == {4}
    for row in (*rows["problems"], *rows["eval_problems"], *rows["eval_harder"]):
        assert SOLVERS[row["family"]](row["question"]) == row["answer"]
        assert set(row) == {"question", "answer", "difficulty", "family"}
    asked = [row["question"] for name in ("problems", "eval_problems", "eval_harder") for row in rows[name]]
    asked += [row["messages"][0]["content"] for row in rows["conversations"]]
    assert len(set(asked)) == len(asked) == 310
    assert [turn["role"] for turn in rows["conversations"][0]["messages"]] == ["user", "assistant"]


def test_no_conversations_unless_asked_for(tmp_path):
    assert "conversations" not in write_problems(tmp_path, ["chains"], [1], 5, held_out=5)
    assert not (tmp_path / "conversations.jsonl").exists()


def test_same_seed_same_bytes_in_another_process_and_another_seed_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        command = [sys.executable, "-m", "groundup.families", str(tmp_path / name), "--count", "60", "--seed", str(seed)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "1" if name == "b" else "2"})
    files = ("problems.jsonl", "eval_problems.jsonl", "eval_harder.jsonl")
    a, b, c = ([(tmp_path / name / file).read_bytes() for file in files] for name in "abc")
    assert a == b and not any(one == other for one, other in zip(a, c, strict=True))


def test_a_supply_that_runs_out_is_an_error(tmp_path, monkeypatch):
    def few(rng, difficulty):
        number = rng.randrange(20)
        return families.Drawn(f"{number}?", [], str(number), f"{number}")

    monkeypatch.setitem(FAMILIES, "counting", few)
    with pytest.raises(InputError, match="no 50 different problems") as refused:
        write_problems(tmp_path, ["counting"], [2], 50)
    assert refused.value.where == "counting, difficulty 2"


def run_command(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["families", *map(str, words)])
    families.main()


def test_command_writes_once_and_refuses_other_settings(tmp_path, monkeypatch, capsys):
    run_command(monkeypatch, tmp_path, "--families", "sorting", "--difficulties", 2, "--count", 20, "--held_out", 10)
    before = (tmp_path / "problems.jsonl").stat().st_mtime_ns
    run_command(monkeypatch, tmp_path, "--families", "sorting", "--difficulties", 2, "--count", 20, "--held_out", 10)
    assert "finished already" in capsys.readouterr().out and (tmp_path / "problems.jsonl").stat().st_mtime_ns == before
    with pytest.raises(SystemExit) as stopped:
        run_command(monkeypatch, tmp_path, "--families", "sorting", "--difficulties", 3, "--count", 20, "--held_out", 10)
    assert stopped.value.code == 2 and "'difficulties': [2]" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_command(monkeypatch, tmp_path / "b", "--difficulties", 0)
    assert "there is no difficulty 0" in capsys.readouterr().err and not (tmp_path / "b" / "families.json").exists()


# ---- To GRPO


def test_files_go_through_gate_and_curriculum(tmp_path, tiny_base, tokenizer):
    """As recipes/grpo.py loads and tries them."""
    from groundup.configs import DataArguments
    from groundup.data import load_problems
    from groundup.gate import summarise, try_out
    from groundup.grpo import GRPOTrainer
    from groundup.tokenizer import unfit_prompt
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig

    write_problems(tmp_path, list(FAMILIES), [1, 2], 28, held_out=1)
    data = DataArguments(dataset=str(tmp_path / "problems.jsonl"))
    problems = load_problems(data, seed=0, unfit=unfit_prompt(tokenizer, 8, 512))
    assert set(problems.rows.column_names) >= {"prompt", "answer", "difficulty"} and len(problems.rows) == 28
    functions, weights = rewards.build_rewards([{"name": "correct_answer"}, {"name": "answer_format", "weight": 0.1}])
    args = GRPOConfig(
        str(tmp_path / "out"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        max_steps=1,
        per_device_train_batch_size=8,
        steps_per_generation=1,
        num_generations=4,
        max_completion_length=8,
        reward_weights=weights,
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_base),
        reward_funcs=functions,
        args=args,
        train_dataset=problems.rows,
        processing_class=tokenizer,
        curriculum=True,
    )
    found = summarise(try_out(trainer, prompts=28))
    assert list(found["by_difficulty"]) == ["1", "2"]
    assert [line["mixed"]["n"] for line in found["by_difficulty"].values()] == [14, 14]
    trainer.train()
    assert trainer.state.global_step == 1
