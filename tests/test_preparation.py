"""The passes as one: every document accounted for, kills, many jobs, changed settings, full disks, and what a user is told."""

import errno
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from groundup import corpus, jobs, preparation, shards
from groundup.configs import DataArguments, PrepareArguments
from groundup.errors import InputError
from groundup.preparation import Preparation, summary
from groundup.shards import ShardWriter, TokenShards
from groundup.tokenizer import end_of_text_id

QUESTION = "Which of the nine old towers by the river was the first to fall in the long winter of that year?"


@pytest.fixture
def data(write):
    """120 documents, of which 5 are duplicates and 2 hold a question; the question; an empty row and one that does not parse."""
    rows = [{"text": f"Document {n} tells of {n * 7} apples and {n * 3} pears.\n" * (n % 5 + 1)} for n in range(113)]
    rows += [rows[n] for n in (3, 50, 3, 7, 9)] + [{"text": ""}, {"text": f"He asked: {QUESTION}"}, {"text": QUESTION.upper()}]
    path = write("corpus.jsonl", "".join(json.dumps(row) + "\n" for row in rows) + "no json\n")
    questions = write("questions.jsonl", [{"question": QUESTION}, {"question": "Who?"}])
    return DataArguments(dataset=path, max_bad_rows=1), [{"path": questions, "columns": ["question"]}]


@pytest.fixture
def prepare(data, tokenizer, tmp_path):
    """Run all passes into `name` with these settings; the manifest, None where shards are left to other jobs."""

    def prepare(name="tokens", data_args=data[0], **settings):
        settings = {"held_out_documents": 6, "decontaminate_against": data[1], **settings}
        made = Preparation(data_args, PrepareArguments("tokenizer", str(tmp_path / name), **settings), tokenizer)
        if made.manifest:
            return made.manifest
        made.scan()
        assert made.choose()
        made.tokenise()
        return made.finish()

    return prepare


def documents_of(directory, tokenizer, split):
    """The texts in the shards of a split, packed one after another."""
    found = []
    for path in sorted(Path(directory).glob(f"{split}-*.bin")):
        ids = np.fromfile(path, "<u2").tolist()
        while ids:
            end = ids.index(end_of_text_id(tokenizer))
            found.append(tokenizer.decode(ids[:end]))
            ids = ids[end + 1 :]
    return found


def test_every_document_is_in_a_shard_or_counted(prepare, data, tokenizer, tmp_path):
    manifest = prepare(shards=3)
    train, held_out = (documents_of(tmp_path / "tokens", tokenizer, split) for split in ("train", "held_out"))
    with open(data[0].dataset) as file:
        texts = [json.loads(line)["text"] for line in file.readlines()[:118]]
    assert sorted(train + held_out) == sorted(set(texts)) and len(held_out) == 6 and not set(train) & set(held_out)
    assert manifest["dropped"] == {"did not parse": 1, "empty text": 1, "contaminated": 2, "duplicate": 5}
    assert manifest["documents"] == 122 == len(train) + len(held_out) + sum(manifest["dropped"].values())
    (source,) = manifest["sources"]
    assert (source["rows"], source["kept"], source["used"], source["held_out"]) == (122, 113, 113, 6)
    assert source["bytes"] == sum(len(text.encode()) for text in set(texts))
    assert manifest["splits"]["train"]["documents"] == 107 and manifest["splits"]["train"]["shards"] == 3
    (found,) = manifest["decontamination"]["sets"]
    assert (found["items"], found["too_short"], found["items_found"], found["documents"]) == (2, 1, 1, 2)
    examples = {example["text"] for example in manifest["dropped_examples"]["contaminated"]}
    assert examples == {f"He asked: {QUESTION}", QUESTION.upper()}
    assert sorted(path.suffix for path in (tmp_path / "tokens").iterdir()) == [".bin"] * 4 + [".json"] * 5  # and nothing else
    assert len(TokenShards(tmp_path / "tokens", "train", tokenizer, 64)) > 10


def test_number_of_shards_changes_order_only(prepare, tokenizer, tmp_path):
    one, four = prepare("one"), prepare("four", shards=4)
    for split in ("train", "held_out"):
        texts = [sorted(documents_of(tmp_path / name, tokenizer, split)) for name in ("one", "four")]
        assert texts[0] == texts[1]
    assert one["dropped"] == four["dropped"] and one["decontamination"] == four["decontamination"]
    assert [{**source, "sha256": ""} for source in one["sources"]] == [{**source, "sha256": ""} for source in four["sources"]]


