#!/usr/bin/env bash
# The nano ladder over several seeds (world, weights and sampling all change), and the table of what came out.
#
#   bash benchmarks/ladder_seeds.sh [FOLDER] [SEED ...]      default: out/seeds 0 1 2
#   bash benchmarks/ladder_seeds.sh --quick                  one seed, in out/seeds
#
# Prints Markdown, and one JSON line last.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
[ ! -d "$root/.venv/bin" ] || export PATH="$root/.venv/bin:$PATH"
[ "${1:-}" != --quick ] || set -- out/seeds 0
folder=${1:-out/seeds}
shift || true
[ $# -gt 0 ] || set -- 0 1 2
for seed in "$@"; do
    mkdir -p "$folder/$seed"
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
python "$root/benchmarks/ladder_table.py" "$folder" "$@"
