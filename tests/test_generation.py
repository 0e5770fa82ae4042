import pytest
import torch
from groundup.generation import RoomyLayer, generate, roomy_cache, staged
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GenerationConfig

SIZES = {"vocab_size": 24, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}
PAD, ENDS = 0, [1, 2, 5, 7, 11, 13, 17]


def build(kind: str = "qwen3", **others):
    torch.manual_seed(0)
    sizes = SIZES | {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False} | others
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).eval()
    with torch.no_grad():  # from birth all logits are near 0: greedy rows would hang on rounding
        model.get_output_embeddings().weight.mul_(40)
    model.generation_config = GenerationConfig(eos_token_id=ENDS, pad_token_id=PAD)
    return model


def prompts(lengths, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in zip(ids, lengths, strict=True):
        row[len(row) - length :] = torch.randint(3, 24, (length,), generator=generator)
    return ids, (ids != PAD).long()


def passes(model, function) -> list[tuple[int, int]]:
    """Rows and tokens of each pass through the model's layers while `function` runs."""
    seen = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    function()
    hook.remove()
    return seen


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2", "gemma3_text"])
def test_greedy_rows_are_those_of_generate(kind):
    more = {"n_embd": 32, "n_layer": 2, "n_head": 4} if kind == "gpt2" else {}
    more |= {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]} if kind == "gemma3_text" else {}
    model = build(kind, **more)
    ids, mask = prompts([3, 9, 9, 5, 1, 7, 2, 4])
    ids[1], mask[1] = ids[2], mask[2]
    for count in (1, 7, 8, 50):
        # the penalty keeps a row from saying one token for ever, and reads all that was said before
        config = GenerationConfig(max_new_tokens=count, do_sample=False, repetition_penalty=1.5)
        expected = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        assert torch.equal(generate(model, ids, mask, config), expected)
    assert len({int((row != PAD).sum()) for row in expected[:, 9:]}) > 2  # or nothing was tested of rows that leave


def test_rows_that_have_ended_leave():
    model = build()
    ids, mask = prompts([5] * 40)
    config = GenerationConfig(max_new_tokens=40, do_sample=True)
    seen = passes(model, lambda: generate(model, ids, mask, config))
    rows = [row for row, _ in seen]
    assert rows[0] == 40 and rows == sorted(rows, reverse=True) and rows[-1] < 20


def test_equal_prompts_are_read_once():
    model = build()
    ids, mask = (x.repeat_interleave(8, 0) for x in prompts([9, 4]))
    config = GenerationConfig(max_new_tokens=3, do_sample=False, suppress_tokens=ENDS)
    seen = passes(model, lambda: generate(model, ids, mask, config))
    assert seen == [(2, 8), (16, 1), (16, 1), (16, 1)]


def test_samples_are_of_the_models_distribution():
    model = build()
    ids, mask = (x.repeat_interleave(4000, 0) for x in prompts([6]))
    torch.manual_seed(0)
    config = GenerationConfig(max_new_tokens=2, do_sample=True, top_k=0, temperature=2.0)
    found = generate(model, ids, mask, config)[:, 6:]
    with torch.no_grad():
        first = (model(ids[:1]).logits[0, -1] / 2).softmax(-1)
        token = int(first[3:].argmax()) + 3
        second = (model(torch.cat([ids[:1], torch.tensor([[token]])], 1)).logits[0, -1] / 2).softmax(-1)
    rows = found[found[:, 0] == token]
    assert len(rows) > 300
    for tokens, chances in ((found[:, 0], first), (rows[:, 1], second)):
        share = torch.bincount(tokens, minlength=24) / len(tokens)
        assert ((share - chances).abs() < 4.5 * (chances * (1 - chances) / len(tokens)).sqrt() + 1e-3).all()


def test_a_token_is_written_and_the_rest_stays_where_it_is():
    layer, plain = RoomyLayer(40), DynamicCache(config=build().config).layers[0]
    torch.manual_seed(0)
    places = []
    for step in range(30):
        new = torch.randn(3, 2, 4 if step == 0 else 1, 8), torch.randn(3, 2, 4 if step == 0 else 1, 8)
        for ours, theirs in zip(layer.update(*new), plain.update(*new), strict=True):
            assert torch.equal(ours, theirs)
        places.append(layer.keys.data_ptr())
        if step == 20:
            layer.batch_select_indices(torch.tensor([2, 0, 0]))
            plain.batch_select_indices(torch.tensor([2, 0, 0]))
    assert len(set(places)) == 2
    assert layer.get_seq_length() == plain.get_seq_length() == 33


def test_modes_it_does_not_understand_are_left_to_generate(monkeypatch):
    model = build()
    ids, mask = prompts([3, 5])
    own, calls = type(model).generate, []
    monkeypatch.setattr(type(model), "generate", lambda self, **kwargs: calls.append(kwargs) or own(self, **kwargs))
    for settings in ({"num_beams": 2}, {"min_new_tokens": 20}, {"use_cache": False}, {"cache_implementation": "static"}):
        calls.clear()
        config = GenerationConfig(max_new_tokens=20, do_sample=False, disable_compile=True, **settings)
        found = generate(model, ids, mask, config)
        assert len(calls) == 1 and "past_key_values" not in calls[0]
        assert torch.equal(found, own(model, input_ids=ids, attention_mask=mask, generation_config=config))
    assert roomy_cache(build("mamba"), 9) is None


def test_staged_for_a_while():
    model = build()
    ids, mask = prompts([5] * 9)
    config = GenerationConfig(max_new_tokens=30, do_sample=False)
    expected = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    with staged(model):
        seen = passes(model, lambda: model.generate(input_ids=ids, attention_mask=mask, generation_config=config))
        assert torch.equal(model.generate(input_ids=ids, attention_mask=mask, generation_config=config), expected)
    assert seen[-1][0] < 9
    assert "generate" not in vars(model)
