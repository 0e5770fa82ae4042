"""A run with invented numbers, for whatever reads what rungs leave in their directories."""

import json

from groundup import record

HOSTILE = '<script>alert(1)</script><img src="https://example.org/x.png" onerror=alert(2)>\x07\u202e{{ 7 * 7 }}'


def result(value, width=0.03):
    return {"value": value, "low": max(0.0, value - width), "high": min(1.0, value + width), "n": 200}


def add_rung(run, name, metrics=None, history=None, samples=(), **fields):
    stage = run / name
    stage.mkdir(parents=True, exist_ok=True)
    if fields:
        record.write(stage, {"rung": name, "status": "finished", "seed": 0, **fields})
    if metrics is not None:
        evaluation = {"schema": 1, "rung": name, "seed": 0, "metrics": metrics, "samples": list(samples)}
        if "problems" in metrics:
            evaluation["by_difficulty"] = {"problems": {"2": result(0.2), "10": result(0.1), "1": result(0.6)}}
        evaluation["settings"] = {"k": 8, "temperature": 0.8}
        (stage / "eval.json").write_text(json.dumps(evaluation))
    if history is not None:
        (stage / "trainer_state.json").write_text(json.dumps({"log_history": history}))


def write_run(run):
    """Five rungs, of which one was not evaluated."""
    ask = {"kind": "fact", "prompt": "Where does Mira live?"}
    add_rung(run, "random", {"cloze": result(0.12), "problems": result(0.0)}, samples=[ask | {"reply": HOSTILE}])
    losses = [{"step": step, "loss": 5 / step, "learning_rate": 1e-3} for step in range(1, 101)]
    add_rung(
        run,
        "pretrain",
        {
            "bits_per_byte": {"value": 0.6, "low": 0.59, "high": 0.61, "n": 9},
            "cloze": result(0.97),
            "problems": result(0.1),
        },
        [*losses, {"step": 100, "eval_loss": 1.5, "eval_bits_per_byte": 0.6}, {"step": 100, "train_loss": 2.0}],
        [ask | {"reply": "Mira lives in Dorn. Otto lives"}],
        started="2026-01-01T00:00:00+00:00",
        seconds=61.5,
        tokens=1_200_000,
        parameters=1_234_567,
        data=[{"name": "toyland/documents", "sha256": "0f" * 32, "rows": 1000, "kept": 990, "dropped": {"empty text": 10}}],
        versions={"python": "3.11.7", "peft": None},
        hardware={"machine": "Linux x86_64", "cpu": "A <fast> CPU", "cores": 2, "memory_gb": 25.3, "gpus": []},
        command="python recipes/pretrain.py --config a.yaml",
    )
    add_rung(
        run,
        "sft",
        {"cloze": result(0.6), "problems": result(0.3), "asked": result(1.0), "problems_pass_at_k": result(0.5)},
        samples=[ask | {"reply": "Mira lives in Dorn."}, {"kind": "x", "prompt": "Only here?", "reply": ""}],
        started="2026-01-01T00:02:00+00:00",
        seconds=100,
        parent={"path": "out/nano/pretrain", "weights_sha256": "ab" * 32, "tokenizer_sha256": "cd" * 32},
    )
    add_rung(run, "reward", started="2026-01-01T00:04:00+00:00", seconds=10, parent={"path": "out/nano/sft"})
    steps = range(1, 21)
    add_rung(
        run,
        "grpo",
        {"cloze": result(0.59), "problems": result(0.7), "zeal": result(0.5)},
        [{"step": s, "reward": s / 20, "rewards/right/mean": s / 20, "rewards/form/mean": 1.0, "kl": 0.0} for s in steps],
        started="2026-01-01T00:06:00+00:00",
        seconds=4000,
        parent={"path": "out/nano/sft"},
    )
    (run / "data").mkdir()
    (run / ".cache").mkdir()
    return run
