"""Rung 2, supervised fine-tuning: the base model learns to answer and to stop.

accelerate launch recipes/sft.py --config recipes/nano/sft.yaml
"""

from groundup.callbacks import watch
from groundup.command_line import run
from groundup.configs import DataArguments, RunArguments
from groundup.data import load_conversations
from groundup.model import check_model_path, context_length, load_causal_model
from groundup.sft import SFTTrainer
from groundup.stage import finish, start
from groundup.tokenizer import check_tokenizer, unfit_conversation
from transformers import AutoTokenizer
from trl import ModelConfig, SFTConfig, get_peft_config


def main(data_args: DataArguments, training_args: SFTConfig, model_args: ModelConfig, run_args: RunArguments):
    # 1. Arguments
    check_model_path(model_args.model_name_or_path)
    training_args.assistant_only_loss = True  # what the user says is given, not learned
    stage = start("sft", training_args, model_args, run_args, data_args, parent=model_args.model_name_or_path)

    # 2. Tokenizer and data
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    check_tokenizer(tokenizer, model_args.model_name_or_path)
    unfit = unfit_conversation(tokenizer, training_args.max_length, context_length(model_args, tokenizer))
    train = load_conversations(data_args, seed=training_args.seed, unfit=unfit)
    test = load_conversations(data_args, "eval", seed=training_args.seed, unfit=unfit)
    stage.uses(train.provenance, test and test.provenance)

    # 3. Model
    model = load_causal_model(model_args)

    # 4. Trainer
    trainer = SFTTrainer(
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
