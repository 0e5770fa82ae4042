"""What a reply does to the terminal; the conversation itself is in recipes/test_chat.py."""

from groundup.terminal import say


def test_interrupt_ends_the_reply_and_not_the_conversation(capsys):
    ended = []

    def reply():
        try:
            yield "Ada "
            raise KeyboardInterrupt
        finally:
            ended.append(True)

    assert say(reply()) == "Ada " and ended == [True]
    assert capsys.readouterr().out == "Ada \n"
