import torch
from safetensors.torch import load_file


def test_critic_is_trained_and_is_not_the_reward_model(rungs):
    trained = rungs["ppo"]
    reward = rungs["reward"].weights()
    (scorer,) = [f for f in trained.trainer.reward_funcs if isinstance(f, torch.nn.Module)]
    scorer = scorer.state_dict()
    critic = trained.trainer.critic.model.state_dict()
    assert critic.keys() == reward.keys() == scorer.keys()
    assert not [key for key in critic if torch.equal(critic[key], reward[key])]
    assert all(torch.equal(scorer[key], reward[key]) for key in reward)  # what judges does not learn


def test_critic_is_in_every_checkpoint_and_not_in_the_stage(rungs):
    directory = rungs["ppo"].directory
    assert not (directory / "critic.safetensors").exists()
    kept = [load_file(path / "critic.safetensors") for path in sorted(directory.glob("checkpoint-*"))]
    assert len(kept) == 2
    now = rungs["ppo"].trainer.critic.model.state_dict()
    assert all(torch.equal(kept[-1][key], now[key]) for key in now)
    assert not any(torch.equal(kept[0][key], now[key]) for key in now)


def test_what_is_logged(rungs):
    metrics = rungs["ppo"].record["metrics"]
    for name in ("objective/kl", "objective/score", "objective/returns", "value_loss", "explained_variance", "ended"):
        assert name in metrics
    assert "rewards/taste_reward/mean" in metrics  # at weight 0 it is watched
    assert metrics["objective/score"] <= metrics["reward"]  # less the penalty for not ending


def test_reference_is_the_chat_model(rungs):
    trainer = rungs["ppo"].trainer
    reference, start = trainer.ref_model.state_dict(), rungs["sft"].weights()
    assert all(torch.equal(reference[key], start[key]) for key in start)
    assert trainer.beta == 0.0  # no KL term in the loss
