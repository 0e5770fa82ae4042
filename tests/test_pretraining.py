import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from groundup import pretraining
from groundup.configs import DataArguments, ModelArguments
from groundup.errors import InputError
from groundup.model import count_parameters, dial, flops_per_token
from groundup.order import Order
from groundup.pretraining import PretrainTrainer, Steps, apply_dial, collate, open_tokens
from groundup.shards import ShardWriter, is_prepared, read_manifest, write_manifest
from groundup.tokenizer import end_of_text_id
from transformers import Trainer, TrainingArguments

LENGTH = 16


def arguments(**settings):
    return TrainingArguments("unused", use_cpu=True, **settings)


def model_arguments(**settings):
    return ModelArguments(tokenizer_path="somewhere", **{"max_length": 256, **settings})


def test_dial_sets_what_is_left_open():
    args, chosen = arguments(per_device_train_batch_size=4), dial(2, 832)
    apply_dial(args, model_arguments(depth=2), 832)
    assert args.learning_rate == chosen.learning_rate
    assert args.gradient_accumulation_steps == max(1, round(chosen.batch_tokens / (4 * 256)))
    step = 4 * 256 * args.gradient_accumulation_steps
    assert abs(args.max_steps * step - chosen.tokens) <= step / 2


def test_dial_leaves_what_the_yaml_says():
    args = arguments(learning_rate=0.5, gradient_accumulation_steps=3, max_steps=7)
    apply_dial(args, model_arguments(depth=2), 832)
    assert (args.learning_rate, args.gradient_accumulation_steps, args.max_steps) == (0.5, 3, 7)
    epochs = arguments(num_train_epochs=2)
    apply_dial(epochs, model_arguments(depth=2), 832)
    assert epochs.max_steps == -1  # epochs were asked for


def test_without_depth_nothing_is_set():
    args = arguments()
    apply_dial(args, model_arguments(model_config={"hidden_size": 32}), 832)
    assert args.to_dict() == arguments().to_dict()


def test_more_tokens_a_parameter_are_more_steps():
    few, many = arguments(), arguments()
    apply_dial(few, model_arguments(depth=2, tokens_per_parameter=10.0), 832)
    apply_dial(many, model_arguments(depth=2, tokens_per_parameter=40.0), 832)
    tokens = [a.max_steps * a.gradient_accumulation_steps for a in (few, many)]
    assert tokens[1] == pytest.approx(4 * tokens[0], rel=0.01)


# ---- the tokens


def tokens_of(directory, tokenizer, settings, write=True, **model_settings):
    return open_tokens(
        DataArguments(**settings), model_arguments(max_length=32, **model_settings), tokenizer, directory / "tokens", write
    )


@pytest.fixture
def raw(world):
    return {"dataset": str(world / "documents.jsonl"), "eval_dataset": str(world / "eval_documents.jsonl")}


@pytest.fixture
def prepared(tokenizer, tmp_path):
    """A directory as recipes/prepare.py leaves it."""
    generator = np.random.default_rng(0)
    for split, shards, count in (("train", 2, 40), ("held_out", 1, 8)):
        for shard in range(shards):
            with ShardWriter(tmp_path / "prepared", split, tokenizer, shard=shard, shards=shards) as writer:
                for _ in range(count):
                    writer.add(generator.integers(4, 500, 50), 200)
    write_manifest(tmp_path / "prepared", tokenizer, [{"name": "corpus", "rows": 88}])
    return str(tmp_path / "prepared")


