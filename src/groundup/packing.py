"""Documents -> one memory-mapped row of tokens, cut into blocks of equal length (concatenate and chunk)."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from groundup.errors import InputError
from groundup.tokenizer import end_of_text_id
from transformers import PreTrainedTokenizerBase

CHUNK = 2048  # documents encoded at once: enough to keep every core busy, little enough to keep memory flat


class PackedTokens(torch.utils.data.Dataset):
    """Blocks of `length` tokens from a token file; item i is `input_ids` and `labels`, both (length,) int64.

    The documents of one block attend to each other, as in GPT-2 and nanochat; `<|endoftext|>` stands between them.
    """

    def __init__(self, path: str | Path, dtype: str, length: int):
        self.tokens = np.memmap(path, dtype=dtype, mode="r")
        self.length = length

    def __len__(self) -> int:
        return len(self.tokens) // self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        block = self.tokens[index * self.length : (index + 1) * self.length]
        block = torch.from_numpy(block.astype(np.int64))
        return {"input_ids": block, "labels": block.clone()}


def pack(documents: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, path: str | Path) -> tuple[PackedTokens, dict]:
    """Encode `documents["text"]` into `path` once, and return its blocks with the counts.

    A second call with the same documents, tokenizer and length finds the file and reads it. The counts: `documents`, `tokens`,
    `bytes` (UTF-8 of the text), `dropped` (tokens after the last whole block).

    Raises:
        InputError: fewer tokens than one block.
    """
    path = Path(path)
    index = path.with_suffix(".json")
    dtype = "uint16" if len(tokenizer) <= 2**16 else "uint32"
    identity = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    identity.update(f"{documents._fingerprint} {length} {dtype}".encode())
    if index.is_file():
        counts = json.loads(index.read_text())
        if counts["identity"] == identity.hexdigest() and path.is_file():
            return PackedTokens(path, dtype, length), counts
    path.parent.mkdir(parents=True, exist_ok=True)
    separator = end_of_text_id(tokenizer)
    tokens = size = 0
    unfinished = path.with_suffix(".tmp")
    with open(unfinished, "wb") as file:
        for start in range(0, len(documents), CHUNK):
            texts = documents[start : start + CHUNK]["text"]
            for encoding in tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False):
                file.write(np.array([*encoding.ids, separator], dtype=dtype).tobytes())
                tokens += len(encoding.ids) + 1
            size += sum(len(text.encode()) for text in texts)
    if tokens < length:
        unfinished.unlink()
        raise InputError(
            f"{len(documents)} documents hold {tokens} tokens, fewer than one block of `max_length: {length}`",
            fix="give more text, or a smaller `max_length`",
        )
    os.replace(unfinished, path)
    counts = {
        "identity": identity.hexdigest(),
        "documents": len(documents),
        "tokens": tokens,
        "bytes": size,
        "dropped": tokens % length,
    }
    index.write_text(json.dumps(counts))
    return PackedTokens(path, dtype, length), counts
