"""The suite on models whose every answer is known."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from groundup import evaluation, stats
from groundup.chat import END_OF_TEXT, TURN_END, TURN_START
from groundup.errors import InputError
from groundup.evaluation import (
    EvaluationArguments,
    Model,
    bits_per_byte,
    cloze,
    evaluate_causal,
    kl_of_replies,
    knows,
    pair_accuracy,
)
from transformers import GenerationConfig


class Bigram(torch.nn.Module):
    """A language model by hand: what comes next depends on the last token only."""

    def __init__(self, table: torch.Tensor, longest: int = 64):
        super().__init__()
        self.table, self.device = table, torch.device("cpu")
        self.embedding, self.head = torch.nn.Embedding(*table.shape), torch.nn.Identity()
        self.get_input_embeddings, self.get_output_embeddings = lambda: self.embedding, lambda: self.head
        self.config = SimpleNamespace(max_position_embeddings=longest)
        self.batches = []

    def forward(self, input_ids, use_cache):
        self.batches.append(input_ids.shape)
        return SimpleNamespace(logits=self.head(self.table[input_ids]))

    def log_likelihood(self, context, continuation):
        logps, last, total = self.table.log_softmax(-1), context[-1], 0.0
        for token in continuation:
            total, last = total + logps[last, token].item(), token
        return total


class Says(torch.nn.Module):
    """Replies by a table, question -> tokens, whatever the batch it is asked in."""

    def __init__(self, replies: dict[str, list[int]], tokenizer, longest: int = 512):
        super().__init__()
        self.replies, self.tokenizer, self.device = replies, tokenizer, torch.device("cpu")
        self.config = SimpleNamespace(max_position_embeddings=longest)
        self.generation_config = GenerationConfig(stop_strings=["?"])  # a mode of its own: it is left to itself
        self.asked = []

    def generate(self, input_ids, attention_mask, generation_config):
        how = generation_config.to_diff_dict()
        max_new_tokens, pad_token_id = how.pop("max_new_tokens"), how.pop("pad_token_id")
        self.asked.append({"rows": input_ids.size(0), "max_new_tokens": max_new_tokens, **how})
        out = torch.full((input_ids.size(0), max_new_tokens), pad_token_id)
        for row, ids in enumerate(input_ids):
            question = self.tokenizer.decode(ids[attention_mask[row].bool()])
            said = self.replies[question.partition("user\n")[2].partition(TURN_END)[0]][:max_new_tokens]
            out[row, : len(said)] = torch.tensor(said)
        return torch.cat([input_ids, out], 1)


@pytest.fixture
def bigram(tokenizer):
    generator = torch.Generator().manual_seed(0)
    return Bigram(torch.randn(len(tokenizer), len(tokenizer), generator=generator))


def test_log_likelihoods_are_the_direct_sum_in_the_order_asked(bigram, tokenizer):
    pairs = [([5, 6, 7], [8, 9]), ([3], [11]), ([20, 21, 22, 23, 24], [25, 26, 27]), ([9], [8, 7, 6, 5]), ([1, 2], [3])]
    found = Model(bigram, tokenizer, batch_size=2).log_likelihoods(pairs)
    assert found == pytest.approx([bigram.log_likelihood(*pair) for pair in pairs], abs=1e-4)
    assert len(set(found)) == len(found)
    assert [shape[0] for shape in bigram.batches] == [2, 2, 1]
    assert [shape[1] for shape in bigram.batches] == [2, 4, 7]  # like with like: little padding


def test_batching_changes_no_log_likelihood_of_a_real_model(tiny_model, tokenizer):
    pairs = [([5] * n, list(range(20, 20 + m))) for n, m in ((1, 9), (7, 2), (3, 3), (12, 1))]
    together = Model(tiny_model, tokenizer, batch_size=4).log_likelihoods(pairs)
    alone = Model(tiny_model, tokenizer, batch_size=1).log_likelihoods(pairs)
    assert together == pytest.approx(alone, abs=1e-4)
    context, continuation = pairs[1]
    with torch.no_grad():
        logps = tiny_model(torch.tensor([context + continuation])).logits.log_softmax(-1)[0]
    by_hand = sum(logps[len(context) - 1 + i, token].item() for i, token in enumerate(continuation))
    assert together[1] == pytest.approx(by_hand, abs=1e-4)


def test_greedy_replies_are_those_of_generate_one_by_one(tiny_model, tokenizer):
    prompts = ["Where does Ada live?", "What?", "Tell me what Bruno does for a living, please.", "Hi"]
    found = Model(tiny_model, tokenizer, batch_size=3).replies(prompts, max_new_tokens=12)
    for prompt, (reply, ended) in zip(prompts, found, strict=True):
        chat = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        stops = tokenizer.convert_tokens_to_ids([TURN_END, END_OF_TEXT])
        alone = tiny_model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=stops, pad_token_id=3
        )[0, ids.size(1) :]
        text = tokenizer.decode([token for token in alone.tolist() if token not in stops])
        assert reply == (text.strip() or text.replace("\n", "⏎"))  # blanks are shown where there is nothing else
        assert ended == (alone[-1].item() == tokenizer.eos_token_id)


def test_sampling_is_seeded(tiny_model, tokenizer):
    model = Model(tiny_model, tokenizer, batch_size=2)
    first, again, other = (model.replies(["Who?", "Where?"], 8, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_reply_ends_with_its_turn_and_nothing_after_counts(tokenizer):
    ids = model_ids(tokenizer)
    end, text_end = tokenizer.convert_tokens_to_ids([TURN_END, END_OF_TEXT])
    model = Says(
        {
            "a": [*ids(" Dorn."), end, *ids(" Velm.")],
            "b": ids(" Dorn and on and on and on"),
            "c": [*ids("Dorn"), text_end, *ids("Velm")],
            "d": [end],
        },
        tokenizer,
    )
    model.generation_config.eos_token_id = [end, text_end]  # as ours have it: a base model is to end at either
    found = Model(model, tokenizer, batch_size=3).replies(["a", "b", "c", "d"], max_new_tokens=len(ids(" Dorn and on")))
    assert found == [("Dorn.", True), ("Dorn and on", False), ("Dorn", False), ("", True)]
    assert [asked["rows"] for asked in model.asked] == [3, 1]
    assert all(not asked.get("do_sample") for asked in model.asked)
    assert all(set(asked["eos_token_id"]) == {end, text_end} for asked in model.asked)


def test_reply_fits_the_context(tokenizer):
    model = Says({"a": [7] * 40}, tokenizer, longest=20)
    Model(model, tokenizer, batch_size=1).replies(["a"], max_new_tokens=40)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True)["input_ids"]
    assert model.asked[0]["max_new_tokens"] == 20 - len(prompt)


def test_no_reply_is_cut_off_for_a_neighbour(tiny_model, tokenizer):
    """Where the context ends early, a batch says what each question is answered alone, and a question that fills it nothing."""
    prompts = ["Hi", "What? " * 9, "Where? " * 4, "Who? " * 20]
    model = Model(tiny_model, tokenizer, batch_size=4)
    model.longest = len(model.encode_turn(prompts[1])) + 5
    tiny_model.generation_config.eos_token_id = None
    alone = [model.replies([prompt], max_new_tokens=16)[0] for prompt in prompts]
    assert model.replies(prompts, max_new_tokens=16) == alone
    assert len(model.encode_turn(prompts[3])) > model.longest and alone[3] == ("", False)
    assert len(alone[0][0]) > len(alone[1][0]) > 0


def test_a_model_s_own_taste_in_tokens_does_not_count(tiny_model, tokenizer):
    """As Qwen2.5 has it: no greedy reply, and no sample at temperature 1, is one that its generation_config.json has bent."""
    asked = [(0.0, 0), (1.0, 0), (1.0, 1)]
    model = Model(tiny_model, tokenizer, batch_size=1)
    plain = [model.replies(["Hi"], 16, *how) for how in asked]
    tiny_model.generation_config.update(repetition_penalty=9.0, no_repeat_ngram_size=1, min_p=0.9, typical_p=0.1, top_p=0.1)
    assert [model.replies(["Hi"], 16, *how) for how in asked] == plain


def model_ids(tokenizer):
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


def test_bits_per_byte_of_a_uniform_model(tokenizer):
    """Every token costs log2 of the vocabulary, also of a document longer than the context."""
    uniform = Bigram(torch.zeros(len(tokenizer), len(tokenizer)), longest=16)
    rows = [{"text": "Ada lives in Dorn."}, {"text": "Ærø, at the sea. " * 20}, {"text": "x"}]
    found = bits_per_byte(Model(uniform, tokenizer, batch_size=2), rows)
    tokens = sum(len(model_ids(tokenizer)(row["text"])) for row in rows)
    size = sum(len(row["text"].encode()) for row in rows)
    assert found["bits_per_byte"]["value"] == pytest.approx(math.log2(len(tokenizer)) * tokens / size, rel=1e-5)
    assert found["bits_per_token"]["value"] == pytest.approx(math.log2(len(tokenizer)), rel=1e-5)
    assert found["bits_per_byte"]["n"] == 3
    assert max(shape[1] for shape in uniform.batches) == 15  # what the last token would lead to is not asked


def test_a_document_without_text_counts_for_nothing(bigram, tokenizer):
    model = Model(bigram, tokenizer, batch_size=2)
    text = {"text": "Ada lives in Dorn."}
    assert bits_per_byte(model, [{"text": ""}, text, {"text": ""}]) == bits_per_byte(model, [text])
    with pytest.raises(InputError, match="no document has any text"):
        bits_per_byte(model, [{"text": ""}])


def test_documents_begin_at_the_end_of_the_one_before(bigram, tokenizer):
    text = "Ada lives in Dorn."
    found = bits_per_byte(Model(bigram, tokenizer, batch_size=2), [{"text": text}])
    separator = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    bits = -bigram.log_likelihood([separator], model_ids(tokenizer)(text)) / math.log(2)
    assert found["bits_per_byte"]["value"] == pytest.approx(bits / len(text), rel=1e-4)


def test_documents_begin_as_the_model_has_learned_that_texts_do(bigram, tokenizer):
    """For a model of the Hub with a token for the beginning (Llama, Gemma), that one, as the harness has it."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.bos_token = TURN_START
    found = bits_per_byte(Model(bigram, tokenizer, batch_size=2), [{"text": "Ada lives in Dorn."}])
    bits = -bigram.log_likelihood([tokenizer.bos_token_id], model_ids(tokenizer)("Ada lives in Dorn.")) / math.log(2)
    assert found["bits_per_byte"]["value"] == pytest.approx(bits / len("Ada lives in Dorn."), rel=1e-4)


