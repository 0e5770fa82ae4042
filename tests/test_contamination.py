"""13-grams: what counts as the same words, what is found, and that the arithmetic agrees with sets of words."""

import gzip
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from groundup.contamination import EvaluationSets, Words
from groundup.errors import InputError

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"
real_data = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
TWENTY = "Leo has twelve red apples in a basket and gives five of them to his sister before the long winter"
NINE = "Which river flows through the town of old Kelso"


@pytest.fixture
def sets(write):
    def sets(*rows, columns=("question",), **settings):
        path = write(f"eval{len(rows)}.jsonl", list(rows))
        return EvaluationSets([{"path": path, "columns": list(columns), **settings}])

    return sets


def hits(found, *texts):
    return found.check(list(texts)).hits.tolist()


def test_grams_are_those_of_word_lists():
    """Against sets of tuples of words, on random text with punctuation, cases and documents side by side."""
    generator = random.Random(0)
    words = ["Ada", "ada", "can't", "x9", "über", "Ünder", "of", "a", "—", "…", "3", "!"]
    texts = [" ".join(generator.choices(words, k=generator.randint(0, 40))) for _ in range(50)] + ["", "...", "one"]
    found = Words(texts)
    for n in (1, 2, 5, 13):
        hashes = found.grams(n)
        places = found.within(n, np.arange(len(hashes)))
        spelt, plain = {}, set()
        for text, number in zip(texts, range(len(texts)), strict=True):
            split = re.findall(r"[^\W_]+", text.lower())
            plain |= {tuple(split[i : i + n]) for i in range(len(split) - n + 1)}
            mine = places[found.document[places] == number]
            assert len(mine) == max(len(split) - n + 1, 0)
            for i, place in enumerate(mine):
                assert spelt.setdefault(int(hashes[place]), tuple(split[i : i + n])) == tuple(split[i : i + n])
        assert len(spelt) == len(plain)  # equal grams have one hash, others another


@pytest.mark.parametrize(
    "text",
    [
        TWENTY,
        TWENTY.upper(),
        f"Before. {TWENTY.replace(' ', ',  ')}\nAfter",
        f"“{TWENTY.replace(' red ', ' red — ')}”",
        " ".join(TWENTY.split()[:13]),
        " ".join(TWENTY.split()[-13:]),
    ],
)
def test_thirteen_words_in_a_row_are_found(sets, text):
    assert hits(sets({"question": TWENTY}), "nothing here", text)[0] == 0
    assert hits(sets({"question": TWENTY}), "nothing here", text)[1] > 0


@pytest.mark.parametrize(
    "text",
    [
        " ".join(TWENTY.split()[:12]),
        TWENTY.replace("them", "those"),  # 11 words, another, 8 words
        TWENTY.replace("five of", "fiveof"),
        "",
    ],
)
def test_fewer_or_other_words_are_not(sets, text):
    assert hits(sets({"question": TWENTY}), text) == [0]


def test_words_of_two_documents_are_no_gram(sets):
    words = TWENTY.split()
    assert hits(sets({"question": TWENTY}), " ".join(words[:10]), " ".join(words[10:])) == [0, 0]


def test_short_item_is_found_whole_only(sets):
    found = sets({"question": NINE}, {"question": "Who are you?"})
    assert hits(found, f"He asked: {NINE.lower()}?", " ".join(NINE.split()[:8]), "Who are you?") == [1, 0, 0]
    assert (found.items, found.short) == ([2], [1])


def test_document_and_item_are_named(sets, write):
    first = write("a.jsonl", [{"question": TWENTY}, {"question": NINE}])
    second = write("b.jsonl", [{"prompt": f"{NINE} today"}, {"prompt": TWENTY}])
    found = EvaluationSets([{"path": first, "columns": ["question"]}, {"path": second, "columns": ["prompt"]}])
    overlap = found.check([TWENTY, "nothing", f"{NINE} today"])
    assert overlap.pairs.tolist() == [[0, 0], [0, 3], [2, 1], [2, 2]]
    assert found.set_of(overlap.pairs[:, 1]).tolist() == [0, 1, 0, 1]
    assert overlap.hits.tolist() == [len(TWENTY.split()) - 12, 0, 2]


def test_columns_with_lists_and_nothing_in_them(sets):
    found = sets({"question": None, "answers": ["short", NINE]}, {"question": 3, "answers": []}, columns=["question", "answers"])
    assert hits(found, NINE) == [1] and found.short == [1]


def test_sets_have_a_hash_of_their_content(sets):
    assert sets({"question": TWENTY}).sha256 == sets({"question": f"{TWENTY}!"}).sha256 != sets({"question": NINE}).sha256


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("a.jsonl", 'no `path` or no `columns` in "a.jsonl"'),
        ({"path": "a.jsonl"}, "no `path` or no `columns`"),
        ({"path": "a.jsonl", "columns": "question"}, "no `path` or no `columns`"),
        ({"path": "a.jsonl", "columns": ["question"], "colums": 1}, "did you mean `columns`"),
        ({"path": "./none.jsonl", "columns": ["question"]}, "no such file: `none.jsonl`"),
    ],
)
def test_entry_that_is_wrong(entry, message):
    with pytest.raises(InputError, match=re.escape(message)):
        EvaluationSets([entry])


def test_missing_column_names_those_there_are(sets):
    with pytest.raises(InputError, match=r"no column `question`\n.*line 1\n.*columns: prompt, id"):
        sets({"prompt": TWENTY, "id": 1})


def test_set_with_nothing_to_look_for(sets):
    with pytest.raises(InputError, match="none of 2 rows has a text of 8 words"):
        sets({"question": "Who?"}, {"question": "Where are you?"})


def test_bad_rows_are_an_allowance(write):
    path = write("a.jsonl", f'{{"question": "{TWENTY}"}}\nnot json\n')
    with pytest.raises(InputError, match="not JSON"):
        EvaluationSets([{"path": path, "columns": ["question"]}])
    assert hits(EvaluationSets([{"path": path, "columns": ["question"], "max_bad_rows": 1}]), TWENTY)[0] > 0


@real_data
def test_the_stories_that_questions_were_asked_about_are_found():
    """FairytaleQA keeps whole stories for testing; answers that quote them give them away, and no other story."""
    folder = SHARED / "fairytaleqa"
    found = EvaluationSets(
        [{"path": str(folder / f"qa_{split}.jsonl.gz"), "columns": ["question", "answers"]} for split in ("test", "val")]
    )
    with gzip.open(folder / "stories.jsonl.gz") as file:
        stories = [json.loads(line) for line in file]
    overlap = found.check(["\n\n".join(story["sections"]) for story in stories])
    held_out = [story["split"] != "train" for story in stories]
    hit = (overlap.hits > 0).tolist()
    assert not [story for story, a, b in zip(stories, hit, held_out, strict=True) if a and not b]
    assert sum(hit) >= 0.95 * sum(held_out)
