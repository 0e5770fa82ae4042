import pytest
import torch
from groundup.memory import PARTS
from groundup.model import count_parameters
from groundup.step import COMPILED, Step, key_value_bytes, measure, measure_generation, step_flops
from groundup.workload import Workload, read_workload
from transformers import AutoModelForCausalLM, DynamicCache


@pytest.fixture
def load(ladder, monkeypatch):
    """`load(rung, **settings)`: a workload of the small ladder."""
    monkeypatch.chdir(ladder)

    def load(rung: str, **settings) -> Workload:
        overrides = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
        return read_workload(str(ladder / f"{rung}.yaml"), overrides=overrides)

    return load


def total(parts: dict[str, int]) -> int:
    return sum(parts.values())


@pytest.mark.parametrize("rung", ["pretrain", "sft", "reward", "ppo"])
@pytest.mark.parametrize("cuda", [False, True])
def test_every_rung_has_a_step(load, rung, cuda):
    step = Step(load(rung), cuda)
    found = step.memory()
    assert set(found) == set(PARTS) and all(found[part] > 0 for part in ("weights", "optimizer", "activations"))
    policy, trained, everything = step.parameters()
    assert policy == count_parameters(step.policy())
    if rung == "ppo":  # policy and critic are trained; reward and reference models are held
        assert policy < trained < 2.1 * policy < 3.5 * policy < everything
        assert 0 < total(step.generation_memory()) < total(found)
    else:
        assert policy == trained == everything


def test_what_memory_follows(load, monkeypatch):
    """More rows, longer rows, all logits, mixed precision, checkpointing, compilation, another optimizer."""
    monkeypatch.setattr("groundup.head.CHUNK_CUDA", 10_000)  # ten tokens at a time: the vocabulary here is small
    plain = Step(load("pretrain"), cuda=True).memory()
    assert Step(load("pretrain", per_device_train_batch_size=8), True).memory()["activations"] > 1.6 * plain["activations"]
    whole = Step(load("pretrain", chunked_loss="false"), True).memory()
    assert whole["logits"] >= 2 * 4 * 127 * 1000 * 4 > plain["logits"]
    # in bfloat16 a layer's activations are half as large, and its weights are there once more
    assert Step(load("pretrain", bf16="true"), True).memory()["activations"] < 0.9 * plain["activations"]
    checkpointed = Step(load("pretrain", gradient_checkpointing="true"), True).memory()
    assert checkpointed["activations"] < 0.8 * plain["activations"]
    compiled = Step(load("pretrain", torch_compile="true"), True).memory()
    assert compiled["activations"] == pytest.approx(COMPILED[False] * plain["activations"], rel=0.01)
    eight = Step(load("pretrain", optim="adamw_8bit"), True).memory()
    assert eight["optimizer"] == pytest.approx(plain["optimizer"] / 4, rel=0.02)
    once, twice = (Step(load("pretrain", gradient_accumulation_steps=n), True).memory()["gradients"] for n in (1, 2))
    assert once < twice == pytest.approx(plain["weights"], rel=0.02)


def test_muon_keeps_one_number_a_matrix(load):
    step = Step(load("pretrain", muon_learning_rate=0.02), True)
    outside = 1000 * 64 + 64 + sum(p.numel() for p in step.policy().parameters() if p.ndim == 1) - 64
    inside = step.parameters()[0] - outside
    assert step.optimizer_state() == 4 * inside + 8 * outside
    assert step.memory()["optimizer"] == pytest.approx(step.optimizer_state(), rel=0.05)


def test_an_unknown_optimizer_is_not_guessed(load):
    assert Step(load("pretrain", optim="galore_adamw"), True).optimizer_state() is None


def test_rows_without_seams_need_no_mask_and_packed_ones_do(load):
    """A mask of (rows, 1, length, length) numbers a layer is what keeps packed documents apart."""
    wrapped, packed = (Step(load("pretrain", packing=p), True).memory()["activations"] for p in ("wrapped", "best_fit"))
    assert packed - wrapped >= 2 * 4 * 128 * 128 * 4


@pytest.mark.parametrize("mixed", [False, True])
def test_the_share_that_compilation_keeps(mixed):
    """Bytes that autograd saves for the backward pass of one block, eager and through torch's own partitioner."""
    from groundup.model import build_config

    class Vocabulary:
        eos_token_id, pad_token_id = 1, 2

        def __len__(self):
            return 512

    sizes = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = build_config("qwen3", Vocabulary(), sizes, 256)

    def saved(compiled: bool) -> int:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train().model
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        forward = torch.compile(model, backend="aot_eager_decomp_partition") if compiled else model
        sizes = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=mixed),
        ):
            kept = forward(input_ids=torch.full((4, 256), 5), use_cache=False)
        del kept
        return sum(sizes.values())

    assert saved(True) / saved(False) == pytest.approx(COMPILED[mixed], abs=0.05)


def test_keys_and_values_take_what_a_cache_takes(tiny_model):
    cache, ids = DynamicCache(config=tiny_model.config), torch.full((2, 10), 5)
    with torch.no_grad():
        tiny_model(input_ids=ids, past_key_values=cache, use_cache=True)
    held = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
    assert held == 2 * 10 * key_value_bytes(tiny_model.config, 4)


def test_checkpointing_computes_every_forward_pass_twice(load):
    plain, again = load("pretrain"), load("pretrain", gradient_checkpointing="true")
    assert step_flops(again, 10**6, 128) == pytest.approx(4 / 3 * step_flops(plain, 10**6, 128))


def test_timing_leaves_the_generator_where_it_was(load):
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    for budget in (1e12, 1.0):  # the whole step; one row and two layers of it
        forward, update = measure(Step(load("ppo"), False), budget)
        assert 0 < forward < 60 and 0 < update < 60
        assert 0 < measure_generation(Step(load("ppo"), False), budget) < 600
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_model_of_one_layer_is_timed(load):
    one = load(
        "pretrain", model_config='{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}'
    )
    assert all(seconds > 0 for seconds in measure(Step(one, cuda=False), 10.0))