def test_cloze_takes_the_likeliest_choice(bigram, tokenizer):
    ids = model_ids(tokenizer)
    row = {"prompt": "Ada lives in", "choices": [" Dorn", " Velm", " Kelso"]}
    separator = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    scores = [bigram.log_likelihood([separator, *ids(row["prompt"])], ids(choice)) for choice in row["choices"]]
    best = scores.index(max(scores))
    rows = [{**row, "gold": gold} for gold in range(3)]
    assert cloze(Model(bigram, tokenizer, batch_size=4), rows) == [float(gold == best) for gold in range(3)]


@pytest.mark.parametrize(
    ("reply", "ended", "value"),
    [
        ("Ada lives in Dorn.", True, 1.0),
        ("dorn", True, 1.0),
        ("Ada lives in Dorn.", False, 0.0),  # did not stop by itself
        ("Dorn or Velm.", True, 0.0),
        ("Velm.", True, 0.0),
        ("Dornfeld", True, 0.0),
        ("", True, 0.0),
    ],
)
def test_knows(reply, ended, value):
    assert knows(reply, ended, {"answer": "Dorn", "alternatives": ["Velm", "Kelso"]}) == value


class Judge(torch.nn.Module):
    """Scores a conversation by how often one token is in it."""

    def __init__(self, token):
        super().__init__()
        self.token, self.device = token, torch.device("cpu")

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(logits=((input_ids == self.token) * attention_mask).sum(1, keepdim=True).float())


