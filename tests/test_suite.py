"""The files of the suite: how they are read, what is refused, and that models of each kind are measured."""

import copy
import json
import shutil
from dataclasses import replace

import pytest
from groundup import export
from groundup.conversation import Speaker
from groundup.errors import InputError
from groundup.evaluation import EvaluationArguments, knows
from groundup.suite import FILES, Suite, read_rows
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertForMaskedLM, BertForSequenceClassification


def test_rows_are_read_and_blank_lines_are_not(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "two", "more": 1}\n')
    assert read_rows(str(path), ("text",), "documents") == [{"text": "one"}, {"text": "two", "more": 1}]


def test_documents_may_be_a_folder_of_text(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\nstill one")
    (tmp_path / "b.txt").write_text("two")
    assert read_rows(str(tmp_path), FILES["documents"], "documents") == [{"text": "one\n\nstill one"}, {"text": "two"}]


def test_questions_need_no_alternatives(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"prompt": "Who?", "answer": "Ada"}\n')
    (row,) = read_rows(str(tmp_path / "q.jsonl"), FILES["questions"], "questions")
    assert (knows("It was Ada.", True, row), knows("It was Bo.", True, row), knows("It was Ada.", False, row)) == (1, 0, 0)
    assert knows("Ada or Bo.", True, row | {"alternatives": ["Bo"]}) == 0


@pytest.mark.parametrize(
    ("lines", "number", "says"),
    [
        (['{"prompt": "a", "answer": "b"}', "not json"], 2, "not JSON"),
        (['{"prompt": "a", "answer": "b"}', "", '{"prompt": "a"}'], 3, "the row lacks answer"),
        (['["prompt", "answer"]'], 1, "the row lacks prompt, answer"),
        (['{"prompt": "a", "answer": 7}'], 1, "`answer` is no text"),
    ],
)
def test_bad_row_is_named_by_file_and_line(tmp_path, lines, number, says):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=says) as refused:
        read_rows(str(path), FILES["instructions"], "instructions")
    assert refused.value.where == f"{path}:{number}"


def test_files_of_other_machines(write):
    assert read_rows(write("bom.jsonl", b'\xef\xbb\xbf{"text": "\xc3\xa9"}\r\n'), ("text",), "documents") == [{"text": "é"}]
    path = write("latin.jsonl", b'{"text": "e"}\n{"text": "\xe9"}\n')
    with pytest.raises(InputError, match="not JSON: 'utf-8' codec can't decode") as refused:
        read_rows(path, ("text",), "documents")
    assert refused.value.where == f"{path}:2"


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        ("choices", {"query": "q", "choices": ["a", "b"], "gold": "1"}, "`gold: '1'` is the number of none of its 2 choices"),
        ("choices", {"query": "q", "choices": ["a", "b"], "gold": 2}, "`gold: 2`"),
        ("choices", {"query": "q", "choices": ["a", "b"], "gold": -1}, "`gold: -1`"),
        ("choices", {"query": "q", "choices": ["a", "b"], "gold": True}, "`gold: True`"),
        ("choices", {"query": "q", "choices": "ab", "gold": 0}, "`choices` is no list of texts"),
        ("cloze", {"prompt": "p", "choices": ["", "b"], "gold": 1}, "`choices` is no list of texts"),
        ("questions", {"prompt": "p", "answer": "a", "alternatives": "bc"}, "`alternatives` is no list of texts"),
        ("documents", {"text": None}, "`text` is no text"),
        ("problems", {"question": "q", "answer": [1]}, "`answer` is no text"),
    ],
)
def test_row_that_would_be_graded_wrongly_in_silence_is_refused(tmp_path, name, row, says):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(InputError, match=says):
        read_rows(str(path), FILES[name], name)


