"""Rung 3 by another road, DPO: the preferred reply becomes likelier and the other less so, with no reward model and no sampling.

accelerate launch recipes/dpo.py --config recipes/nano/dpo.yaml
"""

from groundup.callbacks import watch
from groundup.command_line import run
from groundup.configs import DataArguments, RunArguments
from groundup.data import load_preferences
from groundup.model import check_model_path, context_length, load_causal_model
from groundup.stage import finish, start
from groundup.tokenizer import check_tokenizer, unfit_pair
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, ModelConfig, get_peft_config


def main(data_args: DataArguments, training_args: DPOConfig, model_args: ModelConfig, run_args: RunArguments):
    # 1. Arguments
    parent = model_args.model_name_or_path
    check_model_path(parent)
    stage = start("dpo", training_args, model_args, run_args, data_args, parent=parent)

    # 2. Tokenizer and data
    tokenizer = AutoTokenizer.from_pretrained(parent)
    check_tokenizer(tokenizer, parent)
    unfit = unfit_pair(tokenizer, training_args.max_length, context_length(model_args, tokenizer), cut=True)
    train = load_preferences(data_args, seed=training_args.seed, unfit=unfit)
    test = load_preferences(data_args, "eval", seed=training_args.seed, unfit=unfit)
    stage.uses(train.provenance, test and test.provenance)

    # 3. Model: the chat model; the trainer loads it once more, as the reference that it is measured against
    model = load_causal_model(model_args)

    # 4. Trainer
    trainer = DPOTrainer(
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