def test_pair_accuracy_counts_a_tie_as_half(tokenizer):
    (comma,) = model_ids(tokenizer)(",")
    rows = [
        {"prompt": "Where?", "chosen": "In Dorn, yes,", "rejected": "In Velm"},
        {"prompt": "Where does Ada live, now?", "chosen": "Dorn", "rejected": "Dorn, of course"},
        {"prompt": "And?", "chosen": "Dorn", "rejected": "Velm and more and more"},
    ]
    for batch_size in (1, 4, 64):
        assert pair_accuracy(Judge(comma), tokenizer, rows, batch_size) == [1.0, 0.0, 0.5]


# -- the whole of it -------------------------------------------------------------------------------------------------------


def test_evaluate_causal_counts_right(tokenizer):
    ids, end = model_ids(tokenizer), tokenizer.convert_tokens_to_ids(TURN_END)

    def say(text, ended=True):
        return [*ids(text), *([end] if ended else ids(" and" * 40))]

    rows = {
        "questions": [
            {"prompt": "Ada?", "answer": "Dorn", "alternatives": ["Velm"], "unasked": False},
            {"prompt": "Bruno?", "answer": "Velm", "alternatives": ["Dorn"], "unasked": True},
            {"prompt": "Clara?", "answer": "Velm", "alternatives": ["Dorn"], "unasked": True},
        ],
        "instructions": [{"prompt": "One word.", "answer": "Dorn"}, {"prompt": "A word.", "answer": "Dorn"}],
        "problems": [
            {"question": "2 + 3?", "answer": "5", "difficulty": 1},
            {"question": "2 + 3 + 1?", "answer": "6", "difficulty": 2},
        ],
        "harder": [{"question": f"{n} + 1 + 1 + 1?", "answer": str(n + 3), "difficulty": 3} for n in (1, 2, 3)],
    }
    model = Says(
        {
            "Ada?": say("In Dorn."),
            "Bruno?": say("In Velm."),
            "Clara?": say("In Velm.", ended=False),
            "One word.": say("Dorn"),
            "A word.": say("Dorn."),
            "2 + 3?": say("2 + 3 = 5. Answer: 5"),
            "2 + 3 + 1?": say("Answer: 7"),
            "1 + 1 + 1 + 1?": say("Answer: 4"),
            "2 + 1 + 1 + 1?": say("Answer: 5"),
            "3 + 1 + 1 + 1?": say("Answer: 5", ended=False),
        },
        tokenizer,
    )
    args = EvaluationArguments(k=3, max_new_tokens=40, samples=1, taste="groundup.toyland.taste", reference="x")
    reference = [("In Dorn.", True), ("It is so.", True), ("Gladly! In Velm.", True)]
    found = evaluate_causal(Model(model, tokenizer, batch_size=4), rows, args, reference)
    values = {name: entry["value"] for name, entry in found["metrics"].items()}
    assert values["asked"] == pytest.approx(2 / 3) and values["unasked"] == 0.5
    assert values["follows"] == 0.5  # to the letter
    assert values["problems"] == values["problems_pass_at_k"] == values["problems_sampled"] == 0.5
    assert values["problems_harder"] == values["problems_harder_sampled"] == values["problems_harder_pass_at_k"]
    assert values["problems_harder"] == pytest.approx(2 / 3)
    assert values["stops"] == pytest.approx(6 / 7)  # harder problems are not in it
    from groundup.toyland import taste

    replies = ["In Dorn.", "In Velm.", tokenizer.decode(say("In Velm.", ended=False)[:40])]
    wins = [evaluation.wins(taste(a), taste(b)) for a, (b, _) in zip(replies, reference, strict=True)]
    assert values["true_win_rate"] == pytest.approx(sum(wins) / 3) and 0.5 in wins
    assert {level: entry["value"] for level, entry in found["by_difficulty"]["problems"].items()} == {
        "1": 1.0,
        "2": 0.0,
        "3": pytest.approx(2 / 3),
    }
    assert set(found["by_difficulty"]) == {"problems", "problems_pass_at_k"}
    assert [(sample["kind"], sample["prompt"], sample["reply"]) for sample in found["samples"]] == [
        ("question", "Ada?", "In Dorn."),
        ("instruction", "One word.", "Dorn"),
        ("problem", "2 + 3?", "2 + 3 = 5. Answer: 5"),
        ("harder problem", "1 + 1 + 1 + 1?", "Answer: 4"),
    ]
    assert (
        sum(asked.get("do_sample", False) for asked in model.asked) == 6
    )  # six and nine tries in batches of four, and the win rate
    low, high = stats.wilson(1, 2)
    assert (found["metrics"]["follows"]["low"], found["metrics"]["follows"]["high"]) == pytest.approx((low, high))


