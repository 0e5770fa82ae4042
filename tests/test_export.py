"""A model that was exported is the model that was trained, as far as its new form can tell."""

import json
import random
import re
import sys

import pytest
import torch
from groundup import export, record
from groundup.chat import CHAT_TEMPLATE
from groundup.errors import InputError
from groundup.model import build_config, build_model
from groundup.stage import chat_generation_config
from groundup.tokenizer import train_tokenizer
from jinja2 import Environment
from recipes.miniature import load_recipe
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

gguf = pytest.importorskip("gguf")

IDS = torch.arange(5, 45).reshape(2, 20)
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
TEXTS = (
    "Ada lives in Dorn. She has 12 coins, 1,024 cards and 7 dogs.",
    "  two spaces  and\ttabs\n\nblank lines\n\n\n 3 \n\n4  5\n",
    "It's \"quoted\" (isn't it?) -- 'tis; naïve café, Größe 10 €, 数学 42, £5, x²",
    "<|im_start|>user\nWhere does Ada live?<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|><|pad|>|im_end|",
)


def build(tokenizer, directory, model_type="qwen3", **sizes):
    """A stage directory with a random model whose every weight, norms too, is its own."""
    model = build_model(build_config(model_type, tokenizer, {**SIZES, **sizes}, max_length=64), seed=0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)), alpha=0.05)
    model.generation_config = chat_generation_config(tokenizer)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def stage(tokenizer, tmp_path_factory):
    return build(tokenizer, tmp_path_factory.mktemp("stage"))


@pytest.fixture(scope="module")
def exported(stage, tmp_path_factory):
    """What the recipe writes of `stage` in float32 when asked for all it can."""
    output = tmp_path_factory.mktemp("exported")
    load_recipe("export").main(str(stage), str(output), gguf=True, ollama=True, shards="20KB", dtype="f32")
    return output


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def read_back(path):
    # transformers 5.23 does not read the width of a head of qwen3 from the file, and takes 128.
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32, head_dim=16)


ARCHITECTURES = [
    ("qwen3", {}),
    ("qwen3", {"tie_word_embeddings": False, "num_key_value_heads": 2}),
    ("llama", {}),
    ("llama", {"tie_word_embeddings": False, "num_key_value_heads": 2}),
    ("qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rms_norm_eps": 1e-3}),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rms_norm_eps": 1e-3}),
]


@pytest.mark.parametrize(("model_type", "sizes"), ARCHITECTURES)
def test_gguf_read_back_has_equal_logits(tokenizer, tmp_path, model_type, sizes):
    model, tokenizer = export.load(build(tokenizer, tmp_path / "stage", model_type, **sizes))
    path = export.write_gguf(model, tokenizer, tmp_path / "model.gguf", "f32")
    torch.testing.assert_close(logits(read_back(path)), logits(model), atol=1e-5, rtol=0)
    stored = {tensor.name for tensor in gguf.GGUFReader(path).tensors}
    assert ("output.weight" in stored) is (not model.config.tie_word_embeddings)
    assert len(stored) == len(list(model.parameters()))


def test_embeddings_padded_for_a_gpu_have_a_token_each(tokenizer, tmp_path):
    size = len(tokenizer) + 64
    model, tokenizer = export.load(build(tokenizer, tmp_path / "stage", vocab_size=size))
    fields = gguf.GGUFReader(export.write_gguf(model, tokenizer, tmp_path / "model.gguf", "f32")).fields
    tokens, kinds = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    assert len(tokens) == len(set(tokens)) == len(kinds) == size
    assert {kind == gguf.TokenType.UNUSED for kind in kinds[-64:]} == {True} and gguf.TokenType.UNUSED not in kinds[:-64]


