"""Which checkpoint a run may go on from."""

import json
import re
from pathlib import Path

# A part and the files, any of which is it: the Trainer's own, those of FSDP with a full or a sharded state, those of DeepSpeed
NEEDED = {
    "optimizer.pt": ["optimizer.pt", "optimizer.bin", "optimizer_0/.metadata", "global_step*/*optim_states.pt"],
    "scheduler.pt": ["scheduler.pt"],
    "trainer_state.json": ["trainer_state.json"],
    "model.safetensors": ["*.safetensors", "pytorch_model_fsdp_0/.metadata"],
    "rng_state.pth": ["rng_state*.pth"],
}


def missing_part(checkpoint: Path) -> str | None:
    """What a checkpoint directory lacks to resume from, or None when it is whole.

    The Trainer writes `trainer_state.json` last and does not look at the others when it resumes: without `optimizer.pt` it goes
    on with a fresh optimizer and says nothing (huggingface/transformers#35782).
    """
    for name, patterns in NEEDED.items():
        sizes = [path.stat().st_size for pattern in patterns for path in checkpoint.glob(pattern) if path.is_file()]
        if not sizes or 0 in sizes:  # an empty file is what a full disk leaves
            return name
    if list(checkpoint.glob("global_step*")) and not (checkpoint / "latest").is_file():  # DeepSpeed writes it when all is there
        return "latest"
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except ValueError:
        return "trainer_state.json (not whole)"
    return None


def newest_checkpoint(directory: str | Path) -> tuple[str | None, list[str]]:
    """The newest whole checkpoint of a stage directory, and a line for each newer one that is not."""
    steps = {}
    for path in Path(directory).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and path.is_dir():
            steps[int(match[1])] = path
    passed_over = []
    for step in sorted(steps, reverse=True):
        lacks = missing_part(steps[step])
        if lacks is None:
            return str(steps[step]), passed_over
        passed_over.append(f"{steps[step]} is not whole: {lacks}")
    return None, passed_over
