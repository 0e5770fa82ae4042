"""One suite for every rung, random weights included: the same questions, the same graders, every figure with its interval."""

import importlib
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from groundup import answers, record, rewards, stats
from groundup.chat import TURN_END
from groundup.errors import InputError
from groundup.generation import generate
from groundup.multiple_choice import encode_pairs, grade, score
from groundup.tokenizer import end_of_text_id
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class EvaluationArguments:
    """What is measured; a file that is not named is a metric left out. Rows are JSON lines, of `documents` any files."""

    documents: str | None = field(default=None, metadata={"help": "Held-out text {text}, or a folder of .txt: bits per byte."})
    cloze: str | None = field(default=None, metadata={"help": "{prompt, choices, gold}: the likeliest choice, in plain text."})
    choices: str | None = field(
        default=None,
        metadata={"help": "{query, choices, gold}: the likeliest choice after a blank, in all and by length."},
    )
    questions: str | None = field(
        default=None, metadata={"help": "{prompt, answer}, maybe `alternatives` and `unasked`: asked in chat form."}
    )
    instructions: str | None = field(default=None, metadata={"help": "{prompt, answer}: the reply is the answer, to the letter."})
    preferences: str | None = field(
        default=None, metadata={"help": "Held-out pairs {prompt, chosen, rejected}, for reward models."}
    )
    problems: str | None = field(default=None, metadata={"help": "{question, answer, difficulty}: verifiable problems."})
    harder: str | None = field(default=None, metadata={"help": "The same, harder than any that GRPO trained on."})
    taste: str | None = field(default=None, metadata={"help": "Dotted path of a function reply -> score, for the win rate."})
    reference: str | None = field(default=None, metadata={"help": "Model that the win rate is over."})
    tasks: str | None = field(
        default=None, metadata={"help": "Tasks of lm-evaluation-harness, `arc_easy,mmlu`, or of recipes/tasks."}
    )
    task_data: str | None = field(default=None, metadata={"help": "Folder of the files that tasks of recipes/tasks read."})
    num_fewshot: int | None = field(default=None, metadata={"help": "Examples before a question of a task; else the task's own."})
    apply_chat_template: bool = field(default=False, metadata={"help": "Put the tasks' questions as turns of a conversation."})
    check_overlap: bool = field(
        default=True, metadata={"help": "Look for the evaluated items in what the model was trained on, where that is still there."}
    )
    max_rows: int | None = field(default=None, metadata={"help": "First rows of each file, and of each task, only."})
    k: int = field(default=8, metadata={"help": "Samples a problem for pass@k."})
    pass_at_k_problems: int = field(default=100, metadata={"help": "Problems that are sampled for pass@k."})
    max_new_tokens: int = field(default=64, metadata={"help": "Tokens a reply may take."})
    batch_size: int = field(default=128, metadata={"help": "Rows at a time."})
    seed: int = field(default=0, metadata={"help": "Of sampling."})
    samples: int = field(default=3, metadata={"help": "Replies of each kind that are kept for the report."})


