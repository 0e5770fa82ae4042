#!/usr/bin/env bash
# A rung on rented GPUs, through Hugging Face Jobs. From the checkout, logged in (hf auth login):
#
#   bash recipes/cluster/hf_jobs.sh BUCKET FLAVOR RUNG CONFIG [--key value ...]
#   bash recipes/cluster/hf_jobs.sh me/groundup h200x8 pretrain recipes/base/pretrain.yaml
#   bash recipes/cluster/hf_jobs.sh me/groundup cpu-xl prepare recipes/small/prepare.yaml
#
# Code travels with the job; `out/` is the bucket (hf buckets create me/groundup), which stays: the next rung finds the one before
# it there, and a job that is cut off resumes from its newest whole checkpoint. `hf jobs hardware` lists flavors and prices.
# DRY_RUN=1 prints the job and starts none. TIMEOUT=2d, IMAGE=...
set -euo pipefail
[ $# -ge 4 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2; }
bucket=$1 flavor=$2 rung=$3 config=$4
cd "$(dirname "$0")/../.."
[ ! -d .venv/bin ] || export PATH="$PWD/.venv/bin:$PATH"
gpus=${flavor##*x} # a10g-largex4, h200x8
case $flavor in cpu-*) gpus=0 ;; *x[0-9]) ;; *) gpus=1 ;; esac

# What pyproject.toml asks for, less torch, which the image has for its GPU
needed=$(python -c '
import tomllib
print(*(f"\"{n}\"" for n in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"] if not n.startswith("torch")))')
case $rung in # these two work with all cores, in one process
tokenizer | prepare) launch="python" ;;
*) launch="accelerate launch --config_file accelerate_configs/$([ "$gpus" -gt 1 ] && echo ddp || echo single_gpu).yaml --num_processes $gpus" ;;
esac
[ "$gpus" -gt 0 ] || [ "$launch" = python ] || { echo "error: $rung needs a GPU, and $flavor has none" >&2; exit 2; }
command="pip install -q $needed && cd /groundup && exec $launch recipes/$rung.py --config $config $(printf '%q ' "${@:5}")"

exec hf jobs run ${DRY_RUN:+--dry-run} --flavor "$flavor" --timeout "${TIMEOUT:-1d}" --attempts 3 \
    --name "groundup-$rung" --secrets HF_TOKEN -e PYTHONPATH=/groundup/src \
    -v ./src:/groundup/src:ro -v ./recipes:/groundup/recipes:ro -v ./accelerate_configs:/groundup/accelerate_configs:ro \
    -v "hf://buckets/$bucket:/groundup/out" \
    "${IMAGE:-pytorch/pytorch:2.9.1-cuda12.8-cudnn9-devel}" bash -c "$command"