def test_documents_become_shards(tokenizer, tmp_path, raw, monkeypatch):
    monkeypatch.setattr(pretraining, "BATCH", 1000)  # several, the last of them short
    tokens = tokens_of(tmp_path, tokenizer, raw)
    with open(raw["dataset"], encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    expected = []
    for text in texts:
        expected += [*tokenizer(text, add_special_tokens=False)["input_ids"], end_of_text_id(tokenizer)]
    found = torch.cat([tokens.train[row]["input_ids"] for row in range(len(tokens.train))]).tolist()
    assert found == expected[: len(expected) // 32 * 32] and len(found) > 10_000
    counts = tokens.train.counts
    assert (counts["documents"], counts["tokens"]) == (400, len(expected)) and tokens.train.left_over == len(expected) % 32
    assert counts["bytes"] == sum(len(text.encode()) for text in texts)
    assert tokens.held_out.counts["documents"] == 40
    assert [source["name"] for source in tokens.sources] == list(raw.values()) and tokens.sources[0]["sha256"]
    assert is_prepared(tmp_path / "tokens")


def test_special_tokens_written_in_a_text_end_no_document(tokenizer, tmp_path, write):
    """A document that holds the text `<|endoftext|>` is one of the things that data from the web does."""
    source = {"dataset": write("a.jsonl", [{"text": "a <|endoftext|> b" * 20}])}
    tokens = tokens_of(tmp_path, tokenizer, source)
    assert tokens.train.counts["documents"] == 1 and tokens.held_out is None


def test_packing_of_the_yaml(tokenizer, tmp_path, raw):
    tokens = tokens_of(tmp_path, tokenizer, raw, packing="best_fit")
    for rows in (tokens.train, tokens.held_out):
        assert rows.packed and rows[0].keys() == {"input_ids", "labels", "position_ids"}
        assert rows.counts["padding"] < 0.02 * rows.counts["tokens"] and rows.counts["dropped"] == {}
    with pytest.raises(InputError, match="`packing: bfd`"):
        model_arguments(packing="bfd")


def test_second_call_reads_the_files(tokenizer, tmp_path, raw, monkeypatch):
    tokens_of(tmp_path, tokenizer, raw)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tokens").iterdir()}
    monkeypatch.setattr(pretraining, "ShardWriter", lambda *args: pytest.fail("written again"))
    again = tokens_of(tmp_path, tokenizer, raw)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tokens").iterdir()} == before
    assert again.train.counts["documents"] == 400
    # wrapped rows are cut when they are read
    assert tokens_of(tmp_path, tokenizer, raw).train.length == 32


@pytest.mark.parametrize("what", ["documents", "tokenizer", "packing", "length", "file", "manifest", "split"])
def test_something_else_is_written_anew(tokenizer, tiny_base, tmp_path, raw, what):
    before = tokens_of(tmp_path, tokenizer, raw, packing="best_fit").train.manifest
    settings, model_settings = raw, {"packing": "best_fit"}
    if what == "documents":
        settings = {**raw, "max_rows": 399}
    elif what == "tokenizer":
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tiny_base)
        tokenizer.add_tokens(["Dorn"])
    elif what == "packing":
        model_settings = {}
    elif what == "split":
        settings = {"dataset": raw["dataset"]}
    elif what == "length":
        data_args, model_args = DataArguments(**settings), model_arguments(max_length=64, packing="best_fit")
        assert open_tokens(data_args, model_args, tokenizer, tmp_path / "tokens").train[0]["input_ids"].shape == (64,)
        return
    else:
        next((tmp_path / "tokens").glob({"file": "train-*.bin", "manifest": "manifest.json"}[what])).unlink()
    tokens = tokens_of(tmp_path, tokenizer, settings, **model_settings)
    assert (tokens.train.manifest == before) == (what in ("file", "manifest"))
    assert (tokens.held_out is None) == (what == "split") and len(tokens.train) > 100


def test_interrupted_call_leaves_nothing_that_looks_whole(tokenizer, tmp_path, raw, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "write_manifest", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            tokens_of(tmp_path, tokenizer, raw)
    with pytest.raises(InputError, match="not prepared to the end"):
        read_manifest(tmp_path / "tokens")
    assert len(tokens_of(tmp_path, tokenizer, raw).train) > 100


def test_other_processes_read_what_the_first_wrote(tokenizer, tmp_path, raw, monkeypatch):
    with pytest.raises(InputError, match="no prepared tokens"):
        tokens_of(tmp_path, tokenizer, raw, write=False)
    first = tokens_of(tmp_path, tokenizer, raw)
    monkeypatch.setattr(pretraining, "load_documents", lambda *args: pytest.fail("read in every process"))
    other = tokens_of(tmp_path, tokenizer, raw, write=False)
    assert other.sources == first.sources and torch.equal(other.train[5]["input_ids"], first.train[5]["input_ids"])
    assert len(other.held_out) == len(first.held_out)


def test_prepared_tokens_are_read_where_they_are(tokenizer, tmp_path, prepared, world):
    tokens = tokens_of(tmp_path, tokenizer, {"dataset": prepared})
    assert (tokens.train.counts["documents"], tokens.held_out.counts["documents"]) == (80, 8)
    assert tokens.sources == [{"name": "corpus", "rows": 88}] and tokens.held_out.bytes_per_token == pytest.approx(200 / 51)
    assert not (tmp_path / "tokens").exists()
    with_own = tokens_of(tmp_path, tokenizer, {"dataset": prepared, "eval_dataset": str(world / "eval_documents.jsonl")})
    assert (with_own.train.counts["documents"], with_own.held_out.counts["documents"]) == (80, 40)
    assert [source["name"] for source in with_own.sources] == ["corpus", str(world / "eval_documents.jsonl")]
    assert list(read_manifest(tmp_path / "tokens")["splits"]) == ["held_out"]


def test_prepared_tokens_to_measure_on(tokenizer, tmp_path, prepared, raw):
    tokens = tokens_of(tmp_path, tokenizer, {**raw, "eval_dataset": prepared})
    assert (tokens.train.counts["documents"], tokens.held_out.counts["documents"]) == (400, 8)
    with ShardWriter(tmp_path / "train only", "train", tokenizer) as writer:
        writer.add([5] * 40, 100)
    write_manifest(tmp_path / "train only", tokenizer, [])
    tokens = tokens_of(tmp_path, tokenizer, {**raw, "eval_dataset": str(tmp_path / "train only")})
    assert tokens.held_out.counts["tokens"] == 41
    assert tokens_of(tmp_path, tokenizer, {"dataset": str(tmp_path / "train only")}).held_out is None


def test_raw_held_out_text_is_packed_as_prepared_tokens_are(tokenizer, tmp_path, raw):
    with ShardWriter(tmp_path / "packed", "train", tokenizer, "best_fit", 32) as writer:
        for _ in range(40):
            writer.add([5] * 20, 100)
    write_manifest(tmp_path / "packed", tokenizer, [])
    tokens = tokens_of(tmp_path, tokenizer, {**raw, "dataset": str(tmp_path / "packed")})
    assert tokens.train.packed and tokens.held_out.packed


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (lambda prepared: {"dataset": prepared, "max_rows": 3}, "`max_rows` counts documents"),
        (lambda prepared: {"dataset": prepared, "max_eval_rows": 3}, "`max_eval_rows` counts documents"),
        (lambda prepared: {"datasets": [{"path": prepared}]}, "cannot be part of a mixture"),
    ],
)
def test_what_prepared_tokens_do_not_take(tokenizer, tmp_path, prepared, settings, match):
    with pytest.raises(InputError, match=match):
        tokens_of(tmp_path, tokenizer, settings(prepared))


