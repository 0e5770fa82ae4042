"""What GRPO asks before its first step: the table, the verdict, and that asking changes nothing."""

import json

import pytest
import torch
from datasets import Dataset
from groundup.configs import GateArguments
from groundup.errors import InputError
from groundup.gate import Gate, Tried, advice, guessed, summarise, try_out
from groundup.grpo import GRPOTrainer
from groundup.report import write_report
from groundup.scoreboard import gate_table
from transformers import AutoModelForCausalLM
from trl import GRPOConfig

K = 4


def tried(passes, difficulty=None, in_format=None, cut_off=0):
    return Tried(difficulty, [n < passes for n in range(K)], in_format and [True] * K, [n < cut_off for n in range(K)])


def test_shares_by_difficulty():
    found = summarise([tried(0, 1), tried(4, 1), tried(1, 2), tried(2, 2), tried(3, 10)])
    line = found["all"]
    assert (found["prompts"], found["k"]) == (5, K)
    assert line["pass_at_1"]["value"] == 10 / 20 and line["pass_at_k"]["value"] == 4 / 5 and line["mixed"]["value"] == 3 / 5
    assert list(found["by_difficulty"]) == ["1", "2", "10"]
    assert found["by_difficulty"]["2"]["mixed"]["value"] == 1.0 and found["by_difficulty"]["1"]["mixed"]["value"] == 0.0
    low, high = line["pass_at_1"]["low"], line["pass_at_1"]["high"]
    assert low < 0.3 and high > 0.7  # five prompts, not twenty independent answers
    assert "in_format" not in line
    rows = gate_table(found)
    assert [row[0] for row in rows] == ["difficulty", "1", "2", "10", "all"] and "pass@4" in rows[0]


@pytest.mark.parametrize(
    ("some", "said"),
    [
        ([tried(0)] * 3, ["take easier problems"]),
        ([tried(4)] * 3, ["take harder problems"]),
        ([tried(0, cut_off=3)] * 3, ["75% of completions are cut off", "take easier problems"]),
        ([Tried(1, [False] * K, [False] * K, [False] * K)] * 3, ["only 0% state one final answer", "take easier problems"]),
    ],
)
def test_advice_fits_the_cause(some, said):
    found = advice(summarise(some))
    assert len(found) == len(said) and all(words in line for words, line in zip(said, found, strict=True))


def test_a_reward_of_degrees_is_a_signal_though_nothing_passes():
    """A reward model's scores may all be below 0, and length's are."""
    graded = Tried(None, [-3.0, -1.0, float("nan"), -2.0], None, [False] * K)
    flat = Tried(None, [-1.0, -1.0, float("nan"), -1.0], None, [False] * K)
    found = summarise([graded, flat])["all"]
    assert found["pass_at_1"]["value"] == 0.0 and found["mixed"]["value"] == 0.5
    assert not Tried(None, [float("nan")] * K, None, [False] * K).mixed


class Answering(GRPOTrainer):
    """Says the right answer to some prompts, by the number in the prompt, to the first completions of a group."""

    passes = (0, 2)

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        torch.rand(3)  # sampling takes random numbers
        said = []
        for n, ids in enumerate(prompt_ids):
            asked = self.processing_class.decode(ids)
            right = n % K < self.passes["odd" in asked]
            words = self.processing_class("Answer: 7" if right else "no", add_special_tokens=False)["input_ids"]
            said.append([*words, self.processing_class.eos_token_id] if right else words)
        return said, None


def answer_format(completions, **kwargs):
    return [1.0] * len(completions)


def correct(completions, answer, **kwargs):
    return [None if gold is None else float(gold in c[0]["content"]) for c, gold in zip(completions, answer, strict=True)]


def length(completions, **kwargs):
    return [float(len(c[0]["content"]) > 3) for c in completions]


def build(tiny_base, tokenizer, directory, passes=(0, 2), rows=6, answers="7", rewards=(correct, answer_format), **settings):
    """Answers are said in turn; the model says 7."""
    kind = type("Answering", (Answering,), {"passes": passes})
    args = GRPOConfig(
        str(directory),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        max_steps=1,
        per_device_train_batch_size=8,
        steps_per_generation=1,
        num_generations=K,
        max_completion_length=6,
        **settings,
    )
    data = [
        {
            "prompt": [{"role": "user", "content": f"{'odd' if n % 2 else 'even'} {n}"}],
            "answer": answers[n % len(answers)],
            "difficulty": n % 2,
        }
        for n in range(rows)
    ]
    data.append({"prompt": [{"role": "user", "content": "say something odd"}], "answer": None, "difficulty": None})
    return kind(
        model=AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32),
        reward_funcs=list(rewards),
        args=args,
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
    )


