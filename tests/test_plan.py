import json
from dataclasses import replace

import pytest
import torch
from groundup import plan as planning
from groundup.configs import DataArguments, ModelArguments, RunArguments
from groundup.errors import InputError
from groundup.hardware import DEVICES, Device
from groundup.plan import SCHEMES, check, foresee, plan, scheme_of_launch, show_parts
from groundup.workload import read_workload
from transformers import TrainingArguments

GPU = DEVICES["H100"]
CPU = Device("this CPU", 8 * 2**30, None, None, None, None, kind="cpu")


@pytest.fixture
def planned(ladder, monkeypatch):
    """`planned(rung, device, world, overrides, **of plan)`: the plan of a rung of the small ladder."""
    monkeypatch.chdir(ladder)

    def planned(rung, device=GPU, world=1, overrides=(), **settings):
        return plan(read_workload(str(ladder / f"{rung}.yaml"), world=world, overrides=overrides), device, **settings)

    return planned


def test_arithmetic_by_hand(planned):
    """Width 64, inner 128, 2 layers, vocabulary 1000, heads of 32, tied.

    A layer: q, k, v, o 4 x 64 x 64 = 16,384; feed-forward 3 x 64 x 128 = 24,576; two norms of 64 and two of 32: 192. Two layers
    82,304; embedding 64,000; last norm 64: 146,368 parameters. A step is 4 rows x 2 micro-batches x 128 tokens = 1,024; ten have
    10,240. FLOPs a token: 6 x 146,368 + 12 x 2 layers x 64 x 128 = 1,074,816. On an H100 in float32 at 50 %: 67e12 x 0.5.
    """
    found = planned("pretrain", mfu=0.5)
    assert (found["parameters"], found["steps"], found["tokens"], found["batch_tokens"]) == (146_368, 10, 10_240, 1_024)
    assert found["flops"] == pytest.approx(10_240 * 1_074_816)
    assert found["seconds"] == pytest.approx(planning.STARTING + 10_240 * 1_074_816 / (67e12 * 0.5))
    assert found["dollars"] == pytest.approx(found["seconds"] / 3600 * 3.00)
    assert planned("pretrain", mfu=0.5, price=7.0)["dollars"] == pytest.approx(found["seconds"] / 3600 * 7)
    # checkpoints at no step (500 is after the end): one at the end, 4 bytes of weights and 8 of AdamW; and the result
    assert found["disk"] == {"checkpoints": (4 + 8) * 146_368, "result": 4 * 146_368}


def test_mixed_precision_has_another_peak(planned):
    slow, fast = (planned("pretrain", overrides=["--bf16", b])["seconds"] - planning.STARTING for b in ("false", "true"))
    assert slow / fast == pytest.approx(989 / 67, rel=0.01)


def test_rewards_read_pairs_and_ppo_its_critic(planned):
    reward, sft = planned("reward"), planned("sft")
    assert reward["batch_tokens"] / 1024 == 2 * sft["batch_tokens"] / 64  # pairs, of up to 1024 tokens unless told otherwise
    ppo = planned("ppo")
    assert ppo["parameters"] < ppo["trained"] < ppo["held"]
    assert ppo["flops"] > 2 * 6 * ppo["parameters"] * ppo["tokens"]
    assert any("decoding" in line for line in ppo["assumed"])


def test_decoding_is_bound_by_launches_then_by_memory(planned):
    """7 steps of 8 completions from rollouts of 16: 3.5 rollouts of 32 tokens, 2 layers of 0.8 ms each."""
    launches = 3.5 * 32 * 2 * planning.LAUNCH
    fast = planned("ppo")
    assert launches < fast["seconds"] - planning.STARTING < launches + 1
    slow = planned("ppo", device=replace(GPU, bandwidth=1e6))
    assert slow["seconds"] > 100 * fast["seconds"]


