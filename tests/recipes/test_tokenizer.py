import pytest
from groundup.errors import InputError
from groundup.tokenizer import check_tokenizer
from transformers import AutoTokenizer

from recipes.miniature import run_recipe


def test_is_what_later_rungs_need(rungs):
    directory = rungs["tokenizer"].directory
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert len(tokenizer) == 512
    check_tokenizer(tokenizer, str(directory))
    text = "Ada has 12 apples. 12 + 3 = 15.\n\tÆther\u2009\N{SNOWMAN}"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_says_how_well_it_compresses(rungs, tmp_path, capsys):
    run_recipe("tokenizer", tmp_path / "tokenizer", **rungs.settings("tokenizer"))
    said = capsys.readouterr().out
    assert "tokenizer: 512 tokens, " in said and "bytes per token on held-out text" in said


def test_same_text_gives_the_same_tokenizer(rungs, tmp_path):
    again = run_recipe("tokenizer", tmp_path / "tokenizer", **rungs.settings("tokenizer"))
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (again.directory / file).read_bytes() == (rungs["tokenizer"].directory / file).read_bytes()


def test_finished_rung_says_so(rungs, capsys):
    trained = rungs["tokenizer"]
    before = (trained.directory / "tokenizer.json").stat().st_mtime_ns
    run_recipe("tokenizer", trained.directory, **rungs.settings("tokenizer"))
    assert "tokenizer: finished already" in capsys.readouterr().out
    assert (trained.directory / "tokenizer.json").stat().st_mtime_ns == before


def test_too_small_a_vocabulary_is_refused(rungs, tmp_path):
    with pytest.raises(InputError, match="cannot hold 256 bytes"):
        run_recipe("tokenizer", tmp_path / "tokenizer", **{**rungs.settings("tokenizer"), "vocab_size": 200})
    assert not (tmp_path / "tokenizer").exists()
