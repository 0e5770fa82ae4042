import pytest
import torch
from groundup import memory
from groundup.memory import LiveBytes, largest_layer, peak_of_step
from torch import nn
from transformers import AutoModelForCausalLM

FLOAT = 4


def by_hand(rows: int, wide: int, heap: bool = False, accumulation: int = 1) -> dict[str, int]:
    """x (rows, 8) -> Linear(8, wide) -> relu -> Linear(wide, 1) -> sum, with AdamW."""

    def build():
        return [nn.Sequential(nn.Linear(8, wide, bias=False), nn.ReLU(), nn.Linear(wide, 1, bias=False))]

    return peak_of_step(
        build,
        lambda model: model(torch.zeros(rows, 8)).sum(),
        lambda models: torch.optim.AdamW(models[0].parameters(), fused=True),
        vocab_size=10**9,
        accumulation=accumulation,
        heap=heap,
    )


def test_parts_by_hand():
    """9 x 4096 parameters of 4 bytes; AdamW keeps two numbers each, and a step counter (a block of 512 bytes) a matrix. Rows are
    many, so the peak is in the backward pass of the relu: its output, the gradient that came in, the one that goes out."""
    wide, rows = 4096, 512
    found = by_hand(rows, wide)
    parameters = 9 * wide * FLOAT
    assert found["weights"] == parameters
    assert found["optimizer"] == 2 * parameters + 2 * 512
    assert found["logits"] == 0
    matrix = rows * wide * FLOAT
    small = rows * 8 * FLOAT + 4 * rows * FLOAT
    assert 3 * matrix <= found["activations"] <= 3 * matrix + small


def test_few_rows_leave_the_peak_to_the_optimizer_s_step():
    """All gradients are there then, and hardly an activation."""
    wide = 102_400
    found = by_hand(rows=1, wide=wide)
    assert found["gradients"] == found["weights"] == 9 * wide * FLOAT
    assert found["activations"] < found["weights"] / 2


def test_accumulation_holds_gradients_during_the_next_forward_pass():
    wide = 4096
    assert by_hand(512, wide)["gradients"] < 9 * wide * FLOAT == by_hand(512, wide, accumulation=4)["gradients"]


def test_the_heap_of_a_cpu_holds_more_than_is_asked_for():
    exact, heap = by_hand(512, 4096), by_hand(512, 4096, heap=True)  # blocks of 8 MiB
    assert heap["activations"] == pytest.approx(memory.HEAP * exact["activations"], rel=0.01)
    exact, heap = by_hand(4096, 4096), by_hand(4096, 4096, heap=True)  # of 64 MiB: mapped one by one
    assert heap["activations"] == pytest.approx(exact["activations"], rel=0.01)


def peak_by_profiler(step) -> int:
    """What PyTorch's own profiler saw living at once, in bytes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_a_real_step_takes_what_the_fake_one_did(tiny_model, autocast, monkeypatch):
    # A fake tensor cannot be asked whether rows have seams, so the mask would be made that a real run does without.
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None)
    ids = torch.full((8, 256), 5)

    def loss(model):
        return model(input_ids=torch.full((8, 256), 5), labels=torch.full((8, 256), 5), use_cache=False).loss

    config = tiny_model.config
    build = lambda: [AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()]  # noqa: E731
    found = peak_of_step(build, loss, lambda models: 0, config.vocab_size, autocast)

    def step():
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            value = tiny_model(input_ids=ids, labels=ids, use_cache=False).loss
        value.backward()

    tiny_model.train()
    step()
    tiny_model.zero_grad()
    measured = peak_by_profiler(step)  # without the weights, which were there before
    assert found["activations"] + found["logits"] + found["gradients"] == pytest.approx(measured, rel=0.02)
    assert found["logits"] >= 2 * 8 * 255 * config.vocab_size * FLOAT


def test_what_is_dropped_is_not_counted():
    live = LiveBytes(vocab_size=7, heap=False)
    with live:
        kept = torch.zeros(1024)
        for _ in range(5):
            torch.zeros(1024, 1024)
        torch.zeros(2, 7)
    assert live.now.total() == kept.nbytes
    assert live.peak["activations"] == kept.nbytes + 1024 * 1024 * FLOAT


def test_largest_layer(tiny_model):
    layer = sum(p.numel() for p in tiny_model.model.layers[0].parameters())
    rest = sum(p.numel() for p in tiny_model.parameters()) - 2 * layer
    assert largest_layer(tiny_model) == (layer, rest)
