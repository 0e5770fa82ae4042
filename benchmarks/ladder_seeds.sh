#!/usr/bin/env bash
# The nano ladder over several seeds (world, weights and sampling all change), and the table of what came out.
#
#   bash benchmarks/ladder_seeds.sh [FOLDER] [SEED ...]      default: out/seeds 0 1 2
#   bash benchmarks/ladder_seeds.sh --quick                  two steps of pre-training, one seed, in out/seeds_quick
#
# Prints Markdown, and one JSON line last.
set -euo pipefail
[ "${1:-}" != --help ] || { sed -n '2,7s/^# \{0,1\}//p' "$0"; exit; }
root=$(cd "$(dirname "$0")/.." && pwd)
[ ! -d "$root/.venv/bin" ] || export PATH="$root/.venv/bin:$PATH"
quick=
[ "${1:-}" != --quick ] || { quick=1; set -- "${2:-out/seeds_quick}" 0; }
folder=${1:-out/seeds}
shift || true
[ $# -gt 0 ] || set -- 0 1 2

look() { # the foot of the ladder, as ladder.sh climbs it: does it run, and does the table read what it leaves?
    local nano=$root/recipes/nano evaluation=out/nano/world/eval
    python -m groundup.toyland out/nano/world --seed "$1"
    python "$root/recipes/tokenizer.py" --config "$nano/tokenizer.yaml"
    python "$root/recipes/pretrain.py" --config "$nano/pretrain.yaml" --seed "$1" --max_steps 2 --warmup_steps 0 --logging_steps 1 \
        --lr_scheduler_kwargs '{num_decay_steps: 1}' --max_rows 2000 --max_eval_rows 40
    python "$root/recipes/evaluate_model.py" --run_dir out/nano --models random pretrain --max_rows 8 \
        --documents "${evaluation}_documents.jsonl" --cloze "${evaluation}_cloze.jsonl"
    python "$root/recipes/report.py" out/nano
}

for seed in "$@"; do
    mkdir -p "$folder/$seed"
    [ -z "$quick" ] || { (cd "$folder/$seed" && look "$seed") >> "$folder/$seed/ladder.log" 2>&1; continue; }
    # wall seconds and peak memory of the whole ladder, children included
    python - "$folder/$seed" "$seed" "$root" <<'PYTHON'
import json, os, resource, subprocess, sys, time
from pathlib import Path
work, seed, root = Path(sys.argv[1]).resolve(), sys.argv[2], Path(sys.argv[3])
fresh = not (work / "out/nano/report.json").exists()
began = time.perf_counter()
with open(work / "ladder.log", "a") as log:
    subprocess.run(["bash", root / "recipes/ladder.sh", "nano"], check=True, stdout=log, stderr=log,
                   env={**os.environ, "SEED": seed, "WORK": str(work)})
if fresh:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    (work / "cost.json").write_text(json.dumps({"seconds": time.perf_counter() - began, "peak_gb": usage.ru_maxrss / 2**20}))
PYTHON
done
python "$root/benchmarks/ladder_table.py" ${quick:+--quick} "$folder" "$@"
