"""What the tests share: a small world, a tokenizer trained on it, and a tiny random model in a stage directory."""

import gzip
import json
import os
import tempfile

# Before the libraries that read them are imported: a test that asks the Hub is to fail, not to hang.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRACKIO_DIR"] = os.path.join(tempfile.gettempdir(), f"groundup-trackio-{os.getpid()}")  # not in anybody's home
os.environ.setdefault("OMP_NUM_THREADS", "1")  # matrices this small are slower on several threads

import pytest


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Directory of a toyland of 400 documents; the other files have their usual sizes."""
    from groundup.toyland import write_world

    directory = tmp_path_factory.mktemp("world")
    write_world(directory, seed=0, documents=400, held_out=40)
    return directory


@pytest.fixture(scope="session")
def tokenizer(world):
    """A tokenizer of 512 tokens trained on the world's documents."""
    from groundup.tokenizer import train_tokenizer

    with open(world / "documents.jsonl", encoding="utf-8") as file:
        return train_tokenizer((json.loads(line)["text"] for line in file), vocab_size=512, max_length=512)


def build_tiny(tokenizer):
    from groundup.model import build_config, build_model

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return build_model(build_config("qwen3", tokenizer, sizes, max_length=512), seed=0)


def write_stage(model, tokenizer, directory):
    """The files of a model that a rung starts from."""
    from groundup.stage import chat_generation_config

    model.generation_config = chat_generation_config(tokenizer)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def tiny_model(tokenizer):
    """A random qwen3 of two layers with the tokenizer's vocabulary, new for each test."""
    return build_tiny(tokenizer)


@pytest.fixture(scope="session")
def tiny_base(tokenizer, tmp_path_factory):
    """Directory with the weights of such a model, its tokenizer and template: what a rung starts from. Read only."""
    directory = tmp_path_factory.mktemp("base")
    model = build_tiny(tokenizer)
    return write_stage(model, tokenizer, directory)


@pytest.fixture(scope="session")
def talker(tokenizer, tmp_path_factory):
    """Directory with a random model that says something else to each question, where `tiny_base` repeats a token. Read only."""
    from groundup.model import build_config, build_model

    directory = tmp_path_factory.mktemp("talker")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes["tie_word_embeddings"] = False
    model = build_model(build_config("qwen3", tokenizer, sizes, max_length=512), seed=0, embedding_std=1.0)
    return write_stage(model, tokenizer, directory)


@pytest.fixture(scope="session")
def sandbox():
    """The sandbox for code of a model; without bubblewrap, or where the kernel allows none, the test is skipped."""
    from groundup.errors import InputError
    from groundup.sandbox import proven_sandbox

    try:
        return proven_sandbox()
    except InputError as error:
        if "does not hold" in error.what:
            raise
        pytest.skip(error.what)


@pytest.fixture
def write(tmp_path):
    """Write a file of text, bytes, or rows as JSON lines; its path."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        content = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return str(path)

    return write


@pytest.fixture
def ladder(tmp_path):
    """Directory with the YAML of a small ladder of which nothing has run yet."""
    import yaml

    def write_yaml(path, **values):
        path.write_text(yaml.safe_dump(values))

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    common = {"report_to": "none", "bf16": False, "gradient_checkpointing": False}
    write_yaml(tmp_path / "tokenizer.yaml", dataset="text.jsonl", vocab_size=1000, output_dir="out/t/tokenizer")
    write_yaml(
        tmp_path / "pretrain.yaml",
        dataset="somebody/text",
        tokenizer_path="out/t/tokenizer",
        model_config=sizes,
        max_length=128,
        output_dir="out/t/pretrain",
        max_steps=10,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    start = {"dataset": "somebody/rows", "output_dir": "out/t/sft", "max_steps": 7, **common}
    write_yaml(tmp_path / "sft.yaml", model_name_or_path="out/t/pretrain", max_length=64, **start)
    start |= {"output_dir": "out/t/reward"}
    write_yaml(tmp_path / "reward.yaml", model_name_or_path="out/t/sft", **start)
    start |= {"output_dir": "out/t/ppo", "rewards": [{"model": "out/t/reward", "weight": 1.0}], "max_completion_length": 32}
    write_yaml(
        tmp_path / "ppo.yaml", model_name_or_path="out/t/sft", per_device_train_batch_size=8, steps_per_generation=2, **start
    )
    return tmp_path
