"""The files of the suite: how they are read, what is refused, and that models of each kind are measured."""

import json

import pytest
from groundup.errors import InputError
from groundup.evaluation import EvaluationArguments, knows
from groundup.suite import FILES, Suite, read_rows


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
    ],
)
def test_bad_row_is_named_by_file_and_line(tmp_path, lines, number, says):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=says) as refused:
        read_rows(str(path), FILES["instructions"], "instructions")
    assert refused.value.where == f"{path}:{number}"


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
