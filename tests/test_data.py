"""Own data: what is read, what becomes of each row, and what a user is told when it cannot be read."""

import gzip
import hashlib
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from groundup.configs import DataArguments
from groundup.data import load_conversations, load_documents, load_preferences, load_problems, load_prompts
from groundup.errors import InputError

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"
real_data = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


@pytest.fixture
def write(tmp_path):
    """Write a file of text, bytes, or rows as JSON lines; its path."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        content = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return str(path)

    return write


def texts(path, **settings):
    return load_documents(DataArguments(dataset=path, **settings)).rows["text"][:]


def refusal(load, **settings):
    with pytest.raises(InputError) as caught:
        load(DataArguments(**settings))
    return str(caught.value)


# ---- Files


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz"])
def test_json_lines(write, name):
    assert texts(write(name, [{"text": "one"}, {"text": "two"}])) == ["one", "two"]


def test_json_list(write):
    assert texts(write("a.json", '\n[{"text": "one"},\n {"text": "two"}]')) == ["one", "two"]


def test_parquet(tmp_path):
    pa.parquet.write_table(pa.table({"text": ["one", None, "two"]}), tmp_path / "a.parquet")
    assert texts(str(tmp_path / "a.parquet")) == ["one", "two"]


def test_one_text_file_is_one_document(write):
    assert texts(write("a.txt.gz", "one\n\ntwo\n")) == ["one\n\ntwo\n"]


def test_large_text_file_is_cut_at_blank_lines_and_nothing_is_lost(write):
    whole = "".join(f"paragraph {n} {'x' * 900}\n\n" for n in range(1500))
    pieces = texts(write("a.txt", whole))
    assert "".join(pieces) == whole
    assert 10 < len(pieces) < 20
    assert all(piece.startswith("paragraph") and piece.endswith("\n\n") for piece in pieces)


def test_large_text_without_blank_lines_is_cut_at_the_end_of_a_line(write):
    pieces = texts(write("a.txt", "a line of twenty ch\n" * 120_000))
    assert [len(piece) for piece in pieces] == [1_000_000, 1_000_000, 400_000]


def test_text_is_cleaned(write):
    assert texts(write("a.txt", b"\xef\xbb\xbfa\0b\r\nc\rd")) == ["ab\nc\nd"]


def test_directory_is_read_in_the_order_of_names_without_licences(write, tmp_path):
    write("set/b.txt", "second")
    write("set/a.jsonl", [{"text": "first"}])
    write("set/LICENSE.txt", "All rights reserved")
    write("set/.hidden.txt", "hidden")
    write("set/notes.csv", "a,b")
    loaded = load_documents(DataArguments(dataset=str(tmp_path / "set")))
    assert loaded.rows["text"][:] == ["first", "second"]
    assert loaded.provenance[0]["files"] == 2


def test_directory_with_several_splits_is_refused(write, tmp_path):
    write("set/train.jsonl", [{"text": "a"}])
    write("set/test.jsonl", [{"text": "b"}])
    assert refusal(load_documents, dataset=str(tmp_path / "set")) == (
        "a directory with test and train files\n"
        f"  where: {tmp_path}/set\n"
        f"  fix:   name one: `{tmp_path}/set/test.jsonl`"
    )


def test_names_that_only_resemble_splits_are_read(write, tmp_path):
    write("set/trainers.txt", "a")
    write("set/latest.txt", "b")
    assert texts(str(tmp_path / "set")) == ["b", "a"]


def test_glob(write, tmp_path):
    for n in (1, 0, 2):
        write(f"part-{n}.txt", str(n))
    write("other.txt", "other")
    assert texts(f"{tmp_path}/part-*.txt") == ["0", "1", "2"]


def test_equal_files_of_a_source_are_read_once(write, tmp_path):
    write("set/a.txt", "same")
    write("set/copy.txt", "same")
    loaded = load_documents(DataArguments(dataset=str(tmp_path / "set")))
    assert (len(loaded.rows), loaded.provenance[0]["files"]) == (1, 1)


def test_provenance(write):
    path = write("a.jsonl", [{"text": "one"}, {"text": " "}, {"text": None}])
    assert load_documents(DataArguments(dataset=path)).provenance == [
        {
            "name": path,
            "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
            "files": 1,
            "rows": 3,
            "kept": 1,
            "dropped": {"empty text": 2},
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


# ---- Files that cannot be read


def test_missing_file(write, tmp_path):
    write("stories.jsonl", [{"text": "a"}])
    assert refusal(load_documents, dataset=f"{tmp_path}/storys.jsonl") == (
        f"no such file: `storys.jsonl` is not in {tmp_path}\n"
        f"  where: {tmp_path}/storys.jsonl\n"
        "  fix:   did you mean `stories.jsonl`?"
    )


@pytest.mark.parametrize("name", ["corpus.txt", "./corpus", "a/b/c", "folder/x.csv", "none-*"])
def test_what_looks_like_a_path_is_never_sought_on_the_hub(name, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: pytest.fail("asked the Hub"))
    assert refusal(load_documents, dataset=name).startswith("no such file: ")


def test_missing_directory_is_named(tmp_path):
    assert f"`lost` is not in {tmp_path}" in refusal(load_documents, dataset=f"{tmp_path}/lost/a.txt")


def test_unsupported_suffix(write):
    path = write("rows.csv", "a,b")
    assert refusal(load_documents, dataset=path) == (
        "no file of a kind that can be read\n"
        f"  where: {path}\n"
        "  fix:   supported: .txt, .txt.gz, .jsonl, .jsonl.gz, .json, .json.gz, .parquet"
    )


def test_empty_file(write):
    path = write("a.jsonl", "")
    assert refusal(load_documents, dataset=path) == (
        f"the file is empty\n  where: {path}\n  fix:   put rows into it, or remove it"
    )


def test_empty_file_in_gzip(write):
    assert refusal(load_documents, dataset=write("a.txt.gz", "")).startswith("no document is left: 0 rows read\n")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet"])
def test_damaged_file(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(b'{"text": "one"}\n' * 1000)[:-20])
    else:
        path.write_bytes(b"PAR1 and then something else")
    message = refusal(load_documents, dataset=str(path))
    assert message.startswith("the file is damaged: ") and f"where: {path}" in message


def test_bytes_that_are_not_utf8(write):
    path = write("a.txt", b"one\ntwo\ncaf\xe9\n")
    assert refusal(load_documents, dataset=path) == (
        "byte 0xe9 is not UTF-8\n"
        f"  where: {path}, line 3\n"
        "  fix:   save it as UTF-8; from Latin-1: iconv -f latin1 -t utf-8 OLD > NEW"
    )


def test_bytes_that_are_not_utf8_in_json(write):
    path = write("a.jsonl", b'{"text": "one"}\n{"text": "caf\xe9"}\n')
    assert f"byte 0xe9 is not UTF-8\n  where: {path}, line 2\n" in refusal(load_documents, dataset=path)


def test_set_with_nothing_in_it(write):
    path = write("a.jsonl", [{"text": ""}] * 97 + [{"text": 1}] * 3)
    assert refusal(load_documents, dataset=path, max_bad_rows=3) == (
        "no document is left: 100 rows read -> 3 (empty text: 97) -> 0 (did not parse: 3)\n"
        f"  where: {path}\n"
        "  fix:   needed: `text`; if it has another name, write `text_column: NAME`"
    )


def test_hub_rows_and_the_resolved_commit(monkeypatch):
    asked = []

    class Builder:
        hash = "0123abc"

        def download_and_prepare(self):
            asked.append("prepared")

        def as_dataset(self, split):
            asked.append(split)
            return datasets.Dataset.from_dict({"text": ["one", "two"]})

    def builder(*names, revision):
        asked.append((*names, revision))
        return Builder()

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    args = DataArguments(dataset="some/id", dataset_config="main", dataset_split="dev", dataset_revision="v1")
    loaded = load_documents(args)
    assert asked == [("some/id", "main", "v1"), "prepared", "dev"]
    assert loaded.rows["text"][:] == ["one", "two"]
    assert loaded.provenance[0]["revision"] == "0123abc"


def test_hub_that_does_not_answer(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'user/name' on the Hub (LocalEntryNotFoundError)\nmore")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    assert refusal(load_documents, dataset="user/name") == (
        "no local file or directory `user/name`, and none from the Hub: "
        "Couldn't reach 'user/name' on the Hub (LocalEntryNotFoundError)\n"
        "  where: config None, split train, revision None\n"
        "  fix:   check the path; or the id `user/name`, the split and the network"
    )


# ---- Rows that cannot be read


def test_malformed_json(write):
    path = write("a.jsonl", '{"text": "one"}\n\n{"text": "two"\n')
    assert refusal(load_documents, dataset=path) == (
        "not JSON: Expecting ',' delimiter: column 15 (char 14)\n"
        f"  where: {path}, line 3\n"
        '  fix:   write one object per line, such as {"prompt": "...", "completion": "..."}'
    )


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


def test_half_a_surrogate_pair(write):
    path = write("a.jsonl", '{"text": "\\ud83d\\ude00"}\n{"text": "\\ud83d"}\n')
    message = refusal(load_documents, dataset=path)
    assert "surrogates not allowed" in message and "line 2" in message


def test_json_nested_too_deeply(write):
    assert refusal(load_documents, dataset=write("a.jsonl", "[" * 100_000)).startswith("not JSON: ")


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
    assert refusal(load_documents, dataset=path).endswith(
        "needed: `text`; if it has another name, write `text_column: NAME`"
    )


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
    loaded = load_conversations(DataArguments(dataset=write("a.jsonl", rows)))
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
    loaded = load_preferences(DataArguments(dataset=write("a.jsonl", rows)))
    assert loaded.provenance[0]["dropped"] == {
        "chosen equals rejected": 2,
        "chosen and rejected differ in more than one reply": 1,
        "empty rejected": 1,
    }


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


@pytest.fixture
def three(write):
    """Sources of 100, 300 and 1,000 documents, such as "b17"."""
    sizes = {"a": 100, "b": 300, "c": 1000}
    return {key: write(f"{key}.jsonl", [{"text": f"{key}{n}"} for n in range(size)]) for key, size in sizes.items()}


def mixture(entries, seed=0, **settings):
    return load_documents(DataArguments(datasets=entries, **settings), seed=seed).rows["text"][:]


def count(rows):
    return {key: sum(row.startswith(key) for row in rows) for key in "abc"}


def test_weights_are_shares_and_the_scarcest_source_is_used_up(three):
    rows = mixture(
        [{"path": three["a"], "weight": 1}, {"path": three["b"], "weight": 2}, {"path": three["c"], "weight": 7}]
    )
    assert count(rows) == {"a": 100, "b": 200, "c": 700}
    assert len(set(rows)) == 1000


def test_mixture_depends_on_the_seed_only(three):
    entries = [{"path": three["a"], "weight": 0.5}, {"path": three["c"], "weight": 0.5}]
    first = mixture(entries, seed=1)
    assert first == mixture(entries, seed=1)
    assert set(first) != set(mixture(entries, seed=2))
    assert first[:100] != sorted(first)[:100]


def test_without_weights_every_row_comes_once_and_shuffled(three):
    rows = mixture([{"path": three["a"]}, {"path": three["b"]}])
    assert count(rows) == {"a": 100, "b": 300, "c": 0}
    assert len(set(rows)) == 400
    assert 5 < count(rows[:100])["a"] < 60


def test_max_rows_keeps_the_shares(three):
    entries = [{"path": three["b"], "weight": 0.2}, {"path": three["c"], "weight": 0.8}]
    loaded = load_documents(DataArguments(datasets=entries, max_rows=50))
    assert count(loaded.rows["text"]) == {"a": 0, "b": 10, "c": 40}
    assert [source["kept"] for source in loaded.provenance] == [300, 1000]  # drawn from all, not from the first 50


def test_source_of_little_weight_does_not_vanish(three):
    rows = mixture([{"path": three["a"], "weight": 999}, {"path": three["b"], "weight": 1}])
    assert count(rows) == {"a": 100, "b": 1, "c": 0}


def test_max_rows_of_an_entry_is_its_own(three):
    rows = mixture([{"path": three["a"], "max_rows": 3}, {"path": three["b"]}])
    assert count(rows) == {"a": 3, "b": 300, "c": 0}


def test_columns_of_an_entry_are_its_own(write):
    entries = [
        {"path": write("a.jsonl", [{"body": "one"}]), "text_column": "body"},
        {"path": write("b.jsonl", [{"text": "two"}])},
    ]
    loaded = load_documents(DataArguments(datasets=entries))
    assert sorted(loaded.rows["text"]) == ["one", "two"]
    assert [source["kept"] for source in loaded.provenance] == [1, 1]


def test_extra_columns_of_sources_are_aligned(write):
    entries = [
        {"path": write("a.jsonl", [{"prompt": "a", "x": 1}])},
        {"path": write("b.jsonl", [{"prompt": "b", "y": "k"}])},
    ]
    rows = sorted(load_prompts(DataArguments(datasets=entries)).rows, key=lambda row: row["prompt"][0]["content"])
    assert [(row["x"], row["y"]) for row in rows] == [(1, None), (None, "k")]


def test_unknown_key_of_an_entry(three):
    assert refusal(load_documents, datasets=[{"path": three["a"]}, {"path": three["b"], "wieght": 1}]) == (
        "unknown key `wieght`\n  where: entry 2 of `datasets`\n  fix:   did you mean `weight`?"
    )


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"weight": 1}, 'no `path` in {"weight": 1}'),
        ("a.txt", 'no `path` in "a.txt"'),
        ({"path": "a.txt", "weight": 0}, "`weight: 0`"),
        ({"path": "a.txt", "weight": "half"}, '`weight: "half"`'),
        ({"path": "a.txt", "text_column": 3}, "`text_column: 3` is no name"),
        ({"path": "a.txt", "eval_dataset": "b.txt"}, "unknown key `eval_dataset`"),
    ],
)
def test_entry_that_is_wrong(entry, what):
    assert refusal(load_documents, datasets=[entry]).startswith(f"{what}\n  where: entry 1 of `datasets`\n")


def test_weights_in_some_entries_only(three):
    message = refusal(load_documents, datasets=[{"path": three["a"], "weight": 1}, {"path": three["b"]}])
    assert message.startswith("some entries have a weight, others have none\n")


def test_no_entries():
    assert refusal(load_documents, datasets=[]).startswith("the list is empty\n")


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
