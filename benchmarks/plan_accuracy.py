"""How far a plan is from the fact: peak memory and time of every rung, on this machine.

Each rung runs for some steps in a process of its own, and what `stage.start` wrote down before is compared with what `stage.finish`
found after. Time is that of the processor, with one thread, so that other work on the machine does not count on either side.

    python benchmarks/plan_accuracy.py          the nano ladder, larger shapes, and some that no constant was fitted to; 15 minutes
    python benchmarks/plan_accuracy.py --quick  three rungs, a few steps
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import header, last_line, parser

ROOT = Path(__file__).parents[1]
CHILD = """
import runpy, sys, time
time.perf_counter = time.process_time  # before anything takes it
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
NEEDED = ("pretrain", "sft", "reward")  # what the others start from
WIDE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
MIDDLE = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4}


def runs(quick: bool) -> list[tuple[str, str, dict]]:
    """(name, rung, what replaces the nano YAML's settings)."""
    few = {"pretrain": 30, "sft": 60, "reward": 20, "ppo": 4, "grpo": 2} if quick else {}
    many = {"pretrain": 150, "sft": 300, "reward": 120, "ppo": 16, "grpo": 12}
    decay = {"lr_scheduler_kwargs": {"num_decay_steps": 5, "decay_type": "linear"}, "warmup_steps": 2}
    found = []
    for rung in ("pretrain", "sft", "reward", *(() if quick else ("ppo", "grpo"))):
        settings = {"max_steps": few.get(rung, many[rung])} | ({**decay, "eval_steps": 25} if rung == "pretrain" else {})
        found.append((rung, rung, settings))
    if not quick:
        big = {**decay, "max_steps": 8, "eval_strategy": "no", "random_init_dir": None}
        for name, sizes, rows, length, bf16 in (
            ("pretrain 256 x 6, 16 x 256", MIDDLE, 16, 256, False),
            ("pretrain 256 x 6, 16 x 256, bf16", MIDDLE, 16, 256, True),
            ("pretrain 512 x 8, 8 x 512", WIDE, 8, 512, False),
        ):
            settings = {"model_config": sizes, "per_device_train_batch_size": rows, "max_length": length, "bf16": bf16}
            found.append((name, "pretrain", {**big, **settings, "max_position_embeddings": length, "max_eval_rows": 40}))
        found.append(("the same, all logits at once", "pretrain", {**found[-1][2], "chunked_loss": False}))
        # Not one of these was looked at when the constants of groundup.plan and groundup.memory were chosen.
        llama = {"hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 5, "num_attention_heads": 6}
        others = {
            "held out: llama 384 x 5, untied, 6 x 320": {
                "model_type": "llama",
                "model_config": {**llama, "tie_word_embeddings": False},
                "per_device_train_batch_size": 6,
                "max_length": 320,
            },
            "held out: 192 x 9, best fit, 12 x 384, AdamW": {
                "model_config": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 9, "num_attention_heads": 3},
                "per_device_train_batch_size": 12,
                "max_length": 384,
                "packing": "best_fit",
                "optim": "adamw_torch",
            },
            "held out: llama 384 x 5, checkpointed, 2 x 5 x 448": {
                "model_type": "llama",
                "model_config": llama,
                "per_device_train_batch_size": 5,
                "gradient_accumulation_steps": 2,
                "gradient_checkpointing": True,
                "max_length": 448,
            },
        }
        for name, settings in others.items():
            found.append(
                (name, "pretrain", {**big, **settings, "max_position_embeddings": settings["max_length"], "max_eval_rows": 40})
            )
        found += [(f"ppo again, seed {seed}", "ppo", {"max_steps": 16, "seed": seed}) for seed in (1, 2, 3)]
    return found


def main(quick: bool, only: str) -> None:
    head = header()
    with tempfile.TemporaryDirectory() as folder:
        run([sys.executable, "-m", "groundup.toyland", "out/nano/world"], folder)
        run([sys.executable, ROOT / "recipes/tokenizer.py", "--config", ROOT / "recipes/nano/tokenizer.yaml"], folder)
        print("| rung | memory, MiB | predicted | ratio | time, s | predicted | ratio |\n|---|---|---|---|---|---|---|")
        figures = []
        for number, (name, rung, settings) in enumerate(runs(quick)):
            if only and not name.startswith(only) and name not in NEEDED:
                continue
            directory = f"out/nano/{name}" if name == rung else f"out/nano/other{number}"
            command = [sys.executable, "-c", CHILD, ROOT / f"recipes/{rung}.py", "--config", ROOT / f"recipes/nano/{rung}.yaml"]
            for key, value in {**settings, "output_dir": directory}.items():
                if value is not None:
                    command += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
            run(command, folder)
            figures.append(compare(name, Path(folder, directory)))
    ratios = {what: [max(f[what], 1 / f[what]) for f in figures] for what in ("memory_ratio", "time_ratio")}
    worst = {f"worst_{what}": max(values) for what, values in ratios.items()}
    print(f"\nWorst: memory x{worst['worst_memory_ratio']:.2f}, time x{worst['worst_time_ratio']:.2f} (bars: 1.10 and 1.20)")
    last_line({**head, "quick": quick, "rungs": figures, **worst})


def run(command: list, folder: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([str(word) for word in command], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def compare(name: str, directory: Path) -> dict:
    """One row of the table: what run.json says of before and after."""
    entry = json.loads((directory / "run.json").read_text())
    plan = entry["plan"]
    found = {
        "name": name,
        "memory": entry["peak_memory_bytes"],
        "memory_predicted": plan["memory"]["tracked"],
        "memory_ratio": plan["memory"]["tracked"] / entry["peak_memory_bytes"],
        "seconds": entry["seconds"],
        "seconds_predicted": plan["seconds"],
        "time_ratio": plan["seconds"] / entry["seconds"],
        "parts": plan["memory"]["parts"],
    }
    memory = f"{found['memory'] / 2**20:.0f} | {found['memory_predicted'] / 2**20:.0f} | {found['memory_ratio']:.2f}"
    print(
        f"| {name} | {memory} | {found['seconds']:.1f} | {found['seconds_predicted']:.1f} | {found['time_ratio']:.2f} |", flush=True
    )
    return found


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--only", default="", help="rows whose name starts so, and the rungs that they start from")
    options = options.parse_args()
    main(options.quick, options.only)
