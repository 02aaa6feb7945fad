import json
import os
import shutil
import subprocess
import sys
from enum import Enum
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hub_server import Commit, HubServer, Repo
from safetensors.torch import load_file

import eval_zeroshot
import train_tier
from processing_tier import TierProcessor, read_radiograph
from processing_tier.phantom import make_phantom
from training_tier.arguments import (
    DataArguments,
    ModelArguments,
    TaskArguments,
    TierTrainingArguments,
    parse_arguments,
)
from training_tier.data import hold_out, load_splits

REPOSITORY = Path(train_tier.__file__).parent
QUICK = [
    "--data",
    "phantom:num_images=48,image_size=64",
    *("--image_size", "32"),
    *("--eval_split", "validation"),
    *("--per_device_train_batch_size", "8"),
    *("--num_train_epochs", "1"),
    *("--min_positives", "2"),
    *("--report_to", "none"),
    *("--use_cpu", "true"),
    *("--dataloader_pin_memory", "false"),
    *("--disable_tqdm", "true"),
]


def run(*argv):
    train_tier.main([str(word) for word in argv])


def write_folder(folder: Path, num_images: int = 24, patients: dict | None = None) -> Path:
    """An image folder of phantoms with the splits train and validation."""
    for split in ("train", "validation"):
        records = make_phantom(num_images, seed=0, image_size=64, split=split)
        (folder / split).mkdir(parents=True)
        rows = []
        for record in records:
            name = f"{record['image_id']}.png"
            read_radiograph(record["image"]).save(folder / split / name)
            rows.append(
                {
                    "file_name": name,
                    "patient_id": (patients or {}).get(split, record["patient_id"]),
                    "impression": record["impression"],
                    "Consolidation": record["Consolidation"],
                    "Fracture": 0,
                }
            )
        pd.DataFrame(rows).to_csv(folder / split / "metadata.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images") / "data")


def refused(capsys, *argv) -> str:
    """The one sentence on stderr of a run that ends with code 2 before any training."""
    with pytest.raises(SystemExit) as stop:
        run(*argv)
    assert stop.value.code == 2
    captured = capsys.readouterr().err.strip().splitlines()[-1]
    assert captured.startswith("train_tier.py: error: ")
    return captured.removeprefix("train_tier.py: error: ")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    run(*QUICK, "--output_dir", folder, "--token_entropy_weight", "0.1")
    return folder


def test_a_run_leaves_a_model_that_loads_with_its_processor_and_log(trained):
    from evaluation_tier.zeroshot import load_model

    model, processor = load_model(trained)
    assert model.config.token_entropy_weight == 0.1 and model.config.image_pooling == "patch_mean"
    assert isinstance(processor, TierProcessor) and processor.image_processor.size == {"height": 32, "width": 32}
    history = json.loads((trained / "trainer_state.json").read_text())["log_history"]
    assert any("eval_auroc" in entry and "eval_token_entropy" in entry for entry in history)
    card = (trained / "README.md").read_text()
    assert "**Trained on synthetic radiographs.**" in card and "random (tiny)" in card


def test_continuing_from_a_checkpoint_keeps_its_tokenizer_and_takes_new_weights_of_the_terms(trained, tmp_path):
    run(*(word for word in QUICK if word not in ("--image_size", "32")), "--model", trained, "--output_dir",
        tmp_path / "run", "--patch_entropy_weight", "0.3")  # fmt: skip
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["token_entropy_weight"], config["patch_entropy_weight"]) == (0.1, 0.3)
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == (trained / "tokenizer.json").read_bytes()


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
    assert "a dual encoder of two towers, resnet for images" in (tmp_path / "second" / "README.md").read_text()

    argv = [tmp_path / "second", "--data", QUICK[1], "--split", "validation", "--min_positives", "2"]
    argv += ["--n_bootstrap", "10", "--figures", "--output_dir", tmp_path / "evaluation"]
    eval_zeroshot.main([str(word) for word in argv])
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    history = json.loads((tmp_path / "second" / "trainer_state.json").read_text())["log_history"]
    trained = next(entry["eval_auroc"] for entry in history if "eval_auroc" in entry)
    assert metrics["mean"]["auroc"] == pytest.approx(trained, abs=1e-9)