def in_batches(rows: list, size: int) -> Iterable[list]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def pad_rows(rows: list[list[int]], pad: int, left: bool, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token lists -> ids and attention mask, both (rows, longest)."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[i, where], mask[i, where] = torch.tensor(row), 1
    return ids.to(device), mask.to(device)


class Model:
    """A causal model and its tokenizer, asked in batches of similar length."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int):
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        self.end_of_text = end_of_text_id(tokenizer)
        self.start = self.end_of_text if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self.pad = self.end_of_text if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.turn_ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(TURN_END)} - {None, tokenizer.unk_token_id}
        self.longest = context_length(model, tokenizer)
        self.template = "{prompt}\n"  # of a model that knows no turns
        if tokenizer.chat_template:
            turn = [{"role": "user", "content": "{prompt}"}]
            self.template = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def encode_turn(self, prompt: str) -> list[int]:
        """One user turn, and the opening of the reply; a plain line where the tokenizer has no chat template."""
        if not self.tokenizer.chat_template:
            return [self.start, *self.encode(f"{prompt}\n")]
        return self.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)["input_ids"]

    def log_likelihoods(self, pairs: list[tuple[list[int], list[int]]]) -> list[float]:
        """log p(continuation | context) of token lists, in nats. A context is never empty."""
        return [scored.logp for scored in score(self.model, pairs, self.batch_size, self.longest)]

    @torch.inference_mode()
    def replies(self, prompts: list[str], max_new_tokens: int, temperature: float = 0.0, seed: int = 0) -> list[tuple[str, bool]]:
        """(reply, ended its turn by itself) for each question, put as one user turn. Temperature 0 is greedy.

        A question that fills the model's context gets no reply. How else a model would have tokens chosen (`generation_config` of
        some on the Hub penalises repetition) does not count: all are asked in the same way.
        """
        torch.manual_seed(seed)
        settings = self.model.generation_config
        own = settings.eos_token_id  # some models of the Hub have several ends
        turn_ends = self.turn_ends | (set(own if isinstance(own, list) else [] if own is None else [own]) - {self.end_of_text})
        stops = sorted({self.end_of_text, *turn_ends})
        encoded = [self.encode_turn(prompt) for prompt in prompts]
        rooms = [min(max_new_tokens, self.longest - len(ids)) for ids in encoded]
        order = sorted((i for i, room in enumerate(rooms) if room > 0), key=lambda i: len(encoded[i]))
        alike = itertools.groupby(order, key=rooms.__getitem__)  # no reply is cut off for want of room beside a neighbour
        results: list[tuple[str, bool]] = [("", False)] * len(prompts)
        how: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
        if temperature:
            how |= {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0, "typical_p": 1.0}
            how |= {} if settings.min_p is None else {"min_p": 0.0}
        for batch in itertools.chain.from_iterable(in_batches(list(rows), self.batch_size) for _, rows in alike):
            ids, mask = pad_rows([encoded[i] for i in batch], self.pad, left=True, device=self.model.device)
            config = GenerationConfig(
                max_new_tokens=rooms[batch[0]],
                eos_token_id=stops,
                pad_token_id=self.pad,
                **how,
            )
            produced = generate(self.model, ids, mask, config)[:, ids.size(1) :].tolist()
            for i, tokens in zip(batch, produced, strict=True):
                length = next((n for n, token in enumerate(tokens) if token in stops), len(tokens))
                ended = length < len(tokens) and tokens[length] in turn_ends
                text = self.tokenizer.decode(tokens[:length])  # special tokens too, and blanks if that is all: soup is to be seen
                results[i] = (text.strip() or text.replace("\n", "⏎"), ended)
        return results


def context_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokens that a model takes: by its configuration, else by its tokenizer, else 2048."""
    config = getattr(model.config, "text_config", None) or model.config
    length = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    return int(length) if length < 1e9 else 2048


# Each metric: rows in, one value an item out. `figure` makes value and interval of them.


def items_of(values: list[float], of: list, clusters: list[int] | None = None, weights: list[int] | None = None) -> dict:
    """What each item gave, as it is kept beside a figure: two models asked the same, `of`, can be compared item by item."""
    short = [int(value) if float(value).is_integer() else float(value) for value in values]
    extra = {"clusters": clusters, "weights": weights}
    return {"items_sha256": record.hash_items(of), "values": short, **{key: each for key, each in extra.items() if each}}


def figure(values: list[float], of: list, clusters: list[int] | None = None, weights: list[int] | None = None) -> dict:
    """`stats.estimate` of the values, and as `items` the values themselves."""
    return {**stats.estimate(values, clusters, weights), "items": items_of(values, of, clusters, weights)}


def bits_per_byte(model: Model, rows: list[dict]) -> dict[str, dict]:
    """Bits per byte and per token of whole documents, cut where the model's context ends; before each piece stands what begins a
    text for the model. Intervals: bootstrap over documents.
    """
    rows = [row for row in rows if row["text"]]  # or a resample of the bootstrap may have no byte at all
    if not rows:
        raise InputError("no document has any text", "documents")
    pairs, sizes, tokens = [], [], []
    for row in rows:
        ids = model.encode(row["text"])
        pieces = list(in_batches(ids, model.longest - 1))
        pairs += [([model.start], piece) for piece in pieces]
        sizes.append((len(row["text"].encode()), len(pieces)))
        tokens.append(len(ids))
    each = iter(model.log_likelihoods(pairs))
    bits = [-sum(next(each) for _ in range(pieces)) / math.log(2) for _, pieces in sizes]
    weights = {"bits_per_byte": [size for size, _ in sizes], "bits_per_token": tokens}
    return {name: figure(bits, rows, weights=units) for name, units in weights.items()}


def cloze(model: Model, rows: list[dict]) -> list[float]:
    """1 where the right choice is the likeliest continuation of the prompt, by total log-likelihood."""
    pairs = [([model.start, *model.encode(row["prompt"])], model.encode(choice)) for row in rows for choice in row["choices"]]
    return [graded["acc"] for graded in grade_rows(model.log_likelihoods(pairs), rows)]


def multiple_choice(model: Model, rows: list[dict]) -> list[dict[str, float]]:
    """What `grade` says of each question {query, choices, gold}: its choices come after a blank."""
    texts = [(row["query"], f" {choice}") for row in rows for choice in row["choices"]]
    return grade_rows(model.log_likelihoods(encode_pairs(model.tokenizer, texts, model.start)), rows)