def test_same_command_gives_the_same_bytes(prepare, tmp_path, monkeypatch):
    prepare("first", shards=2)
    monkeypatch.setattr(preparation, "BATCH", 100)  # other batches, the same tokens
    prepare("second", shards=2)
    for path in (tmp_path / "first").glob("*.bin"):
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


def test_best_fit_counts_every_token(prepare, tokenizer, tmp_path):
    manifest = prepare(packing="best_fit", max_length=64, shards=2)
    for counts in manifest["splits"].values():
        assert counts["tokens_in"] == counts["tokens"] - counts["padding"] + sum(d["tokens"] for d in counts["dropped"].values())
    assert manifest["splits"]["train"]["tokens_in"] == prepare("wrapped")["splits"]["train"]["tokens"]
    assert "position_ids" in TokenShards(tmp_path / "tokens", "held_out", tokenizer, 64)[0]


def test_near_duplicates_go(prepare, write, tmp_path):
    pytest.importorskip("datatrove")
    words = [f"{a}{b}ing" for a in "bcdfghklm" for b in ("a", "ee", "oo", "u")]
    rng = np.random.default_rng(0)
    rows = [" ".join(rng.choice(words, 60)) for _ in range(8)]
    rows += [f"{rows[2]} and", rows[4].upper(), rows[4]]
    args = DataArguments(dataset=write("near.jsonl", [{"text": row} for row in rows]))
    settings = {"executor_settings": {"workers": 1}, "held_out_documents": 0, "decontaminate_against": None}
    assert prepare("near", args, near_duplicates="drop", **settings)["dropped"] == {"duplicate": 1, "near duplicate": 2}
    assert prepare("kept", args, near_duplicates="keep", **settings)["dropped"] == {"duplicate": 1}


def test_held_out_source_and_mixture(prepare, write, tokenizer, tmp_path):
    first = write("a.jsonl", [{"text": f"first {n} {'a' * 40}"} for n in range(100)])
    second = write("b.jsonl", [{"body": f"second {n} {'b' * 40}"} for n in range(100)])
    held_out = write("c.jsonl", [{"text": f"first 7 {'a' * 40}"}, {"text": "third"}])
    entries = [{"path": first, "weight": 1.0}, {"path": second, "weight": 0.25, "text_column": "body"}]
    args = DataArguments(datasets=entries, eval_dataset=held_out)
    manifest = prepare(data_args=args, held_out_documents=None, decontaminate_against=None, shards=2)
    assert [source["used"] for source in manifest["sources"]] == [99, 24, 2]
    assert manifest["sources"][1]["dropped"] == {"beyond its share": 76} and manifest["sources"][0]["dropped"] == {"duplicate": 1}
    assert sorted(documents_of(tmp_path / "tokens", tokenizer, "held_out")) == [f"first 7 {'a' * 40}", "third"]


def test_summary_says_what_happened(prepare):
    lines = summary(prepare()).splitlines()
    assert lines[0].startswith("prepare: 122 documents -> ") and "-> 113 (" in lines[0] and "(contaminated: 2)" in lines[0]
    assert lines[1].endswith("questions.jsonl: 1 of 2 items found, in 2 documents")
    assert "prepare: not decontaminated: no evaluation set is named" in summary(prepare("plain", decontaminate_against=None))


# ---- Many jobs


def test_jobs_one_after_another(prepare, tmp_path):
    """Each does all that the others have not: the first reads everything, the last writes the manifest."""
    assert [prepare(shard=f"{n}/3") is None for n in (2, 0)] == [True, True]
    assert not (tmp_path / "tokens" / "train-00001-of-00003.json").exists()
    assert prepare(shard="1/3")["splits"]["train"]["shards"] == 3
    assert not (tmp_path / "tokens" / "passes").exists()


def test_job_without_shard_does_what_is_left(prepare):
    prepare(shard="1/3")
    assert prepare(shards=3)["documents"] == 122


def run_job(number, tokenizer, data, directory, go):
    corpus.CHUNK, jobs.PAUSE = 200, 0.05
    args = PrepareArguments("tokenizer", directory, shard=f"{number}/3", held_out_documents=6, decontaminate_against=data[1])
    go.wait()
    made = Preparation(data[0], args, tokenizer)
    made.scan()
    made.choose()
    made.tokenise()
    made.finish()


