"""LoRA at every rung that starts from a model, on plain and quantised weights; an adapter merges into the model it stands for."""

import copy

import pytest
import torch
from groundup import record
from groundup.errors import InputError
from groundup.merging import merge
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from recipes.miniature import run_recipe

LORA = {"use_peft": True, "lora_r": 4, "lora_alpha": 64, "learning_rate": 1e-2, "max_steps": 2}
IDS = torch.arange(5, 45).reshape(2, 20)


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "ppo", "grpo"])
def test_adapter_is_trained_and_merges_into_what_it_stands_for(rungs, tmp_path, name):
    trained = run_recipe(name, tmp_path / name, **{**rungs.settings(name), **LORA})
    weights = load_file(tmp_path / name / "adapter_model.safetensors")
    changed = [key for key, tensor in weights.items() if "lora_B" in key and tensor.abs().max() > 0]
    assert changed and trained.record["status"] == "finished"  # B starts at zero
    merged = merge(tmp_path / name, tmp_path / "merged")
    kind = AutoModelForSequenceClassification if name == "reward" else AutoModelForCausalLM
    model = kind.from_pretrained(merged).eval()
    with torch.no_grad():
        logits = trained.trainer.model.eval()(input_ids=IDS).logits
        torch.testing.assert_close(model(input_ids=IDS).logits, logits, atol=1e-4, rtol=1e-4)
        start = kind.from_pretrained(rungs.settings(name)["model_name_or_path"]).eval()(input_ids=IDS).logits
    assert name == "reward" or (logits - start).abs().max() > 1e-3
    entry = record.read(merged)
    assert entry["rung"] == name and entry["parent"]["weights_sha256"] == record.hash_weights(tmp_path / name)
    assert AutoTokenizer.from_pretrained(merged).chat_template and (merged / "README.md").is_file()
    with pytest.raises(InputError, match="there is something in it already"):
        merge(tmp_path / name, tmp_path / "merged")


def test_reference_of_an_adapter_is_the_model_under_it(rungs, tmp_path):
    """PPO's KL is to the adapter switched off, and at the first rollout it is none."""
    for shared in (False, True):
        settings = {**rungs.settings("ppo"), **LORA, "shared_critic": shared}
        trainer = run_recipe("ppo", tmp_path / f"ppo-{shared}", **settings).trainer
        assert trainer.ref_model is None
        kl = [line["objective/kl"] for line in trainer.state.log_history if "objective/kl" in line]
        assert kl[0] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
@pytest.mark.parametrize("name", ["sft", "dpo", "ppo", "grpo"])
def test_adapter_on_quantised_weights(rungs, tmp_path, name, bits):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install groundup[gpu]")
    # to evaluate on a processor bitsandbytes packs weights in blocks of 64, and the miniature is 32 wide
    settings = {**rungs.settings(name), **LORA, bits: True, "eval_strategy": "no"}
    trained = run_recipe(name, tmp_path / name, **settings)
    assert any(
        type(module).__name__.startswith("Linear") and "bit" in type(module).__name__ for module in trained.trainer.model.modules()
    )
    merged = AutoModelForCausalLM.from_pretrained(merge(tmp_path / name, tmp_path / "merged"))
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}


def test_an_adapter_is_no_model_to_start_from(rungs, tmp_path):
    settings = {**rungs.settings("sft"), **LORA}
    run_recipe("sft", tmp_path / "adapter", **settings)
    for name in ("reward", "dpo", "ppo"):
        further = copy.deepcopy(rungs.settings(name)) | {"model_name_or_path": str(tmp_path / "adapter")}
        with pytest.raises(InputError, match="holds an adapter") as error:
            run_recipe(name, tmp_path / name, **further)
        assert "recipes/merge.py" in error.value.fix


def test_what_cannot_be_merged(rungs, tmp_path):
    with pytest.raises(InputError, match="no adapter"):
        merge(rungs["sft"].directory, tmp_path / "out")
    run_recipe("sft", tmp_path / "adapter", **{**rungs.settings("sft"), **LORA})
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(file.read_text().replace(str(rungs["pretrain"].directory), str(tmp_path / "gone")))
    with pytest.raises(InputError, match="cannot be read"):
        merge(tmp_path / "adapter", tmp_path / "out")
