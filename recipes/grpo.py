"""Rung 4, GRPO: the model learns to reason, from problems whose answers can be checked.

accelerate launch recipes/grpo.py --config recipes/nano/grpo.yaml
"""

from dataclasses import asdict

from groundup.callbacks import watch
from groundup.command_line import run
from groundup.configs import CurriculumArguments, DataArguments, GateArguments, RehearsalArguments, RewardArguments, RunArguments
from groundup.data import add_rehearsal, load_problems, load_prompts
from groundup.gate import Gate
from groundup.grpo import GRPOTrainer
from groundup.model import check_model_path, context_length, load_causal_model
from groundup.rewards import build_rewards
from groundup.stage import finish, start
from groundup.tokenizer import check_judges, check_tokenizer, unfit_prompt
from transformers import AutoTokenizer
from trl import GRPOConfig, ModelConfig, get_peft_config


def main(
    data_args: DataArguments,
    rehearsal_args: RehearsalArguments,
    reward_args: RewardArguments,
    gate_args: GateArguments,
    curriculum_args: CurriculumArguments,
    training_args: GRPOConfig,
    model_args: ModelConfig,
    run_args: RunArguments,
):
    # 1. Arguments
    parent = model_args.model_name_or_path
    check_model_path(parent)
    limits = reward_args.max_faulty_share, reward_args.reward_timeout
    rewards, training_args.reward_weights = build_rewards(reward_args.rewards, *limits)  # what is rewarded stands in the YAML
    others = (reward_args, rehearsal_args, gate_args, curriculum_args, data_args)
    stage = start("grpo", training_args, model_args, run_args, *others, parent=parent)

    # 2. Tokenizer and data
    tokenizer = AutoTokenizer.from_pretrained(parent)
    check_tokenizer(tokenizer, parent)
    check_judges(parent, tokenizer, rewards)
    graded = any("answer" in getattr(reward, "columns", ()) for reward in rewards)  # a reward model grades without
    unfit = unfit_prompt(tokenizer, training_args.max_completion_length, context_length(model_args, tokenizer))
    problems = (load_problems if graded else load_prompts)(data_args, seed=training_args.seed, unfit=unfit)
    if rehearsal_args.rehearsal_dataset:
        rehearsal = DataArguments(dataset=rehearsal_args.rehearsal_dataset, max_dropped_share=data_args.max_dropped_share)
        prompts = load_prompts(rehearsal, seed=training_args.seed, unfit=unfit)
        problems = add_rehearsal(problems, prompts, rehearsal_args.rehearsal_share, seed=training_args.seed)
    stage.uses(problems.provenance)

    # 3. Model
    policy = load_causal_model(model_args)

    # 4. Trainer
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=rewards,
        args=training_args,
        train_dataset=problems.rows,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        **asdict(curriculum_args),
    )
    watch(trainer, stage, run_args)
    trainer.add_callback(Gate(trainer, gate_args, stage.directory))  # stops here if there is nothing to learn from

    # 5. Train and hand over
    trainer.train(resume_from_checkpoint=stage.checkpoint)
    finish(stage, trainer)


if __name__ == "__main__":
    run(main)
