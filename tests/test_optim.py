import copy

import pytest
import torch
from groundup.optim import MuonAdamW, orthogonalise


class Toy(torch.nn.Module):
    """An embedding, two blocks' worth of matrices of three shapes, a norm, a bias and a head of its own."""

    def __init__(self, tied=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(11, 8)
        self.wide = torch.nn.Linear(8, 16)
        self.narrow = torch.nn.Linear(16, 8, bias=False)
        self.square = torch.nn.Linear(8, 8, bias=False)
        self.square_too = torch.nn.Linear(8, 8, bias=False)
        self.norm = torch.nn.LayerNorm(8)
        self.lm_head = torch.nn.Linear(8, 11, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        x = x + self.narrow(torch.tanh(self.wide(self.norm(x))))
        return self.lm_head(x + self.square_too(self.square(x)))

    def learn(self, optimizer, step):
        ids = torch.randint(0, 11, (4, 9), generator=torch.Generator().manual_seed(step))
        loss = torch.nn.functional.cross_entropy(self(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()


MATRICES = {"wide.weight", "narrow.weight", "square.weight", "square_too.weight"}


def names(model, optimizer, muon):
    ids = {id(p) for group in optimizer.param_groups if group["muon"] == muon for p in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in ids}


# ---- Newton-Schulz


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 16, 64), (3, 64, 16), (2, 5, 5)])
def test_orthogonal_means_singular_values_near_one(shape):
    torch.manual_seed(0)
    gradients = torch.randn(shape) * torch.logspace(-6, 6, shape[0]).view(-1, 1, 1)
    result = orthogonalise(gradients)
    assert result.shape == gradients.shape
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.3 and values.max() < 1.3
    # and the directions are the gradient's own: U V^T of its singular value decomposition, roughly
    u, _, v = torch.linalg.svd(gradients, full_matrices=False)
    cosine = (result * (u @ v)).sum((-2, -1)) / (result.norm(dim=(-2, -1)) * (u @ v).norm(dim=(-2, -1)))
    assert cosine.min() > 0.95


@pytest.mark.parametrize("rank", [1, 2, 8, 16])
@pytest.mark.parametrize("decay", [0.0, 3.0])
def test_iterating_on_the_gram_matrix_is_iterating_on_the_matrix(rank, decay):
    """Also where singular values span decades, or are zero but for rounding."""
    torch.manual_seed(0)
    sizes = 10.0 ** -torch.linspace(0, decay, rank)
    gradients = (torch.randn(10, 16, rank) * sizes) @ torch.randn(10, rank, 64)
    x = gradients.double()
    x = x / x.norm(dim=(-2, -1), keepdim=True)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    off = (orthogonalise(gradients).double() - x).norm(dim=(-2, -1)) / x.norm(dim=(-2, -1))
    assert off.max() < 0.01


def test_matrices_of_a_stack_do_not_see_each_other():
    torch.manual_seed(0)
    gradients = torch.randn(3, 8, 4)
    one_by_one = torch.cat([orthogonalise(gradient[None]) for gradient in gradients])
    torch.testing.assert_close(orthogonalise(gradients), one_by_one)


def test_no_gradient_stays_none():
    assert orthogonalise(torch.zeros(1, 4, 4)).eq(0).all()


# ---- What goes where


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_head_norms_and_biases_are_not_muons(tied):
    model = Toy(tied)
    optimizer = MuonAdamW(model)
    assert names(model, optimizer, muon=True) == MATRICES
    assert names(model, optimizer, muon=False) == {name for name, _ in model.named_parameters()} - MATRICES
    assert "embed.weight" in names(model, optimizer, muon=False)


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
@pytest.mark.parametrize("tie", [True, False])
def test_of_a_language_model_the_matrices_in_the_blocks_are_muons(tokenizer, model_type, tie):
    from groundup.model import build_config, build_model

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = build_model(build_config(model_type, tokenizer, {**sizes, "tie_word_embeddings": tie}, 64), seed=0)
    optimizer = MuonAdamW(model)
    muons = names(model, optimizer, muon=True)
    assert len(muons) == 2 * 7 and all(name.startswith("model.layers.") and name.endswith("proj.weight") for name in muons)
    assert muons | names(model, optimizer, muon=False) == {name for name, _ in model.named_parameters()}


def test_head_of_a_reward_model_is_not_muons(tiny_base):
    from groundup.model import load_reward_model
    from trl import ModelConfig

    model = load_reward_model(ModelConfig(model_name_or_path=str(tiny_base)), seed=0)
    assert "score.weight" in names(model, MuonAdamW(model), muon=False)


def test_frozen_parameters_are_left_out():
    model = Toy()
    model.embed.requires_grad_(False)
    model.wide.requires_grad_(False)
    optimizer = MuonAdamW(model)
    before = copy.deepcopy(model.state_dict())
    model.learn(optimizer, 0)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name, _ in model.named_parameters()} - {"embed.weight", "wide.weight", "wide.bias"}
    for module in (model.norm, model.lm_head):
        module.requires_grad_(False)
    assert [group["muon"] for group in MuonAdamW(model).param_groups] == [True]  # no group without parameters


