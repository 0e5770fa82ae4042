"""Our own `evaluate.Metric`s: they work offline, where `evaluate.load` would download a script.

Each returns its score under its own name, with the interval that `stats` gives: {"accuracy", "low", "high", "n"}.
`clusters=[...]` in `compute` names for each item the thing that it is about (see `stats.bootstrap`).
"""

import math

import datasets
import evaluate
from groundup import stats
from groundup.verifier import shared

# U+FFFD for a lone surrogate, which Arrow cannot store
SURROGATES = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")


class OwnMetric(evaluate.Metric):
    """What ours share: items are kept in memory, so that two runs on one machine do not meet in a cache file."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("keep_in_memory", kwargs.get("num_process", 1) == 1)
        super().__init__(*args, **kwargs)


def _information(description: str, **features: str) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description,
        citation="",
        inputs_description=description,
        features=datasets.Features({name: datasets.Value(kind) for name, kind in features.items()}),
    )


class ExactAnswer(OwnMetric):
    """Share of completions whose final answer is right, graded as the reward `correct_answer` grades it."""

    def _info(self) -> evaluate.MetricInfo:
        return _information(
            "Predictions are completions, references gold answers, both strings.",
            predictions="string",
            references="string",
        )

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Add completions and gold answers."""
        predictions = [text.translate(SURROGATES) for text in predictions]
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Add a completion and its gold answer."""
        super().add(prediction=prediction.translate(SURROGATES), reference=reference, **kwargs)

    def _compute(self, predictions, references, clusters=None) -> dict[str, float]:
        grades = shared().grade_batch(list(predictions), list(references))
        return _named("accuracy", stats.estimate([float(grade) for grade in grades], clusters))


class BitsPerByte(OwnMetric):
    """Bits that the model needs for a byte of text: comparable between tokenizers, unlike perplexity."""

    def _info(self) -> evaluate.MetricInfo:
        return _information(
            "Predictions are negative log-likelihoods of documents in nats, references their UTF-8 lengths in bytes.",
            predictions="float64",
            references="int64",
        )

    def _compute(self, predictions, references, clusters=None) -> dict[str, float]:
        bits, lengths = [nats / math.log(2) for nats in predictions], list(references)
        if not lengths or min(lengths) < 1:
            raise ValueError("bits per byte needs documents of at least one byte")
        low, high = stats.bootstrap(bits, weights=lengths, clusters=clusters)
        return {"bits_per_byte": sum(bits) / sum(lengths), "low": low, "high": high, "n": len(lengths)}


class Share(OwnMetric):
    """Share of ones among zeros and ones."""

    def _info(self) -> evaluate.MetricInfo:
        return _information("Predictions are 0 or 1.", predictions="int64")

    def _compute(self, predictions, clusters=None) -> dict[str, float]:
        predictions = list(predictions)
        if not set(predictions) <= {0, 1}:
            raise ValueError(f"a share is of zeros and ones, found {sorted(set(predictions) - {0, 1})[:3]}")
        return _named("share", stats.estimate(predictions, clusters))


def _named(name: str, estimate: dict[str, float]) -> dict[str, float]:
    return {name: estimate["value"], **{key: estimate[key] for key in ("low", "high", "n")}}
