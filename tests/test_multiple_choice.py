"""Likelihoods of choices: as lm-evaluation-harness has them where it is installed, and as the plain sum over the whole row."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from groundup import multiple_choice, stats
from groundup.errors import InputError
from groundup.multiple_choice import encode_pairs, grade, longest_shared, score
from transformers import AutoConfig, AutoModelForCausalLM

DATA = Path(__file__).parents[1] / ".." / "shared" / "data"
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64, "max_position_embeddings": 64}
TINY = {  # one of each kind of memory, and of each way to know a token's place
    "qwen3": {"intermediate_size": 64, "head_dim": 16, "num_key_value_heads": 2},
    "llama": {"intermediate_size": 64},
    "gpt2": {},
    "mistral": {"intermediate_size": 64, "sliding_window": 12, "num_key_value_heads": 2},
    "gemma2": {"intermediate_size": 64, "sliding_window": 12, "num_key_value_heads": 2, "head_dim": 16},
    "bloom": {},
    "mamba": {"state_size": 4},
}


def build(kind, **settings):
    torch.manual_seed(0)
    sizes = {
        key: value
        for key, value in SMALL.items()
        if kind != "mamba" or key not in ("num_attention_heads", "max_position_embeddings")
    }
    config = AutoConfig.for_model(kind, **{**sizes, **TINY[kind], **settings})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()


def by_hand(model, pairs, longest=64):
    found = []
    for context, continuation in pairs:
        row = torch.tensor([[*context, *continuation][-longest - 1 :]])
        with torch.no_grad():
            logps = model(row[:, :-1], use_cache=False).logits.log_softmax(-1)[0]
        found.append(logps[-len(continuation) :].gather(1, torch.tensor(continuation)[:, None]).sum().item())
    return found


def some_pairs():
    """Questions of several lengths: choices of one token and of many, one twice, one that begins another, one alone."""
    generator = torch.Generator().manual_seed(1)

    def tokens(n):
        return torch.randint(0, 64, (n,), generator=generator).tolist()

    pairs = []
    for length in (1, 3, 9, 10, 30):
        context, choice = tokens(length), tokens(5)
        pairs += [(context, one) for one in (choice, tokens(1), choice[:3], choice, tokens(9), tokens(1))]
    return [*pairs, (tokens(4), tokens(6)), (tokens(70), tokens(4)), (tokens(60), tokens(12))]


@pytest.mark.parametrize("kind", TINY)
def test_likelihoods_are_those_of_whole_rows(kind):
    """In a model whose choices can share a row and in one whose cannot; of what is longer than the context the end is read."""
    model, pairs = build(kind), some_pairs()
    for batch_size in (1, 4, 100):
        found = score(model, pairs, batch_size, longest=64)
        assert [scored.logp for scored in found] == pytest.approx(by_hand(model, pairs), rel=1e-6)  # mamba ends in float32


def test_choices_share_a_row_where_the_model_lets_them():
    shared = {kind: longest_shared(build(kind)) for kind in TINY}
    assert shared["qwen3"] == shared["llama"] == shared["gpt2"] > 1e6
    assert shared["mistral"] == shared["gemma2"] == 12  # within the window all layers see alike
    assert shared["bloom"] == shared["mamba"] == 0


def test_eager_attention_agrees():
    model = build("qwen3", attn_implementation="eager")
    assert model.config._attn_implementation == "eager" and longest_shared(model)
    found = score(model, some_pairs(), 8, longest=64)
    assert [scored.logp for scored in found] == pytest.approx(by_hand(model, some_pairs()), rel=1e-6)  # its softmax is in float32


def test_a_model_that_minds_the_mask_is_found_out(monkeypatch):
    """One that takes our mask and places and makes nothing of them: its choices are rows of their own."""
    model = build("qwen3")
    heedless = model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda **known: heedless(**known | {"attention_mask": None, "position_ids": None}))
    assert longest_shared(model) == 0
    found = score(model, some_pairs(), 8, longest=64)
    assert [scored.logp for scored in found] == pytest.approx(by_hand(model, some_pairs()), abs=1e-9)


def test_a_context_is_read_once_and_logits_are_made_where_they_are_read():
    model, seen = build("qwen3"), []
    model.model.register_forward_hook(lambda _, __, out: seen.append(out.last_hidden_state.shape[:2]))
    model.lm_head.register_forward_hook(lambda _, __, out: seen.append(out.shape[:2]))
    context = list(range(20))
    longest_shared, multiple_choice.longest_shared = multiple_choice.longest_shared, lambda _: 1000
    try:
        score(model, [(context, choice) for choice in ([1, 2, 3], [4], [5], [6, 7])], 8, longest=64)
    finally:
        multiple_choice.longest_shared = longest_shared
    assert seen == [(1, 20 + 2 + 1), (1, 1 + 2 + 1)]  # the end of the context counts for every choice


@pytest.mark.parametrize(("device", "vocabulary", "rows"), [("cpu", 64, 1536 // 99), ("cpu", 100_000, 1), ("cuda", 64, 40)])
def test_a_batch_fits_the_caches_of_a_cpu(device, vocabulary, rows):
    """Forty questions of 99 tokens, of which fifty are read."""
    embedding = SimpleNamespace(num_embeddings=vocabulary)
    model = SimpleNamespace(device=SimpleNamespace(type=device), get_input_embeddings=lambda: embedding)
    questions = [multiple_choice.Question(tuple(range(50)), {(1,) * 49: [i]}) for i in range(40)]
    batches = list(multiple_choice._batches(questions, 100, model))
    assert max(map(len, batches)) == rows and sum(batches, []) == questions


def test_greedy_is_where_every_token_is_the_likeliest():
    model, context = build("qwen3"), [5, 6, 7]
    with torch.no_grad():
        row = model.generate(torch.tensor([context]), attention_mask=torch.ones(1, 3), max_new_tokens=4, do_sample=False)[0]
    said = row[3:].tolist()
    other = [*said[:3], (said[3] + 1) % 64]
    assert [scored.greedy for scored in score(model, [(context, said), (context, other), (context, said[:1])], 8, 64)] == [
        True,
        False,
        True,
    ]


def test_a_continuation_longer_than_the_model_is_refused():
    with pytest.raises(InputError, match="65 tokens for a model that takes 64"):
        score(build("qwen3"), [([1], [2] * 65)], 8, longest=64)


@pytest.mark.parametrize(
    ("logps", "choices", "right"),
    [
        ([-4.0, -3.0], ["abcdefgh", "ab"], {"acc": 1, "acc_norm": 0, "acc_bytes": 0}),
        ([-4.0, -4.5], ["ab", "é é é"], {"acc": 0, "acc_norm": 1, "acc_bytes": 1}),
        ([-4.0, -9.0], ["abc", "éééééé"], {"acc": 0, "acc_norm": 0, "acc_bytes": 0}),  # -1.33 > -1.5 and -1.33 < -0.75
        ([-2.0, -2.0], ["ab", "cd"], {"acc": 0, "acc_norm": 0, "acc_bytes": 0}),
    ],
)
def test_grade(logps, choices, right):
    if choices[1] == "éééééé":
        right = right | {"acc_bytes": 1}
    assert grade(logps, choices, gold=1) == right


def test_a_choice_without_a_token_of_its_own_is_refused(tokenizer):
    with pytest.raises(InputError, match="no token of its own"):
        encode_pairs(tokenizer, [("Where?", " here"), ("Where?", "")], start=0)


# -- beside lm-evaluation-harness ------------------------------------------------------------------------------------------

TEXTS = [
    *[("Question: Where does Ada live?\nAnswer:", f" {choice}") for choice in ("Dorn", "in Dorn.", "Vel", "Velmé ünd", "x" * 40)],
    *[("Ada lives in  ", choice) for choice in ("Dorn", " Dorn", "a")],  # blanks go over
    *[("", choice) for choice in ("Ada", " Ada lives in Dorn.", "<|im_end|> x")],
    *[("<|im_start|>user\nWho?", " Ada"), ("Ada l", "ives in Dorn"), ("Ada " * 300, "lives " * 9), ("\n\n", "Ada")],
]


@pytest.fixture
def harness_model():
    """lm-evaluation-harness's own, around a model and tokenizer."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="lm-evaluation-harness is not installed")
    instance = pytest.importorskip("lm_eval.api.instance")

    def ask(model, tokenizer, texts, batch_size=4):
        scorer = huggingface.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        requests = [instance.Instance("loglikelihood", {}, pair, 0) for pair in texts]
        return scorer, scorer.loglikelihood(requests, disable_tqdm=True)

    return ask


