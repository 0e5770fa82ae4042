"""How likely a model finds each continuation of a context, and what is made of it: one way for every measure and the harness.

Which tokens are scored and who is right follow lm-evaluation-harness 0.4.13 (`TemplateLM.loglikelihood` and `_encode_pair`,
`HFLM._loglikelihood_tokens`, `ConfigurableTask.process_results`). The arithmetic is our own. A question is one row: its context,
read once, and behind it all choices, each of which sees the context and itself only and is at the place where the context ends.
Questions of like length go together, and logits are made for the tokens that are scored and for no others.
"""

import contextlib
from collections.abc import Iterator
from inspect import signature
from typing import NamedTuple

import torch
from groundup.errors import InputError
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

Pair = tuple[list[int], list[int]]  # the tokens of a context, which has some, and of its continuation
MOST = 1 << 27  # logits, or entries of a mask, at a time: half a gigabyte in float32
PADDED = 1.1  # times the shortest question of a batch, and some tokens, that its longest may take
CACHED = 1536  # tokens at a time on a CPU, with 4,000 logits for each: what a layer makes of more leaves its caches


class Scored(NamedTuple):
    """log p(continuation | context) in nats, and whether each of its tokens is the likeliest."""

    logp: float
    greedy: bool


class Question(NamedTuple):
    """`choices`: continuations but for their last token, each with the numbers of the pairs that it answers."""

    context: tuple[int, ...]
    choices: dict[tuple[int, ...], list[int]]

    @property
    def size(self) -> int:
        return len(self.context) + sum(map(len, self.choices))


def encode_pairs(tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]], start: int) -> list[Pair]:
    """Tokens of contexts and continuations, of which neither need be cut where the other ends.

    Blanks at the end of a context belong to its continuation. Both are encoded as one text, with the special tokens that the
    tokenizer adds unless the text has them, and what follows as many tokens as the context alone has is the continuation's.

    Args:
        start: the token that stands for an empty context.

    Raises:
        InputError: a continuation has no token of its own.
    """
    contexts = [context.rstrip() for context, _ in pairs]
    wholes = ["".join(pair) for pair in pairs]
    special = tokenizer.decode(start)

    def adds(text: str) -> bool:
        return not text.startswith(special)

    tokens: dict[tuple[str, bool], list[int]] = {}
    each = [
        (text, bool(context) and adds(text)) for context, whole in zip(contexts, wholes, strict=True) for text in (context, whole)
    ]
    for add in (True, False):
        if texts := list(dict.fromkeys(text for text, its in each if its == add)):
            found = tokenizer(texts, add_special_tokens=add, verbose=False)["input_ids"]
            tokens.update(zip(((text, add) for text in texts), found, strict=True))
    encoded = []
    for (_, continuation), context, whole in zip(pairs, contexts, wholes, strict=True):
        if context:
            begin = tokens[context, adds(context)]
            rest = tokens[whole, adds(whole)][len(begin) :]
        else:
            begin, rest = [start], tokens[whole, False]
            rest = rest[1:] if rest[:1] == begin else rest
        if not rest:
            raise InputError(f"`{continuation}` has no token of its own after `{context[-40:]}`", fix="leave the choice out")
        encoded.append((begin, rest))
    return encoded