def grade_rows(logps: list[float], rows: list[dict]) -> list[dict[str, float]]:
    """`logps` of the choices of all rows, one after another."""
    each = iter(logps)
    return [grade([next(each) for _ in row["choices"]], row["choices"], row["gold"]) for row in rows]


def knows(reply: str, ended: bool, row: dict) -> float:
    """1 where a reply ends its turn and states the answer and none of the alternatives."""
    return float(ended and answers.states(reply, row["answer"], row.get("alternatives", [])))


def pair_accuracy(model, tokenizer: PreTrainedTokenizerBase, rows: list[dict], batch_size: int) -> list[float]:
    """1 where the reward model scores the preferred reply higher, a tie counting half."""
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}])[
            "input_ids"
        ]
        for row in rows
        for side in ("chosen", "rejected")
    ]
    scores: list[float] = []
    with torch.inference_mode():
        for batch in in_batches(texts, batch_size):
            ids, mask = pad_rows(batch, tokenizer.pad_token_id, left=False, device=model.device)
            scores += model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
    return [wins(chosen, rejected) for chosen, rejected in zip(scores[::2], scores[1::2], strict=True)]


def wins(first: float, second: float) -> float:
    return 1.0 if first > second else 0.5 if first == second else 0.0


def load_function(path: str) -> Callable[[str], float]:
    """A function by dotted path.

    Raises:
        InputError: no such module or function.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"`{path}` cannot be imported: {error}", "taste", "write package.module.function") from None


def kl_of_replies(model: Model, reference: Model, prompts: list[str], replies: list[tuple[str, bool]]) -> list[float]:
    """log p(reply) under the model that drew it less that under the reference, in nats, one a reply: their mean estimates the KL.

    Replies are encoded again from their text, the end of the turn, where there was one, with them.
    """
    end = model.tokenizer.eos_token_id
    pairs = [
        (model.encode_turn(prompt), [*model.encode(reply), *[end] * ended])
        for prompt, (reply, ended) in zip(prompts, replies, strict=True)
    ]
    mine, theirs = (one.log_likelihoods(pairs) for one in (model, reference))
    return [a - b for a, b in zip(mine, theirs, strict=True)]


def by_difficulty(rows: list[dict], values: list[float]) -> dict[str, dict]:
    levels = sorted({row["difficulty"] for row in rows if row.get("difficulty") is not None}, key=str)
    return {
        str(level): stats.estimate([v for v, row in zip(values, rows, strict=True) if row.get("difficulty") == level])
        for level in levels
    }


def evaluate_causal(
    model: Model,
    rows: dict[str, list[dict]],
    args: EvaluationArguments,
    reference_replies: list | None,
    reference: Model | None = None,
) -> dict:
    """All metrics of a language model.

    Args:
        rows: by the names of `EvaluationArguments`.
        reference_replies: what the reference model said to `rows["questions"]`, for the win rate.
        reference: that model, for the KL from it; None where it is the same, or speaks in other tokens.

    Returns:
        `metrics`, `by_difficulty`, `samples` as they stand in eval.json; each figure with its `items`.
    """
    metrics: dict[str, Any] = {}
    samples: list[dict] = []
    ended_all: list[tuple[float, dict]] = []

    graded: dict[str, tuple[list[dict], list[float]]] = {"problems": ([], []), "problems_pass_at_k": ([], [])}

    def keep(kind: str, of: list[dict], replies: list[tuple[str, bool]], key: str) -> None:
        # The same rows at every rung: first ones of a fixed file.
        shown = list(zip(of, replies, strict=True))[: args.samples]
        samples.extend({"kind": kind, "prompt": row[key], "reply": reply} for row, (reply, _) in shown)
        if kind != "harder problem":  # `stops` stays comparable with results from before there were any
            ended_all.extend((float(ended), row) for row, (_, ended) in zip(of, replies, strict=True))

    def grade(name: str, problems: list[dict], solved: list[float]) -> None:
        """For the tables by difficulty, which span the files of problems."""
        graded[name][0].extend(problems)
        graded[name][1].extend(solved)

    if "documents" in rows:
        metrics.update(bits_per_byte(model, rows["documents"]))
    if "cloze" in rows:
        metrics["cloze"] = figure(cloze(model, rows["cloze"]), rows["cloze"])
    if "choices" in rows:
        marks = multiple_choice(model, rows["choices"])
        for name, kind in (("choices", "acc"), ("choices_norm", "acc_norm")):
            metrics[name] = figure([mark[kind] for mark in marks], rows["choices"])
    if "questions" in rows:
        questions = rows["questions"]
        replies = model.replies([row["prompt"] for row in questions], args.max_new_tokens)
        known = [knows(reply, ended, row) for (reply, ended), row in zip(replies, questions, strict=True)]
        metrics["asked"] = figure(known, questions)
        unasked = [(value, row) for value, row in zip(known, questions, strict=True) if row.get("unasked")]
        if unasked:
            metrics["unasked"] = figure(*map(list, zip(*unasked, strict=True)))
        keep("question", questions, replies, "prompt")
    if "instructions" in rows:
        replies = model.replies([row["prompt"] for row in rows["instructions"]], args.max_new_tokens)
        obeyed = [float(e and text == row["answer"]) for (text, e), row in zip(replies, rows["instructions"], strict=True)]
        metrics["follows"] = figure(obeyed, rows["instructions"])
        keep("instruction", rows["instructions"], replies, "prompt")
    for name, metric, kind in (("problems", "problems", "problem"), ("harder", "problems_harder", "harder problem")):
        if name not in rows:
            continue
        problems = rows[name]
        replies = model.replies([row["question"] for row in problems], args.max_new_tokens)
        solved = rewards.correct_answer([reply for reply, _ in replies], [row["answer"] for row in problems])
        metrics[metric] = figure(solved, problems)
        grade("problems", problems, solved)
        keep(kind, problems, replies, "question")
        some = problems[: args.pass_at_k_problems]
        drawn = model.replies(
            [row["question"] for row in some for _ in range(args.k)], args.max_new_tokens, temperature=1.0, seed=args.seed
        )
        right = rewards.correct_answer([reply for reply, _ in drawn], [row["answer"] for row in some for _ in range(args.k)])
        groups = list(in_batches(right, args.k))
        asked = [args.k, *some]
        metrics[f"{metric}_pass_at_k"] = figure([stats.pass_at_k(args.k, int(sum(g)), args.k) for g in groups], asked)
        metrics[f"{metric}_sampled"] = figure(right, asked, clusters=[i for i in range(len(some)) for _ in range(args.k)])
        grade("problems_pass_at_k", some, [float(any(g)) for g in groups])
    if ended_all:
        metrics["stops"] = figure(*map(list, zip(*ended_all, strict=True)))
    if args.taste and reference_replies is not None:
        taste, said = load_function(args.taste), sampled_replies(model, rows["questions"], args, seed=args.seed + 1)
        scores = [[taste(reply) if ended else -math.inf for reply, ended in side] for side in (said, reference_replies)]
        metrics["true_win_rate"] = figure([wins(a, b) for a, b in zip(*scores, strict=True)], rows["questions"])
        if reference is not None:
            kl = kl_of_replies(model, reference, [row["prompt"] for row in rows["questions"]], said)
            metrics["kl_from_reference"] = figure(kl, rows["questions"])
    for name, found in metrics.items():
        found.update(how(name, model.template, args.seed))
    difficulty = {name: by_difficulty(*rows_and_values) for name, rows_and_values in graded.items() if rows_and_values[0]}
    return {"metrics": metrics, "by_difficulty": difficulty, "samples": samples}


MEASURED = {  # how a metric begins -> its file, the prompt, how it is decoded
    "bits_": ("documents", "{text}", "log-likelihood"),
    "cloze": ("cloze", "{prompt}{choice}", "log-likelihood"),
    "choices": ("choices", "{query} {choice}", "log-likelihood"),
    "asked": ("questions", "turn", "greedy"),
    "unasked": ("questions", "turn", "greedy"),
    "follows": ("instructions", "turn", "greedy"),
    "stops": ("questions", "turn", "greedy"),
    "true_win_rate": ("questions", "turn", "sampled at temperature 1"),
    "kl_from_reference": ("questions", "turn", "sampled at temperature 1"),
    "problems_harder_": ("harder", "turn", "sampled at temperature 1"),
    "problems_harder": ("harder", "turn", "greedy"),
    "problems_": ("problems", "turn", "sampled at temperature 1"),
    "problems": ("problems", "turn", "greedy"),
    "pair_accuracy": ("preferences", "turn", "score"),
}


def how(metric: str, template: str, seed: int) -> dict[str, Any]:
    """What else is to be known of a figure: its `file` by the name of the argument, `prompt`, `decoding` and `seed`."""
    file, prompt, decoding = next(entry for start, entry in MEASURED.items() if metric.startswith(start))
    return {"file": file, "prompt": template if prompt == "turn" else prompt, "decoding": decoding, "seed": seed}


def sampled_replies(model: Model, questions: list[dict], args: EvaluationArguments, seed: int) -> list[tuple[str, bool]]:
    """One reply a question at temperature 1: what the policy says, not only what it would say first."""
    return model.replies([row["prompt"] for row in questions], args.max_new_tokens, temperature=1.0, seed=seed)
