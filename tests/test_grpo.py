from types import SimpleNamespace

import pytest
import torch
import trl
from datasets import Dataset
from groundup import grpo
from groundup.errors import InputError
from groundup.grpo import EpochRepeatSampler, GRPOTrainer
from groundup.guarding import guard
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import GRPOConfig
from trl.trainer.utils import RepeatSampler


def sampler(seed=0, **settings):
    return EpochRepeatSampler(list(range(8)), mini_repeat_count=2, batch_size=4, repeat_count=3, seed=seed, **settings)


def order(seed, epoch, before=()):
    one = sampler(seed)
    for earlier in before:
        one.set_epoch(earlier)
        list(one)
    one.set_epoch(epoch)
    return list(one)


def test_order_is_a_function_of_seed_and_epoch():
    assert order(0, 2) == order(0, 2, before=[0, 1]) == order(0, 2, before=[5, 5, 5])
    assert len({tuple(order(0, epoch)) for epoch in range(5)}) == 5
    assert order(0, 1) != order(7, 1)


def test_first_epoch_is_trls_own_order():
    theirs = RepeatSampler(list(range(8)), mini_repeat_count=2, batch_size=4, repeat_count=3, seed=0)
    assert order(0, 0) == list(theirs)


def test_prompts_repeat_as_trl_repeats_them():
    found = order(0, 3)
    assert len(found) == 8 * 2 * 3
    for start in range(0, len(found), 24):  # a generation batch: four prompts twice, three times over
        first = found[start : start + 8]
        assert found[start : start + 24] == first * 3
        assert first[::2] == first[1::2] and len(set(first)) == 4


class Noting(GRPOTrainer):
    """Says one fixed word to each prompt, and notes the prompts of each generation."""

    asked = None

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        self.asked = [*(self.asked or []), [self.processing_class.decode(ids) for ids in prompt_ids]]
        eos = self.processing_class.eos_token_id
        return [[10 + i % 7, eos] for i in range(len(prompt_ids))], None


def build(tiny_base, tokenizer, directory, prompts=6, **settings):
    args = GRPOConfig(
        **{
            "output_dir": str(directory),
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "num_generations": 2,
            "max_completion_length": 4,
            "save_strategy": "no",
            "report_to": "none",
            **settings,
        }
    )
    return Noting(
        model=AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32),
        reward_funcs=lambda completions, **kwargs: [float(i % 2) for i in range(len(completions))],
        args=args,
        train_dataset=Dataset.from_list([{"prompt": f"prompt {i}"} for i in range(prompts)]),
        processing_class=tokenizer,
    )


def test_trainer_follows_the_order_of_each_epoch(tiny_base, tokenizer, tmp_path):
    """Six prompts, two a generation: three steps an epoch."""
    trainer = build(tiny_base, tokenizer, tmp_path)
    trainer.train()
    expected = []
    for epoch in range(2):
        one = EpochRepeatSampler(list(range(6)), mini_repeat_count=2, batch_size=2, seed=trainer.args.seed)
        one.set_epoch(epoch)
        expected += [f"prompt {i}" for i in one]
    assert [text for batch in trainer.asked for text in batch] == expected
    assert expected[:12] != expected[12:]


def test_too_few_prompts_are_refused(tiny_base, tokenizer, tmp_path):
    build(tiny_base, tokenizer, tmp_path, prompts=2)  # just enough
    with pytest.raises(InputError, match="1 prompts do not fill one generation batch of 2"):
        build(tiny_base, tokenizer, tmp_path, prompts=1)
    with pytest.raises(InputError, match="6 prompts do not fill one generation batch of 8"):
        build(tiny_base, tokenizer, tmp_path, steps_per_generation=4)