def test_unfinished_preparation(tokenizer, tmp_path, prepared):
    (tmp_path / "prepared" / "manifest.json").unlink()
    with pytest.raises(InputError, match="not prepared to the end: 3 finished shards and no manifest.json") as refused:
        tokens_of(tmp_path, tokenizer, {"dataset": prepared})
    assert "recipes/prepare.py" in refused.value.fix


def test_text_that_fills_no_row(tokenizer, tmp_path, write):
    with pytest.raises(InputError, match="1 documents hold 2 tokens, fewer than one row of 32"):
        tokens_of(tmp_path, tokenizer, {"dataset": write("a.jsonl", [{"text": "A"}])})


# ---- the order


def test_steps_are_the_order_from_where_a_run_stands():
    order = Order(10, 0)
    whole = list(Steps(order, 4, 6, lambda: 0))
    assert whole == order[np.arange(24)].tolist() and len(Steps(order, 4, 6, lambda: 3)) == 24
    assert sorted(whole[:10]) == sorted(whole[10:20]) == list(range(10))  # an epoch ends within a step
    for step in range(7):
        assert list(Steps(order, 4, 6, lambda step=step: step)) == whole[4 * step :]


def test_any_step_is_reached_at_the_same_cost():
    asked = []

    class Counting(Order):
        def __getitem__(self, positions):
            asked.append(np.size(positions))
            return super().__getitem__(positions)

    costs = []
    for step in (10, 1_000_000):
        asked.clear()
        rows = iter(Steps(Counting(5_000_000, 0), 512, 1_000_100, lambda step=step: step))
        first = [next(rows) for _ in range(512)]
        assert first == Order(5_000_000, 0)[np.arange(512 * step, 512 * step + 512)].tolist()
        costs.append(list(asked))
    assert costs[0] == costs[1] and sum(costs[0]) <= pretraining.BLOCK


