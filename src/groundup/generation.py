"""transformers' own `generate`, for many completions at once: what is finished, or known already, is not computed again.

Three things cost a rollout more than its arithmetic (benchmarks/RESULTS.md has the figures). The cache of keys and values is copied
whole at each token; here it has room for all of them. Rows that have ended are carried along until the longest has; here they leave
every few tokens. A prompt is read once for each of its completions; here once for all of them.
"""

import contextlib
import copy
import functools
from collections.abc import Iterator

import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

STAGE = 8  # tokens after which rows that have ended leave
# What means the same in stages and for rows of which others have left. With anything else set, `generate` is left to itself.
UNDERSTOOD = {
    *("max_new_tokens", "max_length", "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty"),
    *("no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "eos_token_id", "pad_token_id", "bos_token_id", "use_cache"),
    *("disable_compile", "renormalize_logits", "remove_invalid_values", "transformers_version", "_from_model_config"),
}


class RoomyLayer(DynamicLayer):
    """A layer of a `DynamicCache` with room for all tokens to come, so that a token is written and the rest stays where it is.

    Args:
        room: tokens, the prompt's among them.
    """

    def __init__(self, room: int):
        super().__init__()
        self.room, self.storage = room, []

    def _store(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.storage = [x.new_empty(*x.shape[:2], self.room, x.shape[-1]) for x in (keys, values)]

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """As DynamicLayer's: new keys and values (B, heads, T, D) -> all of them, views of what is stored."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._store(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        for tensor, new in zip(self.storage, (key_states, value_states), strict=True):
            tensor[:, :, before:after] = new
        self.keys, self.values = (tensor[:, :, :after] for tensor in self.storage)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        kept, length = [x[indices] for x in (self.keys, self.values)], self.get_seq_length()
        self._store(*kept)
        for tensor, old in zip(self.storage, kept, strict=True):
            tensor[:, :, :length] = old
        self.keys, self.values = (tensor[:, :, :length] for tensor in self.storage)


def roomy_cache(model: PreTrainedModel, room: int) -> DynamicCache | None:
    """A cache for `room` tokens that is not copied at each; None if not all of the model's layers attend to keys and values."""
    cache = DynamicCache(config=model.config)
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        return None
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


@torch.no_grad()
def generate(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, generation_config: GenerationConfig, **others
) -> torch.Tensor:
    """Prompts (B, P), padded on the left, -> prompts and completions, (B, P + T), as `model.generate` returns them.

    Greedy rows are those of `model.generate`; sampled ones are of the same distribution, drawn by other random numbers. Equal
    prompts that follow each other are read once. Modes of `generate` that are not UNDERSTOOD (beams, stop strings), other arguments
    to it, and models whose memory is not keys and values, are left to `model.generate`.
    """
    config, own, plain = generation_config, model.generation_config, type(model).generate
    asked = {name for one in (config, own) for name, value in one.to_diff_dict().items() if value is not None}
    usual = config.max_new_tokens and not others and not asked - UNDERSTOOD
    cache = roomy_cache(model, input_ids.size(1) + config.max_new_tokens) if usual else None
    if cache is None or False in (config.use_cache, own.use_cache):
        return plain(model, input_ids=input_ids, attention_mask=attention_mask, generation_config=config, **others)
    stops = own.eos_token_id if config.eos_token_id is None else config.eos_token_id
    ends = torch.tensor([] if stops is None else stops, device=input_ids.device).flatten()
    pad = config.pad_token_id if config.pad_token_id is not None else own.pad_token_id
    if pad is None and len(ends):
        pad = int(ends[0])

    def some_tokens(ids, mask, count):
        shorter = copy.copy(config)
        shorter.max_new_tokens, shorter.pad_token_id = count, pad
        return plain(model, input_ids=ids, attention_mask=mask, past_key_values=cache, generation_config=shorter)

    prompts, which = torch.unique_consecutive(torch.stack([input_ids, attention_mask], 1), dim=0, return_inverse=True)
    if (
        len(prompts) < len(input_ids) and prompts[:, 1, :-1].any(1).all()
    ):  # all but the last token, which each row's `generate` reads
        some_tokens(prompts[:, 0, :-1], prompts[:, 1, :-1], 1)
        cache.batch_select_indices(which)
    rows, length = input_ids.shape
    said = input_ids.new_full((rows, config.max_new_tokens), 0 if pad is None else pad)
    left, ids, done = torch.arange(rows, device=input_ids.device), input_ids, 0
    while len(left) and done < config.max_new_tokens:
        mask = torch.cat([attention_mask[left], attention_mask.new_ones(len(left), done)], 1)
        ids = some_tokens(ids, mask, min(STAGE, config.max_new_tokens - done))
        new = ids[:, length + done :]
        said[left, done : done + new.size(1)] = new
        done += new.size(1)
        going = (~torch.isin(new, ends).any(1)).nonzero().flatten()
        if len(going) < len(left):
            cache.batch_select_indices(going)
            left, ids = left[going], ids[going]
    return torch.cat([input_ids, said[:, :done]], 1)


@contextlib.contextmanager
def staged(model: PreTrainedModel) -> Iterator[None]:
    """In here, `model.generate` is `generate`: for callers that generate in their own way."""
    model.generate = functools.partial(generate, model)
    try:
        yield
    finally:
        del model.generate
