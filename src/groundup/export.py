"""A stage directory for other programs: GGUF (llama.cpp and what stands on it), Ollama's Modelfile, safetensors in shards."""

import json
import os
import re
import unicodedata
from pathlib import Path

import torch
from groundup import card, record
from groundup.chat import CHAT_TEMPLATE
from groundup.errors import InputError
from groundup.model import count_parameters, load_whole
from groundup.stage import write_for_older
from groundup.tokenizer import SPLIT
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
ARCHITECTURES = ("qwen3", "llama")
# Nearest to our split in llama.cpp's list (src/llama-vocab.cpp). GPT-2's takes a space and the digits after it as one piece; a
# vocabulary that learned them one by one has no merge between them and spells them the same. `spelt_otherwise` has the exceptions.
PRE_TOKENIZER = "gpt-2"
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Ollama runs qwen3 in an engine of its own, which splits as Qwen does whatever the file says (its model/models/qwen3/model.go).
QWEN2_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# CHAT_TEMPLATE in Go's text/template. Ollama always asks for a reply, and joins turns of the same role that follow each other.
OLLAMA_TEMPLATE = """\
{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""


def check_exportable(directory: str | Path) -> None:
    """Refuse what GGUF has no room for, before anything is read.

    Raises:
        InputError: no model, an adapter, a reward model, an architecture or a feature of one that is not known here.
    """
    directory = Path(directory)
    if not (directory / "config.json").is_file():
        adapter = (directory / "adapter_config.json").is_file()
        fix = f"python recipes/merge.py {directory} {directory}_merged" if adapter else "name a directory that a rung wrote"
        raise InputError("an adapter is no model" if adapter else "no model", str(directory), fix)
    config = AutoConfig.from_pretrained(directory)
    kind = (config.architectures or ["unknown"])[0]
    if not kind.endswith("ForCausalLM"):
        what = f"`{kind}` scores text and writes none" if "Classification" in kind else f"`{kind}` is no model that writes text"
        raise InputError(what, str(directory), "export the policy that it trained; transformers and vLLM load it as it is")
    if config.model_type not in ARCHITECTURES:
        fix = "llama.cpp's convert_hf_to_gguf.py knows many more"
        raise InputError(f"`{config.model_type}` is not exported, {' and '.join(ARCHITECTURES)} are", str(directory), fix)
    rope = config.rope_parameters or {}
    odd = {
        "attention_bias": getattr(config, "attention_bias", False),
        "mlp_bias": getattr(config, "mlp_bias", False),
        "use_sliding_window": getattr(config, "use_sliding_window", False),
        "hidden_act": config.hidden_act if config.hidden_act != "silu" else None,
        "rope_type": rope.get("rope_type") if rope.get("rope_type", "default") != "default" else None,
    }
    if named := [f"{name}: {value}" for name, value in odd.items() if value]:
        raise InputError(
            f"a model with `{', '.join(named)}` is not exported", str(directory), "see llama.cpp's convert_hf_to_gguf.py"
        )


def load(directory: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Weights in float32, and the tokenizer.

    Raises:
        InputError: what `check_exportable` refuses, and weights that are not all there.
    """
    check_exportable(directory)
    return load_whole(AutoModelForCausalLM, str(directory), dtype=torch.float32), AutoTokenizer.from_pretrained(directory)


def cast(weight: torch.Tensor, name: str, dtype: str) -> torch.Tensor:
    """The weight in `dtype`.

    Raises:
        InputError: float16 cannot hold it.
    """
    smaller = weight.detach().to(DTYPES[dtype])
    if not smaller.isfinite().all():
        raise InputError(f"`{name}` does not fit into {dtype}", fix="write `--dtype bf16` or `--dtype f32`")
    return smaller


