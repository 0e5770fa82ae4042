"""Pre-training on one GPU: tokens a second, MFU, peak memory, loss against steps, at ~124M and ~0.35B parameters, 2048 tokens.

bash benchmarks/gpu.sh [TEXT] [--nanochat NANOCHAT_DIR] [--out out/gpu]

Ours is recipes/pretrain.py with recipes/small/pretrain.yaml, sizes and steps replaced; without TEXT (a file or folder that the
recipes read) it learns generated text. nanochat is its own model and optimizer, imported from its checkout, on the same rows. Each
group of contestants is a process; what fails, or has no time left, is reported and the rest goes on. Ends in under 8 minutes.
"""

import argparse
import gc
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import torch
from measure import command_line, header, last_line, median, parser, table

ROOT = Path(__file__).parents[1]
VOCABULARY, LENGTH = 32768, 2048
SHAPES: dict[str, dict[str, Any]] = {
    "124M": {"width": 768, "layers": 12, "inner": 2048, "micro": 32, "rows": 128, "steps": 40, "target": 0.50},
    "350M": {"width": 1024, "layers": 24, "inner": 2752, "micro": 16, "rows": 128, "steps": 24, "target": 0.55},
}
QUICK = {"tiny": {"width": 128, "layers": 2, "inner": 384, "micro": 2, "rows": 4, "steps": 6, "target": None}}
# Most wanted first: a group is a process, and the last ones are skipped when time is out.
GROUPS = [["ours", "nanochat"], ["liger"], ["heads of 64"]]
NAMES = {
    "ours": "ours",
    "liger": "ours, Liger's loss and layers",
    "heads of 64": "ours, heads of 64",
    "nanochat": "nanochat",
}
SECONDS = 450  # for everything
ONE = 150  # for one contestant, compilation included
PROFILED = 6  # kernels shown


class OutOfTime(Exception):
    """A contestant had its time."""


# ---- A group of contestants, in a process of its own ----------------------------------------------------------------


