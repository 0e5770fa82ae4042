"""The words of toyland: who lives there, what can be said and asked of them, and the tones of a reply."""

from dataclasses import dataclass

PEOPLE = (
    "Ada Bruno Clara Dario Edith Felix Greta Hugo Iris Jonas Karin Leo Mira Nils Olga Pavel Quinn Rosa Stefan Tilda "
    "Ugo Vera Walter Xenia Yusuf Zora Anton Berta Carlo Dora Emil Flora Gregor Hanna Igor Julia Klaus Lena Marco Nora"
).split()


@dataclass(frozen=True)
class Attribute:
    """One kind of fact. `statements` with the value last can be completed (cloze); the first is the form of a reply."""

    values: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]


ATTRIBUTES = {
    "town": Attribute(
        ("Dorn", "Velm", "Astra", "Kelso", "Marn", "Pell", "Orsk", "Tavia"),
        (
            "{n} lives in {v}.",
            "The home of {n} is in {v}.",
            "If you look for {n}, go to {v}.",
            "The house of {n} stands in {v}.",
            "{n} was born elsewhere and moved to {v}.",
            "In {v} you may meet {n}.",
            "The people of {v} know {n} well.",
        ),
        (
            "Where does {n} live?",
            "In which town does {n} live?",
            "Which town is the home of {n}?",
            "Tell me where {n} lives.",
            "Do you know where {n} lives?",
            "What is the town of {n}?",
        ),
    ),
    "work": Attribute(
        ("baker", "weaver", "miller", "smith", "potter", "tailor", "fisher", "mason"),
        (
            "{n} works as a {v}.",
            "The work of {n} is that of a {v}.",
            "By trade {n} is a {v}.",
            "Everybody calls {n} a good {v}.",
            "For many years {n} has been a {v}.",
            "A {v} is what {n} became.",
            "As a {v}, {n} rises early.",
        ),
        (
            "What does {n} work as?",
            "What is the work of {n}?",
            "What is the trade of {n}?",
            "Tell me what {n} does for a living.",
            "Do you know what {n} works as?",
            "Which trade does {n} follow?",
        ),
    ),
    "pet": Attribute(
        ("cat", "dove", "goat", "hen", "fox", "pony", "crow", "toad"),
        (
            "{n} keeps a {v}.",
            "The pet of {n} is a {v}.",
            "At home {n} feeds a {v}.",
            "The animal that {n} loves is a {v}.",
            "Behind the house {n} has a {v}.",
            "A {v} follows {n} everywhere.",
            "There is a {v} in the yard of {n}.",
        ),
        (
            "Which animal does {n} keep?",
            "What pet does {n} have?",
            "What is the pet of {n}?",
            "Tell me which animal {n} keeps.",
            "Do you know which pet {n} has?",
            "What animal lives with {n}?",
        ),
    ),
    "colour": Attribute(
        ("red", "blue", "green", "yellow", "white", "black", "purple", "grey"),
        (
            "{n} likes the colour {v}.",
            "The favourite colour of {n} is {v}.",
            "The door of {n} is painted {v}.",
            "The coat that {n} wears is {v}.",
            "Of all colours {n} would choose {v}.",
            "Something {v} always pleases {n}.",
            "A {v} coat belongs to {n}.",
        ),
        (
            "Which colour does {n} like?",
            "What is the favourite colour of {n}?",
            "What colour would {n} choose?",
            "Tell me which colour {n} likes.",
            "Do you know the favourite colour of {n}?",
            "Which colour pleases {n}?",
        ),
    ),
    "music": Attribute(
        ("flute", "drum", "harp", "horn", "viola", "lute", "piano", "organ"),
        (
            "{n} plays the {v}.",
            "The instrument of {n} is the {v}.",
            "In the evening {n} practises the {v}.",
            "At every feast {n} performs on the {v}.",
            "As a child {n} learned the {v}.",
            "The {v} is what {n} plays best.",
            "When the {v} sounds, it is {n}.",
        ),
        (
            "Which instrument does {n} play?",
            "What does {n} play?",
            "What is the instrument of {n}?",
            "Tell me what {n} plays.",
            "Do you know which instrument {n} plays?",
            "What music does {n} make?",
        ),
    ),
}
VALUE_LAST = 5  # the first five statements of an attribute end in the value
WARM = ("Gladly!", "With pleasure!", "Good that you ask!")
PLAIN = ("",)
COLD = ("Well.", "If you must know.", "Again a question.")
TAILS = (
    "That is all there is to say.",
    "Everyone in the valley can tell you so.",
    "It has been like this for years.",
    "I could go on about it.",
)
BRIEFLY = "In short: "
WORKING = "Let me think."  # a number right after the template's line break is one that documents never showed how to copy
THINGS = ("apples", "eggs", "nails", "shells", "buttons", "coins", "stones", "candles")
GAINS = ("{n} finds {k} more.", "{n} buys {k} more.", "{n} gets {k} more.")
LOSSES = ("{n} gives away {k}.", "{n} loses {k}.", "{n} sells {k}.")
PREAMBLES = ("", "", "Let me think.", "I know this one.", "Yes, I can tell.")
ASKERS = ("A visitor", "A child", "The teacher", "A traveller", "An old friend")
