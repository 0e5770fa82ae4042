"""Own data: what is read, what becomes of each row, and what a user is told when it cannot be read."""

import hashlib
from pathlib import Path

import pytest
from groundup.configs import DataArguments
from groundup.data import (
    add_rehearsal,
    load_conversations,
    load_documents,
    load_preferences,
    load_problems,
    load_prompts,
)
from groundup.errors import InputError

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"
real_data = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def texts(path, **settings):
    return load_documents(DataArguments(dataset=path, **settings)).rows["text"][:]


def refusal(load, **settings):
    with pytest.raises(InputError) as caught:
        load(DataArguments(**settings))
    return str(caught.value)


# ---- Rows


def test_text_is_cleaned(write):
    assert texts(write("a.txt", b"\xef\xbb\xbfa\0b\r\nc\rd")) == ["ab\nc\nd"]


def test_provenance(write):
    path = write("a.jsonl", [{"text": "one"}, {"text": " "}, {"text": None}])
    assert load_documents(DataArguments(dataset=path, max_dropped_share=0.7)).provenance == [
        {
            "name": path,
            "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
            "files": 1,
            "rows": 3,
            "kept": 1,
            "dropped": {"empty text": 2},
            "used": 1,
        }
    ]


def test_fingerprint_of_rows_depends_on_their_content_only(write):
    """datasets caches what `map` makes of rows by this."""
    paths = [write(name, [{"text": text}]) for name, text in (("a.jsonl", "x"), ("b.jsonl", "x"), ("c.jsonl", "y"))]
    first, same, other = (load_documents(DataArguments(dataset=path)).rows._fingerprint for path in paths)
    assert first == same != other


def test_many_rows_keep_their_order(write):
    path = write("a.jsonl", [{"text": str(n)} for n in range(1234)])
    assert texts(path) == [str(n) for n in range(1234)]


def test_max_rows_counts_rows_that_are_kept(write):
    path = write("a.jsonl", [{"text": ""}, {"text": "a"}, {"text": "b"}, {"text": "c"}])
    loaded = load_documents(DataArguments(dataset=path, max_rows=2))
    assert loaded.rows["text"][:] == ["a", "b"]
    assert (loaded.provenance[0]["rows"], loaded.provenance[0]["kept"]) == (3, 2)


def test_evaluation_rows(write):
    train, held_out = write("a.txt", "train"), write("b.jsonl", [{"text": "1"}, {"text": "2"}])
    args = DataArguments(dataset=train, eval_dataset=held_out, max_eval_rows=1)
    assert load_documents(args, "eval").rows["text"][:] == ["1"]
    assert load_documents(DataArguments(dataset=train), "eval") is None


def test_set_with_nothing_in_it(write):
    path = write("a.jsonl", [{"text": ""}] * 97 + [{"text": 1}] * 3)
    assert refusal(load_documents, dataset=path, max_bad_rows=3) == (
        "no document is left: 100 rows read -> 3 (empty text: 97) -> 0 (did not parse: 3)\n"
        f"  where: {path}\n"
        "  fix:   needed: `text`; if it has another name, write `text_column: NAME`"
    )


# ---- Rows that cannot be read


def test_line_that_is_no_object(write):
    path = write("a.jsonl", '{"text": "one"}\n["two"]\n')
    assert refusal(load_documents, dataset=path) == (
        '["two"] where an object should be\n'
        f"  where: {path}, line 2\n"
        '  fix:   write one object per line, such as {"prompt": "...", "completion": "..."}'
    )


def test_number_where_text_should_be(write):
    path = write("a.jsonl", [{"text": "one"}, {"text": 5}])
    assert refusal(load_documents, dataset=path) == (
        f'`text` is 5, not text\n  where: {path}, line 2\n  fix:   write text: {{"text": "..."}}'
    )


def test_role_that_is_none(write):
    path = write("a.jsonl", [{"messages": [{"role": "human", "content": "Hi"}]}])
    assert refusal(load_conversations, dataset=path) == (
        '`messages` holds {"role": "human", "content": "Hi"}\n'
        f"  where: {path}, line 1\n"
        '  fix:   write {"role": "user", "content": "..."}, the role one of system, user, assistant'
    )


