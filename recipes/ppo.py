"""Rung 3b, PPO: the chat model learns to reply as the reward model likes, without going far from where it started.

accelerate launch recipes/ppo.py --config recipes/nano/ppo.yaml
"""

from groundup.callbacks import watch
from groundup.command_line import run
from groundup.configs import DataArguments, RewardArguments, RunArguments
from groundup.data import load_prompts
from groundup.model import check_model_path, context_length, load_causal_model
from groundup.ppo import PPOConfig, PPOTrainer, load_critic
from groundup.rewards import build_rewards
from groundup.stage import finish, start
from groundup.tokenizer import check_judges, check_tokenizer, unfit_prompt
from transformers import AutoTokenizer
from trl import ModelConfig, get_peft_config


def main(
    data_args: DataArguments,
    reward_args: RewardArguments,
    training_args: PPOConfig,
    model_args: ModelConfig,
    run_args: RunArguments,
):
    # 1. Arguments
    check_model_path(model_args.model_name_or_path)
    limits = reward_args.max_faulty_share, reward_args.reward_timeout
    rewards, training_args.reward_weights = build_rewards(reward_args.rewards, *limits)
    start_of_critic = training_args.critic_model_name_or_path or next(
        (r for r in rewards if isinstance(r, str)), model_args.model_name_or_path
    )
    check_model_path(start_of_critic)
    parent = model_args.model_name_or_path
    stage = start("ppo", training_args, model_args, run_args, reward_args, data_args, parent=parent)

    # 2. Tokenizer and data
    tokenizer = AutoTokenizer.from_pretrained(parent)
    check_tokenizer(tokenizer, parent)
    check_judges(parent, tokenizer, rewards, None if training_args.shared_critic else start_of_critic)
    unfit = unfit_prompt(tokenizer, training_args.max_completion_length, context_length(model_args, tokenizer))
    prompts = load_prompts(data_args, seed=training_args.seed, unfit=unfit)
    stage.uses(prompts.provenance)

    # 3. Models: the policy, and a critic that starts where the reward model stands, unless the policy's trunk is its own
    policy = load_causal_model(model_args)
    critic = None if training_args.shared_critic else load_critic(start_of_critic)

    # 4. Trainer
    trainer = PPOTrainer(
        model=policy,
        critic=critic,
        reward_funcs=rewards,
        args=training_args,
        train_dataset=prompts.rows,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )
    watch(trainer, stage, run_args)

    # 5. Train and hand over
    trainer.train(resume_from_checkpoint=stage.checkpoint)
    finish(stage, trainer)


if __name__ == "__main__":
    run(main)