def test_pretrained_towers_are_trained_under_new_heads(tower_folders, tmp_path):
    vision, text = tower_folders
    towers = ["--vision_model", vision, "--text_model", text, "--frozen_text_layers", "2"]
    run(*QUICK, "--max_steps", "3", *towers, "--output_dir", tmp_path / "run")
    tensors, before = load_file(tmp_path / "run" / "model.safetensors"), load_file(text / "model.safetensors")
    kept = [torch.equal(tensors[f"text_model.encoder.layer.{i}.output.dense.weight"],
                        before[f"bert.encoder.layer.{i}.output.dense.weight"]) for i in range(3)]  # fmt: skip
    assert kept == [True, True, False]
    assert "| Initial weights | resnet and bert |" in (tmp_path / "run" / "README.md").read_text()


def test_an_image_folder_with_a_text_column_alone(folder, tmp_path):
    run(*QUICK, "--data", folder, "--output_dir", tmp_path / "run", "--findings", "Consolidation")
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_held_out_patients_are_never_trained_on():
    records = make_phantom(60, seed=0, image_size=64)
    train, evaluation = hold_out(records, 0.2, seed=3)
    assert not set(train["patient_id"]) & set(evaluation["patient_id"])
    assert len(train) + len(evaluation) == 60
    patients = len(set(records["patient_id"]))
    assert len(set(evaluation["patient_id"])) == round(0.2 * patients)
    again = hold_out(records, 0.2, seed=3)[1]
    assert again["image_id"][:] == evaluation["image_id"][:]
    assert hold_out(records, 0.2, seed=4)[1]["image_id"][:] != evaluation["image_id"][:]


