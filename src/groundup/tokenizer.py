"""Rung 0: byte-level BPE, finished at birth. No later rung adds a token, changes the template or sets pad = eos."""

import itertools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from groundup import record
from groundup.chat import CHAT_TEMPLATE, END_OF_TEXT, PAD, ROLES, SPECIAL_TOKENS, TURN_END
from groundup.errors import InputError
from groundup.reading import is_reward_model, reading
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

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


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a directory or on the Hub.

    Raises:
        InputError: there is none, or none of the kind whose threads are fast.
    """
    check_tokenizer_path(path)
    with reading(path, "tokenizer_path", "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path)
    if not tokenizer.is_fast:
        raise InputError(f"`{path}` has no tokenizer.json", "tokenizer_path", "use a tokenizer of the `tokenizers` library")
    return tokenizer


def check_judges(policy: str, tokenizer: PreTrainedTokenizerBase, rewards: Iterable[Any], critic: str | None = None) -> None:
    """Refuse reward models and a critic that would read what they were not made for, and give numbers all the same.

    A reward model is given text, in its own template and spelt by its own tokenizer (`trl.GRPOTrainer`): they may differ from the
    policy's, but not from those that it was trained with. A critic is given the policy's token ids: it must have its vocabulary.

    Args:
        policy: directory or Hub id of the model whose `tokenizer` it is.
        rewards: those that are text are models' directories or Hub ids.

    Raises:
        InputError: names both models.
    """
    for path in [reward for reward in rewards if isinstance(reward, str)]:
        _check_reward_model(path, policy)
    if critic not in (None, policy) and _tokenizer_of(critic).get_vocab() != tokenizer.get_vocab():
        raise InputError(
            f"the critic `{critic}` has another vocabulary than the policy `{policy}`, whose token ids it reads",
            "critic_model_name_or_path" if critic not in rewards else "the critic starts from the first reward model",
            "name a model with the policy's tokenizer as `critic_model_name_or_path`, or write `shared_critic: true`",
        )


def _tokenizer_of(path: str) -> PreTrainedTokenizerBase:
    with reading(path, "rewards", "tokenizer"):
        return AutoTokenizer.from_pretrained(path)


def _check_reward_model(path: str, policy: str) -> None:
    tokenizer, where = _tokenizer_of(path), f"the reward model `{path}`"
    trained, found = (record.read(path) or {}).get("tokenizer_sha256"), record.hash_tokenizer(path)
    if trained and trained != found:
        whose = (
            f"that of the policy `{policy}`"
            if found == record.hash_tokenizer(policy)
            else f"not that of the policy `{policy}` either"
        )
        what = f"the tokenizer or template beside {where} is not the one that it was trained with; it is {whose}"
        raise InputError(what, fix="put back its own tokenizer.json and chat_template.jinja: TRL scores with those that lie there")
    if not tokenizer.chat_template:
        raise InputError(f"{where} has no chat template", fix="add the chat_template.jinja that it was trained with")
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    marks = dict.fromkeys(re.findall(r"<\|[^<|>\s]+\|>", tokenizer.apply_chat_template(chat, tokenize=False)))
    if foreign := [mark for mark in marks if mark not in tokenizer.get_vocab()]:
        what = f"the template of {where} writes {', '.join(foreign)}, which its tokenizer does not know as tokens"
        raise InputError(what, fix=f"add the chat_template.jinja that it was trained with; is this one that of `{policy}`?")
    if not (Path(path) / "adapter_config.json").is_file():
        with reading(path, "rewards"):
            config = AutoConfig.from_pretrained(path)
        if not is_reward_model(config):
            fix = "name a directory that recipes/reward.py has written"
            raise InputError(f"{where} is none: it writes, and its scores would be those of a head drawn at random", "rewards", fix)
        size = config.get_text_config().vocab_size
        needed = max(tokenizer.get_vocab().values()) + 1
        if needed > size:
            fix = f"put back its own tokenizer; is this one that of `{policy}`?"
            raise InputError(f"{where} has {size} tokens and the tokenizer beside it {needed}", fix=fix)


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


def unfit_conversation(tokenizer: PreTrainedTokenizerBase, max_length: int | None, longest: int) -> Callable[[dict], str | None]:
    """Why there is nothing to learn from a row's `messages`, if so: the first reply begins where SFT cuts them off.

    Args:
        max_length: tokens of a conversation; None for any number.
        longest: tokens the model can attend to.
    """
    limit = min(max_length or longest, longest)

    def unfit(row: dict) -> str | None:
        asked = list(itertools.takewhile(lambda turn: turn["role"] != "assistant", row["messages"]))
        length = len(tokenizer.apply_chat_template(asked, add_generation_prompt=True, **QUIET)["input_ids"]) if asked else 0
        return f"no reply within the {limit} tokens of `max_length`" if length >= limit else None

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
