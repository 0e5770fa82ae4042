import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from groundup import record, stopping
from groundup.chat import END_OF_TEXT, TURN_END
from groundup.configs import DataArguments, ModelArguments, RunArguments
from groundup.errors import InputError
from groundup.hardware import Device
from groundup.preflight import asked_world_size, check_world_size
from groundup.stage import (
    chat_generation_config,
    describe_parent,
    finish,
    resolved,
    save_random_init,
    start,
)
from transformers import TrainingArguments

TWO = str(Path(__file__).parents[1] / "accelerate_configs" / "cpu_2proc.yaml")
ACCELERATE = ["/usr/bin/python", "/venv/bin/accelerate", "launch"]


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        (["bash"], None),
        (["/usr/bin/python", "-m", "pytest"], None),
        (["/usr/bin/python", "/venv/bin/torchrun", "--nproc_per_node", "2", "recipes/sft.py"], None),
        ([*ACCELERATE, "recipes/sft.py"], None),
        ([*ACCELERATE, "--cpu", "--num_processes", "2", "recipes/sft.py"], 2),
        ([*ACCELERATE, "--num-processes", "4", "recipes/sft.py"], 4),
        ([*ACCELERATE, "--num_processes=3", "recipes/sft.py"], 3),
        (["/venv/bin/accelerate-launch", "--num_processes", "2", "recipes/sft.py"], 2),
        ([*ACCELERATE, "--config_file", TWO, "recipes/sft.py"], 2),
        ([*ACCELERATE, f"--config-file={TWO}", "recipes/sft.py"], 2),
        ([*ACCELERATE, "--config_file", TWO, "--num_processes", "1", "recipes/sft.py"], 1),
        ([*ACCELERATE, "--config_file", "/no/such/file.yaml", "recipes/sft.py"], None),
        ([], None),
    ],
)
def test_asked_world_size_is_what_the_launcher_was_told(monkeypatch, line, asked):
    parent = SimpleNamespace(cmdline=lambda: line)
    monkeypatch.setattr(stopping.psutil, "Process", lambda: SimpleNamespace(parent=lambda: parent))
    assert asked_world_size() == asked


def test_no_parent_no_launcher(monkeypatch):
    monkeypatch.setattr(stopping.psutil, "Process", lambda: SimpleNamespace(parent=lambda: None))
    assert asked_world_size() is None


def test_lost_processes_are_refused(monkeypatch):
    alone, pair = SimpleNamespace(world_size=1), SimpleNamespace(world_size=2)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    check_world_size(alone, None)
    check_world_size(alone, 1)
    with pytest.raises(InputError, match="2 processes were asked for and 1 started") as refused:
        check_world_size(alone, 2)
    assert "accelerate_configs/cpu_2proc.yaml" in str(refused.value)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_world_size(pair, 2)
    check_world_size(pair, None)
    with pytest.raises(InputError, match="2 processes were started, but they work as 1 each") as refused:
        check_world_size(alone, 2)
    assert "accelerate_configs/cpu_2proc.yaml" in str(refused.value)


def arguments(directory, **settings):
    return TrainingArguments(output_dir=str(directory), use_cpu=True, report_to="none", **settings)


def test_start_writes_what_is_about_to_run(tmp_path, tiny_base):
    args, data = arguments(tmp_path / "sft", seed=7, learning_rate=3e-4), DataArguments(dataset="a.jsonl")
    run = start("sft", args, data, parent=str(tiny_base))
    entry = json.loads((tmp_path / "sft" / "run.json").read_text())
    assert entry == record.plain(run.record)
    assert (entry["rung"], entry["status"], entry["seed"], entry["world_size"]) == ("sft", "running", 7, 1)
    assert entry["config"]["learning_rate"] == 3e-4 and entry["config"]["dataset"] == "a.jsonl"
    assert entry["parent"]["weights_sha256"] == record.hash_weights(tiny_base)
    assert run.checkpoint is None
    assert args.logging_nan_inf_filter is False


def a_small_pretraining(tmp_path, tokenizer, world, **settings):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = ModelArguments(tokenizer_path=str(tmp_path / "tokenizer"), model_config=sizes, max_length=64)
    data = DataArguments(dataset=str(world / "documents.jsonl"))
    return arguments(tmp_path / "pretrain", max_steps=2), model, data, RunArguments(**settings)


def test_start_writes_down_what_it_foresees(tmp_path, tokenizer, world):
    args, *others = a_small_pretraining(tmp_path, tokenizer, world)
    start("pretrain", args, *others)
    plan = record.read(tmp_path / "pretrain")["plan"]
    assert plan["steps"] == 2 and plan["tokens"] == 2 * args.per_device_train_batch_size * 64
    assert plan["seconds"] > 0 and plan["memory"]["tracked"] > plan["memory"]["parts"]["runtime"] > 0


def test_start_refuses_what_will_not_fit_unless_told_to(tmp_path, tokenizer, world, monkeypatch):
    tiny = Device("this CPU", 2**20, None, None, None, None, kind="cpu")
    monkeypatch.setattr("groundup.plan.this_device", lambda processes: tiny)
    with pytest.raises(InputError, match="pretrain will not fit: it needs about .* of 1 MiB"):
        start("pretrain", *a_small_pretraining(tmp_path, tokenizer, world))
    assert record.read(tmp_path / "pretrain") is None  # nothing is left behind
    run = start("pretrain", *a_small_pretraining(tmp_path, tokenizer, world, check_memory=False))
    assert run.record["plan"]["memory"]["device"] == 2**20


