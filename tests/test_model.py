import math
from types import SimpleNamespace

import pytest
import torch
from groundup.configs import ModelArguments
from groundup.errors import InputError
from groundup.model import (
    build_config,
    build_model,
    check_model_path,
    config_from_arguments,
    count_parameters,
    dial,
    flops_per_token,
    load_causal_model,
    load_reward_model,
)
from transformers import AutoModelForCausalLM
from trl import ModelConfig

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_under_zero3_random_weights_are_whole(tokenizer, monkeypatch):
    """DeepSpeed cuts them up later; what is drawn into pieces would be lost."""
    ref = "transformers.integrations.deepspeed._hf_deepspeed_config_weak_ref"
    monkeypatch.setattr(ref, lambda: SimpleNamespace(is_zero3=lambda: True, config={}))
    model = build_model(build_config("qwen3", tokenizer, SIZES, max_length=64), seed=0, residual="zero")
    assert model.model.embed_tokens.weight.shape == (len(tokenizer), 32) and not model.model.layers[0].mlp.down_proj.weight.any()


# ---- The dial


def test_dial_by_hand():
    """Depth 4 and 1,000 tokens of vocabulary.

    width = 64 x 4 = 256; inner = 8 x 256 / 3 = 682.7, to the next multiple of 64: 704; heads = 256 / 64 = 4.
    A layer: 4 x 256 x 256 + 3 x 256 x 704 = 262,144 + 540,672 = 802,816; four: 3,211,264; with 1,000 x 256: 3,467,264.
    Tokens = 20 x that = 69,345,280. Batch: (0.0069345280)^0.383 = 0.14906, x 524,288 = 78,150, log2 = 16.25: 2^16.
    Learning rate = 3e-3 x 4 / 4.
    """
    chosen = dial(4, vocab_size=1000)
    assert (chosen.depth, chosen.hidden_size, chosen.intermediate_size, chosen.num_attention_heads) == (4, 256, 704, 4)
    assert (chosen.parameters, chosen.tokens, chosen.batch_tokens) == (3_467_264, 69_345_280, 65_536)
    assert chosen.learning_rate == pytest.approx(3e-3)


def test_dial_further():
    assert dial(4, 1000, tokens_per_parameter=5).tokens == 5 * 3_467_264
    assert dial(1, 1000).learning_rate == 4e-3  # not 12e-3
    assert dial(12, 32768).learning_rate == pytest.approx(1e-3)
    assert 100e6 < dial(12, 32768).parameters < 130e6
    assert dial(3, 1000).intermediate_size == 512  # 8 x 192 / 3 = 512 needs no rounding up
    # At 10^10 tokens the batch is 2^19
    assert dial(1, 1000, tokens_per_parameter=1e10 / dial(1, 1000).parameters).batch_tokens == 2**19


@pytest.mark.parametrize("depth", [0, -1, 1.5, "4", None])
def test_dial_refuses(depth):
    with pytest.raises(InputError, match="is not a positive whole number"):
        dial(depth, 1000)


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
@pytest.mark.parametrize("depth", [1, 3])
def test_model_has_the_parameters_that_the_dial_counts(tokenizer, model_type, depth):
    args = ModelArguments(tokenizer_path="", model_type=model_type, depth=depth)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_from_arguments(args, tokenizer))
    counted = dial(depth, len(tokenizer)).parameters
    assert counted <= count_parameters(model) <= 1.01 * counted  # norms are not counted


# ---- Configurations


def test_configuration_is_the_tokenizers(tokenizer):
    config = build_config("qwen3", tokenizer, SIZES, max_length=128)
    assert config.vocab_size == len(tokenizer) and config.max_position_embeddings == 128
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert config.bos_token_id is None and config.tie_word_embeddings
    assert (config.head_dim, config.num_key_value_heads) == (16, 2)  # else 128 and 32, the defaults of a 4 B model


def test_own_sizes_win_over_what_follows(tokenizer):
    sizes = {**SIZES, "head_dim": 8, "num_key_value_heads": 1, "tie_word_embeddings": False}
    config = build_config("qwen3", tokenizer, sizes, max_length=128)
    assert (config.head_dim, config.num_key_value_heads, config.tie_word_embeddings) == (8, 1, False)
    args = ModelArguments(tokenizer_path="", depth=2, model_config={"num_hidden_layers": 3, "hidden_size": 64})
    config = config_from_arguments(args, tokenizer)
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (3, 64, 384)


def test_longest_sequence(tokenizer):
    args = ModelArguments(tokenizer_path="", depth=1, max_length=64, max_position_embeddings=128)
    assert config_from_arguments(args, tokenizer).max_position_embeddings == 128
    args.max_position_embeddings = None
    assert config_from_arguments(args, tokenizer).max_position_embeddings == 64
    args.max_position_embeddings = 63
    with pytest.raises(InputError, match="`max_position_embeddings: 63` is shorter than `max_length: 64`"):
        config_from_arguments(args, tokenizer)


@pytest.mark.parametrize(
    ("model_type", "sizes", "what"),
    [
        ("qwen33", SIZES, "`model_type: qwen33` is no transformers architecture"),
        ("qwen3", {**SIZES, "hiden_size": 64}, "`hiden_size` is no size of qwen3"),
        ("qwen3", {**SIZES, "num_attention_heads": 3}, "`hidden_size: 32` is not a multiple of `num_attention_heads: 3`"),
    ],
)
def test_configuration_that_cannot_be(tokenizer, model_type, sizes, what):
    with pytest.raises(InputError) as caught:
        build_config(model_type, tokenizer, sizes, 128)
    assert caught.value.what == what


