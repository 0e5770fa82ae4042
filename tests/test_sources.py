"""Where rows come from: files of every kind, the Hub, mixtures; and what a user is told when they cannot be read."""

import gzip

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from groundup import sources
from groundup.configs import DataArguments
from groundup.data import load_documents
from groundup.errors import InputError


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
        f"a directory with test and train files\n  where: {tmp_path}/set\n  fix:   name one: `{tmp_path}/set/test.jsonl`"
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
    assert refusal(load_documents, dataset=path) == (f"the file is empty\n  where: {path}\n  fix:   put rows into it, or remove it")


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


def test_text_that_is_not_utf8_is_skipped_where_that_is_allowed(write, tmp_path):
    write("set/a.txt", b"caf\xe9")
    write("set/b.txt", "fine")
    loaded = load_documents(DataArguments(dataset=str(tmp_path / "set"), max_bad_rows=1))
    assert loaded.rows["text"][:] == ["fine"] and loaded.provenance[0]["dropped"] == {"did not parse": 1}


def test_one_bad_piece_of_a_large_text_is_skipped(write):
    pieces = [f"{n} {'x' * 100_000}\n\n".encode() for n in range(15)]
    pieces[7] = b"\xff" + pieces[7]
    path = write("a.txt", b"".join(pieces))
    assert [text.split()[0] for text in texts(path, max_bad_rows=1)] == [str(n) for n in range(15) if n != 7]
    assert "byte 0xff is not UTF-8\n" in (message := refusal(load_documents, dataset=path)) and "line 15\n" in message


def test_line_without_end(write, monkeypatch):
    monkeypatch.setattr(sources, "LONGEST", 1 << 20)
    path = write("a.jsonl", b'{"text": "one"}\n' + b"x" * (2 << 20))
    message = refusal(load_documents, dataset=path)
    assert message == f"a line longer than 1 MB\n  where: {path}, line 2\n  fix:   is it text? cut it into lines"


def test_file_that_vanishes_while_it_is_read(write, tmp_path):
    rows = sources.read_files([tmp_path / "gone.jsonl"], "text")
    with pytest.raises(InputError, match="the file has vanished"):
        next(rows)


def test_bytes_that_are_not_utf8_in_json(write):
    path = write("a.jsonl", b'{"text": "one"}\n{"text": "caf\xe9"}\n')
    assert f"byte 0xe9 is not UTF-8\n  where: {path}, line 2\n" in refusal(load_documents, dataset=path)


# ---- The Hub


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


# ---- Lines that cannot be read


def test_malformed_json(write):
    path = write("a.jsonl", '{"text": "one"}\n\n{"text": "two"\n')
    assert refusal(load_documents, dataset=path) == (
        "not JSON: Expecting ',' delimiter: column 15 (char 14)\n"
        f"  where: {path}, line 3\n"
        '  fix:   write one object per line, such as {"prompt": "...", "completion": "..."}'
    )


def test_half_a_surrogate_pair(write):
    path = write("a.jsonl", '{"text": "\\ud83d\\ude00"}\n{"text": "\\ud83d"}\n')
    message = refusal(load_documents, dataset=path)
    assert "surrogates not allowed" in message and "line 2" in message


def test_json_nested_too_deeply(write):
    assert refusal(load_documents, dataset=write("a.jsonl", "[" * 100_000)).startswith("not JSON: ")


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
    rows = mixture([{"path": three["a"], "weight": 1}, {"path": three["b"], "weight": 2}, {"path": three["c"], "weight": 7}])
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
