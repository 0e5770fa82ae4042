"""Sources dealt to parts: nothing lost, nothing twice, the same each time; and what happens to rows that are no documents."""

import dataclasses
import json
import os
from collections import Counter

import datasets
import numpy as np
import pytest
from groundup import corpus
from groundup.configs import DataArguments, PrepareArguments
from groundup.contamination import EvaluationSets
from groundup.corpus import deal, hash_text, list_corpus, read_documents, read_notes, scan
from groundup.errors import InputError
from groundup.sources import HUB_ERRORS


def settings(**own):
    return PrepareArguments("tokenizer", "out", **own)


def read(data_args, parts=1, counts=None, **own):
    sources = list_corpus(data_args)
    return [list(read_documents(sources, settings(**own), part, parts, counts)) for part in range(parts)]


def texts(parts):
    return [document.text for part in parts for document in part]


@pytest.fixture
def files(write, tmp_path):
    """Nine files of 1 to 9 rows, and all the texts in them."""
    rows = {n: [f"file {n} row {row}" for row in range(n)] for n in range(1, 10)}
    for n, found in rows.items():
        write(f"set/{n}.jsonl", [{"text": text} for text in found])
    return str(tmp_path / "set"), sorted(sum(rows.values(), []))


@pytest.mark.parametrize("parts", [1, 2, 4, 9, 30])
def test_every_row_is_in_one_part(files, parts):
    dealt = read(DataArguments(dataset=files[0]), parts)
    assert sorted(texts(dealt)) == files[1]
    sizes = [len(part) for part in dealt]
    assert max(sizes) - min(sizes) <= 9
    assert [[d.hash for d in part] for part in dealt] == [
        [d.hash for d in part] for part in read(DataArguments(dataset=files[0]), parts)
    ]


def test_whole_files_where_there_are_enough(files):
    for part in read(DataArguments(dataset=files[0]), 3):
        counts = Counter(document.place.split(",")[0] for document in part)
        assert all(count == int(place.rpartition("/")[2].removesuffix(".jsonl")) for place, count in counts.items())


def test_files_are_dealt_by_size():
    files = [{"path": str(n), "size": size} for n, size in enumerate([100, 50, 50, 40, 10, 30, 20])]
    assert [sum(file["size"] for file in part) for part in deal(files, 3)] == [100, 100, 100]


def test_max_rows_are_the_first_of_the_source_however_it_is_dealt(files):
    args = DataArguments(dataset=files[0], max_rows=5)
    assert sorted(texts(read(args, 1))) == sorted(texts(read(args, 4))) and len(texts(read(args, 4))) == 5
    with pytest.raises(InputError, match="`max_rows` of a mixture"):
        list_corpus(DataArguments(datasets=[{"path": files[0]}], max_rows=5))


def test_equal_files_are_read_once(write, tmp_path):
    write("set/a.txt", "same")
    write("set/b.txt", "same")
    assert texts(read(DataArguments(dataset=str(tmp_path / "set")))) == ["same"]


def test_documents_are_cleaned_cut_and_counted(write):
    rows = [{"text": "a\0b\r\nc"}, {"text": " \x07 "}, {"text": None}, {"text": "x" * 50 + "\n\n" + "y" * 45}, {"text": "ok"}]
    args, counts = DataArguments(dataset=write("a.jsonl", rows)), [Counter()]
    found = read(args, 1, counts, longest=60, shortest=3)[0]
    assert [document.text for document in found] == ["ab\nc", "x" * 50 + "\n\n", "y" * 45]
    assert counts[0] == {"rows": 5, "too short": 2, "empty text": 1}
    assert [document.size for document in found] == [4, 52, 45]
    first, *pieces = found
    assert first.group == first.hash and pieces[0].group == pieces[1].group == pieces[0].hash
    assert texts(read(args, 1, longest=60, shortest=3, too_long="drop")) == ["ab\nc"]


def test_pieces_of_a_text_file_among_others_belong_together(write, tmp_path):
    for name in "ab":
        write(f"set/{name}.txt", "".join(f"{name} {n} {'x' * 990}\n\n" for n in range(1200)))
    (found,) = read(DataArguments(dataset=str(tmp_path / "set")))
    assert len(found) > 20 and len({document.group for document in found}) == 2
    (alone,) = read(DataArguments(dataset=str(tmp_path / "set" / "a.txt")))  # one file is a corpus, not a document
    assert len({document.group for document in alone}) == len(alone) > 10


def test_bytes_that_are_no_text_within_the_allowance(write, tmp_path):
    write("set/a.txt", "good")
    write("set/b.txt", b"caf\xe9")
    write("set/c.jsonl", b'{"text": "fine"}\n{"text": "caf\xe9"}\n{"text": "la\\ud83dst"}\n{"text": "end"}\n')
    args, counts = DataArguments(dataset=str(tmp_path / "set"), max_bad_rows=3), [Counter()]
    assert texts(read(args, 1, counts)) == ["good", "fine", "end"]
    assert counts[0] == {"rows": 6, "did not parse": 3}
    with pytest.raises(InputError, match=r"0xe9 is not UTF-8\n.*b.txt, line 1"):
        read(DataArguments(dataset=str(tmp_path / "set")))


