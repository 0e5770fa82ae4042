import numpy as np
import pytest
import torch
from groundup import packing
from groundup.model import build_config, build_model
from groundup.packing import WASTE, Packer, best_fit
from groundup.pretraining import collate
from groundup.shards import ShardWriter, TokenShards, write_manifest

# ---- which pieces share a row


@pytest.mark.parametrize(
    ("lengths", "capacity", "rows"),
    [
        ([], 10, []),
        ([10], 10, [[0]]),
        ([6, 4], 10, [[0, 1]]),
        ([4, 6], 10, [[1, 0]]),  # the longest first
        ([6, 6], 10, [[0], [1]]),
        ([7, 5, 3, 5], 10, [[0, 2], [1, 3]]),
        ([6, 7, 3, 1], 10, [[1, 2], [0, 3]]),  # 3 goes where it leaves least room, not where it fits first
        ([8, 7, 2, 3], 10, [[0, 2], [1, 3]]),
        ([1] * 5, 2, [[0, 1], [2, 3], [4]]),
    ],
)
def test_rows_worked_by_hand(lengths, capacity, rows):
    assert best_fit(lengths, capacity) == rows


def test_best_fit_is_what_a_plain_search_finds():
    lengths = np.random.default_rng(0).integers(1, 65, 500).tolist()
    rooms = []
    for piece in sorted(range(len(lengths)), key=lambda piece: -lengths[piece]):
        fitting = [row for row, room in enumerate(rooms) if room >= lengths[piece]]
        row = min(fitting, key=lambda row: rooms[row], default=len(rooms))
        if row == len(rooms):
            rooms.append(64)
        rooms[row] -= lengths[piece]
    found = best_fit(lengths, 64)
    # Of rows with the same room any may take a piece, so what is compared is how full each row is.
    assert sorted(sum(lengths[i] for i in row) for row in found) == sorted(64 - room for room in rooms)
    assert sorted(piece for row in found for piece in row) == list(range(500))


def pack(documents, length):
    packer = Packer(length)
    rows = [row for document in documents for row in packer.add(document)]
    return packer, rows + list(packer.finish())


def numbered(lengths):
    """Documents in which no token comes twice, so that each shows where it came from."""
    ends = np.cumsum(lengths)
    return [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]


@pytest.mark.parametrize("held", [7, 50, 2**14])
@pytest.mark.parametrize("kind", ["short", "mixed", "long", "over half a row", "one", "a row each"])
def test_every_token_is_in_one_row(kind, held, monkeypatch):
    monkeypatch.setattr(packing, "PIECES", held)
    generator = np.random.default_rng(1)
    lengths = {
        "short": generator.integers(1, 20, 300),
        "mixed": generator.integers(1, 400, 100),
        "long": generator.integers(1000, 2000, 10),
        "over half a row": generator.integers(60, 64, 200),
        "one": [3],
        "a row each": [100] * 9,
    }[kind]
    packer, rows = pack(numbered(lengths), 100)
    pieces = [piece for row in rows for piece in row]
    assert sorted(np.concatenate(pieces)) == list(range(sum(lengths)))
    assert all(np.array_equal(piece, np.arange(piece[0], piece[-1] + 1)) for piece in pieces)  # cut, but never stirred
    assert all(0 < sum(map(len, row)) <= 100 for row in rows)
    assert packer.rows == len(rows) and packer.padding == 100 * len(rows) - sum(lengths)
    assert packer.padding <= WASTE * 100 * len(rows) + 100  # whatever the lengths
    starts = np.cumsum([0, *lengths[:-1]])
    whole = {(piece[0], len(piece)) for piece in pieces}
    assert packer.split == sum((start, length) not in whole for start, length in zip(starts, lengths, strict=True))
    if kind in ("one", "a row each") or (kind == "short" and held > 7):
        assert packer.split == 0


def test_nothing_is_cut_that_fits_with_others():
    """Fewer Truncations (arXiv:2404.10830) is about this: chunking would cut a document at the end of nearly every row."""
    lengths = np.random.default_rng(2).integers(5, 300, 3000)
    packer, rows = pack(numbered(lengths), 512)
    assert packer.split < 10 and packer.padding < 0.02 * 512 * len(rows)
    assert len({sum(map(len, row)) for row in rows[:-1]}) > 1  # not because all had been cut


def test_held_pieces_do_not_keep_their_documents():
    packer = Packer(10)
    list(packer.add(np.arange(1003)))
    (piece, whole), *_ = packer._pieces
    assert piece.base is None and piece.tolist() == [1000, 1001, 1002] and not whole


# ---- what packed documents see: nothing of each other


DOCUMENTS = [9, 21, 5, 14, 30, 2, 7, 17, 33, 1, 12]


@pytest.fixture
def packed(tokenizer, tmp_path):
    generator = np.random.default_rng(3)
    with ShardWriter(tmp_path, "train", tokenizer, "best_fit", 32) as writer:
        for length in DOCUMENTS:
            writer.add(generator.integers(4, 500, length), length)
    write_manifest(tmp_path, tokenizer, [])
    return TokenShards(tmp_path, tokenizer=tokenizer)


def segments(item, pad):
    """The documents of a row and the place where each starts, padding left out."""
    starts = torch.nonzero(item["position_ids"] == 0).flatten().tolist()
    for start, end in zip(starts, [*starts[1:], len(item["input_ids"])], strict=True):
        if item["input_ids"][start] != pad:
            yield start, item["input_ids"][start:end]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_packed_documents_are_as_if_alone(packed, tokenizer, architecture, attention):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = build_model(build_config(architecture, tokenizer, sizes, max_length=32), seed=0)
    model.set_attn_implementation(attention)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # at birth attention is so even that what it sees hardly shows
    model.train()
    items = [packed[row] for row in range(len(packed))]
    assert len(items) >= 4 and max(len(list(segments(item, tokenizer.pad_token_id))) for item in items) >= 2
    batch = collate(items)
    with torch.no_grad():
        output = model(**batch)
        losses, seen = [], 0
        for row, item in enumerate(items):
            for start, document in segments(item, tokenizer.pad_token_id):
                alone = model(input_ids=document[None], use_cache=False).logits[0]
                torch.testing.assert_close(output.logits[row, start : start + len(document)], alone)
                losses.append(torch.nn.functional.cross_entropy(alone[:-1], document[1:], reduction="none"))
                seen += len(document)
        assert seen == sum(DOCUMENTS) + len(DOCUMENTS)
        torch.testing.assert_close(output.loss, torch.cat(losses).mean())
        # and the check can fail: without positions of their own, documents see what stands before them
        mixed = model(**{**batch, "position_ids": None}).logits
    assert (mixed - output.logits).abs().max() > 0.1
