import copy
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from hashlib import sha256

import numpy as np
import pytest
import torch
from groundup import shards
from groundup.errors import InputError
from groundup.shards import (
    ShardWriter,
    TokenShards,
    is_prepared,
    read_manifest,
    shard_name,
    token_dtype,
    tokenizer_hash,
    write_manifest,
)
from groundup.tokenizer import end_of_text_id

PACKINGS = [("wrapped", None), ("best_fit", 32)]


def documents(seed=0, count=60, longest=80):
    """Ids of a document that hold no special token, and a size in bytes, of which there are `count`."""
    generator = np.random.default_rng(seed)
    return [(generator.integers(4, 500, generator.integers(1, longest)).tolist(), 7) for _ in range(count)]


def write(directory, tokenizer, packing="wrapped", length=None, split="train", number=1, seed=0, **settings):
    for shard in range(number):
        with ShardWriter(directory, split, tokenizer, packing, length, shard, number) as writer:
            for ids, size in documents(seed + shard, **settings):
                writer.add(ids, size)
            writer.drop("empty text", 2)
            writer.drop("contaminated", 1, tokens=11)


@pytest.fixture(params=PACKINGS, ids=lambda packing: packing[0])
def prepared(request, tokenizer, tmp_path):
    """Three shards of train and one of held_out, in rows of 32."""
    packing, length = request.param
    write(tmp_path / "tokens", tokenizer, packing, length, number=3)
    write(tmp_path / "tokens", tokenizer, packing, length, "held_out", seed=9, count=20)
    write_manifest(tmp_path / "tokens", tokenizer, [{"name": "a"}], cleaning={"kept": 1})
    return tmp_path / "tokens"


def read_all(tokens):
    return [tokens[row] for row in range(len(tokens))]


def other_tokenizer():
    from groundup.tokenizer import train_tokenizer

    return train_tokenizer(["one two three"], vocab_size=260)


# ---- what is written


def test_files_of_a_directory(prepared):
    names = {path.name for path in prepared.iterdir()}
    suffixes = [".bin", ".json"] + [".segments"] * (read_manifest(prepared)["packing"] == "best_fit")
    expected = {shard_name("train", shard, 3) for shard in range(3)} | {shard_name("held_out", 0, 1)}
    assert names == {f"{name}{suffix}" for name in expected for suffix in suffixes} | {"manifest.json"}
    assert "train-00002-of-00003.bin" in names


def test_every_token_is_accounted_for(prepared, tokenizer):
    manifest = read_manifest(prepared)
    for shard in range(3):
        index = json.loads((prepared / f"{shard_name('train', shard, 3)}.json").read_text())
        given = documents(shard)
        assert index["documents"] == 60 and index["bytes"] == 7 * 60
        assert index["tokens_in"] == sum(len(ids) + 1 for ids, _ in given) + 11
        assert index["dropped"] == {"empty text": {"documents": 2, "tokens": 0}, "contaminated": {"documents": 1, "tokens": 11}}
        dropped = sum(entry["tokens"] for entry in index["dropped"].values())
        assert index["tokens_in"] == index["tokens"] - index["padding"] + dropped
        content = (prepared / f"{shard_name('train', shard, 3)}.bin").read_bytes()
        assert index["sha256"] == sha256(content).hexdigest() and len(content) == 2 * index["tokens"]
        tokens = np.frombuffer(content, "<u2")
        if index["packing"] == "best_fit":
            assert index["tokens"] == 32 * index["rows"] and (tokens == tokenizer.pad_token_id).sum() == index["padding"] > 0
            assert index["split_documents"] >= sum(len(ids) + 1 > 32 for ids, _ in given) > 0
        else:
            assert tokens.tolist() == [token for ids, _ in given for token in [*ids, end_of_text_id(tokenizer)]]
            assert (index["rows"], index["padding"], index["split_documents"], index["length"]) == (None, 0, 0, None)
    sums = manifest["splits"]["train"]
    assert (sums["documents"], sums["bytes"], sums["shards"]) == (180, 1260, 3)
    assert sums["dropped"]["contaminated"] == {"documents": 3, "tokens": 33}
    assert sums["tokens_in"] == sums["tokens"] - sums["padding"] + 33
    assert manifest["sources"] == [{"name": "a"}] and manifest["cleaning"] == {"kept": 1}
    assert manifest["vocab_size"] == 512 and manifest["tokenizer_sha256"] == tokenizer_hash(tokenizer)


