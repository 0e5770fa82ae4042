"""PPO against numbers that TRL 1.12's PPOTrainer computed (tests/oracles/make_ppo.py): same models, same rollout, to 1e-5."""

import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from groundup.objectives import gae, kl_estimate, token_rewards, whiten
from groundup.ppo import PPOConfig, PPOTrainer
from safetensors.torch import load_file

ORACLES = Path(__file__).parent / "oracles"
sys.path.insert(0, str(ORACLES))
import tiny  # noqa: E402

GAMMA, LAM, KL = 0.9, 0.8, 0.2
CASES = {
    "full": {},
    "full_k3_whitened": {"kl_estimator": "k3", "whiten_rewards": True},
    "ragged": {},
    "ragged_k3": {"kl_estimator": "k3"},
}


@pytest.fixture(scope="module")
def oracle():
    return load_file(ORACLES / "ppo.safetensors")


def given(oracle, case):
    return {key.split("/")[1]: tensor for key, tensor in oracle.items() if key.startswith(case + "/")}


def weights(oracle, part):
    return {key.removeprefix(part + "."): tensor for key, tensor in oracle.items() if key.startswith(part + ".")}


class Told(PPOTrainer):
    """PPOTrainer that says what the oracle's policy said, and keeps what it computes."""

    def __init__(self, *args, said, reference, **kwargs):
        super().__init__(*args, **kwargs)
        self.said, self.batch, self.gradients = said, {}, []
        self.accelerator.unwrap_model(self.ref_model).load_state_dict(reference)

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        return [self.said[tuple(ids)] for ids in prompt_ids], None

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        pairs = zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
        order = torch.argsort(torch.tensor([list(self.said).index(tuple(ids[mask.bool()].tolist())) for ids, mask in pairs]))
        self.batch = {key: value[order] for key, value in batch.items() if getattr(value, "ndim", 0) > 1}
        return batch

    def create_optimizer(self, *args, **kwargs):
        optimizer = super().create_optimizer(*args, **kwargs)
        parts = {"policy": self.model, "value": self.critic.model}

        def keep(*_):
            self.gradients.append({f"{p}.{n}": w.grad.clone() for p, m in parts.items() for n, w in m.named_parameters()})

        optimizer.register_step_pre_hook(keep)
        return optimizer


