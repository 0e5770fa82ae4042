from groundup import chat
from jinja2 import Environment
from jinja2.ext import Extension
from jinja2.nodes import CallBlock


class Generation(Extension):
    """`generation` marks as nothing, so that the template is tested without a tokenizer."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller):
        return f"[{caller()}]"


def render(*messages, **words):
    template = Environment(extensions=[Generation], trim_blocks=True, lstrip_blocks=True).from_string(chat.CHAT_TEMPLATE)
    messages = [{"role": role, "content": content} for role, content in messages]
    return template.render(messages=messages, **words)


def test_template_to_the_letter():
    turns = ("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello\n"), ("user", "Bye")
    assert render(*turns, add_generation_prompt=True) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n[Hello\n<|im_end|>]\n"
        "<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_generation_prompt_is_how_a_reply_begins():
    asked = render(("user", "Hi"), add_generation_prompt=True)
    assert render(("user", "Hi"), ("assistant", "Hello")) == asked + "[Hello<|im_end|>]\n"
    assert render(("user", "Hi")) + "<|im_start|>assistant\n" == asked


def test_special_tokens_are_different_and_the_template_uses_them():
    assert len(set(chat.SPECIAL_TOKENS)) == 4 == len({chat.END_OF_TEXT, chat.TURN_START, chat.TURN_END, chat.PAD})
    assert chat.TURN_START in chat.CHAT_TEMPLATE and chat.TURN_END in chat.CHAT_TEMPLATE
    assert chat.PAD not in chat.CHAT_TEMPLATE and chat.END_OF_TEXT not in chat.CHAT_TEMPLATE
