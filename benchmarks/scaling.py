"""A miniseries of the dial: does the loss fall on a line in log compute, and does one learning rate suit every depth?

python benchmarks/scaling.py --data DATA_DIR

Each depth is a run of recipes/pretrain.py with `depth: N` and nothing else chosen: sizes, tokens, batch and learning rates are the
dial's. `--ratio` shortens all runs alike (20 tokens a parameter is compute-optimal, and many hours at depth 6 on a CPU). Each depth
also runs with all learning rates halved and doubled. What is finished is not run again.
"""

import math
import statistics
from pathlib import Path

from measure import header, last_line, parser, table
from runs import pretrain, real_corpus


def fit_line(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """Least squares: slope, intercept and r squared."""
    slope, intercept = statistics.linear_regression(x, y)
    return slope, intercept, statistics.correlation(x, y) ** 2


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, required=True, help="folder with eltec_eng/ and fairytaleqa/")
    arguments.add_argument("--work", type=Path, default=Path("out/scaling"))
    arguments.add_argument("--depths", type=int, nargs="+", default=[2, 3, 4, 5, 6])
    arguments.add_argument("--ratio", type=float, default=1.0, help="tokens a parameter")
    arguments.add_argument("--factors", type=float, nargs="+", default=[0.5, 1.0, 2.0], help="times the learning rates")
    arguments.add_argument("--seed", type=int, default=0)
    args = arguments.parse_args()
    args.data, args.work = args.data.resolve(), args.work.resolve()
    if args.quick:
        args.depths, args.ratio, args.factors, args.work = [1, 2], 0.02, [1.0], args.work / "quick"
    about = header()
    tokenizer, tokens = real_corpus(args.data, args.work)
    found: dict[int, dict[float, dict]] = {}
    for depth in args.depths:
        for factor in args.factors:
            run = pretrain(
                {
                    "dataset": str(tokens),
                    "tokenizer_path": str(tokenizer),
                    "depth": depth,
                    "tokens_per_parameter": args.ratio,
                    "muon_learning_rate": 0.02,
                    "lr_scheduler_type": "linear",
                    "learning_rate_factor": factor,
                    "max_length": 256,
                    "per_device_train_batch_size": 16,
                    "bf16": False,
                    "eval_strategy": "no" if args.quick else "epoch",
                    "save_strategy": "no",
                    "report_to": "none",
                    "logging_steps": 10,
                    "seed": args.seed,
                },
                args.work / f"d{depth}-r{args.ratio:g}-x{factor:g}-{args.seed}",
            )
            found.setdefault(depth, {})[factor] = {
                "bits_per_byte": run["metrics"].get("eval_bits_per_byte", math.nan),
                "flops": run["flops"],
                "parameters": run["parameters"],
                "tokens": run["tokens"],
            }
            print(f"depth {depth}, {factor:g} x the dial's rates: {found[depth][factor]}", flush=True)
    middle = 1.0 if 1.0 in args.factors else args.factors[0]
    rows = []
    for depth, runs in found.items():
        best = min(runs, key=lambda factor: runs[factor]["bits_per_byte"])
        one = runs[middle]
        rates = [f"{runs[factor]['bits_per_byte']:.4f}" for factor in args.factors]
        rows.append([depth, f"{one['parameters']:,}", f"{one['tokens']:,}", f"{one['flops']:.2e}", *rates, f"{best:g}"])
    names = ["depth", "parameters", "tokens", "FLOPs", *(f"bits/byte at {factor:g}x" for factor in args.factors), "best"]
    print("\n" + table(names, rows))
    figures = {"ratio": args.ratio, "seed": args.seed, "runs": found}
    if len(found) > 1 and not args.quick:
        compute = [math.log10(runs[middle]["flops"]) for runs in found.values()]
        bits = [math.log10(runs[middle]["bits_per_byte"]) for runs in found.values()]
        slope, intercept, r2 = fit_line(compute, bits)
        print(f"\nbits/byte = {10**intercept:.3g} x FLOPs^{slope:.4f}, r^2 = {r2:.4f} in logarithms\n")
        figures |= {"slope": slope, "intercept": intercept, "r_squared": r2}
    last_line({**about, **figures})


if __name__ == "__main__":
    main()
