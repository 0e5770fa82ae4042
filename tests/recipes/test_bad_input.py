"""Rows and rewards that are no good, through the recipes: named before the first step, left out and counted, or refused."""

import json
import shutil
import sys

import pytest
from groundup import record
from groundup.errors import InputError
from groundup.tokenizer import train_tokenizer
from transformers import AutoTokenizer

from recipes.miniature import run_recipe

LONG = "Where is it? " * 200  # 1,200 tokens, where the models see 512
ROWS = {
    "grpo": {"question": LONG, "answer": "3"},
    "ppo": {"prompt": LONG},
    "reward": {"prompt": LONG, "chosen": "yes", "rejected": "no"},
    "dpo": {"prompt": LONG, "chosen": "yes", "rejected": "no"},
}
PLAIN = {
    "grpo": {"question": "What is 1 + 2?", "answer": "3"},
    "ppo": {"prompt": "Where is it?"},
    "reward": {"prompt": "Where is it?", "chosen": "There.", "rejected": "no"},
    "dpo": {"prompt": "Where is it?", "chosen": "There.", "rejected": "no"},
}
REASON = {
    "grpo": "prompt over the 504 tokens that `max_completion_length` leaves",
    "ppo": "prompt over the 504 tokens that `max_completion_length` leaves",
    "reward": "over the 256 tokens of `max_length`",
    "dpo": "prompt fills the 256 tokens of `max_length`",
}


def settings_with(rungs, name, rows, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {key: value for key, value in rungs.settings(name).items() if key != "max_rows"}
    return {**settings, "dataset": str(path), "max_steps": 1, "save_strategy": "no"}


@pytest.mark.parametrize("name", ROWS)
def test_rows_beyond_the_context_are_dropped_said_and_counted(rungs, tmp_path, name, capsys):
    settings = settings_with(rungs, name, [ROWS[name]] * 4 + [PLAIN[name]] * 16, tmp_path)
    trained = run_recipe(name, tmp_path / "out", **settings)
    entry = trained.record["data"][0]
    assert (entry["dropped"], entry["kept"]) == ({REASON[name]: 4}, 16)
    assert f"{name}: 4 of 20 rows dropped ({REASON[name]}): {settings['dataset']}" in capsys.readouterr().out
    assert len(trained.trainer.train_dataset) == (16 + 8 if name == "grpo" else 16)  # and what is rehearsed


@pytest.mark.parametrize("name", ROWS)
def test_too_many_rows_beyond_the_context_stop_the_run(rungs, tmp_path, name):
    settings = settings_with(rungs, name, [ROWS[name]] * 12 + [PLAIN[name]] * 8, tmp_path)
    with pytest.raises(InputError, match=f"20 rows read -> 8 .{REASON[name]}: 12"):
        run_recipe(name, tmp_path / "out", **settings)


@pytest.mark.parametrize("name", ("reward", "dpo"))
@pytest.mark.parametrize("max_length", ("4096", "null"))
def test_a_length_beyond_the_context_does_not_let_them_through(rungs, tmp_path, name, max_length):
    settings = settings_with(rungs, name, [ROWS[name]] * 20, tmp_path)
    with pytest.raises(InputError, match="20 rows read -> 0 .over the 512 tokens of the model's context: 20"):
        run_recipe(name, tmp_path / "out", **settings, max_length=max_length)


@pytest.mark.parametrize("name", ("reward", "dpo"))
def test_pairs_of_equals_are_dropped_and_stop_the_run_past_the_limit(rungs, tmp_path, name, capsys):
    equal = {**PLAIN[name], "rejected": PLAIN[name]["chosen"]}
    settings = settings_with(rungs, name, [equal] * 12 + [PLAIN[name]] * 8, tmp_path)
    with pytest.raises(InputError, match="too few preferences are left: 20 rows read -> 8 .chosen equals rejected: 12"):
        run_recipe(name, tmp_path / "out", **settings)
    trained = run_recipe(name, tmp_path / "out", **settings, max_dropped_share=0.6)
    assert trained.record["data"][0]["dropped"] == {"chosen equals rejected": 12}
    assert len(trained.trainer.train_dataset) == 8
    assert f"{name}: 12 of 20 rows dropped (chosen equals rejected)" in capsys.readouterr().out


@pytest.fixture(scope="module")
def other(rungs, tmp_path_factory):
    """A reward model with a tokenizer of its own, as large as the policy's and with the same template."""
    directory = tmp_path_factory.mktemp("other") / "reward"
    shutil.copytree(rungs["reward"].directory, directory, ignore=shutil.ignore_patterns("checkpoint-*"))
    with open(rungs.world / "eval_documents.jsonl") as file:
        train_tokenizer((json.loads(line)["text"] for line in file), 512).save_pretrained(directory)
    record.update(directory, tokenizer_sha256=record.hash_tokenizer(directory))
    return directory


def rewarded(rungs, name, model, tmp_path, **more):
    rewards = [{"name": "repetition", "ngram": 1}, {"model": str(model)}]
    settings = {**rungs.settings(name), "rewards": rewards, "max_steps": 1, "save_strategy": "no", **more}
    return run_recipe(name, tmp_path / "out", **settings)


def test_critic_of_another_vocabulary_is_refused(rungs, other, tmp_path):
    """It would be fed the policy's token ids, and none of them is out of its range."""
    policy = rungs["sft"].directory
    with pytest.raises(InputError, match=f"the critic `{other}` has another vocabulary than the policy `{policy}`"):
        rewarded(rungs, "ppo", other, tmp_path)
    with pytest.raises(InputError, match=f"the critic `{other}`"):
        own = str(rungs["reward"].directory)
        rewarded(rungs, "ppo", own, tmp_path, critic_model_name_or_path=str(other))
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "more"), [("grpo", {}), ("ppo", {"shared_critic": True}), ("ppo", {"critic_model_name_or_path": "SFT"})]
)
def test_reward_model_of_another_vocabulary_scores_by_its_own(rungs, other, tmp_path, name, more):
    """It is given text, in its own template and tokens: what it says is what it would say by itself."""
    more = {key: str(rungs["sft"].directory) if value == "SFT" else value for key, value in more.items()}
    trainer = rewarded(rungs, name, other, tmp_path, **more).trainer
    assert trainer.reward_processing_classes[1].get_vocab() == AutoTokenizer.from_pretrained(other).get_vocab()
    assert trainer.reward_processing_classes[1].get_vocab() != trainer.processing_class.get_vocab()


