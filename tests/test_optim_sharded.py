"""MuonAdamW over two ranks (gloo), each with a copy as under DDP or with a part as under FSDP2, does what it does alone."""

import copy
import json

import pytest
import torch
from groundup.head import chunked_loss
from groundup.optim import MuonAdamW
from torch import distributed

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 88,  # 44 rows a rank
    "num_hidden_layers": 3,  # as many matrices of a shape as do not divide by two
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
SHAPES = 3  # of the matrices in the blocks: square, wide, tall


def build():
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **SIZES))


def shard(model):
    """As accelerate does it: each block, then norm, embedding and head together, then what is left."""
    from torch.distributed.fsdp import fully_shard

    mesh = distributed.device_mesh.init_device_mesh("cpu", (distributed.get_world_size(),))
    for block in model.model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard([model.model.norm, model.model.embed_tokens, model.lm_head], mesh=mesh, reshard_after_forward=False)
    return fully_shard(model, mesh=mesh)


def learn(model, optimizer, step):
    ids = torch.randint(2, 64, (2, 16), generator=torch.Generator().manual_seed(step))  # the same on both ranks
    optimizer.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


def farthest(model, other):
    """Largest difference of any two weights."""
    from torch.distributed.tensor import DTensor

    others = (p.full_tensor() if isinstance(p, DTensor) else p for p in other.parameters())
    return max((a - b).abs().max().item() for a, b in zip(model.parameters(), others, strict=True))


def work(rank, directory):
    from torch.distributed.checkpoint import state_dict
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.debug import CommDebugMode

    alone, start = build(), build()
    optimizer = MuonAdamW(alone, weight_decay=0.1)
    steps = []
    for step in range(3):
        learn(alone, optimizer, step)
        steps.append(copy.deepcopy(alone))
    pairs = zip(start.parameters(), alone.parameters(), strict=True)
    found = {"moved": min((a - b).abs().max().item() for a, b in pairs)}

    distributed.init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=2)
    copied, split = build(), shard(build())
    optimizers = {model: MuonAdamW(model, weight_decay=0.1) for model in (copied, split)}
    for step in range(2):
        for model, optimizer in optimizers.items():
            learn(model, optimizer, step)
    found["split"] = all(isinstance(parameter, DTensor) for parameter in split.parameters())
    found["apart"] = farthest(steps[1], split)
    found["apart_copied"] = farthest(steps[1], copied)

    # A checkpoint as FSDP2 writes it, and a third step by the optimizer that read it
    full = state_dict.StateDictOptions(full_state_dict=True)
    weights, state = state_dict.get_state_dict(split, optimizers[split], options=full)
    again = shard(build())
    resumed = MuonAdamW(again, lr=9.0, adamw_lr=9.0)
    state_dict.set_state_dict(again, resumed, model_state_dict=weights, optim_state_dict=state, options=full)
    learn(again, resumed, 2)
    found["apart_resumed"] = farthest(steps[2], again)

    # The chunked loss reads the head's weight without calling the head: it must be whole then, and its gradient come back in parts
    apart = 0.0
    for model in (one := chunked_loss(build()), parts := shard(chunked_loss(build()))):
        ids = torch.arange(2, 34).view(2, 16)
        model(input_ids=ids, labels=ids).loss.backward()
    for parameter, part in zip(one.parameters(), parts.parameters(), strict=True):
        apart = max(apart, (parameter.grad - part.grad.full_tensor()).abs().max().item())
    found["apart_gradients"] = apart

    for model, name in ((split, "messages"), (copied, "messages_copied")):
        with CommDebugMode() as talk:
            optimizers[model].step()
        found[name] = talk.get_total_counts()
    if rank == 0:
        (directory / "found.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sharded")
    torch.multiprocessing.spawn(work, args=(directory,), nprocs=2)
    return json.loads((directory / "found.json").read_text())


def test_step_on_parts_is_the_step_on_the_whole(found):
    assert found["split"] and found["moved"] > 1e-3
    assert found["apart"] < 1e-5


def test_step_on_copies_is_the_step_of_one(found):
    assert found["apart_copied"] < 1e-5


def test_state_of_parts_is_saved_and_read(found):
    assert found["apart_resumed"] < 1e-5


def test_chunked_loss_of_parts_has_the_gradients_of_the_whole(found):
    assert found["apart_gradients"] < 1e-5


def test_each_shape_travels_once_there_and_once_back(found):
    """Newton-Schulz needs whole matrices. Were it left to DTensor, each of its iterations would gather the stack anew."""
    assert found["messages"] <= 2 * SHAPES
    assert found["messages_copied"] <= SHAPES