def agree(scorer, theirs, model, tokenizer, texts):
    pairs = encode_pairs(tokenizer, texts, scorer.prefix_token_id)
    ours = score(model, pairs, 8, scorer.max_length)
    assert [one.logp for one in ours] == pytest.approx([logp for logp, _ in theirs], rel=0, abs=1e-6)
    assert [one.greedy for one in ours] == [greedy for _, greedy in theirs]
    return ours


def test_every_choice_is_as_likely_as_the_harness_has_it(harness_model, tiny_model, tokenizer):
    texts = [pair for pair in TEXTS if pair[0] != "\n\n"]  # of which it makes no context at all, and fails
    tiny_model.double()
    scorer, theirs = harness_model(tiny_model, tokenizer, texts)
    agree(scorer, theirs, tiny_model, tokenizer, texts)
    assert len(encode_pairs(tokenizer, [TEXTS[-1]], scorer.prefix_token_id)[0][0]) == 1


def test_a_tokenizer_that_adds_a_token_adds_it_here_too(harness_model, tokenizer):
    """As Llama's do; and not where the text has it already."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    backend.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)])
    adds = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>")
    model = build("llama", vocab_size=len(tokenizer), max_position_embeddings=512)
    texts = [pair for pair in TEXTS if pair[0] != "\n\n"]
    scorer, theirs = harness_model(model, adds, texts)
    agree(scorer, theirs, model, adds, texts)
    assert encode_pairs(adds, [("Ada", " lives")], start)[0][0][0] == start


@pytest.mark.skipif(not (DATA / "mc_eval").is_dir(), reason="../shared/data/mc_eval is not there")
@pytest.mark.parametrize("name", ["arc_easy", "hellaswag", "copycolors", "boolq"])
def test_real_questions_are_answered_as_the_harness_answers_them(harness_model, tiny_model, tokenizer, name):
    with gzip.open(DATA / "mc_eval" / f"{name}.jsonl.gz", "rt") as file:
        rows = [json.loads(next(file)) for _ in range(12)]
    texts = [(row["query"], f" {choice}") for row in rows for choice in row["choices"]]
    tiny_model.double()
    scorer, theirs = harness_model(tiny_model, tokenizer, texts, batch_size=16)
    agree(scorer, theirs, tiny_model, tokenizer, texts)


@pytest.mark.skipif(not (DATA / "mc_eval").is_dir(), reason="../shared/data/mc_eval is not there")
def test_chance_is_in_the_interval_of_a_model_that_knows_nothing(tiny_model, tokenizer):
    """Sums favour short choices and so may be off; what is meant here is a set in which all choices are letters."""
    from groundup.evaluation import Model, multiple_choice

    with gzip.open(DATA / "mc_eval" / "arc_easy.jsonl.gz", "rt") as file:
        rows = [json.loads(next(file)) for _ in range(200)]
    chance = sum(1 / len(row["choices"]) for row in rows) / len(rows)
    marks = multiple_choice(Model(tiny_model, tokenizer, batch_size=32), rows)
    for name in ("acc", "acc_norm"):
        found = stats.estimate([mark[name] for mark in marks])
        assert found["low"] <= chance <= found["high"], (name, found)
