"""An adapter and the model under it: refused where they no longer belong together (tests/recipes/test_adapters.py has the rest)."""

import shutil

import pytest
from groundup import record
from groundup.errors import InputError
from groundup.merging import merge
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def test_a_model_that_has_changed_since_is_not_merged_with(tiny_base, tokenizer, tmp_path):
    """The rung below was climbed again: the same shapes and other weights, and what came out would be neither model."""
    base, adapter = tmp_path / "sft", tmp_path / "adapter"
    shutil.copytree(tiny_base, base)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM")).save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)
    parent = {"path": str(base), **record.hashes(base)}
    record.write(adapter, {"rung": "sft", "status": "finished", "parent": parent, **record.hashes(adapter)})
    assert record.verify(merge(adapter, tmp_path / "merged")) == []
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError, match="has changed since the adapter was trained on it: weights_sha256"):
        merge(adapter, tmp_path / "again")
    assert not (tmp_path / "again").exists()