class Rows(torch.utils.data.Dataset):
    """`count` rows, which note when they are read."""

    def __init__(self, count, packed=False):
        self.count, self.packed, self.read = count, packed, []

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        self.read.append(row)
        ids = (torch.arange(LENGTH) * 7 + row) % 500 + 4
        item = {"input_ids": ids, "labels": ids.clone()}
        if self.packed:
            item |= {"position_ids": torch.cat([torch.arange(5), torch.arange(LENGTH - 5)])}
            item["labels"][[0, 5]] = -100
        return item


def train(model, directory, rows, resume=None, **settings):
    settings = {"max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1, "save_strategy": "no", **settings}
    args = TrainingArguments(str(directory), use_cpu=True, report_to="none", disable_tqdm=True, **settings)
    trainer = PretrainTrainer(model=model, args=args, train_dataset=rows, block_length=LENGTH)
    rows.read.clear()
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_rows_that_a_run_reads(tiny_model, tmp_path):
    trainer = train(tiny_model, tmp_path, rows := Rows(10), seed=3)
    assert rows.read == Order(10, 3)[np.arange(16)].tolist()
    assert [line["epoch"] for line in trainer.state.log_history if "loss" in line] == pytest.approx([0.4, 0.8, 1.2, 1.6])
    train(tiny_model, tmp_path, rows, seed=3, data_seed=4)
    assert rows.read == Order(10, 4)[np.arange(16)].tolist()


def test_epochs_are_steps(tiny_model, tmp_path):
    every = {"save_strategy": "epoch", "logging_strategy": "epoch"}
    trainer = train(tiny_model, tmp_path, rows := Rows(10), max_steps=-1, num_train_epochs=2.5, **every)
    assert trainer.state.global_step == trainer.state.max_steps == 7  # 25 rows and the rest of a step
    assert rows.read == Order(10, 42)[np.arange(28)].tolist()
    assert [line["epoch"] for line in trainer.state.log_history if "loss" in line] == pytest.approx([1.2, 2.4])
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-3", "checkpoint-6", "checkpoint-7"}
    state = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["epoch"] == pytest.approx(2.4)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_run_reads_what_is_left(tokenizer, tmp_path, workers):
    """In its second epoch, with random numbers in the model, and without a look at what was read before."""
    from groundup.model import build_config, build_model

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}

    def model():
        return build_model(build_config("qwen3", tokenizer, {**sizes, "attention_dropout": 0.5}, max_length=64), seed=0)

    settings = {"max_steps": 20, "save_strategy": "steps", "save_steps": 10, "dataloader_num_workers": workers, "seed": 0}
    from transformers import set_seed

    set_seed(0)
    whole = train(model(), tmp_path / "whole", Rows(30), **settings)
    resumed = train(model(), tmp_path / "resumed", rows := Rows(30), str(tmp_path / "whole" / "checkpoint-10"), **settings)
    if not workers:
        assert rows.read == Order(30, 0)[np.arange(40, 80)].tolist()
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    told = [
        [(line["step"], line["loss"], line["epoch"]) for line in t.state.log_history if "loss" in line] for t in (whole, resumed)
    ]
    assert told[0] == told[1]


