"""Before rung 1: documents are cleaned, freed of duplicates and of evaluation sets, and become shards of tokens.

python recipes/prepare.py --config recipes/nano/prepare.yaml
python recipes/prepare.py --config recipes/small/prepare.yaml --shard 3/16    # one job of a cluster's array; more in its YAML
"""

from groundup.command_line import run
from groundup.configs import DataArguments, PrepareArguments
from groundup.preparation import Preparation, summary
from groundup.tokenizer import load_tokenizer


def main(data_args: DataArguments, args: PrepareArguments):
    # 1. Arguments
    tokenizer = load_tokenizer(args.tokenizer_path)

    # 2. Data: what is to be read, as it is now
    preparation = Preparation(data_args, args, tokenizer)
    if preparation.manifest:
        print(f"prepare: finished already, {args.output_dir} (remove the directory to run it again)")
        return

    # 3. Passes: each ends in files, and is not repeated
    preparation.scan()
    if not preparation.choose():
        print("prepare: near duplicates are Slurm's, asked for without --shard; run this again when its jobs are done")
        return
    preparation.tokenise()

    # 4. Hand over
    manifest = preparation.finish()
    if manifest:
        print(summary(manifest))
        print(f"prepare: done -> {args.output_dir}")


if __name__ == "__main__":
    run(main)