def test_unknown_is_said_and_not_guessed(planned):
    found = planned("pretrain", device=replace(GPU, dollars=None, fp32=None))
    assert found["seconds"] is None and found["dollars"] is None
    assert any("no peak is known" in line for line in found["unknown"]) and any("--price" in line for line in found["unknown"])
    found = planned("sft", overrides=["--max_steps", "-1"])
    assert found["steps"] is None and found["seconds"] is None and found["tokens"] is None and found["memory"]
    found = planned("pretrain", overrides=["--optim", "galore_adamw"])
    assert any("galore_adamw" in line for line in found["unknown"])


def test_memory_by_part_on_a_gpu_and_on_a_cpu(planned):
    gpu = planned("pretrain")["memory"]
    assert gpu["total"] == sum(gpu["parts"].values()) and gpu["device"] == GPU.memory
    assert gpu["tracked"] == gpu["total"] - planning.CONTEXT  # no tensor, so not what max_memory_allocated counts
    cpu = planned("pretrain", device=CPU, calibrate=False)["memory"]
    assert cpu["tracked"] == cpu["total"] > cpu["parts"]["runtime"] > 100 * 2**20
    assert cpu["parts"]["activations"] == pytest.approx(1.4 * gpu["parts"]["activations"], rel=0.1)


def test_schemes_divide_what_they_say_they_divide(planned):
    found = planned("pretrain", world=8, overrides=["--bf16", "true"])
    schemes = found["memory"]["schemes"]
    assert set(schemes) == set(SCHEMES) and found["memory"]["total"] == schemes["DDP"]
    alone = planned("pretrain", overrides=["--bf16", "true"])["memory"]["total"]
    size = 4 * found["trained"]
    assert schemes["DDP"] == pytest.approx(alone + size + planning.COMMUNICATION, rel=1e-6)  # a copy of the gradients in buckets
    assert schemes["ZeRO-1"] - schemes["ZeRO-2"] == pytest.approx(2 * found["trained"] * 7 / 8, abs=8)
    chosen = planned("pretrain", world=8, overrides=["--bf16", "true"], scheme="FSDP2")["memory"]
    assert chosen["total"] == schemes["FSDP2"] and chosen["parts"]["weights"] == size // 8
    more = planned("pretrain", world=64, overrides=["--bf16", "true"])["memory"]["schemes"]
    assert more["FSDP2"] < schemes["FSDP2"] and more["DDP"] == schemes["DDP"]


def test_a_model_that_does_not_run_without_data_is_said_to_be_unknown(planned, monkeypatch):
    def refuse(self, **_):
        raise planning.UNSUPPORTED[0]("aten.nonzero")

    monkeypatch.setattr(planning.Step, "memory", refuse)
    found = planned("pretrain")
    assert found["memory"] is None and "memory: qwen3" in found["unknown"][0]
    assert check(found) == []


def test_steps_are_timed_on_a_cpu(planned):
    found = planned("pretrain", device=CPU)
    assert found["seconds"] > planning.STARTING and found["dollars"] is None
    assert any("on this machine" in line for line in found["assumed"])
    longer = planned("pretrain", device=CPU, overrides=["--max_steps", "100000"])
    assert longer["seconds"] > 100 * found["seconds"]


def test_planning_waits_for_no_other_process(planned, monkeypatch):
    """One process plans while the others wait to be told: an optimizer that gathers over the ranks must not try to."""
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    monkeypatch.setattr("torch.distributed.all_gather_into_tensor", lambda *_: pytest.fail("it waits"))
    assert planned("pretrain", device=CPU, world=2, overrides=["--muon_learning_rate", "0.02"])["seconds"] > 0
    assert torch.distributed.is_initialized()


def test_a_plan_is_plain_json(planned):
    found = planned("ppo", world=2)
    assert json.loads(json.dumps(found)) == found


# ---- Before step 0


