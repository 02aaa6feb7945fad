"""Which checkpoint `train_tier.py` takes for the best one, by each form of the metric; and what a training says of
its defaults."""

import json

import pytest

import train_tier

COMMON = [
    *("--data", "phantom:num_images=48,image_size=64", "--image_size", "32", "--eval_split", "validation"),
    *("--num_train_epochs", "4", "--per_device_train_batch_size", "8", "--min_positives", "2"),
    *("--learning_rate", "1e-2", "--report_to", "none", "--use_cpu", "true", "--disable_tqdm", "true"),
]
TASKS = {"contrastive": [], "classification": ["--task", "classification", "--findings", "Edema", "Nodule"]}


def run(folder, *argv) -> dict:
    """The trainer's state after a run."""
    train_tier.main([*COMMON, "--output_dir", str(folder), *argv])
    return json.loads((folder / "trainer_state.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_the_lowest_loss_is_the_best_everywhere(task, tmp_path, caplog):
    folder = tmp_path / "run"
    with caplog.at_level("INFO", logger="training_tier"):
        state = run(
            folder,
            *TASKS[task],
            *("--metric_for_best_model", "eval_loss", "--save_top_k", "2", "--average_top_k"),
            *("--learning_rate", "1e-3"),  # the losses differ, on any processor
        )
    losses = {entry["step"]: entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry}
    lowest = sorted(losses, key=losses.get)
    assert len(losses) == 4 and len(set(losses.values())) == 4
    assert state["best_metric"] == losses[lowest[0]] and state["best_global_step"] == lowest[0]
    kept = {path.name for path in folder.glob("checkpoint-*")}
    assert kept == {f"checkpoint-{step}" for step in {*lowest[:2], max(losses)}}
    for step in lowest[:2]:
        assert f"{folder / f'checkpoint-{step}'}: eval_loss {losses[step]:.4f}" in caplog.text
    for step in lowest[2:]:
        assert f"{folder / f'checkpoint-{step}'}: eval_loss" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_early_stopping_waits_for_a_lower_loss(task, tmp_path):
    patience = ["--metric_for_best_model", "loss", "--early_stopping_patience", "1"]
    state = run(tmp_path / "run", *TASKS[task], *patience, "--learning_rate", "1e-4")
    losses = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    rises = [i for i in range(1, len(losses)) if losses[i] >= min(losses[:i])]
    assert losses[1] < losses[0]  # where more were better, this would have ended the run
    assert len(losses) == (rises[0] + 1 if rises else 4)
    assert state["best_metric"] == min(losses)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("metric", ["auroc", "eval_auroc_Edema"])
def test_auroc_by_any_of_its_names(task, metric, tmp_path):
    state = run(tmp_path / "run", *TASKS[task], "--metric_for_best_model", metric, "--num_train_epochs", "2")
    name = f"eval_{metric.removeprefix('eval_')}"
    assert state["best_metric"] == max(entry[name] for entry in state["log_history"] if name in entry)


@pytest.mark.parametrize("task", TASKS)
def test_a_typo_in_the_metric_is_known_before_the_training(task, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path / "run", *TASKS[task], "--metric_for_best_model", "eval_auroc_Edma")
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith(
        "train_tier.py: error: metric_for_best_model='eval_auroc_Edma' is not measured in this training; did you mean "
        "'eval_auroc_Edema'? The metrics are eval_loss, "
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_training_that_names_no_weights_is_tier_and_says_so(tmp_path, caplog):
    run(tmp_path / "run", "--num_train_epochs", "1")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["token_entropy_weight"], config["patch_entropy_weight"]) == (0.2, 0.2)
    assert "Entropy weights: 0.2 (token) and 0.2 (patch), the default." in caplog.text
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| Entropy weights | 0.2 (token) and 0.2 (patch), the default |" in card

    plain = ["--token_entropy_weight", "0", "--patch_entropy_weight", "0", "--num_train_epochs", "1"]
    state = run(tmp_path / "plain", *plain)
    logged = next(entry for entry in state["log_history"] if "eval_loss" in entry)
    assert logged["eval_loss"] == pytest.approx(logged["eval_contrastive_loss"], rel=1e-5)
    card = (tmp_path / "plain" / "README.md").read_text()
    assert "| Entropy weights | 0 (token) and 0 (patch), as given; this is plain CLIP |" in card


def test_help_states_the_defaults(capsys):
    with pytest.raises(SystemExit, match="0"):
        train_tier.main(["--help_all"])
    told = " ".join(capsys.readouterr().out.split())
    assert "By default 0.2, or the checkpoint's own weights if one of the two is not 0." in told
    assert "5e-4 for random weights, 5e-5 for pretrained weights (a checkpoint or two towers)" in told