def load_recipe(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kernel_watcher(at: int):
    """A callback that profiles step `at` alone, and keeps its kernels as {name: milliseconds}, longest first."""
    from transformers import TrainerCallback

    class Kernels(TrainerCallback):
        profile, milliseconds = None, {}

        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == at - 1 and args.device.type == "cuda":
                self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
                self.profile.start()

        def on_step_end(self, args, state, control, **kwargs):
            if self.profile is not None:
                torch.cuda.synchronize()
                self.profile.stop()
                events = sorted(self.profile.key_averages(), key=lambda e: -e.self_device_time_total)[:PROFILED]
                self.milliseconds = {event.key[:80]: round(event.self_device_time_total / 1e3, 1) for event in events}
                self.profile = None

    return Kernels()


def ours(name: str, job: dict) -> dict[str, Any]:
    """recipes/pretrain.py's own main, with what is specific to a benchmark replaced: it keeps no weights."""
    from groundup.command_line import parse
    from groundup.configs import DataArguments, ModelArguments
    from transformers import TrainingArguments

    shape, steps = job["shape"], job["shape"]["steps"]
    sizes = {
        "hidden_size": shape["width"],
        "intermediate_size": shape["inner"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["width"] // (64 if name == "heads of 64" else job["head"]),
        "vocab_size": job["vocabulary"],  # whatever the text gave: logits cost what they will
    }
    settings = {
        "dataset": job["tokens"],
        "tokenizer_path": job["tokenizer"],
        "max_length": job["length"],
        "model_config": sizes,
        "output_dir": f"{job['work']}/{name.replace(' ', '_')}-{time.time_ns()}",
        "max_steps": steps,
        "per_device_train_batch_size": shape["micro"],
        "gradient_accumulation_steps": shape["rows"] // shape["micro"],
        "warmup_steps": 5,
        "lr_scheduler_kwargs": {"num_decay_steps": steps // 2, "decay_type": "linear"},
        "logging_steps": 2,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "use_liger_kernel": name == "liger",
        "chunked_loss": name != "liger",
        "check_memory": False,
        "use_cpu": job["device"] == "cpu",
        "torch_compile": job["device"] != "cpu",
    }
    known = {key for kind in (DataArguments, ModelArguments, TrainingArguments) for key in kind.__dataclass_fields__}
    line = ["--config", str(ROOT / "recipes" / "small" / "pretrain.yaml"), "--show_samples", "0"]
    for key, value in settings.items():
        if key in known:
            line += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    recipe, kernels, seen = load_recipe("pretrain"), kernel_watcher(steps - 1), {}
    watch = recipe.watch

    def finish(stage, trainer, **facts):
        log = trainer.state.log_history
        seen.update(
            parameters=sum(p.numel() for p in trainer.model.parameters()),
            tokens_per_second=[entry["tokens_per_second"] for entry in log if "tokens_per_second" in entry],
            loss={entry["step"]: entry["loss"] for entry in log if "loss" in entry},
            flops_per_token=trainer.flops / trainer.tokens,
        )

    recipe.watch = lambda trainer, *others: (watch(trainer, *others), trainer.add_callback(kernels))
    recipe.finish = finish
    recipe.main(*parse(get_type_hints(recipe.main).values(), line))
    return {**seen, "tokens_per_second": median(seen["tokens_per_second"]), "kernels_ms": kernels.milliseconds}


def nanochat(job: dict) -> dict[str, Any]:
    """The same rows in the same order, already on the device: reading costs nanochat nothing."""
    from groundup.order import Order
    from groundup.shards import TokenShards
    from peers import Nanochat

    shape, device = job["shape"], torch.device(job["device"])
    peer = Nanochat(
        job["nanochat"],
        shape["width"],
        shape["layers"],
        job["vocabulary"],
        job["length"],
        precision="bfloat16",
        device=job["device"],
        compile=job["device"] != "cpu",
        head_dim=job["head"],
    )
    rows = TokenShards(job["tokens"], "train", length=job["length"])
    order, accumulation = Order(len(rows), 0), shape["rows"] // shape["micro"]
    losses, seconds = {}, []
    for step in range(shape["steps"]):
        batch = torch.stack([rows[order[step * shape["rows"] + n]]["input_ids"] for n in range(shape["rows"])]).to(device)
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        peer.schedule(step, shape["steps"], warm_up=5)
        total = 0.0
        for part in batch.split(shape["micro"]):
            loss = peer.loss(part) / accumulation
            loss.backward()
            total = total + loss.detach()
        peer.optimizer.step()
        peer.model.zero_grad(set_to_none=True)
        losses[step + 1] = float(total)
        seconds.append(time.perf_counter() - began)
    return {
        "parameters": peer.parameters,
        "tokens_per_second": shape["rows"] * job["length"] / median(seconds[3:]),  # without compilation
        "loss": losses,
        "flops_per_token": peer.flops_per_token,
    }


@contextmanager
def limited(seconds: float):
    """Raises OutOfTime in the block after so long."""

    def stop(*_):
        raise OutOfTime(f"more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def missing(name: str, job: dict) -> str | None:
    """Why a contestant cannot run here."""
    if name == "liger" and importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    if name == "liger" and job["device"] == "cpu":
        return "Liger needs a GPU"
    if name == "nanochat" and not job["nanochat"]:
        return "no --nanochat NANOCHAT_DIR"
    if name == "heads of 64" and job["head"] == 64:
        return "the recipe's are"
    return None


def run_group(job: dict) -> None:
    """Run the job's contestants one after another, and write each result down as soon as it is there."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    cuda = job["device"] == "cuda"
    for name in job["contestants"]:
        result: dict[str, Any] = {"shape": job["name"], "contestant": name}
        began = time.perf_counter()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        try:
            if reason := missing(name, job):
                raise LookupError(reason)
            with limited(min(ONE, job["until"] - time.time())):
                result |= nanochat(job) if name == "nanochat" else ours(name, job)
        except (Exception, SystemExit) as error:  # whatever a contestant dies of is its result
            result["failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            traceback.print_exc()
        result["seconds"] = time.perf_counter() - began
        if cuda:
            result["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
        with open(job["results"], "a") as file:
            file.write(json.dumps(result) + "\n")
        torch._dynamo.reset()
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()


# ---- All of them ----------------------------------------------------------------------------------------------------


def prepare(text: str | None, work: Path, device: str, length: int) -> tuple[Path, Path]:
    """Tokenizer and shards of at most some 40 MB of text: the speed depends on neither."""
    from groundup.configs import DataArguments
    from groundup.data import load_documents
    from groundup.shards import ShardWriter, write_manifest
    from groundup.tokenizer import train_tokenizer
    from groundup.toyland import write_world

    vocabulary = 4096
    if text is None:
        write_world(work / "world", documents=30000 if device == "cuda" else 1000)
        text, vocabulary = str(work / "world" / "documents.jsonl"), 512
    documents = load_documents(DataArguments(dataset=text)).rows["text"]
    kept, size = [], 0
    for document in documents:
        kept.append(document)
        size += len(document)
        if size > 40e6:
            break
    tokenizer = train_tokenizer(kept, vocabulary, length)
    tokenizer.save_pretrained(work / "tokenizer")
    with ShardWriter(work / "tokens", "train", tokenizer) as writer:
        for document in kept:
            writer.add(tokenizer.backend_tokenizer.encode(document, add_special_tokens=False).ids, len(document.encode()))
    write_manifest(work / "tokens", tokenizer, sources=[])
    return work / "tokenizer", work / "tokens"


def peak_flops() -> float | None:
    """Dense bf16 peak of this GPU in FLOP/s, None where it is not known."""
    from trl.trainer.utils import get_peak_flops

    return get_peak_flops(torch.cuda.get_device_name(), "bfloat16") if torch.cuda.is_available() else None


def show(results: list[dict], peak: float | None) -> str:
    rows = []
    for result in results:
        start = [result["shape"], NAMES[result["contestant"]]]
        if "failed" in result:
            rows.append([*start, f"no figure: {result['failed']}", *[""] * 6])
            continue
        losses = list(result["loss"].values())
        memory = result.get("peak_memory_bytes")
        rows.append(
            [
                *start,
                f"{result['parameters'] / 1e6:.0f}M",
                f"{result['tokens_per_second']:,.0f}",
                f"{result['mfu']:.1%}" if result["mfu"] else "",
                f"{result['target']:.0%}" if result["target"] else "",
                f"{memory / 2**30:.1f}" if memory else "",
                f"{losses[0]:.2f} to {losses[-1]:.2f} in {list(result['loss'])[-1]} steps",
                f"{result['seconds']:.0f}",
            ]
        )
    head = ["shape", "", "parameters", "tokens/s", "MFU", "wanted", "peak GiB", "loss", "seconds, with compilation"]
    return table(head, rows)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("text", nargs="?", help="file, folder or glob of text; generated text if left out")
    arguments.add_argument("--nanochat", help="a checkout of karpathy/nanochat; left out, it is not compared with")
    arguments.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    arguments.add_argument(
        "--out", type=Path, default=ROOT / "out" / "gpu", help="folder for results.json and what it is made from"
    )
    arguments.add_argument("--group", help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.group:
        run_group(json.loads(Path(args.group).read_text()))
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: no CUDA device\n  fix:   for a look at the script itself, --quick --device cpu")
    began = time.time()
    about = header(command_line().replace("python benchmarks/gpu.py", "bash benchmarks/gpu.sh"))
    work = (args.out / time.strftime("%Y%m%d-%H%M%S")).resolve()
    work.mkdir(parents=True)
    length, shapes, head = (LENGTH, SHAPES, 128) if not args.quick else (64, QUICK, 64)
    if args.quick and args.device == "cuda":
        shapes = {"124M": {**SHAPES["124M"], "steps": 8}}
        length, head = LENGTH, 128
    if args.device == "cuda" and torch.cuda.get_device_properties(0).total_memory < 60 * 2**30:  # the batch stays, its parts shrink
        shapes = {name: {**shape, "micro": shape["micro"] // 8} for name, shape in shapes.items()}
    vocabulary = 512 if args.device == "cpu" else VOCABULARY
    tokenizer, tokens = prepare(args.text, work, args.device, length)
    for contestants in GROUPS[: 1 if args.quick else None]:
        for name, shape in shapes.items():
            job = {
                "name": name,
                "shape": shape,
                "contestants": contestants,
                "nanochat": args.nanochat and str(Path(args.nanochat).resolve()),
                "device": args.device,
                "length": length,
                "head": head,
                "vocabulary": max(vocabulary, json.loads((tokens / "manifest.json").read_text())["vocab_size"]),
                "tokenizer": str(tokenizer),
                "tokens": str(tokens),
                "work": str(work),
                "results": str(work / "results.jsonl"),
                "until": began + (55 if args.quick else SECONDS),
            }
            run_job(job, work)
    peak, targets = peak_flops(), {name: shape["target"] for name, shape in shapes.items()}
    results = [json.loads(line) for line in (work / "results.jsonl").read_text().splitlines()]
    for result in results:
        if "failed" not in result:
            result["target"] = targets[result["shape"]]
            result["mfu"] = result["tokens_per_second"] * result["flops_per_token"] / peak if peak else None
    print(show(results, peak) + "\n")
    figures = {**about, "peak_flops": peak, "results": results, "against_nanochat": ratios(results), "seconds": time.time() - began}
    for name, ratio in figures["against_nanochat"].items():
        print(f"{name}: {ratio:.2f} x nanochat's tokens a second (wanted: 1.00)")
    for result in results:
        if result.get("kernels_ms"):
            kernels = ", ".join(f"{kernel} {ms}" for kernel, ms in result["kernels_ms"].items())
            print(f"{result['shape']} {NAMES[result['contestant']]}, a step's longest kernels, ms: {kernels}")
    (work / "results.json").write_text(json.dumps(figures, indent=1))
    print(f"in {figures['seconds']:.0f} s -> {work / 'results.json'}")
    last_line(figures)


def run_job(job: dict, work: Path) -> None:
    """Run a group in a process of its own; what it leaves without a result has failed."""
    results, left = Path(job["results"]), job["until"] - time.time()
    results.touch()
    done = len(results.read_text().splitlines())
    reason = "no time left"
    if left > 20:
        file, log = work / "group.json", work / "log.txt"
        file.write_text(json.dumps(job))
        command = [sys.executable, __file__, "--group", str(file)]
        # nanochat's optimizer compiles whatever it is told; on a CPU that takes longer than a look may
        environment = os.environ | ({"TORCHDYNAMO_DISABLE": "1"} if job["device"] == "cpu" else {})
        with open(log, "a") as output:
            try:
                code = subprocess.run(command, stdout=output, stderr=output, timeout=left, env=environment).returncode
                reason = f"its process ended with status {code}: {log}"
            except subprocess.TimeoutExpired:
                reason = f"stopped after {left:.0f} s"
    lines = results.read_text().splitlines()[done:]
    for name in job["contestants"][len(lines) :]:
        with open(results, "a") as output:
            output.write(json.dumps({"shape": job["name"], "contestant": name, "failed": reason, "seconds": left}) + "\n")


def ratios(results: list[dict]) -> dict[str, float]:
    """Shape -> our tokens a second over nanochat's."""
    rate = {(r["shape"], r["contestant"]): r["tokens_per_second"] for r in results if "failed" not in r}
    shapes = dict.fromkeys(shape for shape, _ in rate)
    return {s: rate[s, "ours"] / rate[s, "nanochat"] for s in shapes if {(s, "ours"), (s, "nanochat")} <= rate.keys()}


if __name__ == "__main__":
    main()