def test_too_little_memory_is_refused_by_part(planned):
    found = planned("pretrain", device=replace(GPU, memory=700 * 2**20), overrides=["--per_device_train_batch_size", "64"])
    with pytest.raises(InputError, match=r"pretrain will not fit: it needs about .* of 700 MiB \(.*runtime 600 MiB") as refused:
        check(found)
    message = str(refused.value)
    assert "pretrain.yaml on H100" in message and "activations" in message
    for change in (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "max_length",
        "check_memory",
    ):
        assert change in message
    found["memory"]["parts"] = {"weights": 2**40, "activations": 2**20}
    with pytest.raises(InputError, match="fsdp2"):
        check(found)


def test_little_memory_is_warned_of(planned):
    found = planned("pretrain")
    assert check(found) == []
    found["memory"]["device"] = int(found["memory"]["total"] / 0.95)
    (warning,) = check(found)
    assert "memory will be tight" in warning


def test_lengths_that_are_only_bounds_do_not_refuse(planned):
    found = planned("sft", device=replace(GPU, memory=2**20))
    (warning,) = check(found)
    assert "will not fit if its rows are as long as they may be" in warning


def test_too_little_disk_is_refused(planned, monkeypatch):
    found = planned("pretrain", overrides=["--save_steps", "2", "--save_total_limit", "2"])
    checkpoints = 3 * (4 + 8) * found["parameters"]  # one more than is kept, while they rotate
    assert found["disk"]["checkpoints"] == checkpoints
    assert planned("pretrain", overrides=["--save_steps", "2"])["disk"]["checkpoints"] == 5 * checkpoints / 3
    assert planned("pretrain", overrides=["--save_strategy", "no"])["disk"]["checkpoints"] == 0
    needed = sum(found["disk"].values())
    monkeypatch.setattr(planning, "free_disk", lambda path: needed - 1)
    with pytest.raises(InputError, match="will not fit on the disk.*checkpoints 5 MiB") as refused:
        check(found)
    assert "save_total_limit" in str(refused.value)
    assert "tight" in check(found, used=1)[0]  # what an interrupted run has written is there already
    assert check(found, used=needed) == []


def a_run(tmp_path, tokenizer, world):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    args = TrainingArguments(output_dir=str(tmp_path / "run"), max_steps=2, use_cpu=True, report_to="none")
    data = DataArguments(dataset=str(world / "documents.jsonl"))
    return args, ModelArguments(tokenizer_path=str(tmp_path / "tokenizer"), model_config=sizes, max_length=64), data


def test_foresee_looks_at_this_machine(tmp_path, tokenizer, world, monkeypatch):
    args, *others = a_run(tmp_path, tokenizer, world)
    found = foresee("pretrain", (args, *others), args)
    assert found["steps"] == 2 and found["seconds"] > 0 and found["memory"]["lengths_counted"]
    assert found["disk"]["tokens"] > 0
    assert foresee("pretrain", (args,), args) is None  # no recipe's arguments
    monkeypatch.setattr(planning, "this_device", lambda processes: replace(CPU, memory=2**20))
    with pytest.raises(InputError, match="pretrain will not fit"):
        foresee("pretrain", (args, *others), args)
    others.append(RunArguments(check_memory=False))
    assert foresee("pretrain", (args, *others), args)["memory"]["device"] == 2**20


def test_foresee_leaves_other_mistakes_to_the_recipe(tmp_path, tokenizer, world):
    args, model, data = a_run(tmp_path, tokenizer, world)
    model.tokenizer_path = str(tmp_path / "nowhere")
    assert foresee("pretrain", (args, model, data), args) is None


def test_scheme_is_what_accelerate_was_told(monkeypatch):
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_ZERO_STAGE"):
        monkeypatch.delenv(name, raising=False)
    assert scheme_of_launch(1) is None and scheme_of_launch(8) == "DDP"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert scheme_of_launch(8) == "FSDP2"
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    assert scheme_of_launch(8) == "ZeRO-3"


def test_parts_in_words():
    assert show_parts({"logits": 2**20, "weights": 0, "activations": 3 * 2**30}) == "activations 3.0 GiB, logits 1 MiB"
