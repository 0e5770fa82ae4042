"""The formulas, on tensors of three completions by three tokens, worked by hand in the comments."""

import math

import pytest
import torch
from groundup.objectives import (
    adapted_kl_coef,
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    gae,
    kl_estimate,
    masked_mean,
    masked_var,
    merged_moments,
    token_rewards,
    whiten,
)
from torch import tensor
from torch.testing import assert_close

# Completions of three, two and one token. What stands outside the mask is absurd on purpose: nothing may read it.
MASK = tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
VALUES = tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 99.0], [9.0, 99.0, 99.0]])
NOTHING = torch.zeros(3, 3)


def test_mean():
    # (1 + 2 + 3 + 4 + 5 + 9) / 6
    assert_close(masked_mean(VALUES, MASK), tensor(4.0))
    assert masked_mean(VALUES, NOTHING) == 0


def test_variance():
    # from 4: 9 + 4 + 1 + 0 + 1 + 25 = 40, by 6 - 1
    assert_close(masked_var(VALUES, MASK), tensor(8.0))
    assert_close(masked_var(VALUES, torch.ones(3, 3)), VALUES.var())
    assert masked_var(VALUES, NOTHING) == 0
    one = torch.zeros(3, 3)
    one[0, 0] = 1
    assert masked_var(VALUES, one) == 0  # not 0 / 0


def test_whiten():
    # less the mean 4, by sqrt(8) = 2.828427; 0 outside the mask
    expected = tensor([[-3.0, -2.0, -1.0], [0.0, 1.0, 0.0], [5.0, 0.0, 0.0]]) / 8**0.5
    assert_close(whiten(VALUES, MASK), expected)
    assert_close(whiten(VALUES, MASK, shift_mean=False), (expected + 4) * MASK)
    assert whiten(torch.full((3, 3), 2.0), MASK).abs().max() < 1e-3  # all equal: no division by zero


def test_kl():
    logps = tensor([[-1.0, -2.0, -3.0]] * 3)
    ref_logps = tensor([[-1.0, -3.0, -2.0]] * 3)
    # k1: log ratios 0, 1, -1. k3: exp(-r) - 1 + r = 0, exp(-1) = 0.367879, exp(1) - 2 = 0.718282
    assert_close(kl_estimate(logps, ref_logps), tensor([[0.0, 1.0, -1.0]] * 3))
    assert_close(kl_estimate(logps, ref_logps, "k3"), tensor([[0.0, 0.367879, 0.718282]] * 3), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="k1 or k3, not k2"):
        kl_estimate(logps, ref_logps, "k2")


def test_both_kl_estimates_are_unbiased():
    policy, ref = tensor([0.7, 0.2, 0.1]).log(), tensor([0.3, 0.3, 0.4]).log()
    exact = (policy.exp() * (policy - ref)).sum()
    for kind in ("k1", "k3"):  # the mean over tokens that the policy draws
        assert_close((policy.exp() * kl_estimate(policy, ref, kind)).sum(), exact)


def test_k3_keeps_small_differences():
    """r^2 / 2 for a small r, which exp(-r) - 1 + r would lose in float32's rounding."""
    small = kl_estimate(tensor([1e-3]), tensor([0.0]), "k3")
    assert_close(small, tensor([5e-7]), rtol=0.005, atol=0.0)


def test_token_rewards():
    scores, kl = tensor([10.0, 20.0, 30.0]), tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 99.0], [6.0, 99.0, 99.0]])
    # -0.5 x kl on each token, and the score on the last: 10 - 1.5, 20 - 2.5, 30 - 3
    expected = tensor([[-0.5, -1.0, 8.5], [-2.0, 17.5, 0.0], [27.0, 0.0, 0.0]])
    assert_close(token_rewards(scores, kl, MASK, 0.5), expected)


def test_completion_of_no_tokens_is_rewarded_nothing():
    mask = MASK.clone()
    mask[2] = 0
    rewards = token_rewards(tensor([10.0, 20.0, 30.0]), torch.zeros(3, 3), mask, 0.5)
    assert_close(rewards, tensor([[0.0, 0.0, 10.0], [0.0, 20.0, 0.0], [0.0, 0.0, 0.0]]))


def test_gae():
    rewards = tensor([[0.0, 0.0, 8.0], [0.0, 4.0, 99.0], [2.0, 99.0, 99.0]]) * MASK
    values = tensor([[2.0, 4.0, 6.0], [1.0, 2.0, 99.0], [5.0, 99.0, 99.0]])
    # gamma = 0.5, lambda = 0.5, gamma x lambda = 0.25; delta_t = r_t + 0.5 v_t+1 - v_t, A_t = delta_t + 0.25 A_t+1
    # first:  deltas 0 + 2 - 2 = 0, 0 + 3 - 4 = -1, 8 - 6 = 2; from the end A = 2, -1 + 0.5 = -0.5, 0 - 0.125 = -0.125
    # second: deltas 0 + 1 - 1 = 0, 4 - 2 = 2, for nothing follows; A = 2, 0 + 0.5 = 0.5
    # third:  2 - 5 = -3
    advantages, returns = gae(rewards, values, MASK, gamma=0.5, lam=0.5)
    assert_close(advantages, tensor([[-0.125, -0.5, 2.0], [0.5, 2.0, 0.0], [-3.0, 0.0, 0.0]]))
    # returns are advantages + values
    assert_close(returns, tensor([[1.875, 3.5, 8.0], [1.5, 4.0, 0.0], [2.0, 0.0, 0.0]]))


