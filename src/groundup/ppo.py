"""Rung 3b: PPO on the rollout engine of TRL's GRPOTrainer.

TRL removed its own PPOTrainer in 1.13 (huggingface/trl#7020). GRPOTrainer generates, scores, logs, clips the policy ratio and
takes advantages of shape (B, T) from subclasses. What PPO adds stands here: a critic, the KL penalty as a per-token reward,
generalised advantage estimation and the value loss; the formulas are in `groundup.objectives`.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from groundup.errors import InputError
from groundup.grpo import GRPOTrainer
from groundup.objectives import (
    adapted_kl_coef,
    clipped_value_loss,
    explained_variance,
    gae,
    kl_estimate,
    masked_mean,
    merged_moments,
    token_rewards,
    whiten,
)
from groundup.reading import reading
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from trl import GRPOConfig


@dataclass
class PPOConfig(GRPOConfig):
    """`trl.GRPOConfig` with what PPO adds. One completion a prompt unless `num_generations` says otherwise.

    A rollout is `per_device_train_batch_size` x `steps_per_generation` completions a device; each is passed over
    `num_iterations` times in minibatches of `per_device_train_batch_size`.
    """

    num_generations: int = field(default=1, metadata={"help": "Completions a prompt in one rollout."})
    loss_type: str = field(default="bnpo", metadata={"help": "bnpo is PPO's mean over the tokens of a minibatch."})
    kl_coef: float = field(default=0.05, metadata={"help": "Weight of the per-token KL penalty in the reward."})
    kl_estimator: str = field(default="k1", metadata={"help": "k1 or k3 (groundup.objectives.kl_estimate)."})
    gamma: float = field(default=1.0, metadata={"help": "Discount a token."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of generalised advantage estimation."})
    vf_coef: float = field(default=0.5, metadata={"help": "Weight of the value loss."})
    cliprange_value: float = field(default=0.2, metadata={"help": "How far a value may move from the rollout's."})
    whiten_rewards: bool = field(default=False, metadata={"help": "Bring token rewards to unit variance."})
    missing_eos_penalty: float = field(
        default=1.0, metadata={"help": "Taken off the score of a completion that does not end its turn."}
    )
    critic_model_name_or_path: str | None = field(default=None, metadata={"help": "What the critic starts from: the reward model."})
    shared_critic: bool = field(
        default=False, metadata={"help": "No model of its own: a value head on the policy's trunk, read in the policy's own pass."}
    )
    critic_learning_rate: float = field(default=1e-4, metadata={"help": "Learning rate of the critic, or of the value head."})
    critic_warmup_steps: int = field(default=0, metadata={"help": "First steps, in which the critic alone learns."})
    kl_target: float | None = field(
        default=None, metadata={"help": "KL of a completion that `kl_coef` is steered to; without it `kl_coef` stays."}
    )
    kl_horizon: int = field(default=10_000, metadata={"help": "Completions over which `kl_coef` may change by a fifth."})
    normalize_scores: bool = field(
        default=False, metadata={"help": "Scores less their running mean, over their running deviation."}
    )
    clip_score: float | None = field(default=None, metadata={"help": "Largest score, and, negative, smallest; after normalising."})

    def __post_init__(self):
        # GRPO cannot do without a second completion to compare with, PPO can; the check stands in its __post_init__ only.
        asked, self.num_generations = self.num_generations, max(2, self.num_generations)
        super().__post_init__()
        self.num_generations = asked
        if self.beta:
            raise InputError("`beta` is GRPO's KL term in the loss", fix="write `kl_coef`, PPO's KL penalty in the reward")
        if self.loss_type != "bnpo":
            raise InputError(f"`loss_type: {self.loss_type}` is not PPO's", fix="leave `loss_type` out")
        if self.kl_estimator not in ("k1", "k3"):
            raise InputError(f"`kl_estimator: {self.kl_estimator}`", fix="write k1 or k3")
        for name in ("kl_target", "clip_score", "kl_horizon"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise InputError(f"`{name}: {value}` is not above 0", fix="leave it out, or write a positive number")
        if self.shared_critic and self.critic_model_name_or_path:
            raise InputError("a shared critic has no weights of its own", "critic_model_name_or_path", "leave one of the two out")


class Critic(torch.nn.Module):
    """A sequence-classification model with one label, its `score` head read at every position instead of the last."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Token ids and attention mask, (B, L) -> values, (B, L)."""
        trunk = getattr(self.model, self.model.base_model_prefix)
        hidden = trunk(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return self.model.score(hidden)[..., 0]


class ValueHead(torch.nn.Module):
    """A critic that shares the policy's trunk: one number from each of its hidden states, at first 0."""

    def __init__(self, width: int):
        super().__init__()
        self.score = torch.nn.Linear(width, 1)
        torch.nn.init.zeros_(self.score.weight)
        torch.nn.init.zeros_(self.score.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, T, D) -> (B, T)."""
        return self.score(hidden)[..., 0]


def whole(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Prompts with their completions: ids and mask, (B, L), and T, the length of the completions."""
    ids, mask = (torch.cat([batch[f"prompt_{what}"], batch[f"completion_{what}"]], 1) for what in ("ids", "mask"))
    return ids, mask, batch["completion_ids"].size(1)


class PPOTrainer(GRPOTrainer):
    """PPO: `GRPOTrainer` whose advantages come from a critic.

    Args:
        critic: one-label sequence-classification model, trained in place. It is separate from the policy and from the reward
            model, though it may start from the latter's weights (`load_critic`). None with `shared_critic`.

    Raises:
        InputError: DeepSpeed or FSDP, which take one model and one optimizer.
    """

    _name = "PPO"

    def __init__(self, *args, critic: PreTrainedModel | None = None, **kwargs):
        config = kwargs["args"]
        # The engine loads a reference model, and scores rollouts with it, only when its own KL term is on. The term in the loss
        # is turned off again at once: PPO's KL is a reward.
        config.beta = config.kl_coef
        super().__init__(*args, **kwargs)
        config.beta = self.beta = 0.0
        if self.is_sharded:
            fix = "launch with accelerate_configs/ddp.yaml"
            raise InputError("PPO trains two models, and DeepSpeed and FSDP take one", "accelerate configuration", fix)
        self.shared = critic is None
        if self.shared and self.aux_loss_enabled:
            raise InputError("a mixture of experts has no shared critic here", "shared_critic", "give it a critic of its own")
        if self.shared != config.shared_critic:
            raise InputError(
                "a critic is given" if critic else "no critic is given", "shared_critic", "write `shared_critic` as it is"
            )
        policy = self.accelerator.unwrap_model(self.model)
        policy = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
        self.trunk = policy.base_model
        self.critic = self.accelerator.prepare_model(ValueHead(policy.config.hidden_size) if self.shared else Critic(critic))
        self.kl_coef, self.moments = config.kl_coef, (0.0, 0.0, 0.0)  # what a run changes as it goes, saved with it

    # -- the critic is trained, saved and resumed with the policy

    def create_optimizer(self, *args, **kwargs):
        optimizer = super().create_optimizer(*args, **kwargs)
        lr = self.args.critic_learning_rate
        parameters = [p for p in self.critic.parameters() if p.requires_grad]
        optimizer.add_param_group({"params": parameters, "lr": lr, "initial_lr": lr, "weight_decay": 0.0})

        def clip(*_):
            torch.nn.utils.clip_grad_norm_(parameters, self.args.max_grad_norm or float("inf"))

        def clear(*_):
            for parameter in parameters:
                parameter.grad = None

        optimizer.register_step_pre_hook(clip)  # the Trainer clips and clears the gradients of the policy only
        optimizer.register_step_post_hook(clear)
        return optimizer

    def _save_checkpoint(self, model, trial):
        if self.args.should_save:  # before super(), which writes trainer_state.json, the mark of a whole checkpoint, last
            folder = self._checkpoint_folder(trial)
            weights = self._critic_model().state_dict()
            state = {"kl_coef": repr(self.kl_coef), "moments": " ".join(map(repr, self.moments))}
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "critic.safetensors", state)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            path = Path(checkpoint) / "critic.safetensors"
            if not path.is_file():
                raise InputError("the checkpoint has no critic", str(path), "resume from another checkpoint, or start anew")
            self._critic_model().load_state_dict(load_file(path))
            with safe_open(path, "pt") as file:
                state = file.metadata() or {}
            self.kl_coef = float(state.get("kl_coef", self.kl_coef))
            self.moments = tuple(map(float, state["moments"].split())) if "moments" in state else self.moments

    def _critic_model(self) -> torch.nn.Module:
        critic = self.accelerator.unwrap_model(self.critic)
        return critic if self.shared else critic.model

    # -- rollout

    def _score(self, model, ids, mask, length, compute_entropy):
        """With a shared critic also the values, read off the policy's own pass."""
        if not self.shared or model is self.ref_model:
            return super()._score(model, ids, mask, length, compute_entropy)
        hidden: list[torch.Tensor] = []
        handle = self.trunk.register_forward_hook(lambda module, inputs, outputs: hidden.append(outputs.last_hidden_state))
        try:
            scored = super()._score(model, ids, mask, length, compute_entropy)
        finally:
            handle.remove()
        with self.accelerator.autocast():
            return *scored, self.critic(hidden[0][:, -length - 1 : -1]).float()

    def values(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """A separate critic's forecast before each token of the completions, (B, T)."""

        def function(ids, mask, length):
            with self.accelerator.autocast():
                return (self.critic(ids, mask)[:, -length - 1 : -1].float(),)

        return self._in_pieces(function, *whole(batch))[0]

    def _generate_and_score_completions(self, inputs):
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        args = self.args
        self.beta = self.kl_coef  # asks the engine for the reference's log-probabilities
        try:
            batch = super()._generate_and_score_completions(inputs)
        finally:
            self.beta = 0.0
        first = self.accelerator.process_index * len(inputs)
        faulty = self._faulty[first : first + len(inputs), None]
        batch["completion_mask"] = batch["completion_mask"].masked_fill(faulty, 0)  # nothing is learned from it
        mask = batch["completion_mask"].float()
        with torch.no_grad():
            values, old = self._old_values_and_logps(batch)
            values, batch["old_per_token_logps"] = values * mask, old
            scores, ended = self._completion_scores(batch)
            ref = batch.pop("ref_per_token_logps", None)
            kl = kl_estimate(old, old if ref is None else ref, args.kl_estimator) * mask
            rewards = token_rewards(scores, kl, mask, self.kl_coef)
            if args.whiten_rewards:
                rewards = whiten(rewards, mask, shift_mean=False)
            advantages, returns = gae(rewards, values, mask, args.gamma, args.lam)
            batch["values"], batch["returns"], batch["advantages"] = values, returns, whiten(advantages, mask)
            measured = {} if ref is None else {"objective/kl": kl.sum(1).mean()}  # without a price there is no reference to ask
            means = self._note(
                {
                    **measured,
                    "objective/score": scores.mean(),
                    "objective/returns": masked_mean(returns, mask),
                    "explained_variance": explained_variance(values, returns, mask),
                    "ended": ended.mean(),
                }
            )
        if args.kl_target and measured:
            completions = mask.size(0) * self.accelerator.num_processes
            self.kl_coef = adapted_kl_coef(self.kl_coef, means["objective/kl"], args.kl_target, completions, args.kl_horizon)
            self._metrics["train"]["kl_coef"].append(self.kl_coef)
        return batch

    def _old_values_and_logps(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the rollout, (B, T) each, without gradients. With one minibatch a rollout the engine has not looked at its own tokens;
        else it has, and a shared critic's values came with that, unless an adapter's reference was the last to pass the trunk."""
        old = batch.get("old_per_token_logps")
        if old is None or self.shared and self.ref_model is None and self.kl_coef:
            old = self._get_per_token_logps_and_entropies(self.model, *whole(batch))[0]
        return (self._read[0] if self.shared else self.values(batch)), old

    def _completion_scores(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        """What each completion of this process earns, (B,), and whether it ended its turn, 1 or 0."""
        args, mask = self.args, batch["completion_mask"]
        everyones = self._totals()
        if args.normalize_scores:
            self.moments = count, mean, deviations = merged_moments(self.moments, everyones[~self._faulty])
            everyones = (everyones - mean) / max((deviations / max(count - 1, 1)) ** 0.5, 1e-4)
        if args.clip_score:
            everyones = everyones.clamp(-args.clip_score, args.clip_score)
        first = self.accelerator.process_index * mask.size(0)
        ended = self._ended(batch).float()
        return everyones[first : first + mask.size(0)] - args.missing_eos_penalty * (1 - ended), ended

    def _note(self, figures: dict[str, torch.Tensor]) -> dict[str, float]:
        """Log the means over all processes, and return them."""
        names = list(figures)
        means = self.accelerator.reduce(torch.stack([figures[n].float() for n in names]), reduction="mean").tolist()
        for name, value in zip(names, means, strict=True):
            self._metrics["train"][name].append(value)
        return dict(zip(names, means, strict=True))

    # -- loss

    def _compute_loss(self, model, inputs):
        policy_loss = super()._compute_loss(model, inputs)
        if "returns" not in inputs:  # evaluation
            return policy_loss
        if self.state.global_step < self.args.critic_warmup_steps:
            policy_loss = policy_loss * 0.0  # not left out: every weight has a gradient, as its wrapper expects
        mask = inputs["completion_mask"].float()
        value_loss, clipped = clipped_value_loss(
            self._read[0] if self.shared else self.values(inputs),
            inputs["values"],
            inputs["returns"],
            mask,
            self.args.cliprange_value,
        )
        self._note({"value_loss": value_loss.detach(), "value_clip_ratio": clipped})
        return policy_loss + self.args.vf_coef * value_loss / self.current_gradient_accumulation_steps


def load_critic(path: str, **kwargs) -> PreTrainedModel:
    """A reward model as a critic: same trunk, same head, weights of its own. A causal model gets a new head."""
    with reading(path, "critic_model_name_or_path"):
        return AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32, **kwargs)
