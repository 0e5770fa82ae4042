"""What each rung promises: it trains all of the model and leaves a directory that stands on its own."""

import json
import re
import subprocess
import sys

import pytest
import torch
from groundup import record
from safetensors.torch import load_file

from recipes.miniature import run_recipe

TRAINED = ("pretrain", "sft", "reward", "dpo", "ppo", "grpo")
PARENT = {"sft": "pretrain", "reward": "sft", "dpo": "sft", "ppo": "sft", "grpo": "sft"}
DATA = {
    "pretrain": "documents",
    "sft": "conversations",
    "reward": "preferences",
    "dpo": "preferences",
    "ppo": "prompts",
    "grpo": "problems",
}
# Of vLLM's registry (vllm/model_executor/models/registry.py, 0.22 to 0.31): those that the ladder writes. It serves a model
# `...ForSequenceClassification` as the one `...ForCausalLM` of that name with another head (`_normalize_arch` there).
SERVED_BY_VLLM = {"Qwen3ForCausalLM", "LlamaForCausalLM"}
IDS = torch.arange(5, 45).reshape(2, 20)

# Loads each directory as a stranger would, with nothing of groundup imported.
STRANGER = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, pipeline
out, ids = {}, torch.arange(5, 45).reshape(2, 20)
for directory in sys.argv[1:]:
    reward = "SequenceClassification" in open(directory + "/config.json").read()
    kind = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    with torch.no_grad():
        logits = kind.from_pretrained(directory, dtype=torch.float32).eval()(input_ids=ids).logits
    if reward:
        said = pipeline("text-classification", directory)("Certainly. Ada lives in Dorn.")
    else:
        chat = [{"role": "user", "content": "Where does Ada live?"}]
        said = pipeline("text-generation", directory)(chat, max_new_tokens=8)
    out[directory] = {"logits": logits.tolist(), "said": said}
assert not any(name.startswith("groundup") for name in sys.modules)
print("RESULT" + json.dumps(out))
"""


def start_of(rungs, name):
    """The weights a rung started from."""
    if name == "pretrain":
        return load_file(rungs.root / "random" / "model.safetensors")
    weights = rungs[PARENT[name]].weights()
    if name == "reward":
        from groundup.model import load_reward_model
        from trl import ModelConfig

        arguments = ModelConfig(model_name_or_path=str(rungs["sft"].directory))
        weights = dict(load_reward_model(arguments, seed=0).state_dict().items())
    return weights


@pytest.mark.parametrize("name", TRAINED)
def test_every_parameter_moved(rungs, name):
    after = rungs[name].weights()
    before = start_of(rungs, name)
    assert after.keys() == before.keys() - {"lm_head.weight"}  # tied: stored once
    still = [key for key in after if torch.equal(before[key], after[key])]
    assert not still


@pytest.mark.parametrize("name", TRAINED)
def test_directory_is_complete(rungs, name):
    directory = rungs[name].directory
    needed = {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
        "run.json",
        "trainer_state.json",
    }
    needed |= set() if name == "reward" else {"generation_config.json"}
    assert needed <= {path.name for path in directory.iterdir() if path.stat().st_size}
    assert f"groundup\n- {name}" in (directory / "README.md").read_text().replace("  - ", "- ")


@pytest.mark.parametrize("name", ("tokenizer", "random", *TRAINED))
def test_directory_is_written_in_words_that_transformers_4_knows(rungs, name):
    directory = rungs["pretrain"] and rungs.root / "random" if name == "random" else rungs[name].directory
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    assert settings == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|pad|>",
        "additional_special_tokens": ["<|endoftext|>", "<|im_start|>"],
        "model_max_length": 512,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    if name != "tokenizer":
        config = json.loads((directory / "config.json").read_text())
        assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]


@pytest.mark.parametrize("name", TRAINED)
def test_architecture_is_one_that_vllm_knows_by_name(rungs, name):
    (architecture,) = json.loads((rungs[name].directory / "config.json").read_text())["architectures"]
    assert architecture.replace("ForSequenceClassification", "ForCausalLM") in SERVED_BY_VLLM


@pytest.mark.parametrize("name", TRAINED)
def test_record_says_where_it_came_from(rungs, name):
    trained = rungs[name]
    entry, directory = trained.record, trained.directory
    assert (entry["rung"], entry["status"], entry["seed"], entry["world_size"]) == (name, "finished", 0, 1)
    assert entry["steps"] == entry["config"]["max_steps"] == trained.settings["max_steps"]
    assert entry["weights_sha256"] == record.hash_weights(directory)
    assert entry["tokenizer_sha256"] == record.hash_tokenizer(rungs["tokenizer"].directory)
    assert {"torch", "transformers", "trl", "groundup"} <= entry["versions"].keys()
    assert None not in [entry["versions"][package] for package in ("torch", "transformers", "trl", "groundup")]
    assert entry["data"][0]["sha256"] == sha256(rungs.world / f"{DATA[name]}.jsonl")
    assert entry["parameters"] == sum(parameter.numel() for parameter in trained.trainer.model.parameters())
    assert re.fullmatch(r"[0-9.]+", str(entry["metrics"]["train_loss"])) or name in ("ppo", "grpo")
    if name == "pretrain":
        assert entry["parent"] is None
        assert entry["tokens"] == 4 * 4 * 64 and entry["flops"] > 0
    else:
        parent = rungs[PARENT[name]].directory
        assert entry["parent"] == {
            "path": str(parent),
            "weights_sha256": record.hash_weights(parent),
            "tokenizer_sha256": record.hash_tokenizer(parent),
        }


def sha256(path):
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def strangers(rungs):
    """What a process of its own makes of the directories: logits, and what `pipeline` says."""
    directories = {name: str(rungs[name].directory) for name in TRAINED} | {"random": str(rungs.root / "random")}
    done = subprocess.run([sys.executable, "-c", STRANGER, *directories.values()], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.partition("RESULT")[2])
    return {name: found[directory] for name, directory in directories.items()}


@pytest.mark.parametrize("name", TRAINED)
def test_reloads_with_equal_logits(rungs, strangers, name):
    model = rungs[name].trainer.model.eval()
    with torch.no_grad():
        logits = model(input_ids=IDS).logits
    torch.testing.assert_close(torch.tensor(strangers[name]["logits"]), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ("random", *TRAINED))
def test_pipeline_loads_it(strangers, name):
    (said,) = strangers[name]["said"]
    if name == "reward":
        assert set(said) == {"label", "score"} and isinstance(said["score"], float)
    else:
        *_, user, reply = said["generated_text"]
        assert user["role"] == "user"
        assert reply["role"] == "assistant" and isinstance(reply["content"], str)


@pytest.mark.parametrize("name", TRAINED)
def test_finished_rung_says_so(rungs, name, capsys):
    trained = rungs[name]
    before = sha256(trained.directory / "run.json")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run_recipe(name, trained.directory, **rungs.settings(name))
    assert stopped.value.code == 0
    assert f"{name}: finished already" in capsys.readouterr().out
    assert sha256(trained.directory / "run.json") == before