def test_gae_at_its_ends():
    rewards = tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 0.0], [6.0, 0.0, 0.0]])
    # lambda = 1, gamma = 1: what is still to come, less the forecast; the return is the sum of the rewards to come
    _, returns = gae(rewards, VALUES, MASK, gamma=1.0, lam=1.0)
    assert_close(returns, tensor([[6.0, 5.0, 3.0], [9.0, 5.0, 0.0], [6.0, 0.0, 0.0]]))
    # lambda = 0: one step ahead. 1 + 2 - 1, 2 + 3 - 2, 3 - 3; 4 + 5 - 4, 5 - 5; 6 - 9
    advantages, _ = gae(rewards, VALUES, MASK, gamma=1.0, lam=0.0)
    assert_close(advantages, tensor([[2.0, 3.0, 0.0], [5.0, 0.0, 0.0], [-3.0, 0.0, 0.0]]))


def test_value_loss():
    old = torch.zeros(3, 3)
    values = tensor([[0.1, 1.0, -1.0], [0.5, 0.0, 99.0], [0.2, 99.0, 99.0]])
    returns = tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0], [0.2, 0.0, 0.0]])
    # held within 0.2 of 0: 0.1, 0.2, -0.2, 0.2, 0, 0.2
    # errors: 0.81, 0, 4, 0.25, 1, 0; held: 0.81, 0.64, 1.44, 0.04, 1, 0; the worse: 0.81, 0.64, 4, 0.25, 1, 0 = 6.7
    loss, clipped = clipped_value_loss(values, old, returns, MASK, cliprange=0.2)
    assert_close(loss, tensor(0.5 * 6.7 / 6))
    assert_close(clipped, tensor(1 / 6))  # the second


def test_value_loss_has_no_gradient_where_the_value_ran_ahead():
    values = torch.ones(3, 3, requires_grad=True)  # from 0 to 1, the return 1: far enough for one batch
    clipped_value_loss(values, torch.zeros(3, 3), torch.ones(3, 3), MASK, 0.2)[0].backward()
    assert values.grad.eq(0).all()
    values = torch.ones(3, 3, requires_grad=True)  # away from the return: to be called back
    clipped_value_loss(values, torch.zeros(3, 3), -torch.ones(3, 3), MASK, 0.2)[0].backward()
    assert_close(values.grad, 2.0 / 6 * MASK)


def test_policy_loss():
    ratio = tensor([[1.0, 1.5, 0.5], [1.5, 0.5, 9.0], [1.1, 9.0, 9.0]])
    advantages = tensor([[2.0, 1.0, 1.0], [-1.0, -1.0, 9.0], [1.0, 9.0, 9.0]])
    # plain: 2, 1.5, 0.5, -1.5, -0.5, 1.1; ratio within 0.8 to 1.2: 2, 1.2, 0.8, -1.2, -0.8, 1.1
    # the lesser: 2, 1.2, 0.5, -1.5, -0.8, 1.1 = 2.5
    loss, clipped = clipped_policy_loss(ratio.log(), torch.zeros(3, 3), advantages, MASK, cliprange=0.2)
    assert_close(loss, tensor(-2.5 / 6))
    assert_close(clipped, tensor(2 / 6))  # the second and the fifth


def test_policy_loss_has_the_policy_gradient_at_ratio_one():
    logps = torch.full((3, 3), math.log(0.3), requires_grad=True)
    advantages = tensor([[2.0, -1.0, 0.5], [1.0, -3.0, 9.0], [4.0, 9.0, 9.0]])
    clipped_policy_loss(logps, logps.detach(), advantages, MASK, 0.2)[0].backward()
    assert_close(logps.grad, -advantages * MASK / 6)


def test_explained_variance():
    returns = tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 0.0], [9.0, 0.0, 0.0]])  # variance 8, as VALUES
    assert_close(explained_variance(VALUES, returns, MASK), tensor(1.0))
    assert_close(explained_variance(torch.full((3, 3), 7.0), returns, MASK), tensor(0.0), atol=1e-6, rtol=0)
    # half of each return: what is left is half of it, of a quarter of the variance
    assert_close(explained_variance(returns / 2, returns, MASK), tensor(0.75))
    # the wrong sign: what is left is twice the return, of four times the variance
    assert_close(explained_variance(-returns, returns, MASK), tensor(-3.0))
    assert explained_variance(VALUES, torch.ones(3, 3), MASK).isfinite()


def test_kl_coefficient_is_steered_to_the_target():
    # twice the target: the error of 1 is held at 0.2, and 100 of 1000 completions make a tenth of it
    assert adapted_kl_coef(0.5, 12.0, 6.0, 100, 1000) == pytest.approx(0.5 * 1.02)
    assert adapted_kl_coef(0.5, 0.0, 6.0, 100, 1000) == pytest.approx(0.5 * 0.98)
    assert adapted_kl_coef(0.5, 6.6, 6.0, 100, 1000) == pytest.approx(0.5 * 1.01)
    assert adapted_kl_coef(0.5, 6.0, 6.0, 100, 1000) == 0.5


def test_moments_are_those_of_everything_so_far():
    parts, moments = [tensor([1.0, 2.0, 6.0]), tensor([4.0]), tensor([-3.0, 8.0])], (0.0, 0.0, 0.0)
    for part in parts:
        moments = merged_moments(moments, part)
    everything = torch.cat(parts)
    count, mean, deviations = moments
    assert count == 6 and mean == pytest.approx(3.0)
    assert deviations / (count - 1) == pytest.approx(everything.var().item())
