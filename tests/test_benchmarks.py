"""benchmarks/: each file takes --quick and prints one JSON line last; what they share is right."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))  # as python does for a script

import gpu  # noqa: E402
import measure  # noqa: E402
import overoptimisation  # noqa: E402
import real_gate  # noqa: E402

PARTS = {"measure", "peers", "runs"}  # what benchmarks share
SCRIPTS = [path for path in sorted((ROOT / "benchmarks").iterdir()) if path.suffix in (".py", ".sh") and path.stem not in PARTS]


def run(path, *words, **environment):
    """A benchmark as a user starts it, with this Python; what it printed."""
    path, command = Path(path), {".py": sys.executable, ".sh": "bash"}
    settings = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src"), **environment}
    done = subprocess.run([command[path.suffix], path, *map(str, words)], capture_output=True, text=True, env=os.environ | settings)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def last_json(said):
    return json.loads(said.splitlines()[-1])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_benchmark_takes_quick(path):
    """Its help says so; the slow ones are not run here."""
    assert "--quick" in run(path, "--help")


def test_every_benchmark_ends_in_one_line_of_json():
    for path in SCRIPTS:
        if path.suffix == ".py":
            assert "last_line(" in path.read_text(), path.name
        else:  # a Python one has the last word
            assert path.read_text().rstrip().splitlines()[-1].count(".py") == 1, path.name


# ---- figures.py, overoptimisation.py


def test_figures_of_docs_are_drawn():
    said = run(ROOT / "benchmarks" / "figures.py", "--quick")
    for path in said.split():
        if path.endswith(".svg"):
            assert xml.etree.ElementTree.parse(path).findall(".//{*}polyline")
    assert last_json(said)["figures"] == ["pretraining", "preferences", "reasoning"]


def test_score_and_taste_are_drawn_over_the_kl():
    points = [{"kl": kl, "score": kl, "taste": -kl} for kl in (0.0, 1.0, 2.0)]
    drawn = xml.etree.ElementTree.fromstring(overoptimisation.figure({"seed 0": points}))
    assert len(drawn.findall(".//{*}polyline")) == 2


# ---- ladder_table.py, real_text_table.py


def estimate(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 10}


def test_ladder_table_has_a_column_a_seed(tmp_path):
    for seed, value in (("0", 0.5), ("1", 0.6)):
        rungs = [{"rung": "pretrain", "seconds": 12.0, "metrics": {"cloze": estimate(value)}}]
        (tmp_path / seed / "out" / "nano").mkdir(parents=True)
        (tmp_path / seed / "out" / "nano" / "report.json").write_text(json.dumps({"rungs": rungs}))
    (tmp_path / "0" / "cost.json").write_text('{"seconds": 60.0, "peak_gb": 1.5}')
    said = run(ROOT / "benchmarks" / "ladder_table.py", tmp_path, 0, 1)
    assert "| pretrain | Cloze | 50 % (40-60) | 60 % (50-70) |" in said
    figures = last_json(said)
    assert figures["seeds"]["1"]["pretrain"]["cloze"] == 0.6 and figures["cost"] == {"0": {"seconds": 60.0, "peak_gb": 1.5}}


def test_real_text_table_ends_in_its_figures(tmp_path):
    from groundup import record

    rung = tmp_path / "out" / "real" / "pretrain"
    entry = {
        "rung": "pretrain",
        "status": "finished",
        "started": "2026-01-01T00:00:00",
        "seed": 0,
        "seconds": 9.0,
        "git_commit": "x",
    }
    record.write(
        rung, {**entry, "git_commit": None, "hardware": record.hardware(), "versions": record.versions(), "tokens": 10, "steps": 2}
    )
    found = {"schema": 1, "metrics": {"bits_per_byte": estimate(1.7)}, "settings": {"k": 2}, "samples": []}
    record.write_json(rung / "eval.json", found)
    record.write_json(rung / "trainer_state.json", {"log_history": [{"loss": 2.0, "step": 1}]})
    (tmp_path / "prepared").mkdir()
    pairs = [{"prompt": "a", "chosen": "long", "rejected": "no"}, {"prompt": "b", "chosen": "x", "rejected": "long"}]
    (tmp_path / "prepared" / "preferences.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    said = run(ROOT / "benchmarks" / "real_text_table.py", tmp_path)
    assert "| pretrain | 1.700 (1.600 to 1.800) |" in said
    assert last_json(said)["metrics"] == {"pretrain": {"bits_per_byte": 1.7}} and "sft" in last_json(said)["unfinished"]


# ---- real_gate.py


def problem(question, equation, numbers, answer, fold="train"):
    return {"question": question, "equation_prefix": equation, "numbers": numbers, "answer": answer, "fold": fold}


def test_a_sum_is_written_out_from_the_equation():
    row = problem("Bo had 8 figs, got 2, and shared them among 5.", "/ + number0 number1 number2", [8.0, 2.0, 5.0], 2.0)
    assert real_gate.shown(row)["completion"] == "(8 + 2) / 5 = 2. Answer: 2"
    assert real_gate.work_out("- number1 number0", [3.0, 7.5]) == ("7.5 - 3", 4.5, False)
    assert not real_gate.work_out("- number0 number1", [3.0, 7.0])[2] and real_gate.work_out("+ number0 12.0", [3.0])[1] == 15


@pytest.mark.parametrize(
    ("equation", "numbers", "answer", "easy"),
    [
        ("- number0 number1", [8.0, 2.0, 19.0], 6.0, True),
        ("- number0 number1", [8.0, 2.0, 20.0], 6.0, False),
        ("+ number0 number1", [12.0, 9.0], 21.0, False),
        ("/ number0 number1", [3.0, 2.0], 1.5, False),
        ("* number0 12.0", [1.0], 12.0, False),
        ("+ + number0 number1 number2", [1.0, 2.0, 3.0], 6.0, False),
    ],
)
def test_easy_is_told_by_the_problem(equation, numbers, answer, easy):
    assert real_gate.is_easy(problem("", equation, numbers, answer)) == easy


def test_other_numbers_make_another_problem_of_the_same_mould():
    row = problem("Ann had 8 figs and ate 2. 15 birds sang. How many are left?", "- number0 number1", [8.0, 2.0, 15.0], 6.0)
    for seed in range(20):
        other = real_gate.with_other_numbers(row, real_gate.random.Random(seed))
        a, b, c = other["numbers"]
        assert other["answer"] == a - b >= 0 and not {a, b, c} & {8, 2, 15} and len({a, b, c}) == 3
        assert other["question"] == f"Ann had {a:.0f} figs and ate {b:.0f}. {c:.0f} birds sang. How many are left?"
    assert real_gate.mould(row["question"].replace("Ann", "Bo")) == real_gate.mould(other["question"])
    twice = problem("Ann had 8 figs and got 8.", "+ number0 number1", [8.0, 8.0], 16.0)
    assert real_gate.with_other_numbers(twice, real_gate.random.Random(0)) is None


def test_nothing_trained_on_is_a_held_out_problem_in_other_words(tmp_path, capsys):
    ask = "{} had {} figs and ate 2. How many are left?"
    held_out = [problem(ask.format("Ann", 8), "- number0 number1", [8.0, 2.0], 6.0, "dev")]
    train = [problem(ask.format("Bo", n), "- number0 number1", [float(n), 2.0], n - 2.0) for n in (9, 90)]
    train += [problem(f"{n} cats and 2 dogs. How many?", "+ number0 number1", [float(n), 2.0], n + 2.0) for n in (9, 90)]
    made = real_gate.prepare([*held_out, *train], tmp_path)
    assert [row["answer"] for row in made["easiest_train"]] == ["11"] and [row["answer"] for row in made["easiest"]] == ["6"]
    assert any(row["prompt"].startswith("90 cats") for row in made["sums"])
    assert not any("figs" in row["prompt"] or row["prompt"].startswith("9 cats") for row in made["sums"])
    assert all(row["item"] == 0 and "figs" in row["question"] for row in made["easiest_other_numbers"])


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("8 - 2 = 6. Answer: 6", [1, 1, 1, 1, 1]),
        ("8 + 2 = 10. Answer: 1", [1, 1, 0, 1, 0]),
        ("1 - 2 = 18. Answer: 18", [1, 0, 1, 0, 1]),
        ("(8 - 2) - 1 = 5. Answer: 5", [0] * 5),
        ("8 - x = 6. Answer: 6", [0] * 5),
        ("12", [0] * 5),
    ],
)
def test_a_reply_is_taken_apart(reply, right):
    found = real_gate.anatomy(reply, {"question": "Ann had 8 figs and ate 2.", "operation": "-"})
    assert list(found.values()) == right and tuple(found) == real_gate.PARTS


def test_guessing_is_exposed():
    rows = [{"question": f"{n} and 2", "answer": str(n - 2), "operation": "-"} for n in (8, 9, 10, 14)]
    found = real_gate.rules([{"answer": "6"}] * 2 + [{"answer": "1"}], rows)
    assert found["always 6"] == 0.25 and found["always -"] == 1.0 and found["always +"] == 0.0
    assert real_gate.by_chance(["Answer: 6"] * 4, rows) == 0.25  # the same to everyone is right as often by chance
    assert real_gate.by_chance([f"Answer: {row['answer']}" for row in rows], rows) == 0.0
    twice = [row for row in rows for _ in range(2)]
    assert real_gate.by_chance([f"Answer: {row['answer']}" for row in twice], twice, k=2) == 0.0


# ---- gpu.sh


@pytest.fixture(scope="module")
def look(tmp_path_factory):
    """The whole script in small, on a CPU, once: its figures, what it printed, and its folder."""
    folder = tmp_path_factory.mktemp("gpu")
    said = run(ROOT / "benchmarks" / "gpu.sh", "--quick", "--device", "cpu", "--nanochat", folder / "no_nanochat", "--out", folder)
    return last_json(said), said, folder


def test_gpu_script_trains_the_recipe(look):
    figures, said, folder = look
    ours, _ = figures["results"]
    assert ours["contestant"] == "ours" and "failed" not in ours, ours
    assert ours["tokens_per_second"] > 0 and ours["parameters"] > 100_000 and ours["flops_per_token"] > 6 * 100_000
    assert list(ours["loss"]) == ["2", "4", "6"] and ours["loss"]["6"] < ours["loss"]["2"]
    assert f"{ours['tokens_per_second']:,.0f}" in said
    (written,) = folder.glob("*/results.json")
    assert json.loads(written.read_text())["results"] == figures["results"]


def test_gpu_script_goes_on_when_one_fails(look):
    figures, said, _ = look
    _, peer = figures["results"]
    assert peer["contestant"] == "nanochat" and "nanochat" in peer["failed"]
    assert "| tiny | nanochat | no figure: ModuleNotFoundError" in said and figures["against_nanochat"] == {}


def job(tmp_path, until, contestants=("ours", "nanochat")):
    return {"name": "tiny", "contestants": list(contestants), "results": str(tmp_path / "r.jsonl"), "until": until, "device": "cpu"}


def results(tmp_path):
    return [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]


def test_a_group_without_time_is_reported(tmp_path):
    gpu.run_job(job(tmp_path, until=0), tmp_path)
    assert [(r["contestant"], r["failed"]) for r in results(tmp_path)] == [("ours", "no time left"), ("nanochat", "no time left")]


def test_a_group_that_dies_or_hangs_is_reported(tmp_path, monkeypatch):
    def dies(command, **kwargs):
        (tmp_path / "r.jsonl").write_text('{"shape": "tiny", "contestant": "ours", "seconds": 1}\n')  # the first was done
        return subprocess.CompletedProcess(command, -9)

    monkeypatch.setattr(gpu.subprocess, "run", dies)
    gpu.run_job(job(tmp_path, until=gpu.time.time() + 100), tmp_path)
    first, second = results(tmp_path)
    assert "failed" not in first and second["failed"].startswith("its process ended with status -9")

    def hangs(command, timeout, **kwargs):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(gpu.subprocess, "run", hangs)
    gpu.run_job(job(tmp_path, until=gpu.time.time() + 100), tmp_path)
    assert all(r["failed"].startswith("stopped after ") for r in results(tmp_path)[2:]) and len(results(tmp_path)) == 4


def test_a_contestant_that_takes_too_long_is_stopped():
    with pytest.raises(gpu.OutOfTime), gpu.limited(0.05):
        while True:
            pass


def test_shapes_are_those_asked_for():
    from groundup.model import Dial, dial

    chosen: Dial = dial(12, gpu.VOCABULARY)
    shape = gpu.SHAPES["124M"]
    assert (shape["width"], shape["layers"], shape["inner"]) == (chosen.hidden_size, chosen.depth, chosen.intermediate_size)
    assert shape["rows"] * gpu.LENGTH == chosen.batch_tokens
    larger = gpu.SHAPES["350M"]
    w = larger["width"]
    parameters = larger["layers"] * (4 * w * w + 3 * w * larger["inner"]) + gpu.VOCABULARY * w
    assert parameters == pytest.approx(0.35e9, rel=0.05)
    for s in gpu.SHAPES.values():
        assert s["rows"] % s["micro"] == 0 and s["micro"] % 8 == 0  # an eighth of it on a smaller GPU


def test_peak_of_the_gpus_the_targets_speak_of():
    """Dense bf16, by the makers' data sheets; and the MFU is the share of it that the model's FLOPs are."""
    from trl.trainer.utils import get_peak_flops

    assert get_peak_flops("NVIDIA H200", "bfloat16") == get_peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert get_peak_flops("some other card", "bfloat16") is None


def test_ratio_is_ours_over_nanochats():
    rates = [("124M", "ours", 30.0), ("124M", "nanochat", 20.0), ("350M", "ours", 5.0)]
    found = [{"shape": shape, "contestant": who, "tokens_per_second": rate} for shape, who, rate in rates]
    assert gpu.ratios([*found, {"shape": "350M", "contestant": "nanochat", "failed": "x"}]) == {"124M": 1.5}


# ---- evaluation_speed.py


def test_evaluation_speed_compares_the_same_likelihoods():
    harness = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    places = f"{ROOT / 'src'}{os.pathsep}{Path(harness.__file__).parents[1]}"
    said = run(ROOT / "benchmarks" / "evaluation_speed.py", "--quick", PYTHONPATH=places)
    found = last_json(said)["tasks"]["toyland"]
    assert set(found["questions_per_second"]) == {"lm-eval, 1", "lm-eval, 8", "lm-eval, 32", "groundup"}
    assert found["ours_over_theirs"] > 0 and found["largest_difference"] < 1e-5 * found["largest_log_likelihood"]  # float32
    assert f"{found['ours_over_theirs']:.2f}" in said


# ---- measure.py


def test_machine_names_what_a_figure_depends_on():
    found = measure.machine()
    assert found["cpu"] and found["cores"] >= 1 and found["threads"] >= 1 and found["memory_gb"] > 0
    assert {"python", "torch", "transformers", "groundup"} <= set(found["versions"])
    json.dumps(found)


def test_header_prints_machine_versions_and_command(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/learning.py", "--quick", "a b"])
    found = measure.header()
    said = capsys.readouterr().out
    assert found["command"] == "python benchmarks/learning.py --quick 'a b'" and f"`{found['command']}`" in said
    assert found["machine"]["cpu"] in said and f"torch {found['machine']['versions']['torch']}" in said
    assert measure.header("bash benchmarks/x.sh")["command"] == "bash benchmarks/x.sh"


def test_last_line_is_one_line_of_standard_json(capsys):
    measure.last_line({"loss": float("nan"), "rate": 1.5, "where": Path("a") / "b", "text": "two\nlines"})
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"loss": "nan", "rate": 1.5, "where": "a/b", "text": "two\nlines"}


def test_peak_rss_is_in_bytes_and_never_falls():
    before = measure.peak_rss()
    assert 50e6 < before < 100e9
    block = bytearray(200_000_000)
    block[::4096] = b"x" * len(block[::4096])  # touched, so that it is resident
    after = measure.peak_rss()
    assert after >= before
    del block
    assert measure.peak_rss() >= after


def test_loop_timer_leaves_the_warm_up_out(monkeypatch):
    clock, costs = [100.0], [9.0, 9.0, 1.0, 2.0, 3.0, 4.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def step():
        clock[0] += costs.pop(0)

    assert measure.loop_timer(step, times=4, warm_up=2) == [1.0, 2.0, 3.0, 4.0]
    assert not costs


def test_in_turn_alternates():
    order = []
    contestants = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    seconds = measure.in_turn(contestants, rounds=3, warm_up=1)
    assert "".join(order) == "ab" + "ababab"
    assert {name: len(s) for name, s in seconds.items()} == {"a": 3, "b": 3}


def test_parser_knows_quick():
    parser = measure.parser("What it measures.")
    assert parser.parse_args(["--quick"]).quick and not parser.parse_args([]).quick
    with pytest.raises(SystemExit):
        parser.parse_args(["--qui"])


def test_table_is_markdown():
    assert measure.table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
