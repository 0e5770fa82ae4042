"""Two runs of invented figures: what is compared with what, what is said of it, and what else is found to differ."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from browser import browser  # noqa: F401
from groundup import comparison, record, stats
from groundup.errors import InputError
from groundup.evaluation import figure
from test_report import HOSTILE, Page

RECIPE = Path(__file__).parents[1] / "recipes" / "report.py"
ITEMS = [{"question": str(n)} for n in range(100)]


def marks(share: float, seed: str) -> list[float]:
    generator = random.Random(seed)
    return [float(generator.random() < share) for _ in ITEMS]


def add_rung(run, name, metrics=None, losses=(), config=None, **fields):
    """A stage directory as a rung and its evaluation leave it; `metrics` are figures with their items."""
    stage = run / name
    stage.mkdir(parents=True)
    config = {"output_dir": f"out/{run.name}/{name}", "learning_rate": 1e-3, **(config or {})}
    hashes = {"weights_sha256": fields.pop("weights", f"{run.name} {name}"), "tokenizer_sha256": "ab" * 32}
    record.write(stage, {"rung": name, "status": "finished", "seed": 0, "config": config, **hashes, **fields})
    if metrics is not None:
        settings = {"problems": "world/problems.jsonl", "k": 8}
        weights = hashes["weights_sha256"]
        record.write_evaluation(stage, {"rung": name, "weights_sha256": weights, "settings": settings, "metrics": metrics})
    history = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
    (stage / "trainer_state.json").write_text(json.dumps({"log_history": history}))


@pytest.fixture
def runs(tmp_path):
    a, b = tmp_path / "one", tmp_path / "two"
    sizes = [random.Random(n).randint(50, 400) for n in range(100)]
    bits = [size * random.Random(f"bits {n}").gauss(1, 0.2) for n, size in enumerate(sizes)]
    less = [value - 0.05 * size for value, size in zip(bits, sizes, strict=True)]
    worked = marks(0.3, "problems")
    better = [1.0 if n < 30 else value for n, value in enumerate(worked)]
    for run, said, solved, losses in ((a, bits, worked, [3, 2, 1]), (b, less, better, [3, 2, 0.5])):
        add_rung(run, "random", {"problems": figure([0.0] * 100, ITEMS)}, weights="the same")
        documents = {"bits_per_byte": figure(said, ITEMS, weights=sizes)}
        add_rung(run, "pretrain", documents, losses, tokens=1000, seconds=10 if run is a else 5, versions={"torch": "2.0"})
        data = [{"name": f"out/{run.name}/world/problems.jsonl", "sha256": ("0" if run is a else "1") * 64, "rows": 5}]
        add_rung(run, "grpo", {"problems": figure(solved, ITEMS)}, data=data)
    add_rung(a, "dpo")
    record.update(b / "pretrain", versions={"torch": "2.1"}, git_commit="cd" * 20)
    record.update(b / "grpo", config={**record.read(b / "grpo")["config"], "learning_rate": 2e-3})
    return a, b


def rows_of(found):
    return {(row["rung"], row["metric"]): row for row in found["rows"]}


def test_the_same_items_are_compared_one_by_one(runs):
    rows = rows_of(comparison.compare(*runs))
    a, b = (record.read_items(run / "grpo")["problems"]["values"] for run in runs)
    row = rows["grpo", "problems"]
    assert row["paired"] and row["kind"] == "gain" and row["apart"]
    assert (row["value"], row["low"], row["high"]) == pytest.approx(tuple(stats.difference(b, a).values())[:3])
    only_a, only_b = (sum(x > y for x, y in zip(*pair, strict=True)) for pair in ((a, b), (b, a)))
    assert row["only"] == [only_a, only_b] == [0, only_b] and only_b > 15 and row["p"] == pytest.approx(2 / 2**only_b)
    bits = rows["pretrain", "bits_per_byte"]
    assert bits["paired"] and bits["kind"] == "gain" and bits["value"] == pytest.approx(-0.05)  # a share of each document's size
    assert bits["high"] - bits["low"] < 1e-9 and bits["only"] is None


def test_other_items_are_compared_by_their_intervals(runs):
    a, b = runs
    paired = rows_of(comparison.compare(a, b))["grpo", "problems"]
    values = record.read_items(b / "grpo")["problems"]["values"]
    evaluation = record.read_evaluation(b / "grpo")
    others = [{"question": f"another {n}"} for n in range(100)]
    record.write_evaluation(b / "grpo", {**evaluation, "metrics": {"problems": figure(values, others)}})
    row = rows_of(comparison.compare(a, b))["grpo", "problems"]
    assert not row["paired"] and row["why"] == "other items" and row["only"] is None
    assert row["value"] == pytest.approx(paired["value"]) and row["high"] - row["low"] > paired["high"] - paired["low"]
    assert "1 are compared unpaired, by their two intervals (other items)" in " ".join(comparison.summary(comparison.compare(a, b)))


def test_items_that_are_missing_or_of_another_evaluation_are_not_used(runs):
    a, b = runs
    (b / "grpo" / record.ITEMS).unlink()  # evaluated by a groundup that kept none
    evaluation = record.read_json(a / "pretrain" / record.EVALUATION)
    evaluation["metrics"]["bits_per_byte"]["value"] += 0.01
    record.write_json(a / "pretrain" / record.EVALUATION, evaluation)
    rows = rows_of(comparison.compare(a, b))
    assert rows["grpo", "problems"]["why"] == "no items kept of B"
    assert rows["pretrain", "bits_per_byte"]["why"] == "the items of A are not of its figure"


def test_a_figure_without_an_interval_is_only_subtracted():
    row = comparison.difference("t/bleu", [{"value": 3.0}, {"value": 5.0, "low": 4.0, "high": 6.0}], [None, None])
    assert (row["value"], row["low"], row["p"], row["apart"], row["kind"]) == (2.0, None, None, False, "same")


def test_what_is_measured_otherwise_is_said(runs):
    a, b = runs
    for run, other in ((a, "00"), (b, "11")):
        evaluation, items = record.read_evaluation(run / "grpo"), record.read_items(run / "grpo")
        told = {"items": items["problems"], "reference_sha256": other, "seed": 0}
        record.write_evaluation(run / "grpo", evaluation | {"metrics": {"problems": evaluation["metrics"]["problems"] | told}})
    found = comparison.compare(a, b)
    row = rows_of(found)["grpo", "problems"]
    assert row["otherwise"] == ["over other models"] and comparison.how(row).endswith("; over other models")
    assert any(line.startswith("1 were measured otherwise") for line in comparison.summary(found))


def test_the_same_weights_are_no_evidence(runs):
    found = comparison.compare(*runs)
    assert not rows_of(found)["random", "problems"]["tested"]
    said = comparison.summary(found)
    assert "random: the same weights, and the same on every item." in said
    assert "2 of 2 differences between different weights are apart from 0 (95 %): 2 better in B." in said
    assert "random" not in comparison.as_markdown(found).partition("## ")[0].partition("| Rung")[2]


def test_many_differences_are_corrected_for_chance(tmp_path):
    """Forty measures of two models that are equally good: some are apart, and none of them stays."""
    for run in ("one", "two"):
        add_rung(tmp_path / run, "sft", {f"zeal {n}": figure(marks(0.5, f"{run} {n}"), ITEMS) for n in range(40)})
    found = comparison.compare(tmp_path / "one", tmp_path / "two")
    apart = [row for row in found["rows"] if row["apart"]]
    assert 0 < len(apart) < 8 and not any(row["stays"] for row in found["rows"])
    assert "about 2.0 of 40 would be apart by chance" in " ".join(comparison.summary(found))


def test_what_else_differs_is_found(runs):
    found = comparison.compare(*runs)
    assert found["alone"] == [["dpo"], []] and found["rungs"] == ["random", "pretrain", "grpo"]
    assert sorted(found["others"]) == [
        ["commit", "commit: unknown -> cdcdcdcdcdcd", "pretrain"],
        ["data", "RUN/world/problems.jsonl.sha256: 000000000000 -> 111111111111", "grpo"],
        ["settings", "learning_rate: 0.001 -> 0.002", "grpo"],
        ["versions", "torch: 2.0 -> 2.1", "pretrain"],
    ]
    assert found["costs"] == [["pretrain", "tokens", "1 k", "1 k", "1.00"], ["pretrain", "time", "10 s", "5 s", "0.50"]]
    for name in ("random", "pretrain", "grpo"):
        record.update(runs[1] / name, tokenizer_sha256="ef" * 32)
    assert ["started from", f"tokenizer: {'ab' * 6} -> {'ef' * 6}", "all"] in comparison.compare(*runs)["others"]


def test_paths_within_a_run_are_alike_and_shared_ones_too(runs):
    """Both came from `out/one/sft`; the data of each is its own, and lies where its run does."""
    for run in runs:
        known = record.read(run / "pretrain")
        data = [
            {"name": f"out/{run.name}/world/a.jsonl", "sha256": "0" * 64},
            {"name": "out/one/world/b.jsonl", "sha256": "1" * 64},
        ]
        config = {**known["config"], "model_name_or_path": "out/one/sft", "dataset": f"out/{run.name}/world"}
        record.update(run / "pretrain", config=config, data=data, parent={"path": "out/one/sft", "weights_sha256": "2" * 64})
    assert [line for line in comparison.compare(*runs)["others"] if line[2] == "pretrain" and line[0] in ("settings", "data")] == []


def test_an_evaluation_of_other_weights_is_a_warning(runs):
    record.update(runs[1] / "grpo", weights_sha256="newer")
    assert comparison.compare(*runs)["warnings"] == ["B: grpo: eval.json tells of other weights than run.json."]


def test_markdown(runs):
    text = comparison.as_markdown(comparison.compare(*runs))
    lines = text.splitlines()
    assert lines[:3] == [f"- A: {runs[0]}", f"- B: {runs[1]}", "- Only in A: dpo."]
    (row,) = (line for line in lines if line.startswith("| grpo | Problems"))
    assert " better* | paired, n 100; right in A only 0, in B only " in row and row.endswith("p below 0.001 |")
    (bits,) = (line for line in lines if line.startswith("| pretrain | Bits per byte"))
    assert "| -0.0500 (-0.0500 to -0.0500) better* |" in bits
    assert "## What else differs" in lines and "## What it took" in lines


def test_the_page_escapes_everything_and_shows_both_curves(runs, tmp_path):
    a, b = runs
    add_rung(a, HOSTILE.replace("/", ""), {f"zeal {HOSTILE}": figure(marks(0.5, "x"), ITEMS)})
    add_rung(b, HOSTILE.replace("/", ""), {f"zeal {HOSTILE}": figure(marks(0.5, "y"), ITEMS)})
    path = comparison.write_comparison(comparison.compare(a, b), tmp_path / "new" / "c.html")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open and "img" not in page.elements
    assert text.count("<svg") == 1 and "Loss, pretrain: A from 3 to 1; B from 3 to 0.5" in text
    with pytest.raises(InputError, match="is a directory"):
        comparison.write_comparison(comparison.compare(a, b), tmp_path)


def plot_of(page: str, label: str) -> list[float]:
    row = page.partition(f'<th scope="row">{label}</th>')[2]
    return [float(row.partition(f"--{name}:")[2].partition(";")[0].partition('"')[0]) for name in "lvh"]


def test_plots_lie_around_zero(runs, tmp_path):
    page = comparison.write_comparison(comparison.compare(*runs), tmp_path / "c.html").read_text()
    low, value, high = plot_of(page, "Problems")
    assert 0.5 < low < value < high == 1  # a gain, to the right; the farthest end is at the edge
    assert plot_of(page, "Bits per byte") == [0, 0, 0]  # fewer bits, to the left


def run_recipe(*arguments, cwd):
    command = [sys.executable, str(RECIPE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_recipe(runs, tmp_path):
    done = run_recipe("--compare", *runs, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"- A: {runs[0]}") and done.stdout.endswith("\ncomparison.html\n")
    assert (tmp_path / "comparison.html").is_file()
    done = run_recipe("--compare", *runs, "--output", "sub/x.html", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "sub" / "x.html").is_file()


@pytest.mark.parametrize("words", [[], ["a", "--compare", "a", "b"], ["a", "--output", "x.html"], ["--compare", "a"]])
def test_recipe_says_how_it_is_called(words, tmp_path):
    done = run_recipe(*words, cwd=tmp_path)
    assert done.returncode == 2 and "usage:" in done.stderr and "Traceback" not in done.stderr


def test_mistakes_are_named(runs, tmp_path):
    a, b = runs
    with pytest.raises(InputError, match="the same run twice"):
        comparison.compare(a, tmp_path / "two" / ".." / "one")
    with pytest.raises(InputError, match="no run directory"):
        comparison.compare(a, tmp_path / "three")
    add_rung(tmp_path / "three", "sft", {"problems": figure([1.0], ITEMS[:1])})
    with pytest.raises(InputError, match="no rung in common: random, pretrain, dpo, grpo .*one.* and sft"):
        comparison.compare(a, tmp_path / "three")
    add_rung(tmp_path / "four", "grpo")
    with pytest.raises(InputError, match="no rung of .*four has been evaluated") as refused:
        comparison.compare(a, tmp_path / "four")
    assert "evaluate_model.py" in refused.value.fix and "--models grpo" in refused.value.fix
    add_rung(tmp_path / "five", "grpo", {"zeal": figure([1.0], ITEMS[:1])})
    with pytest.raises(InputError, match="no figure in common"):
        comparison.compare(a, tmp_path / "five")
    done = run_recipe("--compare", a, a, cwd=tmp_path)
    assert done.returncode == 2 and "the same run twice" in done.stderr and "fix:" in done.stderr and done.stdout == ""


@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(runs, tmp_path, browser, width):  # noqa: F811
    page = comparison.write_comparison(comparison.compare(*runs), tmp_path / "c.html")
    browser.resize(width, 844)
    browser.open(page.as_uri())
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate("getComputedStyle(document.querySelector('.sides thead')).display") == (
        "none" if width == 390 else "table-header-group"
    )
    shown = browser.evaluate("document.querySelector('.sides tbody tr').innerText")
    assert "Bits per byte" in shown and "better" in shown
    assert browser.evaluate("document.querySelectorAll('figure.chart svg polyline').length") == 2
    assert not browser.errors
