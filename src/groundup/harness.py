"""Tasks of lm-evaluation-harness (`pip install 'groundup[eval]'`): its questions, examples and grading, on our own likelihoods."""

import logging
import math
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from groundup import stats
from groundup.errors import InputError
from groundup.evaluation import EvaluationArguments, Model, items_of
from groundup.multiple_choice import encode_pairs, score
from groundup.sources import HUB_ERRORS
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

Z = 1.96  # standard errors to the end of an interval of 95 %
SEED = DEFAULT_OTHER_SEED  # of examples and samples: the harness's own, that figures compare with published ones
logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every model that is loaded already


class Scorer(HFLM):
    """The harness's own model, its tokens and its generation, with the likelihoods of `groundup.multiple_choice`."""

    def __init__(self, model: Model):
        super().__init__(
            model.model,
            tokenizer=model.tokenizer,
            batch_size=model.batch_size,
            max_length=model.longest,
            prefix_token_id=model.start,
        )

    def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = encode_pairs(self.tokenizer, [request.args for request in requests], self.prefix_token_id)
        return self._loglikelihood_tokens([(None, *pair) for pair in pairs])

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None) -> list[tuple[float, bool]]:
        return [tuple(one) for one in score(self.model, [pair for _, *pair in requests], self.batch_size, self.max_length)]

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        return super().generate_until(requests, disable_tqdm=True)

    @property
    def max_gen_toks(self) -> int:
        return min(256, self.max_length // 2)  # the harness's 256, where a prompt has room beside them


class Tasks:
    """The tasks that `args.tasks` names, loaded with their data.

    Args:
        files: folder of task files of our own; their `data_files` are looked for in `args.task_data`.

    Raises:
        InputError: no such task, no data, or a task that runs what a model writes.
    """

    def __init__(self, args: EvaluationArguments, files: Path | None):
        self.args, self.names = args, [name for name in args.tasks.replace(",", " ").split() if name]
        own = {path.stem: path for path in files.glob("*.yaml")} if files else {}
        # Fourteen thousand files of the harness are read for the first name that is none of ours.
        manager = TaskManager(include_defaults=not all(name.startswith("local_") for name in self.names))
        specs: list[Any] = []
        for name in self.names:
            if name not in own and name not in manager.all_tasks:
                near = get_close_matches(name, [*own, *manager.all_tasks], n=1)
                fix = f"did you mean `{near[0]}`?" if near else "lm-eval ls tasks names all"
                raise InputError(f"no task `{name}`", "tasks", fix)
            specs.append(self._with_data(load_yaml(own[name])) if name in own else name)
        try:
            self.loaded = manager.load(specs)
        except (*HUB_ERRORS, ImportError) as error:
            reason = str(error).strip().partition("\n")[0]
            fix = "check `task_data`, or the network; or install what the task needs"
            raise InputError(f"a task cannot be loaded: {reason}", f"tasks: {args.tasks}", fix) from error
        for name, task in self.loaded["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False):
                raise InputError(f"`{name}` runs code that the model writes", "tasks", "leave it out: there is no sandbox here")
            usual = task.get_config("num_fewshot")
            if usual is None or (args.num_fewshot is not None and usual != 0):  # 0 is what a task insists on
                task.set_config(key="num_fewshot", value=args.num_fewshot or 0)
            task.set_fewshot_seed(seed=SEED)

    def _with_data(self, config: dict) -> dict:
        if not self.args.task_data:
            raise InputError(f"`{config['task']}` needs its data", "task_data", "name the folder that its `data_files` are in")
        return config | {"dataset_kwargs": {**config["dataset_kwargs"], "data_dir": self.args.task_data}}

    @property
    def texts(self) -> dict[str, list[list[str]]]:
        """Of each task and item that is measured, the texts of its row."""
        return {
            name: [
                [value for value in row.values() if isinstance(value, str)] for row in list(task.eval_docs)[: self.args.max_rows]
            ]
            for name, task in self.loaded["tasks"].items()
        }

    def measure(self, model: Model) -> dict[str, dict]:
        """`task/metric`, or `task/metric,filter`, -> value, interval, n, standard error, and what was asked and how.

        The parts of a group that has a figure of its own are not listed.
        """
        chat = self.args.apply_chat_template
        torch.manual_seed(SEED)
        found = evaluate(
            Scorer(model),
            self.loaded,
            limit=self.args.max_rows,
            bootstrap_iters=1000,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )
        parts = {
            part.task_name
            for name in found.get("groups", {})
            for part in self.loaded["groups"][name].get_all_tasks()
            if part.task_name not in self.names
        }
        metrics = {}
        for task, results in found["results"].items():
            for key, value in results.items():
                metric, comma, kind = key.partition(",")
                if not comma or metric.endswith("_stderr") or task in parts or not isinstance(value, (int, float)):
                    continue
                samples = self._samples(task, metric, kind, found)
                values = [sample[metric] for sample in samples]
                mean = sum(values) / len(values) if values and all(isinstance(v, (int, float)) for v in values) else None
                name = f"{task}/{metric}" + f",{kind}" * (kind != "none")
                metrics[name] = {
                    **interval(float(value), results.get(f"{metric}_stderr,{kind}"), values if task in found["samples"] else []),
                    "n": results["sample_len"],
                    "higher_is_better": found["higher_is_better"].get(task, {}).get(metric),
                    **self._how(task, model, found),
                }
                if mean is not None and math.isclose(mean, value):  # not a mean of parts' means, a perplexity, BLEU, ...
                    metrics[name]["items"] = items_of(values, [sample["doc_hash"] for sample in samples])
        return metrics

    def _samples(self, task: str, metric: str, kind: str, found: dict) -> list[dict]:
        """The items of a task, or of all tasks of a group."""
        group = self.loaded["groups"].get(task)
        names = [part.task_name for part in group.get_all_tasks()] if group else [task]
        samples = [sample for name in names for sample in found["samples"].get(name, [])]
        return [sample for sample in samples if sample["filter"] == kind and metric in sample]

    def _how(self, task: str, model: Model, found: dict) -> dict[str, Any]:
        config = found["configs"].get(task, {})
        prompt = str(config.get("doc_to_text", "each part's own"))
        generated = config.get("output_type") == "generate_until"
        sampled = (config.get("generation_kwargs") or {}).get("do_sample")
        return {
            "file": task,
            "version": found["versions"].get(task),
            "num_fewshot": found["n-shot"].get(task),
            "prompt": model.template.replace("{prompt}", prompt) if self.args.apply_chat_template else prompt,
            "decoding": ("sampled" if sampled else "greedy") if generated else "log-likelihood",
            "seed": SEED,
        }


def interval(value: float, stderr: Any, values: list) -> dict[str, float | None]:
    """Value, 95 % interval and the harness's standard error: Wilson's for rights and wrongs, else `Z` errors either way."""
    stderr = float(stderr) if isinstance(stderr, (int, float)) else None
    if values and set(values) <= {0, 1}:
        return {**stats.estimate(values), "value": value, "stderr": stderr}
    low, high = (None, None) if stderr is None else (value - Z * stderr, value + Z * stderr)
    return {"value": value, "low": low, "high": high, "stderr": stderr}
