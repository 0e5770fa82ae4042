"""Tokens a second of the pre-training recipe, beside a bare PyTorch loop on the same model and beside nanochat, in one process.

python benchmarks/pretrain_throughput.py --nanochat NANOCHAT_DIR

Every contestant trains on the same random tokens at the same shape. The recipe is its real Trainer: every few steps its loop is
paused and each other contestant does as many steps, so that a busy machine is unfair to all alike. Figures are medians over the
rounds. The machine's own rate is that of matrix products of the model's shapes.
"""

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from groundup.configs import ModelArguments
from groundup.head import chunked_loss
from groundup.model import count_parameters, flops_per_token
from groundup.optim import MuonAdamW
from groundup.pretraining import PretrainTrainer
from measure import header, last_line, parser, table
from peers import Nanochat
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback, TrainingArguments

SHAPES = {  # width, layers, inner, vocabulary, batch, length
    "256": (256, 6, 768, 4096, 16, 256),
    "512": (512, 8, 1408, 8192, 8, 512),
    "quick": (64, 2, 192, 512, 4, 64),
}
STEPS = 2  # that one contestant does before the next has its turn
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def new_model(shape: tuple[int, ...]) -> torch.nn.Module:
    width, layers, inner, vocabulary, _, length = shape
    heads = width // 64
    config = AutoConfig.for_model(
        "qwen3",
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=64,
        vocab_size=vocabulary,
        max_position_embeddings=length,
        tie_word_embeddings=False,
        use_cache=False,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


class Rows(torch.utils.data.Dataset):
    """Random tokens, as the recipe's own rows come: a copy out of one array."""

    def __init__(self, shape: tuple[int, ...], rows: int = 4096):
        self.tokens = torch.randint(0, shape[3], (rows, shape[5]), dtype=torch.int32).numpy()

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = torch.from_numpy(self.tokens[index].astype("int64"))
        return {"input_ids": row, "labels": row.clone()}


def bare_loop(shape: tuple[int, ...], precision: str, compile: bool, rows: Rows) -> Callable[[], None]:
    """The loop that anyone would write: model, autocast, clip, fused AdamW."""
    model = new_model(shape)
    call = torch.compile(model) if compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
    batch, position = shape[4], 0

    def step() -> None:
        nonlocal position
        tokens = torch.stack([rows[(position + n) % len(rows)]["input_ids"] for n in range(batch)])
        position += batch
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = call(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def peer_loop(peer: Nanochat, shape: tuple[int, ...], rows: Rows) -> Callable[[], None]:
    batch, position = shape[4], 0

    def step() -> None:
        nonlocal position
        tokens = torch.stack([rows[(position + n) % len(rows)]["input_ids"] for n in range(batch)])
        position += batch
        peer.schedule(position, 10**6)
        peer.step(tokens)

    return step


class Turns(TrainerCallback):
    """Time STEPS of the Trainer's loop, then STEPS of each other contestant, and so on."""

    def __init__(self, others: dict[str, Callable[[], None]], warm_up: int):
        self.others, self.warm_up, self.began = others, warm_up, 0.0
        self.seconds: dict[str, list[float]] = {name: [] for name in ["recipe", *others]}

    def on_step_end(self, args, state, control, **kwargs):
        done = state.global_step - self.warm_up
        if done < 0 or done % STEPS:
            return
        if done > 0:
            self.seconds["recipe"].append((time.perf_counter() - self.began) / STEPS)
            for name, step in self.others.items():
                began = time.perf_counter()
                for _ in range(STEPS):
                    step()
                self.seconds[name].append((time.perf_counter() - began) / STEPS)
        self.began = time.perf_counter()


def recipe(shape, precision: str, compile: bool, muon: bool, rows: Rows, callback: Turns | None, steps: int, output: Path):
    args = TrainingArguments(
        str(output),
        use_cpu=True,
        bf16=precision == "bfloat16",
        torch_compile=compile,
        per_device_train_batch_size=shape[4],
        max_steps=steps,
        learning_rate=1e-3,
        adam_beta2=0.95,
        logging_steps=50,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    model = new_model(shape)
    trainer = PretrainTrainer(
        model=chunked_loss(model),
        args=args,
        train_dataset=rows,
        block_length=shape[5],
        optimizer_cls_and_kwargs=(lambda: MuonAdamW, {"lr": 0.02, "adamw_lr": 8e-3, "block": ModelArguments.muon_block})
        if muon
        else None,
        callbacks=[callback] if callback else None,
    )
    trainer.train()
    return trainer


def optimizer_share(shape: tuple[int, ...], rows: Rows) -> float:
    """Seconds of MuonAdamW's step over those of the whole step."""
    model = chunked_loss(new_model(shape))
    call, optimizer = torch.compile(model), MuonAdamW(model, block=ModelArguments.muon_block)
    tokens = torch.stack([rows[n]["input_ids"] for n in range(shape[4])])
    learning, stepping = [], []
    for _ in range(8):
        began = time.perf_counter()
        call(input_ids=tokens, labels=tokens).loss.backward()
        middle = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        stepping.append(time.perf_counter() - middle)
        learning.append(middle - began)
    step, rest = statistics.median(stepping[2:]), statistics.median(learning[2:])
    return step / (step + rest)


def matmul_rate(shape: tuple[int, ...], precision: str, seconds: float = 0.5) -> float:
    """FLOP/s of the model's products (tokens, width) x (width, inner), the shape that most of its work has."""
    tokens, width, inner = shape[4] * shape[5], shape[0], shape[2]
    left = torch.randn(tokens, width, dtype=PRECISIONS[precision])
    right = torch.randn(inner, width, dtype=PRECISIONS[precision])
    best = 0.0
    for _ in range(3):
        count, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < seconds:
            torch.nn.functional.linear(left, right)
            count += 1
        best = max(best, 2 * tokens * width * inner * count / spent)
    return best


def measure(shape: tuple[int, ...], rounds: int, nanochat: Path | None, compile: bool, output: Path) -> dict:
    width, layers, _, vocabulary, batch, length = shape
    rows, tokens = Rows(shape), batch * length
    found: dict = {"matmul": {precision: matmul_rate(shape, precision) for precision in PRECISIONS}}
    best = max(found["matmul"], key=found["matmul"].get)
    model = new_model(shape)
    flops = flops_per_token(model.config, count_parameters(model), length)
    found |= {"precision": best, "parameters": count_parameters(model), "flops_per_token": flops}
    others = {f"bare loop, AdamW, {precision}": bare_loop(shape, precision, compile, rows) for precision in PRECISIONS}
    peers = {}
    if nanochat:
        for precision in PRECISIONS:
            peer = Nanochat(nanochat, width, layers, vocabulary, length, precision, compile=compile)
            peers[f"nanochat, {precision}"] = peer_loop(peer, shape, rows)
            found["nanochat_parameters"] = peer.parameters
    for muon, contestants in ((False, others), (True, peers)):
        for step in contestants.values():
            for _ in range(3):
                step()
        turns = Turns(contestants, warm_up=4)
        recipe(shape, best, compile, muon, rows, turns, 4 + STEPS * rounds, output)
        ours = f"recipe, {'Muon' if muon else 'AdamW'}, {best}"
        for name, seconds in turns.seconds.items():
            found.setdefault("tokens_per_second", {})[ours if name == "recipe" else name] = tokens / statistics.median(seconds)
            if name != "recipe":  # round by round, so that what slowed one slowed the other
                ratios = [theirs / own for theirs, own in zip(seconds, turns.seconds["recipe"], strict=True)]
                found.setdefault("ratios", {})[f"{ours} / {name}"] = statistics.median(ratios)
        contestants.clear()
        gc.collect()
    found["optimizer_share"] = optimizer_share(shape, rows)
    adamw = found["tokens_per_second"][f"recipe, AdamW, {best}"]
    found["share_of_matmul_rate"] = adamw * flops / found["matmul"][best]
    return found


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--nanochat", type=Path, help="a checkout of karpathy/nanochat; left out, it is not compared with")
    arguments.add_argument("--shapes", nargs="+", choices=["256", "512"], default=["256", "512"], help="width")
    arguments.add_argument("--rounds", type=int, default=10)
    arguments.add_argument("--work", type=Path, default=Path("out/throughput"))
    args = arguments.parse_args()
    about = header()
    figures = {}
    for name in ["quick"] if args.quick else args.shapes:
        shape = SHAPES[name]
        found = figures[name] = measure(shape, 2 if args.quick else args.rounds, args.nanochat, not args.quick, args.work)
        width, layers, _, vocabulary, batch, length = shape
        size = f"{found['parameters'] / 1e6:.2f}M parameters"
        print(f"width {width}, {layers} layers, vocabulary {vocabulary}, {batch} x {length} tokens, {size}\n")
        print(table(["", "tokens/s"], [[n, f"{rate:,.0f}"] for n, rate in found["tokens_per_second"].items()]) + "\n")
        print(table(["", "ratio"], [[n, f"{ratio:.2f}"] for n, ratio in found["ratios"].items()]) + "\n")
        rates = ", ".join(f"{precision} {rate / 1e9:.0f} GF/s" for precision, rate in found["matmul"].items())
        print(f"matrix products: {rates}; the recipe reaches {found['share_of_matmul_rate']:.0%} of {found['precision']}")
        print(f"the optimizer (Muon) takes {found['optimizer_share']:.1%} of a step\n", flush=True)
    last_line({**about, "results": figures})


if __name__ == "__main__":
    main()