def test_resuming_late_reads_no_more_than_resuming_early(tiny_model, tmp_path):
    read = []
    for step in (10, 1_000_000):
        checkpoint = tmp_path / f"checkpoint-{step}"
        rows = Rows(7)
        trainer = train(tiny_model, tmp_path / "first", rows, max_steps=1, save_strategy="steps", save_steps=1)
        (tmp_path / "first" / "checkpoint-1").rename(checkpoint)
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        (checkpoint / "trainer_state.json").write_text(json.dumps({**state, "global_step": step}))
        trainer = train(tiny_model, tmp_path / "then", rows, str(checkpoint), max_steps=step + 2)
        assert trainer.state.global_step == step + 2
        assert rows.read == Order(7, 42)[np.arange(4 * step, 4 * step + 8)].tolist()
        read.append(len(rows.read))
    assert read[0] == read[1] == 8


@pytest.mark.parametrize("packed", [False, True])
def test_a_step_is_the_same_however_it_is_split(tiny_model, tmp_path, packed):
    """1 x 4 by accumulation, 4 x 1 as one batch, 2 x 2: the same rows and losses. Two processes: tests/recipes/test_pretrain.py."""
    told = {}
    for batch, accumulation in ((1, 4), (4, 1), (2, 2)):
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": 6}
        trainer = train(copy.deepcopy(tiny_model), tmp_path, rows := Rows(10, packed), learning_rate=1e-3, **settings)
        told[batch] = list(rows.read), [line["loss"] for line in trainer.state.log_history if "loss" in line]
    for batch in (1, 2):
        assert told[batch][0] == told[4][0] and len(told[batch][0]) == 24
        assert told[batch][1] == pytest.approx(told[4][1], rel=1e-5)
    assert len(set(told[4][1])) == 6


def test_batches_have_no_mask_and_make_no_cache():
    """With either, transformers does not look at position ids (and DataCollatorWithPadding takes 25 times as long)."""
    plain = collate([Rows(3)[0], Rows(3)[1]])
    assert plain.keys() == {"input_ids", "labels", "use_cache"} and plain["input_ids"].shape == (2, LENGTH)
    packed = collate([Rows(3, packed=True)[0]])
    assert packed["use_cache"] is False and packed["position_ids"].shape == (1, LENGTH)