def test_message_in_another_form(write):
    path = write("a.jsonl", [{"messages": [{"from": "human", "value": "Hi"}]}])
    assert refusal(load_conversations, dataset=path).startswith('`messages` holds {"from": "human", "value": "Hi"}\n')


def test_messages_as_text(write):
    path = write("a.jsonl", [{"messages": "Hi"}])
    assert refusal(load_conversations, dataset=path).startswith('`messages` is "Hi", not a list\n')


def test_bad_rows_are_skipped_up_to_the_number_allowed(write):
    path = write("a.jsonl", 'one\n{"text": "two"}\n[]\n{"text": 3}\n{"text": "four"}\n')
    loaded = load_documents(DataArguments(dataset=path, max_bad_rows=3))
    assert loaded.rows["text"][:] == ["two", "four"]
    assert loaded.provenance[0]["dropped"] == {"did not parse": 3}
    message = refusal(load_documents, dataset=path, max_bad_rows=2)
    assert message.startswith("`text` is 3, not text (more bad rows than `max_bad_rows: 2`)\n")
    assert f"where: {path}, line 4" in message


# ---- Columns


def test_missing_column_that_is_misspelt(write):
    path = write("a.jsonl", [{"promt": "a", "completion": "b"}])
    assert refusal(load_conversations, dataset=path) == (
        "no conversation in the columns `promt`, `completion`\n"
        f"  where: {path}, line 1\n"
        "  fix:   needed: `messages`, or `prompt` and `completion`, or `question` and `answer`; "
        "did you mean `prompt_column: promt`?"
    )


def test_missing_column_with_another_usual_name(write):
    path = write("a.jsonl", [{"id": 1, "instruction": "a", "response": "b"}])
    message = refusal(load_conversations, dataset=path)
    assert message.endswith("did you mean `prompt_column: instruction` and `completion_column: response`?")


def test_suggestion_with_the_fewest_settings(write):
    path = write("a.jsonl", [{"question": "a", "answers": ["b"]}])
    assert refusal(load_conversations, dataset=path).endswith("did you mean `answer_column: answers`?")


def test_misspelt_setting(write):
    path = write("a.jsonl", [{"story": "a"}])
    message = refusal(load_documents, dataset=path, text_column="storry")
    assert message.endswith("needed: `storry`; did you mean `text_column: story`?")


def test_missing_column_without_a_guess(write):
    path = write("a.jsonl", [{"x": "a"}])
    assert refusal(load_documents, dataset=path).endswith("needed: `text`; if it has another name, write `text_column: NAME`")


def test_row_without_a_column_that_others_have_is_dropped(write):
    path = write("a.jsonl", [{"text": "a"}, {"id": 1}])
    assert load_documents(DataArguments(dataset=path)).provenance[0]["dropped"] == {"empty text": 1}


# ---- Conversations


def conversations(write, rows, **settings):
    return load_conversations(DataArguments(dataset=write("rows.jsonl", rows), **settings)).rows["messages"][:]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user("Hi"), assistant("Hello")]},
        {"messages": ["Hi", "Hello", "Are you there?"]},
        {"messages": [user("Hi"), assistant("Hello"), user("Are you there?")]},
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": [user("Hi")], "completion": [assistant("Hello")]},
        {"question": "Hi", "answer": "Hello"},
        {"question": "Hi", "answer": ["Hello", "Hallo"]},
        {"messages": [user("Hi"), assistant("Hello")], "prompt": "not", "completion": "this"},
    ],
)
def test_forms_of_a_conversation(write, row):
    assert conversations(write, [row]) == [[user("Hi"), assistant("Hello")]]


def test_system_message_stays(write):
    messages = [{"role": "system", "content": "Be kind."}, user("Hi"), assistant("Hello")]
    assert conversations(write, [{"messages": messages}]) == [messages]


def test_renamed_columns_go_before_others(write):
    rows = [{"messages": ["no", "no"], "instruction": "Hi", "completion": "Hello"}]
    assert conversations(write, rows, prompt_column="instruction") == [[user("Hi"), assistant("Hello")]]


