#!/usr/bin/env bash
# The ladder on text that nobody here wrote: English novels, fairy tales, questions, preferences, word problems.
# The recipes are those of recipes/; only recipes/real/*.yaml is new. It took an hour on one CPU thread.
#
#   bash benchmarks/real_text.sh ../shared/data            into out/real_text
#   QUICK=1 bash benchmarks/real_text.sh ../shared/data    a few steps of everything, into out/real_text_quick
#   bash benchmarks/real_text.sh --quick ../shared/data    a few steps of pre-training, into out/real_text_look
#
# DATA_DIR holds eltec_eng, fairytaleqa, dolly_short, chatterbot_english, qa_feedback and mawps, each a folder of .jsonl.gz.
# Run it again and it goes on where it stopped: a finished rung says so, an interrupted one resumes. One JSON line comes last.
set -euo pipefail

usage() { sed -n '2,10s/^# \{0,1\}//p' "$0"; }
[ "${1:-}" != --help ] || { usage; exit; }
quick=${QUICK:+quick}
[ "${1:-}" != --quick ] || { quick=look; shift; }
[ $# -ge 1 ] || { usage; exit 2; }
[ -d "$1/qa_feedback" ] || { echo "error: no qa_feedback in $1: DATA_DIR holds one folder per data set" >&2; exit 2; }
data=$(cd "$1" && pwd)
repository=$(cd "$(dirname "$0")/.." && pwd)
recipes=$repository/recipes
config=${ACCELERATE_CONFIG:-$repository/accelerate_configs/cpu.yaml}
[ ! -d "$repository/.venv/bin" ] || export PATH="$repository/.venv/bin:$PATH"
export HF_HUB_OFFLINE=1 # nothing is downloaded

out=${2:-$repository/out/real_text${quick:+_$quick}}
mkdir -p "$out" && cd "$out" # the paths in the YAML files start here
mode=$quick
[ "$(cat mode 2>/dev/null || echo "${mode:-full}")" = "${mode:-full}" ] ||
    { echo "error: $out holds a $(cat mode) run; give another OUT" >&2; exit 2; }
echo "${mode:-full}" > mode
case $quick in quick) prefix="QUICK=1 " option= ;; look) prefix= option="--quick " ;; *) prefix= option= ;; esac
[ -f command ] || echo "${prefix}bash benchmarks/real_text.sh ${option}${1}${2:+ $2}" > command
[ -f commit ] || git -C "$repository" describe --always --dirty --abbrev=40 > commit 2>/dev/null || true
ln -sfn "$data" data
mkdir -p prepared seconds

rung() { # rung NAME COMMAND ...: run it, keep how long it took the first time
    local name=$1 began=$EPOCHREALTIME
    shift
    "$@"
    [ -f "seconds/$name" ] || echo "$began $EPOCHREALTIME" | awk '{printf "%.1f\n", $2 - $1}' > "seconds/$name"
}
recipe() { # recipe NAME [OPTION ...]: one accelerate launch
    rung "$1" accelerate launch --config_file "$config" "$recipes/$1.py" --config "$recipes/real/$1.yaml" "${@:2}"
}

# What the recipes cannot say in YAML: which rows are held out, and what a row looks like that evaluation reads.
# No question, problem or book is on both sides. The same input gives the same files.
python - <<'PYTHON'
import gzip, hashlib, json
from collections import Counter

