"""What a token teaches: held-out bits per byte of our pre-training, of AdamW as the Trainer has it, and of nanochat, side by side.

python benchmarks/learning.py --data DATA_DIR --nanochat NANOCHAT_DIR

All train on the same rows in the same order, 16 x 256 tokens a step, on English novels and fairy tales, and are judged on two
novels that none has seen. Ours is recipes/pretrain.py, an ordinary Qwen3; nanochat is its own model and optimizer at the same width
and depth, whose value embeddings give it more parameters. What each costs in time is pretrain_throughput.py's to say, where they
take turns. What is finished is not run again.
"""

import json
import math
import statistics
from pathlib import Path

import torch
from measure import header, last_line, parser, table
from peers import Nanochat
from runs import pretrain, real_corpus

BATCH, LENGTH = 16, 256
SHARED = {
    "model_type": "qwen3",
    "max_length": LENGTH,
    "per_device_train_batch_size": BATCH,
    "per_device_eval_batch_size": BATCH,
    "bf16": False,
    "torch_compile": True,
    "eval_strategy": "steps",
    "logging_steps": 50,
    "save_strategy": "no",
    "report_to": "none",
    "lr_scheduler_type": "warmup_stable_decay",
}
MUON = {
    "muon_learning_rate": 0.03,
    "learning_rate": 8e-3,
    "embedding_learning_rate": 0.3,
    "head_learning_rate": 8e-3,
    "embedding_std": 0.8,
    "head_std": 1e-3,
    "residual_init": "zero",
}
TUNED = {"learning_rate": 3e-3, "adam_beta2": 0.95, "weight_decay": 0.0}
DEFAULTS = {"learning_rate": 1e-3, "lr_scheduler_type": "cosine"}  # betas, decay and epsilon as TrainingArguments has them

# One choice of ours taken back at a time. A tied head has the embeddings' rate, for which theirs, made for rare rows, is too high.
VARIANTS = {
    "z-loss 1e-4": {"z_loss": 1e-4},
    "residual projections start small (depth), not at zero": {"residual_init": "depth"},
    "residual projections start as all others (plain)": {"residual_init": "plain"},
    "cosine": {"lr_scheduler_type": "cosine"},
    "no QK-norm (Llama)": {"model_type": "llama"},
    "tied embeddings": {
        "model_config": {"tie_word_embeddings": True},
        "embedding_std": None,
        "head_std": None,
        "embedding_learning_rate": None,
        "head_learning_rate": None,
    },
    "embeddings and head start as all others": {"embedding_std": None, "head_std": None},
    "one rate for all that AdamW trains": {"embedding_learning_rate": None, "head_learning_rate": None},
}


