"""Tasks of lm-evaluation-harness: its own results, with intervals, from local files."""

import gzip
import json
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")

from groundup import stats  # noqa: E402
from groundup.errors import InputError  # noqa: E402
from groundup.evaluation import EvaluationArguments, Model  # noqa: E402
from groundup.harness import Scorer, Tasks, interval  # noqa: E402
from groundup.suite import Suite  # noqa: E402

TASKS = Path(__file__).parents[1] / "recipes" / "tasks"
DATA = Path(__file__).parents[1] / ".." / "shared" / "data"
real_data = pytest.mark.skipif(not (DATA / "mc_eval").is_dir(), reason="../shared/data is not there")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder of the form that recipes/tasks reads, with a few questions of our own."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {
            "id": str(n),
            "query": f"Question: What is {n} and {n}?\nAnswer:",
            "choices": [str(2 * n), "none", "it is not known"],
            "gold": n % 3,
        }
        for n in range(12)
    ]
    blanks = [{"id": str(n), "query": f"Ada met Bo so _ said {n}.", "choices": ["Ada", "Bo"], "gold": n % 2} for n in range(4)]
    problems = [{"question": f"What is {n} + 1?", "answer": f"It is <<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1}"} for n in range(8)]
    files = {"mc_eval/arc_easy": rows, "mc_eval/winogrande": blanks, "gsm8k/train": problems, "gsm8k/test": problems[:2]}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in content)
    return tmp_path


def theirs(model, tokenizer, loaded, **settings):
    """The harness's results by the harness's own model."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    scorer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    return evaluate(scorer, loaded, bootstrap_iters=1000, **settings)


def check(tasks, model, tokenizer, names):
    found = tasks.measure(Model(model, tokenizer, batch_size=4))
    expected = theirs(model, tokenizer, tasks.loaded, limit=tasks.args.max_rows)["results"]
    for name, keys in names.items():
        for key in keys:
            entry, metric = found[f"{name}/{key}"], f"{key},none"
            assert entry["value"] == expected[name][metric]
            assert entry["stderr"] == pytest.approx(expected[name][f"{key}_stderr,none"])
            low, high = stats.wilson(round(entry["value"] * entry["n"]), entry["n"])
            assert (entry["low"], entry["high"]) == pytest.approx((low, high))
    return found


def test_results_are_the_harness_own(data, tiny_model, tokenizer):
    tasks = Tasks(EvaluationArguments(tasks="local_arc_easy,local_winogrande", task_data=str(data)), TASKS)
    found = check(tasks, tiny_model, tokenizer, {"local_arc_easy": ["acc", "acc_norm"], "local_winogrande": ["acc"]})
    assert set(found) == {"local_arc_easy/acc", "local_arc_easy/acc_norm", "local_winogrande/acc"}
    entry = found["local_arc_easy/acc"]
    assert (entry["n"], entry["version"], entry["num_fewshot"], entry["decoding"]) == (12, 1.0, 0, "log-likelihood")
    kept = entry["items"]
    assert len(kept["values"]) == 12 and sum(kept["values"]) / 12 == pytest.approx(entry["value"])
    again = Tasks(EvaluationArguments(tasks="local_arc_easy", task_data=str(data)), TASKS)
    assert again.measure(Model(tiny_model, tokenizer, 2))["local_arc_easy/acc"]["items"] == kept
    assert entry["prompt"] == "{{query}}" and entry["file"] == "local_arc_easy" and entry["higher_is_better"] is True
    assert (
        tasks.texts["local_arc_easy"][1] == ["1", "Question: What is 1 and 1?\nAnswer:"]
        and len(tasks.texts["local_winogrande"]) == 4
    )


def test_our_own_measure_gives_the_same_figures(data, tiny_base, tiny_model):
    """`choices` in evaluate.yaml, and the harness's task on the same file."""
    args = {"tasks": "local_arc_easy", "task_data": str(data), "choices": str(data / "mc_eval" / "arc_easy.jsonl.gz")}
    found = Suite(EvaluationArguments(**args), TASKS).evaluate(str(tiny_base))["metrics"]
    for ours, its in (("choices", "acc"), ("choices_norm", "acc_norm")):
        same = ("value", "low", "high", "n")
        assert [found[ours][key] for key in same] == [found[f"local_arc_easy/{its}"][key] for key in same]
    assert found["choices"]["prompt"] == "{query} {choice}" and found["choices"]["seed"] == 0


