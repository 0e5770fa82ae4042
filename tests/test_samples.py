"""What the model says while it trains, and that the run is the same without."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from groundup.configs import RunArguments
from groundup.errors import InputError
from groundup.samples import BEGINNING, TOKENS, Samples, prompt_of
from transformers import GenerationConfig, Trainer, TrainingArguments
from trl import GRPOTrainer


class Told:
    """A run that keeps what it says."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture
def train(tiny_base, tokenizer, tmp_path):
    """`train(times, **settings)`: a trainer that has made six steps on rows of a prompt and a reply, with dropout; and its run."""
    from transformers import AutoModelForCausalLM

    def train(times, prepare=lambda trainer: None, **settings):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(tiny_base, attention_dropout=0.3)
        prompt = tokenizer.encode("<|im_start|>user\nWhere does Ada live?<|im_end|>\n<|im_start|>assistant\n")
        reply = tokenizer.encode("Ada lives in Dorn.<|im_end|>")
        ids, labels = prompt + reply, [-100] * len(prompt) + reply
        usual = {
            "max_steps": 6,
            "logging_steps": 6,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        args = TrainingArguments(str(tmp_path / "run"), learning_rate=1e-2, **{**usual, **settings})
        rows = Dataset.from_list([{"input_ids": ids, "labels": labels}] * 64)
        trainer, run = Trainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer), Told()
        trainer.add_callback(Samples(trainer, run, times))
        prepare(trainer)
        trainer.train()
        return trainer, run

    return train


def said(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if "  says: " in line]


def state_of_chance():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_run_is_the_same_with_samples_and_without(train, capsys):
    without, _ = train(0)
    chance = state_of_chance()
    assert said(capsys) == []
    shown, run = train(6)
    assert state_of_chance() == chance
    lines = said(capsys)
    assert [line.split("  ")[0] for line in lines] == [f"step {step}/6" for step in range(1, 7)] and len(set(lines)) == 6
    assert run.lines == ["samples go on from: <|im_start|>user⏎Where does Ada live?<|im_end|>⏎<|im_start|>assistant⏎"]
    one, other = without.model.state_dict(), shown.model.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_it_is_what_generate_says_and_leaves_each_module_in_its_mode(train, tokenizer, capsys):
    trainer, _ = train(2)
    assert [line.split("  ")[0] for line in said(capsys)] == ["step 3/6", "step 6/6"]
    (callback,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, Samples)]
    trainer.model.train()
    trainer.model.model.layers[0].eval()  # as an adapter's reference may be
    modes = [module.training for module in trainer.model.modules()]
    ids = callback.go_on()
    assert [module.training for module in trainer.model.modules()] == modes and len(set(modes)) == 2
    prompt = torch.tensor([callback.prompt])
    settings = GenerationConfig(max_new_tokens=TOKENS, do_sample=False, eos_token_id=tokenizer.eos_token_id)
    expected = trainer.model.eval().generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
    assert ids == expected[0, prompt.size(1) :].tolist()


def test_where_weights_are_sharded_nothing_is_asked(train, capsys):
    def shard(trainer):
        trainer.accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP)
        trainer._inner_training_loop = lambda *args, **kwargs: None
        state = SimpleNamespace(global_step=1, max_steps=6, is_world_process_zero=True)
        samples = Samples(trainer, Told(), 6)
        samples.on_train_begin(trainer.args, state, None, model=trainer.model)
        samples.on_step_end(trainer.args, state, None)
        assert samples.prompt is None and samples.run.lines == []

    train(0, shard)
    assert said(capsys) == []


@pytest.mark.parametrize("first", [True, False])
def test_one_process_speaks(train, capsys, first):
    trainer, _ = train(0)
    samples = Samples(trainer, Told(), 6)
    state = SimpleNamespace(global_step=1, max_steps=6, is_world_process_zero=first)
    samples.on_train_begin(trainer.args, state, None, model=trainer.model)
    samples.on_step_end(trainer.args, state, None)
    assert len(said(capsys)) == len(samples.run.lines) == first


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("Where\x1b[2J?", "\n In Dorn."),
        ([{"role": "user", "content": "Where\x1b[2J?"}], [{"role": "assistant", "content": "\n In Dorn."}]),
    ],
)
def test_rollouts_show_the_newest_completion(capsys, prompt, completion):
    trainer = object.__new__(GRPOTrainer)
    trainer._logs = {"prompt": ["before", prompt], "completion": ["x" * 200, completion]}
    samples = Samples(trainer, Told(), 10)
    for step in range(1, 21):
        samples.on_step_end(None, SimpleNamespace(global_step=step, max_steps=20, is_world_process_zero=True), None)
    lines = said(capsys)
    assert lines[0] == "step 2/20  says: Where\ufffd[2J? => ⏎ In Dorn." and len(lines) == 10


def test_what_comes_before_the_reply():
    ids = list(range(100, 140))
    assert prompt_of({"input_ids": ids}) == prompt_of({"input_ids": ids, "labels": ids}) == ids[:BEGINNING]
    assert prompt_of({"input_ids": np.array(ids), "labels": np.array([-100, *ids[1:]])}) == ids[:BEGINNING]  # a whole document
    assert prompt_of({"input_ids": ids, "labels": [-100] * 20 + ids[20:]}) == ids[:20]
    assert prompt_of({"prompt_ids": ids[:5], "chosen_ids": ids}) == ids[:5]
    assert prompt_of({"chosen_ids": ids, "rejected_ids": ids}) is None
    assert Samples.shown("a" * 200 + "end") == "..." + "a" * 157 + "end"


def test_number_that_cannot_be():
    with pytest.raises(InputError, match="`show_samples: -1`"):
        RunArguments(show_samples=-1)