def test_source_that_vanished_or_changed(write):
    path = write("a.jsonl", [{"text": "one"}])
    sources = list_corpus(DataArguments(dataset=path))
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputError, match="changed since the preparation began"):
        list(read_documents(sources, settings(), 0, 1))
    os.remove(path)
    with pytest.raises(InputError, match=f"the file has vanished\n.*{path}"):
        list(read_documents(sources, settings(), 0, 1))


# ---- The Hub, in the form of datasets' own builder of local files


@pytest.fixture
def hub(write, monkeypatch):
    """`some/id`, four files of ten rows, streamed; and what was asked for."""
    paths = [write(f"hub/{n}.jsonl", [{"text": f"{n} {row}"} for row in range(10)]) for n in range(4)]
    asked, load = [], datasets.load_dataset_builder

    def builder(name, config, revision):
        asked.append((name, config, revision))
        made = load("json", data_files={"train": paths})
        made.hash = "0123abc"
        monkeypatch.setattr(made, "download_and_prepare", lambda: pytest.fail("downloaded"))
        return made

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    return asked


@pytest.mark.parametrize("parts", [1, 3, 4, 7])
def test_hub_is_streamed_and_dealt(hub, parts):
    found = texts(read(DataArguments(dataset="some/id", dataset_config="main"), parts))
    assert sorted(found) == sorted(f"{n} {row}" for n in range(4) for row in range(10))
    assert hub[0] == ("some/id", "main", None) and set(hub[1:]) == {("some/id", "main", "0123abc")}  # the commit found first


def test_hub_rows_up_to_a_number(hub):
    assert sorted(texts(read(DataArguments(dataset="some/id", max_rows=12), 3))) == sorted(
        [f"0 {row}" for row in range(10)] + ["1 0", "1 1"]
    )


def test_hub_split_that_is_not_there(hub):
    with pytest.raises(InputError, match="some/id.*\n.*split dev"):
        read(DataArguments(dataset="some/id", dataset_split="dev"))


def test_hub_that_breaks_off(hub, monkeypatch):
    def broken(self):
        yield {"text": "one"}
        raise ConnectionError("the network is gone")

    monkeypatch.setattr(datasets.IterableDataset, "__iter__", broken)
    with pytest.raises(InputError, match="the network is gone"):
        read(DataArguments(dataset="some/id"))
    assert issubclass(ConnectionError, HUB_ERRORS)


# ---- Notes


QUESTION = "which of the nine old towers by the river was the first to fall in the long winter"


def test_scan_notes_every_document_and_why_it_is_dropped(write, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "CHUNK", 20)  # several chunks
    train = write("a.jsonl", [{"text": "plain"}, {"text": f"He asked {QUESTION}?"}, {"text": "short!"}, {"text": "plain"}])
    held_out = write("b.jsonl", [{"text": QUESTION}])
    sources = list_corpus(DataArguments(dataset=train, eval_dataset=held_out))
    assert [source.held_out for source in sources] == [False, True]
    sets = EvaluationSets([{"path": write("q.jsonl", [{"question": QUESTION}]), "columns": ["question"]}])
    filters = [("no_marks", lambda document: (False, "mark") if "!" in document.text else True)]
    pytest.importorskip("datatrove")
    seen = scan(sources, settings(), 0, tmp_path, filters, sets)
    notes = read_notes(tmp_path, 0)
    assert notes["dropped"].tolist() == [0, 1, 1, 0, 0] and notes["source"].tolist() == [0, 0, 0, 0, 1]
    assert notes["hash"][0] == notes["hash"][3] == hash_text(b"plain") and notes["size"][0] == 5
    assert seen["counts"] == [{"rows": 4, "contaminated": 1, "no_marks: mark": 1}, {"rows": 1}]
    assert (seen["contaminated"], seen["contaminated_by_set"], seen["items"]) == (1, [1], [0])
    assert seen["examples"]["contaminated"] == [{"place": f"{train}, line 2", "text": f"He asked {QUESTION}?"}]
    assert json.loads((tmp_path / "scan-00000.json").read_text()) == json.loads(json.dumps(seen))
    counted = scan(sources, settings(contaminated="count"), 0, tmp_path, [], sets)
    assert read_notes(tmp_path, 0)["dropped"].tolist() == [0] * 5 and counted["contaminated"] == 1
    lenient = scan(sources, settings(contaminated_from=99), 0, tmp_path, [], sets)
    assert not np.any(read_notes(tmp_path, 0)["dropped"]) and lenient["contaminated"] == 0


def test_part_without_documents(write, tmp_path):
    sources = list_corpus(DataArguments(dataset=write("a.jsonl", [{"text": "one"}])))
    assert scan(sources, settings(shards=2), 1, tmp_path, [], None)["documents"] == 0
    assert len(read_notes(tmp_path, 1)) == 0


def test_sources_survive_a_file(files):
    source = list_corpus(DataArguments(dataset=files[0]))[0]
    again = json.loads(json.dumps(dataclasses.asdict(source)))
    assert corpus.Source(**{**again, "args": DataArguments(**again["args"])}) == source