def test_an_export_that_is_cut_off_leaves_no_file(stage, tmp_path, monkeypatch):
    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(OSError, match="No space left"):
        export.write_gguf(*export.load(stage), tmp_path / "model.gguf", "f32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
@pytest.mark.parametrize(("dtype", "far"), [("f16", 2**-11), ("bf16", 2**-8)])
def test_shorter_floats_round_the_matrices_and_nothing_else(tokenizer, tmp_path, model_type, dtype, far):
    model, tokenizer = export.load(build(tokenizer, tmp_path / "stage", model_type))
    path = export.write_gguf(model, tokenizer, tmp_path / "model.gguf", dtype)
    exact = logits(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(export.DTYPES[dtype]) if weight.ndim > 1 else weight)
    found = logits(read_back(path))
    torch.testing.assert_close(found, logits(model), atol=1e-5, rtol=0)
    assert 0 < (found - exact).abs().max() < 20 * far * exact.abs().max()


def test_file_says_what_llama_cpp_needs_to_know(exported, tokenizer):
    fields = gguf.GGUFReader(exported / f"{find(exported)}").fields
    said = {name: field.contents() for name, field in fields.items()}
    assert (said["general.architecture"], said["tokenizer.ggml.model"]) == ("qwen3", "gpt2")
    assert said["tokenizer.ggml.pre"] == "gpt-2" and said["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert (said["qwen3.attention.key_length"], said["qwen3.attention.value_length"], said["qwen3.context_length"]) == (16, 16, 64)
    assert said["tokenizer.ggml.add_bos_token"] is False and said["tokenizer.ggml.add_eos_token"] is False
    assert "tokenizer.ggml.bos_token_id" not in said
    assert said["tokenizer.ggml.eos_token_id"] == said["tokenizer.ggml.eot_token_id"] == tokenizer.eos_token_id
    assert said["tokenizer.ggml.padding_token_id"] == tokenizer.pad_token_id
    tokens, kinds = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    assert tokens == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    control = {token for token, kind in zip(tokens, kinds, strict=True) if kind == gguf.TokenType.CONTROL}
    assert control == {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"}


def find(directory):
    (path,) = directory.glob("*.gguf")
    return path.name


def test_tokenizer_read_back_spells_the_same(exported, tokenizer, tmp_path):
    (tmp_path / "model.gguf").write_bytes((exported / find(exported)).read_bytes())
    found = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert found.get_vocab() == tokenizer.get_vocab()
    assert (found.eos_token, found.pad_token, found.chat_template) == (tokenizer.eos_token, tokenizer.pad_token, CHAT_TEMPLATE)
    for text in TEXTS:
        assert found(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert found.decode(tokenizer(text)["input_ids"]) == text


def retokenize(tokenizer, split):
    """The tokenizer with another split, as the file's reader has it."""
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    other = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    other.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), byte_level])
    return other


def test_split_of_llama_cpp_spells_what_ours_spells(tokenizer, world):
    assert export.spelt_otherwise(tokenizer, export.GPT2_SPLIT) == []
    theirs, draw = retokenize(tokenizer, export.GPT2_SPLIT), random.Random(0)
    texts = [json.loads(line)["text"] for line in (world / "documents.jsonl").read_text().splitlines()]
    texts += ["".join(draw.choices(" \n\t0123456789.,'-(a bsé£", k=40)) for _ in range(2000)] + list(TEXTS)
    for text in texts:
        assert theirs.encode(text).ids == tokenizer(text)["input_ids"]


def test_texts_that_another_split_spells_otherwise_are_found():
    # £ is C2 A3 and ½ is C2 BD: where a space and C2 have become one token, as from prices, ½ after a space is torn in two.
    tokenizer = train_tokenizer([" £5 £6 «a» ¿b? §1 ©c ®d ±2 ¶ ·\n\n " * 20] * 50, 268)
    assert "ĠÂ" in tokenizer.get_vocab() and "ĊĊ" in tokenizer.get_vocab()
    odd = export.spelt_otherwise(tokenizer, export.GPT2_SPLIT)
    assert " ½" in odd and " 5" not in odd and "\n\nA" not in odd
    assert {"\n\nA", "\n\n1"} <= set(export.spelt_otherwise(tokenizer, export.QWEN2_SPLIT))
    for text in odd:
        assert retokenize(tokenizer, export.GPT2_SPLIT).encode(text).ids != tokenizer(text)["input_ids"]


# ---- Ollama


def as_jinja(template):
    """The little of Go's text/template that Ollama's form of ours uses, in Jinja's words."""
    for go, jinja in (
        (r"\{\{- range \.Messages \}\}", "{%- for message in messages %}"),
        (r"\{\{ \.Role \}\}", "{{ message.role }}"),
        (r"\{\{ \.Content \}\}", "{{ message.content }}"),
        (r"\{\{ end \}\}", "{% endfor %}"),
    ):
        template, found = re.subn(go, jinja, template)
        assert found == 1
    assert "{{ ." not in template and "{{-" not in template
    return Environment(keep_trailing_newline=True).from_string(template)


@pytest.mark.parametrize("roles", ["user", "system user", "user assistant user", "system user assistant user assistant user"])
def test_modelfile_asks_as_the_chat_template_does(exported, tokenizer, roles):
    text = (exported / "Modelfile").read_text()
    (template,) = re.findall(r'^TEMPLATE """(.*?)"""$', text, flags=re.DOTALL | re.MULTILINE)
    messages = [{"role": role, "content": f"number {n}\n"} for n, role in enumerate(roles.split())]
    asked = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert as_jinja(template).render(messages=messages) == asked


def test_modelfile_names_the_file_and_stops(exported):
    text = (exported / "Modelfile").read_text()
    assert text.startswith(f"FROM ./{find(exported)}\n")
    said = re.findall(r"^PARAMETER (\w+) (.*)$", text, flags=re.MULTILINE)
    assert said == [
        ("stop", '"<|im_end|>"'),
        ("stop", '"<|endoftext|>"'),
        ("num_ctx", "64"),
        ("num_predict", "64"),
        ("temperature", "0"),
    ]


# ---- Shards


def test_shards_are_the_stage_again(exported, stage):
    shards = sorted(exported.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(exported)), logits(AutoModelForCausalLM.from_pretrained(stage)))
    assert json.loads((exported / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    entry = record.read(exported)
    assert entry["parent"]["weights_sha256"] == record.hash_weights(stage)
    assert entry["weights_sha256"] == record.hash_weights(exported)
    assert (exported / "README.md").stat().st_size


def test_shards_in_half_the_bytes(stage, tmp_path):
    load_recipe("export").main(str(stage), str(tmp_path / "out"), gguf=False, ollama=False, shards="1MB", dtype="bf16")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype is torch.bfloat16
    for weight, found in zip(AutoModelForCausalLM.from_pretrained(stage).parameters(), model.parameters(), strict=True):
        assert torch.equal(weight.bfloat16(), found)


# ---- What is refused


def run(stage, output, **options):
    asked = {"gguf": True, "ollama": False, "shards": None, "dtype": "f32", **options}
    load_recipe("export").main(str(stage), str(output), **asked)


def test_reward_model_is_refused(stage, tokenizer, tmp_path):
    AutoModelForSequenceClassification.from_pretrained(stage, num_labels=1).save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    with pytest.raises(InputError, match="`Qwen3ForSequenceClassification` scores text and writes none"):
        run(tmp_path / "reward", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}, "`gpt_neox` is not exported, qwen3 and llama are"),
        ({"attention_bias": True}, "attention_bias: True"),
        ({"hidden_act": "gelu"}, "hidden_act: gelu"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_type: linear"),
        ({"architectures": ["Qwen3Model"]}, "`Qwen3Model` is no model that writes text"),
    ],
)
def test_what_gguf_would_lose_is_refused_by_name(stage, tmp_path, change, what):
    config = json.loads((stage / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError) as error:
        run(tmp_path, tmp_path / "out")
    assert what in error.value.what


def test_adapter_and_nothing_are_told_apart(tmp_path):
    with pytest.raises(InputError, match="no model"):
        run(tmp_path, tmp_path / "out")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="an adapter") as error:
        run(tmp_path, tmp_path / "out")
    assert "recipes/merge.py" in error.value.fix


