"""What callbacks change during a training: `logit_scale` and the weights of the entropies."""

import json
import math
from pathlib import Path

import pytest


def test_logit_scale_stays_at_100_or_below(make_contrastive):
    trainer = make_contrastive(max_steps=1, eval_strategy="no", save_strategy="no", load_best_model_at_end=False)
    trainer.model.logit_scale.data.fill_(9.0)
    trainer.train()
    assert trainer.model.logit_scale.item() == pytest.approx(math.log(100))


@pytest.mark.slow
def test_the_entropy_weights_grow_from_0_over_the_first_steps(make_contrastive):
    options = {"entropy_warmup_steps": 5, "max_steps": 8, "save_total_limit": None}
    options |= {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer = make_contrastive(**options)
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    for number, entry in enumerate(steps):
        scale = min(1, number / 5)
        entropies = 0.1 * entry["token_entropy"] + 0.2 * entry["patch_entropy"]
        assert entry["loss"] == pytest.approx(entry["contrastive_loss"] + scale * entropies, abs=2e-4), number
    assert len(steps) == 8
    for entry in (entry for entry in trainer.state.log_history if "eval_loss" in entry):  # the final weights
        entropies = 0.1 * entry["eval_token_entropy"] + 0.2 * entry["eval_patch_entropy"]
        assert entry["eval_loss"] == pytest.approx(entry["eval_contrastive_loss"] + entropies, abs=2e-4)
    config = json.loads((Path(trainer.args.output_dir) / "checkpoint-2" / "config.json").read_text())
    assert (config["token_entropy_weight"], config["patch_entropy_weight"]) == (0.1, 0.2)
    resumed = make_contrastive(folder="resumed", **options)
    whole = [entry["loss"] for entry in steps]
    resumed.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-2")
    assert [entry["loss"] for entry in resumed.state.log_history if "loss" in entry] == whole


def test_a_share_of_the_steps_for_the_warmup(make_contrastive):
    trainer = make_contrastive(
        entropy_warmup_steps=0.5, max_steps=8, eval_strategy="no", save_strategy="no", load_best_model_at_end=False
    )
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    added = [entry["loss"] - entry["contrastive_loss"] for entry in steps]
    entropies = [0.1 * entry["token_entropy"] + 0.2 * entry["patch_entropy"] for entry in steps]
    shares = [one / all_ for one, all_ in zip(added, entropies, strict=True)]
    assert shares == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1, 1], abs=1e-3)


@pytest.mark.parametrize(("logging_steps", "logged"), [(1000, [6, 12]), (6, [6, 12]), (4, [4, 8, 12])])
def test_each_epoch_has_a_logged_loss_at_any_logging_step(make_contrastive, logging_steps, logged):
    options = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    trainer = make_contrastive(logging_steps=logging_steps, **options)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == logged
    assert all("contrastive_loss" in entry for entry in trainer.state.log_history if "loss" in entry)


@pytest.mark.slow
def test_a_run_that_is_resumed_within_an_epoch_logs_the_same_steps(make_contrastive):
    options = {"eval_strategy": "no", "save_strategy": "steps", "save_steps": 4, "load_best_model_at_end": False}
    options |= {"save_total_limit": None}
    for logging_steps in (3, 1000):
        whole = make_contrastive(folder=f"whole-{logging_steps}", logging_steps=logging_steps, **options)
        whole.train()
        resumed = make_contrastive(folder=f"resumed-{logging_steps}", logging_steps=logging_steps, **options)
        resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-4")
        curves = [
            [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
            for trainer in (whole, resumed)
        ]
        assert curves[0] == curves[1] and len(curves[0]) == {3: 4, 1000: 2}[logging_steps]