@pytest.mark.parametrize("name", ("grpo", "ppo"))
def test_reward_model_beside_anothers_tokenizer_is_refused(rungs, other, tmp_path, name):
    broken, policy = tmp_path / "reward", rungs["sft"].directory

    def copy(*files, source=policy):
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(other, broken)
        for file in files:
            shutil.copy(source / file, broken)

    copy("tokenizer.json")
    message = f"beside the reward model `{broken}` is not the one that it was trained with; it is that of the policy `{policy}`"
    with pytest.raises(InputError, match=message):
        rewarded(rungs, name, broken, tmp_path)
    copy()
    (broken / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(InputError, match=f"not the one that it was trained with; it is not that of the policy `{policy}` either"):
        rewarded(rungs, name, broken, tmp_path)


def test_reward_model_from_elsewhere_is_checked_by_what_it_holds(rungs, other, tmp_path):
    """Without a record: its template must write tokens that its tokenizer has, and the tokenizer none that the model lacks."""
    model = tmp_path / "reward"
    shutil.copytree(other, model, ignore=shutil.ignore_patterns("run.json"))
    rewarded(rungs, "grpo", model, tmp_path)
    shutil.rmtree(tmp_path / "out")

    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text(template.replace("<|im_end|>", "<|eot_id|>"))
    with pytest.raises(InputError, match=f"`{model}` writes <.eot_id.>, which its tokenizer does not know .*\n.*that of `.*sft`"):
        rewarded(rungs, "grpo", model, tmp_path)
    (model / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match=f"the reward model `{model}` has no chat template"):
        rewarded(rungs, "grpo", model, tmp_path)

    with open(rungs.world / "documents.jsonl") as file:
        train_tokenizer((json.loads(line)["text"] for line in file), 600).save_pretrained(model)
    with pytest.raises(InputError, match=f"`{model}` has 512 tokens and the tokenizer beside it 600"):
        rewarded(rungs, "grpo", model, tmp_path)
    with pytest.raises(InputError, match="no tokenizer in `out/nowhere/reward`"):
        rewarded(rungs, "grpo", "out/nowhere/reward", tmp_path)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Reward functions that fail for the third completion that they see."""
    (tmp_path / "own_failing.py").write_text(
        "import threading\n"
        "third = None\n"
        "def tells(completion_ids):\n"
        "    global third\n"
        "    third = third or completion_ids[2]\n"
        "    return third in completion_ids\n"
        "def raises(completions, completion_ids, **kwargs):\n"
        "    if tells(completion_ids):\n"
        "        raise KeyError('grammar')\n"
        "    return [1.0] * len(completions)\n"
        "def hangs(completions, completion_ids, **kwargs):\n"
        "    if tells(completion_ids):\n"
        "        threading.Event().wait()\n"
        "    return [1.0] * len(completions)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_failing"
    sys.modules.pop("own_failing", None)


@pytest.mark.parametrize("name", ("grpo", "ppo"))
@pytest.mark.parametrize(("fault", "said"), [("raises", "raised KeyError: 'grammar'"), ("hangs", "took longer than the 0.2 s")])
def test_a_completion_that_a_reward_fails_for_is_counted(rungs, own, tmp_path, name, fault, said, capsys):
    rewards = [{"name": "repetition", "ngram": 1}, {"name": f"{own}.{fault}"}]
    settings = {**rungs.settings(name), "rewards": rewards, "reward_timeout": 0.2, "max_steps": 1, "gate_prompts": 0}
    settings = {key: value for key, value in settings.items() if name == "grpo" or key != "gate_prompts"}
    metrics = run_recipe(name, tmp_path / "out", **settings, max_faulty_share=0.5).record["metrics"]
    assert metrics[f"rewards/{fault}/faulty"] >= 1  # the same completion may come again in a batch
    assert f"the reward `{fault}` failed for" in (out := capsys.readouterr().out) and said in out
    with pytest.raises(InputError, match=f"the reward `{fault}` failed for .* it {said}"):
        run_recipe(name, tmp_path / "none", **settings, max_faulty_share=0.0)
