"""Completions a second of PPO and GRPO, beside TRL's own trainers and beside the sum of their parts.

python benchmarks/rl_throughput.py --model out/nano/sft --prompts out/nano/world/prompts.jsonl --trl112 TRL_1_12

An update is a rollout of 256 completions, their scores and one optimizer step, on the same model and prompts for all. TRL_1_12
holds the last TRL with a PPOTrainer (`pip install --no-deps --target TRL_1_12 trl==1.12.0`); left out, it is not compared with.
Every contestant is a process of its own; they take turns, and figures are medians over all updates. `floor` is what the parts of an
update take by themselves: generation in one batch, each forward pass once, each forward and backward pass once, in micro-batches.
"""

import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONTESTANTS = ("trl112_ppo", "trl_grpo", "ppo", "ppo_shared", "grpo")
MICRO, GROUP = 64, 8


def prompts_of(args) -> list[str]:
    rows = [json.loads(line) for line in Path(args.prompts).read_text(encoding="utf-8").splitlines()]
    texts = [row.get("prompt") or row["question"] for row in rows]
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in texts]
    return (texts * (1 + args.completions // len(texts)))[: args.completions]


def reward(completions, **kwargs) -> list[float]:
    return [float(len(str(completion)) % 7) for completion in completions]


class Clock:
    """Seconds from the end of one update to the end of the next."""

    def __new__(cls, seconds: list[float]):
        from transformers import TrainerCallback

        class Callback(TrainerCallback):
            last = None

            def on_step_end(self, args, state, control, **kwargs):
                now = time.perf_counter()
                if self.last is not None:
                    seconds.append(now - self.last)
                self.last = now

        return Callback()


COMMON = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
    "learning_rate": 1e-6,  # all do their arithmetic, and nobody's replies change their length
}


def engine(name: str, args, folder: str, seconds: list[float]) -> None:
    """TRL's GRPOTrainer or one of ours, `args.updates` + 1 updates."""
    import torch
    import trl
    from datasets import Dataset
    from groundup import grpo, ppo
    from transformers import AutoModelForCausalLM, AutoTokenizer

    small = min(MICRO, args.completions)
    settings = {
        **COMMON,
        "max_steps": args.updates + 1,
        "per_device_train_batch_size": small,
        "gradient_accumulation_steps": args.completions // small,
        "max_completion_length": args.length,
    }
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in prompts_of(args)]
    shared = {"train_dataset": Dataset.from_list(rows), "processing_class": tokenizer}
    policy = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    if name.endswith("grpo"):
        trainer = (grpo.GRPOTrainer if name == "grpo" else trl.GRPOTrainer)(
            model=policy, reward_funcs=reward, args=trl.GRPOConfig(folder, num_generations=GROUP, **settings), **shared
        )
    else:
        config = ppo.PPOConfig(folder, shared_critic=name == "ppo_shared", **settings)
        critic = None if config.shared_critic else ppo.load_critic(args.model)
        trainer = ppo.PPOTrainer(model=policy, critic=critic, reward_funcs=args.model_reward, args=config, **shared)
    trainer.add_callback(Clock(seconds))
    trainer.train()


def trl112_ppo(args, folder: str, seconds: list[float]) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    small = min(MICRO, args.completions)
    chats = [[{"role": "user", "content": text}] for text in prompts_of(args)]
    ids = [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]
    config = PPOConfig(
        folder,
        **COMMON,
        total_episodes=args.completions * (args.updates + 1),
        per_device_train_batch_size=small,
        gradient_accumulation_steps=args.completions // small,
        num_mini_batches=1,
        num_ppo_epochs=1,
        local_rollout_forward_batch_size=small,
        response_length=args.length,
        stop_token="eos",
        temperature=1.0,
        missing_eos_penalty=1.0,
        num_sample_generations=0,
    )
    policy, reference = (AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32) for _ in range(2))
    scorers = [AutoModelForSequenceClassification.from_pretrained(args.model_reward, num_labels=1) for _ in range(2)]
    trainer = PPOTrainer(
        config,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=scorers[0],
        value_model=scorers[1],
        train_dataset=Dataset.from_list([{"input_ids": row} for row in ids]),
        callbacks=[Clock(seconds)],
    )
    trainer.train()