def test_records_without_text_are_left_out(folder, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(folder, copy)
    frame = pd.read_csv(copy / "train" / "metadata.csv")
    frame.loc[:3, "impression"] = np.nan
    frame.loc[4, "impression"] = "XXXX ___."
    frame.to_csv(copy / "train" / "metadata.csv", index=False)
    for deidentified, count in (("keep", 20), ("remove", 19)):
        arguments = DataArguments(data=str(copy), eval_split="validation", deidentified=deidentified)
        train, _ = load_splits(arguments, seed=0)
        assert len(train) == count and all(train["impression"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--model", "gigantic"], "'gigantic'"),
        (
            ["--model", "./nowhere"],
            "There is no checkpoint folder './nowhere'; name one, or a preset (nano, tiny, small",
        ),
        (["--token_entropy_weight", "-1"], "token_entropy_weight must be a finite number of at least 0"),
        (
            ["--vision_model", "./nowhere", "--text_model", "./nowhere"],
            "No vision model can be loaded from './nowhere'",
        ),
        (
            ["--image_size", "100"],
            "image_size=100 is no multiple of the 16-pixel patches of 'tiny'; use for example 96.",
        ),
        (["--findings", "Consolidatoin"], "Consolidatoin"),
        (["--prompts", "nonsense"], "prompts 'nonsense' are not known; choose one of"),
        (["--min_positives", "1000"], "No finding has 1000 positives"),
        (["--per_device_train_batch_size", "64"], "48 training pairs do not fill one batch of 64; lower --per_device"),
        (["--lerning_rate", "1"], "Unknown option '--lerning_rate'; did you mean 'learning_rate'?"),
        (["--text", "history"], "text='history' is not known"),
        (["--resume_from_checkpoint", "last"], "holds no checkpoint to resume from"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *QUICK, "--output_dir", "run", *argv)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_patient_in_two_splits_is_refused(capsys, tmp_path):
    data = write_folder(tmp_path / "data", patients={"train": "p1", "validation": "p1"})
    message = refused(capsys, *QUICK, "--data", data, "--output_dir", tmp_path / "run")
    assert message.startswith("1 patient is in both 'train' and 'evaluation'")


def test_a_finding_without_positives_is_refused_by_name(capsys, folder, tmp_path):
    message = refused(capsys, *QUICK, "--data", folder, "--output_dir", tmp_path / "run", "--findings", "Fracture")
    assert message.startswith("The finding 'Fracture' has no positive image among the 24")


def test_a_missing_column_is_refused_by_name(capsys, folder, tmp_path):
    table = tmp_path / "table.csv"
    pd.DataFrame({"path": ["a.png"], "who": ["p"], "split": ["train"]}).to_csv(table, index=False)
    argv = ("--data", table, "--columns", "image=path", "patient_id=who", "impression=text")
    assert "column 'text'" in refused(capsys, *QUICK, *argv, "--output_dir", tmp_path / "run")


def test_images_that_do_not_decode_are_found_before_training(capsys, folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    for image in (data / "train").glob("*.png"):
        image.write_bytes(image.read_bytes()[:60])
    message = refused(capsys, *QUICK, "--data", data, "--output_dir", tmp_path / "run", "--min_positives", "1")
    assert message.startswith("None of the first 8 images decodes. The first one: synthetic-train-")


def test_a_checkpoint_folder_without_weights(capsys, trained, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("*.safetensors", "checkpoint-*"))
    argv = [word for word in QUICK if word not in ("--image_size", "32")]
    message = refused(capsys, *argv, "--model", folder, "--output_dir", tmp_path / "run")
    assert message.startswith(f"The checkpoint folder '{folder}' holds no weights (*.safetensors)")


def test_a_finished_run_is_not_overwritten(capsys, trained):
    before = (trained / "model.safetensors").stat().st_mtime_ns
    assert "already holds a run" in refused(capsys, *QUICK, "--output_dir", trained)
    assert (trained / "model.safetensors").stat().st_mtime_ns == before


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
        result = subprocess.run([*command, str(folder)], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr[-2000:]
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        losses.append([entry["contrastive_loss"] for entry in history if "contrastive_loss" in entry])
        weights.append(load_file(folder / "model.safetensors"))
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], rel=1e-4)
    one, two = weights
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared data set of two splits, the first in two files of several row groups."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "data").mkdir()
    train, validation = (make_phantom(n, 0, 64, split) for n, split in ((52, "train"), (24, "validation")))
    for number, part in enumerate((range(30), range(30, 52))):
        train.select(part).to_parquet(folder / f"data/train-{number:05d}-of-00002.parquet", batch_size=7)
    validation.to_parquet(folder / "data/validation-00000-of-00001.parquet", batch_size=7)
    return folder


def test_streaming_trains_on_the_records_of_the_shards(prepared, tmp_path):
    argv = [*QUICK, "--data", prepared, "--text_warmup_epochs", "0", "--max_train_images", "50"]
    run(
        *argv, "--streaming", "--shuffle_buffer", "10", "--dataloader_num_workers", "2", "--output_dir", tmp_path / "a"
    )
    run(*argv, "--output_dir", tmp_path / "b")  # the same folder without streaming
    cards = [(tmp_path / name / "README.md").read_text() for name in "ab"]
    states = [json.loads((tmp_path / name / "trainer_state.json").read_text()) for name in "ab"]
    assert [state["global_step"] for state in states] == [6, 6]  # 50 // 8
    for card, state in zip(cards, states, strict=True):
        assert "| Images | 50 |" in card
        assert any("eval_auroc" in entry for entry in state["log_history"])
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()


def test_streaming_trains_a_classifier(prepared, tmp_path):
    argv = ["--data", prepared, "--streaming", "--task", "classification", "--label_fraction", "0.8"]
    argv += ["--model", "resnet-tiny", "--findings", "Consolidation", "--dataloader_drop_last", "false"]
    run(*QUICK, *argv, "--output_dir", tmp_path / "run")
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert any("eval_auroc_Consolidation" in entry for entry in history)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data", "phantom"], "--streaming reads the Parquet files that tier-prepare writes, in a folder or on the"),
        (["--train_split", "training"], "there is no split 'training'; it has train, validation."),
        (["--columns", "image=img"], "columns has no effect with streaming, which reads prepared data; leave it out."),
        (["--shuffle_buffer", "0"], "shuffle_buffer=0 must be at least 1, which is no shuffling."),
        (["--per_device_train_batch_size", "64"], "52 training pairs do not fill one batch of 64; lower"),
        (
            ["--dataloader_persistent_workers", "true"],
            "dataloader_persistent_workers=True would repeat the random dra",
        ),
    ],
)
def test_what_streaming_cannot_do_is_refused(argv, message, capsys, prepared, tmp_path):
    assert message in refused(
        capsys, *QUICK, "--data", prepared, "--streaming", *argv, "--output_dir", tmp_path / "run"
    )


def test_streaming_needs_a_split_for_evaluation(capsys, prepared, tmp_path):
    argv = [word for word in QUICK if word not in ("--eval_split", "validation")]
    message = refused(capsys, *argv, "--data", prepared, "--streaming", "--output_dir", tmp_path / "run")
    assert message == "streaming holds no patients out of the training split; name an --eval_split."
    message = refused(capsys, *QUICK, "--shuffle_buffer", "5", "--output_dir", tmp_path / "run")
    assert message == "shuffle_buffer=5 has no effect without --streaming; leave it out."


@pytest.mark.slow
def test_streaming_from_the_hub_fetches_ranges_and_keeps_no_copy(prepared, tmp_path):
    files = {f"data/{path.name}": path.read_bytes() for path in (prepared / "data").iterdir()}
    argv = [*QUICK, "--data", "user/prepared", "--streaming", "--views", "all", "--eval_strategy", "no"]
    argv += ["--save_strategy", "no", "--load_best_model_at_end", "false", "--output_dir", str(tmp_path / "run")]
    with HubServer() as hub:
        hub.repos["user/prepared"] = Repo(private=True, commits=[Commit("data", files)])
        hub_env = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "token", "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        result = subprocess.run(
            [sys.executable, str(REPOSITORY / "train_tier.py"), *argv],
            env={**os.environ, **hub_env, "HF_HOME": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr[-2000:]
        sent = hub.sent
    assert (tmp_path / "run" / "model.safetensors").is_file()
    shards = [name for name in files if "train" in name]
    assert not any("train" in path.name for path in (tmp_path / "cache").rglob("*"))
    images = [pq.read_table(prepared / name, columns=["image"]).nbytes for name in shards]
    for name, size in zip(shards, images, strict=True):
        # the first images are read once more by the check before the training, the footers (50 KiB here) too
        assert size < sent[name] < 2 * size + 2**18


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [[], ["--streaming", "--shuffle_buffer", "10", "--dataloader_num_workers", "2"]],
    ids=["map-style", "streamed by 2 workers"],
)
def test_two_resumed_processes_equal_two_uninterrupted_ones(prepared, tmp_path, options):
    """From the second of three steps of the second epoch; each step has 8 images of each process."""
    quick = [*QUICK, "--data", str(prepared), *options, "--num_train_epochs", "3", "--logging_steps", "1"]
    quick += ["--eval_strategy", "no", "--load_best_model_at_end", "false", "--save_strategy", "steps"]
    quick += ["--save_steps", "4", "--save_total_limit", "5"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    folder, losses, weights = tmp_path / "run", [], []
    for resume in ([], ["--resume_from_checkpoint", str(folder / "checkpoint-4")]):
        command = [*launcher, str(REPOSITORY / "train_tier.py"), *quick, *resume, "--output_dir", str(folder)]
        result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr[-2000:]
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        losses.append([entry["loss"] for entry in history if "loss" in entry])
        weights.append(load_file(folder / "model.safetensors"))
    assert len(losses[0]) == 9 and losses[0] == losses[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_best_checkpoints_are_kept_averaged_and_an_ensemble(tmp_path, capsys, caplog):
    folder = tmp_path / "run"
    options = ["--save_top_k", "2", "--average_top_k", "--num_train_epochs", "4", "--learning_rate", "1e-2"]
    options += ["--early_stopping_patience", "4"]
    with caplog.at_level("INFO", logger="train_tier"):
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

    data = ["--data", QUICK[1], "--min_positives", "2", "--n_bootstrap", "5", "--output_dir", tmp_path / "evaluation"]
    eval_zeroshot.main([str(word) for word in (*members, *data)])
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert metrics["models"] == [str(path) for path in members]
    shutil.copytree(members[0], tmp_path / "copy")
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        eval_zeroshot.main([str(word) for word in (*members, tmp_path / "copy", *data)])
    assert exit_.value.code == 2
    assert f"{members[0]} and {tmp_path / 'copy'} have identical weights" in capsys.readouterr().err


RECIPES = sorted(path.name for path in (REPOSITORY / "configs").glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_accepted(name, tmp_path):
    recipe = REPOSITORY / "configs" / name
    types = (TaskArguments, ModelArguments, DataArguments, TierTrainingArguments)
    words = [str(recipe), "--output_dir", str(tmp_path / "run"), "--use_cpu", "--report_to", "none"]
    parsed = parse_arguments(words, types, "train_tier.py")
    values = yaml.safe_load(recipe.read_text())
    given = {name: getattr(group, name) for group in parsed for name in group.__dataclass_fields__ if name in values}
    assert given.keys() == values.keys()
    for name, value in values.items():
        read = given[name].value if isinstance(given[name], Enum) else given[name]
        assert read == type(read)(value), name  # YAML 1.1 reads 5e-5 as text


@pytest.mark.parametrize("name", ["chexzero.yaml", "tier.yaml", "tier-vit.yaml"])
def test_every_line_of_a_references_recipe_says_where_it_comes_from(name):
    lines = (REPOSITORY / "configs" / name).read_text().splitlines()
    options = [line for line in lines if not line.startswith("#")]
    marks = ("[field]", "[paper]", "[guess]") if name == "tier-vit.yaml" else ("[code]", "[runs]", "[ours]")
    assert len(options) > 20
    for line in options:
        assert any(mark in line.partition("#")[2] for mark in marks), line


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chexzero.yaml", "tier.yaml", "tier-vit.yaml"])
def test_the_references_recipes_train_a_small_stand_in(name, tmp_path):
    base = tmp_path / "base"
    few = ["--max_steps", "2", "--logging_steps", "1", "--num_train_epochs", "1"]
    few += ["--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "1"]
    preset = "resnet-tiny" if name == "tier.yaml" else "tiny"
    run(*QUICK, *few, "--model", preset, "--output_dir", base, "--learning_rate", "1e-3")
    options = [word for word in QUICK if word not in ("--num_train_epochs", "1")] + few
    options += ["--model", base, "--findings", "Consolidation", "Pleural Effusion", "--bf16", "false"]
    if name == "tier.yaml":
        options += ["--frozen_text_layers", "1"]  # of 2
    run(REPOSITORY / "configs" / name, *options, "--output_dir", tmp_path / "run")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "run"))
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    frozen = {key for key in before if key.startswith(("text_model.embeddings.", "text_model.encoder.layers.0."))}
    assert "visual_projection.weight" in moved or "visual_projection.0.weight" in moved
    assert (not moved & frozen) == (name == "tier.yaml")
    settings = json.loads((tmp_path / "run" / "training_args.json").read_text())
    assert settings["optim"] == {"chexzero.yaml": "sgd"}.get(name, settings["optim"])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["image_pooling"] == ("cls" if name == "chexzero.yaml" else "patch_mean")