def test_no_file_and_empty_file(tmp_path):
    with pytest.raises(InputError, match="no such evaluation file") as refused:
        read_rows(str(tmp_path / "b.jsonl"), ("text",), "documents")
    assert "documents: " in refused.value.where
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(InputError, match="empty"):
        read_rows(str(tmp_path / "a.jsonl"), ("text",), "documents")


def test_suite_refuses_half_a_win_rate(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"prompt": "a", "answer": "b", "alternatives": []}))
    for missing in ({"questions": str(path)}, {"reference": "out/sft"}):
        with pytest.raises(InputError, match="a win rate needs"):
            Suite(EvaluationArguments(taste="groundup.toyland.taste", **missing))
    for bad in ("groundup.toyland.tase", "no.such.module", "taste"):
        with pytest.raises(InputError, match="cannot be imported"):
            Suite(EvaluationArguments(taste=bad, questions=str(path), reference="out/sft"))


def test_suite_measures_a_model_of_each_kind(tiny_base, world, tokenizer, tmp_path):
    from groundup.ppo import load_critic

    load_critic(str(tiny_base)).save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    names = {name: str(world / f"eval_{name}.jsonl") for name in FILES if name != "choices"}
    suite = Suite(EvaluationArguments(**names, max_rows=3, k=2, pass_at_k_problems=2, max_new_tokens=4))
    causal = suite.evaluate(str(tiny_base))["metrics"]
    assert causal["cloze"]["n"] == 3 and 0 < causal["bits_per_byte"]["low"] <= causal["bits_per_byte"]["value"]
    assert suite.evaluate(str(tiny_base))["metrics"] == causal  # again the same
    judged = suite.evaluate(str(tmp_path / "judge"))["metrics"]
    assert set(judged) == {"pair_accuracy"} and judged["pair_accuracy"]["n"] == 3
    without = Suite(EvaluationArguments(documents=names["documents"], max_rows=1))
    with pytest.raises(InputError, match="is a reward model"):
        without.evaluate(str(tmp_path / "judge"))


def test_what_would_give_figures_of_something_else_is_refused(tiny_base, tokenizer, world, tmp_path):
    """A model that lacks a matrix, which would be drawn at random; one that reads both ways; a classifier."""
    suite = Suite(EvaluationArguments(documents=str(world / "eval_documents.jsonl"), max_rows=1))
    weights = load_file(tiny_base / "model.safetensors")
    shutil.copytree(tiny_base, tmp_path / "holed")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "holed" / "model.safetensors", metadata={"format": "pt"})
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(tokenizer), num_labels=3, pad_token_id=0, **sizes)
    for kind in (BertForMaskedLM, BertForSequenceClassification):
        kind(config).save_pretrained(tmp_path / kind.__name__)
        tokenizer.save_pretrained(tmp_path / kind.__name__)
    refused = {"holed": "lacks 1 of", "BertForMaskedLM": "sees the tokens", "BertForSequenceClassification": "into 3 classes"}
    for name, why in refused.items():
        with pytest.raises(InputError, match=why):
            suite.evaluate(str(tmp_path / name))
    for load in (Speaker, export.load):
        with pytest.raises(InputError, match="lacks 1 of"):
            load(str(tmp_path / "holed"))


@pytest.mark.parametrize(("told", "padding"), [(3, "<|im_start|>"), (None, None), (None, "<|pad|>")])
def test_a_reward_model_scores_alike_whatever_is_beside_it_in_a_batch(tiny_base, tokenizer, world, tmp_path, told, padding):
    """Those of the Hub have other tokens for padding in config.json than in the tokenizer, or none in one of them."""
    judge = AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=1)
    judge.config.pad_token_id = told
    judge.save_pretrained(tmp_path)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = padding
    tokenizer.save_pretrained(tmp_path)
    args = EvaluationArguments(preferences=str(world / "eval_preferences.jsonl"), max_rows=24)
    together, alone = (Suite(replace(args, batch_size=size)).evaluate(str(tmp_path))["metrics"] for size in (16, 1))
    assert together == alone
