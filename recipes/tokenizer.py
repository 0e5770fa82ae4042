"""Rung 0: a byte-level BPE tokenizer, with its special tokens and chat template, finished for life.

python recipes/tokenizer.py --config recipes/nano/tokenizer.yaml
"""

from pathlib import Path

from groundup.command_line import run
from groundup.configs import DataArguments, TokenizerArguments
from groundup.data import load_documents
from groundup.stage import write_for_older
from groundup.tokenizer import bytes_per_token, train_tokenizer


def main(data_args: DataArguments, args: TokenizerArguments):
    # 1. Arguments
    if (Path(args.output_dir) / "tokenizer.json").is_file():
        print(f"tokenizer: finished already, {args.output_dir} (remove the directory to run it again)")
        return

    # 2. Data
    documents = load_documents(data_args)
    held_out = load_documents(data_args, "eval")

    # 3. Tokenizer
    def texts(left: int = args.max_characters):
        for text in documents.rows["text"]:
            if left <= 0:
                return
            yield text
            left -= len(text)

    tokenizer = train_tokenizer(texts(), args.vocab_size, args.max_length)

    # 4. Hand over
    tokenizer.save_pretrained(args.output_dir)
    write_for_older(args.output_dir)
    where, rows = ("held-out", held_out.rows) if held_out else ("training", documents.rows)
    ratio, size, tokens = bytes_per_token(tokenizer, rows["text"])
    print(f"tokenizer: {len(tokenizer)} tokens, {ratio:.3f} bytes per token on {where} text ({size:,} bytes, {tokens:,} tokens)")
    print(f"tokenizer: done -> {args.output_dir}")


if __name__ == "__main__":
    run(main)
