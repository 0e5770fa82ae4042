import math
from types import SimpleNamespace

import pytest
import torch
from groundup import pretraining
from groundup.configs import ModelArguments
from groundup.model import count_parameters, dial, flops_per_token
from groundup.pretraining import PretrainTrainer, apply_dial
from transformers import Trainer, TrainingArguments

LENGTH = 16


def arguments(**settings):
    return TrainingArguments("unused", use_cpu=True, **settings)


def model_arguments(**settings):
    return ModelArguments(tokenizer_path="somewhere", **{"max_length": 256, **settings})


def test_dial_sets_what_is_left_open():
    args, chosen = arguments(per_device_train_batch_size=4), dial(2, 832)
    apply_dial(args, model_arguments(depth=2), 832)
    assert args.learning_rate == chosen.learning_rate
    assert args.gradient_accumulation_steps == max(1, round(chosen.batch_tokens / (4 * 256)))
    step = 4 * 256 * args.gradient_accumulation_steps
    assert abs(args.max_steps * step - chosen.tokens) <= step / 2


def test_dial_leaves_what_the_yaml_says():
    args = arguments(learning_rate=0.5, gradient_accumulation_steps=3, max_steps=7)
    apply_dial(args, model_arguments(depth=2), 832)
    assert (args.learning_rate, args.gradient_accumulation_steps, args.max_steps) == (0.5, 3, 7)
    epochs = arguments(num_train_epochs=2)
    apply_dial(epochs, model_arguments(depth=2), 832)
    assert epochs.max_steps == -1  # epochs were asked for


def test_without_depth_nothing_is_set():
    args = arguments()
    apply_dial(args, model_arguments(model_config={"hidden_size": 32}), 832)
    assert args.to_dict() == arguments().to_dict()


def test_more_tokens_a_parameter_are_more_steps():
    few, many = arguments(), arguments()
    apply_dial(few, model_arguments(depth=2, tokens_per_parameter=10.0), 832)
    apply_dial(many, model_arguments(depth=2, tokens_per_parameter=40.0), 832)
    tokens = [a.max_steps * a.gradient_accumulation_steps for a in (few, many)]
    assert tokens[1] == pytest.approx(4 * tokens[0], rel=0.01)


def build(model, directory, **settings):
    args = TrainingArguments(
        str(directory),
        use_cpu=True,
        max_steps=3,
        logging_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        save_strategy="no",
        report_to="none",
        **settings,
    )
    rows = [{"input_ids": torch.arange(i, i + LENGTH), "labels": torch.arange(i, i + LENGTH)} for i in range(5, 17)]
    return PretrainTrainer(
        model=model, args=args, train_dataset=rows, eval_dataset=rows[:4], block_length=LENGTH, bytes_per_token=3.5
    )


def test_what_is_logged(tiny_model, tmp_path):
    trainer = build(tiny_model, tmp_path, eval_strategy="steps", eval_steps=2)
    trainer.train()
    steps = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["tokens"] for line in steps] == [64, 128, 192]
    assert "tokens_per_second" not in steps[0]  # warm-up and compilation
    assert all(line["tokens_per_second"] > 0 for line in steps[1:])
    assert not any("mfu" in line for line in steps)  # a CPU's peak is not known
    held_out = [line for line in trainer.state.log_history if "eval_loss" in line]
    assert [line["step"] for line in held_out] == [2, 3]
    for line in held_out:
        assert line["eval_bits_per_byte"] == pytest.approx(line["eval_loss"] / math.log(2) / 3.5)
    assert trainer.tokens == 192
    assert trainer.flops == 192 * flops_per_token(tiny_model.config, count_parameters(tiny_model), LENGTH)


def test_evaluation_and_saving_are_not_counted_as_training(tiny_model, tmp_path, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(pretraining, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def takes(seconds):
        def method(self, *args, **kwargs):
            clock.now += seconds

        return method

    monkeypatch.setattr(Trainer, "evaluate", takes(5.0))
    monkeypatch.setattr(Trainer, "_save_checkpoint", takes(3.0))
    trainer = build(tiny_model, tmp_path)
    clock.now += 4.0
    trainer.evaluate()
    trainer._save_checkpoint(None, None)
    trainer.state.global_step = 2
    logs = {"loss": 1.0}
    trainer.log(logs)
    assert logs["tokens_per_second"] == pytest.approx(2 * 64 / 4.0)
    clock.now += 1.0  # and the pause is forgotten
    trainer.state.global_step = 3
    logs = {"loss": 1.0}
    trainer.log(logs)
    assert logs["tokens_per_second"] == pytest.approx(64 / 1.0)


def test_mfu_is_the_share_of_the_peak(tiny_model, tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(pretraining, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    trainer = build(tiny_model, tmp_path)
    trainer._peak = 1e9
    clock.now, trainer.state.global_step = 2.0, 1
    logs = {"loss": 1.0}
    trainer.log(logs)
    per_token = flops_per_token(tiny_model.config, count_parameters(tiny_model), LENGTH)
    assert logs["mfu"] == pytest.approx(64 / 2.0 * per_token / 1e9)
