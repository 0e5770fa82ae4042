"""Steps that are left out, on a Trainer of transformers' own; the recipes' are in faults/test_nonfinite.py."""

import json
import math

import pytest
import torch
from groundup.errors import RunError
from groundup.finite import FILE, SkipNonFinite, forget_after
from groundup.stage import start
from test_callbacks import trainer_of


@pytest.fixture
def guarded(tiny_model, tokenizer, tmp_path):
    """`guarded(spoilt, most=5, **settings)`: a trainer of which the loss is spoilt in some steps, and its guard."""

    def build(spoilt, most=5, value=math.nan, **settings):
        trainer = trainer_of(tiny_model, tmp_path / "run", **settings)
        trainer.processing_class = tokenizer
        loss = trainer.compute_loss

        def compute_loss(*args, **kwargs):
            found = loss(*args, **kwargs)
            return found * value if trainer.state.global_step + 1 in spoilt else found

        trainer.compute_loss = compute_loss
        guard = SkipNonFinite(trainer, start("pretrain", trainer.args), most)
        trainer.add_callback(guard)
        return trainer, guard

    return build


def weights(trainer):
    return torch.cat([parameter.detach().flatten().clone() for parameter in trainer.model.parameters()])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_do_not_move_in_a_step_that_is_left_out(guarded, value):
    trainer, guard = guarded({1, 2, 3}, value=value)
    before = weights(trainer)
    trainer.train()
    assert torch.equal(weights(trainer), before)
    assert guard.skipped == guard.in_a_row == 3
    assert not any("loss" in line or "train_loss" in line for line in trainer.state.log_history)


def test_weights_move_in_the_others(guarded):
    trainer, guard = guarded({2})
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    assert bool(after.isfinite().all()) and not torch.equal(after, before)
    assert (guard.skipped, guard.in_a_row) == (1, 0)


def test_micro_batches_of_a_step_are_left_out_together(guarded):
    trainer, guard = guarded({2}, gradient_accumulation_steps=2, per_device_train_batch_size=2)
    calls, loss = [], trainer.compute_loss

    def first_only(*args, **kwargs):  # of the two micro-batches of step 2
        calls.append(trainer.state.global_step + 1)
        trainer.state.global_step += 10 * (calls.count(2) == 2)
        found = loss(*args, **kwargs)
        trainer.state.global_step %= 10
        return found

    trainer.compute_loss = first_only
    trainer.train()
    assert calls == [1, 1, 2, 2, 3, 3] and guard.left_out == [2]
    (line,) = map(json.loads, (guard.run.directory / FILE).read_text().splitlines())
    assert len(line["rows"]) == 4  # of both


def test_one_more_than_may_be_ends_the_run(guarded):
    trainer, guard = guarded({2, 3}, most=1)
    with pytest.raises(RunError, match="no number in 2 steps in a row, up to step 3") as ended:
        trainer.train()
    assert "nothing was saved yet" in ended.value.fix
    assert len((guard.run.directory / FILE).read_text().splitlines()) == 2


def test_logged_loss_that_is_no_number_ends_the_run(guarded):
    trainer, _ = guarded(set())
    with pytest.raises(RunError, match="`eval_loss` is nan at step 0"):
        trainer.log({"eval_loss": math.nan})


def test_means_are_of_the_steps_that_were_applied(guarded):
    trainer, guard = guarded(set())
    told = []
    guard.tell = told.append
    guard.left_out = [2, 3, 6]
    for step, loss in ((4, 1.0), (6, 3.0), (7, 5.0)):
        trainer.state.global_step = step
        trainer.log({"loss": loss})
    trainer.log({"train_loss": 4.0})
    # two of four; one of two; none
    assert told == [{"loss": 2.0}, {"loss": 6.0}, {"loss": 5.0}, {"train_loss": 7.0}]


def test_rows_are_numbered_by_their_tokens(guarded):
    from datasets import Dataset

    trainer, guard = guarded(set())
    trainer.train_dataset = Dataset.from_dict({"input_ids": [[5, 6], [7, 8, 9], [10]], "labels": [[5, 6], [7, 8, 9], [10]]})
    ids, mask = torch.tensor([[7, 8, 9], [0, 0, 10], [11, 12, 13]]), torch.tensor([[1, 1, 1], [0, 0, 1], [1, 1, 1]])
    guard.batches = [{"input_ids": ids[:2], "attention_mask": mask[:2]}, {"input_ids": ids[2:], "attention_mask": mask[2:]}]
    assert [row["row"] for row in guard.rows(1)] == [1, 2, None]
    pairs = {"prompt_ids": [[1], [2]], "chosen_ids": [[3], [3, 4]], "rejected_ids": [[5], [6]]}
    trainer.train_dataset = Dataset.from_dict(pairs)
    assert guard.numbers() == {(1, 3): 0, (2, 3, 4): 1, (1, 5): 0, (2, 6): 1}


def test_rows_of_a_rollout_are_numbered_by_their_prompts(guarded):
    from datasets import Dataset

    trainer, guard = guarded(set())
    prompts = [[{"role": "user", "content": text}] for text in ("one", "two")]
    trainer.train_dataset = Dataset.from_dict({"prompt": prompts})
    guard.batches = [[{"prompt": prompts[1]}, {"prompt": prompts[0]}]]
    assert [row["row"] for row in guard.rows(1)] == [1, 0]


def test_steps_that_are_taken_again_are_forgotten(tmp_path):
    path = tmp_path / FILE
    assert forget_after(3, path) == 0
    path.write_text('{"step": 2}\n{"step": 3}\n{"step": 4}\n')
    assert forget_after(3, path) == 2
    assert path.read_text() == '{"step": 2}\n{"step": 3}\n'
