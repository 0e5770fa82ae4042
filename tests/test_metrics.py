"""The metrics are real `evaluate.Metric`s that need no network, and say how sure they are."""

import math

import evaluate
import pytest
from groundup.metrics import BitsPerByte, ExactAnswer, Share
from groundup.stats import wilson


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("a metric opened a connection")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path))


def test_exact_answer():
    result = ExactAnswer().compute(
        predictions=["Answer: 7", "Answer: 8", r"\boxed{\frac{14}{2x}}", "\ud800"],
        references=["7", "7", r"\frac{7}{x}", "7"],
    )
    low, high = wilson(2, 4)
    assert result == {"accuracy": 0.5, "low": low, "high": high, "n": 4}


def test_exact_answer_in_batches():
    metric = ExactAnswer()
    assert isinstance(metric, evaluate.Metric) and metric.name == "exact_answer"
    metric.add_batch(predictions=["Answer: 1", "Answer: 2"], references=["1", "1"])
    metric.add(prediction="Answer: 3", reference="3")
    assert metric.compute()["accuracy"] == pytest.approx(2 / 3)
    assert metric.compute(predictions=["Answer: 1"], references=["1"])["n"] == 1  # starts afresh


def test_bits_per_byte():
    nats = [8 * math.log(2), 1 * math.log(2)]  # 8 bits for 2 bytes, 1 bit for 1 byte
    result = BitsPerByte().compute(predictions=nats, references=[2, 1])
    assert result["bits_per_byte"] == pytest.approx(3.0)  # 9 bits, 3 bytes; not the mean of 4 and 1
    assert result["low"] == pytest.approx(1.0) and result["high"] == pytest.approx(4.0) and result["n"] == 2
    # 256 equally likely bytes cost 8 bits each
    uniform = BitsPerByte().compute(predictions=[n * math.log(256) for n in (3, 50)], references=[3, 50])
    assert [uniform[key] for key in ("bits_per_byte", "low", "high")] == pytest.approx([8.0] * 3)
    with pytest.raises(ValueError, match="at least one byte"):
        BitsPerByte().compute(predictions=[1.0], references=[0])


def test_share():
    assert Share().compute(predictions=[1, 0, 1, 1]) == {
        "share": 0.75,
        "low": wilson(3, 4)[0],
        "high": wilson(3, 4)[1],
        "n": 4,
    }
    clustered = Share().compute(predictions=[1, 1, 0, 0], clusters=["a", "a", "b", "b"])
    assert (clustered["low"], clustered["high"]) == (0.0, 1.0)  # two facts, one known
    with pytest.raises(ValueError, match="zeros and ones"):
        Share().compute(predictions=[2])