# ---- The updates are PyTorch's


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_muon_is_torch_optim_muon(monkeypatch, weight_decay):
    """Same momentum, Nesterov step, scale and decay. PyTorch's iterates in bfloat16: here in float32, as ours on a CPU."""
    ours, theirs = Toy(), Toy()
    optimizer = MuonAdamW(ours, lr=0.02, momentum=0.9, weight_decay=weight_decay)
    matrices = [parameter for name, parameter in theirs.named_parameters() if name in MATRICES]
    reference = torch.optim.Muon(matrices, lr=0.02, momentum=0.9, weight_decay=weight_decay)
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    start = copy.deepcopy(dict(theirs.named_parameters()))
    for step in range(4):
        torch.manual_seed(step)
        for (name, mine), their in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            mine.grad, their.grad = None, None
            if name in MATRICES:
                mine.grad = torch.randn_like(mine)
                their.grad = mine.grad.clone()
        optimizer.step()
        reference.step()
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter, dict(theirs.named_parameters())[name], rtol=1e-4, atol=1e-5)
    for name in MATRICES:
        assert (start[name] - dict(ours.named_parameters())[name]).norm() > 0.05


def test_the_rest_is_torch_optim_adamw():
    ours, theirs = Toy(), Toy()
    optimizer = MuonAdamW(ours, adamw_lr=3e-3, betas=(0.8, 0.95))
    rest = [parameter for name, parameter in theirs.named_parameters() if name not in MATRICES]
    reference = torch.optim.AdamW(rest, lr=3e-3, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0)
    for step in range(5):
        torch.manual_seed(step)
        for (name, mine), their in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            mine.grad = their.grad = None
            if name not in MATRICES:
                mine.grad = torch.randn_like(mine)
                their.grad = mine.grad.clone()
        optimizer.step()
        reference.step()
    for (name, mine), their in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, their, msg=name)
        assert torch.equal(mine, Toy().get_parameter(name)) == (name in MATRICES)


def test_first_step_by_hand():
    """AdamW's first step is the learning rate in the gradient's sign; Muon's has singular values of about the rate, for a
    matrix of 16 x 8 times sqrt(16 / 8)."""
    model = Toy()
    before = copy.deepcopy(dict(model.named_parameters()))
    model.learn(MuonAdamW(model, lr=0.02, adamw_lr=1e-3), 0)
    after = dict(model.named_parameters())
    for name in ("norm.weight", "wide.bias", "lm_head.weight"):
        moved = before[name] - after[name]
        torch.testing.assert_close(moved, 1e-3 * after[name].grad.sign(), rtol=1e-2, atol=1e-6)
    for name, scale in (("square.weight", 1.0), ("narrow.weight", 1.0), ("wide.weight", 2**0.5)):
        values = torch.linalg.svdvals(before[name] - after[name]) / (0.02 * scale)
        # of a matrix whose gradient lacks full rank the small ones stay small
        assert 0.65 < values.max() < 1.3 and values.median() > 0.3, name