def spelt_otherwise(tokenizer: PreTrainedTokenizerBase, split: str) -> list[str]:
    """Texts of a few characters that another split spells in other tokens, out of those where the two may differ.

    Tried are all numerals of Unicode, after a space and in pairs, blank lines, apostrophes and marks before letters.
    """
    ours = tokenizer.backend_tokenizer
    theirs = Tokenizer.from_str(ours.to_str())
    pieces = [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    theirs.pre_tokenizer = pre_tokenizers.Sequence(pieces)
    numerals = [chr(n) for n in range(0x110000) if unicodedata.category(chr(n)).startswith("N")]
    texts = [" \nA", "\n\nA", ".\n\nA", "\n\n1", "\tA", '"A', "A'S", *(" " + n for n in numerals), *(2 * n for n in numerals)]
    return [text for text in texts if ours.encode(text).ids != theirs.encode(text).ids]


def check_split(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Refuse a tokenizer that splits text in another way than those of recipes/tokenizer.py, and would be misspelt in silence."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    steps = (backend["pre_tokenizer"] or {}).get("pretokenizers", [])
    splits = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
    if backend["model"]["type"] != "BPE" or backend["normalizer"] or splits != [SPLIT] or len(steps) != 2:
        fix = "llama.cpp's convert_hf_to_gguf.py knows the tokenizers of models on the Hub"
        raise InputError("the tokenizer is not of the kind that recipes/tokenizer.py makes", where, fix)


def write_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str | Path, dtype: str) -> Path:
    """Write model, tokenizer and chat template to one file: matrices in `dtype`, vectors in float32, as llama.cpp has them.

    Raises:
        InputError: the package gguf is missing, the tokenizer is not ours, or float16 cannot hold the weights.
    """
    try:
        import gguf
    except ImportError:
        raise InputError("the package gguf is not installed", fix="pip install 'groundup[export]'") from None
    path, config = Path(path), model.config
    check_split(tokenizer, str(path))
    architecture = gguf.MODEL_ARCH[config.model_type.upper()]
    unfinished = path.with_name(f".{path.name}.tmp")  # what was cut off is not taken for a model
    writer = gguf.GGUFWriter(unfinished, config.model_type)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_name(path.stem)
    writer.add_file_type(gguf.LlamaFileType[{"f32": "ALL_F32"}.get(dtype, f"MOSTLY_{dtype.upper()}")])
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    _add_tokenizer(writer, tokenizer, config.vocab_size, gguf)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if config.model_type == "llama" and re.search(r"\.[qk]_proj\.weight$", name):
            weight = _interleave(weight, heads if "q_proj" in name else kv_heads)
        kept = dtype if weight.ndim > 1 else "f32"
        data, kind = cast(weight, name, kept).float().contiguous().numpy(), gguf.GGMLQuantizationType[kept.upper()]
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), gguf.quants.quantize(data, kind), raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of Q or K (heads x D, C) in the order of llama.cpp's RoPE for llama, which turns neighbours and not the two halves."""
    return weight.view(heads, 2, -1, weight.size(1)).transpose(1, 2).reshape(weight.shape)


def _add_tokenizer(writer, tokenizer: PreTrainedTokenizerBase, size: int, gguf) -> None:
    """`size`: rows of the embeddings; llama.cpp has a token for each, and calls those that no text is spelt with unused."""
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    unused = [f"[PAD{n}]" for n in range(len(tokens), size)]
    special = set(tokenizer.all_special_tokens)
    kinds = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list([*tokens, *unused])
    writer.add_token_types([*kinds, *[gguf.TokenType.UNUSED] * len(unused)])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_eot_token_id(tokenizer.eos_token_id)  # <|endoftext|> ends a text for llama.cpp too, by its name
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def modelfile(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, weights: str) -> str:
    """Ollama's Modelfile for a GGUF file of that name beside it.

    Raises:
        InputError: a chat template that is not ours, whose Go form is not known.
    """
    if tokenizer.chat_template != CHAT_TEMPLATE:
        raise InputError(
            "the chat template is not the ladder's own", weights, "leave out --ollama: the GGUF file holds the template"
        )
    generation = model.generation_config
    stops = torch.tensor(generation.eos_token_id if generation.eos_token_id is not None else tokenizer.eos_token_id).flatten()
    lines = [f"FROM ./{weights}", f'TEMPLATE """{OLLAMA_TEMPLATE}"""']
    lines += [f'PARAMETER stop "{token}"' for token in tokenizer.convert_ids_to_tokens(stops.tolist())]
    lines += [f"PARAMETER num_ctx {model.config.max_position_embeddings}"]
    if generation.max_new_tokens:
        lines += [f"PARAMETER num_predict {generation.max_new_tokens}"]
    lines += [f"PARAMETER temperature {(generation.temperature or 1.0) if generation.do_sample else 0}"]
    return "\n".join(lines) + "\n"


def write_shards(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str | Path, output: Path, size: str, dtype: str
) -> Path:
    """A stage directory again, its weights in `dtype` and in files of at most `size`, such as 2GB.

    Raises:
        InputError: `size` is none, or float16 cannot hold the weights.
    """
    if not re.fullmatch(r"\d+(KB|MB|GB|KiB|MiB|GiB)", size):
        raise InputError(f"`--shards {size}` is no size", fix="write --shards 2GB, say")
    for name, weight in model.named_parameters():
        cast(weight, name, dtype)
    model.to(DTYPES[dtype]).save_pretrained(output, max_shard_size=size)
    tokenizer.save_pretrained(output)
    write_for_older(output)
    known = record.read(source) or {}
    entry = {**known, "parent": {"path": str(source), **record.hashes(source)}, "parameters": count_parameters(model)}
    entry |= record.hashes(output)
    record.write(output, entry)
    card.write_card(output, entry)
    return output
