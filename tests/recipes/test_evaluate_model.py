"""recipes/evaluate_model.py on a rung and on a model of another kind: what stands in eval.json."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from groundup import record, scoreboard, stats
from groundup.command_line import parse
from groundup.errors import InputError
from groundup.evaluation import EvaluationArguments
from groundup.suite import FILES
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

RECIPE = Path(__file__).parents[2] / "recipes" / "evaluate_model.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("evaluate_model", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def evaluate(recipe, capsys):
    def evaluate(*words):
        recipe.main(*parse([recipe.ModelsArguments, EvaluationArguments], list(map(str, words))))
        return capsys.readouterr().out

    return evaluate


@pytest.fixture
def another(tokenizer, tmp_path):
    """A GPT-2 as the Hub has it: no chat template, no token for padding, its own name for how much it takes."""
    directory = tmp_path / "gpt2"
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=96, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(directory)
    return directory


def files_of(world):
    return [
        word for name in FILES if (world / f"eval_{name}.jsonl").is_file() for word in (f"--{name}", world / f"eval_{name}.jsonl")
    ]


SMALL = ["--max_rows", 4, "--k", 2, "--pass_at_k_problems", 2, "--max_new_tokens", 4]


def test_every_figure_says_how_sure_it_is_and_how_it_was_asked(evaluate, another, world, write, tmp_path):
    choices = write("choices.jsonl", [{"query": "Ada lives in", "choices": ["Dorn", "Velm"], "gold": 0}] * 3)
    said = evaluate("--model", another, *files_of(world), "--choices", choices, *SMALL, "--seed", 3)
    metrics = record.read_evaluation(another)["metrics"]
    assert {"bits_per_byte", "cloze", "choices", "choices_norm", "asked", "follows", "problems", "problems_pass_at_k"} <= set(
        metrics
    )
    for name, figure in metrics.items():
        assert figure["low"] <= figure["value"] <= figure["high"] and figure["n"] > 0, name
        assert figure["seed"] == 3 and figure["prompt"] and figure["decoding"], name
        assert figure["contaminated"] == "not checked", name
    assert metrics["asked"]["prompt"] == "{prompt}\n" and metrics["asked"]["decoding"] == "greedy"
    assert metrics["problems_pass_at_k"]["decoding"] == "sampled at temperature 1"
    assert "cloze not checked against the training data: " in said and "there is no record" in said
    # what each item gave is beside it, and makes the figure again
    items = record.read_items(another)
    assert set(items) == set(metrics) and "items" not in metrics["cloze"]
    for name, figure in metrics.items():
        kept = items[name]
        found = stats.estimate(kept["values"], kept.get("clusters"), kept.get("weights"))
        assert found == pytest.approx({key: figure[key] for key in found}), name
    assert items["problems"]["items_sha256"] != items["problems_harder"]["items_sha256"]
    assert items["bits_per_byte"]["items_sha256"] == items["bits_per_token"]["items_sha256"]
    assert len((another / record.ITEMS).read_text().splitlines()) == 1


def test_items_go_with_the_figures(evaluate, tiny_base, world, tmp_path):
    directory = tmp_path / "base"
    shutil.copytree(tiny_base, directory)
    few, more = (["--model", directory, "--cloze", world / "eval_cloze.jsonl", "--max_rows", n] for n in (3, 5))
    evaluate(*few)
    first = record.read_items(directory)["cloze"]
    assert "finished already" in evaluate(*few)
    evaluate(*more)
    second = record.read_items(directory)["cloze"]
    assert len(second["values"]) == 5 and first["items_sha256"] != second["items_sha256"]
    evaluate(*few)
    assert record.read_items(directory)["cloze"] == first  # the same rows, the same identity
    (directory / record.ITEMS).unlink()
    evaluate(*few)  # an evaluation from before there were any is measured again
    assert record.read_items(directory)["cloze"] == first


def test_what_was_trained_on_is_found_again_and_said_beside_the_figure(evaluate, tiny_base, world, write, tmp_path):
    from groundup.sources import describe_files, find_files

    rows = [json.loads(line) for line in (world / "eval_documents.jsonl").read_text().splitlines()][:4]
    directory = tmp_path / "pretrain"
    directory.mkdir()
    for file in tiny_base.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    taught = write("documents.jsonl", [{"text": rows[0]["text"]}])
    data = [{"name": taught, **describe_files(find_files(taught))}]
    record.write(
        directory, {"rung": "pretrain", "status": "finished", "data": data, "seed": 0, "config": {}} | record.hashes(directory)
    )
    said = evaluate("--models", directory, "--documents", world / "eval_documents.jsonl", "--max_rows", 4)
    found = record.read_evaluation(directory)
    seen = found["overlap"]["documents"]
    assert seen["items"] == 4 and seen["share"] >= 0.25
    assert found["metrics"]["bits_per_byte"]["contaminated"] == seen["share"]
    share = f"{100 * seen['share']:.0f} %"
    assert (
        f" †{share.replace(' ', '')}" in said
        and scoreboard.OVERLAP in said
        and f"| {share} |" in (directory / "README.md").read_text()
    )
    assert "finished already" in evaluate("--model", directory, "--documents", world / "eval_documents.jsonl", "--max_rows", 4)
    evaluate("--model", directory, "--documents", world / "eval_documents.jsonl", "--max_rows", 4, "--check_overlap", "false")
    assert record.read_evaluation(directory)["metrics"]["bits_per_byte"]["contaminated"] == "not checked"


def test_no_model_is_refused(evaluate):
    with pytest.raises(InputError, match="no model to measure"):
        evaluate("--max_rows", 4)
    with pytest.raises(InputError, match="no model in `no/such-model`"):
        evaluate("--model", "no/such-model")


def test_tasks_without_the_harness_say_what_to_install(evaluate, tiny_base, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for name in [name for name in sys.modules if name.startswith(("lm_eval.", "groundup.harness"))]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InputError, match="lm-evaluation-harness") as refused:
        evaluate("--model", tiny_base, "--tasks", "arc_easy")
    assert refused.value.fix == "pip install 'groundup[eval]'"


def test_a_model_is_measured_again_when_what_it_is_asked_or_compared_with_has_changed(
    evaluate, another, tiny_base, write, tmp_path
):
    rows = [{"prompt": "Where does Ada live?", "answer": "Dorn", "alternatives": ["Velm"]}]
    (reference := tmp_path / "sft").mkdir()
    for file in tiny_base.iterdir():
        (reference / file.name).write_bytes(file.read_bytes())

    def measured_again():
        words = ("--model", another, "--questions", tmp_path / "q.jsonl", "--max_new_tokens", 2, "--check_overlap", "false")
        return "finished already" not in evaluate(*words, "--taste", "groundup.toyland.taste", "--reference", reference)

    write("q.jsonl", rows)
    assert measured_again() and not measured_again()
    write("q.jsonl", [*rows, {**rows[0], "prompt": "Where does Bo live?"}])
    assert measured_again() and not measured_again()
    weights = reference / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert measured_again() and not measured_again()
