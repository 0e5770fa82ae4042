import base64
import hashlib
import html
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from groundup import record, report
from groundup.errors import InputError
from groundup.results import markdown_table
from invented import HOSTILE, add_rung, result, write_run

RECIPE = Path(__file__).parents[1] / "recipes" / "report.py"


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "nano")


def test_collect_orders_the_rungs(run):
    add_rung(run, "zeta", {}, started="2026-01-01T00:00:00+00:00")
    add_rung(run, "alpha", {}, started="2026-01-02T00:00:00+00:00")
    names = [rung["rung"] for rung in report.collect(run)["rungs"]]
    assert names == ["random", "pretrain", "sft", "reward", "grpo", "zeta", "alpha"]


def test_report_json_is_what_benchmarks_read(run):
    path = report.write_report(run)
    assert path == run / "report.html"
    written = json.loads((run / "report.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    sft = written["rungs"][2]
    assert (sft["rung"], sft["seed"], sft["seconds"]) == ("sft", 0, 100)
    assert sft["metrics"]["asked"] == {"value": 1.0, "low": 0.97, "high": 1.0, "n": 200}
    assert sft["by_difficulty"]["problems"]["1"]["value"] == 0.6
    assert written["rungs"][0]["seconds"] is None and written["rungs"][3]["metrics"] == {}
    assert written["metrics"] == ["bits_per_byte", "cloze", "asked", "problems", "problems_pass_at_k", "zeal"]
    assert sorted(p.name for p in run.iterdir() if p.is_file()) == ["report.html", "report.json", "report.md"]


def test_markdown_report(run):
    report.write_report(run)
    text = (run / "report.md").read_text()
    for part in (
        "| pretrain | finished | 0 | 1.23 M | 1.2 M | 62 s |",
        "A &lt;fast> CPU, 2 cores, 25.3 GB",
        "| sft | out/nano/pretrain | abababababab | cdcdcdcdcdcd |  | not checked: no weights here |",
        "toyland/documents | sha256 0f0f0f0f0f0f, 1,000 rows, 990 kept, 10 dropped |",
        "    python recipes/pretrain.py --config a.yaml\n",
        "| sft | k: 8, temperature: 0.8 |",
        "> toyland is a synthetic world generated from a seed",
    ):
        assert part in text
    assert "peft" not in text


class Page(HTMLParser):
    """All elements and attributes of a page, and whether each is closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.attributes, self.open = set(), [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.add(tag)
        self.attributes += attributes
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.add(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_escapes_what_models_wrote_and_loads_nothing(run):
    add_rung(run, "sft", {"cloze<b>": result(0.5)}, samples=[{"kind": HOSTILE, "prompt": HOSTILE, "reply": [HOSTILE]}])
    add_rung(run, "grpo", history=[{"step": s, f"rewards/{HOSTILE}/mean": s, "rewards/b/mean": s} for s in (1, 2)])
    text = report.write_report(run).read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert not page.elements & {"img", "link", "iframe", "object", "embed", "form", "base"}
    names = {name for name, _ in page.attributes}
    assert not {name for name in names if name.startswith("on")} and not names & {"src", "srcset", "action"}
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    assert "default-src &#39;none&#39;" in text and not re.search(r"@import|url\(", text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)  # ours, and the only one that its hash lets run
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;;" in text and script.count("<script") == text.count("<script") - 1 == 0
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)
    assert html.escape("<script>alert(1)</script>") in text and "{{ 7 * 7 }}" in text
    assert "\x07" not in text and "␇" in text


def test_the_page_says_what_is_missing_and_leaves_out_what_was_not_logged(run):
    text = report.write_report(run).read_text(encoding="utf-8")
    assert text.count("not evaluated") == 2  # once with the rung, once above its column
    assert "toyland is a synthetic world" in text
    captions = re.findall(r"<figcaption><b>(.+?)</b>, (\w+)", text)
    assert captions == [
        ("Loss", "pretrain"),
        ("Reward", "grpo"),
        ("Reward by function", "grpo"),
        ("KL to the reference", "grpo"),
    ]
    assert "not asked" in text and "(nothing)" in text
    assert text.index('<th scope="col">2</th>') < text.index('<th scope="col">10</th>')
    shutil.rmtree(run / "pretrain")
    assert "toyland" not in report.write_report(run).read_text(encoding="utf-8")


def test_provenance_as_data_writes_it(run):
    data = [{"name": "a.jsonl", "sha256": "0f" * 32, "files": 1, "rows": 1000, "kept": 990, "dropped": {"empty text": 10}}]
    record.update(run / "sft", data=data)
    report.write_report(run)
    assert "10 dropped" in (run / "report.md").read_text()


PLAN = {"memory": {"tracked": 3 * 2**30}, "seconds": 50.0, "tokens": 1_200_000}


def test_foreseen_beside_found(run):
    record.update(run / "pretrain", plan=PLAN, peak_memory_bytes=2 * 2**30)
    record.update(run / "sft", plan={**PLAN, "memory": None, "tokens": None})  # found without a peak, foreseen without memory
    record.update(run / "grpo", plan=PLAN, status="running")
    expected = [
        ["pretrain", "peak memory", "3.0 GiB", "2.0 GiB", "50 % too high"],
        ["pretrain", "time", "50 s", "62 s", "19 % too low"],
        ["pretrain", "tokens", "1.2 M", "1.2 M", "right to 1 %"],
        ["sft", "time", "50 s", "1.7 min", "50 % too low"],
    ]
    assert report._predictions(report.collect(run)["rungs"]) == expected
    page = report.write_report(run).read_text()
    text = (run / "report.md").read_text()
    for line in expected:
        assert f"| {' | '.join(line)} |\n" in text
        assert f'{line[3]}<small class="below">foreseen {line[2]}, {line[4]}</small>' in page
    assert not Page(page).open


def test_nothing_foreseen_no_table(run):
    assert "Foreseen" not in report.write_report(run).read_text() + (run / "report.md").read_text()


def test_how_documents_became_tokens(run):
    split = {"documents": 290, "tokens": 20_000, "padding": 300, "split_documents": 2}
    manifest = {
        "packing": "best_fit",
        "documents": 310,
        "dropped": {"duplicate": 15, "a | <b>": 5},
        "decontamination": {"sets": [{"name": "gsm8k", "items": 100, "items_found": 3, "documents": 4}]},
        "splits": {"train": {**split, "dropped": {"no room": {"documents": 1, "tokens": 7}}}},
    }
    record.update(run / "pretrain", prepared=manifest)
    assert report._preparation(report.collect(run)["rungs"]) == [
        ["pretrain", "read", "310", ""],
        ["pretrain", "dropped: duplicate", "15", ""],
        ["pretrain", "dropped: a | <b>", "5", ""],
        ["pretrain", "contaminated by gsm8k: 3 of 100 items found", "4", ""],
        ["pretrain", "train, best_fit", "290", "20,000"],
        ["pretrain", "train, dropped: no room", "1", "7"],
        ["pretrain", "train, padding", "", "300"],
        ["pretrain", "train, longer than a row and cut", "2", ""],
    ]
    page = report.write_report(run).read_text()
    assert not Page(page).open and "dropped: a | &lt;b&gt;" in page
    assert "| pretrain | dropped: a \\| &lt;b> | 5 |  |\n" in (run / "report.md").read_text()
    manifest = {"decontamination": {"notice": "not decontaminated"}, "splits": {}}
    record.update(run / "pretrain", prepared=manifest)
    assert report._preparation(report.collect(run)["rungs"]) == [["pretrain", "not decontaminated", "", ""]]


def test_warnings(run):
    assert report.collect(run)["warnings"] == []
    record.update(run / "sft", started="2026-01-01T00:05:00+00:00", status="interrupted")
    assert report.collect(run)["warnings"] == [
        "sft is interrupted: its numbers are not final.",
        "sft was trained again after reward had read it: not one ladder.",
    ]


def test_a_run_with_nothing_evaluated(tmp_path):
    add_rung(tmp_path, "pretrain", seconds=1, history=[])
    text = report.write_report(tmp_path).read_text()
    assert "not evaluated" in text and "<svg" not in text
    assert markdown_table(report.collect(tmp_path)).splitlines()[-1] == "| pretrain | not evaluated |"


def run_recipe(*arguments):
    return subprocess.run([sys.executable, str(RECIPE), *map(str, arguments)], capture_output=True, text=True)


def test_recipe(run):
    done = run_recipe(run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("| Rung |") and done.stdout.endswith(f"\n{run / 'report.html'}\n")


def test_recipe_on_a_terminal(run):
    master, terminal = pty.openpty()
    command = [sys.executable, str(RECIPE), str(run)]
    subprocess.run(command, stdout=terminal, env=os.environ | {"COLUMNS": "100", "TERM": "xterm"}, check=True)
    os.close(terminal)
    shown = os.read(master, 65536).decode()
    assert "not evaluated" in shown and "97 % (94-100)" in shown and "**" not in shown and "---" not in shown


@pytest.mark.parametrize("name", ["missing", "empty", "nano/sft"])
def test_recipe_names_a_mistake_and_exits_2(run, tmp_path, name):
    (tmp_path / "empty").mkdir()
    done = run_recipe(tmp_path / name)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "fix:" in done.stderr and done.stdout == ""
    with pytest.raises(InputError):
        report.collect(tmp_path / name)
