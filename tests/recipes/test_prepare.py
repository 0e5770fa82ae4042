"""recipes/prepare.py on its nano YAML, and its tokens in pre-training."""

import json
import subprocess
import sys

import pytest
from groundup.errors import InputError

from recipes.miniature import REPOSITORY, arguments_of, load_recipe, run_recipe


@pytest.fixture(scope="module")
def settings(rungs):
    world = rungs.world
    return {
        "dataset": str(world / "documents.jsonl"),
        "eval_dataset": str(world / "eval_documents.jsonl"),
        "decontaminate_against": [{"path": str(world / "eval_problems.jsonl"), "columns": ["question"]}],
        "tokenizer_path": str(rungs["tokenizer"].directory),
        "max_length": 64,
    }


@pytest.fixture(scope="module")
def tokens(settings, tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared") / "tokens"
    run_recipe("prepare", directory, **settings)
    return directory


def test_prepares_what_pretraining_reads(rungs, tokens, tmp_path):
    manifest = json.loads((tokens / "manifest.json").read_text())
    assert manifest["packing"] == "best_fit" and manifest["splits"]["held_out"]["documents"] == 40
    assert manifest["decontamination"]["sets"][0]["items"] == 300
    settings = {**rungs.settings("pretrain"), "dataset": str(tokens), "eval_dataset": str(tokens)}
    settings = {**settings, "random_init_dir": str(tmp_path / "random")}
    del settings["max_eval_rows"]
    trained = run_recipe("pretrain", tmp_path / "pretrain", **settings)
    assert trained.record["prepared"]["tokenizer_sha256"] == manifest["tokenizer_sha256"]
    assert trained.record["metrics"]["eval_bits_per_byte"] > 0


def test_finished_says_so(settings, tokens, capsys):
    before = (tokens / "manifest.json").stat().st_mtime_ns
    run_recipe("prepare", tokens, **settings)
    assert "prepare: finished already" in capsys.readouterr().out
    assert (tokens / "manifest.json").stat().st_mtime_ns == before


def test_jobs_of_an_array_on_the_command_line(settings, tmp_path):
    """As a user runs them: two processes at once, then nothing is left."""
    words = [sys.executable, str(REPOSITORY / "recipes" / "prepare.py"), "--config", str(REPOSITORY / "recipes/nano/prepare.yaml")]
    for key, value in {**settings, "output_dir": str(tmp_path / "tokens")}.items():
        words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    jobs = [
        subprocess.Popen([*words, "--shard", f"{n}/2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for n in (0, 1)
    ]
    said = [job.communicate(timeout=300) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    assert sum("prepare: done -> " in out for out, _ in said) >= 1
    assert json.loads((tmp_path / "tokens" / "manifest.json").read_text())["splits"]["train"]["shards"] == 2
    refused = subprocess.run([*words, "--shard", "0/3"], capture_output=True, text=True)
    assert refused.returncode == 2 and "shards: 2 -> 3" in refused.stderr and "Traceback" not in refused.stderr


def test_missing_tokenizer(settings, tmp_path):
    recipe = load_recipe("prepare")
    for path in (str(tmp_path / "none"), "some/id"):
        arguments = arguments_of(recipe, "prepare", {**settings, "tokenizer_path": path, "output_dir": str(tmp_path / "tokens")})
        with pytest.raises(InputError, match=f"no tokenizer .*`{path}`.*\n.*\n.*run recipes/tokenizer.py first"):
            recipe.main(*arguments)
    assert not (tmp_path / "tokens").exists()


def test_cluster_that_is_not_done(settings, tmp_path, capsys, monkeypatch):
    pytest.importorskip("datatrove")
    monkeypatch.setattr("groundup.minhash.find_clusters", lambda *_: None)
    run_recipe("prepare", tmp_path / "tokens", **settings, near_duplicates="drop")
    assert "near duplicates are Slurm's" in capsys.readouterr().out
    assert not (tmp_path / "tokens" / "manifest.json").exists()
