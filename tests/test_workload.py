import json
from pathlib import Path

import pytest
import yaml
from groundup import workload
from groundup.errors import InputError
from groundup.model import count_parameters, dial
from groundup.step import Step
from groundup.workload import count_rows, deduce_rung, padded, read_workload, text_bytes

RECIPES = Path(__file__).parents[1] / "recipes"
RUNGS = ("tokenizer", "prepare", "pretrain", "sft", "reward", "ppo", "grpo")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """What a demo left in the checkout is not looked at."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "path", [p for p in sorted(RECIPES.glob("*/*.yaml")) if p.stem in RUNGS], ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_every_yaml_tells_its_rung(path):
    assert deduce_rung(str(path), set(yaml.safe_load(path.read_text()))) == path.stem


def test_rung_of_a_yaml_with_another_name():
    keys = {"dataset", "tokenizer_path", "output_dir", "depth", "max_steps"}
    assert deduce_rung("mine.yaml", keys) == "pretrain"
    assert deduce_rung("mine.yaml", {"dataset", "model_name_or_path", "rewards", "kl_coef"}) == "ppo"
    with pytest.raises(InputError, match="could be sft or reward") as refused:
        deduce_rung("mine.yaml", {"dataset", "model_name_or_path", "output_dir"})
    assert "--rung" in str(refused.value)
    assert deduce_rung("my_reward_model.yaml", {"dataset", "model_name_or_path", "output_dir"}) == "reward"
    with pytest.raises(InputError, match="keys are those of no rung"):
        deduce_rung("mine.yaml", {"no_such_key"})


def write_yaml(path, **values):
    path.write_text(yaml.safe_dump(values))
    return str(path)


SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_models_that_are_not_there_come_from_the_yaml_that_writes_them(ladder):
    load = read_workload(str(ladder / "pretrain.yaml"), world=2)
    assert load.model.vocab_size == 1000 and load.model.hidden_size == 64
    assert any("1000, from tokenizer.yaml" in line for line in load.assumed)
    assert (load.steps, load.length, load.step_tokens) == (10, 128, 4 * 2 * 2 * 128)
    for rung in ("sft", "reward", "ppo"):
        assert read_workload(str(ladder / f"{rung}.yaml")).model.num_hidden_layers == 2
    load = read_workload(str(ladder / "ppo.yaml"))
    assert [role for role, _ in load.others] == ["reward", "critic", "ref"]
    assert (load.rollout, load.rollouts, load.completion) == (16, 7 / 2, 32)
    assert load.length == load.prompt + 32
    load = read_workload(str(ladder / "reward.yaml"))
    assert load.step_tokens == 2 * load.micro * load.length  # both sides of a pair


@pytest.mark.parametrize(("rung", "key"), [("pretrain", "tokenizer_path"), ("sft", "model_name_or_path")])
def test_what_nothing_writes_is_told(ladder, rung, key):
    for other in ladder.glob("*.yaml"):
        if other.stem != rung:
            other.unlink()
    with pytest.raises(InputError, match="no YAML beside this one writes it") as refused:
        read_workload(str(ladder / f"{rung}.yaml"))
    assert f"--{key}" in str(refused.value)


def test_the_command_line_beats_the_yaml(ladder):
    load = read_workload(str(ladder / "pretrain.yaml"), overrides=["--max_steps", "3", "--per_device_train_batch_size", "1"])
    assert (load.steps, load.micro) == (3, 1)
    with pytest.raises(InputError, match="unknown argument"):
        read_workload(str(ladder / "pretrain.yaml"), overrides=["--max_step", "3"])
    with pytest.raises(InputError, match="no such configuration file"):
        read_workload(str(ladder / "pretrian.yaml"), rung="pretrain")


def test_yamls_that_name_each_other_are_a_mistake(ladder):
    write_yaml(ladder / "pretrain.yaml", dataset="a/b", model_name_or_path="out/t/sft", output_dir="out/t/pretrain")
    with pytest.raises(InputError, match="in a circle"):
        read_workload(str(ladder / "sft.yaml"))


def test_dial_sets_the_steps_for_the_devices_that_are_asked_for(ladder):
    write_yaml(
        ladder / "pretrain.yaml",
        dataset="a/b",
        tokenizer_path="out/t/tokenizer",
        depth=4,
        max_length=256,
        output_dir="out/t/pretrain",
        per_device_train_batch_size=4,
    )
    chosen = dial(4, 1000)
    for world in (1, 8):
        load = read_workload(str(ladder / "pretrain.yaml"), world=world)
        assert load.step_tokens == chosen.batch_tokens
        assert load.steps * load.step_tokens == pytest.approx(chosen.tokens, rel=0.01)
    assert (
        count_parameters(Step(load, False).policy())
        == Step(load, False).parameters()[0]
        == pytest.approx(chosen.parameters, rel=0.01)
    )


def test_rows_that_are_here_are_counted(world, tiny_base, tmp_path):
    settings = {"model_name_or_path": str(tiny_base), "output_dir": "out/sft", "report_to": "none", "max_length": 64}
    path = write_yaml(tmp_path / "sft.yaml", dataset=str(world / "conversations.jsonl"), num_train_epochs=2, **settings)
    load = read_workload(path)
    rows = len((world / "conversations.jsonl").read_text().splitlines())
    assert load.rows == rows and load.steps == 2 * rows // load.micro
    assert 10 < load.length <= load.longest <= 64 and not load.unknown
    path = write_yaml(tmp_path / "sft.yaml", dataset="somebody/rows", num_train_epochs=2, **settings)
    load = read_workload(path)
    assert load.steps is None and "give `--rows`" in load.unknown[0] and load.length == load.longest == 64
    assert read_workload(path, rows=640).steps == 2 * 640 // load.micro


def test_prepared_tokens_are_counted_in_their_manifest(tokenizer, tmp_path):
    from groundup.shards import ShardWriter, write_manifest

    with ShardWriter(tmp_path / "tokens", "train", tokenizer, "best_fit", 64) as writer:
        for _ in range(100):
            writer.add([7] * 63, 63)
    write_manifest(tmp_path / "tokens", tokenizer, [])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    path = write_yaml(
        tmp_path / "pretrain.yaml",
        dataset="tokens",
        tokenizer_path="tokenizer",
        model_config=SIZES,
        max_length=64,
        output_dir="out/p",
        per_device_train_batch_size=8,
        num_train_epochs=2,
    )
    load = read_workload(path)
    assert (load.packing, load.rows, load.steps) == ("best_fit", 100, 25)


def test_hub_data_sets_in_the_table(monkeypatch, tmp_path):
    monkeypatch.setattr(workload, "HUB_ROWS", {("a/b", None, "train"): 1000, ("c/d", None, "train"): 50})
    load = workload.Workload("sft", "", None, None)

    def rows(**values):
        return count_rows("sft", workload.DataArguments(**values), "no/model", None, load)[0]

    assert rows(dataset="a/b") == 1000 and rows(dataset="a/b", max_rows=10) == 10 and rows(dataset="x/y") is None
    assert rows(datasets=[{"path": "a/b", "max_rows": 200}, {"path": "c/d"}]) == 250
    assert rows(datasets=[{"path": "a/b", "weight": 0.5}, {"path": "c/d", "weight": 0.5}]) == 100  # the scarcest is used up
    assert rows(datasets=[{"path": "a/b"}, {"path": "x/y"}]) is None


def test_padding_is_to_the_longest_of_a_batch():
    assert padded([], 8, 100, False) == 100
    assert padded([10] * 5, 8, 100, False) == 10 and padded([500], 8, 100, False) == 100
    lengths = [10] * 50 + [90] * 50
    assert padded(lengths, 1, 100, False) == pytest.approx(50, abs=10)
    assert padded(lengths, 16, 100, False) == 90
    assert padded(lengths, 16, 100, True) == 50  # neighbours are as long as each other


def test_text_is_measured_where_it_lies(write, tmp_path):
    row = json.dumps({"text": "a" * 1000}) + "\n"
    for name in ("one.jsonl", "two.jsonl", "folder/three.jsonl"):
        write(name, row)
    size = len(row)
    arguments = workload.DataArguments
    assert text_bytes(arguments(dataset=str(tmp_path / "one.jsonl"))) == size
    assert text_bytes(arguments(dataset=str(tmp_path / "*.jsonl"))) == 2 * size
    assert text_bytes(arguments(dataset=str(tmp_path / "folder"))) == size
    assert text_bytes(arguments(dataset="somebody/rows")) == 0
    assert text_bytes(arguments(dataset="a/b", eval_dataset=str(tmp_path / "one.jsonl")), "eval") == size