def test_start_seeds_after_it_has_timed_steps(tmp_path, tokenizer, world):
    drawn = []
    for name in "ab":
        args, *others = a_small_pretraining(tmp_path / name, tokenizer, world)
        start("pretrain", args, *(others if name == "a" else ()))  # without them there is nothing to foresee
        drawn.append(torch.rand(4))
    assert torch.equal(*drawn)


def test_start_seeds(tmp_path):
    drawn = []
    for name in "ab":
        start("sft", arguments(tmp_path / name, seed=3))
        drawn.append(torch.rand(4))
    assert torch.equal(*drawn)


def test_finished_rung_ends_the_process_with_success(tmp_path, capsys):
    record.write(tmp_path, {"rung": "sft", "status": "finished", "config": {}})
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(SystemExit) as stopped:
        start("sft", arguments(tmp_path, learning_rate=0.9))
    assert stopped.value.code == 0
    assert "sft: finished already" in capsys.readouterr().out
    assert (tmp_path / "run.json").read_bytes() == before


def test_changed_settings_without_a_checkpoint_start_anew(tmp_path, capsys):
    start("sft", arguments(tmp_path, learning_rate=0.1))
    run = start("sft", arguments(tmp_path, learning_rate=0.2))
    assert run.checkpoint is None and run.record["config"]["learning_rate"] == 0.2
    assert "going on from the beginning" in capsys.readouterr().out


def test_time_of_an_interrupted_run_is_added_up(tmp_path):
    first = start("sft", arguments(tmp_path))
    record.update(tmp_path, seconds=41.5, started="2020-01-01T00:00:00+00:00")
    again = start("sft", arguments(tmp_path))
    assert again.record["seconds"] == 41.5 and again.record["started"] == "2020-01-01T00:00:00+00:00"
    assert again.record["config"] == first.record["config"]


def test_token_is_not_written(tmp_path):
    token = "hf_" + "a" * 34
    assert token not in json.dumps(resolved(arguments(tmp_path, hub_token=token)))


def test_data_is_noted_and_what_was_dropped_is_said(tmp_path, capsys):
    run = start("dpo", arguments(tmp_path))
    some = {"name": "b", "rows": 1200, "dropped": {"chosen equals rejected": 3, "empty chosen": 1000}}
    run.uses([{"name": "a", "dropped": {}}, some], None, [{"name": "c"}])
    assert [entry["name"] for entry in run.data] == ["a", "b", "c"]
    assert record.read(tmp_path)["data"] == run.data  # a resumed run compares
    assert capsys.readouterr().out.splitlines() == [
        "dpo: 3 of 1,200 rows dropped (chosen equals rejected): b",
        "dpo: 1,000 of 1,200 rows dropped (empty chosen): b",
    ]


def test_parent_is_told_apart_by_its_hashes(tiny_base, tmp_path):
    entry = describe_parent(str(tiny_base))
    assert entry["path"] == str(tiny_base)
    assert entry["weights_sha256"] == record.hash_weights(tiny_base) is not None
    assert entry["tokenizer_sha256"] == record.hash_tokenizer(tiny_base) is not None
    assert describe_parent("somebody/model") == {"path": "somebody/model", "weights_sha256": None, "tokenizer_sha256": None}


def a_run(directory):
    return start("pretrain", arguments(directory), DataArguments(dataset="a.jsonl"))


def test_random_init_is_a_stage_of_its_own(tiny_model, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    run, directory = a_run(tmp_path / "pretrain"), tmp_path / "random"
    run.record["hub_model_id"] = "me/pretrain"  # where this run is pushed, and not what it began with
    save_random_init(str(directory), tiny_model, tokenizer, run)
    entry = record.read(directory)
    assert entry["hub_model_id"] is None
    assert (entry["rung"], entry["status"]) == ("random", "finished")
    assert entry["weights_sha256"] == record.hash_weights(directory)
    again = AutoModelForCausalLM.from_pretrained(directory)
    for name, parameter in tiny_model.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter)
    for file in ("README.md", "tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (directory / file).is_file()


def test_random_init_is_kept_once_and_by_one_process(tiny_model, tokenizer, tmp_path, monkeypatch):
    run, directory = a_run(tmp_path / "pretrain"), tmp_path / "random"
    save_random_init(None, tiny_model, tokenizer, run)
    monkeypatch.setenv("RANK", "1")
    save_random_init(str(directory), tiny_model, tokenizer, run)
    assert not directory.exists()
    monkeypatch.setenv("RANK", "0")
    save_random_init(str(directory), tiny_model, tokenizer, run)
    before = record.hash_weights(directory)
    with torch.no_grad():
        tiny_model.model.norm.weight.add_(1.0)
    save_random_init(str(directory), tiny_model, tokenizer, run)  # a run that resumes
    assert record.hash_weights(directory) == before


def test_finish_refuses_a_tokenizer_of_another_model(tiny_model, tokenizer, tmp_path):
    run = a_run(tmp_path)
    tiny_model.resize_token_embeddings(len(tokenizer) + 1)
    trainer = SimpleNamespace(
        args=arguments(tmp_path),
        model=tiny_model,
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        processing_class=tokenizer,
    )
    with pytest.raises(InputError, match="the model has 513 tokens and the tokenizer 512"):
        finish(run, trainer)
    assert record.read(tmp_path)["status"] == "running"
    assert not (tmp_path / "model.safetensors").exists()


def test_pipeline_stops_at_the_end_of_a_turn_or_a_document(tokenizer):
    config = chat_generation_config(tokenizer)
    assert config.eos_token_id == tokenizer.convert_tokens_to_ids([TURN_END, END_OF_TEXT])
    assert config.pad_token_id == tokenizer.pad_token_id not in config.eos_token_id
    assert config.do_sample is False
