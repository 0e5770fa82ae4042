import torch
from safetensors.torch import load_file

from recipes.miniature import run_recipe


def test_llama_trains_whole(rungs, tmp_path):
    settings = {**rungs.settings("pretrain"), "model_type": "llama", "random_init_dir": str(tmp_path / "random")}
    trained = run_recipe("pretrain", tmp_path / "llama", **{**settings, "max_steps": 2})
    after, before = trained.weights(), load_file(tmp_path / "random" / "model.safetensors")
    assert after.keys() == before.keys() and len(after) == 2 * 9 + 2
    assert not [key for key in after if torch.equal(before[key], after[key])]
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(trained.directory).eval()
    ids = torch.arange(5, 25).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, trained.trainer.model.eval()(ids).logits)


def test_four_batches_of_one_are_one_batch_of_four(rungs, tmp_path):
    """Gradient accumulation changes the memory that a step takes, not the step."""
    # SGD, because AdamW divides by the size of the gradient and Muon drops it: neither would notice a wrong scale.
    settings = {**rungs.settings("pretrain"), "optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0}
    settings = {k: v for k, v in settings.items() if k != "random_init_dir"}
    at_once, in_parts = (
        run_recipe(
            "pretrain",
            tmp_path / str(batch),
            **{
                **settings,
                "random_init_dir": str(tmp_path / f"random{batch}"),
                "muon_learning_rate": "null",
                "per_device_train_batch_size": batch,
                "gradient_accumulation_steps": 4 // batch,
            },
        )
        for batch in (4, 1)
    )
    assert at_once.record["tokens"] == in_parts.record["tokens"] == 4 * 4 * 64
    start = load_file(tmp_path / "random1" / "model.safetensors")
    for key, weight in in_parts.weights().items():
        moved = (weight - start[key]).norm()
        assert moved > 0
        assert (weight - at_once.weights()[key]).norm() < 1e-3 * moved, key


def test_random_weights_are_kept_as_a_stage(rungs):
    import json

    rungs["pretrain"]
    entry = json.loads((rungs.root / "random" / "run.json").read_text())
    assert (entry["rung"], entry["status"]) == ("random", "finished")
    assert "steps" not in entry
    assert (rungs.root / "random" / "README.md").is_file()


def test_held_out_loss_is_measured(rungs):
    metrics = rungs["pretrain"].record["metrics"]
    assert 0 < metrics["eval_bits_per_byte"] < metrics["eval_loss"]
