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
    clipped_value_loss,
    explained_variance,
    gae,
    kl_estimate,
    masked_mean,
    token_rewards,
    whiten,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
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
    critic_learning_rate: float = field(default=1e-4, metadata={"help": "Learning rate of the critic."})

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


class PPOTrainer(GRPOTrainer):
    """PPO: `GRPOTrainer` whose advantages come from a critic.

    Args:
        critic: one-label sequence-classification model, trained in place. It is separate from the policy and from the reward
            model, though it may start from the latter's weights (`load_critic`).

    Raises:
        InputError: DeepSpeed or FSDP, which take one model and one optimizer.
    """

    _name = "PPO"

    def __init__(self, *args, critic: PreTrainedModel, **kwargs):
        config = kwargs["args"]
        # The engine loads a reference model, and scores rollouts with it, only when its own KL term is on. The term in the loss
        # is turned off again at once: PPO's KL is a reward.
        config.beta = config.kl_coef
        super().__init__(*args, **kwargs)
        config.beta = self.beta = 0.0
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            fix = "launch with accelerate_configs/ddp.yaml"
            raise InputError("PPO trains two models, and DeepSpeed and FSDP take one", "accelerate configuration", fix)
        self.critic = self.accelerator.prepare_model(Critic(critic))

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
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            weights = self.accelerator.unwrap_model(self.critic).model.state_dict()
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "critic.safetensors")
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            path = Path(checkpoint) / "critic.safetensors"
            if not path.is_file():
                raise InputError("the checkpoint has no critic", str(path), "resume from another checkpoint, or start anew")
            self.accelerator.unwrap_model(self.critic).model.load_state_dict(load_file(path))

    # -- rollout

    def values(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The critic's forecast before each token of the completions, (B, T)."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        with self.accelerator.autocast():
            values = self.critic(ids, mask)
        length = batch["completion_ids"].size(1)
        return values[:, -length - 1 : -1].float()

    def _generate_and_score_completions(self, inputs):
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        args = self.args
        self.beta = args.kl_coef  # asks the engine for the reference's log-probabilities
        try:
            batch = super()._generate_and_score_completions(inputs)
        finally:
            self.beta = 0.0
        mask = batch["completion_mask"].float()
        rows = mask.size(0)
        with torch.no_grad():
            if "old_per_token_logps" not in batch:  # one minibatch a rollout: the engine would take the policy's own
                batch["old_per_token_logps"] = self._in_chunks(self._logps, batch)
            values = self._in_chunks(self.values, batch) * mask
            mine = slice(self.accelerator.process_index * rows, (self.accelerator.process_index + 1) * rows)
            scores = (self._rewards[mine] * self.reward_weights.to(mask.device)).nansum(1)
            ended = torch.isin(batch["completion_ids"], torch.tensor(self.eos_token_ids, device=mask.device))
            ended = (ended & mask.bool()).any(1)
            scores = scores - args.missing_eos_penalty * (~ended).float()
            old, ref = batch["old_per_token_logps"], batch.pop("ref_per_token_logps", None)
            kl = kl_estimate(old, old if ref is None else ref, args.kl_estimator) * mask
            rewards = token_rewards(scores, kl, mask, args.kl_coef)
            if args.whiten_rewards:
                rewards = whiten(rewards, mask, shift_mean=False)
            advantages, returns = gae(rewards, values, mask, args.gamma, args.lam)
            batch["values"], batch["returns"], batch["advantages"] = values, returns, whiten(advantages, mask)
            self._note(
                {
                    "objective/kl": kl.sum(1).mean(),
                    "objective/score": scores.mean(),
                    "objective/returns": masked_mean(returns, mask),
                    "explained_variance": explained_variance(values, returns, mask),
                    "ended": ended.float().mean(),
                }
            )
        return batch

    def _logps(self, batch):
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        return self._get_per_token_logps_and_entropies(self.model, ids, mask, batch["completion_ids"].size(1))[0]

    def _in_chunks(self, function, batch):
        """`function` over rows of `batch` in micro-batches, so that a rollout needs no more memory than a training step."""
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        size, rows = self.args.per_device_train_batch_size, batch["completion_ids"].size(0)
        return torch.cat([function({n: batch[n][i : i + size] for n in names}) for i in range(0, rows, size)])

    def _note(self, figures: dict[str, torch.Tensor]) -> None:
        names = list(figures)
        means = self.accelerator.reduce(torch.stack([figures[n].float() for n in names]), reduction="mean").tolist()
        for name, value in zip(names, means, strict=True):
            self._metrics["train"][name].append(value)

    # -- loss

    def _compute_loss(self, model, inputs):
        policy_loss = super()._compute_loss(model, inputs)
        if "returns" not in inputs:  # evaluation
            return policy_loss
        mask = inputs["completion_mask"].float()
        value_loss, clipped = clipped_value_loss(
            self.values(inputs), inputs["values"], inputs["returns"], mask, self.args.cliprange_value
        )
        self._note({"value_loss": value_loss.detach(), "value_clip_ratio": clipped})
        return policy_loss + self.args.vf_coef * value_loss / self.current_gradient_accumulation_steps


def load_critic(path: str, **kwargs) -> PreTrainedModel:
    """A reward model as a critic: same trunk, same head, weights of its own. A causal model gets a new head."""
    return AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32, **kwargs)
