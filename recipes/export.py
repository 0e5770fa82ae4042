"""A stage for other programs: GGUF for llama.cpp, that and a Modelfile for Ollama, or safetensors in shards.

python recipes/export.py out/nano/grpo out/nano/grpo_gguf --gguf --dtype f16
"""

import argparse
import sys
from pathlib import Path

from groundup import export
from groundup.command_line import quieten
from groundup.errors import InputError
from groundup.record import write_text


def main(model_dir: str, output_dir: str, gguf: bool, ollama: bool, shards: str | None, dtype: str) -> None:
    # 1. Arguments
    quieten()
    output = Path(output_dir)
    if not (gguf or ollama or shards):
        raise InputError("nothing to write was named", fix="add --gguf, --ollama or --shards 2GB")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError("there is something in it already", output_dir, "name a new directory, or empty this one")

    # 2. Model and tokenizer
    model, tokenizer = export.load(model_dir)
    name = Path(model_dir).resolve().name
    file = f"{name}-{dtype}.gguf"
    recipe = export.modelfile(model, tokenizer, file) if ollama else None

    # 3. Hand over
    output.mkdir(parents=True, exist_ok=True)
    if gguf or ollama:
        print(f"export: GGUF -> {export.write_gguf(model, tokenizer, output / file, dtype)}")
        say(export.spelt_otherwise(tokenizer, export.GPT2_SPLIT), "llama.cpp")
    if recipe:
        print(f"export: Modelfile -> {write_text(output / 'Modelfile', recipe)}   (in there: ollama create {name})")
        if model.config.model_type == "qwen3":
            say(export.spelt_otherwise(tokenizer, export.QWEN2_SPLIT), "Ollama's engine for qwen3")
    if shards:
        print(f"export: shards -> {export.write_shards(model, tokenizer, model_dir, output, shards, dtype)}")


def say(texts: list[str], whose: str) -> None:
    if texts:
        print(
            f"export: {whose} spells {len(texts)} of the short texts tried in other tokens: {', '.join(map(repr, texts[:5]))}, ..."
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir", help="stage directory with a model that writes text")
    parser.add_argument("output_dir", help="where the files go, a directory that is empty or not there yet")
    parser.add_argument("--gguf", action="store_true", help="write one file for llama.cpp and what stands on it")
    parser.add_argument("--ollama", action="store_true", help="write that and a Modelfile")
    parser.add_argument("--shards", metavar="SIZE", help="write a stage directory with weights in files of this size, such as 2GB")
    parser.add_argument("--dtype", choices=export.DTYPES, default="f32", help="of the matrices (f32: as they were trained)")
    try:
        main(**vars(parser.parse_args()))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