def test_it_learns():
    model = Toy()
    optimizer = MuonAdamW(model, lr=0.02, adamw_lr=1e-2)
    losses = [model.learn(optimizer, 0) for _ in range(40)]
    assert losses[-1] < 0.6 * losses[0]


# ---- What the Trainer does with an optimizer


def test_saved_and_loaded_it_goes_on_identically(tmp_path):
    model = Toy()
    optimizer = MuonAdamW(model, weight_decay=0.1)
    for step in range(3):
        model.learn(optimizer, step)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    losses = [model.learn(optimizer, step) for step in range(3, 8)]

    saved = torch.load(tmp_path / "state.pt", weights_only=True)  # as the Trainer loads it
    again = Toy()
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    again.load_state_dict(saved["model"])
    resumed = MuonAdamW(again, lr=9.0, adamw_lr=9.0, momentum=0.0)  # what was saved counts
    resumed.load_state_dict(saved["optimizer"])
    assert [again.learn(resumed, step) for step in range(3, 8)] == losses
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_schedule_moves_both_rates():
    model = Toy()
    optimizer = MuonAdamW(model, lr=0.02, adamw_lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    model.learn(optimizer, 0)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.005]


def test_parameters_without_a_gradient_stay():
    model = Toy()
    optimizer = MuonAdamW(model)
    optimizer.step()
    assert not optimizer.state and all(torch.equal(a, b) for a, b in zip(model.parameters(), Toy().parameters(), strict=True))


def test_closure_gives_its_loss():
    model = Toy()
    optimizer = MuonAdamW(model)

    def closure():
        optimizer.zero_grad()
        loss = (model.wide.weight**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == pytest.approx((Toy().wide.weight ** 2).sum().item())
    assert not torch.equal(model.wide.weight, Toy().wide.weight)


# ---- Blocks


def test_blocks_are_orthogonal_by_themselves_and_the_norm_is_that_of_the_whole():
    torch.manual_seed(0)
    gradients = torch.randn(2, 32, 16)
    result = orthogonalise(gradients, block=8)
    alone = torch.stack([orthogonalise(block[None])[0] for block in gradients.view(8, 8, 16)]).view(2, 32, 16)
    torch.testing.assert_close(result / result.norm(), alone / alone.norm())
    values = torch.linalg.svdvals(result.view(8, 8, 16))
    assert values.max() / values.min() < 2
    whole = orthogonalise(gradients).norm(dim=(-2, -1))
    torch.testing.assert_close(result.norm(dim=(-2, -1)), whole, rtol=0.2, atol=0)


def test_a_block_that_does_not_divide_leaves_the_matrix_whole():
    gradients = torch.randn(1, 12, 8)
    assert torch.equal(orthogonalise(gradients, block=5), orthogonalise(gradients))
    assert torch.equal(orthogonalise(gradients, block=12), orthogonalise(gradients))


def test_what_writes_into_the_stream_is_taken_by_columns():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj = torch.nn.Linear(8, 8, bias=False)
            self.o_proj = torch.nn.Linear(8, 8, bias=False)

    torch.manual_seed(0)
    model = Block()
    optimizer = MuonAdamW(model, lr=1.0, block=4)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.randn(8, 8)
    update = {
        name: orthogonalise(weight.grad.lerp(weight.grad * 0.05, 0.95)[None], 4)[0] for name, weight in model.named_parameters()
    }
    turned = model.o_proj.weight.grad.mT
    update["o_proj.weight"] = orthogonalise(turned.lerp(turned * 0.05, 0.95)[None], 4)[0].mT
    optimizer.step()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(before[name] - weight, update[name], msg=name)