def test_what_is_written_in_small_pieces_is_the_same(tokenizer, tmp_path, monkeypatch):
    for packing, length in PACKINGS:
        write(tmp_path / "at once", tokenizer, packing, length)
        with monkeypatch.context() as patch:
            patch.setattr(shards, "BUFFER", 10)
            write(tmp_path / "in parts", tokenizer, packing, length)
        for path in (tmp_path / "at once").iterdir():
            assert (tmp_path / "in parts" / path.name).read_bytes() == path.read_bytes()


def test_arrays_and_lists_are_written_alike(tokenizer, tmp_path):
    for name, kind in (("list", list), ("array", np.array)):
        with ShardWriter(tmp_path, name, tokenizer) as writer:
            writer.add(kind([5, 6, 7]), 3)
            writer.add(kind([]), 0)
    assert np.fromfile(tmp_path / "list-00000-of-00001.bin", "<u2").tolist() == [5, 6, 7, *[end_of_text_id(tokenizer)] * 2]
    assert (tmp_path / "list-00000-of-00001.bin").read_bytes() == (tmp_path / "array-00000-of-00001.bin").read_bytes()


@pytest.mark.parametrize(
    ("size", "dtype"), [(1, "uint16"), (2**16, "uint16"), (2**16 + 1, "uint32"), (2**32, "uint32"), (2**32 + 1, None)]
)
def test_numbers_are_as_wide_as_the_vocabulary_needs(size, dtype):
    if dtype:
        assert token_dtype(size) == dtype
    else:
        with pytest.raises(InputError, match="a vocabulary of 4,294,967,297 tokens"):
            token_dtype(size)


def test_large_vocabulary(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "__len__", lambda self: 2**16 + 1)
    with ShardWriter(tmp_path, "train", tokenizer) as writer:
        writer.add([2**16, 5], 1)
    write_manifest(tmp_path, tokenizer, [])
    tokens = TokenShards(tmp_path, tokenizer=tokenizer, length=2)
    assert tokens[0]["input_ids"].tolist() == [2**16, 5]
    assert (tmp_path / "train-00000-of-00001.bin").stat().st_size == 3 * 4


@pytest.mark.parametrize("ids", [[5, 512], [5, -1], [70_000], np.array([600])])
def test_id_beyond_the_vocabulary(tokenizer, tmp_path, ids):
    with pytest.raises(InputError, match="in a vocabulary of 512"), ShardWriter(tmp_path, "train", tokenizer) as writer:
        writer.add(ids, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("packing", "length", "match"),
    [("bfd", 32, "`packing: bfd` is unknown"), ("best_fit", None, "rows of None"), ("best_fit", 1, "rows of 1 tokens")],
)
def test_packing_that_is_none(tokenizer, tmp_path, packing, length, match):
    with pytest.raises(InputError, match=match):
        ShardWriter(tmp_path, "train", tokenizer, packing, length)


def test_best_fit_without_padding_token(tokenizer, tmp_path):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = None
    with pytest.raises(InputError, match="no padding token"):
        ShardWriter(tmp_path, "train", tokenizer, "best_fit", 32)


# ---- killed, twice, at once


@pytest.mark.parametrize(("packing", "length"), PACKINGS)
def test_exception_leaves_nothing(tokenizer, tmp_path, packing, length):
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path, "train", tokenizer, packing, length) as writer:
        writer.add([5] * 100, 1)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_failure_at_the_end_leaves_nothing(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, tokenizer, "best_fit", 32)
    assert list(tmp_path.iterdir()) == []


def test_failure_leaves_the_shard_of_before(prepared, tokenizer):
    before = {path.name: path.read_bytes() for path in prepared.iterdir()}
    packing, length = (read_manifest(prepared)[key] for key in ("packing", "length"))
    with pytest.raises(RuntimeError), ShardWriter(prepared, "train", tokenizer, packing, length, 1, 3) as writer:
        writer.add([5] * 100, 1)
        raise RuntimeError
    assert {path.name: path.read_bytes() for path in prepared.iterdir()} == before


