import pytest
from groundup import lineage, record, report
from invented import add_rung, write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "nano")


def family(run, names, rest="the weights"):
    """Rungs with files of their own, each grown from the one before."""
    parent = None
    for name in names:
        (run / name).mkdir(parents=True)
        (run / name / "model.safetensors").write_bytes(f"{rest} of {name}".encode())
        (run / name / "chat_template.jinja").write_text("a template")
        found = record.hashes(run / name)
        add_rung(run, name, parent=parent, **found)
        parent = {"path": str(run / name), **found}


def names(nodes):
    return {node["rung"]["name"]: names(node["children"]) for node in nodes}


def test_rungs_hang_from_what_they_started_from(run):
    found = lineage.tree(report.collect(run)["rungs"], run)
    assert names(found) == {"random": {}, "pretrain": {"sft": {"reward": {}, "grpo": {}}}}
    assert [node["unchecked"] for node in found] == ["no record", "no weights here"]
    page = report.write_report(run).read_text()
    assert page.index("<b>pretrain</b> <small>") < page.index("<b>sft</b> <small>") < page.index("<b>grpo</b> <small>")


def test_a_start_outside_the_run_is_named(tmp_path):
    add_rung(tmp_path, "sft", parent={"path": "someone/a-model"})
    (node,) = lineage.tree(report.collect(tmp_path)["rungs"], tmp_path)
    assert node["outside"] == "someone/a-model"
    assert "started from someone/a-model" in report.write_report(tmp_path).read_text()


def test_rungs_trained_in_a_circle_all_appear(tmp_path):
    for name, parent in (("sft", "ppo"), ("ppo", "grpo"), ("grpo", "ppo"), ("reward", "grpo")):
        add_rung(tmp_path, name, parent={"path": f"out/{parent}"})
    found = lineage.tree(report.collect(tmp_path)["rungs"], tmp_path)
    assert names(found) == {"ppo": {"sft": {}}, "grpo": {"reward": {}}}


def test_files_are_held_against_the_records(tmp_path, monkeypatch):
    family(tmp_path, ["pretrain", "sft", "ppo"])
    read = []
    hashes = record.hashes
    monkeypatch.setattr(record, "hashes", lambda path: read.append(path) or hashes(path))
    (node,) = lineage.tree(report.collect(tmp_path)["rungs"], tmp_path)
    assert lineage.say(node) == lineage.say(node["children"][0]) == "as recorded"
    assert len(read) == 3  # each once, though each is its descendants' ancestor
    (tmp_path / "sft" / "model.safetensors").write_bytes(b"other weights")
    (node,) = lineage.tree(report.collect(tmp_path)["rungs"], tmp_path)
    (sft,) = node["children"]
    assert node["wrong"] == [] and len(sft["wrong"]) == 1 and "sft: changed since its rung ended: weights_sha256" in sft["wrong"][0]
    assert "sft: changed since" in sft["children"][0]["wrong"][0]  # what grew from it is no longer of one piece
    page = report.write_report(tmp_path).read_text()
    assert page.count("✓ files as recorded") == 1 and page.count("✗ ") == 2


def test_a_run_too_large_to_read_is_not_read(tmp_path, monkeypatch):
    family(tmp_path, ["pretrain"])
    monkeypatch.setattr(lineage, "LARGEST", 3)
    monkeypatch.setattr(record, "hashes", lambda path: pytest.fail("read"))
    (node,) = lineage.tree(report.collect(tmp_path)["rungs"], tmp_path)
    assert lineage.say(node).startswith("not checked: ")


def test_an_unfinished_rung_is_not_checked(tmp_path):
    family(tmp_path, ["pretrain"])
    record.update(tmp_path / "pretrain", status="failed")
    (node,) = lineage.tree(report.collect(tmp_path)["rungs"], tmp_path)
    assert lineage.say(node) == "not checked: not finished"