def test_context_goes_before_the_question(write):
    rows = [{"question": "Who?", "answer": "He", "ctx": "A man came."}, {"question": "Who?", "answer": "I", "ctx": ""}]
    first, second = conversations(write, rows, context_column="ctx")
    assert first[0] == user("A man came.\n\nWho?")
    assert second[0] == user("Who?")


def test_missing_context_column(write):
    path = write("a.jsonl", [{"question": "Who?", "answer": "He"}])
    assert refusal(load_conversations, dataset=path, context_column="context") == (
        f"no column `context`\n  where: {path}, line 1\n  fix:   `context_column` is one of: question, answer"
    )


def test_conversations_with_nothing_to_learn_are_dropped_by_reason(write):
    rows = [
        {"messages": ["Hi", "Hello"]},
        {"messages": [user("Hi")]},
        {"messages": []},
        {"messages": None},
        {"messages": [user("Hi"), assistant(" ")]},
    ]
    loaded = load_conversations(DataArguments(dataset=write("a.jsonl", rows), max_dropped_share=0.8))
    assert loaded.provenance[0]["dropped"] == {"no assistant message": 1, "empty messages": 3}


# ---- Preferences


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello", "rejected": "No"},
        {"question": "Hi", "chosen": "Hello", "rejected": "No"},
        {"prompt": [user("Hi")], "chosen": [assistant("Hello")], "rejected": [assistant("No")]},
        {"chosen": [user("Hi"), assistant("Hello")], "rejected": [user("Hi"), assistant("No")]},
        {"prompt": "Hi", "chosen": [user("Hi"), assistant("Hello")], "rejected": [user("Hi"), assistant("No")]},
    ],
)
def test_forms_of_a_preference(write, row):
    rows = load_preferences(DataArguments(dataset=write("a.jsonl", [row]))).rows
    assert rows[:] == {"prompt": [[user("Hi")]], "chosen": [[assistant("Hello")]], "rejected": [[assistant("No")]]}


def test_shared_turns_are_the_prompt(write):
    start = [user("Hi"), assistant("Hello"), user("Who?")]
    row = {"chosen": [*start, assistant("I")], "rejected": [*start, assistant("You")]}
    assert load_preferences(DataArguments(dataset=write("a.jsonl", [row]))).rows["prompt"][0] == start


def test_preferences_that_teach_nothing_are_dropped_by_reason(write):
    both = [user("Hi"), assistant("Hello")]
    other = [user("Ho"), assistant("No")]
    rows = [
        {"prompt": "a", "chosen": "x", "rejected": "y"},
        {"prompt": "a", "chosen": "x", "rejected": "x "},
        {"prompt": "a", "chosen": both, "rejected": both},
        {"prompt": "a", "chosen": both, "rejected": other},
        {"prompt": "a", "chosen": "x", "rejected": ""},
    ]
    loaded = load_preferences(DataArguments(dataset=write("a.jsonl", rows), max_dropped_share=0.8))
    assert loaded.provenance[0]["dropped"] == {
        "chosen equals rejected": 2,
        "chosen and rejected differ in more than one reply": 1,
        "empty rejected": 1,
    }


def test_too_many_dropped_rows_stop_the_run(write):
    equal, other = {"prompt": "a", "chosen": "x", "rejected": "x"}, {"prompt": "a", "chosen": "x", "rejected": "y"}
    half, more = write("half.jsonl", [equal, other]), write("more.jsonl", [other, equal, equal])
    assert len(load_preferences(DataArguments(dataset=half)).rows) == 1
    assert refusal(load_preferences, dataset=more) == (
        f"too few preferences are left: 3 rows read -> 1 (chosen equals rejected: 2)\n  where: {more}\n"
        "  fix:   mend the rows, or write a larger `max_dropped_share` (it is 0.5)"
    )
    with pytest.raises(InputError, match="too few preferences"):  # each source by itself
        load_preferences(DataArguments(datasets=[{"path": half}, {"path": half}, {"path": more}]))
    entry = {"path": more, "max_dropped_share": 0.7}
    assert len(load_preferences(DataArguments(datasets=[{"path": half}, entry])).rows) == 2
    assert "it is 0.4" in refusal(load_preferences, dataset=half, max_dropped_share=0.4)
    with pytest.raises(InputError, match="is no share"):
        DataArguments(dataset=half, max_dropped_share=1.5)


