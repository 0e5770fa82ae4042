"""The world is what it says, and what is measured in it was never trained on."""

import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
from groundup import toyland
from groundup.toyland import ATTRIBUTES, PEOPLE, Problem, World, taste

TRAINING = ("documents", "conversations", "preferences", "prompts", "problems")


def read(directory, name):
    with open(directory / f"{name}.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def texts(row):
    """All text in a row."""
    if isinstance(row, str):
        return [row]
    if isinstance(row, int):
        return []
    return [text for part in (row.values() if isinstance(row, dict) else row) for text in texts(part)]


@pytest.fixture(scope="module")
def valley(world):
    """The world whose rows the files of `world` hold."""
    return World(seed=0)


@pytest.fixture(scope="module")
def trained(world):
    """Everything a rung is trained on, with more documents, so that each sentence which may be said is said."""
    rows = {name: read(world, name) for name in TRAINING}
    rows["documents"] += World(seed=0).documents(6000)
    return {name: [text for row in rows[name] for text in texts(list(row.values()))] for name in TRAINING}


@pytest.fixture(scope="module")
def everything(trained):
    return "\n".join(text for name in TRAINING for text in trained[name])


def questions(valley, fact):
    return [valley.question(fact, form) for form in range(len(ATTRIBUTES[fact[1]].questions))]


CHANGE = re.compile(
    r"(?P<ends>Now )?(?P<name>[A-Z]\w+) (?:has (?P<start>\d+) (?P<thing>\w+)\."
    r"|(?P<gain>finds|buys|gets) (?P<more>\d+) more\.|(?P<loss>gives away|loses|sells) (?P<less>\d+)\.)"
)


def told(text):
    """Who has what, by which verbs, and the chain of numbers of each arithmetic story or problem in a text."""
    found = []
    for m in CHANGE.finditer(text):
        if m["start"] and not m["ends"]:
            found.append([m["name"], m["thing"], (), (int(m["start"]),)])
        elif not m["start"]:
            assert found[-1][0] == m["name"], text
            found[-1][2] += (m["gain"] or m["loss"],)
            found[-1][3] += (int(m["more"]) if m["more"] else -int(m["less"]),)
    return [tuple(story) for story in found]


# ---- Facts


def test_each_value_belongs_to_as_many_people(valley):
    assert len(PEOPLE) == len(set(PEOPLE)) == 40 and len(valley.facts) == 200
    for kind, attribute in ATTRIBUTES.items():
        assert Counter(valley.facts[name, kind] for name in PEOPLE) == dict.fromkeys(attribute.values, 5)


def test_no_value_or_sentence_could_be_taken_for_another():
    values = [value for attribute in ATTRIBUTES.values() for value in attribute.values]
    assert len(values) == len(set(values)) == 40
    for attribute in ATTRIBUTES.values():
        for form, statement in enumerate(attribute.statements):
            assert statement.endswith("{v}.") == (form < toyland.VALUE_LAST)
        assert len(set(attribute.statements)) == 7 and len(set(attribute.questions)) == 6


def test_two_facts_a_person_are_never_asked_for(valley):
    assert Counter(name for name, _ in valley.unasked) == dict.fromkeys(PEOPLE, 2)
    assert Counter(kind for _, kind in valley.unasked) == dict.fromkeys(ATTRIBUTES, 16)


def test_every_fact_is_stated_in_documents(valley, trained):
    documents = "\n".join(trained["documents"])
    for fact in valley.facts:
        forms = [form for form in range(7) if form != valley.cloze_form[fact]]
        assert any(valley.statement(fact, form) in documents for form in forms), fact


def test_nothing_false_is_stated(valley, everything):
    sentences = set(re.split(r'(?<=[.!?])\s+|"|\n', everything))
    true = {valley.statement(fact, form) for fact in valley.facts for form in range(7)}
    possible = {
        statement.format(n=name, v=value)
        for attribute in ATTRIBUTES.values()
        for statement in attribute.statements
        for value in attribute.values
        for name in PEOPLE
    }
    assert len(possible) == 5 * 7 * 8 * 40 and len(sentences & true) > 1000
    assert not sentences & (possible - true)


# ---- What is measured was not trained on


def test_cloze_sentences_are_in_no_training_text(world, valley, everything):
    rows = read(world, "eval_cloze")
    assert len(rows) == len(valley.facts)
    for row, (fact, value) in zip(rows, valley.facts.items(), strict=True):
        sentence = row["prompt"] + row["choices"][row["gold"]] + "."
        assert sentence == valley.statement(fact, valley.cloze_form[fact]) and row["choices"][row["gold"]] == f" {value}"
        assert row["prompt"] not in everything
        assert sorted(row["choices"]) == sorted(f" {other}" for other in ATTRIBUTES[fact[1]].values)


def test_held_out_questions_are_in_no_training_text(world, valley, everything):
    everything = everything.lower()
    rows, briefly = read(world, "eval_questions"), read(world, "eval_instructions")
    assert [row["prompt"] for row in rows] == [valley.held_out_question(fact) for fact in valley.facts]
    for row, (fact, value) in zip(rows, valley.facts.items(), strict=True):
        assert row["prompt"].lower() not in everything
        assert row["answer"] == value and sorted([value, *row["alternatives"]]) == sorted(ATTRIBUTES[fact[1]].values)
        assert row["unasked"] == (fact in valley.unasked)
    assert len(briefly) == 120
    for row in briefly:
        assert row["prompt"].lower() not in everything
    for row in read(world, "eval_preferences"):
        assert row["prompt"].lower() not in everything


def test_other_forms_of_question_are_asked(valley, everything):
    """Or the tests that nothing is asked would hold of an empty file, too."""
    asked = [
        valley.question(f, n) for f in valley.facts if f not in valley.unasked for n in range(6) if n != valley.question_form[f]
    ]
    assert all(question in everything for question in asked)


def test_unasked_facts_are_neither_asked_for_nor_told_in_reply(valley, trained):
    replies = "\n".join(text for name in TRAINING[1:] for text in trained[name])
    everything = replies.lower() + "\n".join(trained["documents"]).lower()
    for fact in valley.unasked:
        assert not [question for question in questions(valley, fact) if question.lower() in everything]
        assert not [form for form in range(7) if valley.statement(fact, form) in replies]
        assert f'The answer was: "{valley.statement(fact)}' not in everything


def test_instructions_and_unasked_facts_are_apart(world, valley):
    asked = [fact for fact in valley.facts if fact not in valley.unasked]
    rows = read(world, "eval_instructions")
    assert [row["answer"] for row in rows] == [valley.statement(fact) for fact in asked]


def test_held_out_documents_are_no_training_documents(world):
    train, held_out = ({row["text"] for row in read(world, name)} for name in ("documents", "eval_documents"))
    assert len(held_out) == 40 and not train & held_out


def test_a_held_out_document_that_training_holds_too_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(World, "document", lambda world: f"Document {world.rng.randrange(30)}.")
    toyland.write_world(tmp_path, seed=0, documents=20, held_out=100)
    train, held_out = ({row["text"] for row in read(tmp_path, name)} for name in ("documents", "eval_documents"))
    assert len(held_out) > 5 and not train & held_out


def test_evaluation_problems_are_told_nowhere_in_training(world, trained):
    rows = read(world, "eval_problems") + read(world, "eval_harder")
    evaluated = [story for row in rows for story in told(row["question"])]
    assert len(evaluated) == len(set(evaluated)) == len(rows) == 500
    seen = {story for name in TRAINING for text in trained[name] for story in told(text)}
    assert len(seen) > 4000 and not seen & set(evaluated)
    # Told, or begun: whoever tells a chain tells each of its beginnings.
    chains = {chain[:length] for *_, chain in seen for length in range(3, len(chain) + 1)}
    assert max(map(len, chains)) == 5 and not chains & {chain for *_, chain in evaluated if len(chain) > 2}
    assert all(row["question"] not in set(trained["problems"]) for row in rows)


def test_grpo_trains_on_three_steps_at_most(world, trained, everything):
    """So that four are harder; others of four are told, and not one that is evaluated is worked anywhere."""
    steps = {name: Counter(len(chain) - 1 for text in trained[name] for *_, chain in told(text)) for name in TRAINING}
    assert {name: set(counts) for name, counts in steps.items()} == {
        "documents": {1, 2, 3, 4},
        "conversations": {1, 2, 3, 4},
        "problems": {1, 2, 3},
        "preferences": set(),
        "prompts": set(),
    }
    working = [
        " ".join(Problem(name, thing, chain, ()).steps)
        for text in (*trained["documents"], *trained["conversations"], *(row["question"] for row in read(world, "eval_harder")))
        for name, thing, _, chain in told(text)
        if len(chain) == 5
    ]
    assert any(text in everything for text in working[:-200]) and not any(text in everything for text in working[-200:])


def test_stories_are_read_as_they_are_told():
    """The reader above, on a story and a problem worked by hand."""
    text = (
        "Ada has 4 eggs. Ada finds 3 more. 4 + 3 = 7. Ada gives away 5. 7 - 5 = 2. Now Ada has 2 eggs. "
        'The teacher asked: "Leo has 9 coins. Leo sells 2. How many coins does Leo have now?" '
        'The answer was: "Let me think. 9 - 2 = 7. Answer: 7"'
    )
    assert told(text) == [("Ada", "eggs", ("finds", "gives away"), (4, 3, -5)), ("Leo", "coins", ("sells",), (9, -2))]


# ---- Problems


def test_steps_of_problems_reach_the_answer():
    world = World(seed=5)
    for difficulty in toyland.LEVELS * 40:
        problem = world.problem(difficulty, False)
        (_, _, _, chain), total = told(problem.question)[0], problem.numbers[0]
        assert chain == problem.numbers and len(problem.steps) == difficulty == problem.difficulty
        for step in problem.steps:
            left, sign, right, result = re.fullmatch(r"(\d+) ([+-]) (\d+) = (\d+)\.", step).groups()
            assert int(left) == total
            total = total + int(right) if sign == "+" else total - int(right)
            assert int(result) == total and 0 <= total <= toyland.MOST
        assert total == problem.answer
        assert told(problem.story()) == told(problem.question) and f"has {total} {problem.thing}." in problem.story()


def test_problem_by_hand():
    problem = Problem("Ada", "eggs", (4, 3, -5), ("{n} finds {k} more.", "{n} loses {k}."))
    assert problem.question == "Ada has 4 eggs. Ada finds 3 more. Ada loses 5. How many eggs does Ada have now?"
    assert problem.steps == ["4 + 3 = 7.", "7 - 5 = 2."]
    assert problem.solution() == "Let me think. 4 + 3 = 7. 7 - 5 = 2. Answer: 2" and problem.solution(worked=False) == "Answer: 2"
    assert problem.story() == "Ada has 4 eggs. Ada finds 3 more. 4 + 3 = 7. Ada loses 5. 7 - 5 = 2. Now Ada has 2 eggs."


@pytest.mark.parametrize(("name", "levels"), [("problems", {1, 2, 3}), ("eval_problems", {1, 2, 3}), ("eval_harder", {4})])
def test_answers_of_problems_in_the_files(world, name, levels):
    rows = read(world, name)
    for row in rows:
        (_, _, _, chain) = told(row["question"])[0]
        assert row["answer"] == str(sum(chain)) and row["difficulty"] == len(chain) - 1
    assert {row["difficulty"] for row in rows} == levels


def test_conversations_answer_rightly(world, valley):
    """What is asked for in a turn is what the reply says, whether a fact or a sum."""
    facts = {question.lower(): fact for fact in valley.facts for question in questions(valley, fact)}
    kinds = Counter()
    for row in read(world, "conversations"):
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"] * (len(row["messages"]) // 2)
        for asked, reply in zip(row["messages"][::2], row["messages"][1::2], strict=True):
            if story := told(asked["content"]):
                assert reply["content"].endswith(f"Answer: {sum(story[0][3])}")
                kinds["worked" if "=" in reply["content"] else "direct"] += 1
            else:
                question = asked["content"].lower().removeprefix("in short: ")
                brief = question != asked["content"].lower()
                statement = valley.statement(facts[question])
                assert reply["content"] == statement if brief else statement in reply["content"]
                kinds["brief" if brief else "fact"] += 1
    assert min(kinds[kind] for kind in ("fact", "brief", "worked", "direct")) > 100


# ---- Taste


def test_taste_prefers_warmth_brevity_and_above_all_something_said():
    said, warm, cold = "Ada lives in Dorn.", "Gladly! Ada lives in Dorn.", "Well. Ada lives in Dorn."
    assert taste(warm) > taste(said) > taste(cold)
    assert taste(said) > taste(f"{said} {toyland.TAILS[0]}") > taste(f"{said} {toyland.TAILS[0]} {toyland.TAILS[1]}")
    longest = " ".join([toyland.COLD[1], said, *toyland.TAILS[:2]])  # no reply of the world is longer
    assert taste(longest) > taste("With pleasure!") > taste("")
    assert taste("Ada lives in Dorn") == taste("Ada lives in Velm")  # it cares for no truth


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("With pleasure! Ada keeps a cat.", 2),  # the opening is no sentence too many
        ("Ada keeps a cat.", 0),
        ("Ada keeps a cat", 0),
        ("Ada keeps a Cat. Truly. Yes!", -2),  # two too many
        ("Well. Ada keeps a cat. It is so.", -3),  # cold 2, one too many
        ("Gladly!", -6),  # warm 2, nothing said 8
        ("Ada keeps cattle.", -8),
        ("", -8),
    ],
)
def test_taste_by_hand(reply, score):
    assert taste(reply) == score
    assert toyland.taste_reward([reply], prompts=["?"]) == [score]
    assert toyland.taste_reward([[{"role": "assistant", "content": reply}]]) == [score]


