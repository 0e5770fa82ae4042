"""Make ppo.safetensors: what TRL 1.12's PPOTrainer, the last there was, computes from fixed models and a fixed rollout.

pip install --no-deps --target TRL_1_12 trl==1.12.0
PYTHONPATH=TRL_1_12 python tests/oracles/make_ppo.py

Its `train()` runs as it is; only what is said (`batch_generation`) and what it is worth (`get_reward` of the reward model) are
given, and what passes through its own helpers is written down.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import trl
from datasets import Dataset
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
import tiny
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

CASES = {  # ragged, further settings
    "full": (False, {}),
    "ragged": (True, {}),
    "ragged_k3": (True, {"kl_estimator": "k3"}),
    "full_k3_whitened": (False, {"kl_estimator": "k3", "whiten_rewards": True}),
}


def run(ragged: bool, settings: dict, folder: str) -> dict[str, torch.Tensor]:
    words, rows = tiny.tokenizer(), tiny.rows(ragged)
    policy, reference, value = tiny.model("lm", 1), tiny.model("lm", 2), tiny.model("value", 3)
    judge_model = tiny.model("value", 4)
    found: dict[str, torch.Tensor] = {}
    ids = [words(row["prompt"])["input_ids"] for row in rows]
    by_prompt = {tuple(prompt): number for number, prompt in enumerate(ids)}
    order: list[int] = []

    def say(model, queries, batch_size, pad, generation_config):
        order[:] = [by_prompt[tuple(query[query != pad].tolist())] for query in queries]
        said = torch.full((len(order), tiny.LENGTH), pad)
        for place, number in enumerate(order):
            said[place, : len(rows[number]["completion"])] = torch.tensor(rows[number]["completion"])
        both = torch.cat([queries, said], 1)
        logits = ppo_trainer.forward(model, both, pad).logits[:, queries.shape[1] - 1 : -1]
        return both, logits / (args.temperature + 1e-7)

    plain_reward = ppo_trainer.get_reward

    def judge(model, both, pad, context):
        if model is judge_model:
            return None, torch.tensor([rows[number]["score"] for number in order]), None
        return plain_reward(model, both, pad, context)

    def by_row(tensor):
        return tensor.detach()[torch.argsort(torch.tensor(order))].clone()

    plain_whiten, plain_mean = ppo_trainer.masked_whiten, ppo_trainer.masked_mean
    whitened, means = [], []

    def whiten(values, mask, shift_mean=True):
        result = plain_whiten(values, mask, shift_mean)
        whitened.append((values, mask, result))
        return result

    def mean(values, mask, axis=None):
        result = plain_mean(values, mask, axis)
        if values.requires_grad:
            means.append(result.detach().clone())
        return result

    ppo_trainer.batch_generation, ppo_trainer.get_reward = say, judge
    ppo_trainer.masked_whiten, ppo_trainer.masked_mean = whiten, mean
    args = PPOConfig(
        folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        num_sample_generations=0,
        total_episodes=len(rows),
        per_device_train_batch_size=len(rows),
        num_mini_batches=1,
        num_ppo_epochs=2,
        response_length=tiny.LENGTH,
        stop_token="eos",
        temperature=1.0,
        kl_coef=0.2,
        vf_coef=0.5,
        gamma=0.9,
        lam=0.8,
        cliprange=0.1,
        cliprange_value=0.1,
        missing_eos_penalty=1.0,
        **settings,
    )
    steps: list[dict] = []

    class Descent(torch.optim.SGD):
        def step(self, closure=None):
            named = [("policy", policy), ("value", value)]
            kept = {f"{part}.{n}": p.grad.clone() for part, m in named for n, p in m.named_parameters() if p.grad is not None}
            steps.append(kept)
            return super().step(closure)

    optimizer = Descent([*policy.parameters(), *value.parameters()], lr=tiny.LR)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = PPOTrainer(
        args,
        processing_class=words,
        model=policy,
        ref_model=reference,
        reward_model=judge_model,
        value_model=value,
        train_dataset=Dataset.from_list([{"input_ids": prompt} for prompt in ids]),
        optimizers=(optimizer, scheduler),
    )
    trainer.train()
    if settings.get("whiten_rewards"):
        found["rewards_before_whitening"] = by_row(whitened[0][0])
        found["rewards"] = by_row(whitened[0][2])
    found["advantages_before_whitening"], mask, advantages = map(by_row, whitened[-1])
    found["mask"], found["advantages"] = mask.float(), advantages * mask
    for number, gradients in enumerate(steps):
        found[f"value_loss.{number}"], found[f"policy_loss.{number}"] = means[2 * number], means[2 * number + 1]
        found |= {f"gradient.{number}.{name}": gradient for name, gradient in gradients.items()}
    return found


def main() -> None:
    assert trl.__version__ == "1.12.0", trl.__version__
    models = {"policy": tiny.model("lm", 1), "reference": tiny.model("lm", 2), "value": tiny.model("value", 3)}
    everything = {f"{part}.{name}": tensor for part, model in models.items() for name, tensor in model.state_dict().items()}
    for name, (ragged, settings) in CASES.items():
        with TemporaryDirectory() as folder:
            found = run(ragged, settings, folder)
        everything |= {f"{name}/{key}": tensor.contiguous() for key, tensor in found.items()}
    save_file(everything, Path(__file__).with_name("ppo.safetensors"))
    print(f"{len(everything)} tensors, {sum(t.numel() for t in everything.values())} numbers")


if __name__ == "__main__":
    main()
