"""The model card: what a stage directory holds, how it was made and how to use it, read from its records."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import yaml
from groundup import configs
from groundup.record import as_yaml, is_synthetic, lineage, plain, read_evaluation, write_text
from groundup.scoreboard import metric as describe
from groundup.scoreboard import order_metrics, show_metric, show_overlap
from groundup.words import markdown, show_processors

WHAT = {
    "random": "A language model with random weights, kept for comparison. It has learned nothing.",
    "pretrain": "A base language model, trained from random weights to continue text. It knows no conversation.",
    "sft": "A chat model: a base model fine-tuned on conversations.",
    "dpo": "A chat model, tuned on pairs of preferred and rejected replies.",
    "reward": "A reward model: it reads a conversation and gives its last reply a score; higher is better.",
    "ppo": "A chat model, tuned by reinforcement learning (PPO) against a reward model.",
    "grpo": "A chat model, tuned by reinforcement learning (GRPO) on problems whose answers are checked.",
}
# Where a file went, who watched, and what is masked or resolved by the library itself: not how the model was made.
UNTOLD = re.compile(
    r"(output_dir|run_name|logging_.*|log_.*|report_to|resume_from_checkpoint|disable_tqdm|hub_.*|push_to_hub|project|trackio_.*"
    r"|accelerator_config|seed|save_.*|do_train|do_eval|do_predict|local_rank|dataloader_.*|_n_gpu)"
)


def write_card(directory: str | Path, record: dict) -> Path:
    """Write `README.md` of a stage directory from its `run.json` (`record`) and its `eval.json`, if there is one."""
    directory, record = Path(directory), plain(record)
    rung = record.get("rung") or directory.name
    data, evaluation = record.get("data") or [], read_evaluation(directory)
    front: dict[str, Any] = {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if rung == "reward" else "text-generation",
        "tags": ["groundup", rung],
    }
    parent = (record.get("parent") or {}).get("path")
    if parent and _is_hub_id(parent):
        front["base_model"] = parent.partition("@")[0]
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {directory.resolve().name}",
        WHAT.get(rung, f"A model trained by groundup's `{rung}` recipe."),
        f"## Use\n\n```python\n{usage(directory, rung, evaluation)}```",
    ]
    if evaluation:
        metrics = evaluation.get("metrics") or {}
        results = [(name, metrics[name]) for name in order_metrics(metrics)]
        rows = [(describe(n).label, show_metric(n, r), r.get("n"), show_overlap(r), describe(n).explanation) for n, r in results]
        heads = ("Measure", "Value (interval)", "n", "Of these in the training data", "What it is")
        sections.append("## Results\n\n" + markdown(heads, rows))
    sections.append("## How it was made\n\n" + markdown(("", ""), _facts(record)))
    keys = ("weights_sha256", "tokenizer_sha256")
    rows = [(s["rung"], s["path"], *(_short(s[key]) for key in keys), _count(s["tokens"])) for s in lineage(directory)]
    sections.append("Lineage, newest first:\n\n" + markdown(("Rung", "Path", "Weights", "Tokenizer", "Tokens"), rows))
    if data:
        pins = [_short(item.get("sha256") or item.get("revision")) for item in data]
        rows = [
            (i.get("name"), pin, _count(i.get("rows")), sum((i.get("dropped") or {}).values()))
            for i, pin in zip(data, pins, strict=True)
        ]
        sections.append("Data:\n\n" + markdown(("Name", "sha256 or revision", "Rows", "Dropped"), rows))
    told = [(key, as_yaml(value)) for key, value in non_defaults(record.get("config") or {}, rung).items()]
    if told:
        sections.append("Settings that differ from the library's defaults:\n\n" + markdown(("Setting", "Value"), told))
    sections.append("## Limits\n\n" + _limits(record, data))
    return write_text(directory / "README.md", "\n\n".join(sections) + "\n")


def usage(directory: Path, rung: str, evaluation: dict | None) -> str:
    """Python that loads the directory from where groundup was started, or from beside it, and asks it something."""
    where = directory.resolve()
    where = where.relative_to(Path.cwd()) if where.is_relative_to(Path.cwd()) else Path(where.name)
    prompts = [sample.get("prompt") for sample in (evaluation or {}).get("samples") or []]
    # A prompt goes into a code block: only one that cannot end it.
    tame = re.compile(r"[\w ,.?!':;-]{1,200}")
    prompts = [prompt for prompt in prompts if isinstance(prompt, str) and tame.fullmatch(prompt)]
    prompt = json.dumps(prompts[0] if prompts else "Hello!", ensure_ascii=False)
    model = json.dumps(where.as_posix())
    if rung == "reward":
        return f"""from transformers import pipeline

