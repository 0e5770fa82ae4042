import json
import os

import numpy as np
import pytest
import torch
from datasets import Dataset
from groundup import packing
from groundup.errors import InputError
from groundup.packing import PackedTokens, pack
from groundup.tokenizer import end_of_text_id


def documents(*texts):
    return Dataset.from_dict({"text": list(texts)})


@pytest.fixture
def stories(world):
    with open(world / "documents.jsonl", encoding="utf-8") as file:
        return documents(*(json.loads(line)["text"] for line in file))


def test_every_token_is_in_a_block_and_in_its_place(stories, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "CHUNK", 7)  # several, the last of them short
    blocks, counts = pack(stories, tokenizer, 64, tmp_path / "a" / "tokens.bin")
    expected = []
    for text in stories["text"]:
        expected += [*tokenizer(text, add_special_tokens=False)["input_ids"], end_of_text_id(tokenizer)]
    assert len(blocks) == len(expected) // 64 > 100
    for index in range(len(blocks)):
        item = blocks[index]
        assert item["input_ids"].tolist() == item["labels"].tolist() == expected[index * 64 : (index + 1) * 64]
        assert item["input_ids"].dtype == torch.int64
    assert counts["tokens"] == len(expected) and counts["dropped"] == len(expected) % 64 > 0
    assert counts["documents"] == 400 and counts["bytes"] == sum(len(text.encode()) for text in stories["text"])


def test_a_changed_label_leaves_the_tokens_alone(stories, tokenizer, tmp_path):
    blocks, _ = pack(stories, tokenizer, 64, tmp_path / "tokens.bin")
    item = blocks[0]
    before = item["input_ids"].clone()
    item["labels"][:] = -100
    assert torch.equal(item["input_ids"], before) and torch.equal(blocks[0]["input_ids"], before)


def test_special_tokens_written_in_a_text_end_no_document(tokenizer, tmp_path):
    """A document that holds the text `<|endoftext|>` is one of the things that data from the web does."""
    _, counts = pack(documents("a <|endoftext|> b"), tokenizer, 2, tmp_path / "tokens.bin")
    tokens = np.fromfile(tmp_path / "tokens.bin", dtype="uint16")
    assert counts["tokens"] == len(tokens) and tokens[-1] == end_of_text_id(tokenizer)


def test_second_call_reads_the_file(stories, tokenizer, tmp_path, monkeypatch):
    path = tmp_path / "tokens.bin"
    first, counts = pack(stories, tokenizer, 64, path)
    written = os.stat(path).st_mtime_ns
    monkeypatch.setattr(packing, "end_of_text_id", lambda tokenizer: pytest.fail("encoded again"))
    second, again = pack(stories, tokenizer, 64, path)
    assert again == counts and os.stat(path).st_mtime_ns == written
    assert torch.equal(first[3]["input_ids"], second[3]["input_ids"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tokens.bin", "tokens.json"]


@pytest.mark.parametrize("what", ["documents", "tokenizer", "length", "file"])
def test_something_else_is_encoded_anew(stories, tokenizer, tiny_base, tmp_path, what):
    path = tmp_path / "tokens.bin"
    _, counts = pack(stories, tokenizer, 64, path)
    length = 64
    if what == "documents":
        stories = documents(*stories["text"][:-1], "another")
    elif what == "tokenizer":
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tiny_base)
        tokenizer.add_tokens(["Dorn"])
    elif what == "length":
        length = 32
    else:
        path.unlink()
    blocks, again = pack(stories, tokenizer, length, path)
    assert (again["identity"] == counts["identity"]) == (what == "file")
    assert len(blocks) == again["tokens"] // length and blocks[0]["input_ids"].shape == (length,)


def test_interrupted_call_leaves_nothing_that_looks_whole(stories, tokenizer, tmp_path, monkeypatch):
    path = tmp_path / "tokens.bin"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pack(stories, tokenizer, 64, path)
    assert not path.exists()
    blocks, counts = pack(stories, tokenizer, 64, path)
    assert len(blocks) == counts["tokens"] // 64


@pytest.mark.parametrize(("size", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_numbers_are_as_wide_as_the_vocabulary_needs(size, dtype, tmp_path):
    class Backend:
        def to_str(self):
            return str(size)

        def encode_batch_fast(self, texts, add_special_tokens):
            return [type("Encoding", (), {"ids": [size - 1, 0]}) for _ in texts]

    class Tokenizer:
        backend_tokenizer, unk_token_id = Backend(), None

        def __len__(self):
            return size

        def convert_tokens_to_ids(self, token):
            return 1

    blocks, _ = pack(documents("x", "y"), Tokenizer(), 3, tmp_path / "tokens.bin")
    assert [block["input_ids"].tolist() for block in (blocks[0], blocks[1])] == [[size - 1, 0, 1]] * 2
    assert blocks.tokens.dtype == dtype


def test_blocks_of_a_file(tmp_path):
    np.arange(10, dtype="uint16").tofile(tmp_path / "tokens.bin")
    blocks = PackedTokens(tmp_path / "tokens.bin", "uint16", 4)
    assert [block.tolist() for block in (blocks[0]["input_ids"], blocks[1]["labels"])] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(blocks) == 2


def test_text_that_fills_no_block(tokenizer, tmp_path):
    with pytest.raises(InputError, match="1 documents hold .* fewer than one block of `max_length: 64`"):
        pack(documents("Ada"), tokenizer, 64, tmp_path / "tokens.bin")
    assert list(tmp_path.iterdir()) == []
