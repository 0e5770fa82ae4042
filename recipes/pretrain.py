"""Rung 1, pre-training: from random weights, a base model learns to go on with text.

accelerate launch recipes/pretrain.py --config recipes/nano/pretrain.yaml
"""

from groundup.callbacks import watch
from groundup.configs import DataArguments, ModelArguments, run
from groundup.data import load_documents
from groundup.model import build_model, config_from_arguments, count_parameters
from groundup.optim import MuonFactory
from groundup.packing import pack
from groundup.pretraining import PretrainTrainer, apply_dial
from groundup.stage import finish, save_random_init, start
from groundup.tokenizer import check_tokenizer_path
from transformers import AutoTokenizer, TrainingArguments


def main(data_args: DataArguments, model_args: ModelArguments, training_args: TrainingArguments):
    # 1. Arguments
    check_tokenizer_path(model_args.tokenizer_path)
    tokenizer = AutoTokenizer.from_pretrained(model_args.tokenizer_path)
    apply_dial(training_args, model_args, len(tokenizer))
    stage = start("pretrain", training_args, model_args, data_args)

    # 2. Data: documents -> memory-mapped blocks of tokens
    with training_args.main_process_first(desc="tokenising"):
        documents, held_out = load_documents(data_args), load_documents(data_args, "eval")
        train, counts = pack(documents.rows, tokenizer, model_args.max_length, stage.directory / "tokens" / "train.bin")
        test, test_counts = None, None
        if held_out:
            test, test_counts = pack(held_out.rows, tokenizer, model_args.max_length, stage.directory / "tokens" / "test.bin")
    stage.uses(documents.provenance, held_out and held_out.provenance)

    # 3. Model: random weights
    model = build_model(config_from_arguments(model_args, tokenizer), training_args.seed, model_args.depth_scaled_init)
    save_random_init(model_args.random_init_dir, model, tokenizer, stage)
    if training_args.process_index == 0:
        print(f"pretrain: {count_parameters(model):,} parameters, {counts['tokens']:,} tokens in {len(train):,} blocks")

    # 4. Trainer
    muon = {"lr": model_args.muon_learning_rate, "adamw_lr": training_args.learning_rate}
    trainer = PretrainTrainer(
        model=model,
        args=training_args,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        optimizer_cls_and_kwargs=(MuonFactory, muon) if model_args.muon_learning_rate else None,
        block_length=model_args.max_length,
        bytes_per_token=test_counts and test_counts["bytes"] / test_counts["tokens"],
    )
    watch(trainer)

    # 5. Train and hand over
    trainer.train(resume_from_checkpoint=stage.checkpoint)
    finish(stage, trainer, tokens=trainer.tokens, flops=trainer.flops)


if __name__ == "__main__":
    run(main, DataArguments, ModelArguments, TrainingArguments)
