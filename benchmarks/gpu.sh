#!/usr/bin/env bash
# Pre-training on one GPU beside nanochat's: tokens a second, MFU, peak memory, loss against steps. Ends in under 8 minutes.
#
#   bash benchmarks/gpu.sh                                        on generated text
#   bash benchmarks/gpu.sh my/texts.jsonl --nanochat ../nanochat    on your own, and beside a checkout of karpathy/nanochat
#   bash benchmarks/gpu.sh --quick --device cpu                   the script itself, in a minute, where there is no GPU
#
# Needs the packages of pyproject.toml and a CUDA device; no network, and groundup need not be installed. PYTHON=python3.12
# names another Python, OUT (--out) another folder than out/gpu. Prints one JSON line last, and writes it as results.json.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
[ ! -d "$root/.venv/bin" ] || export PATH="$root/.venv/bin:$PATH"
python=${PYTHON:-$(command -v python || echo python3)}
case " $* " in *" --help "* | *" -h "*) sed -n '2,9s/^# \{0,1\}//p' "$0" ;; esac
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true
lacking=$("$python" -c '
from importlib.util import find_spec
print(*(n for n in "torch transformers trl accelerate datasets peft tokenizers psutil yaml rich".split() if not find_spec(n)))')
[ -z "$lacking" ] || { echo "error: no $lacking in $python; fix: pip install -c constraints.txt, or put wheels on PYTHONPATH" >&2; exit 2; }
exec timeout --kill-after=10 475 "$python" "$root/benchmarks/gpu.py" "$@"
