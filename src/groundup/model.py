"""Rung 1's model: any causal architecture of transformers, from a depth dial or from explicit sizes, at random."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from groundup.configs import ModelArguments
from groundup.errors import InputError
from groundup.reading import is_reward_model, reading
from jinja2 import TemplateError, TemplateSyntaxError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging
from trl import ModelConfig, get_quantization_config

HEAD_DIM = 64
WIDTH_PER_LAYER = 64  # the aspect ratio of nanochat's dial; Kaplan et al. 2020 (arXiv:2001.08361) find loss flat around it


@dataclass(frozen=True)
class Dial:
    """What follows from a depth.

    - width = 64 x depth, heads of 64 (Kaplan et al. 2020: loss is flat in the aspect ratio, so one number will do);
    - feed-forward = 8/3 x width, rounded up to 64 (Shazeer 2020, arXiv:2002.05202: SwiGLU at the parameters of 4 x width);
    - tokens = 20 x parameters (Hoffmann et al. 2022, arXiv:2203.15556);
    - batch in tokens = 2^19 x (training tokens / 10^10)^0.383, to the nearest power of two (the exponent of nanochat's
      `base_train.py`, from Bergsma et al. 2025, arXiv:2505.13738);
    - learning rate = 3e-3 x (4 / depth), at most 4e-3: AdamW's optimum falls as 1 / width (Yang et al. 2022, arXiv:2203.03466);
    - beside Muon, whose rate suits all widths, AdamW's of embeddings and norms = 8e-3 x sqrt(256 / width) (nanochat's exponent).
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    parameters: int
    tokens: int
    batch_tokens: int
    learning_rate: float
    adamw_beside_muon: float


