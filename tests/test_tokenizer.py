import json
import random

import pytest
from groundup import tokenizer as module
from groundup.chat import END_OF_TEXT, PAD, SPECIAL_TOKENS, TURN_END
from groundup.errors import InputError
from transformers import AutoTokenizer

CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Where does Ada live?"},
    {"role": "assistant", "content": "Ada lives in Dorn. 12 + 7 = 19."},
    {"role": "user", "content": "And Hugo?"},
    {"role": "assistant", "content": " 'Hugo'\n\tlives there too.  "},
]


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def random_texts(count=300):
    """Strings of any code points but lone surrogates, which are no text, and with more of what is often mishandled."""
    generator = random.Random(0)
    odd = [
        *" \n\t\r\0'0123456789.,\x7f\u00a0\u0301\u200d\u2028\ufeff\ufffd\u0e33İßǆ",
        "\U0001f469\u200d\U0001f469",
        "  ",
        "'ll",
        "<|",
        "|>",
    ]
    for _ in range(count):
        parts = []
        for _ in range(generator.randrange(1, 20)):
            point = generator.choice([generator.randrange(128), generator.randrange(0x3000), generator.randrange(0x110000)])
            parts.append(generator.choice(odd) if generator.random() < 0.5 or 0xD800 <= point < 0xE000 else chr(point))
        yield "".join(parts)


def test_any_text_comes_back(tokenizer):
    for text in random_texts():
        ids = encode(tokenizer, text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in ids


def test_every_byte_is_a_token(tokenizer):
    """Any bytes, UTF-8 or not, can be said with tokens that the vocabulary has."""
    from tokenizers import pre_tokenizers

    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(tokenizer.get_vocab())
    assert len(pre_tokenizers.ByteLevel.alphabet()) == 256


def test_digits_are_spelt_one_by_one(tokenizer):
    for text in ("1234567890", "Ada has 17 apples", "3.14", "٣٤", "x12y"):
        pieces = [tokenizer.decode([token]) for token in encode(tokenizer, text)]
        assert all(len(piece.strip()) == 1 for piece in pieces if any(c in "0123456789" for c in piece)), pieces
    assert encode(tokenizer, "1234")[:2] == encode(tokenizer, "12")


def test_special_tokens_are_in_the_vocabulary_once_and_pad_is_not_the_end(tokenizer):
    ids = [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS]
    assert ids == [0, 1, 2, 3]
    assert (tokenizer.eos_token, tokenizer.pad_token) == (TURN_END, PAD)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert encode(tokenizer, "".join(SPECIAL_TOKENS)) == ids
    assert module.end_of_text_id(tokenizer) == tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    assert len(tokenizer) == 512 == len(set(tokenizer.get_vocab().values()))


def test_roles_are_one_token_each(tokenizer):
    assert [len(encode(tokenizer, role)) for role in ("system", "user", "assistant")] == [1, 1, 1]


def test_mask_covers_what_the_assistant_says_and_the_end_of_its_turn(tokenizer):
    encoded = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = encoded["input_ids"], encoded["assistant_masks"]
    learned = tokenizer.decode([token for token, learn in zip(ids, mask, strict=True) if learn])
    assert learned == "".join(turn["content"] + TURN_END for turn in CHAT if turn["role"] == "assistant")
    said = tokenizer.decode([token for token, learn in zip(ids, mask, strict=True) if not learn])
    assert said == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWhere does Ada live?<|im_end|>\n<|im_start|>assistant\n\n"
        "<|im_start|>user\nAnd Hugo?<|im_end|>\n<|im_start|>assistant\n\n"
    )


@pytest.mark.parametrize("turns", range(1, len(CHAT)))
def test_tokens_of_some_turns_are_a_prefix_of_more(tokenizer, turns):
    part, whole = (tokenizer.apply_chat_template(chat)["input_ids"] for chat in (CHAT[:turns], CHAT))
    assert whole[: len(part)] == part and len(whole) > len(part)
    if CHAT[turns]["role"] == "assistant":
        prompt = tokenizer.apply_chat_template(CHAT[:turns], add_generation_prompt=True)["input_ids"]
        assert whole[: len(prompt)] == prompt and len(prompt) > len(part)


