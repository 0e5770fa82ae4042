"""PPO on TRL's rollout engine: what the engine is asked for, and what it hands back, against the formulas."""

import inspect

import pytest
import torch
import trl
from datasets import Dataset
from groundup import objectives
from groundup.chat import TURN_END
from groundup.errors import InputError
from groundup.grpo import EpochRepeatSampler
from groundup.guarding import guard
from groundup.ppo import Critic, PPOConfig, PPOTrainer, load_critic
from transformers import AutoModelForCausalLM

# What groundup.ppo and groundup.grpo override, call or copy, as it stands in the TRL that pyproject.toml pins.
SIGNATURES = {
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_generate_and_score_completions": ["self", "inputs"],
    "_compute_loss": ["self", "model", "inputs"],
    "_prepare_inputs": ["self", "generation_batch"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    "_get_train_sampler": ["self", "dataset"],
    "create_optimizer": ["self", "model"],
}
FIRST_ARGUMENTS = {
    "_get_per_token_logps_and_entropies": ["self", "model", "input_ids", "attention_mask", "logits_to_keep"],
    "_run_epoch": ["self", "model", "epoch"],
}


@pytest.mark.parametrize("name", [*SIGNATURES, *FIRST_ARGUMENTS])
def test_trl_still_has_what_we_override(name):
    method = getattr(trl.GRPOTrainer, name, None)
    assert method is not None, f"TRL {trl.__version__} has no GRPOTrainer.{name}: groundup.ppo or groundup.grpo needs it"
    found = list(inspect.signature(method).parameters)
    expected = SIGNATURES.get(name) or FIRST_ARGUMENTS[name]
    if name in FIRST_ARGUMENTS:
        found = found[: len(expected)]
    assert found == expected, f"TRL {trl.__version__} changed GRPOTrainer.{name}: read it before raising the pin on trl"


def test_trl_still_hands_over_what_we_read():
    source = inspect.getsource(trl.GRPOTrainer)
    for needed in (
        "advantages.dim() == 1",  # (B, T) advantages are taken as they are
        'output["old_per_token_logps"]',
        'output["ref_per_token_logps"]',
        "self._buffered_inputs",
        "current_gradient_accumulation_steps",
    ):
        assert needed in source, f"TRL {trl.__version__}: GRPOTrainer no longer has `{needed}`, which groundup.ppo relies on"
    parameters = list(inspect.signature(trl.trainer.utils.RepeatSampler.__init__).parameters)
    assert parameters == ["self", "data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed"]
    assert issubclass(EpochRepeatSampler, trl.trainer.utils.RepeatSampler)


# -- a trainer whose rollout is known ------------------------------------------------------------------------------------

WORDS = ["Ada lives in Dorn", "no", "Velm is a town that is far", "yes it is so"]


def words_rewarded(completions, **kwargs):
    """Something that differs from reply to reply and is easy to say again: the number of letters a."""
    return [float((c if isinstance(c, str) else c[0]["content"]).count("a")) for c in completions]


def nothing_rewarded(completions, **kwargs):
    return [0.0] * len(completions)


def not_applicable(completions, **kwargs):
    return [None] * len(completions)


class Watched(PPOTrainer):
    """PPOTrainer that says what WORDS say, the even ones with an end of turn, and notes what it computes."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rollouts, self.losses = [], []

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        said = []
        for i in range(len(prompt_ids)):
            ids = self.processing_class(WORDS[i % len(WORDS)], add_special_tokens=False)["input_ids"][:6]
            said.append([*ids, self.processing_class.eos_token_id] if i % 2 == 0 else ids)
        return said, None

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        self.rollouts.append({key: value.clone() for key, value in batch.items() if isinstance(value, torch.Tensor)})
        return batch

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        if "returns" in inputs:
            with torch.no_grad():
                ids, mask, length = whole(inputs)
                logps = plain_logps(model, ids, mask, length)
                hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
                shared = self.critic(hidden[:, -length - 1 : -1]) if self.shared else None
                values = shared if self.shared else plain_values(self.critic.model, ids, mask, length)
            kept = {key: value.clone() for key, value in inputs.items() if isinstance(value, torch.Tensor)}
            self.losses.append((loss.detach().clone(), logps, values, kept))
        return loss


def whole(batch):
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    return ids, torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1), batch["completion_ids"].size(1)


def plain_logps(model, ids, mask, length):
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    return logits.gather(2, ids[:, 1:, None])[:, -length:, 0]


def plain_values(model, ids, mask, length):
    """Value before each token of the completion: the score of the text up to the token before it, one by one."""
    return model.score(model.model(input_ids=ids, attention_mask=mask).last_hidden_state)[:, -length - 1 : -1, 0]


def build(tiny_base, tokenizer, directory, rewards=words_rewarded, weights=None, kind=Watched, prompts=None, **settings):
    torch.manual_seed(1)
    policy = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    critic = None if settings.get("shared_critic") else load_critic(str(tiny_base))
    args = PPOConfig(
        **{
            "output_dir": str(directory),
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "steps_per_generation": 2,
            "max_completion_length": 7,
            "learning_rate": 1e-2,
            "critic_learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "kl_coef": 0.1,
            "missing_eos_penalty": 3.0,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            **settings,
        }
    )
    args.reward_weights = weights
    texts = prompts or [[{"role": "user", "content": f"Where does {name} live?"}] for name in ("Ada", "Bruno", "Clara") * 4]
    return kind(
        model=policy,
        critic=critic,
        reward_funcs=rewards,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
        processing_class=tokenizer,
    )


@pytest.fixture(scope="module")
def trained(tiny_base, tokenizer, tmp_path_factory):
    """Two rollouts of eight, each passed over twice in two minibatches."""
    trainer = build(tiny_base, tokenizer, tmp_path_factory.mktemp("ppo"), num_iterations=2, max_steps=8)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def judge(tiny_base, tokenizer, tmp_path_factory):
    """Directory of a random reward model."""
    directory = tmp_path_factory.mktemp("judge")
    torch.manual_seed(7)
    load_critic(str(tiny_base)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


# -- the rollout -----------------------------------------------------------------------------------------------------------


def test_rollout_is_what_the_formulas_say(trained, tiny_base, tokenizer):
    """Of the first rollout, on which policy, reference and critic still have the weights they started with."""
    batch, args = trained.rollouts[0], trained.args
    start = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    torch.manual_seed(1)
    critic = load_critic(str(tiny_base)).eval()
    ids, attention, length = whole(batch)
    mask = batch["completion_mask"].float()
    with torch.no_grad():
        logps = plain_logps(start, ids, attention, length)
        values = plain_values(critic, ids, attention, length) * mask
    torch.testing.assert_close(batch["old_per_token_logps"] * mask, logps * mask, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(batch["values"], values, atol=1e-5, rtol=1e-4)
    texts = tokenizer.batch_decode(batch["completion_ids"], skip_special_tokens=True)
    ended = (batch["completion_ids"] == tokenizer.convert_tokens_to_ids(TURN_END)).any(1)
    assert ended.tolist() == [True, False] * 4
    scores = torch.tensor(words_rewarded(texts)) - args.missing_eos_penalty * (~ended).float()
    rewards = objectives.token_rewards(scores, torch.zeros_like(mask), mask, args.kl_coef)  # policy == reference
    advantages, returns = objectives.gae(rewards, values, mask, args.gamma, args.lam)
    torch.testing.assert_close(batch["returns"], returns, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(batch["advantages"], objectives.whiten(advantages, mask), atol=1e-4, rtol=1e-4)
    logged = next(line for line in trained.state.log_history if "objective/score" in line)
    assert logged["objective/score"] == pytest.approx(scores.mean().item(), abs=1e-5)
    assert logged["ended"] == 0.5
    assert logged["objective/kl"] == pytest.approx(0.0, abs=1e-5)


def test_kl_to_the_reference_is_taken_off_the_reward(trained, tiny_base):
    """Of the second rollout, when the policy has moved."""
    batch, args = trained.rollouts[1], trained.args
    ids, attention, length = whole(batch)
    mask = batch["completion_mask"].float()
    reference = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    with torch.no_grad():
        kl = (batch["old_per_token_logps"] - plain_logps(reference, ids, attention, length)) * mask
    assert kl.abs().max() > 0.01
    texts = trained.processing_class.batch_decode(batch["completion_ids"], skip_special_tokens=True)
    scores = torch.tensor(words_rewarded(texts)) - args.missing_eos_penalty * torch.tensor([0.0, 1.0] * 4)
    rewards = objectives.token_rewards(scores, kl, mask, args.kl_coef)
    _, returns = objectives.gae(rewards, batch["values"], mask, args.gamma, args.lam)
    torch.testing.assert_close(batch["returns"], returns, atol=1e-4, rtol=1e-4)
    logged = [line["objective/kl"] for line in trained.state.log_history if "objective/kl" in line]
    assert logged[1] == pytest.approx(kl.sum(1).mean().item(), abs=1e-4)


def test_completion_that_does_not_end_its_turn_pays(tiny_base, tokenizer, tmp_path):
    trainer = build(tiny_base, tokenizer, tmp_path, nothing_rewarded, kl_coef=0.0, lam=1.0, missing_eos_penalty=3.0, max_steps=1)
    trainer.train()
    (batch,) = trainer.rollouts
    mask = batch["completion_mask"].bool()
    for row, expected in enumerate([0.0, -3.0] * 4):  # undiscounted returns are the score, at every token
        assert torch.allclose(batch["returns"][row][mask[row]], torch.tensor(expected), atol=1e-5)
    logged = {key for line in trainer.state.log_history for key in line}
    assert "objective/score" in logged and "objective/kl" not in logged  # no reference is asked, and none is said to be 0 nats away


def test_reward_model_and_function_are_weighed(tiny_base, tokenizer, judge, tmp_path):
    scorer = load_critic(str(judge)).eval()
    trainer = build(
        tiny_base,
        tokenizer,
        tmp_path,
        [str(judge), words_rewarded, not_applicable],
        [2.0, 0.5, 1.0],
        missing_eos_penalty=0.0,
        kl_coef=0.0,
        lam=1.0,
        max_steps=1,
    )
    trainer.train()
    (batch,) = trainer.rollouts
    prompts = tokenizer.batch_decode(batch["prompt_ids"], skip_special_tokens=False)
    replies = tokenizer.batch_decode(batch["completion_ids"], skip_special_tokens=True)
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        question = prompt.partition("<|im_start|>user\n")[2].partition(TURN_END)[0]
        chat = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
        ids = torch.tensor([tokenizer.apply_chat_template(chat)["input_ids"]])
        with torch.no_grad():
            score = 2.0 * scorer(input_ids=ids).logits[0, 0].item() + 0.5 * words_rewarded([reply])[0]
        assert batch["returns"][row, 0].item() == pytest.approx(score, abs=1e-4)


# -- the update ------------------------------------------------------------------------------------------------------------


def test_loss_is_the_clipped_policy_loss_and_the_clipped_value_loss(trained):
    args = trained.args
    assert len(trained.losses) == 8
    far = 0.0
    for loss, logps, values, batch in trained.losses:
        mask = batch["completion_mask"].float()
        policy, clipped = objectives.clipped_policy_loss(
            logps, batch["old_per_token_logps"], batch["advantages"], mask, args.epsilon
        )
        value, _ = objectives.clipped_value_loss(values, batch["values"], batch["returns"], mask, args.cliprange_value)
        assert loss.item() == pytest.approx((policy + args.vf_coef * value).item(), abs=1e-4, rel=1e-4)
        far = max(far, clipped.item())
    assert far > 0  # or the clipping was not compared


def test_second_pass_is_over_the_same_rollout(trained):
    """num_iterations=2: the old log-probabilities stay those of the rollout."""
    firsts, seconds = trained.losses[:2], trained.losses[2:4]
    for (_, before, _, first), (_, after, _, second) in zip(firsts, seconds, strict=True):
        for key in ("completion_ids", "old_per_token_logps", "values", "returns", "advantages"):
            assert torch.equal(first[key], second[key])
        assert not torch.allclose(before, after, atol=1e-3)
    assert len(trained.rollouts) == 2


def test_accumulation_divides_both_losses(tiny_base, tokenizer, tmp_path):
    trainer = build(tiny_base, tokenizer, tmp_path, gradient_accumulation_steps=2, max_steps=1)
    trainer.train()
    assert len(trainer.losses) == 2 and trainer.state.global_step == 1
    for loss, logps, values, batch in trainer.losses:
        mask = batch["completion_mask"].float()
        policy, _ = objectives.clipped_policy_loss(logps, batch["old_per_token_logps"], batch["advantages"], mask, 0.2)
        value, _ = objectives.clipped_value_loss(values, batch["values"], batch["returns"], mask, 0.2)
        assert loss.item() == pytest.approx((policy + 0.5 * value).item() / 2, abs=1e-4)


@pytest.mark.parametrize(("steps_per_generation", "iterations"), [(1, 1), (2, 1), (2, 2)])
def test_each_model_sees_each_completion_as_often_as_it_must(
    tiny_base, tokenizer, judge, tmp_path, steps_per_generation, iterations
):
    trainer = build(
        tiny_base,
        tokenizer,
        tmp_path,
        [str(judge)],
        steps_per_generation=steps_per_generation,
        num_iterations=iterations,
        max_steps=steps_per_generation * iterations,
    )
    seen = dict.fromkeys(("policy", "reference", "critic", "judge"), 0)

    def count(name):
        def hook(module, args, kwargs):
            seen[name] += (kwargs["input_ids"] if "input_ids" in kwargs else args[0]).size(0)

        return hook

    modules = {
        "policy": trainer.model.model,
        "reference": trainer.ref_model.model,
        "critic": trainer.critic.model.model,
        "judge": trainer.reward_funcs[0].model,
    }
    for name, module in modules.items():
        module.register_forward_pre_hook(count(name), with_kwargs=True)
    trainer.__class__ = type("Plain", (PPOTrainer,), {"_generate_single_turn": Watched._generate_single_turn})
    trainer.train()
    rows = 4 * steps_per_generation
    # the policy: once for the old log-probabilities and once a pass with a gradient; the critic alike
    assert seen == {
        "policy": rows * (1 + iterations),
        "reference": rows,
        "critic": rows * (1 + iterations),
        "judge": rows,
    }


def test_critic_learns_and_its_gradients_do_not_pile_up(trained, tiny_base):
    torch.manual_seed(1)
    start = load_critic(str(tiny_base)).state_dict()
    now = trained.critic.model.state_dict()
    assert not [key for key in now if torch.equal(now[key], start[key])]
    # The Trainer clears the gradients of its own model only.
    assert all(parameter.grad is None for parameter in trained.critic.parameters())


def test_critic_is_stepped_by_the_gradient_of_its_own_minibatch(tiny_base, tokenizer, tmp_path):
    """With SGD and no clipping a step is learning rate x gradient; here of the second minibatch."""
    trainer = build(
        tiny_base, tokenizer, tmp_path, optim="sgd", max_grad_norm=0.0, critic_learning_rate=0.5, learning_rate=1e-6, vf_coef=1.0
    )
    before = []

    class Keep(Watched):
        def _compute_loss(self, model, inputs):
            before.append({name: p.detach().clone() for name, p in self.critic.model.named_parameters()})
            return super()._compute_loss(model, inputs)

    trainer.__class__ = Keep
    trainer.train()
    _, _, _, batch = trainer.losses[1]
    critic = load_critic(str(tiny_base))
    critic.load_state_dict(before[1])
    ids, attention, length = whole(batch)
    values = plain_values(critic, ids, attention, length)
    loss, _ = objectives.clipped_value_loss(
        values, batch["values"], batch["returns"], batch["completion_mask"].float(), trainer.args.cliprange_value
    )
    loss.backward()
    after = dict(trainer.critic.model.named_parameters())
    for name, parameter in critic.named_parameters():
        torch.testing.assert_close(after[name].detach(), before[1][name] - 0.5 * parameter.grad, atol=2e-5, rtol=1e-3)


def test_critics_gradient_is_clipped(tiny_base, tokenizer, tmp_path):
    trainer = build(
        tiny_base, tokenizer, tmp_path, optim="sgd", max_grad_norm=0.01, critic_learning_rate=1.0, vf_coef=100.0, max_steps=1
    )
    before = {name: p.detach().clone() for name, p in trainer.critic.model.named_parameters()}
    trainer.train()
    step = sum((p.detach() - before[name]).square().sum() for name, p in trainer.critic.model.named_parameters()).sqrt()
    assert step.item() == pytest.approx(0.01, rel=1e-2)


def test_critic_reads_the_head_at_every_position(tiny_base, tokenizer):
    """Values are the scores that the reward model would give to the text so far."""
    torch.manual_seed(7)
    model = load_critic(str(tiny_base)).eval()
    ids = torch.tensor([tokenizer("Ada lives in Dorn and keeps a cat.", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        values = Critic(model)(ids, torch.ones_like(ids))
        for length in range(1, ids.size(1) + 1):
            score = model(input_ids=ids[:, :length]).logits[0, 0]
            assert values[0, length - 1].item() == pytest.approx(score.item(), abs=1e-5)


# -- what it takes ---------------------------------------------------------------------------------------------------------


def test_plain_text_prompts(tiny_base, tokenizer, tmp_path):
    heard = []

    def rewarded(prompts, completions, **kwargs):
        heard.append((prompts, completions))
        return words_rewarded(completions)

    texts = ["The home of Ada is in", "Bruno works as a", "A baker", "In Velm you may meet"] * 2
    trainer = build(tiny_base, tokenizer, tmp_path, rewarded, kind=PPOTrainer, prompts=texts)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    (prompts, completions), *_ = heard
    assert sorted(prompts) == sorted(texts) and all(isinstance(completion, str) for completion in completions)
    assert not [name for name, p in trainer.model.named_parameters() if torch.equal(p, before[name])]


def test_evaluation_scores_and_does_not_train(tiny_base, tokenizer, tmp_path):
    trainer = build(tiny_base, tokenizer, tmp_path, kind=PPOTrainer, per_device_eval_batch_size=4)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    metrics = trainer.evaluate(Dataset.from_list([{"prompt": [{"role": "user", "content": "Where is Ada?"}]}] * 4))
    assert "eval_reward" in metrics
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())


@pytest.mark.parametrize(
    ("setting", "says"),
    [({"beta": 0.1}, "kl_coef"), ({"loss_type": "dapo"}, "loss_type: dapo"), ({"kl_estimator": "k2"}, "k1 or k3")],
)
def test_settings_that_are_not_ppo(tmp_path, setting, says):
    with pytest.raises(InputError, match=says):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **setting)


def test_one_completion_a_prompt_is_the_default(tmp_path):
    assert PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False).num_generations == 1
    assert PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, num_generations=4).num_generations == 4


# -- a critic on the policy's trunk ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps_per_generation", "iterations"), [(1, 1), (2, 2)])
def test_shared_critic_reads_the_policys_own_pass(tiny_base, tokenizer, tmp_path, steps_per_generation, iterations):
    """Values come with log-probabilities: of the rollout and of each minibatch, the policy makes one pass each."""
    steps = steps_per_generation * iterations
    settings = {"steps_per_generation": steps_per_generation, "num_iterations": iterations, "max_steps": steps}
    trainer = build(tiny_base, tokenizer, tmp_path, kind=PPOTrainer, shared_critic=True, **settings)
    trainer.__class__ = type("Plain", (PPOTrainer,), {"_generate_single_turn": Watched._generate_single_turn})
    rows = []
    trainer.trunk.register_forward_pre_hook(lambda m, args, kwargs: rows.append(kwargs["input_ids"].size(0)), with_kwargs=True)
    before = {name: tensor.clone() for name, tensor in trainer.critic.state_dict().items()}
    trainer.train()
    completions = 4 * steps_per_generation
    assert sum(rows) == completions * (1 + iterations)
    assert not any(torch.equal(tensor, before[name]) for name, tensor in trainer.critic.state_dict().items())


def test_shared_critic_is_clipped_regression_on_the_returns(tiny_base, tokenizer, tmp_path):
    trainer = build(tiny_base, tokenizer, tmp_path, shared_critic=True, num_iterations=2, max_steps=8)
    torch.nn.init.normal_(trainer.critic.score.weight, std=0.3)
    trainer.train()
    first = trainer.rollouts[0]
    assert first["values"].abs().max() > 0.1
    for loss, logps, values, batch in trainer.losses:
        mask, args = batch["completion_mask"].float(), trainer.args
        policy, _ = objectives.clipped_policy_loss(logps, batch["old_per_token_logps"], batch["advantages"], mask, args.epsilon)
        value, _ = objectives.clipped_value_loss(values, batch["values"], batch["returns"], mask, args.cliprange_value)
        assert loss.item() == pytest.approx((policy + args.vf_coef * value).item(), abs=1e-4, rel=1e-4)


def test_which_critic_is_said_once(tiny_base, tokenizer, tmp_path):
    with pytest.raises(InputError, match="a shared critic has no weights of its own"):
        build(tiny_base, tokenizer, tmp_path, shared_critic=True, critic_model_name_or_path=str(tiny_base))


# -- what steers a run as it goes ------------------------------------------------------------------------------------------


def test_critic_warms_up_alone(tiny_base, tokenizer, tmp_path):
    trainer = build(tiny_base, tokenizer, tmp_path, critic_warmup_steps=2, max_steps=2, weight_decay=0.0)
    policy = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    critic = {name: tensor.clone() for name, tensor in trainer.critic.state_dict().items()}
    trainer.train()
    assert all(torch.equal(tensor, policy[name]) for name, tensor in trainer.model.state_dict().items())
    assert not all(torch.equal(tensor, critic[name]) for name, tensor in trainer.critic.state_dict().items())


def test_kl_coefficient_follows_its_target_and_survives_a_checkpoint(tiny_base, tokenizer, tmp_path):
    settings = {"kl_target": 1e-3, "kl_horizon": 80, "normalize_scores": True, "save_strategy": "steps", "save_steps": 2}
    trainer = build(tiny_base, tokenizer, tmp_path, max_steps=4, **settings)
    trainer.train()
    logged = [line["objective/kl"] for line in trainer.state.log_history if "objective/kl" in line]
    expected = 0.1
    for kl in logged:
        expected = objectives.adapted_kl_coef(expected, kl, 1e-3, 8, 80)
    assert trainer.kl_coef == pytest.approx(expected) and trainer.kl_coef != 0.1
    assert [line["kl_coef"] for line in trainer.state.log_history if "kl_coef" in line][-1] == pytest.approx(expected)
    again = build(tiny_base, tokenizer, tmp_path, max_steps=4, **settings)
    again.create_optimizer_and_scheduler(4)
    again._load_optimizer_and_scheduler(str(tmp_path / "checkpoint-4"))
    assert (again.kl_coef, again.moments) == (trainer.kl_coef, trainer.moments) and again.moments[0] == 16


def test_scores_are_normalised_then_clipped(tiny_base, tokenizer, tmp_path):
    settings = {"kl_coef": 0.0, "lam": 1.0, "missing_eos_penalty": 0.0, "max_steps": 1}
    plain = build(tiny_base, tokenizer, tmp_path, **settings)
    plain.train()
    normal = build(tiny_base, tokenizer, tmp_path, normalize_scores=True, clip_score=0.5, **settings)
    normal.train()
    scores, found = plain.rollouts[0]["returns"][:, 0], normal.rollouts[0]["returns"][:, 0]
    expected = ((scores - scores.mean()) / scores.std()).clamp(-0.5, 0.5)
    assert expected.unique().numel() > 2 or expected.abs().max() == 0.5
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("wrong", [{"kl_target": 0.0}, {"clip_score": -1.0}, {"kl_horizon": 0}])
def test_limits_are_positive(tmp_path, wrong):
    with pytest.raises(InputError, match="is not above 0"):
        PPOConfig(str(tmp_path), use_cpu=True, bf16=False, **wrong)


def test_a_completion_at_fault_moves_nothing(tiny_base, tokenizer, tmp_path):
    """Whatever else it is rewarded with, policy and critic are the same after a step."""
    found = []
    for other in (0.0, 100.0):

        def given(completions, other=other, **kwargs):
            return [other * (i == 2) for i in range(len(completions))]

        def faulty(completions, **kwargs):
            return [float("nan") if i == 2 else float(i) for i in range(len(completions))]

        settings = {"max_steps": 2, "normalize_scores": True}
        trainer = build(tiny_base, tokenizer, tmp_path, [guard(faulty, "faulty"), guard(given, "given")], [1.0, 1.0], **settings)
        trainer.train()
        assert trainer.rollouts[0]["completion_mask"].any(1).tolist() == [i != 2 for i in range(8)]
        found.append([*trainer.model.parameters(), *trainer.critic.parameters()])
        assert trainer.moments[0] == 7
    assert all(torch.isfinite(x).all() and torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_too_few_prompts_are_refused(tiny_base, tokenizer, tmp_path):
    """TRL would succeed with no step taken."""
    prompts = [[{"role": "user", "content": f"Where is {i}?"}] for i in range(8)]
    build(tiny_base, tokenizer, tmp_path, prompts=prompts)
    with pytest.raises(InputError, match="7 prompts do not fill one generation batch of 8"):
        build(tiny_base, tokenizer, tmp_path, prompts=prompts[:7])
