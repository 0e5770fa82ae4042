"""The model card: what a stage directory holds, how it was made and how to use it, read from its records."""

import dataclasses
import json
import re
import textwrap
from pathlib import Path
from typing import Any

from groundup import configs
from groundup.record import as_yaml, is_synthetic, lineage, plain, read_evaluation, write_text
from groundup.scoreboard import measured, order_metrics, show_metric, show_overlap
from groundup.scoreboard import metric as describe
from groundup.words import is_number, markdown, show_processors, show_seconds
from huggingface_hub import EvalResult, ModelCardData

LICENSE = "apache-2.0"

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
    r"(output_dir|run_name|logging_.*|log_.*|report_to|resume_from_checkpoint|disable_tqdm|hub_.*|push_to_hub|project|trackio_.*|show_samples"
    r"|accelerator_config|seed|save_.*|do_train|do_eval|do_predict|local_rank|dataloader_.*|_n_gpu)"
)


def write_card(directory: str | Path, record: dict) -> Path:
    """Write `README.md` of a stage directory from its `run.json` (`record`) and its `eval.json`, if there is one."""
    directory, record = Path(directory), plain(record)
    rung = record.get("rung") or directory.name
    evaluation = read_evaluation(directory) or {}
    if evaluation.get("weights_sha256") not in (None, record.get("weights_sha256")):
        evaluation = {}  # of weights that were here before
    steps = lineage(directory)
    steps[0] |= {key: record.get(key) for key in steps[0] if key in record}  # a rung that ends here has not been written down yet
    sections = [
        f"---\n{metadata(directory, rung, record, evaluation, steps)}\n---",
        f"# {directory.resolve().name}",
        WHAT.get(rung, f"A model trained by groundup's `{rung}` recipe."),
        f"## Use\n\n```python\n{usage(directory, rung, record, evaluation)}```",
    ]
    metrics = evaluation.get("metrics") or {}
    if metrics:
        results = [(name, metrics[name]) for name in order_metrics(metrics)]
        rows = [(describe(n).label, show_metric(n, r), r.get("n"), show_overlap(r), describe(n).explanation) for n, r in results]
        heads = ("Measure", "Value (interval)", "n", "Of these in the training data", "What it is")
        sections.append("## Results\n\n" + markdown(heads, rows))
    if said := [(sample.get("prompt"), sample.get("reply")) for sample in _one_of_each(evaluation.get("samples") or [])]:
        rows = [[textwrap.shorten(str(text), 240, placeholder=" [...]") for text in pair] for pair in said]
        sections.append("## Samples\n\n" + markdown(("Prompt", "Reply"), rows))
    sections.append("## How it was made\n\n" + markdown(("", ""), _facts(record)))
    rows = [
        (s["rung"], s["hub_model_id"] or s["path"], _short(s["weights_sha256"]), _short(s["tokenizer_sha256"]), *_cost(s))
        for s in steps
    ]
    heads = ("Rung", "Path", "Weights", "Tokenizer", "Tokens", "FLOPs", "Time")
    sections.append("Lineage, newest first:\n\n" + markdown(heads, rows))
    rows = [
        (item.get("name"), s["rung"], _short(item.get("sha256") or item.get("revision")), _count(item.get("rows")), _dropped(item))
        for s in steps
        for item in s["data"] or []
    ]
    if rows:
        sections.append("Data:\n\n" + markdown(("Name", "Rung", "sha256 or revision", "Rows", "Dropped"), rows))
    told = [(key, as_yaml(value)) for key, value in non_defaults(record.get("config") or {}, rung).items()]
    if told:
        sections.append("Settings that differ from the library's defaults:\n\n" + markdown(("Setting", "Value"), told))
    sections.append("## Limits\n\n" + _limits(record, record.get("data") or []))
    return write_text(directory / "README.md", "\n\n".join(sections) + "\n")


