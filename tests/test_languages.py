"""Whole sentences are told by language; what is in none does not count."""

import pytest
from groundup.errors import InputError
from groundup.languages import identifier, share_in

pytest.importorskip("py3langid", reason="needs py3langid: pip install 'groundup[language]'")

SENTENCES = {
    "en": "First we add the numbers together, and then we divide by the number of children.",
    "de": "Zuerst addieren wir die Zahlen, und dann teilen wir durch die Anzahl der Kinder.",
    "fr": "D'abord nous ajoutons les nombres, puis nous divisons par le nombre d'enfants.",
    "es": "Primero sumamos los números y luego dividimos por el número de niños.",
    "ru": "Сначала мы складываем числа, а затем делим на количество детей.",
    "zh": "首先我们把这些数字加起来，然后除以孩子的人数。",
    "ja": "まず数字を足し合わせて、それから子供の数で割ります。",
    "ko": "먼저 숫자를 더한 다음 아이들의 수로 나눕니다.",
    "ar": "أولا نجمع الأعداد معا ثم نقسم على عدد الأطفال.",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_a_sentence_is_in_its_own_language_only(language):
    for other, sentence in SENTENCES.items():
        assert share_in(sentence, language) == float(other == language)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "7",
        "3 + 4 = 7",
        "x = y",
        "Ok.",
        "```python\ndef total(numbers):\n    return the sum of all the numbers\n```",
        "```python\n# this block of code was never closed and has no end",
        r"$\text{where x is the number of all apples}$ \(\frac{a}{b}\) \[ \sum_{i} \text{for all the children} \]",
        "https://example.org/this/is/a/long/address/of/the/page",
        "\ud800 \x00 α",
        "`" * 1000 + "$" * 1000,
    ],
)
def test_what_is_in_no_language_does_not_count(text):
    assert share_in(text, "en") is None


def test_share_of_mixed_languages():
    # 15 words of English and 14 of German
    assert share_in(f"{SENTENCES['en']} {SENTENCES['de']}", "en") == pytest.approx(15 / 29)
    # two scripts in one sentence: seven words of English (a single letter is none), nine characters
    mixed = "We see that 孩子的人数 is the number of x 我们需要"
    assert share_in(mixed, "en") == pytest.approx(7 / 16) and share_in(mixed, "zh") == pytest.approx(9 / 16)
    assert share_in("<think>" + SENTENCES["en"] + "</think>\n" + r"So it is $x = 7$. \boxed{7}", "en") == 1.0


def test_amounts_of_money_are_not_mathematics():
    assert share_in("She paid $5 for all of the apples and then $6 for the bread.", "en") == 1.0


def test_equal_texts_get_equal_shares():
    assert len({share_in(" ".join(SENTENCES.values()), "fr") for _ in range(3)}) == 1


@pytest.mark.parametrize("language", ["english", "EN", "xx", "", "zxx"])
def test_unknown_language_is_refused(language):
    with pytest.raises(InputError, match="is not a language that can be told\n.*en, "):
        identifier(language)
