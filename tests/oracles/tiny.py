"""What the oracle and the test of it share: eight prompts with what is said to them, and models of a few hundred weights."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast, Qwen3Config

PAD, EOS, VOCABULARY, LENGTH = 0, 1, 12, 5
ROWS = [  # prompt, completion as it is when every one has LENGTH tokens, its score
    ("c d e", [5, 6, 7, 8, EOS], 1.0),
    ("d e f", [6, 2, 3, 9, EOS], -0.5),
    ("j", [4, 4, 10, 2, 3], 0.25),  # says on and on: no end of turn
    ("f g", [7, 3, 11, 5, EOS], 2.0),
    ("h c i", [9, 10, 2, 6, EOS], -1.5),
    ("k l c", [3, 5, 7, 9, EOS], 0.0),
    ("l d", [2, 8, 8, 4, EOS], 0.75),
    ("g g h", [11, 2, 5, 3, EOS], -0.25),
]
KEPT = [5, 2, 5, 3, 1, 4, 5, 2]  # tokens of each when lengths differ, the end of turn, if there is one, the last of them
LR = 0.5  # of plain gradient descent, between the first pass over the rollout and the second


def rows(ragged: bool) -> list[dict]:
    said = []
    for (prompt, completion, score), kept in zip(ROWS, KEPT, strict=True):
        if ragged and completion[-1] == EOS:
            completion = [*completion[: kept - 1], EOS]
        said.append({"prompt": prompt, "completion": completion, "score": score})
    return said


def tokenizer() -> PreTrainedTokenizerFast:
    """Token n is the n-th letter; the first is padding, the second the end of a turn."""
    words = Tokenizer(models.WordLevel({letter: n for n, letter in enumerate("abcdefghijkl")}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="a", eos_token="b", padding_side="left")


def model(kind: str, seed: int):
    """`kind` is `lm` or `value`; weights large enough to differ from uniform."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=4,
        max_position_embeddings=32,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
        num_labels=1,
    )
    auto = AutoModelForCausalLM if kind == "lm" else AutoModelForSequenceClassification
    made = auto.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return made