def metadata(directory: Path, rung: str, record: dict, evaluation: dict, steps: list[dict]) -> str:
    """The YAML that the Hub reads: licence, base model, data sets, and results as a model index."""
    task = "text-classification" if rung == "reward" else "text-generation"
    bases = [
        (step["hub_model_id"] or step["path"]).partition("@")[0]
        for step in steps[1:]
        if step["hub_model_id"] or not step["weights_sha256"] and _is_hub_id(str(step["path"]))  # what is local was hashed
    ]
    data = record.get("data") or []
    datasets = dict.fromkeys(item["name"] for item in data if item.get("revision") and _is_hub_id(str(item.get("name"))))
    adapter = (directory / "adapter_config.json").is_file()
    results = [
        EvalResult(
            task_type=task,
            # `arc_easy/acc` is of a public task, whose name is before the slash
            dataset_type=name.rpartition("/")[0] or ("toyland" if is_synthetic(data) else "held-out"),
            dataset_name=name.rpartition("/")[0] or "Held-out sets of the run (eval.json)",
            metric_type=name,
            metric_name=describe(name).label,
            metric_value=measured(metrics[name])[0],
            metric_args={key: metrics[name][key] for key in ("low", "high", "n") if key in metrics[name]},
        )
        for metrics in [evaluation.get("metrics") or {}]
        for name in order_metrics(metrics)
        if measured(metrics[name])[0] is not None
    ]
    return ModelCardData(
        license=record.get("license") or (record.get("config") or {}).get("license") or LICENSE,
        library_name="peft" if adapter else "transformers",
        pipeline_tag=task,
        tags=["groundup", rung, *["synthetic-data"] * is_synthetic(data)],
        base_model=bases[0] if bases else None,
        datasets=list(datasets) or None,
        model_name=(record.get("hub_model_id") or directory.resolve().name).rpartition("/")[2] if results else None,
        eval_results=results or None,
    ).to_yaml()


def usage(directory: Path, rung: str, record: dict, evaluation: dict) -> str:
    """Python that loads the model from the Hub, or the directory from where groundup was started or from beside it, and asks it."""
    where = directory.resolve()
    where = where.relative_to(Path.cwd()) if where.is_relative_to(Path.cwd()) else Path(where.name)
    prompts = [sample.get("prompt") for sample in evaluation.get("samples") or []]
    # A prompt goes into a code block: only one that cannot end it.
    tame = re.compile(r"[\w ,.?!':;-]{1,200}")
    prompts = [prompt for prompt in prompts if isinstance(prompt, str) and tame.fullmatch(prompt)]
    prompt = json.dumps(prompts[0] if prompts else "Hello!", ensure_ascii=False)
    model = json.dumps(record.get("hub_model_id") or where.as_posix())
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
    classes = (trl.ModelConfig, configs.DataArguments, configs.RunArguments, trainers.get(rung, transformers.TrainingArguments))
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
    tokens, flops, seconds = _cost(record)
    facts = [
        ("Parameters", _count(record.get("parameters"))),
        ("Tokens", tokens),
        ("Training time", seconds),
        ("FLOPs", flops),
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


def _one_of_each(samples: list[dict]) -> list[dict]:
    """The first sample of each kind."""
    return list({sample.get("kind"): sample for sample in reversed(samples)}.values())[::-1]


def _cost(of: dict) -> tuple[str | None, str | None, str | None]:
    """Tokens, FLOPs and time of a rung, for people."""
    flops = f"{of['flops']:.3g}" if is_number(of.get("flops")) else None
    return _count(of.get("tokens")), flops, show_seconds(of.get("seconds")) or None


def _dropped(item: dict) -> int:
    return sum((item.get("dropped") or {}).values())


def _short(digest: str | None) -> str:
    return f"`{digest[:16]}`" if digest else ""


def _count(count: Any) -> str | None:
    return f"{count:,.0f}" if is_number(count) else None
