"""Rung 3a, the reward model: which of two replies would people like better?

accelerate launch recipes/reward.py --config recipes/nano/reward.yaml
"""

from groundup.callbacks import watch
from groundup.command_line import run
from groundup.configs import DataArguments, RunArguments
from groundup.data import load_preferences
from groundup.model import check_model_path, context_length, load_reward_model
from groundup.stage import finish, start
from groundup.tokenizer import check_tokenizer, unfit_pair
from transformers import AutoTokenizer
from trl import ModelConfig, RewardConfig, RewardTrainer, get_peft_config


def main(data_args: DataArguments, training_args: RewardConfig, model_args: ModelConfig, run_args: RunArguments):
    # 1. Arguments
    model_args.lora_task_type = "SEQ_CLS"  # with `use_peft`: the head is new, and saved with the adapter
    check_model_path(model_args.model_name_or_path)
    stage = start("reward", training_args, model_args, run_args, data_args, parent=model_args.model_name_or_path)

    # 2. Tokenizer and data
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    check_tokenizer(tokenizer, model_args.model_name_or_path)
    unfit = unfit_pair(tokenizer, training_args.max_length, context_length(model_args, tokenizer))
    train = load_preferences(data_args, seed=training_args.seed, unfit=unfit)
    test = load_preferences(data_args, "eval", seed=training_args.seed, unfit=unfit)
    stage.uses(train.provenance, test and test.provenance)

    # 3. Model: the chat model with a new head, one number for a conversation
    model = load_reward_model(model_args, seed=training_args.seed)

    # 4. Trainer
    trainer = RewardTrainer(
        model=model,
        args=training_args,
        train_dataset=train.rows,
        eval_dataset=test and test.rows,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )
    watch(trainer, stage, run_args)

    # 5. Train and hand over
    trainer.train(resume_from_checkpoint=stage.checkpoint)
    finish(stage, trainer)


if __name__ == "__main__":
    run(main)
