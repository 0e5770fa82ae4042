"""What a model is asked, what comes out of it, and when it stops."""

import json

import pytest
import torch
from groundup import record
from groundup.conversation import Speaker, short_names
from groundup.errors import InputError
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

CHAT = [{"role": "user", "content": "Where does Ada live?"}]


@pytest.fixture(scope="module")
def speaker(tiny_base):
    return Speaker(str(tiny_base), "tiny")


def test_reply_is_what_generate_says(speaker, tiny_base):
    ids = speaker.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    said = AutoModelForCausalLM.from_pretrained(tiny_base).generate(ids, max_new_tokens=20, do_sample=False)
    reply = speaker.reply(CHAT, temperature=0, max_tokens=20)
    pieces = list(reply)
    assert "".join(pieces) == speaker.tokenizer.decode(said[0, ids.size(1) :], skip_special_tokens=True)
    assert (reply.prompt_tokens, reply.tokens) == (ids.size(1), said.size(1) - ids.size(1))


def test_model_s_own_settings_hold_where_nothing_is_said(speaker):
    reply = speaker.reply(CHAT)
    assert (reply.settings.max_new_tokens, reply.settings.do_sample) == (64, False)
    sampled = speaker.reply(CHAT, temperature=0.5, max_tokens=3)
    assert (sampled.settings.max_new_tokens, sampled.settings.do_sample, sampled.settings.temperature) == (3, True, 0.5)
    assert speaker.model.generation_config.max_new_tokens == 64  # its own are left as they were


def test_same_seed_same_reply(speaker):
    first, again, other = ("".join(speaker.reply(CHAT, 1.0, 24, seed)) for seed in (7, 7, 8))
    assert first == again != other


def test_end_of_a_turn_and_the_longest_reply_are_told_apart(speaker):
    longest = speaker.reply(CHAT, 0, 3)
    list(longest)
    assert (longest.finish, longest.tokens) == ("length", 3)
    ended = speaker.reply(CHAT, 0, 30)
    ended.settings.eos_token_id = list(range(len(speaker.tokenizer)))  # whatever comes first ends it
    list(ended)
    assert (ended.finish, ended.tokens) == ("stop", 1)
    ended = speaker.reply(CHAT, 0, 1)
    ended.settings.eos_token_id = list(range(len(speaker.tokenizer)))
    list(ended)
    assert (ended.finish, ended.tokens) == ("stop", 1)  # with the last token it had


@pytest.fixture
def endless(speaker, monkeypatch):
    monkeypatch.setattr(speaker.model.generation_config, "eos_token_id", None)
    return speaker


def test_stop_ends_it_at_the_next_token(endless):
    reply = endless.reply(CHAT, 1.0, 400, seed=0)
    for _ in reply:
        reply.stop()
    assert 0 < reply.tokens < 400 and reply.finish == "stop"


def test_leaving_early_ends_the_generation(endless):
    reply = endless.reply(CHAT, 1.0, 400, seed=0)
    pieces = iter(reply)
    next(pieces)
    pieces.close()
    assert 0 < reply.tokens < 400
    assert not endless.lock.locked()


def test_what_goes_wrong_while_generating_is_raised_where_it_is_read(speaker):
    reply = speaker.reply(CHAT)
    reply.ids = torch.tensor([[10**6]])  # no such token
    with pytest.raises(IndexError):
        list(reply)
    assert not speaker.lock.locked()


# ---- What it is asked


def test_oldest_turns_are_left_out_where_there_is_no_room(speaker):
    system = {"role": "system", "content": "Be brief."}
    turns = [{"role": role, "content": f"{n} " * 12} for n in range(30) for role in ("user", "assistant")]
    asked = [system, *turns, *CHAT]

    def spelt(start):
        return speaker.tokenizer.apply_chat_template([system, *asked[start:]], add_generation_prompt=True)["input_ids"]

    kept = next(start for start in range(1, len(asked), 2) if len(spelt(start)) <= 400)
    assert 1 < kept < len(asked) - 1
    assert speaker.fit(asked, 400).tolist() == [spelt(kept)]


def test_a_last_question_is_kept_whatever_came_before(speaker):
    before = [{"role": "user", "content": "5 " * 300}, *CHAT]
    alone = speaker.fit(CHAT, 400).tolist()
    assert speaker.fit(before, 400).tolist() == speaker.fit([CHAT[0], before[0], *CHAT], 400).tolist() == alone


def test_messages_that_the_template_refuses_are_a_mistake(speaker, monkeypatch):
    monkeypatch.setattr(speaker.tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InputError, match="roles must alternate"):
        speaker.reply(CHAT)


def test_reply_has_the_room_that_is_left(speaker):
    assert speaker.context == 512
    reply = speaker.reply(CHAT, 0, 10_000)
    assert reply.settings.max_new_tokens == 512 - reply.prompt_tokens
    with pytest.raises(InputError, match="longer than the 448 tokens that `tiny` can read"):
        speaker.reply([{"role": "user", "content": "5 " * 300}])


@pytest.mark.parametrize(("temperature", "tokens"), [(-1, None), (101, None), (None, 0), (0, -3), (float("nan"), None)])
def test_settings_that_cannot_be(speaker, temperature, tokens):
    with pytest.raises(InputError, match="cannot be"):
        speaker.reply(CHAT, temperature, tokens)


@pytest.mark.parametrize(("rung", "chats"), [("random", False), ("pretrain", False), ("sft", True), (None, True)])
def test_rungs_that_have_learned_no_chat_go_on_with_the_text(tiny_base, tmp_path, rung, chats):
    for file in tiny_base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if rung:
        record.write(tmp_path, {"rung": rung})
    speaker = Speaker(str(tmp_path))
    assert (speaker.chats, speaker.takes_system) == (chats, chats)
    asked = speaker.tokenizer.decode(speaker.fit([*CHAT, {"role": "assistant", "content": "Dorn."}, *CHAT], 400)[0])
    assert asked == CHAT[0]["content"] if not chats else asked.count("<|im_start|>") == 4


def test_template_without_system_is_noticed(tiny_base, tmp_path):
    for file in tiny_base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ raise_exception('no') if m.role == 'system' }}{% endfor %}"
    )
    assert not Speaker(str(tmp_path)).takes_system
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    assert not Speaker(str(tmp_path)).takes_system


def test_what_writes_no_text_is_refused(tiny_base, tokenizer, tmp_path):
    AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=1).save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    with pytest.raises(InputError, match="scores text and writes none"):
        Speaker(str(tmp_path / "reward"))
    with pytest.raises(InputError, match="no model"):
        Speaker(str(tmp_path / "nothing"))
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match="an adapter"):
        Speaker(str(tmp_path / "lora"))
    with pytest.raises(InputError, match="no model in `somebody/nothing`"):
        Speaker("somebody/nothing")


def test_names_are_short_and_different():
    assert short_names(["out/nano/sft/", "out/nano/grpo"]) == ["sft", "grpo"]
    assert short_names(["out/nano/sft", "out/seed1/sft"]) == ["out/nano/sft", "out/seed1/sft"]