judge = pipeline("text-classification", model={model}, function_to_apply="none")
messages = [{{"role": "user", "content": {prompt}}}, {{"role": "assistant", "content": "I do not know."}}]
text = judge.tokenizer.apply_chat_template(messages, tokenize=False)
print(judge(text, add_special_tokens=False)[0]["score"])
"""
    asked = prompt if rung in ("random", "pretrain") else f'[{{"role": "user", "content": {prompt}}}]'
    said = '["generated_text"]' if rung in ("random", "pretrain") else '["generated_text"][-1]["content"]'
    return f"""from transformers import pipeline

generate = pipeline("text-generation", model={model})
print(generate({asked}, max_new_tokens=64)[0]{said})
"""


def non_defaults(config: dict, rung: str) -> dict[str, Any]:
    """The settings that somebody chose: those that differ from the rung's configuration classes, empty ones aside."""
    # Imported here: whoever writes a card has just trained with these, whoever only imports this module need not wait.
    import transformers
    import trl

    trainers = {"sft": trl.SFTConfig, "dpo": trl.DPOConfig, "reward": trl.RewardConfig}
    trainers |= {"ppo": trl.GRPOConfig, "grpo": trl.GRPOConfig}
    classes = (trl.ModelConfig, configs.DataArguments, trainers.get(rung, transformers.TrainingArguments))
    defaults: dict[str, Any] = {}
    for field in (field for cls in classes for field in dataclasses.fields(cls)):
        factory = field.default_factory
        defaults[field.name] = plain(field.default if factory is dataclasses.MISSING else factory())
    flat: dict[str, Any] = {}
    for key, value in config.items():
        # A group (`training: {...}`), unless it is a setting that is a mapping itself (`lr_scheduler_kwargs: {...}`).
        flat |= value if isinstance(value, dict) and key not in defaults else {key: value}
    return {
        key: value
        for key, value in flat.items()
        if value != defaults.get(key)
        and (value or defaults.get(key))
        and not UNTOLD.fullmatch(key)
        and not re.fullmatch(r"<[A-Z_]+_TOKEN>", str(value))
    }


def _facts(record: dict) -> list[tuple[str, Any]]:
    hardware, versions = record.get("hardware") or {}, record.get("versions") or {}
    seconds = record.get("seconds")
    facts = [
        ("Parameters", _count(record.get("parameters"))),
        ("Tokens", _count(record.get("tokens"))),
        ("Training time", f"{seconds:,.0f} s" if isinstance(seconds, (int, float)) else None),
        ("FLOPs", f"{record['flops']:.3g}" if isinstance(record.get("flops"), (int, float)) else None),
        ("Machine", ", ".join(show_processors(hardware))),
        ("Processes", record.get("world_size")),
        ("Seed", record.get("seed")),
        ("Commit", record.get("git_commit")),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)),
        ("Command", f"`{record['command']}`" if record.get("command") else None),
    ]
    return [(name, value) for name, value in facts if value not in (None, "")]


def _limits(record: dict, data: list[dict]) -> str:
    lines = []
    if isinstance(record.get("parameters"), (int, float)) and record["parameters"] < 3e9:
        size = _count(record["parameters"])
        lines.append(f"- A small model ({size} parameters): no general assistant, and fluent when it is wrong.")
    if is_synthetic(data):
        lines.append("- Trained on toyland, a synthetic world generated from a seed: people and places are invented.")
    if record.get("status") not in (None, "finished"):
        lines.append(f"- Its training is {record['status']}: these are not final weights.")
    lines.append("- It has had no safety training beyond what is described here.")
    return "\n".join(lines)


def _is_hub_id(path: str) -> bool:
    """`owner/name`, perhaps `@revision`, where there is no such local directory."""
    match = re.fullmatch(r"([A-Za-z0-9][\w.-]*)/[\w.-]+(@[\w./-]+)?", path)
    return match is not None and not Path(match[1]).exists()


def _short(digest: str | None) -> str:
    return f"`{digest[:16]}`" if digest else ""


def _count(count: Any) -> str | None:
    return f"{count:,.0f}" if isinstance(count, (int, float)) else None