@pytest.mark.parametrize("load", [load_preferences, load_prompts, load_problems])
def test_unfit_rows_are_dropped_for_the_reason_given(write, load):
    def unfit(row):
        return "too long" if len(row["prompt"][0]["content"]) > 3 else None

    rows = [{"prompt": p, "answer": "1", "chosen": "x", "rejected": "y"} for p in ("one", "two", "three")]
    path = write("a.jsonl", rows)
    loaded = load(DataArguments(dataset=path, eval_dataset=path, max_rows=2), unfit=unfit)
    assert [row[0]["content"] for row in loaded.rows["prompt"]] == ["one", "two"]
    loaded = load(DataArguments(dataset=path, eval_dataset=path), "eval", unfit=unfit)
    assert len(loaded.rows) == 2 and loaded.provenance[0]["dropped"] == {"too long": 1}


def test_preference_texts_need_a_prompt(write):
    path = write("a.jsonl", [{"title": "a", "chosen": "x", "rejected": "y"}])
    message = refusal(load_preferences, dataset=path)
    assert message.startswith("no prompt in the columns `title`, `chosen`, `rejected`\n")
    assert message.endswith("did you mean `prompt_column: title`?")


# ---- Prompts and problems


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi"},
        {"question": "Hi"},
        {"prompt": [user("Hi"), assistant("Hello")]},
        {"messages": [user("Hi"), assistant("Hello")]},
    ],
)
def test_forms_of_a_prompt(write, row):
    assert load_prompts(DataArguments(dataset=write("a.jsonl", [row]))).rows["prompt"][:] == [[user("Hi")]]


def test_other_scalar_columns_of_prompts_pass_through(write):
    row = {"prompt": "Hi", "answer": "x", "level": 2, "share": 0.5, "known": True, "tags": ["a"], "none": None}
    rows = load_prompts(DataArguments(dataset=write("a.jsonl", [row, {"prompt": "Ho", "share": 1}]))).rows
    assert rows["prompt"][1] == [user("Ho")]
    columns = rows.remove_columns("prompt").to_dict()
    assert columns == {"answer": ["x", None], "level": [2, None], "share": [0.5, 1.0], "known": [True, None]}


def test_column_of_numbers_and_text_becomes_text(write):
    rows = [{"prompt": "a", "answer": 6.0}, {"prompt": "b", "answer": "six"}, {"prompt": "c", "answer": 2**70}]
    loaded = load_prompts(DataArguments(dataset=write("a.jsonl", rows)))
    assert loaded.rows["answer"][:] == ["6", "six", str(2**70)]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "2+4?", "answer": "6"},
        {"question": "2+4?", "answer": 6.0},
        {"question": "2+4?", "answer": [6, 7]},
        {"prompt": [user("2+4?")], "answer": "6"},
        {"prompt": "2+4?", "completion": "6"},
    ],
)
def test_forms_of_a_problem(write, row):
    rows = load_problems(DataArguments(dataset=write("a.jsonl", [row]))).rows
    assert rows[:] == {"prompt": [[user("2+4?")]], "answer": ["6"]}


def test_problems_keep_difficulty_and_the_whole_answer(write):
    rows = [{"question": "a", "answer": "1+1\n#### 2", "difficulty": 3, "id": 7}, {"question": "b", "answer": "1"}]
    rows = load_problems(DataArguments(dataset=write("a.jsonl", rows))).rows
    assert rows.column_names == ["prompt", "answer", "difficulty"]
    assert rows["answer"][0] == "1+1\n#### 2"
    assert rows["difficulty"][:] == [3, None]


def test_problem_without_an_answer_is_dropped(write):
    path = write("a.jsonl", '{"question": "a", "answer": "1"}\n{"question": "b", "answer": NaN}\n')
    assert load_problems(DataArguments(dataset=path)).provenance[0]["dropped"] == {"empty answer": 1}


# ---- Mixtures

SIZES = {"a": 10, "b": 30, "c": 5}


def test_columns_of_an_entry_are_its_own(write):
    entries = [
        {"path": write("a.jsonl", [{"body": "one"}]), "text_column": "body"},
        {"path": write("b.jsonl", [{"text": "two"}])},
    ]
    loaded = load_documents(DataArguments(datasets=entries))
    assert sorted(loaded.rows["text"]) == ["one", "two"]
    assert [source["kept"] for source in loaded.provenance] == [1, 1]


