import json

import pytest
import yaml
from groundup import record
from groundup.card import non_defaults, write_card
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

RUN = {
    "rung": "sft",
    "status": "finished",
    "parent": {"path": "out/nano/pretrain", "weights_sha256": "ab" * 32, "tokenizer_sha256": "cd" * 32},
    "config": {"learning_rate": 0.003, "max_steps": 400, "weight_decay": 0.0, "output_dir": "/somewhere/else"},
    "data": [{"name": "toyland/conversations", "sha256": "0f" * 32, "rows": 12000, "kept": 11990, "dropped": {"empty text": 10}}],
    "seed": 7,
    "command": "accelerate launch recipes/sft.py --config recipes/nano/sft.yaml",
    "git_commit": "9" * 40,
    "versions": {"python": "3.11.7", "trl": "1.16.0", "peft": None},
    "hardware": {"machine": "Linux x86_64", "cpu": "A CPU", "cores": 2, "memory_gb": 16.0, "gpus": ["H100", "H100"]},
    "world_size": 2,
    "seconds": 61.5,
    "tokens": 1_200_000,
    "parameters": 1_234_567,
}


def card_of(directory, **fields):
    run = {**RUN, **fields}
    record.write(directory, run)
    text = write_card(directory, run).read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_card_tells_what_how_and_limits(tmp_path):
    front, body = card_of(tmp_path / "sft")
    assert front == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["groundup", "sft", "synthetic-data"],
    }
    for part in (
        "| Parameters | 1,234,567 |",
        "| Training time | 62 s |",
        "| Machine | 2 x H100, A CPU, 2 cores |",
        "| Seed | 7 |",
        "| Versions | python 3.11.7, trl 1.16.0 |",
        "| toyland/conversations | sft | `0f0f0f0f0f0f0f0f` | 12,000 | 10 |",
        "| learning_rate | 0.003 |",
        "| max_steps | 400 |",
        "out/nano/pretrain | `abababababababab` | `cdcdcdcdcdcdcdcd` |",
        "synthetic world",
        "1,234,567 parameters",
    ):
        assert part in body
    assert "weight_decay" not in body and "/somewhere/else" not in body and "## Results" not in body


def test_card_gives_results_with_intervals(tmp_path):
    (tmp_path / "sft").mkdir()
    metrics = {"cloze": {"value": 0.97, "low": 0.94, "high": 0.99, "n": 200}}
    samples = [
        {"kind": "a", "prompt": 'x```"""', "reply": ""},
        {"kind": "b", "prompt": "Where is Mira?", "reply": "<b>"},
    ]
    (tmp_path / "sft/eval.json").write_text(json.dumps({"schema": 1, "metrics": metrics, "samples": samples}))
    _, body = card_of(tmp_path / "sft")
    assert "| Cloze | 97 % (94-99) | 200 |" in body
    snippet = body.split("```python\n")[1].split("```")[0]
    assert "Where is Mira?" in snippet and "<b>" not in body
    assert "| Where is Mira? | &lt;b> |" in body  # and the samples stand as they are


@pytest.mark.parametrize(
    ("path", "base"),
    [
        ("owner/name", "owner/name"),
        ("owner/name@v1", "owner/name"),
        ("out/nano/sft", None),
        ("./sft", None),
        ("here/sft", None),
    ],
)
def test_only_a_hub_id_is_a_base_model(tmp_path, monkeypatch, path, base):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    front, _ = card_of(tmp_path / "ppo", rung="ppo", parent={"path": path})
    assert front.get("base_model") == base


def test_card_of_little(tmp_path):
    tmp_path.joinpath("x").mkdir()
    text = write_card(tmp_path / "x", {"rung": "x", "status": "interrupted"}).read_text()
    assert "`x` recipe" in text and "interrupted" in text and "None" not in text


def test_a_table_survives_what_is_written_into_it(tmp_path):
    _, body = card_of(tmp_path / "sft", data=[{"name": "a|b\n<script>", "rows": 1}])
    assert "| a\\|b &lt;script> |" in body


def test_non_defaults_compares_with_the_rungs_own_classes():
    config = {
        "data": {"dataset": "toyland/problems", "dataset_split": "train"},
        "training": {"learning_rate": 1e-6, "beta": 0.04, "num_generations": 8, "seed": 1, "logging_steps": 1},
        "lr_scheduler_kwargs": {"min_lr": 0.1},
        "gradient_checkpointing": False,
        "pad_token": "<PAD_TOKEN>",
        "novel": 3,
        "empty": [],
    }
    assert non_defaults(config, "grpo") == {
        "dataset": "toyland/problems",
        "beta": 0.04,
        "lr_scheduler_kwargs": {"min_lr": 0.1},
        "gradient_checkpointing": False,
        "novel": 3,
    }
    assert non_defaults({"learning_rate": 1e-6}, "pretrain") == {"learning_rate": 1e-6}