@pytest.mark.parametrize("moment", ["add", "replace", "index"])
def test_killed_writer_leaves_no_shard_and_can_run_again(tokenizer, tiny_base, tmp_path, moment):
    script = f"""
        import os, signal
        from groundup import shards
        from transformers import AutoTokenizer
        kill = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
        if "{moment}" == "replace":
            shards.os.replace = kill
        if "{moment}" == "index":
            shards.write_json = kill
        with shards.ShardWriter("{tmp_path}", "train", AutoTokenizer.from_pretrained("{tiny_base}"), "best_fit", 32) as writer:
            for _ in range(100):
                writer.add([5] * 100, 1)
            if "{moment}" == "add":
                kill()
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert is_prepared(tmp_path)
    with pytest.raises(InputError, match="not prepared to the end: 0 finished shards"):
        TokenShards(tmp_path)
    with pytest.raises(InputError, match="no shard is finished"):
        write_manifest(tmp_path, tokenizer, [])
    write(tmp_path, tokenizer, "best_fit", 32)
    write_manifest(tmp_path, tokenizer, [])
    assert len(TokenShards(tmp_path)) > 0
    assert {path.suffix for path in tmp_path.iterdir()} == {".bin", ".json", ".segments"}


def test_writing_again_replaces_shard_and_manifest(prepared, tokenizer):
    packing, length = (read_manifest(prepared)[key] for key in ("packing", "length"))
    write(prepared, tokenizer, packing, length, number=3, seed=50)
    with pytest.raises(InputError, match="not prepared to the end: 4 finished shards and no manifest.json"):
        TokenShards(prepared)
    write_manifest(prepared, tokenizer, [])
    assert TokenShards(prepared, length=32).counts["documents"] == 180


def test_another_packing_leaves_no_segments_behind(tokenizer, tmp_path):
    write(tmp_path, tokenizer, "best_fit", 32)
    write(tmp_path, tokenizer)
    assert not list(tmp_path.glob("*.segments"))


def test_two_writers_of_one_shard(tokenizer, tmp_path):
    with ShardWriter(tmp_path, "train", tokenizer) as writer:
        writer.add([5, 6], 2)
        with pytest.raises(InputError, match="another process is writing this shard"), ShardWriter(tmp_path, "train", tokenizer):
            pass
        with ShardWriter(tmp_path, "train", tokenizer, shard=1, shards=2) as other:
            other.add([7], 1)
    assert np.fromfile(tmp_path / "train-00000-of-00001.bin", "<u2").tolist() == [5, 6, end_of_text_id(tokenizer)]


# ---- the manifest


def test_missing_shard(tokenizer, tmp_path):
    for shard in (0, 3):
        with ShardWriter(tmp_path, "train", tokenizer, shard=shard, shards=4) as writer:
            writer.add([5], 1)
    with pytest.raises(InputError, match="2 shards are missing: train-00001-of-00004, train-00002-of-00004"):
        write_manifest(tmp_path, tokenizer, [])
    assert not (tmp_path / "manifest.json").exists()


def test_shards_of_two_preparations(tokenizer, tmp_path):
    write(tmp_path, tokenizer, number=2)
    write(tmp_path, tokenizer, number=3)
    with pytest.raises(InputError, match="`train` is in 2 and in 3 shards"):
        write_manifest(tmp_path, tokenizer, [])


def test_shards_that_disagree(tokenizer, tmp_path):
    for shard, length in enumerate((16, 32)):
        with ShardWriter(tmp_path, "train", tokenizer, "best_fit", length, shard, 2) as writer:
            writer.add([5] * 40, 1)
    with pytest.raises(InputError, match="shards differ in `length`: 16 and 32") as refused:
        write_manifest(tmp_path, tokenizer, [])
    assert "train-00001-of-00002" in refused.value.where


def test_shards_of_another_tokenizer(tokenizer, tmp_path):
    write(tmp_path, tokenizer)
    with pytest.raises(InputError, match="another tokenizer"):
        write_manifest(tmp_path, other_tokenizer(), [])


# ---- reading


def test_wrapped_rows_are_the_documents_in_a_row(tokenizer, tmp_path):
    write(tmp_path, tokenizer, number=2)
    write_manifest(tmp_path, tokenizer, [])
    for length in (16, 50):
        tokens, expected = TokenShards(tmp_path, tokenizer=tokenizer, length=length), []
        for shard in range(2):
            stream = [token for ids, _ in documents(shard) for token in [*ids, end_of_text_id(tokenizer)]]
            expected += [stream[start : start + length] for start in range(0, len(stream) - length + 1, length)]
        items = read_all(tokens)
        assert [item["input_ids"].tolist() for item in items] == expected
        assert all(item.keys() == {"input_ids", "labels"} and torch.equal(*item.values()) for item in items)
        assert all(value.dtype == torch.int64 for item in items for value in item.values())
        assert tokens.left_over == tokens.counts["tokens"] - length * len(items) > 0
        assert tokens.bytes_per_token == pytest.approx(2 * 60 * 7 / tokens.counts["tokens"])


def test_best_fit_rows_hold_the_documents(tokenizer, tmp_path):
    write(tmp_path, tokenizer, "best_fit", 32, number=2)
    write_manifest(tmp_path, tokenizer, [])
    tokens = TokenShards(tmp_path, tokenizer=tokenizer)
    expected = sorted(
        [*ids, end_of_text_id(tokenizer)] for shard in range(2) for ids, _ in documents(shard) if len(ids) < 32
    )  # at least these are whole, save for what was cut to fill rows
    found, padding = [], 0
    for item in read_all(tokens):
        ids, labels, positions = (item[name].tolist() for name in ("input_ids", "labels", "position_ids"))
        starts = [place for place, position in enumerate(positions) if position == 0]
        assert starts[0] == 0
        for start, end in zip(starts, [*starts[1:], 32], strict=True):
            assert positions[start:end] == list(range(end - start))
            assert labels[start] == -100
            if ids[start] == tokenizer.pad_token_id:
                assert set(ids[start:end]) == {tokenizer.pad_token_id} and set(labels[start:end]) == {-100} and end == 32
                padding += end - start
            else:
                assert labels[start + 1 : end] == ids[start + 1 : end]
                found.append(ids[start:end])
    assert padding == tokens.counts["padding"] and sum(map(len, found)) == tokens.counts["tokens"] - padding
    whole = [document for document in expected if document in found]
    longer = sum(len(ids) + 1 > 32 for shard in range(2) for ids, _ in documents(shard))
    assert len(expected) - len(whole) <= tokens.counts["split_documents"] - longer < len(expected) / 4
    assert tokens.bytes_per_token == pytest.approx(2 * 60 * 7 / sum(map(len, found)))


def test_a_changed_label_leaves_the_tokens_alone(prepared):
    tokens = TokenShards(prepared, length=32)
    before = tokens[0]["input_ids"].clone()
    tokens[0]["labels"][:] = 5
    item = tokens[0]
    item["labels"][:] = 5
    assert torch.equal(item["input_ids"], before)


def test_splits_and_rows_beyond(prepared):
    train, held_out = TokenShards(prepared, length=32), TokenShards(prepared, "held_out", length=32)
    assert (train.counts["documents"], held_out.counts["documents"]) == (180, 20)
    for row in (len(train), -1):
        with pytest.raises(IndexError):
            train[row]
    with pytest.raises(InputError, match="no split `test`") as refused:
        TokenShards(prepared, "test", length=32)
    assert refused.value.fix == "it has: held_out, train"


def test_a_shard_without_a_row(tokenizer, tmp_path):
    """An independent job may be left with no document, or with few."""
    for shard, count in enumerate((0, 40, 1)):
        with ShardWriter(tmp_path, "train", tokenizer, shard=shard, shards=3) as writer:
            for ids, size in documents(count=count, longest=20):
                writer.add(ids, size)
    write_manifest(tmp_path, tokenizer, [])
    tokens = TokenShards(tmp_path, length=32)
    assert len(read_all(tokens)) == len(tokens) == sum(len(ids) + 1 for ids, _ in documents(count=40, longest=20)) // 32


def rows_in_a_process(tokens, queue):
    queue.put([tokens[row]["input_ids"].tolist() for row in (0, len(tokens) - 1)])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_the_same(prepared, method):
    tokens = TokenShards(prepared, length=32)
    expected = [tokens[row]["input_ids"].tolist() for row in (0, len(tokens) - 1)]  # the maps are open
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=rows_in_a_process, args=(tokens, queue))
    process.start()
    assert queue.get(timeout=120) == expected
    process.join()


def test_workers_of_a_loader(prepared):
    tokens = TokenShards(prepared, length=32)
    alone, helped = (
        torch.cat([batch["input_ids"] for batch in torch.utils.data.DataLoader(tokens, 4, num_workers=workers)])
        for workers in (0, 2)
    )
    assert torch.equal(alone, helped) and len(alone) == len(tokens)


def test_pickled_without_the_tokens(prepared):
    tokens = TokenShards(prepared, length=32)
    read_all(tokens)
    assert len(pickle.dumps(tokens)) < 10_000
    assert torch.equal(pickle.loads(pickle.dumps(tokens))[3]["input_ids"], tokens[3]["input_ids"])


def test_files_are_opened_when_they_are_read(prepared, monkeypatch):
    opened = []
    memmap = np.memmap
    monkeypatch.setattr(np, "memmap", lambda path, *args: opened.append(path) or memmap(path, *args))
    tokens = TokenShards(prepared, length=32)
    assert opened == []
    for _ in range(3):
        tokens[len(tokens) - 1]
    assert len(opened) == 1 + (tokens.manifest["packing"] == "best_fit")
    assert all("train-00002-of-00003" in path for path in opened)


# ---- bad input


def test_vanished_shard(prepared):
    files = list(prepared.glob("train-00001-of-00003.*"))
    assert len(files) == 2 + (read_manifest(prepared)["packing"] == "best_fit")
    for lost in files:
        content = lost.read_bytes()
        lost.unlink()
        with pytest.raises(InputError, match="a shard has vanished") as refused:
            TokenShards(prepared, length=32)
        assert refused.value.where == str(lost)
        lost.write_bytes(content)
    TokenShards(prepared, length=32)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data[: len(data) // 2], lambda data: b""])
def test_truncated_shard(prepared, change):
    for torn in [path for path in prepared.glob("train-00001-of-00003.*") if path.suffix != ".json"]:
        content = torn.read_bytes()
        torn.write_bytes(change(content))
        with pytest.raises(InputError, match="a shard is damaged") as refused:
            TokenShards(prepared, length=32)
        assert refused.value.where == str(torn)
        torn.write_bytes(content)
    TokenShards(prepared, length=32)


def test_damaged_index(prepared):
    path = prepared / "train-00001-of-00003.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(InputError, match="train-00001-of-00003.json is not readable JSON"):
        TokenShards(prepared, length=32)


def test_shard_of_another_preparation(prepared, tokenizer):
    """One copied over another: as long, and whole, and not what the manifest tells of."""
    for suffix in (".bin", ".json", ".segments"):
        path = prepared / f"train-00001-of-00003{suffix}"
        if path.exists():
            path.write_bytes((prepared / f"train-00000-of-00003{suffix}").read_bytes())
    with pytest.raises(InputError, match="the shards are not those of the manifest"):
        TokenShards(prepared, length=32)


def test_tokenizer_of_another_run(prepared):
    with pytest.raises(InputError, match=r"made with another tokenizer \(512 tokens there, 260 here\)"):
        TokenShards(prepared, tokenizer=other_tokenizer(), length=32)


def test_other_length(prepared):
    if read_manifest(prepared)["packing"] == "wrapped":
        assert TokenShards(prepared, length=64).length == 64
        with pytest.raises(InputError, match="rows of what length"):
            TokenShards(prepared)
        return
    assert TokenShards(prepared).length == 32
    with pytest.raises(InputError, match="packed into rows of 32 tokens, read as rows of 64") as refused:
        TokenShards(prepared, length=64)
    assert "`max_length: 32`" in refused.value.fix


def test_fewer_tokens_than_a_row(tokenizer, tmp_path):
    with ShardWriter(tmp_path, "train", tokenizer) as writer:
        writer.add([5] * 10, 10)
    write_manifest(tmp_path, tokenizer, [])
    with pytest.raises(InputError, match="1 documents hold 11 tokens, fewer than one row of 32"):
        TokenShards(tmp_path, length=32)


def test_no_directory_and_no_tokens(tmp_path):
    for directory in (tmp_path, tmp_path / "nowhere"):
        assert not is_prepared(directory)
        with pytest.raises(InputError, match="no prepared tokens"):
            TokenShards(directory)
    assert not is_prepared(None)
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"")  # as data sets of the Hub are called
    (tmp_path / "train-00000-of-00001.json").write_bytes(b"{}")
    assert not is_prepared(tmp_path)


def test_schema_of_the_future(prepared):
    path = prepared / "manifest.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(InputError, match="schema 2; this groundup reads 1"):
        TokenShards(prepared, length=32)