@pytest.mark.parametrize(
    ("architecture", "sizes", "packed", "attention"),
    [
        ("qwen3", {}, False, "sdpa_causal"),
        ("qwen3", {}, True, "sdpa"),
        ("mistral", {"sliding_window": LENGTH}, False, "sdpa_causal"),
        ("mistral", {"sliding_window": 4}, False, "sdpa"),
        ("gemma3_text", {"sliding_window": 4, "head_dim": 16}, False, "sdpa"),
    ],
)
def test_attention_that_is_causal_by_a_flag_changes_nothing(tokenizer, tmp_path, architecture, sizes, packed, attention):
    from groundup.model import build_config, build_model

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, **sizes}
    model = build_model(build_config(architecture, tokenizer, sizes, max_length=64), seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # at birth attention is so even that what it sees hardly shows
    rows = Rows(8, packed)
    batch = collate([rows[row] for row in range(8)])
    expected = copy.deepcopy(model)(**batch).loss
    trainer = train(model, tmp_path, rows, max_steps=1, per_device_train_batch_size=8, learning_rate=0.0)
    assert model.config._attn_implementation == attention
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_fewer_rows_than_a_step_takes(tiny_model, tmp_path):
    with pytest.raises(InputError, match="3 rows of 16 tokens, fewer than the 8 of one step") as refused:
        train(tiny_model, tmp_path, Rows(3), gradient_accumulation_steps=2)
    assert refused.value.where == "batch 4 x accumulation 2 x 1 processes"


def test_attention_that_would_mix_documents(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_model.config, "_attn_implementation", "flash_attention_2")
    train_dataset = Rows(8, packed=True)
    with pytest.raises(InputError, match="`flash_attention_2` lets packed documents see each other"):
        train(tiny_model, tmp_path, train_dataset)


# ---- the log


def build(model, directory, **settings):
    args = TrainingArguments(
        str(directory),
        use_cpu=True,
        max_steps=3,
        logging_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        save_strategy="no",
        report_to="none",
        **settings,
    )
    rows = [{"input_ids": torch.arange(i, i + LENGTH), "labels": torch.arange(i, i + LENGTH)} for i in range(5, 17)]
    return PretrainTrainer(
        model=model, args=args, train_dataset=rows, eval_dataset=rows[:4], block_length=LENGTH, bytes_per_token=3.5
    )


def test_what_is_logged(tiny_model, tmp_path):
    trainer = build(tiny_model, tmp_path, eval_strategy="steps", eval_steps=2)
    trainer.train()
    steps = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["tokens"] for line in steps] == [64, 128, 192]
    assert "tokens_per_second" not in steps[0]  # warm-up and compilation
    assert all(line["tokens_per_second"] > 0 for line in steps[1:])
    assert not any("mfu" in line for line in steps)  # a CPU's peak is not known
    held_out = [line for line in trainer.state.log_history if "eval_loss" in line]
    assert [line["step"] for line in held_out] == [2, 3]
    for line in held_out:
        assert line["eval_bits_per_byte"] == pytest.approx(line["eval_loss"] / math.log(2) / 3.5)
    assert trainer.tokens == 192
    assert trainer.flops == 192 * flops_per_token(tiny_model.config, count_parameters(tiny_model), LENGTH)


def test_evaluation_and_saving_are_not_counted_as_training(tiny_model, tmp_path, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(pretraining, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def takes(seconds):
        def method(self, *args, **kwargs):
            clock.now += seconds

        return method

    monkeypatch.setattr(Trainer, "evaluate", takes(5.0))
    monkeypatch.setattr(Trainer, "_save_checkpoint", takes(3.0))
    trainer = build(tiny_model, tmp_path)
    clock.now += 4.0
    trainer.evaluate()
    trainer._save_checkpoint(None, None)
    trainer.state.global_step = 2
    logs = {"loss": 1.0}
    trainer.log(logs)
    assert logs["tokens_per_second"] == pytest.approx(2 * 64 / 4.0)
    clock.now += 1.0  # and the pause is forgotten
    trainer.state.global_step = 3
    logs = {"loss": 1.0}
    trainer.log(logs)
    assert logs["tokens_per_second"] == pytest.approx(64 / 1.0)


def test_mfu_is_the_share_of_the_peak(tiny_model, tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(pretraining, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    trainer = build(tiny_model, tmp_path)
    trainer._peak = 1e9
    clock.now, trainer.state.global_step = 2.0, 1
    logs = {"loss": 1.0}
    trainer.log(logs)
    per_token = flops_per_token(tiny_model.config, count_parameters(tiny_model), LENGTH)
    assert logs["mfu"] == pytest.approx(64 / 2.0 * per_token / 1e9)
