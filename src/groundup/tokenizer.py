"""Rung 0: byte-level BPE, finished at birth. No later rung adds a token, changes the template or sets pad = eos."""

from collections.abc import Callable, Iterable
from pathlib import Path

from groundup.chat import CHAT_TEMPLATE, END_OF_TEXT, PAD, ROLES, SPECIAL_TOKENS, TURN_END
from groundup.errors import InputError
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SMALLEST = 256 + len(SPECIAL_TOKENS)  # every byte is a token, so no text is unknown

QUIET = {"tokenizer_kwargs": {"verbose": False}}  # no warning of a length that is looked at here

# GPT-2's pattern (Radford et al. 2019), with digits one by one: numbers of any length are then spelt the same way, which is
# what lets a small model carry (Singh & Strouse 2024, arXiv:2402.14903).
SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int = 2048) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on `texts` and install the special tokens and the chat template.

    Args:
        texts: documents; special tokens in them are learned as ordinary text.
        vocab_size: size of the vocabulary, special tokens and the 256 bytes included.
        max_length: `model_max_length` of the tokenizer, in tokens.

    Raises:
        InputError: when `vocab_size` cannot hold the bytes and the special tokens, or the texts are too few to fill it.
    """
    if vocab_size < SMALLEST:
        raise InputError(
            f"`vocab_size: {vocab_size}` cannot hold 256 bytes and {len(SPECIAL_TOKENS)} special tokens",
            fix=f"write {SMALLEST} or more; 1024 suits toyland, 4096 to 32768 real text",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def with_roles() -> Iterable[str]:
        documents = 1
        for text in texts:
            documents += 1
            yield text
        # Each turn of a chat spells its role. Raw text need not hold the words, and five tokens a turn would be a waste.
        yield from (role for role in ROLES for _ in range(documents))

    tokenizer.train_from_iterator(with_roles(), trainer=trainer)
    size = tokenizer.get_vocab_size()
    if size < vocab_size:
        raise InputError(
            f"the texts gave {size} tokens of the {vocab_size} asked for",
            fix=f"give more text, or write `vocab_size: {size}`",
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=PAD,
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in (TURN_END, PAD)],
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
        padding_side="left",  # a batch of prompts is generated from; trainers that want the other side say so themselves
        clean_up_tokenization_spaces=False,
    )


def bytes_per_token(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> tuple[float, int, int]:
    """Compression on `texts`: (bytes per token, bytes, tokens)."""
    size = tokens = 0
    for text in texts:
        size += len(text.encode())
        tokens += len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    return size / max(tokens, 1), size, tokens


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Refuse a tokenizer that later rungs would train wrongly on.

    Raises:
        InputError: pad equals end of turn (the reward model and the loss would not see it), or no chat template.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise InputError(
            f"the padding token is {'missing' if tokenizer.pad_token_id is None else 'the end-of-turn token'}",
            where,
            "use a tokenizer with a padding token of its own, as recipes/tokenizer.py makes",
        )
    if not tokenizer.chat_template:
        raise InputError("the tokenizer has no chat template", where, "add chat_template.jinja, as recipes/tokenizer.py does")


def end_of_text_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token between documents: `<|endoftext|>` where the tokenizer has it, its eos otherwise."""
    token = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    return tokenizer.eos_token_id if token is None or token == tokenizer.unk_token_id else token


def check_tokenizer_path(path: str) -> None:
    """Refuse a local path without a tokenizer; a Hub id passes.

    Raises:
        InputError: names the rung that would make it.
    """
    if Path(path).is_dir() and not (Path(path) / "tokenizer.json").is_file() or not Path(path).exists() and path.count("/") != 1:
        raise InputError(f"no tokenizer in `{path}`", "tokenizer_path", "run recipes/tokenizer.py first, or check the path")


def unfit_prompt(tokenizer: PreTrainedTokenizerBase, room: int, longest: int) -> Callable[[dict], str | None]:
    """Why a row's `prompt` leaves no room for a completion within the model's context, if so.

    Args:
        room: tokens a completion may take.
        longest: tokens the model can attend to.

    Raises:
        InputError: a completion takes all of them.
    """
    if room >= longest:
        raise InputError(f"`max_completion_length: {room}` leaves no prompt room in the model's {longest} tokens", fix="lower it")

    def unfit(row: dict) -> str | None:
        length = len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, **QUIET)["input_ids"])
        return f"prompt over the {longest - room} tokens that `max_completion_length` leaves" if length + room > longest else None

    return unfit


def unfit_pair(
    tokenizer: PreTrainedTokenizerBase, max_length: int | None, longest: int, cut: bool = False
) -> Callable[[dict], str | None]:
    """Why a trainer can learn nothing from a row of `prompt`, `chosen` and `rejected`, or the model cannot attend to it, if so.

    Args:
        max_length: tokens of a conversation; None for any number.
        longest: tokens the model can attend to.
        cut: whether the trainer cuts replies at `max_length` (DPO) or leaves such rows out in silence (reward model).
    """
    limit = min(max_length or longest, longest)
    name = "`max_length`" if limit == max_length else "the model's context"

    def unfit(row: dict) -> str | None:
        sides = [tokenizer.apply_chat_template(row["prompt"] + row[side], **QUIET)["input_ids"] for side in ("chosen", "rejected")]
        if max(map(len, sides)) <= limit:
            return None
        if not cut or limit != max_length:
            return f"over the {limit} tokens of {name}"
        if len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, **QUIET)["input_ids"]) >= limit:
            return f"prompt fills the {limit} tokens of {name}"
        return f"chosen equals rejected in the {limit} tokens of {name}" if sides[0][:limit] == sides[1][:limit] else None

    return unfit