def train(oracle, folder, ragged, **settings):
    folder.mkdir()
    words, rows = tiny.tokenizer(), tiny.rows(ragged)
    policy, value = tiny.model("lm", 1), tiny.model("value", 3)
    policy.load_state_dict(weights(oracle, "policy"))
    value.load_state_dict(weights(oracle, "value"))
    policy.save_pretrained(folder / "policy")
    policy = type(policy).from_pretrained(folder / "policy")  # the engine loads its reference from where the policy came from
    args = PPOConfig(
        str(folder / "out"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        optim="sgd",
        learning_rate=tiny.LR,
        critic_learning_rate=tiny.LR,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=0.0,
        max_steps=2,
        num_iterations=2,
        per_device_train_batch_size=len(rows),
        steps_per_generation=1,
        max_completion_length=tiny.LENGTH,
        kl_coef=KL,
        gamma=GAMMA,
        lam=LAM,
        vf_coef=0.5,
        epsilon=0.1,
        cliprange_value=0.1,
        missing_eos_penalty=1.0,
        **settings,
    )
    trainer = Told(
        model=policy,
        critic=value,
        reward_funcs=lambda score, **kwargs: score,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"], "score": row["score"]} for row in rows]),
        processing_class=words,
        said={tuple(words(row["prompt"])["input_ids"]): row["completion"] for row in rows},
        reference=weights(oracle, "reference"),
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("case", ["full", "full_k3_whitened"])
def test_advantages_losses_and_gradients_are_those_of_trl(oracle, tmp_path, case):
    """All completions five tokens long, one of them without an end of turn: KL and score as rewards, whitening, generalised
    advantages, clipped losses, and the gradients of both models, on the rollout and again a step of descent later."""
    expected, trainer = given(oracle, case), train(oracle, tmp_path / case, ragged=False, **CASES[case])
    assert torch.equal(trainer.batch["completion_mask"].float(), expected["mask"])
    torch.testing.assert_close(trainer.batch["advantages"], expected["advantages"], atol=1e-5, rtol=1e-5)
    values = trainer.batch["values"]
    returns = expected["advantages_before_whitening"] + values
    torch.testing.assert_close(trainer.batch["returns"], returns, atol=1e-5, rtol=1e-5)
    for number in range(2):
        prefix = f"gradient.{number}."
        theirs = {key.removeprefix(prefix): tensor for key, tensor in expected.items() if key.startswith(prefix)}
        assert theirs.keys() <= trainer.gradients[number].keys() and any(name.startswith("value.") for name in theirs)
        for name, gradient in theirs.items():
            torch.testing.assert_close(
                trainer.gradients[number][name], gradient, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("case", ["ragged", "ragged_k3"])
def test_a_score_belongs_to_the_token_that_ends_the_turn(oracle, tmp_path, case):
    """TRL puts the score of a completion that has ended one place after its end of turn, on padding. The rest is the same: with the
    score put there, our formulas give its advantages."""
    expected, trainer = given(oracle, case), train(oracle, tmp_path / case, ragged=True, **CASES[case])
    batch, rows = trainer.batch, tiny.rows(ragged=True)
    mask = batch["completion_mask"].float()
    assert torch.equal(mask, expected["mask"])
    scores = torch.tensor([row["score"] - (tiny.EOS not in row["completion"]) for row in rows])
    start, reference = tiny.model("lm", 1), tiny.model("lm", 2)
    start.load_state_dict(weights(oracle, "policy"))
    reference.load_state_dict(weights(oracle, "reference"))
    critic = tiny.model("value", 3)
    critic.load_state_dict(weights(oracle, "value"))
    ids, attention = (torch.cat([batch[f"prompt_{what}"], batch[f"completion_{what}"]], 1) for what in ("ids", "mask"))
    with torch.no_grad():
        logps = [m(input_ids=ids, attention_mask=attention).logits.log_softmax(-1)[:, :-1] for m in (start, reference)]
        old, ref = (some.gather(2, ids[:, 1:, None])[:, -tiny.LENGTH :, 0] for some in logps)
        values = critic.score(critic.model(input_ids=ids, attention_mask=attention).last_hidden_state)
        values = values[:, -tiny.LENGTH - 1 : -1, 0]
    kl = kl_estimate(old, ref, CASES[case].get("kl_estimator", "k1")) * mask

    longer = torch.cat([torch.ones(len(rows), 1), mask[:, :-1]], 1)  # one place more where there is one
    theirs, _ = gae(token_rewards(scores, kl, longer, KL), values, longer, GAMMA, LAM)
    torch.testing.assert_close(theirs * mask, expected["advantages_before_whitening"] * mask, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whiten(theirs, mask), expected["advantages"], atol=1e-5, rtol=1e-5)

    last = mask.sum(1).long() - 1
    at = (torch.arange(len(rows)), last)
    ours = batch["returns"] - batch["values"]
    short = last < tiny.LENGTH - 1
    # what the critic thinks of a finished text is no part of what saying its last token was worth; in TRL it is
    torch.testing.assert_close(ours[at], (scores - KL * kl[at] - values[at]), atol=1e-5, rtol=1e-5)
    after = values[torch.arange(len(rows))[short], last[short] + 1]
    expected_there = -KL * kl[at][short] + GAMMA * after - values[at][short] + GAMMA * LAM * (scores[short] - after)
    found_there = expected["advantages_before_whitening"][at][short]
    torch.testing.assert_close(found_there, expected_there, atol=1e-5, rtol=1e-5)
    assert short.sum() == 5 and (found_there - ours[at][short]).abs().min() > 0.01
    torch.testing.assert_close(ours[~short][:, -1], theirs[~short][:, -1], atol=1e-5, rtol=1e-5)