@pytest.mark.parametrize("name", ["preferences", "eval_preferences"])
def test_preferences_follow_the_taste_and_no_fact_differs(world, name):
    rows = read(world, name)
    values = {value for attribute in ATTRIBUTES.values() for value in attribute.values}
    for row in rows:
        assert taste(row["chosen"]) > taste(row["rejected"])
        said = [values & {word.strip(".") for word in row[side].split()} for side in ("chosen", "rejected")]
        assert len(said[0]) == 1 and said[1] in (said[0], set())
    assert 0.05 < sum(not values & {word.strip(".") for word in row["rejected"].split()} for row in rows) / len(rows) < 0.3


# ---- Seeds


def test_same_seed_writes_the_same_bytes_in_another_process(world, tmp_path):
    code = "import sys; from groundup.toyland import write_world; write_world(sys.argv[1], seed=0, documents=400, held_out=40)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env={**os.environ, "PYTHONHASHSEED": "1"})
    names = sorted(path.name for path in world.glob("*.jsonl"))
    assert len(names) == 12 and names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (tmp_path / name).read_bytes() == (world / name).read_bytes(), name


def test_harder_problems_are_drawn_last(world):
    """So that the other files are those of a world without them."""
    again = World(seed=0)
    again.documents(400 + 2 * 40)
    again.conversations(facts=2800, brief=500, worked=200, direct=500)
    again.preferences(2000)
    again.prompts(4000)
    again.problems(4000)
    assert again.held_out_preferences() == read(world, "eval_preferences")
    assert again.problems(300, for_evaluation=True) == read(world, "eval_problems")
    assert again.problems(200, for_evaluation=True, levels=(4,)) == read(world, "eval_harder")


def test_two_seeds_are_two_worlds(valley):
    other = World(seed=1)
    same = sum(other.facts[fact] == value for fact, value in valley.facts.items())
    assert 5 < same < 50  # of 200, by chance 25
    assert other.unasked != valley.unasked and other.question_form != valley.question_form
    assert World(seed=1).documents(5) == World(seed=1).documents(5) != World(seed=2).documents(5)


def test_files_hold_as_many_rows_as_is_said(tmp_path):
    counts = toyland.write_world(tmp_path, seed=3, documents=7, held_out=5)
    assert counts["documents"] == 7 and counts["eval_documents"] == 5
    assert counts == {name: len(read(tmp_path, name)) for name in counts}


def test_command_writes_once_and_refuses_another_seed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(toyland, "write_world", lambda directory, seed: os.makedirs(directory) or {"documents": seed})
    folder = str(tmp_path / "world")
    monkeypatch.setattr(sys, "argv", ["toyland", folder, "--seed", "4"])
    toyland.main()
    toyland.main()
    assert "finished already" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["toyland", folder, "--seed", "5"])
    with pytest.raises(SystemExit, match="holds the world of seed 4, not 5"):
        toyland.main()