def test_weights_that_do_not_fit_into_float16(tokenizer, stage, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(stage)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = 1e5
    model.save_pretrained(tmp_path / "stage")
    tokenizer.save_pretrained(tmp_path / "stage")
    for options in ({}, {"gguf": False, "shards": "1MB"}):
        with pytest.raises(InputError, match=r"`model.layers.1.mlp.up_proj.weight` does not fit into f16"):
            run(tmp_path / "stage", tmp_path / f"out{len(options)}", dtype="f16", **options)


@pytest.mark.parametrize("change", ["split", "normalizer"])
def test_tokenizer_of_another_kind_is_refused(tokenizer, stage, tmp_path, change):
    from tokenizers import normalizers

    other = retokenize(tokenizer, r"\s+")
    if change == "normalizer":
        other = retokenize(tokenizer, export.SPLIT)
        export.check_split(PreTrainedTokenizerFast(tokenizer_object=other), "here")  # as it is, it would pass
        other.normalizer = normalizers.NFC()
    with pytest.raises(InputError, match="not of the kind"):
        export.check_split(PreTrainedTokenizerFast(tokenizer_object=other), "here")


def test_chat_template_that_is_not_ours_has_no_modelfile(stage):
    model, tokenizer = export.load(stage)
    tokenizer.chat_template = "{{ messages }}"
    with pytest.raises(InputError, match="not the ladder's own"):
        export.modelfile(model, tokenizer, "model.gguf")


def test_what_is_asked_must_be_something_and_go_somewhere(stage, tmp_path):
    with pytest.raises(InputError, match="nothing to write was named"):
        run(stage, tmp_path / "out", gguf=False)
    with pytest.raises(InputError, match="`--shards many` is no size"):
        run(stage, tmp_path / "out", gguf=False, shards="many")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").touch()
    with pytest.raises(InputError, match="there is something in it already"):
        run(stage, tmp_path / "full")


def test_package_that_is_missing_is_named(stage, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError) as error:
        run(stage, tmp_path / "out")
    assert "groundup[export]" in error.value.fix
