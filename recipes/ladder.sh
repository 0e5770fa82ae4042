#!/usr/bin/env bash
# The ladder, from random weights to a reasoning assistant. One rung, one recipe, one stage directory.
#
#   bash recipes/ladder.sh nano                      on a CPU, in minutes, nothing downloaded
#   SEED=1 WORK=out/seed1 bash recipes/ladder.sh nano    another world, other weights, another folder
#
# Run it again and it goes on where it stopped: a finished rung says so, an interrupted one resumes.
set -euo pipefail

scale=${1:-nano}
seed=${SEED:-0}
recipes=$(cd "$(dirname "$0")" && pwd)
[ ! -d "$recipes/../.venv/bin" ] || export PATH="$recipes/../.venv/bin:$PATH" # what `make setup` made
config=${ACCELERATE_CONFIG:-$recipes/../accelerate_configs/cpu.yaml}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(getconf _NPROCESSORS_ONLN)} # accelerate takes as many, and warns that it does
mkdir -p "${WORK:-$recipes/..}" && cd "${WORK:-$recipes/..}" # the paths in the YAML files start here

rung() { # rung NAME [OPTION ...]: one accelerate launch
    local record="out/$scale/$1/run.json" before status
    # The recipe would say so too, after importing torch.
    if grep -qs '"status": "finished"' "$record"; then echo "$1: finished already, out/$scale/$1"; return; fi
    before=$(cat "$record" 2>/dev/null || true)
    accelerate launch --config_file "$config" "$recipes/$1.py" --config "$recipes/$scale/$1.yaml" "${@:2}" && return || status=$?
    # The launcher makes 1 of every status; what this launch left on record is the recipe's own.
    if grep -qs '"exit_status": 75' "$record" && [ "$(cat "$record")" != "$before" ]; then
        echo "$1: was asked to stop; the same command goes on" >&2
        status=75
    fi
    exit "$status"
}

# The world: forty people with five facts each, a hidden taste, word problems. Everything below is trained and measured on
# what this writes. With data of your own, leave it out and name your files in the YAML (README, "Your own data").
[ "$scale" != nano ] || python -m groundup.toyland "out/$scale/world" --seed "$seed"

# Rung 0. Tokenizer: text becomes numbers. Special tokens and the chat template are installed now, and never touched again.
python "$recipes/tokenizer.py" --config "$recipes/$scale/tokenizer.yaml"

# A corpus from the Hub is cleaned, de-duplicated, decontaminated and tokenised once; toyland's few documents need none of it.
[ "$scale" = nano ] || python "$recipes/prepare.py" --config "$recipes/$scale/prepare.yaml"

# Rung 1. Pre-training: from random weights, the next word of a million. It learns the facts, and cannot be asked for them.
rung pretrain --seed "$seed"

# Rung 2. Instruction tuning: a few thousand conversations. It learns to answer and to stop; the knowledge was there.
rung sft --seed "$seed"

# Rung 3a. Reward model: of two replies, which do people prefer? Nobody says why; it must find out.
rung reward --seed "$seed"

# Rung 3b. PPO: reply, be scored by the reward model, do more of what scored well, and stay near where you came from.
rung ppo --seed "$seed"

# Rung 4. GRPO: solve problems whose answers can be checked. Eight tries each; the tries that beat their group are learned.
rung grpo --seed "$seed"

# The same questions to every rung, random weights included, and the report. A reward model answers none: it is shown pairs.
models=(random pretrain sft ppo grpo)
if grep -q '^preferences:' "$recipes/$scale/evaluate.yaml"; then models+=(reward); fi
python "$recipes/evaluate_model.py" --config "$recipes/$scale/evaluate.yaml" --run_dir "out/$scale" --models "${models[@]}"
python "$recipes/report.py" "out/$scale"