def test_reloaded_tokenizer_is_the_same(tokenizer, tiny_base):
    again = AutoTokenizer.from_pretrained(tiny_base)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.apply_chat_template(CHAT)["input_ids"] == tokenizer.apply_chat_template(CHAT)["input_ids"]
    for name in ("eos_token_id", "pad_token_id", "chat_template", "model_max_length", "padding_side"):
        assert getattr(again, name) == getattr(tokenizer, name), name
    for text in random_texts(50):
        assert encode(again, text) == encode(tokenizer, text)
        assert again.decode(encode(again, text)) == text
    assert again.padding_side == "left" and again.model_max_length == 512


def test_same_texts_give_the_same_tokenizer(world, tokenizer):
    with open(world / "documents.jsonl", encoding="utf-8") as file:
        again = module.train_tokenizer((json.loads(line)["text"] for line in file), 512, 512)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_vocabulary_too_small_for_the_bytes():
    with pytest.raises(InputError, match="`vocab_size: 259`") as caught:
        module.train_tokenizer(["text"], 259)
    assert "write 260 or more" in caught.value.fix


def test_text_too_little_for_the_vocabulary():
    with pytest.raises(InputError, match="of the 1000 asked for") as caught:
        module.train_tokenizer(["a few words"], 1000)
    size = int(caught.value.fix.split("vocab_size: ")[1].rstrip("`"))
    assert len(module.train_tokenizer(["a few words"], size)) == size  # the fix works


def test_bytes_per_token(tokenizer):
    texts = ["Ada lives in Dorn.", "é"]
    tokens = sum(len(encode(tokenizer, text)) for text in texts)
    assert module.bytes_per_token(tokenizer, texts) == (20 / tokens, 20, tokens)
    assert module.bytes_per_token(tokenizer, []) == (0, 0, 0)


def test_tokenizer_that_later_rungs_would_learn_wrongly_on_is_refused(tiny_base):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    module.check_tokenizer(tokenizer, "here")
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(InputError, match="the padding token is the end-of-turn token\n  where: here"):
        module.check_tokenizer(tokenizer, "here")
    tokenizer.pad_token = PAD
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        module.check_tokenizer(tokenizer, "here")


def test_path_without_a_tokenizer(tiny_base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a demo has run, out/nano is there
    module.check_tokenizer_path(str(tiny_base))
    module.check_tokenizer_path("user/name")
    for path in (tmp_path, tmp_path / "missing", "missing", "out/nano/tokenizer"):
        with pytest.raises(InputError, match="no tokenizer in"):
            module.check_tokenizer_path(str(path))


def test_prompts_must_leave_room(tokenizer):
    row = {"prompt": [{"role": "user", "content": "Hi " * 30}]}
    length = len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"])
    assert module.unfit_prompt(tokenizer, 10, length + 10)(row) is None
    reason = module.unfit_prompt(tokenizer, 11, length + 10)(row)
    assert reason == f"prompt over the {length - 1} tokens that `max_completion_length` leaves"
    with pytest.raises(InputError, match="`max_completion_length: 10` leaves no prompt room in the model's 10 tokens"):
        module.unfit_prompt(tokenizer, 10, 10)


def test_pairs_must_fit_into_the_context(tokenizer):
    def row(chosen, rejected):
        return {
            "prompt": [{"role": "user", "content": "Hi"}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }

    short, long, late = row("yes", "no"), row("yes", "no " * 30), row("no " * 30 + "yes", "no " * 30 + "no")
    prompt = len(tokenizer.apply_chat_template(short["prompt"], add_generation_prompt=True)["input_ids"])
    fits = len(tokenizer.apply_chat_template(long["prompt"] + long["rejected"])["input_ids"])

    for max_length, longest in ((None, fits), (fits, fits + 9), (fits + 9, fits)):
        for cut in (False, True):
            assert module.unfit_pair(tokenizer, max_length, longest, cut)(long) is None
    for cut in (False, True):  # nothing is cut at the context
        assert module.unfit_pair(tokenizer, None, fits - 1, cut)(long) == f"over the {fits - 1} tokens of the model's context"
        assert module.unfit_pair(tokenizer, fits, fits - 1, cut)(long) == f"over the {fits - 1} tokens of the model's context"
    assert module.unfit_pair(tokenizer, fits - 1, fits)(long) == f"over the {fits - 1} tokens of `max_length`"

    cut = module.unfit_pair(tokenizer, prompt + 3, fits, cut=True)
    assert cut(short) is None and cut(long) is None
    assert cut(late) == f"chosen equals rejected in the {prompt + 3} tokens of `max_length`"
    assert module.unfit_pair(tokenizer, prompt, fits, cut=True)(long) == f"prompt fills the {prompt} tokens of `max_length`"
