import json

import pytest
from groundup.checkpoint import missing_part, newest_checkpoint

PARTS = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@pytest.fixture
def save(tmp_path):
    def save(step, without=()):
        directory = tmp_path / f"checkpoint-{step}"
        directory.mkdir()
        for part in PARTS:
            if part not in without:
                (directory / part).write_text(json.dumps({"global_step": step}))
        return directory

    return save


def test_newest_is_by_number(save, tmp_path):
    for step in (5, 40, 200):
        save(step)
    assert newest_checkpoint(tmp_path) == (str(tmp_path / "checkpoint-200"), [])


def test_torn_ones_are_passed_over_and_named(save, tmp_path):
    save(10, without=["optimizer.pt"])
    save(20)
    save(30, without=["rng_state.pth"])
    save(40, without=PARTS)
    assert newest_checkpoint(str(tmp_path)) == (
        str(tmp_path / "checkpoint-20"),
        [f"{tmp_path}/checkpoint-40 is not whole: optimizer.pt", f"{tmp_path}/checkpoint-30 is not whole: rng_state.pth"],
    )


def test_none_that_is_whole(save, tmp_path):
    assert newest_checkpoint(tmp_path) == (None, [])
    assert newest_checkpoint(tmp_path / "missing") == (None, [])
    save(10, without=["scheduler.pt"])
    assert newest_checkpoint(tmp_path) == (None, [f"{tmp_path}/checkpoint-10 is not whole: scheduler.pt"])


def test_other_names_are_no_checkpoints(save, tmp_path):
    save(10)
    for name in ("checkpoint-best", "checkpoint-20-old", "old-checkpoint-30", "checkpoint-"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-99").write_text("a file")
    assert newest_checkpoint(tmp_path) == (str(tmp_path / "checkpoint-10"), [])


@pytest.mark.parametrize("part", PARTS)
def test_each_part_is_needed(save, part):
    directory = save(10)
    assert missing_part(directory) is None
    (directory / part).unlink()
    assert missing_part(directory) == part


@pytest.mark.parametrize("part", PARTS)
def test_an_empty_part_is_none(save, part):
    """What a full disk leaves."""
    directory = save(10)
    (directory / part).write_text("")
    assert (missing_part(directory) or "").startswith(part)


def test_state_that_was_cut_short(save):
    directory = save(10)
    (directory / "trainer_state.json").write_text('{"global_step": 1')
    assert missing_part(directory) == "trainer_state.json (not whole)"


def test_parts_under_other_names(save):
    """Several processes, shards, an adapter."""
    directory = save(10, without=["model.safetensors", "rng_state.pth"])
    (directory / "adapter_model.safetensors").write_text("x")
    (directory / "rng_state_0.pth").write_text("x")
    assert missing_part(directory) is None


SHARDED = {
    "FSDP, whole": ["model.safetensors", "pytorch_model_fsdp.bin", "optimizer.bin"],
    "FSDP, sharded": ["pytorch_model_fsdp_0/.metadata", "pytorch_model_fsdp_0/__0_0.distcp", "optimizer_0/.metadata"],
    "DeepSpeed": ["model.safetensors", "global_step10/zero_pp_rank_0_mp_rank_00_optim_states.pt", "latest"],
}


@pytest.mark.parametrize(("names", "needed"), [(SHARDED[kind], SHARDED[kind][-1]) for kind in SHARDED], ids=SHARDED)
def test_what_fsdp_and_deepspeed_save_is_whole(save, names, needed):
    directory = save(10, without=["model.safetensors", "optimizer.pt"])
    for name in names:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("x")
    assert missing_part(directory) is None
    (directory / needed).unlink()
    assert missing_part(directory) in ("optimizer.pt", "latest")
