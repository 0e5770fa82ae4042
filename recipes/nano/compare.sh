#!/usr/bin/env bash
# Three roads from one chat model to what people prefer: PPO, DPO, and GRPO on the reward model. After recipes/ladder.sh nano:
#
#   bash recipes/nano/compare.sh
#   SEED=1 WORK=out/seed1 bash recipes/nano/compare.sh    the world of another seed
#
# PPO is the ladder's own. The table: replies that beat the start's under the hidden taste, how far they are from the start, what is
# still known, and minutes. Run it again and what is finished is not done again.
set -euo pipefail

seed=${SEED:-0}
recipes=$(cd "$(dirname "$0")/.." && pwd)
[ ! -d "$recipes/../.venv/bin" ] || export PATH="$recipes/../.venv/bin:$PATH"
config=${ACCELERATE_CONFIG:-$recipes/../accelerate_configs/cpu.yaml}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(getconf _NPROCESSORS_ONLN)}
cd "${WORK:-$recipes/..}"

accelerate launch --config_file "$config" "$recipes/dpo.py" --config "$recipes/nano/dpo.yaml" --seed "$seed"
accelerate launch --config_file "$config" "$recipes/grpo.py" --config "$recipes/nano/compare/grpo.yaml" --seed "$seed"
python "$recipes/evaluate_model.py" --config "$recipes/nano/evaluate.yaml" --run_dir out/nano --models sft ppo dpo grpo_reward
python "$recipes/compare.py" out/nano sft ppo dpo grpo_reward