def rows(name):
    with gzip.open(f"data/{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]

def write(name, found):
    with open(f"prepared/{name}.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    print(f"prepared/{name}.jsonl: {len(found):,} rows")

def one_in_five(key):  # the same on every machine and in every Python
    return int(hashlib.sha256(str(key).encode()).hexdigest(), 16) % 5 == 0

# Documents: the chapters of two novels; and fairy tales without those that later questions are held out of
write("documents", [{"text": row["text"]} for row in rows("eltec_eng/val")])
write("stories", [row for row in rows("fairytaleqa/stories") if row["split"] == "train"])

# Questions about a passage, where passage, question and answer fit 512 tokens with room to spare
short = lambda row: len(row["context"]) <= 600 and row["answers"][0].strip()
story = [{"context": r["context"], "question": r["question"], "answer": r["answers"][0]} for r in rows("fairytaleqa/qa_train") if short(r)]
write("story_questions", story)
write("story_questions_held_out", [
    {"prompt": f"{r['context']}\n\n{r['question']}", "answer": r["answers"][0], "alternatives": []}
    for r in rows("fairytaleqa/qa_val") if short(r)
])

# Preferences: one question in five is held out, with all its pairs
pairs = [{"qid": r["qid"], "prompt": r["question"], "chosen": r["chosen"], "rejected": r["rejected"]} for r in rows("qa_feedback/pairs")]
said = lambda row: " ".join(row["prompt"].lower().split())  # a question may be there under two numbers
write("preferences", held_out := [row for row in pairs if one_in_five(said(row))])
write("preferences_train", train := [row for row in pairs if not one_in_five(said(row))])
write("feedback_questions", [{"prompt": prompt} for prompt in dict.fromkeys(row["prompt"] for row in train)])
assert not {said(row) for row in held_out} & {said(row) for row in train}

# Word problems: the set's own fold is held out, without what the other fold holds too. Thirds and the like are left out:
# their answers are written 4.333333333333333.
problems = {"train": [], "dev": []}
for row in rows("mawps/mawps"):
    if round(row["answer"], 2) == row["answer"] and all(round(n, 2) == n for n in row["numbers"]):
        problems[row["fold"]].append({"question": row["question"], "answer": f"{row['answer']:.2f}".rstrip("0").rstrip(".")})
known = {" ".join(row["question"].lower().split()) for row in problems["train"]}
write("problems", [row for row in problems["dev"] if " ".join(row["question"].lower().split()) not in known])
write("problems_train", problems["train"])
# The form of an answer, for instruction tuning. A model this small could not guess it, and GRPO would have nothing to reward.
write("sums", [{"prompt": row["question"], "completion": f"Answer: {row['answer']}"} for row in problems["train"]])

# What one would score who never read a reply: the longer one, in characters, is preferred; and who never read a problem
longer = [1.0 if len(r["chosen"]) > len(r["rejected"]) else 0.5 if len(r["chosen"]) == len(r["rejected"]) else 0.0 for r in held_out]
answers = Counter(row["answer"] for row in problems["train"])
print(f"the longer reply is preferred in {sum(longer) / len(longer):.3f} of the held-out pairs")
print(f"the commonest answer to a training problem is {answers.most_common(1)[0][0]}")
PYTHON

tiny=() few=()
if [ -n "$quick" ]; then
    tiny=(--max_steps 3 --logging_steps 1) few=(--max_rows 64)
fi

# Rung 0. Tokenizer. Rung 1. Pre-training: held-out figures are of two novels that no other rung reads.
rung tokenizer python "$recipes/tokenizer.py" --config "$recipes/real/tokenizer.yaml" "${few[@]}"
recipe pretrain ${quick:+"${tiny[@]}" --lr_scheduler_kwargs '{num_decay_steps: 1}' --warmup_steps 1 --max_rows 64 --max_eval_rows 2}

models=(random pretrain)
if [ "$quick" != look ]; then
    # Rung 2. Instruction tuning. Rung 3a. Reward model. Rung 3b. PPO. Rung 4. GRPO.
    recipe sft ${quick:+"${tiny[@]}" --max_rows 64}
    recipe reward ${quick:+"${tiny[@]}" --max_rows 64 --max_eval_rows 32}
    recipe ppo ${quick:+"${tiny[@]}" --per_device_train_batch_size 8}
    recipe grpo --force true ${quick:+"${tiny[@]}" --per_device_train_batch_size 32}
    models+=(sft reward ppo grpo)
fi
small=(--max_rows 8 --k 2 --pass_at_k_problems 4 --max_new_tokens 16)
[ "$quick" != look ] || small=(--max_rows 2 --k 1 --pass_at_k_problems 1 --max_new_tokens 2)

# The same held-out text, questions, problems and pairs to every rung, random weights included
rung evaluate python "$recipes/evaluate_model.py" --config "$recipes/real/evaluate.yaml" --run_dir out/real \
    --models "${models[@]}" ${quick:+"${small[@]}"}

# The report; and what benchmarks/RESULTS.md shows
python "$recipes/report.py" out/real
python "$repository/benchmarks/real_text_table.py" . | tee results.md
