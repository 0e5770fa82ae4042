"""Rung 1, pre-training: from random weights, a base model learns to go on with text.

accelerate launch recipes/pretrain.py --config recipes/nano/pretrain.yaml
"""

from groundup.callbacks import watch
from groundup.command_line import run
from groundup.configs import DataArguments, ModelArguments, RunArguments
from groundup.head import chunked_loss
from groundup.model import build_model, config_from_arguments, count_parameters
from groundup.optim import muon
from groundup.pretraining import PretrainTrainer, apply_dial, open_tokens
from groundup.stage import finish, save_random_init, start
from groundup.tokenizer import load_tokenizer
from transformers import TrainingArguments


def main(data_args: DataArguments, model_args: ModelArguments, training_args: TrainingArguments, run_args: RunArguments):
    # 1. Arguments
    tokenizer = load_tokenizer(model_args.tokenizer_path)
    apply_dial(training_args, model_args, len(tokenizer))
    stage = start("pretrain", training_args, model_args, run_args, data_args)

    # 2. Data: shards of tokens, prepared before (recipes/prepare.py) or made here from documents
    main_process = training_args.process_index == 0
    with training_args.main_process_first(local=False, desc="tokenising"):
        tokens = open_tokens(data_args, model_args, tokenizer, stage.directory / "tokens", write=main_process)
    stage.uses(tokens.sources)

    # 3. Model: random weights
    config, spread = config_from_arguments(model_args, tokenizer), (model_args.embedding_std, model_args.head_std)
    model = build_model(config, training_args.seed, model_args.residual_init, *spread)
    save_random_init(model_args.random_init_dir, model, tokenizer, stage)
    if main_process:
        size = f"{tokens.train.counts['tokens']:,} tokens in {len(tokens.train):,} rows"
        print(f"pretrain: {count_parameters(model):,} parameters, {size}", flush=True)

    # 4. Trainer
    trainer = PretrainTrainer(
        model=chunked_loss(model, model_args.z_loss) if model_args.chunked_loss else model,
        args=training_args,
        train_dataset=tokens.train,
        eval_dataset=tokens.held_out,
        processing_class=tokenizer,
        optimizer_cls_and_kwargs=muon(model_args, training_args),
        block_length=model_args.max_length,
        bytes_per_token=tokens.held_out and tokens.held_out.bytes_per_token,
    )
    watch(trainer, stage, run_args)

    # 5. Train and hand over
    trainer.train(resume_from_checkpoint=stage.checkpoint)
    finish(stage, trainer, tokens=trainer.tokens, flops=trainer.flops, prepared=tokens.train.manifest)


if __name__ == "__main__":
    run(main)