def floor(args) -> dict[str, float]:
    """Seconds of the parts of an update, each the median of `args.updates`."""
    import torch
    from groundup.generation import generate
    from measure import in_turn, loop_timer, median
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    chats = [[{"role": "user", "content": text}] for text in prompts_of(args)]
    prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, padding=True, return_tensors="pt")
    config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=args.length, disable_compile=True)
    grouped = {key: value[::GROUP].repeat_interleave(GROUP, 0) for key, value in prompts.items()}
    half = copy.deepcopy(policy).bfloat16()

    def ours(some):
        return generate(policy, some["input_ids"], some["attention_mask"], config)

    ways = {
        "stock": lambda: policy.generate(**prompts, generation_config=config),
        "stock, bfloat16": lambda: half.generate(**prompts, generation_config=config),
        "stock, static cache": lambda: policy.generate(**prompts, generation_config=config, cache_implementation="static"),
        "stock, groups": lambda: policy.generate(**grouped, generation_config=config),
        "ours": lambda: ours(prompts),
        "ours, four batches": lambda: [ours({key: value[n::4] for key, value in prompts.items()}) for n in range(4)],
        "ours, groups": lambda: ours(grouped),
    }
    with torch.no_grad():
        parts = {f"generation, {name}": median(times) for name, times in in_turn(ways, args.updates, warm_up=1).items()}
        said = ours(prompts)
    pad = tokenizer.pad_token_id
    rows = sorted(([t for t in row if t != pad] for row in said.tolist()), key=len)
    batches = []
    for start in range(0, len(rows), MICRO):
        part = rows[start : start + MICRO]
        longest = len(part[-1])
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in part])
        batches.append((ids, (ids != pad).long()))

    @torch.no_grad()
    def forward():
        for ids, mask in batches:
            policy.model(input_ids=ids, attention_mask=mask, use_cache=False)

    def both():
        for ids, mask in batches:
            policy(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss.backward()

    def trunk():
        for ids, mask in batches:
            policy.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.float().square().mean().backward()

    parts |= {
        name: median(loop_timer(step, args.updates, 1)) for name, step in (("forward", forward), ("learn", both), ("value", trunk))
    }
    parts["tokens"] = sum(map(len, rows)) / len(rows)
    return parts


def sums(parts: dict[str, float]) -> dict[str, float]:
    """The floors: rollout, reference and reward model look once; PPO's policy looks at what it said, and so does a critic."""
    grpo = parts["generation, ours, groups"] + parts["learn"]
    shared = parts["generation, ours"] + parts["learn"] + 3 * parts["forward"]
    return {"grpo": grpo, "ppo_shared": shared, "ppo": shared + parts["forward"] + parts["value"]}


def made_up(folder: Path) -> tuple[str, str]:
    """A small world's prompts and a random model for `--quick`."""
    from groundup.model import build_config, build_model
    from groundup.stage import chat_generation_config
    from groundup.tokenizer import train_tokenizer
    from groundup.toyland import write_world

    write_world(folder / "world", seed=0, documents=400, held_out=40)
    rows = (folder / "world" / "documents.jsonl").read_text(encoding="utf-8").splitlines()
    tokenizer = train_tokenizer((json.loads(row)["text"] for row in rows), vocab_size=512, max_length=512)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = build_model(build_config("qwen3", tokenizer, sizes, max_length=512), seed=0)
    model.generation_config = chat_generation_config(tokenizer)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return str(folder / "model"), str(folder / "world" / "prompts.jsonl")


def work(args) -> None:
    """One contestant's process: its seconds on the last line."""
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        if args.contestant == "floor":
            print("RESULT" + json.dumps(floor(args)))
            return
        if args.contestant == "trl112_ppo":
            trl112_ppo(args, folder, seconds)
        else:
            engine(args.contestant, args, folder, seconds)
    print("RESULT" + json.dumps(seconds))


def run(name: str, args) -> list[float] | dict[str, float]:
    path = os.pathsep.join([*([str(args.trl112)] if name == "trl112_ppo" else []), str(Path(__file__).parent)])
    words = [sys.executable, __file__, "--contestant", name, "--model", args.model, "--prompts", args.prompts]
    for option in ("model_reward", "completions", "length", "updates"):
        words += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path, "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.rpartition("RESULT")[2])


def main() -> None:
    from measure import header, last_line, median, parser, table

    arguments = parser(__doc__)
    arguments.add_argument("--model", help="chat model that is trained; with --quick a random one is made up")
    arguments.add_argument("--model-reward", help="reward model; without it the chat model with a new head")
    arguments.add_argument("--prompts", help="JSON lines with `prompt` or `question`")
    arguments.add_argument("--trl112", type=Path, help="directory with TRL 1.12")
    arguments.add_argument("--completions", type=int, default=256)
    arguments.add_argument("--length", type=int, default=48, help="most tokens of a completion")
    arguments.add_argument("--updates", type=int, default=3, help="timed updates a turn; one before is not counted")
    arguments.add_argument("--rounds", type=int, default=3, help="turns of each contestant")
    arguments.add_argument("--contestant", choices=[*CONTESTANTS, "floor"], help="be one of them (the script calls itself)")
    args = arguments.parse_args()
    args.model_reward = args.model_reward or args.model
    if args.contestant:
        return work(args)
    about = header()
    with tempfile.TemporaryDirectory() as folder:
        if args.quick:
            args.completions, args.length, args.updates, args.rounds = 16, 8, 1, 1
            args.model, args.prompts = made_up(Path(folder))
            args.model_reward = args.model
        elif not (args.model and args.prompts):
            raise SystemExit("give --model and --prompts, or --quick")
        names = [name for name in CONTESTANTS if name != "trl112_ppo" or args.trl112]
        seconds: dict[str, list[float]] = {name: [] for name in names}
        parts: dict[str, list[float]] = {}
        for _ in range(args.rounds):
            for name, value in run("floor", args).items():
                parts.setdefault(name, []).append(value)
            for name in names:
                seconds[name] += run(name, args)
    typical = {name: median(values) for name, values in parts.items()}
    update, least = {name: median(values) for name, values in seconds.items()}, sums(typical)
    rows = []
    for name in names:
        over = f"{update[name] / least[name]:.2f}" if name in least else ""
        rows.append([name, f"{update[name]:.2f}", f"{args.completions / update[name]:.0f}", over])
    print(table(["", "seconds an update", "completions/s", "of its floor"], rows))
    print("\n" + table(["parts, seconds", ""], [(name, f"{value:.2f}") for name, value in typical.items()]) + "\n")
    pairs = [("ppo", "trl112_ppo"), ("ppo_shared", "trl112_ppo"), ("grpo", "trl_grpo")]
    ratios = {f"{ours} / {theirs}": update[theirs] / update[ours] for ours, theirs in pairs if theirs in update}
    print("as fast as: " + ", ".join(f"{name} {ratio:.2f}x" for name, ratio in ratios.items()) + "\n")
    last_line({**about, "seconds": update, "parts": typical, "floors": least, "ratios": ratios})


if __name__ == "__main__":
    main()
