"""The chunked head is the plain head: same loss, same gradients, less memory."""

import pytest
import torch
import torch.nn.functional as F
from groundup.errors import InputError
from groundup.head import ChunkedCrossEntropy, chunked_loss
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 97}


def model(kind="qwen3", **sizes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, "num_key_value_heads": 2, "head_dim": 16, **sizes})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_loss_and_gradients_by_chunks(chunk):
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 8, dtype=torch.double), torch.randn(31, 8, dtype=torch.double)
    labels = torch.randint(0, 31, (50,))
    labels[::5] = -100
    grads = []
    for chunked in (False, True):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if chunked:
            loss = ChunkedCrossEntropy.apply(h, w, labels, 0.0, chunk)
        else:
            loss = F.cross_entropy(h @ w.T, labels, reduction="sum", ignore_index=-100)
        (loss * 3).backward()
        grads.append((loss.detach().double(), h.grad, w.grad))
    for plain, ours in zip(*grads, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_z_loss_gradient():
    torch.manual_seed(0)
    h, w = torch.randn(12, 6).requires_grad_(), torch.randn(9, 6).requires_grad_()
    labels = torch.randint(0, 9, (12,))
    labels[3] = -100
    ChunkedCrossEntropy.apply(h, w, labels, 0.1, 5).backward()
    ours = h.grad.clone(), w.grad.clone()
    h.grad = w.grad = None
    logits = h @ w.T
    penalty = (logits.logsumexp(-1).square() * (labels != -100)).sum()
    (F.cross_entropy(logits, labels, reduction="sum") + 0.1 * penalty).backward()
    torch.testing.assert_close(ours, (h.grad, w.grad))


@pytest.mark.parametrize("kind", ["qwen3", "llama", "olmo2", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_trains_as_before(kind, tied):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 97} if kind == "gpt2" else {}
    plain, ours = (model(kind, tie_word_embeddings=tied, **sizes) for _ in range(2))
    before = {name: weight.clone() for name, weight in ours.state_dict().items()}
    assert chunked_loss(ours) is ours
    assert all(torch.equal(weight, before[name]) for name, weight in ours.state_dict().items()), "the check must leave no trace"
    plain.eval(), ours.eval()
    tokens = torch.randint(0, 97, (3, 20))
    labels = tokens.clone()
    labels[0, 5:9] = -100
    for items in (None, torch.tensor(40)):
        plain.zero_grad(), ours.zero_grad()
        extra = {} if items is None else {"num_items_in_batch": items}
        a, b = plain(input_ids=tokens, labels=labels, **extra), ours(input_ids=tokens, labels=labels, **extra)
        torch.testing.assert_close(b.loss, a.loss)
        assert b.logits is None
        a.loss.backward(), b.loss.backward()
        for (name, x), y in zip(plain.named_parameters(), ours.parameters(), strict=True):
            torch.testing.assert_close(y.grad, x.grad, rtol=1e-4, atol=1e-6, msg=name)
    torch.testing.assert_close(ours(input_ids=tokens).logits, plain(input_ids=tokens).logits)


def test_bfloat16_autocast_agrees_with_the_plain_head():
    plain, ours = model(), chunked_loss(model())
    tokens = torch.randint(0, 97, (3, 20))
    with torch.autocast("cpu", torch.bfloat16):
        a, b = plain(input_ids=tokens, labels=tokens).loss, ours(input_ids=tokens, labels=tokens).loss
    b.backward()
    torch.testing.assert_close(b, a, rtol=1e-2, atol=1e-2)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in ours.parameters())


def test_z_loss_counts_in_training_only():
    ours = chunked_loss(model(), z_loss=0.5)
    tokens = torch.arange(20).view(2, 10)
    trained = ours.train()(input_ids=tokens, labels=tokens).loss
    judged = ours.eval()(input_ids=tokens, labels=tokens).loss
    assert trained > judged + 1
    torch.testing.assert_close(judged, model().eval()(input_ids=tokens, labels=tokens).loss)


def test_a_soft_cap_is_refused():
    with pytest.raises(InputError, match="chunked_loss"):
        chunked_loss(model("gemma2", final_logit_softcapping=5.0))


def test_the_largest_thing_kept_for_backward_is_not_the_logits():
    ours, plain, tokens = chunked_loss(model(vocab_size=5000)), model(vocab_size=5000), torch.randint(0, 5000, (4, 64))
    largest = {}
    for name, m in (("ours", ours), ("plain", plain)):
        saved = [0]
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.numel()) or t, lambda t: t):
            m(input_ids=tokens, labels=tokens).loss.backward()
        largest[name] = max(saved)
    assert largest["plain"] >= 4 * 63 * 5000
    assert largest["ours"] <= 5000 * 32  # the gradient of the head