def test_jobs_at_once(prepare, data, tokenizer, tmp_path):
    expected = prepare("alone", shards=3)
    context = multiprocessing.get_context("fork")
    go = context.Event()
    jobs = [context.Process(target=run_job, args=(n, tokenizer, data, str(tmp_path / "together"), go)) for n in range(3)]
    for job in jobs:
        job.start()
    go.set()
    for job in jobs:
        job.join(60)
        assert job.exitcode == 0
    found = json.loads((tmp_path / "together" / "manifest.json").read_text())
    assert found == {**expected}


# ---- Killed, and run again


@pytest.mark.parametrize("where", ["in_chunks", "choose", "_finish", "write_manifest"])
def test_what_is_finished_is_kept(prepare, tmp_path, monkeypatch, where):
    expected = prepare("whole", shards=2)
    with monkeypatch.context() as patch:
        owner = Preparation if where == "_finish" else preparation
        whole, calls = getattr(owner, where), []

        def killed(*args, **kwargs):
            calls.append(args)
            if where != "in_chunks" or len(calls) == 2:  # in the middle of the second shard
                raise KeyboardInterrupt
            return whole(*args, **kwargs)

        patch.setattr(owner, where, killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(shards=2)
    assert not (tmp_path / "tokens" / "manifest.json").exists()
    assert not list((tmp_path / "tokens").glob("*.tmp"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tokens").glob("train-*")}
    assert len(before) == {"in_chunks": 2, "choose": 0}.get(where, 4)
    read = []
    monkeypatch.setattr(preparation, "scan", lambda *args: (read.append(args), corpus.scan(*args))[1])
    assert prepare(shards=2) == expected
    assert not read  # the scans of the first run stand
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_finished_preparation_is_not_done_again(prepare, monkeypatch):
    manifest = prepare()
    monkeypatch.setattr(Preparation, "share", lambda *_: pytest.fail("did something"))
    assert prepare() == manifest


@pytest.mark.parametrize("finished", [True, False])
def test_changed_settings_are_refused_with_a_diff(prepare, finished, monkeypatch):
    if finished:
        prepare()
    else:
        prepare(shard="0/2")
    state = "tokens prepared" if finished else "a preparation begun"
    with pytest.raises(InputError, match=f"holds {state} with other settings: longest: 200000 -> 500; seed: 0 -> 1"):
        prepare(**({} if finished else {"shards": 2}), seed=1, longest=500)


def test_settings_may_change_as_long_as_nothing_depends_on_them(prepare, write, monkeypatch):
    path = write("few.jsonl", "not json\n" + "".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(9)))
    with pytest.raises(InputError, match="not JSON"):
        prepare(data_args=DataArguments(dataset=path), held_out_documents=8)
    allowed = DataArguments(dataset=path, max_bad_rows=1)  # nothing was read to its end
    with pytest.raises(InputError, match="`held_out_documents: 8` of 9 documents"):
        prepare(data_args=allowed, held_out_documents=8)
    with pytest.raises(InputError, match="with other settings: longest: 200000 -> 50"):
        prepare(data_args=allowed, held_out_documents=2, longest=50)
    monkeypatch.setattr(Preparation, "_tokenise", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(data_args=allowed, held_out_documents=2)  # nothing was chosen
    monkeypatch.undo()
    with pytest.raises(InputError, match="with other settings: held_out_documents: 2 -> 1"):
        prepare(data_args=allowed, held_out_documents=1)
    manifest = prepare(data_args=allowed, held_out_documents=2)
    assert manifest["splits"]["held_out"]["documents"] == manifest["config"]["held_out_documents"] == 2


def test_tokenizer_of_another_run_is_refused(prepare, tokenizer, tmp_path, data):
    from groundup.tokenizer import train_tokenizer

    prepare()
    other = train_tokenizer(["another language altogether, " * 9], 270)
    args = PrepareArguments("tokenizer", str(tmp_path / "tokens"), held_out_documents=6, decontaminate_against=data[1])
    with pytest.raises(InputError, match="other settings: tokenizer_sha256: "):
        Preparation(data[0], args, other)


def test_changed_evaluation_set_is_refused(prepare, data):
    prepare(shard="0/2")
    Path(data[1][0]["path"]).write_text(json.dumps({"question": QUESTION.replace("nine", "ten")}) + "\n")
    with pytest.raises(InputError, match="evaluation_sets_sha256: "):
        prepare(shard="1/2")


def test_source_that_changed_between_the_passes(prepare, data):
    prepare(shard="0/2")
    with open(data[0].dataset, "a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(InputError, match=f"changed since the preparation began\n.*{data[0].dataset}"):
        prepare(shard="1/2")
    os.remove(data[0].dataset)
    with pytest.raises(InputError, match="the file has vanished"):
        prepare(shard="1/2")


def test_source_that_gives_other_documents_is_noticed(prepare, data, monkeypatch):
    """A dataset of the Hub has no time of change; its documents are compared."""
    prepare(shard="0/2")
    monkeypatch.setattr(corpus.Source, "check", lambda self: None)
    for change in (lambda text: text.replace("Document 1 ", "Document X "), lambda text: text + '{"text": "more"}\n' * 2):
        whole = Path(data[0].dataset).read_text()
        Path(data[0].dataset).write_text(change(whole))
        with pytest.raises(InputError, match="changed since the preparation began"):
            prepare(shard="1/2")
        Path(data[0].dataset).write_text(whole)
    assert prepare(shard="1/2")


# ---- What cannot be prepared


def test_nothing_is_left_behind_when_nothing_begins(prepare, tmp_path, data):
    with pytest.raises(InputError, match="no such file: `none.jsonl`"):
        prepare(data_args=DataArguments(dataset=f"{tmp_path}/none.jsonl"))
    with pytest.raises(InputError, match="no such file: `none.jsonl`"):
        prepare(decontaminate_against=[{"path": f"{tmp_path}/none.jsonl", "columns": ["question"]}])
    assert not (tmp_path / "tokens").exists()


def test_bad_rows_are_counted_over_all_parts(prepare, write):
    path = write("bad.jsonl", "no\n" * 4 + "".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(40)))
    with pytest.raises(InputError, match="4 bad rows, more than `max_bad_rows: 3`"):
        prepare(data_args=DataArguments(dataset=path, max_bad_rows=3), shards=4)
    assert prepare("more", DataArguments(dataset=path, max_bad_rows=4), shards=4)["dropped"] == {"did not parse": 4}


def test_vocabulary_beyond_the_dtype(prepare, tokenizer, monkeypatch, tmp_path):
    monkeypatch.setattr(type(tokenizer), "__len__", lambda self: 2**32 + 1)
    with pytest.raises(InputError, match="a vocabulary of 4,294,967,297 tokens"):
        prepare()
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize("where", ["scan", "write", "fsync"])
def test_full_disk(prepare, tmp_path, monkeypatch, where):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if where == "scan":
            patch.setattr(corpus, "in_chunks", full)
        elif where == "write":
            patch.setattr(ShardWriter, "add", full)
        else:
            patch.setattr(shards.os, "fsync", full)
        with pytest.raises(InputError, match="no room to write: No space left on device\n.*\n.*make room and run the same command"):
            prepare()
    assert not list(tmp_path.glob("tokens/**/*.tmp")) and not list(tmp_path.glob("tokens/train*"))
    assert prepare()["documents"] == 122  # with room, it goes on


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shard": "3/3"}, "`shard: 3/3` is no `i/n`"),
        ({"shard": "1"}, "`shard: 1` is no `i/n`"),
        ({"shard": "1/4", "shards": 3}, "`shard: 1/4` of `shards: 3`"),
        ({"shards": 0}, "`shards: 0`"),
        ({"packing": "tight"}, "`packing: tight`"),
        ({"packing": "best_fit"}, "packing `best_fit` needs to know the rows"),
        ({"near_duplicates": "yes"}, "`near_duplicates: yes`"),
        ({"longest": 10**9}, "`longest: 1000000000`"),
        ({"held_out_documents": -1}, "`held_out_documents: -1`"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(InputError) as caught:
        PrepareArguments("tokenizer", "out", **settings)
    assert caught.value.what.startswith(message) and caught.value.fix


def test_shard_sets_the_number_of_shards():
    assert PrepareArguments("tokenizer", "out", shard="1/4").shards == PrepareArguments("t", "o", shard="1/4", shards=4).shards == 4
