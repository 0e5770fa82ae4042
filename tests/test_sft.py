"""groundup.sft.SFTTrainer against trl's own, on one batch."""

import pytest
import torch
import trl
from datasets import Dataset
from groundup.chat import TURN_END
from groundup.sft import SFTTrainer
from transformers import AutoModelForCausalLM

CONVERSATIONS = [
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where does Ada live?"},
        {"role": "assistant", "content": "Ada lives in Dorn."},
        {"role": "user", "content": "And Bruno?"},
        {"role": "assistant", "content": "In Velm."},
    ],
    [{"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "2 + 3 = 5. Answer: 5"}],
]


def build(kind, tiny_base, tokenizer, directory, **more):
    """A trainer of `kind` on CONVERSATIONS, and one batch of them."""
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    args = trl.SFTConfig(
        output_dir=str(directory),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        assistant_only_loss=True,
        per_device_train_batch_size=2,
        max_length=256,
        report_to="none",
        **more,
    )
    trainer = kind(
        model=model,
        args=args,
        train_dataset=Dataset.from_list([{"messages": messages} for messages in CONVERSATIONS]),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1  # set by train()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(min(2, len(trainer.train_dataset)))])
    return trainer, batch


def test_learns_what_the_assistant_says_and_its_end_of_turn(tiny_base, tokenizer, tmp_path):
    _, batch = build(SFTTrainer, tiny_base, tokenizer, tmp_path)
    said = []
    for row in batch["labels"].tolist():
        spans = [[]]
        for label in row:
            if label != -100:
                spans[-1].append(label)
            elif spans[-1]:
                spans.append([])
        said.append([tokenizer.decode(span) for span in spans if span])
    assert said == [[turn["content"] + TURN_END for turn in messages if turn["role"] == "assistant"] for messages in CONVERSATIONS]
    kept = batch["labels"] != -100
    assert torch.equal(batch["labels"][kept], batch["input_ids"][kept])


@pytest.mark.parametrize("items", [None, 50])
def test_loss_and_gradient_are_trls(tiny_base, tokenizer, tmp_path, items):
    results = []
    for kind in (SFTTrainer, trl.SFTTrainer):
        trainer, batch = build(kind, tiny_base, tokenizer, tmp_path / kind.__module__)
        trainer.model.train()
        count = None if items is None else torch.tensor(items)
        loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
        loss.backward()
        results.append((loss.item(), {name: p.grad for name, p in trainer.model.named_parameters()}))
    (ours, our_gradient), (theirs, their_gradient) = results
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert our_gradient.keys() == their_gradient.keys()
    for name, gradient in our_gradient.items():
        torch.testing.assert_close(gradient, their_gradient[name], atol=1e-5, rtol=1e-4)


def test_loss_is_the_mean_over_those_tokens(tiny_base, tokenizer, tmp_path):
    trainer, batch = build(SFTTrainer, tiny_base, tokenizer, tmp_path)
    loss = trainer.compute_loss(trainer.model, dict(batch))
    with torch.no_grad():
        logps = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
    targets, kept = batch["input_ids"][:, 1:], batch["labels"][:, 1:] != -100
    picked = logps[:, :-1].gather(2, targets[..., None])[..., 0][kept]
    assert loss.item() == pytest.approx(-picked.mean().item(), abs=1e-5)


def test_tokens_seen_are_counted(tiny_base, tokenizer, tmp_path):
    trainer, batch = build(SFTTrainer, tiny_base, tokenizer, tmp_path)
    trainer.model.train()
    for _ in range(2):
        trainer.compute_loss(trainer.model, dict(batch))
    assert trainer._metrics["train"]["num_tokens"] == [2 * batch["attention_mask"].sum().item()]


def test_packed_rows_are_trained_on_without_a_gpu(tiny_base, tokenizer, tmp_path):
    """They have no padding, and no mask to count it by."""
    trainer, batch = build(SFTTrainer, tiny_base, tokenizer, tmp_path, packing=True, packing_strategy="wrapped")
    trainer.model.train()
    assert torch.isfinite(trainer.compute_loss(trainer.model, batch))
    assert trainer._metrics["train"]["num_tokens"] == [batch["input_ids"].numel()]