def longest_shared(model: torch.nn.Module) -> int:
    """Up to how many tokens the choices of a question may be one row, 0 if not at all.

    They may where every layer is attention that takes a mask of our own; within its window, if it slides. Other models (states in
    place of keys and values, distances that come of the mask) are found out by trying.
    """
    if not isinstance(model, PreTrainedModel) or "position_ids" not in signature(model.forward).parameters:
        return 0
    layers = DynamicCache(config=model.config).layers
    windows = [layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    if not plain or model.config._attn_implementation not in ("sdpa", "eager"):
        return 0
    pairs = [([7, 3, 5, 2, 6], choice) for choice in ([4, 1, 8], [2], [9, 9, 1, 4])]
    alone, together = [_score(model, pairs, 1, 32, shared) for shared in (0, 32)]
    near = 1e-4 if model.dtype in (torch.float32, torch.float64) else 0.02
    agree = all(abs(a.logp - b.logp) <= near * abs(a.logp) for a, b in zip(alone, together, strict=True))
    return min([1 << 30, *windows]) if agree else 0


@torch.inference_mode()
def score(model: torch.nn.Module, pairs: list[Pair], batch_size: int, longest: int) -> list[Scored]:
    """The likelihood of each continuation, in the order asked; that of none at all is 1.

    Args:
        batch_size: questions at a time, at most.
        longest: the tokens that a model takes; of what is longer the beginning is left out.

    Raises:
        InputError: a continuation alone is longer.
    """
    return _score(model, pairs, batch_size, longest, min(longest, longest_shared(model)))


def _score(model: torch.nn.Module, pairs: list[Pair], batch_size: int, longest: int, shared: int) -> list[Scored]:
    found: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
    for i, (context, continuation) in enumerate(pairs):
        if not continuation:
            continue
        if len(continuation) > longest:
            fix = "leave the row out, or measure a model that takes more"
            raise InputError(f"a continuation of {len(continuation)} tokens for a model that takes {longest}", fix=fix)
        row = tuple([*context, *continuation][-longest - 1 :])
        found.setdefault(row[: -len(continuation)], {}).setdefault(row[-len(continuation) : -1], []).append(i)
    questions = [Question(*one) for one in found.items()]
    questions = [
        part
        for question in questions
        for part in (
            [question] if question.size <= shared else [Question(question.context, {c: i}) for c, i in question.choices.items()]
        )
    ]
    results = [Scored(0.0, True)] * len(pairs)
    for batch in _batches(sorted(questions, key=lambda question: question.size), batch_size, model):
        for i, scored in _score_batch(model, batch, pairs):
            results[i] = scored
    return results


def _batches(questions: list[Question], size: int, model: torch.nn.Module) -> Iterator[list[Question]]:
    vocabulary, batch, read = model.get_input_embeddings().num_embeddings, [], 0
    tokens, logits = (CACHED, 4000 * CACHED) if model.device.type == "cpu" else (MOST, MOST)
    for question in questions:
        more = sum((len(choice) + 1) * len(answers) for choice, answers in question.choices.items())
        rows = len(batch) + 1
        full = (read + more) * vocabulary > logits or rows * question.size > tokens or rows * question.size**2 > MOST
        if batch and (full or len(batch) == size or question.size > PADDED * (batch[0].size + 8)):
            yield batch
            batch, read = [], 0
        batch.append(question)
        read += more
    if batch:
        yield batch


def _score_batch(model: torch.nn.Module, batch: list[Question], pairs: list[Pair]) -> list[tuple[int, Scored]]:
    width = batch[-1].size
    ids, positions, branches = ([[fill] * width for _ in batch] for fill in (0, 0, -1))
    places: dict[tuple[int, int], int] = {}  # row and column of what is read, in order
    numbers, reads, targets, sizes = [], [], [], []
    for row, (context, choices) in enumerate(batch):
        end = len(context)
        ids[row][:end], positions[row][:end], branches[row][:end] = context, range(end), [0] * end
        for number, (choice, answers) in enumerate(choices.items(), 1):
            where, end = slice(end, end + len(choice)), end + len(choice)
            begin = len(context)
            ids[row][where], positions[row][where] = choice, range(begin, begin + len(choice))
            branches[row][where] = [number] * len(choice)
            columns = [begin - 1, *range(where.start, where.stop)]
            for i in answers:
                numbers.append(i)
                sizes.append(len(columns))
                targets += pairs[i][1]
                reads += [places.setdefault((row, column), len(places)) for column in columns]
    tensor = lambda values: torch.tensor(values, device=model.device)  # noqa: E731
    known: dict[str, torch.Tensor] = {}
    if any(len(question.choices) > 1 for question in batch):
        branch, order = tensor(branches), torch.arange(width, device=model.device)
        sees = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])  # (rows, who looks, what is seen)
        sees &= order[None, None, :] <= order[None, :, None]
        mask = torch.zeros(sees.shape, dtype=model.dtype, device=model.device)
        known = {
            "attention_mask": mask.masked_fill_(~sees, torch.finfo(model.dtype).min)[:, None],
            "position_ids": tensor(positions),
        }  # without them, zeros on the right need no mask: nothing that is read sees them
    with _read_only(model, tensor(list(places)).T):
        logits = model(input_ids=tensor(ids), use_cache=False, **known).logits[0]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # (places, vocabulary)
    read, target = tensor(reads), tensor(targets)
    likeliest = logits[read, target] == logits.amax(-1)[read]
    likeliest[likeliest.clone()] &= logits[read[likeliest]].argmax(-1) == target[likeliest]  # of equals the first, as argmax has it
    logps, greedy = (found.cpu().split(sizes) for found in (logits.log_softmax(-1)[read, target], likeliest))
    return [(i, Scored(sum(p.tolist()), bool(g.all()))) for i, p, g in zip(numbers, logps, greedy, strict=True)]


@contextlib.contextmanager
def _read_only(model: torch.nn.Module, places: torch.Tensor) -> Iterator[None]:
    """In here, the model's head makes logits of these rows and columns only, as (1, places, vocabulary)."""
    rows, columns = places
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, hidden: (hidden[0][rows, columns][None],))
    try:
        yield
    finally:
        hook.remove()


def grade(logps: list[float], choices: list[str], gold: int) -> dict[str, float]:
    """1 where the gold choice is the likeliest: in all (`acc`), by character (`acc_norm`), by byte of UTF-8 (`acc_bytes`).

    Of equals the first is chosen. The delimiter before a choice counts for its likelihood and not for its length.
    """
    sizes = {"acc": [1] * len(choices), "acc_norm": [len(choice) for choice in choices]}
    sizes["acc_bytes"] = [len(choice.encode()) for choice in choices]
    best = {
        name: max(range(len(choices)), key=[p / max(size, 1) for p, size in zip(logps, by, strict=True)].__getitem__)
        for name, by in sizes.items()
    }
    return {name: float(choice == gold) for name, choice in best.items()}