@pytest.mark.parametrize("piece", [None, 1000, 12])
def test_scoring_leaves_padding_out_and_is_the_engines(tiny_base, tokenizer, tmp_path, monkeypatch, piece):
    """Prompts padded on the left, completions on the right, in no order of length: the same numbers from fewer tokens. Without
    gradients, with them in one piece, and with them in pieces."""
    trainer = build(tiny_base, tokenizer, tmp_path, per_device_train_batch_size=2, num_generations=2)
    monkeypatch.setattr(grpo, "PIECE", piece)
    prompts, completions = [3, 9, 1, 5, 2], [4, 1, 6, 2, 7]
    ids, mask = torch.randint(5, 50, (5, 9 + 8)), torch.zeros(5, 9 + 8, dtype=torch.long)
    for row, (before, after) in enumerate(zip(prompts, completions, strict=True)):
        mask[row, 9 - before : 9 + after] = 1
    ids = ids.masked_fill(mask == 0, tokenizer.pad_token_id)
    seen, heads = [], []
    trainer.model.model.register_forward_pre_hook(lambda m, a, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True)
    head = trl.trainer.utils._ChunkedLogProbFunction
    spy = SimpleNamespace(apply=lambda hidden, *others: heads.append(len(hidden)) or head.apply(hidden, *others))
    monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", spy)
    gradients = []
    with torch.set_grad_enabled(piece is not None):
        found = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 8, compute_entropy=True)
        passed, scored = sum(seen), sum(heads)
        expected = super(GRPOTrainer, trainer)._get_per_token_logps_and_entropies(trainer.model, ids, mask, 8, compute_entropy=True)
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours * mask[:, 9:], theirs * mask[:, 9:], atol=1e-5, rtol=1e-5)
    for logps in (found[0], expected[0]):
        assert logps.requires_grad == (piece is not None)
        if piece is not None:
            trainer.model.zero_grad()
            (logps * mask[:, 9:]).sum().backward()
            gradients.append([p.grad.clone() for p in trainer.model.parameters()])
    torch.testing.assert_close(*(gradients or ([], [])), atol=1e-5, rtol=1e-4)
    assert scored == sum(completions)  # the head looks at what was said and at nothing else
    # in one piece 5 x (9 + 7); else of like length, cut to the longest prompt and completion: two rows at a time, or 12 tokens
    lengths = [(before, after) for before, after in sorted(zip(prompts, completions, strict=True), key=sum)]
    sums = [sum(pair) for pair in lengths]
    assert sums == [7, 7, 7, 9, 10]
    pieces = [lengths[:2], lengths[2:4], lengths[4:]] if piece != 1000 else [lengths]
    least = sum(len(some) * (max(b for b, _ in some) + max(a for _, a in some)) for some in pieces)
    assert passed == least and passed < 5 * 17


def test_a_completion_at_fault_moves_nothing(tiny_base, tokenizer, tmp_path):
    """Whatever its other rewards: the advantages of its group are those of a group without it."""
    given = [1.0, 4.0, float("nan"), 2.0, 0.0, 0.0, 3.0, 3.0]
    found = {}
    for other in (0.0, 100.0):
        trainer = build(
            tiny_base, tokenizer, tmp_path, max_steps=1, per_device_train_batch_size=8, num_generations=4, scale_rewards="none"
        )
        columns = [given, [0.0, 0.0, other, *[0.0] * 5], [float("nan"), *[0.0] * 7]]  # the last is only watched
        for n, column in enumerate(columns):
            trainer.reward_funcs[n : n + 1] = [guard(lambda completions, column=column, **kwargs: column, f"given_{n}")]
        trainer.reward_func_names, trainer.reward_processing_classes = ["first", "second", "watched"], [None] * 3
        trainer.reward_weights = torch.tensor([1.0, 1.0, 0.0])
        rows = [{"prompt": f"prompt {i // 4}"} for i in range(8)]
        trainer.model.train()
        found[other] = trainer._generate_and_score_completions(rows)["advantages"].tolist()
    mean = (1.0 + 4.0 + 2.0) / 3
    expected = [1 - mean, 4 - mean, 0.0, 2 - mean, -1.5, -1.5, 1.5, 1.5]
    assert found[0.0] == pytest.approx(expected) and found[100.0] == pytest.approx(expected)


def test_a_reward_model_reads_no_padding(tiny_base, tokenizer):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    lengths = [7, 2, 11, 3, 5]
    mask = torch.tensor([[1] * length + [0] * (12 - length) for length in lengths])
    ids = torch.randint(5, 50, mask.shape).masked_fill(mask == 0, tokenizer.pad_token_id)
    seen = []
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
        model.get_input_embeddings().register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].numel()))
        found = grpo.by_length(model.forward, 2, input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert seen == [2 * 3, 2 * 7, 11]