def make_model(directory, kind):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

    words = ["<|pad|>", "<|end|>", "<unk>", "Hello", "!", "I", "do", "not", "know", ".", "user", "assistant", ":"]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|pad|>", eos_token="<|end|>", unk_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(words), pad_token_id=0, eos_token_id=1, num_labels=1, **sizes)
    {"lm": LlamaForCausalLM, "reward": LlamaForSequenceClassification}[kind](config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@pytest.mark.parametrize(("rung", "kind"), [("pretrain", "lm"), ("sft", "lm"), ("reward", "reward")])
def test_the_snippet_runs_from_where_the_directory_is(tmp_path, monkeypatch, capsys, rung, kind):
    make_model(tmp_path / rung, kind)
    monkeypatch.chdir(tmp_path)
    front, body = card_of(tmp_path / rung, rung=rung)
    assert front["pipeline_tag"] == ("text-classification" if rung == "reward" else "text-generation")
    snippet = body.split("```python\n")[1].split("```")[0]
    assert f'model="{rung}"' in snippet
    exec(snippet, {})
    printed = capsys.readouterr().out
    if rung == "reward":
        float(printed)
    assert "[{" not in printed


def test_metadata_goes_through_the_hubs_own_classes(tmp_path):
    (tmp_path / "sft").mkdir()
    metrics = {
        "bits_per_byte": {"value": 0.6, "low": 0.59, "high": 0.62, "n": 40},
        "cloze": {"value": 0.97, "low": 0.94, "high": 0.99, "n": 200},
        "novel": {"value": None},
        "arc_easy/acc_norm": {"value": 0.3, "low": 0.2, "high": 0.4, "n": 90},
    }
    (tmp_path / "sft/eval.json").write_text(json.dumps({"schema": 1, "metrics": metrics, "samples": []}))
    data = [{"name": "owner/chats", "revision": "a" * 40, "rows": 3}, {"name": "my/own.jsonl", "sha256": "b" * 64, "rows": 3}]
    card_of(tmp_path / "sft", data=data, parent={"path": "owner/base@v1"}, config={"license": "mit"}, hub_model_id="me/chat")
    card = ModelCard.load(tmp_path / "sft/README.md")
    assert (card.data.license, card.data.datasets, card.data.base_model) == ("mit", ["owner/chats"], "owner/base")
    assert card.data.tags == ["groundup", "sft"] and card.data.model_name == "chat"
    found = {result.metric_type: result for result in card.data.eval_results}
    assert set(found) == {"bits_per_byte", "cloze", "arc_easy/acc_norm"}
    assert (found["arc_easy/acc_norm"].dataset_type, found["arc_easy/acc_norm"].dataset_name) == ("arc_easy", "arc_easy")
    assert (found["cloze"].dataset_type, found["cloze"].dataset_name[:13]) == ("held-out", "Held-out sets")
    assert found["cloze"].metric_value == 0.97 and found["cloze"].metric_args == {"low": 0.94, "high": 0.99, "n": 200}
    index = eval_results_to_model_index("chat", card.data.eval_results)
    assert card.data.to_dict()["model-index"] == index and model_index_to_eval_results(index)[1] == card.data.eval_results
    assert 'model="me/chat"' in card.text


def test_results_of_other_weights_are_not_told(tmp_path):
    (tmp_path / "sft").mkdir()
    evaluation = {"schema": 1, "metrics": {"cloze": {"value": 0.97, "n": 200}}, "samples": [], "weights_sha256": "0" * 64}
    (tmp_path / "sft/eval.json").write_text(json.dumps(evaluation))
    assert "## Results" in card_of(tmp_path / "sft", weights_sha256="0" * 64)[1]
    front, body = card_of(tmp_path / "sft", weights_sha256="1" * 64)
    assert "## Results" not in body and "model-index" not in front


def test_card_tells_of_every_ancestor_and_its_data(tmp_path):
    rows = [{"name": "text.jsonl", "sha256": "5" * 64, "rows": 8}]
    record.write(tmp_path / "pretrain", {"rung": "pretrain", "data": rows, "tokens": 5000, "flops": 2e12, "seconds": 7200})
    record.update(tmp_path / "pretrain", hub_model_id="me/base")
    front, body = card_of(tmp_path / "sft", parent={"path": str(tmp_path / "pretrain"), "weights_sha256": "ab" * 32})
    assert front["base_model"] == "me/base"
    assert "| pretrain | me/base | `abababababababab` |  | 5,000 | 2e+12 | 2.0 h |" in body
    assert "| text.jsonl | pretrain | `5555555555555555` | 8 | 0 |" in body
    assert "| sft | " in body and "| 1,200,000 |  | 62 s |" in body
