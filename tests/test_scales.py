"""recipes/small and recipes/base: what their comments say of sizes, steps and generations is what the recipes would do."""

from pathlib import Path

import pytest
import torch
import yaml
from groundup.configs import ModelArguments
from groundup.model import HEAD_DIM, config_from_arguments, count_parameters, dial
from transformers import AutoModelForCausalLM

RECIPES = Path(__file__).parents[1] / "recipes"
SCALES = {"small": 1, "base": 8}  # -> GPUs
RUNGS = ("tokenizer", "pretrain", "sft", "reward", "ppo", "grpo")
PARENTS = {"sft": "pretrain", "reward": "sft", "ppo": "sft", "grpo": "ppo"}


def settings(scale, rung):
    return yaml.safe_load((RECIPES / scale / f"{rung}.yaml").read_text())


def text(scale, rung):
    return (RECIPES / scale / f"{rung}.yaml").read_text()


class Vocabulary:
    eos_token_id, pad_token_id = 2, 0

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size


@pytest.mark.parametrize("scale", SCALES)
def test_rungs_follow_from_one_another(scale):
    for rung in RUNGS:
        assert settings(scale, rung)["output_dir"] == f"out/{scale}/{rung}"
    pretrain = settings(scale, "pretrain")
    assert (pretrain["tokenizer_path"], pretrain["dataset"]) == (f"out/{scale}/tokenizer", f"out/{scale}/tokens")
    prepare = settings(scale, "prepare")
    assert (prepare["tokenizer_path"], prepare["output_dir"]) == (pretrain["tokenizer_path"], pretrain["dataset"])
    assert pretrain["max_length"] <= settings(scale, "tokenizer")["max_length"]
    for rung, parent in PARENTS.items():
        assert settings(scale, rung)["model_name_or_path"] == f"out/{scale}/{parent}"
    assert {"model": f"out/{scale}/reward", "weight": 1.0} in settings(scale, "ppo")["rewards"]


@pytest.mark.parametrize(("scale", "parameters", "told"), [("small", 110.1e6, "110M"), ("base", 480.4e6, "0.48B")])
def test_size_is_the_one_told(scale, parameters, told):
    vocabulary = settings(scale, "tokenizer")["vocab_size"]
    known = {key: value for key, value in settings(scale, "pretrain").items() if key in ModelArguments.__dataclass_fields__}
    config = config_from_arguments(ModelArguments(**known), Vocabulary(vocabulary))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert count_parameters(model) == pytest.approx(parameters, rel=1e-2) and told in text(scale, "pretrain")
    assert config.head_dim == 2 * HEAD_DIM == 128 and config.num_attention_heads * 128 == config.hidden_size
    assert vocabulary <= 2**16  # two bytes a token on disk


@pytest.mark.parametrize(("scale", "steps"), [("small", 8400), ("base", 18300)])
def test_schedule_fits_the_steps_of_the_dial(scale, steps):
    pretrain = settings(scale, "pretrain")
    chosen = dial(pretrain["depth"], settings(scale, "tokenizer")["vocab_size"])
    micro = pretrain["per_device_train_batch_size"] * pretrain["max_length"] * SCALES[scale]
    assert chosen.batch_tokens % micro == 0  # the batch is the dial's, not the nearest that fits
    assert chosen.tokens / chosen.batch_tokens == pytest.approx(steps, rel=1e-2) and f"{steps}" in text(scale, "pretrain")
    decay = pretrain["lr_scheduler_kwargs"]["num_decay_steps"]
    assert 0.4 < decay / steps < 0.65 and pretrain["warmup_steps"] + decay < steps
    assert pretrain["warmup_steps"] < 0.02 * steps


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("rung", ["ppo", "grpo"])
def test_generations_are_whole(scale, rung):
    config = settings(scale, rung)
    generated = config["per_device_train_batch_size"] * config["steps_per_generation"] * SCALES[scale]
    assert config["max_steps"] % config["steps_per_generation"] == 0
    assert config["save_steps"] % config["steps_per_generation"] == 0
    generations = config["max_steps"] // config["steps_per_generation"]
    if rung == "grpo":
        tries = config["num_generations"]
        assert generated % tries == 0 and config["per_device_train_batch_size"] * SCALES[scale] % tries == 0
        assert f"{generations} generations of {generated // tries} problems, {tries} tries each" in text(scale, rung)
    else:
        assert f"{generations} generations of {generated} replies" in text(scale, rung)


@pytest.mark.parametrize("scale", SCALES)
def test_training_is_fast_where_it_costs_nothing(scale):
    """What keeps the host from waiting for the GPU within a step of pre-training, and what TRL would compute twice."""
    pretrain = settings(scale, "pretrain")
    assert pretrain["bf16"] and pretrain["torch_compile"] and pretrain["accelerator_config"] == {"non_blocking": True}
    assert pretrain["logging_steps"] >= 10 and pretrain["dataloader_num_workers"] > 0
    assert not {"include_num_input_tokens_seen", "torch_empty_cache_steps"} & set(pretrain)
    for rung in ("sft", "reward", "ppo", "grpo"):
        assert settings(scale, rung)["gradient_checkpointing"] is False and settings(scale, rung)["bf16"]