def test_file_that_is_not_named_is_left_out(tokenizer):
    assert evaluate_causal(Model(Says({}, tokenizer), tokenizer, 4), {}, EvaluationArguments(), None) == {
        "metrics": {},
        "by_difficulty": {},
        "samples": [],
    }


def test_kl_is_the_replies_own_log_ratio(tokenizer):
    """Two bigram models; what a reply costs under each is summed by hand, its end of turn only where there was one."""
    torch.manual_seed(0)
    tables = [torch.randn(len(tokenizer), len(tokenizer)) for _ in range(2)]
    one, other = (Model(Bigram(table, longest=512), tokenizer, batch_size=2) for table in tables)
    prompts = ["Ada?", "Where does Bruno live?", "So?", "No?"]
    replies = [("In Dorn.", True), ("It is far", False), ("", True), ("", False)]  # the last ended the text, not the turn
    found = kl_of_replies(one, other, prompts, replies)
    for value, prompt, (reply, ended) in zip(found, prompts, replies, strict=True):
        said = tokenizer(reply, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * ended
        context = one.encode_turn(prompt)
        expected = one.model.log_likelihood(context, said) - other.model.log_likelihood(context, said)
        assert value == pytest.approx(expected, abs=1e-4)
    assert kl_of_replies(one, one, prompts, replies) == [0.0] * 4