def test_provenance_counts_what_is_used_of_each_source(write):
    paths = {key: write(f"{key}.jsonl", [{"text": f"{key}{n}"} for n in range(size)]) for key, size in SIZES.items()}
    weighted = [{"path": paths["a"], "weight": 1}, {"path": paths["b"], "weight": 2}, {"path": paths["c"], "weight": 1}]
    for entries, limit in ((weighted, None), (weighted, 8), ([{"path": path} for path in paths.values()], 25)):
        loaded = load_documents(DataArguments(datasets=entries, max_rows=limit))
        found = [sum(text.startswith(key) for text in loaded.rows["text"]) for key in SIZES]
        assert [source["used"] for source in loaded.provenance] == found
        assert [source["kept"] for source in loaded.provenance] == [10, 30, 5]


def test_extra_columns_of_sources_are_aligned(write):
    entries = [
        {"path": write("a.jsonl", [{"prompt": "a", "x": 1}])},
        {"path": write("b.jsonl", [{"prompt": "b", "y": "k"}])},
    ]
    rows = sorted(load_prompts(DataArguments(datasets=entries)).rows, key=lambda row: row["prompt"][0]["content"])
    assert [(row["x"], row["y"]) for row in rows] == [(1, None), (None, "k")]


# ---- What nobody here wrote

REAL = [
    (load_documents, "eltec_eng/val.jsonl.gz", {}, 32),
    (load_documents, "tinyshakespeare", {}, 12),
    (load_documents, "fairytaleqa/stories.jsonl.gz", {"text_column": "sections"}, 278),
    (
        load_conversations,
        "dolly_short/test.jsonl.gz",
        {"prompt_column": "instruction", "completion_column": "response"},
        300,
    ),
    (
        load_conversations,
        "fairytaleqa/qa_val.jsonl.gz",
        {"answer_column": "answers", "context_column": "context"},
        1025,
    ),
    (load_conversations, "chatterbot_english", {"messages_column": "turns"}, 2025),
    (load_preferences, "qa_feedback/pairs.jsonl.gz", {}, 2616),
    (load_preferences, "ukp_convarg1/test.jsonl.gz", {"prompt_column": "title"}, 1316),
    (load_prompts, "humaneval", {}, 164),
    (load_problems, "gsm8k/test.jsonl.gz", {}, 1319),
    (load_problems, "mawps", {}, 1921),
]


@real_data
@pytest.mark.parametrize(("load", "name", "settings", "kept"), REAL, ids=[name for _, name, _, _ in REAL])
def test_real_data_loads_with_column_settings_only(load, name, settings, kept):
    loaded = load(DataArguments(dataset=str(SHARED / name), **settings))
    assert len(loaded.rows) == kept
    assert all(value for value in loaded.rows[0].values())


def test_rehearsed_prompts_have_no_answer_and_their_share(write):
    problems = load_problems(DataArguments(dataset=write("p.jsonl", [{"question": f"{n}?", "answer": "1"} for n in range(30)])))
    prompts = load_prompts(DataArguments(dataset=write("c.jsonl", [{"prompt": f"Hello {n}"} for n in range(40)])))
    mixed = add_rehearsal(problems, prompts, share=0.25, seed=0)
    assert len(mixed.rows) == 40
    rehearsed = [row for row in mixed.rows if row["answer"] is None]
    assert len(rehearsed) == 10
    assert all(row["prompt"][-1]["content"].startswith("Hello") for row in rehearsed)
    assert [entry["used"] for entry in mixed.provenance] == [30, 10]
    assert mixed.rows["prompt"] == add_rehearsal(problems, prompts, share=0.25, seed=0).rows["prompt"]


def test_rehearsal_takes_no_prompt_twice(write):
    problems = load_problems(DataArguments(dataset=write("p.jsonl", [{"question": f"{n}?", "answer": "1"} for n in range(30)])))
    prompts = load_prompts(DataArguments(dataset=write("c.jsonl", [{"prompt": "Hello"}])))
    assert len(add_rehearsal(problems, prompts, share=0.5).rows) == 31
