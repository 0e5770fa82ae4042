"""recipes/pretrain.py over two ranks that each hold half of every weight (FSDP2), against one process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from groundup import record
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[1]
# accelerate shards over accelerators only; torch shards over processors as well. This is read by each rank as it starts.
SHARD_ON_CPU = """
import os
if "RANK" in os.environ:
    from accelerate import FullyShardedDataParallelPlugin, state
    begin = state.AcceleratorState.__init__
    def begin_sharded(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        if self.distributed_type == "MULTI_CPU":
            plugin = kwargs.get("fsdp_plugin") or FullyShardedDataParallelPlugin()
            self.distributed_type, self.fsdp_plugin = state.DistributedType.FSDP, plugin
    state.AcceleratorState.__init__ = begin_sharded
"""


def fsdp(kind):
    """accelerate_configs/fsdp2.yaml, as the environment that `accelerate launch` hands on."""
    settings = yaml.safe_load((REPOSITORY / "accelerate_configs" / "fsdp2.yaml").read_text())["fsdp_config"]
    settings["fsdp_state_dict_type"] = kind
    return {"ACCELERATE_USE_FSDP": "true", **{key.upper(): str(value) for key, value in settings.items()}}


def pretrain(config, settings, *launcher, **environment):
    config.write_text(yaml.safe_dump(settings))
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    clean |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    command = [sys.executable, *launcher, REPOSITORY / "recipes" / "pretrain.py", "--config", config]
    done = subprocess.run([str(word) for word in command], env=clean, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def load(directory):
    return AutoModelForCausalLM.from_pretrained(directory).state_dict()


@pytest.mark.parametrize("kind", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_halves_of_weights_learn_what_whole_ones_do_and_go_on(tmp_path, tokenizer, kind):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    documents = [{"text": f"The {n} of {n * 7 % 13} is a number that stands by {n * 5 % 11}. " * 9} for n in range(60)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    settings = {
        "dataset": str(tmp_path / "texts.jsonl"),
        "tokenizer_path": str(tmp_path / "tokenizer"),
        "model_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
        "max_length": 32,
        "muon_learning_rate": 0.02,
        "learning_rate": 0.01,
        "max_steps": 4,
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
    }
    (tmp_path / "sitecustomize.py").write_text(SHARD_ON_CPU)
    whole, halves = ({**settings, "output_dir": str(tmp_path / name)} for name in ("whole", "halves"))
    pretrain(tmp_path / "whole.yaml", {**whole, "per_device_train_batch_size": 4})
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    halved = (tmp_path / "halves.yaml", {**halves, "per_device_train_batch_size": 2}, *launcher)
    environment = {"PYTHONPATH": str(tmp_path), "ACCELERATE_USE_CPU": "true", **fsdp(kind)}
    pretrain(*halved, **environment)

    def losses(name):
        state = json.loads((tmp_path / name / "trainer_state.json").read_text())
        return [line["loss"] for line in state["log_history"] if "loss" in line]

    assert losses("halves") == pytest.approx(losses("whole"), rel=1e-4)
    directory = tmp_path / "halves"
    expected, found = load(tmp_path / "whole"), load(directory)
    assert all((found[name] - expected[name]).abs().max() < 1e-4 for name in expected)
    assert record.read(directory)["parameters"] == record.read(tmp_path / "whole")["parameters"]

    # killed after its second step
    assert (directory / "checkpoint-2" / {"FULL_STATE_DICT": "optimizer.bin", "SHARDED_STATE_DICT": "optimizer_0"}[kind]).exists()
    shutil.rmtree(directory / "checkpoint-4")
    (directory / "model.safetensors").unlink()
    record.write(directory, {**record.read(directory), "status": "running"})
    assert "going on from" in pretrain(*halved, **environment)
    again = load(directory)
    assert all((again[name] - found[name]).abs().max() < 1e-6 for name in expected)