def warm_up(steps: int) -> int:
    return min(10, max(1, steps // 10))


def ours(args, seed: int, steps: int, name: str, settings: dict, corpus: tuple[Path, Path]) -> dict:
    tokenizer, tokens = corpus
    schedule = {"lr_scheduler_kwargs": {"num_decay_steps": round(0.65 * steps), "decay_type": "linear"}}
    if settings.get("lr_scheduler_type") == "cosine":
        schedule = {}
    run = pretrain(
        {
            "dataset": str(tokens),
            "tokenizer_path": str(tokenizer),
            **SHARED,
            **schedule,
            "warmup_steps": warm_up(steps),
            **settings,
            "model_config": args.sizes | settings.get("model_config", {}),
            "max_steps": steps,
            "eval_steps": steps,
            "seed": seed,
        },
        args.work / f"{name}-{steps}-{seed}",
    )
    return {"bits_per_byte": run["metrics"]["eval_bits_per_byte"], "parameters": run["parameters"]}


def nanochat(args, seed: int, steps: int, corpus: tuple[Path, Path]) -> dict:
    from groundup.order import Order
    from groundup.shards import TokenShards

    done = args.work / f"nanochat-{steps}-{seed}.json"
    if done.is_file():
        return json.loads(done.read_text())
    train, held_out = (TokenShards(corpus[1], split, length=LENGTH) for split in ("train", "held_out"))
    vocabulary = train.manifest["vocab_size"]
    torch.manual_seed(seed)
    peer = Nanochat(args.nanochat, args.sizes["hidden_size"], args.sizes["num_hidden_layers"], vocabulary, LENGTH)
    order = Order(len(train), seed)
    for step in range(steps):
        rows = torch.stack([train[order[step * BATCH + n]]["input_ids"] for n in range(BATCH)])
        peer.schedule(step, steps, warm_up(steps))
        peer.step(rows)
    with torch.no_grad():
        losses = []
        for start in range(0, len(held_out) - BATCH + 1, BATCH):
            rows = torch.stack([held_out[start + n]["input_ids"] for n in range(BATCH)])
            losses.append(float(peer.loss(rows)))
    found = {
        "bits_per_byte": statistics.fmean(losses) / math.log(2) / held_out.bytes_per_token,
        "parameters": peer.parameters,
    }
    done.write_text(json.dumps(found))
    return found


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, required=True, help="folder with eltec_eng/ and fairytaleqa/")
    arguments.add_argument("--nanochat", type=Path, help="a checkout of karpathy/nanochat; left out, it is not compared with")
    arguments.add_argument("--work", type=Path, default=Path("out/learning"))
    arguments.add_argument("--tokens", type=float, default=10e6)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--fewer", type=float, default=1.7, help="ours also on this many times fewer tokens")
    arguments.add_argument("--variants", action="store_true", help="instead: ours with one choice taken back at a time")
    args = arguments.parse_args()
    args.data, args.work = args.data.resolve(), args.work.resolve()
    args.sizes = {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "tie_word_embeddings": False,
    }
    if args.quick:
        args.tokens, args.seeds, args.work = 12 * BATCH * LENGTH, [0], args.work / "quick"
        args.sizes |= {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 2}
        SHARED["torch_compile"] = False
    about = header()
    args.work.mkdir(parents=True, exist_ok=True)
    corpus = real_corpus(args.data, args.work)
    steps = round(args.tokens / BATCH / LENGTH)
    fewer = round(steps / args.fewer)
    runs = {"ours": lambda seed: ours(args, seed, steps, "ours", MUON, corpus)}
    if args.nanochat:
        runs["nanochat"] = lambda seed: nanochat(args, seed, steps, corpus)
    runs |= {
        "AdamW, tuned (3e-3, stable, decay)": lambda seed: ours(args, seed, steps, "tuned", TUNED, corpus),
        f"ours, {args.fewer:g}x fewer tokens": lambda seed: ours(args, seed, fewer, "ours", MUON, corpus),
        "AdamW, Trainer's defaults (1e-3, cosine)": lambda seed: ours(args, seed, steps, "defaults", DEFAULTS, corpus),
    }
    if args.variants:
        runs = {"ours": runs["ours"]}
        for number, (name, change) in enumerate(VARIANTS.items()):
            runs[name] = lambda seed, n=number, c=change: ours(args, seed, steps, f"variant{n}", MUON | c, corpus)
    found = {name: [] for name in runs}
    for seed in args.seeds:
        for name, run in runs.items():
            found[name].append(run(seed))
            print(f"seed {seed}, {name}: {found[name][-1]}", flush=True)
    rows, figures = [], {}
    for name, results in found.items():
        bits = [result["bits_per_byte"] for result in results]
        figures[name] = {"bits_per_byte": bits, "mean": statistics.fmean(bits), "parameters": results[0]["parameters"]}
        trained = fewer if "fewer" in name else steps
        rows.append(
            [
                name,
                f"{results[0]['parameters'] / 1e6:.2f}M",
                f"{trained * BATCH * LENGTH / 1e6:.2f}M",
                " ".join(f"{b:.4f}" for b in bits),
                f"{statistics.fmean(bits):.4f}",
            ]
        )
    print("\n" + table(["", "parameters", "tokens", f"bits per byte, seeds {args.seeds}", "mean"], rows) + "\n")
    last_line({**about, "tokens": steps * BATCH * LENGTH, "seeds": args.seeds, "results": figures})


if __name__ == "__main__":
    main()