def test_the_trainers_own_rollouts_are_tried(tiny_base, tokenizer, tmp_path):
    trainer = build(tiny_base, tokenizer, tmp_path)
    before, numbers = torch.random.get_rng_state(), trainer.state.num_input_tokens_seen
    found = try_out(trainer, prompts=5)
    assert len(found) == 5  # 2 prompts a batch: the third batch is filled up, and what fills it is left out
    assert {(one.difficulty, sum(one.passed)) for one in found} == {(0, 0), (1, 2)}
    assert all(one.cut_off == [not passed for passed in one.passed] and all(one.in_format) for one in found)
    assert torch.equal(torch.random.get_rng_state(), before) and trainer.state.num_input_tokens_seen == numbers
    assert not trainer._metrics["train"] and not trainer._logs["prompt"] and not trainer.model.training
    assert len(try_out(trainer, prompts=100)) == 6  # all there are; the rehearsed prompt has no answer to be right


def test_what_is_right_for_other_prompts_too_is_guessed(tiny_base, tokenizer, tmp_path, capsys):
    """A model that says 7 to everything is right where 7 is the answer, and would be as often at random."""
    trainer = build(tiny_base, tokenizer, tmp_path, passes=(2, 2), answers="78", rows=16)
    trainer.add_callback(Gate(trainer, GateArguments(), tmp_path))
    trainer.train()
    found = json.loads((tmp_path / "gate.json").read_text())
    assert found["signal"] and found["all"]["pass_at_1"]["value"] == 0.25
    assert 0.1 < found["all"]["by_chance"]["value"] < 0.4 and found["all"]["by_chance"]["n"] < 16 * K
    assert "by chance" in gate_table(found)[0] and "what passes may be guessed: 25.0% is right" in capsys.readouterr().out


def test_what_is_right_for_its_own_prompt_alone_is_not_guessed():
    knows = [Tried(None, [1.0, 0.0, 1.0, 0.0], None, [False] * K, [0.0, 0.0, float("nan"), 0.0])] * 8
    found = summarise(knows)
    assert found["all"]["by_chance"]["value"] == 0.0 and found["all"]["by_chance"]["n"] == 24 and guessed(found) == []


def test_guessing_is_asked_of_the_first_reward_alone(tiny_base, tokenizer, tmp_path):
    """The others may be reward models, which cost as much as the rollout."""
    asked = []

    def dear(completions, answer, **kwargs):
        asked.append(answer)
        return [0.0] * len(completions)

    trainer = build(tiny_base, tokenizer, tmp_path, answers="78", rewards=[correct, dear])
    try_out(trainer, prompts=2)  # one batch
    assert len(asked) == 1 and len(trainer.reward_funcs) == 2


def test_reward_that_reads_no_answer_has_no_chance(tiny_base, tokenizer, tmp_path):
    trainer = build(tiny_base, tokenizer, tmp_path, answers="78", rewards=[length])
    assert "by_chance" not in summarise(try_out(trainer, prompts=6))["all"]


def test_gate_lets_a_signal_through_and_the_report_shows_it(tiny_base, tokenizer, tmp_path, capsys):
    directory = tmp_path / "grpo"
    trainer = build(tiny_base, tokenizer, directory)
    trainer.add_callback(Gate(trainer, GateArguments(), directory))
    trainer.train()
    assert trainer.state.global_step == 1
    found = json.loads((directory / "gate.json").read_text())
    assert found["signal"] and found["all"]["mixed"]["value"] == 0.5 and found["advice"] == []
    assert "gate: " in capsys.readouterr().out
    (directory / "run.json").write_text(json.dumps({"schema": 1, "rung": "grpo", "status": "finished"}))
    page = write_report(tmp_path).read_text()
    assert "tries at 6 prompts, and at least once in 4 at" in page and "there was something to learn." in page
    assert "| difficulty | prompts | pass@1 |" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(("passes", "advised"), [((0, 0), "take easier problems"), ((K, K), "take harder problems")])
def test_gate_stops_where_nothing_differs(tiny_base, tokenizer, tmp_path, passes, advised, capsys):
    trainer = build(tiny_base, tokenizer, tmp_path, passes=passes)
    gate = Gate(trainer, GateArguments(), tmp_path)
    trainer.add_callback(gate)
    with pytest.raises(InputError, match="GRPO would have nothing to learn from") as error:
        trainer.train()
    assert advised in error.value.fix and "--force true" in error.value.fix
    assert trainer.state.global_step == 0
    assert not json.loads((tmp_path / "gate.json").read_text())["signal"]
    gate.args.force = True
    trainer.train()
    assert trainer.state.global_step == 1 and "`force` is on" in capsys.readouterr().out


def test_a_run_that_goes_on_is_not_asked_again(tiny_base, tokenizer, tmp_path):
    trainer = build(tiny_base, tokenizer, tmp_path, passes=(0, 0))
    trainer.state.global_step = 3
    Gate(trainer, GateArguments(), tmp_path).on_train_begin(trainer.args, trainer.state, trainer.control)
    trainer.state.global_step = 0
    Gate(trainer, GateArguments(gate_prompts=0), tmp_path).on_train_begin(trainer.args, trainer.state, trainer.control)
    assert not (tmp_path / "gate.json").exists()
