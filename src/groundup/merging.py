"""From an adapter and the model under it to a plain model."""

from pathlib import Path

import torch
from groundup import card, record
from groundup.errors import InputError
from groundup.model import count_parameters
from groundup.stage import chat_generation_config, write_for_older
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer


def merge(adapter: str | Path, output_dir: str | Path) -> Path:
    """Write the plain model of a stage directory that holds an adapter, with tokenizer, record and card; returns `output_dir`.

    The model under the adapter is read as it was saved, in float32, also where the adapter was trained over a quantised copy of it.

    Raises:
        InputError: no adapter there, one whose model is gone or another by now, or an output directory with something in it.
    """
    adapter, output_dir = Path(adapter), Path(output_dir)
    settings, known = record.read_json(adapter / "adapter_config.json"), record.read(adapter) or {}
    if settings is None:
        raise InputError("no adapter", str(adapter), "name a directory that a rung with `use_peft: true` wrote")
    if output_dir.exists() and any(output_dir.iterdir()):
        raise InputError("there is something in it already", str(output_dir), "name a new directory, or empty this one")
    base = settings["base_model_name_or_path"]
    trained_on = {"weights_sha256": (known.get("parent") or {}).get("weights_sha256")}
    if Path(base).is_dir() and (wrong := record.altered(trained_on, record.hashes(base))):
        fix = "put it back as it was, or train the adapter again"
        raise InputError(f"`{base}` has changed since the adapter was trained on it: {wrong[0]}", str(adapter), fix)
    kind, extra = AutoModelForCausalLM, {}
    if settings.get("task_type") == "SEQ_CLS":
        kind, extra = AutoModelForSequenceClassification, {"num_labels": 1}
    try:
        model = kind.from_pretrained(base, dtype=torch.float32, **extra)
    except (OSError, ValueError) as error:
        fix = "put it back where it was, or start in the directory from which the adapter was trained"
        raise InputError(f"the model under the adapter, `{base}`, cannot be read: {error}", str(adapter), fix) from None
    model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    if model.can_generate():
        model.generation_config = chat_generation_config(tokenizer)
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    write_for_older(output_dir)
    parent = {"path": str(adapter), "weights_sha256": record.hash_weights(adapter)}
    written = {**known, "parent": parent, "command": f"merge.py {adapter} {output_dir}", "parameters": count_parameters(model)}
    written |= {"hub_model_id": None, **record.hashes(output_dir)}
    record.write(output_dir, written)
    card.write_card(output_dir, written)
    return output_dir