def test_answers_are_generated_after_examples_of_the_training_set(data, tiny_model, tokenizer):
    tasks = Tasks(EvaluationArguments(tasks="local_gsm8k", task_data=str(data), num_fewshot=2, max_rows=1), TASKS)
    model = Model(tiny_model, tokenizer, batch_size=4)
    asked = []
    said = Scorer.generate_until
    try:
        Scorer.generate_until = lambda self, requests, **_: asked.extend(r.args[0] for r in requests) or ["It is 1.\n#### 1"]
        found = tasks.measure(model)
    finally:
        Scorer.generate_until = said
    (prompt,) = asked
    assert prompt.count("Question:") == 3 and prompt.count("####") == 2 and prompt.endswith("What is 0 + 1?\nAnswer:")
    assert {name: entry["value"] for name, entry in found.items()} == {
        "local_gsm8k/exact_match,strict-match": 1.0,
        "local_gsm8k/exact_match,flexible-extract": 1.0,
    }
    entry = found["local_gsm8k/exact_match,strict-match"]
    assert (entry["num_fewshot"], entry["decoding"], entry["version"], entry["n"]) == (2, "greedy", 3.0, 1)


def test_generation_stops_where_the_task_says(tiny_model, tokenizer):
    from lm_eval.api.instance import Instance

    scorer = Scorer(Model(tiny_model, tokenizer, batch_size=2))
    assert scorer.max_gen_toks == 256 and Scorer(Model(tiny_model, tokenizer, 2)).max_length == 512
    (free,) = scorer.generate_until([Instance("generate_until", {}, ("Ada", {"until": [], "max_gen_toks": 12}), 0)])
    stop = free[len(free) // 2 :][:2]
    (stopped,) = scorer.generate_until([Instance("generate_until", {}, ("Ada", {"until": [stop], "max_gen_toks": 12}), 0)])
    assert free and stopped == free[: free.index(stop)]


@pytest.mark.parametrize(
    ("settings", "what", "fix"),
    [
        ({"tasks": "local_arc_esay"}, "no task `local_arc_esay`", "did you mean `local_arc_easy`?"),
        ({"tasks": "local_arc_easy"}, "needs its data", "name the folder"),
        ({"tasks": "local_arc_easy", "task_data": "nowhere"}, "cannot be loaded", "check `task_data`"),
    ],
)
def test_a_mistake_is_said_before_a_model_is_loaded(settings, what, fix):
    with pytest.raises(InputError) as refused:
        Suite(EvaluationArguments(**settings), TASKS)
    assert what in refused.value.what and fix in refused.value.fix


def test_interval():
    assert interval(0.0, 0.0, [0.0] * 10) == {**stats.estimate([0.0] * 10), "stderr": 0.0}
    found = interval(2.0, 0.5, [1.0, 3.0])
    assert (found["low"], found["high"]) == pytest.approx((1.02, 2.98))
    assert interval(0.5, "N/A", [])["low"] is None


def test_every_task_file_has_its_own_name():
    from lm_eval.tasks._yaml_loader import load_yaml

    for path in TASKS.glob("*.yaml"):
        config = load_yaml(path)
        assert config["task"] == path.stem and config["metadata"]["version"] and config["test_split"] == "test"


@real_data
@pytest.mark.parametrize("name", ["local_arc_easy", "local_hellaswag", "local_winogrande", "local_boolq"])
def test_real_questions(name, tiny_model, tokenizer, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    tasks = Tasks(EvaluationArguments(tasks=name, task_data=str(DATA), max_rows=8), TASKS)
    check(tasks, tiny_model, tokenizer, {name: ["acc"] if name == "local_winogrande" else ["acc", "acc_norm"]})
