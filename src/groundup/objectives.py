"""The formulas of reinforcement learning from preferences: pure functions of tensors.

Shapes: B completions, T tokens each, right-padded; `mask` (B, T) is 1 on tokens of a completion, its end of turn included.
Sources: PPO, Schulman et al. 2017 (arXiv:1707.06347); GAE, Schulman et al. 2016 (arXiv:1506.02438); for language models,
Ziegler et al. 2019 (arXiv:1909.08593) and Huang et al. 2024 (arXiv:2403.17031), whose details these follow.
"""

import torch


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `values` (B, T) where `mask` is 1; 0 where it never is."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def masked_var(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Variance of `values` (B, T) where `mask` is 1, divided by the count less one."""
    count = mask.sum()
    centred = (values - masked_mean(values, mask)) * mask
    return (centred**2).sum() / (count - 1).clamp(min=1)


def whiten(values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
    """`values` (B, T) at unit variance and, with `shift_mean`, zero mean over the mask; 0 outside it."""
    mean = masked_mean(values, mask)
    whitened = (values - mean) * torch.rsqrt(masked_var(values, mask) + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return whitened * mask


def kl_estimate(logps: torch.Tensor, ref_logps: torch.Tensor, kind: str = "k1") -> torch.Tensor:
    """Per-token estimate of KL(policy || ref) from tokens that the policy drew, (B, T).

    `k1` is unbiased and may be negative; `k3` is unbiased, never negative, of lower variance (Schulman 2020,
    joschu.net/blog/kl-approx.html).
    """
    log_ratio = logps - ref_logps
    if kind == "k1":
        return log_ratio
    if kind == "k3":
        return torch.expm1(-log_ratio) + log_ratio
    raise ValueError(f"kind is k1 or k3, not {kind}")


def token_rewards(scores: torch.Tensor, kl: torch.Tensor, mask: torch.Tensor, kl_coef: float) -> torch.Tensor:
    """-kl_coef x `kl` on each token, and the score (B,) of the completion added on its last one, (B, T)."""
    rewards = -kl_coef * kl * mask
    last = (mask.sum(1).long() - 1).clamp(min=0)
    return rewards.scatter_add(1, last.unsqueeze(1), (scores * mask.any(1)).unsqueeze(1))


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimates and returns, both (B, T), 0 outside the mask.

    Args:
        rewards: (B, T), the reward for having said token t.
        values: (B, T), the critic's forecast before token t is said.
    """
    values = values * mask
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    following = torch.zeros_like(running)
    for t in reversed(range(rewards.size(1))):
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = (delta + gamma * lam * running) * mask[:, t]
        advantages[:, t] = running
        following = values[:, t]
    return advantages, (advantages + values) * mask


def clipped_value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """0.5 x mean of the worse squared error of the value and of the value held within `cliprange` of the old; share clipped."""
    held = old_values + (values - old_values).clamp(-cliprange, cliprange)
    error, held_error = (values - returns) ** 2, (held - returns) ** 2
    loss = 0.5 * masked_mean(torch.maximum(error, held_error), mask)
    return loss, masked_mean((held_error > error).float(), mask)


def clipped_policy_loss(
    logps: torch.Tensor, old_logps: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """-mean of min(ratio x advantage, ratio within 1 +- `cliprange` x advantage) over the mask; share clipped.

    `PPOTrainer` leaves this loss to GRPOTrainer (loss_type bnpo), which computes the same; `tests/test_ppo.py` compares them.
    """
    ratio = torch.exp(logps - old_logps)
    plain, held = ratio * advantages, ratio.clamp(1 - cliprange, 1 + cliprange) * advantages
    return -masked_mean(torch.minimum(plain, held), mask), masked_mean((held < plain).float(), mask)


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """1 - var(returns - values) / var(returns): 1 is a perfect critic, 0 one that knows the mean only."""
    return 1 - masked_var(returns - values, mask) / masked_var(returns, mask).clamp(min=1e-8)


def adapted_kl_coef(kl_coef: float, kl: float, target: float, completions: int, horizon: int) -> float:
    """The next coefficient of the KL penalty: up while `kl`, a completion's, is above `target`, down while it is below.

    Proportional control with the error held within 20 %; over `horizon` completions it can change e^0.2-fold (Ziegler et al. 2019,
    section 2.2).
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return kl_coef * (1.0 + error * completions / horizon)


def merged_moments(moments: tuple[float, float, float], values: torch.Tensor) -> tuple[float, float, float]:
    """(count, mean, sum of squared deviations) of all values so far and `values` (N,) (Chan et al. 1979, eq. 2.1)."""
    count, mean, deviations = moments
    values = values.double()
    more, batch_mean = values.numel(), values.mean().item()
    difference, total = batch_mean - mean, count + more
    deviations += ((values - batch_mean) ** 2).sum().item() + difference**2 * count * more / total
    return total, mean + difference * more / total, deviations
