"""Trainings from their options to their files: models, processors, cards, and the checkpoints that are kept."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from child_processes import run_child
from safetensors.torch import load_file
from training_runs import QUICK, REPOSITORY, run, write_folder

import eval_zeroshot
from processing_tier import TierProcessor


def test_a_run_leaves_a_model_that_loads_with_its_processor_and_log(trained_run):
    from evaluation_tier.models.loading import load_model

    model, processor = load_model(trained_run)
    assert model.config.token_entropy_weight == 0.1 and model.config.image_pooling == "patch_mean"
    assert isinstance(processor, TierProcessor) and processor.image_processor.size == {"height": 32, "width": 32}
    history = json.loads((trained_run / "trainer_state.json").read_text())["log_history"]
    assert any("eval_auroc" in entry and "eval_token_entropy" in entry for entry in history)
    card = (trained_run / "README.md").read_text()
    assert "**Trained on synthetic radiographs.**" in card and "random (tiny)" in card


@pytest.mark.slow
def test_continuing_from_a_checkpoint_keeps_its_tokenizer_and_takes_new_weights_of_the_terms(trained_run, tmp_path):
    run(*(word for word in QUICK if word not in ("--image_size", "32")), "--model", trained_run, "--output_dir",
        tmp_path / "run", "--patch_entropy_weight", "0.3")  # fmt: skip
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["token_entropy_weight"], config["patch_entropy_weight"]) == (0.1, 0.3)
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == (trained_run / "tokenizer.json").read_bytes()


@pytest.mark.slow
def test_a_dual_encoder_is_trained_continued_and_evaluated(tmp_path):

    three_steps = [*QUICK, "--max_steps", "3"]
    run(*three_steps, "--model", "resnet-tiny", "--output_dir", tmp_path / "first")
    rest = [word for word in three_steps if word not in ("--image_size", "32")]
    run(*rest, "--model", tmp_path / "first", "--frozen_text_layers", "1", "--output_dir", tmp_path / "second")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    frozen = ("text_model.embeddings.", "text_model.encoder.layers.0.")
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]) == name.startswith(frozen), name
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert (config["model_type"], config["frozen_text_layers"], config["image_size"]) == ("tier_dual_encoder", 1, 32)
    card = (tmp_path / "second" / "README.md").read_text()
    assert "a dual encoder of two towers, resnet for images" in card and "| Epochs | 3 steps |" in card

    argv = [tmp_path / "second", "--data", QUICK[1], "--split", "validation", "--min_positives", "2"]
    argv += ["--n_bootstrap", "10", "--figures", "--output_dir", tmp_path / "evaluation"]
    eval_zeroshot.main([str(word) for word in argv])
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    history = json.loads((tmp_path / "second" / "trainer_state.json").read_text())["log_history"]
    trained = next(entry["eval_auroc"] for entry in history if "eval_auroc" in entry)
    assert metrics["mean"]["auroc"] == pytest.approx(trained, abs=1e-9)


@pytest.mark.slow
def test_pretrained_towers_are_trained_under_new_heads(tower_folders, tmp_path):
    vision, text = tower_folders
    towers = ["--vision_model", vision, "--text_model", text, "--frozen_text_layers", "2"]
    run(*QUICK, "--max_steps", "3", *towers, "--output_dir", tmp_path / "run")
    tensors, before = load_file(tmp_path / "run" / "model.safetensors"), load_file(text / "model.safetensors")
    kept = [torch.equal(tensors[f"text_model.encoder.layer.{i}.output.dense.weight"],
                        before[f"bert.encoder.layer.{i}.output.dense.weight"]) for i in range(3)]  # fmt: skip
    assert kept == [True, True, False]
    assert "| Initial weights | resnet and bert |" in (tmp_path / "run" / "README.md").read_text()


def test_an_image_folder_with_a_text_column_alone(image_folder, tmp_path):
    run(*QUICK, "--data", image_folder, "--output_dir", tmp_path / "run", "--findings", "Consolidation")
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_cache_of_images_is_filled_once_and_used_by_a_classifier_too(image_folder, tmp_path, monkeypatch):
    argv = [*QUICK, "--data", image_folder, "--max_steps", "2", "--image_cache", tmp_path / "cache"]
    run(*argv, "--group_texts", "true", "--output_dir", tmp_path / "run")
    (file,) = (tmp_path / "cache").glob("*/*.arrow")
    before = file.stat().st_mtime_ns
    monkeypatch.chdir(tmp_path)
    argv = [word for word in argv if word not in ("--image_size", "32")]
    argv += ["--task", "classification", "--model", tmp_path / "run", "--findings", "Consolidation"]
    run(*argv, "--output_dir", tmp_path / "classifier")
    assert [path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.arrow")] == [before]
    with pytest.raises(SystemExit):
        run(*argv, "--train_sampling_strategy", "group_by_length", "--output_dir", tmp_path / "other")


@pytest.mark.slow
def test_two_processes_of_4_pairs_are_one_of_8(tmp_path):
    """One by `accelerate launch`, two by `torchrun`: on CPUs, the former starts one process however many are asked."""
    launchers = {
        1: ["accelerate.commands.launch", "--cpu", "--num_machines", "1", "--num_processes", "1"]
        + ["--mixed_precision", "no", "--dynamo_backend", "no"],
        2: ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    }
    losses, weights = [], []
    for count, launcher in launchers.items():
        quick = [*QUICK, "--per_device_train_batch_size", str(8 // count), "--max_steps", "4", "--logging_steps", "1"]
        quick += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
        command = [sys.executable, "-m", *launcher, str(REPOSITORY / "train_tier.py"), *quick, "--output_dir"]
        folder = tmp_path / str(count)
        result = run_child([*command, folder])
        assert result.returncode == 0, result.stderr[-2000:]
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        losses.append([entry["contrastive_loss"] for entry in history if "contrastive_loss" in entry])
        weights.append(load_file(folder / "model.safetensors"))
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], rel=1e-4)
    one, two = weights
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_best_checkpoints_are_kept_averaged_and_an_ensemble(tmp_path, capsys, caplog):
    folder = tmp_path / "run"
    options = ["--save_top_k", "2", "--average_top_k", "--num_train_epochs", "4", "--learning_rate", "1e-2"]
    options += ["--early_stopping_patience", "4"]
    with caplog.at_level("INFO", logger="training_tier"):
        run(*QUICK, *options, "--output_dir", folder)
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    aurocs = {entry["step"]: entry["eval_auroc"] for entry in history if "eval_auroc" in entry}
    best = sorted(aurocs, key=lambda step: (-aurocs[step], step))[:2]
    kept = {path.name for path in folder.glob("checkpoint-*")}
    assert len(aurocs) == 4 and kept == {f"checkpoint-{step}" for step in {*best, max(aurocs)}}
    members = [folder / f"checkpoint-{step}" for step in best]
    first, second, mean = (load_file(path / "model.safetensors") for path in (*members, folder))
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, (first[name] + second[name]) / 2, rtol=1e-5, atol=1e-6)
    averaged = next(entry["average_auroc"] for entry in history if "average_auroc" in entry)
    assert f"{members[0]}: eval_auroc {aurocs[best[0]]:.4f}" in caplog.text
    assert f"The mean of their weights: average_auroc {averaged:.4f}" in caplog.text
    command = f"python eval_zeroshot.py {members[0]} {members[1]} --data ..."
    assert command in caplog.text
    assert f"The model with the mean weights of the best checkpoints is in {folder}. Evaluate it: " in caplog.text

    data = ["--data", QUICK[1], "--min_positives", "2", "--n_bootstrap", "5", "--output_dir", tmp_path / "evaluation"]
    eval_zeroshot.main([str(word) for word in (*members, *data)])
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert metrics["models"] == [f"{path.parent.name}/{path.name}" for path in members]
    shutil.copytree(members[0], tmp_path / "copy")
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        eval_zeroshot.main([str(word) for word in (*members, tmp_path / "copy", *data, "--overwrite")])
    assert exit_.value.code == 2
    copies = f"{members[0].parent.name}/{members[0].name} and {tmp_path.name}/copy"
    assert f"{copies} have identical weights" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("best", [True, False])
def test_a_training_ends_with_the_command_that_evaluates_it(best, tmp_path, caplog):
    write_folder(tmp_path / "images")
    tables = [pd.read_csv(path).assign(split=path.parent.name) for path in sorted(tmp_path.glob("images/*/*.csv"))]
    table = pd.concat(tables).rename(columns={"file_name": "my path"})
    table["my path"] = table["split"] + "/" + table["my path"]
    table.to_csv(tmp_path / "my table.csv", index=False)
    named = ["--data", tmp_path / "my table.csv", "--columns", "image=my path", "--image_root", tmp_path / "images"]
    with caplog.at_level("INFO", logger="training_tier"):
        run(*QUICK, *named, "--load_best_model_at_end", str(best), "--output_dir", tmp_path / "run")
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    name = Path(state["best_model_checkpoint"]).name
    assert f"Best checkpoint: {name}, eval_auroc {state['best_metric']:.4f}." in caplog.text
    whose = f"of {name}" if best else "of the last step"
    told = f"The model {whose} is in {tmp_path / 'run'}. Evaluate it: python eval_zeroshot.py "
    assert told + shlex.join(map(str, [tmp_path / "run", *named])) in caplog.text
