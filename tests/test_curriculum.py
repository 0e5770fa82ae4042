"""What is drawn by what has been solved; that it is a function of seed and history; that groups are replaced whole."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from groundup.curriculum import Curriculum
from groundup.errors import InputError
from groundup.grpo import GRPOTrainer, replace_groups
from transformers import AutoModelForCausalLM
from trl import GRPOConfig

K = 4


def shares(curriculum, draws=200, count=4):
    """How often each row is drawn, with the chances held."""
    found = np.zeros(len(curriculum.chances))
    for _ in range(draws):
        found[curriculum.draw(count)] += 1
    return found / draws


def test_even_odds_come_first():
    curriculum = Curriculum([True] * 20, seed=0, rest=10**6)
    curriculum.chances[:] = [0.0] * 5 + [0.1] * 5 + [0.5] * 5 + [1.0] * 5
    found = shares(curriculum).reshape(4, 5).mean(1)
    assert found[0] == found[3] == 0.0  # they rest
    assert found[2] > 1.5 * found[1] > 0


def test_what_rests_is_looked_at_again():
    curriculum = Curriculum([True] * 8, seed=0, rest=5)
    curriculum.record(list(range(8)), [0.0] * 4 + [0.5] * 4)
    seen = [set(curriculum.draw(4)) for _ in range(40)]
    assert all(min(rows) >= 4 for rows in seen[:5])
    assert any(rows & {0, 1, 2, 3} for rows in seen[5:])


def test_resting_problems_fill_up_what_is_missing():
    curriculum = Curriculum([True] * 4, seed=0, rest=100)
    curriculum.draw(4)
    curriculum.record([0, 1], [0.0, 1.0])
    curriculum.draw(4)
    curriculum.record([2], [0.0])
    assert sorted(curriculum.draw(4)) == [0, 1, 2, 3]
    assert len(curriculum.draw(6)) == 6  # twice, where there are fewer


def test_chances_follow_the_model():
    curriculum = Curriculum([True, True], seed=0, memory=0.5)
    for passed in (0.0, 1.0, 1.0):
        curriculum.record([0], [passed])
    assert curriculum.chances.tolist() == [0.75, -1.0]
    assert curriculum.shares() == {"always": 0.0, "never": 0.0, "sometimes": 1.0}


def test_rehearsed_rows_keep_their_share():
    curriculum = Curriculum([True] * 30 + [False] * 10, seed=0)
    drawn = [curriculum.draw(8) for _ in range(50)]
    assert all(sum(row >= 30 for row in rows) == 2 for rows in drawn)
    assert {row for rows in drawn for row in rows if row >= 30} == set(range(30, 40))
    curriculum.record([30], [0.0])
    assert curriculum.chances[30] == -1.0


def test_a_draw_is_a_function_of_seed_and_history():
    one, two, other = (Curriculum([True] * 50, seed) for seed in (1, 1, 2))
    first = [one.draw(8) for _ in range(3)]
    assert first == [two.draw(8) for _ in range(3)] != [other.draw(8) for _ in range(3)]
    one.record(first[2], [n / 8 for n in range(8)])
    again = Curriculum([True] * 50, seed=1)
    again.load_state_dict(one.state_dict())
    assert [one.draw(8) for _ in range(5)] == [again.draw(8) for _ in range(5)]
    with pytest.raises(ValueError, match="of 50 rows, and there are 3"):
        Curriculum([True] * 3, seed=1).load_state_dict(one.state_dict())


# ---- in the trainer


class Solving(GRPOTrainer):
    """Solves problem n in n of 4 completions: 0 never, 4 always; notes what was asked."""

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        said = []
        for n, ids in enumerate(prompt_ids):
            number = int(self.processing_class.decode(ids, skip_special_tokens=True).split("=")[1].split()[0])
            self.__dict__.setdefault("asked", []).append(number)
            words = self.processing_class("yes" if n % K < number % 5 else "no no", add_special_tokens=False)["input_ids"]
            said.append([*words, self.processing_class.eos_token_id])
        return said, None


def yes(completions, answer, **kwargs):
    return [None if gold is None else float("yes" in c[0]["content"]) for c, gold in zip(completions, answer, strict=True)]


def build(tiny_base, tokenizer, directory, rows=20, rehearsed=0, **settings):
    arguments = {name: settings.pop(name) for name in ("curriculum", "curriculum_rest", "extra_rollouts") if name in settings}
    config = {"max_steps": 8, "per_device_train_batch_size": 8, "steps_per_generation": 1, "num_generations": K} | settings
    args = GRPOConfig(
        str(directory),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="steps",
        save_steps=4,
        logging_steps=1,
        max_completion_length=6,
        **config,
    )
    data = [
        {"prompt": [{"role": "user", "content": f"row ={n} ."}], "answer": "yes" if n < rows else None}
        for n in range(rows + rehearsed)
    ]
    return Solving(
        model=AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32),
        reward_funcs=yes,
        args=args,
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
        **arguments,
    )


def test_trainer_asks_what_the_curriculum_draws_and_tells_it(tiny_base, tokenizer, tmp_path):
    trainer = build(tiny_base, tokenizer, tmp_path, curriculum=True, curriculum_rest=10**6, max_steps=16)
    trainer.train()
    solved = trainer.curriculum.chances
    for row, chance in enumerate(solved):
        assert chance in (-1.0, row % 5 / 4)
    assert (solved != -1.0).sum() >= 15
    late = trainer.asked[-8 * 4 :]
    assert not {0, 4} & {number % 5 for number in late} or (solved != -1.0).sum() < 20
    assert any("curriculum/sometimes" in line for line in trainer.state.log_history)


def test_extra_rollouts_replace_flat_groups(tiny_base, tokenizer, tmp_path):
    plain = build(tiny_base, tokenizer, tmp_path / "plain", curriculum=True, max_steps=6)
    plain.train()
    filled = build(tiny_base, tokenizer, tmp_path / "filled", curriculum=True, extra_rollouts=6, max_steps=6)
    seen = []
    trained = filled._compute_loss

    def keep(model, inputs):
        seen.append(inputs["advantages"].view(-1))
        return trained(model, inputs)

    filled._compute_loss = keep
    filled.train()
    assert all((advantages != 0).all() for advantages in seen)  # every row of every group tells something
    assert sum(line.get("curriculum/extra_rollouts", 0) for line in filled.state.log_history) > 0
    assert all(line.get("curriculum/extra_rollouts", 0) == 0 for line in plain.state.log_history)


@pytest.mark.parametrize("extra", [0, 2])
def test_resumed_it_goes_on_as_it_would_have(tiny_base, tokenizer, tmp_path, extra):
    settings = {"curriculum": True, "extra_rollouts": extra, "rehearsed": 4}
    whole = build(tiny_base, tokenizer, tmp_path, **settings)
    whole.train()
    before = build(tiny_base, tokenizer, tmp_path / "again", **settings)
    before.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert before.asked == whole.asked[-len(before.asked) :] and len(before.asked) >= 8 * 4
    ours, theirs = (dict(trainer.model.named_parameters()) for trainer in (before, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    (tmp_path / "checkpoint-4" / "curriculum.json").unlink()
    with pytest.raises(InputError, match="the checkpoint's curriculum cannot be read"):
        build(tiny_base, tokenizer, tmp_path / "torn", **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_groups_are_whole_on_a_device(tiny_base, tokenizer, tmp_path):
    """On two devices eight completions may be two groups of four, or a group and a half each, which TRL would take."""
    trainer = build(tiny_base, tokenizer, tmp_path, curriculum=True)
    trainer.num_generations = 3
    with pytest.raises(InputError, match="a device's 8 completions are no whole groups of 3"):
        trainer._check_groups()


def test_groups_are_replaced_whole_and_padded_on_their_sides():
    def rollout(start, prompt, completion):
        rows = torch.arange(start, start + 6).unsqueeze(1)
        return {
            "prompt_ids": rows.expand(6, prompt).clone(),
            "prompt_mask": torch.ones(6, prompt, dtype=torch.long),
            "completion_ids": rows.expand(6, completion).clone(),
            "completion_mask": torch.ones(6, completion, dtype=torch.long),
            "advantages": rows[:, 0].float(),
            "num_items_in_batch": torch.tensor(6.0),
        }

    differ, good = torch.tensor([True, False, False]), torch.tensor([False, False, True])
    merged, now = replace_groups(rollout(10, 2, 3), differ, rollout(20, 3, 1), good, pad=0)
    assert now.tolist() == [True, True, False]
    assert merged["advantages"].tolist() == [10, 11, 24, 25, 14, 15]
    assert merged["prompt_ids"].tolist() == [[0, n, n] if n < 20 else [n, n, n] for n in (10, 11, 24, 25, 14, 15)]
    assert merged["completion_ids"].tolist() == [[n, n, n] if n < 20 else [n, 0, 0] for n in (10, 11, 24, 25, 14, 15)]
    assert merged["completion_mask"].sum(1).tolist() == [3, 3, 1, 1, 3, 3]
    same, _ = replace_groups(rollout(10, 2, 3), torch.tensor([True] * 3), rollout(20, 3, 1), good, pad=0)
    assert same["prompt_ids"].size(1) == 2