def dial(depth: int, vocab_size: int, tokens_per_parameter: float = 20.0) -> Dial:
    """Sizes, tokens, batch and learning rate of a run from one number (see `Dial` for the formulas)."""
    if not isinstance(depth, int) or depth < 1:
        raise InputError(
            f"`depth: {depth}` is not a positive whole number", fix="write 2 to 6 on a laptop, 12 for ~124M parameters"
        )
    width = WIDTH_PER_LAYER * depth
    inner = 64 * math.ceil(8 * width / 3 / 64)
    # q, k, v, o and three feed-forward matrices a layer, and the tied embedding
    parameters = depth * (4 * width * width + 3 * width * inner) + vocab_size * width
    tokens = int(tokens_per_parameter * parameters)
    batch = 2 ** round(math.log2(2**19 * (tokens / 1e10) ** 0.383))
    rates = min(4e-3, 3e-3 * 4 / depth), 8e-3 * (256 / width) ** 0.5
    return Dial(depth, width, inner, width // HEAD_DIM, parameters, tokens, batch, *rates)


def build_config(model_type: str, tokenizer: PreTrainedTokenizerBase, sizes: dict[str, Any], max_length: int):
    """A configuration of `model_type` whose vocabulary and special tokens are the tokenizer's.

    Args:
        sizes: `hidden_size`, `num_hidden_layers`, ... by the architecture's own names.
        max_length: longest sequence, in tokens.

    Raises:
        InputError: unknown architecture, or a size it does not know or that does not divide.
    """
    try:
        defaults = AutoConfig.for_model(model_type)
    except ValueError:
        raise InputError(f"`model_type: {model_type}` is no transformers architecture", fix="write qwen3, llama, ...") from None
    known, sizes = defaults.to_dict(), dict(sizes)
    for name in sizes:
        if name not in known and not hasattr(defaults, name):
            near = get_close_matches(name, known, n=1)
            fix = f"did you mean `{near[0]}`?" if near else f"it has {', '.join(sorted(known)[:40])} ..."
            raise InputError(f"`{name}` is no size of {model_type}", "model_config", fix)
    width, heads = sizes.get("hidden_size"), sizes.get("num_attention_heads")
    if width and heads and "head_dim" not in sizes:
        if width % heads:
            fix = f"write `hidden_size: {max(1, round(width / heads)) * heads}`, or give `head_dim` too"
            raise InputError(f"`hidden_size: {width}` is not a multiple of `num_attention_heads: {heads}`", "model_config", fix)
        sizes |= {"head_dim": width // heads} if "head_dim" in known else {}
    if heads and "num_key_value_heads" in known:
        sizes.setdefault("num_key_value_heads", heads)
    return AutoConfig.for_model(
        model_type,
        **{
            "tie_word_embeddings": True,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": max_length,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **sizes,
        },
    )


def config_from_arguments(args: ModelArguments, tokenizer: PreTrainedTokenizerBase):
    """The configuration that a pre-training YAML asks for: by `depth`, by `model_config`, or both, the latter winning.

    Raises:
        InputError: neither is given.
    """
    sizes = dict(args.model_config or {})
    if args.depth is None and not sizes:
        raise InputError("a random model needs a size", fix="write `depth: 4`, or `model_config: {hidden_size: 256, ...}`")
    if args.depth is not None:
        chosen = dial(args.depth, len(tokenizer), args.tokens_per_parameter)
        sizes = {
            "hidden_size": chosen.hidden_size,
            "intermediate_size": chosen.intermediate_size,
            "num_hidden_layers": chosen.depth,
            "num_attention_heads": chosen.num_attention_heads,
            **sizes,
        }
    longest = args.max_position_embeddings or args.max_length
    if longest < args.max_length:
        raise InputError(
            f"`max_position_embeddings: {longest}` is shorter than `max_length: {args.max_length}`",
            fix="raise the first",
        )
    return build_config(args.model_type, tokenizer, sizes, longest)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers warns of nothing in here."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def whole_weights():
    """Models made in here are whole. Under ZeRO-3 transformers would make a rank's pieces, which nothing can be drawn into."""
    return mock.patch("transformers.integrations.deepspeed._hf_deepspeed_config_weak_ref", None)


def build_model(
    config, seed: int, residual: str = "depth", embedding_std: float | None = None, head_std: float | None = None
) -> PreTrainedModel:
    """Random weights in float32.

    transformers draws every matrix from N(0, initializer_range). The two matrices of a block that write into the residual stream
    are then, by `residual`, divided by sqrt(2 x layers) ("depth"; Radford et al. 2019, section 2.3), set to zero ("zero": a block
    changes nothing until it has learned something; Zhang et al. 2019, arXiv:1901.09321), or left ("plain").

    Args:
        embedding_std: redraw the embeddings from N(0, this). Near 1, the stream that all blocks read and write has their scale.
        head_std: redraw a head of its own from N(0, this). Near 0, the first guess is that all tokens are alike.

    Raises:
        InputError: a `head_std` for a head that is tied to the embeddings.
    """
    if head_std is not None and config.tie_word_embeddings:
        raise InputError("a tied head has no spread of its own", "head_std", "write `model_config: {tie_word_embeddings: false}`")
    factor = {"depth": (2 * config.num_hidden_layers) ** -0.5, "zero": 0.0, "plain": 1.0}[residual]
    with whole_weights(), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(factor)
        for module, std in ((model.get_input_embeddings(), embedding_std), (model.get_output_embeddings(), head_std)):
            if std is not None:
                module.weight.normal_(0, std)
    return model


def count_parameters(model: torch.nn.Module) -> int:
    """Parameters, tied ones once, and all of them where ZeRO-3 holds only a piece."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())


def flops_per_token(config, parameters: int, length: int) -> float:
    """Forward and backward FLOPs a token: 6 x parameters that multiply + attention's 12 x layers x width x length.

    Chowdhery et al. 2022 (arXiv:2204.02311), appendix B, with the causal half not deducted, as is the custom. A tied embedding
    counts once: its lookup is no multiplication, its use as the head is one.
    """
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    lookup = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    return 6.0 * (parameters - lookup) + 12.0 * config.num_hidden_layers * width * length


def check_model_path(path: str | None) -> None:
    """Refuse what looks like a local directory and holds no model, and a model that cannot be read with its tokenizer.

    Raises:
        InputError: names what to run first, or what is wrong with it.
    """
    if not path:
        raise InputError("no model to start from", "model_name_or_path", "name the directory of the rung before this one")
    if (Path(path) / "config.json").is_file():
        with reading(path, "model_name_or_path"):
            size, vocabulary = AutoConfig.from_pretrained(path).get_text_config().vocab_size, _vocabulary_of(path)
        if vocabulary and max(vocabulary.values()) >= size:
            what = f"`{path}` has {size} tokens and the tokenizer beside it {max(vocabulary.values()) + 1}"
            raise InputError(what, "model_name_or_path", "put back the tokenizer that the model was trained with")
        return
    if (Path(path) / "adapter_config.json").is_file():
        return
    if Path(path).exists() or path.startswith((".", "/", "~", "out/")) or path.count("/") != 1 and "/" in path:
        raise InputError(f"no model in `{path}`", "model_name_or_path", "run the rung before this one, or check the path")
    with reading(path, "model_name_or_path"):
        AutoConfig.from_pretrained(path)


def _vocabulary_of(path: str) -> dict[str, int]:
    if not any((Path(path) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        raise InputError(f"no tokenizer in `{path}`", "model_name_or_path", "put back the one that the model was trained with")
    tokenizer = AutoTokenizer.from_pretrained(path)
    if tokenizer.chat_template:
        try:
            tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
        except TemplateSyntaxError as error:
            what = f"the chat template of `{path}` is no template: line {error.lineno}, {error.message}"
            raise InputError(what, "model_name_or_path", "put chat_template.jinja back as it was written") from None
        except TemplateError:  # one that wants more turns than this: it can be read
            pass
    return tokenizer.get_vocab()


def _check_plain(path: str) -> None:
    """An adapter on top of an adapter would be saved as one on the model under both, and its reference would be that model."""
    if (Path(path) / "adapter_config.json").is_file() and not (Path(path) / "config.json").is_file():
        fix = f"make a plain model of it: python recipes/merge.py {path} {path.rstrip('/')}_merged"
        raise InputError(f"`{path}` holds an adapter", "model_name_or_path", fix)


def loading_arguments(args: ModelConfig) -> dict[str, Any]:
    """What a recipe's model section says, in the words of `from_pretrained`. Weights are in float32 unless `dtype` says otherwise,
    since the optimizer updates them.

    Raises:
        InputError: an adapter, which is no model to start from.
    """
    _check_plain(args.model_name_or_path)
    if (args.load_in_4bit or args.load_in_8bit) and not args.use_peft:
        raise InputError("quantised weights cannot be trained", "load_in_4bit, load_in_8bit", "write `use_peft: true` beside it")
    return {
        "pretrained_model_name_or_path": args.model_name_or_path,
        "dtype": torch.float32 if args.dtype in (None, "auto") else args.dtype,
        "revision": args.model_revision,
        "attn_implementation": args.attn_implementation,
        "quantization_config": get_quantization_config(args),
    }


def context_length(args: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that the model to train can attend to; where its configuration does not say, the tokenizer does.

    Raises:
        InputError: an adapter, which is no model to start from.
    """
    _check_plain(args.model_name_or_path)
    config = AutoConfig.from_pretrained(args.model_name_or_path, revision=args.model_revision).get_text_config()
    return getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length


def load_causal_model(args: ModelConfig) -> PreTrainedModel:
    """A model to train (see `loading_arguments`).

    Raises:
        InputError: weights that cannot be read, or that are not all there: transformers would draw the others at random.
    """
    path = args.model_name_or_path
    with reading(path, "model_name_or_path"):
        if is_reward_model(AutoConfig.from_pretrained(path, revision=args.model_revision)):
            fix = "start from the model that it was made from"
            raise InputError(f"`{path}` is a reward model: it scores, and does not write", "model_name_or_path", fix)
    return load_whole(AutoModelForCausalLM, where="model_name_or_path", **loading_arguments(args))


def load_whole(kind: type, pretrained_model_name_or_path: str, where: str = "", **arguments: Any) -> PreTrainedModel:
    """`kind.from_pretrained`.

    Raises:
        InputError: weights that cannot be read, or that are not all there: transformers would draw the others at random.
    """
    path = pretrained_model_name_or_path
    with reading(path, where):
        model, found = kind.from_pretrained(path, output_loading_info=True, **arguments)
    if missing := sorted(found["missing_keys"]):
        what = f"`{path}` lacks {len(missing)} of the weights that its config.json asks for, such as `{missing[0]}`"
        raise InputError(what, where or path, "put the files back as they were written")
    return model


def load_reward_model(args: ModelConfig, seed: int) -> PreTrainedModel:
    """A chat model with a new head that scores a conversation; `seed` draws the head (see `loading_arguments`)."""
    path = args.model_name_or_path
    with torch.random.fork_rng(devices=[]), quiet(), reading(path, "model_name_or_path"):  # the head is meant to be new
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_pretrained(num_labels=1, **loading_arguments(args))