def test_a_size_is_needed(tokenizer):
    with pytest.raises(InputError, match="a random model needs a size"):
        config_from_arguments(ModelArguments(tokenizer_path=""), tokenizer)


# ---- Random weights


@pytest.mark.parametrize("model_type", ["qwen3", "llama", "gpt_neox"])
def test_model_starts_at_chance(tokenizer, model_type):
    model = build_model(build_config(model_type, tokenizer, SIZES, 64), seed=0)
    ids = torch.arange(64).reshape(2, 32)
    with torch.no_grad():
        out = model(input_ids=ids, labels=ids)
    assert out.logits.shape == (2, 32, len(tokenizer)) and model.dtype == torch.float32
    assert abs(out.loss.item() - math.log(len(tokenizer))) < 0.1


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
def test_what_writes_into_the_residual_stream_is_scaled_by_depth(tokenizer, model_type):
    sizes = {**SIZES, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8}
    config = build_config(model_type, tokenizer, sizes, 64)
    scaled, plain = (dict(build_model(config, seed=0, residual=d).named_parameters()) for d in ("depth", "plain"))
    written = [name for name in plain if "o_proj" in name or "down_proj" in name]
    assert len(written) == 16
    for name, weight in plain.items():
        # sqrt(2 x 8) = 4
        torch.testing.assert_close(scaled[name], weight / 4 if name in written else weight)
    std = torch.stack([scaled[name].std() for name in written])
    assert torch.allclose(std, torch.tensor(config.initializer_range / 4), rtol=0.05)
    assert plain["model.embed_tokens.weight"].std().item() == pytest.approx(config.initializer_range, rel=0.05)


def test_spreads_at_birth(tokenizer):
    sizes = {**SIZES, "hidden_size": 64, "tie_word_embeddings": False}
    config = build_config("qwen3", tokenizer, sizes, 64)
    model = build_model(config, 0, "zero", embedding_std=0.8, head_std=0.001)
    assert model.get_input_embeddings().weight.std().item() == pytest.approx(0.8, rel=0.05)
    assert model.lm_head.weight.std().item() == pytest.approx(0.001, rel=0.05)
    silent = [weight for name, weight in model.named_parameters() if name.endswith(("o_proj.weight", "down_proj.weight"))]
    assert silent and not any(weight.any() for weight in silent)
    with pytest.raises(InputError, match="tie_word_embeddings"):
        build_model(build_config("qwen3", tokenizer, SIZES, 64), 0, head_std=0.001)


def test_weights_follow_from_the_seed_and_leave_the_generator_alone(tokenizer):
    config = build_config("qwen3", tokenizer, SIZES, 64)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = build_model(config, seed=7).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second, other = build_model(config, seed=7).state_dict(), build_model(config, seed=8).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


# ---- Counting


def test_tied_parameters_are_counted_once(tokenizer):
    tied, untied = (
        count_parameters(build_model(build_config("llama", tokenizer, {**SIZES, "tie_word_embeddings": tie}, 64), 0))
        for tie in (True, False)
    )
    assert untied - tied == len(tokenizer) * 32
    # two layers of (4 x 32 x 32 + 3 x 32 x 64 + two norms of 32), a norm, and the embedding
    assert tied == 2 * (4 * 32 * 32 + 3 * 32 * 64 + 64) + 32 + len(tokenizer) * 32


def test_flops_by_hand(tokenizer):
    config = build_config("qwen3", tokenizer, SIZES, 64)
    # 6 x 1,000 + 12 x 2 layers x 32 wide x 10 long
    assert flops_per_token(config, 1000, 10) == 6000 + 7680
    config = build_config("qwen3", tokenizer, {**SIZES, "tie_word_embeddings": False}, 64)
    # the lookup of 512 x 32 multiplies nothing
    assert flops_per_token(config, 20_000, 10) == 6 * (20_000 - 512 * 32) + 7680


# ---- Loading


def test_check_model_path(tiny_base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a demo has run, out/nano is there
    check_model_path(str(tiny_base))
    for name in ("user/name", "gpt2"):  # on the Hub, perhaps, which no test can reach
        with pytest.raises(InputError, match=f"no model in `{name}`: it is no directory here, nor in the cache of the Hub"):
            check_model_path(name)
    for path in (str(tmp_path), f"{tmp_path}/missing", "./sft", "out/nano", "out/nano/sft", "~/model", "a/b/c"):
        with pytest.raises(InputError, match="no model in"):
            check_model_path(path)
    for path in (None, ""):
        with pytest.raises(InputError, match="no model to start from"):
            check_model_path(path)


def test_models_are_loaded_in_float32_unless_told_otherwise(tiny_base, tiny_model):
    model = load_causal_model(ModelConfig(model_name_or_path=str(tiny_base)))
    assert model.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_model.parameters(), strict=True))
    assert load_causal_model(ModelConfig(model_name_or_path=str(tiny_base), dtype="bfloat16")).dtype == torch.bfloat16


def test_head_of_a_reward_model_follows_from_its_seed(tiny_base, tiny_model):
    args = ModelConfig(model_name_or_path=str(tiny_base))
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = load_reward_model(args, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    again, other = load_reward_model(args, seed=0), load_reward_model(args, seed=1)
    assert first.score.weight.shape == (1, 32) and first.score.weight.any()
    assert torch.equal(first.score.weight, again.score.weight) and not torch.equal(first.score.weight, other.score.weight)
    assert torch.equal(first.model.embed_tokens.weight, tiny_model.model.embed_tokens.weight)
