import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
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
from processing_tier.phantom.dataset import make_phantom
from training_tier.data.splits import hold_out, load_splits
from training_tier.loop.checkpoints import last_checkpoint
from training_tier.loop.integrity import find_fault
from training_tier.options.data import DataArguments
from training_tier.options.model import ModelArguments
from training_tier.options.parsing import parse_arguments
from training_tier.options.task import TaskArguments
from training_tier.options.training import TierTrainingArguments

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


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (["--vision_model", "./nowhere", "--text_model", "bert-base-uncased"], "tower"),
        (["--vision_model", "microsoft/resnet-50", "--text_model", "./nowhere"], "tower"),
        (["--model", "nano", "--tokenizer", "./nowhere"], "tokenizer"),
    ],
)
def test_a_mistyped_tower_is_known_before_data_are_read(capsys, tmp_path, options, kind):
    """The data are not there either, and are not asked for first."""
    assert refused(capsys, "--data", tmp_path / "no_data", *options, "--output_dir", tmp_path / "run") == (
        f"There is no {kind} ./nowhere on this disk, and it was not looked up on the Hub: name one on this disk, or a "
        f"{kind} on the Hub (owner/name)."
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    run(*QUICK, "--output_dir", folder, "--token_entropy_weight", "0.1")
    return folder


def test_a_run_leaves_a_model_that_loads_with_its_processor_and_log(trained):
    from evaluation_tier.models.loading import load_model

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


def test_a_cache_of_images_is_filled_once_and_used_by_a_classifier_too(folder, tmp_path, monkeypatch):
    argv = [*QUICK, "--data", folder, "--max_steps", "2", "--image_cache", tmp_path / "cache"]
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
        (["--token_entropy_weight", "-1"], "token_entropy_weight=-1.0 must be at least 0."),
        (
            ["--vision_model", "./nowhere", "--text_model", "./nowhere"],
            "There is no tower ./nowhere on this disk, and it was not looked up on the Hub",
        ),
        (
            ["--image_size", "100"],
            "image_size=100 is not a multiple of the 16-pixel patches of 'tiny'; use for example 96.",
        ),
        (["--findings", "Consolidatoin"], "Consolidatoin"),
        (["--prompts", "nonsense"], "prompts 'nonsense' are not known; choose one of"),
        (["--min_positives", "1000"], "No finding has 1000 positives"),
        (["--per_device_train_batch_size", "64"], "48 training pairs do not fill one batch of 64; lower --per_device"),
        (
            ["--contrastive_chunk_size", "9"],
            "contrastive_chunk_size=9 is more than the 8 pairs of a batch, which would be one chunk; lower it",
        ),
        (["--per_device_train_batch_size", "1"], "A batch of 1 pair has no negatives; raise --per_de"),
        (["--train_sampling_strategy", "batch_rebalance"], "train_sampling_strategy='batch_rebalance' is not known"),
        (["--lerning_rate", "1"], "Unknown option '--lerning_rate'; did you mean 'learning_rate'?"),
        (["--text", "history"], "text='history' is not known"),
        (["--resume_from_checkpoint", "last"], "does not hold a whole checkpoint to resume from"),
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
        (
            ["--train_split", "training"],
            "it has train, validation. Choose one with --split (tier-train: --train_split",
        ),
        (["--columns", "image=img"], "columns has no effect with streaming, which reads prepared data; leave it out."),
        (["--shuffle_buffer", "0"], "shuffle_buffer=0 must be at least 1."),
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
    assert message == "Streaming cannot hold out patients: pass --eval_split."
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
        # once to be hashed, the first images once more by the check before the training; also footers (50 KiB here)
        assert 2 * size < sent[name] < 3 * size + 3 * 2**17


RESUMABLE = [
    *QUICK,
    *("--model", "nano"),
    *("--max_steps", "4"),
    *("--save_strategy", "steps"),
    *("--save_steps", "2"),
    *("--eval_strategy", "no"),
    *("--load_best_model_at_end", "false"),
    *("--token_entropy_weight", "0.1"),
]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of which the second half is lost."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    run(*RESUMABLE, "--output_dir", folder)
    shutil.rmtree(folder / "checkpoint-4")
    return folder


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--token_entropy_weight", "0.3"],
            "checkpoint-2: token_entropy_weight was 0.1 and is 0.3. Set them back, or add --resume_changed true to "
            "resume with the change.",
        ),
        (
            ["--data", "phantom:num_images=40,image_size=64"],
            r"data was 48 and 48 images of phantom:num_images=48,image_size=64 \(digest \w{12} \w{12}\) and is 40 and "
            r"40 images of phantom:num_images=40,image_size=64 \(digest \w{12} \w{12}\)\. Set",
        ),
        (
            ["--learning_rate", "1e-3", "--max_steps", "8"],
            "learning_rate was 0.0005 and is 0.001; max_steps was 4 and is 8",
        ),
        (["--augmentation", "none"], "augmentation was 'standard' and is 'none'. Set"),
        (
            ["--model", "tiny", "--resume_changed", "true"],
            "checkpoint-2 belongs to another model: its vision_config.hidden_size is 128, and this run's is 192.",
        ),
        (["--findings", "Consolidatoin"], "Consolidatoin"),
        (
            ["--resume_from_checkpoint", "runs/nowhere"],
            "'runs/nowhere' is not a whole checkpoint: there is no such folder",
        ),
    ],
)
def test_a_run_that_would_go_on_otherwise_is_refused(argv, message, capsys, begun):
    before = sorted(path.name for path in begun.iterdir())
    said = refused(capsys, *RESUMABLE, "--resume_from_checkpoint", "last", "--output_dir", begun, *argv)
    assert re.search(message if "\\" in message else re.escape(message), said)
    assert sorted(path.name for path in begun.iterdir()) == before


def test_a_checkpoint_with_another_tokenizer_is_refused(capsys, begun, tmp_path):
    shutil.copytree(begun / "checkpoint-2", tmp_path / "checkpoint-2")
    file = tmp_path / "checkpoint-2" / "tokenizer.json"
    content = json.loads(file.read_text())
    words = content["model"]["vocab"]
    first, second = list(words)[-2:]
    words[first], words[second] = words[second], words[first]
    file.write_text(json.dumps(content))
    argv = ["--resume_from_checkpoint", tmp_path / "checkpoint-2", "--resume_changed", "true"]
    message = refused(capsys, *RESUMABLE, "--output_dir", begun, *argv)
    assert re.search(r"belongs to another model: its tokenizer lacks 2 of the \d+ tokens of this run, or", message)


def test_what_changes_no_result_may_change_and_the_rest_when_forced(begun, tmp_path, caplog):
    argv = ["--resume_from_checkpoint", begun / "checkpoint-2", "--logging_steps", "1", "--save_total_limit", "5"]
    run(*RESUMABLE, *argv, "--output_dir", tmp_path / "a")
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (begun, tmp_path / "a"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert "otherwise" not in caplog.text

    run(*RESUMABLE, *argv, "--patch_entropy_weight", "0.3", "--resume_changed", "true", "--output_dir", tmp_path / "b")
    assert "The run resumes with changes: patch_entropy_weight was 0.2 and is 0.3." in caplog.text
    assert json.loads((tmp_path / "b" / "config.json").read_text())["patch_entropy_weight"] == 0.3


# Runs train_tier.py and lets something happen to it: an event, a step and a process, from the environment.
BREAKABLE = """
import os, signal, sys
import torch
from pathlib import Path
from transformers import TrainerCallback
import train_tier
from training_tier.loop.trainer import RadiographTrainer

EVENT, STEP = os.environ["EVENT"], int(os.environ["STEP"])
RANKS = os.environ.get("RANKS", "0,1").split(",")


class Event(TrainerCallback):
    def __init__(self, trainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):  # when the gradients are there
        if os.environ.get("RANK", "0") not in RANKS or state.global_step + 1 != STEP:
            return
        if EVENT == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif EVENT == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        elif EVENT == "terminate the launcher":
            os.kill(os.getppid(), signal.SIGTERM)

    def on_step_begin(self, args, state, control, **kwargs):
        if os.environ.get("RANK", "0") in RANKS and state.global_step + 1 == STEP and EVENT == "nan":
            self.trainer.model.logit_scale.data.fill_(float("nan"))


make = RadiographTrainer.__init__
RadiographTrainer.__init__ = lambda self, **kwargs: make(self, **kwargs) or self.add_callback(Event(self))
if EVENT == "kill in a save":
    save = torch.save

    def torn(content, file, *args, **kwargs):
        save(content, file, *args, **kwargs)
        if f"checkpoint-{STEP}" in str(file) and str(file).endswith("optimizer.pt"):
            os.truncate(file, os.path.getsize(file) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = torn
train_tier.main()
"""


@pytest.fixture(scope="module")
def breakable(tmp_path_factory):
    file = tmp_path_factory.mktemp("breakable") / "breakable.py"
    file.write_text(BREAKABLE)

    def launch(argv, processes=1, event="none", step=0, ranks="0,1"):
        launcher = [sys.executable]
        if processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        return subprocess.run(
            [*launcher, str(file), *map(str, argv)],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "EVENT": event, "STEP": str(step), "RANKS": ranks},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return launch


def assert_equal_runs(folders):
    """The same weights, and the same log but for what is measured in seconds and the line on the whole training."""
    one, other = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(torch.equal(one[name], other[name]) for name in one)
    histories = []
    for folder in folders:
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"][:-1]
        timed = ("runtime", "per_second", "data_wait", "tflops")
        histories.append([{k: v for k, v in entry.items() if not k.endswith(timed)} for entry in history])
    assert histories[0] == histories[1]
    steps = [entry["step"] for entry in histories[0] if "loss" in entry]
    assert steps == sorted(set(steps)) and len(steps) > 2 and any("eval_loss" in entry for entry in histories[0])


STREAMED = ["--streaming", "--shuffle_buffer", "10", "--dataloader_num_workers", "1"]
# lines of the log and checkpoints lie across one another; the AUROC is left out to be quick
LOGGED = ["--num_train_epochs", "3", "--logging_steps", "3", "--save_strategy", "steps", "--save_steps", "2"]
LOGGED += ["--model", "nano", "--load_best_model_at_end", "false", "--metric_for_best_model", "eval_loss"]
LOGGED += ["--token_entropy_weight", "0.1"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], STREAMED], ids=["map-style", "streamed by a worker"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(breakable, prepared, tmp_path, options, processes):
    """18 steps, or 9 of two processes with the same number of images each."""
    argv = [*QUICK, "--data", prepared, *LOGGED, *options]
    step = random.Random(f"{options} {processes}").randrange(3, 18 // processes)
    folders = [tmp_path / name for name in ("whole", "run")]
    whole = breakable([*argv, "--output_dir", folders[0]], processes)
    assert whole.returncode == 0, whole.stderr[-2000:]
    killed = breakable([*argv, "--output_dir", folders[1]], processes, "kill", step)
    assert killed.returncode == (-9 if processes == 1 else 1)
    saved = max(int(path.name.removeprefix("checkpoint-")) for path in folders[1].glob("checkpoint-*"))
    assert saved == (step - 1) // 2 * 2 and not (folders[1] / "model.safetensors").exists()
    resumed = breakable([*argv, "--output_dir", folders[1], "--resume_from_checkpoint", "last"], processes)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert_equal_runs(folders)


@pytest.mark.slow
def test_a_kill_within_a_save_leaves_the_checkpoint_before(breakable, prepared, tmp_path):
    argv = [*QUICK, "--data", prepared, *LOGGED, "--output_dir", tmp_path / "run"]
    killed = breakable(argv, event="kill in a save", step=4)
    assert killed.returncode == -9
    content = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert content == ["_lock", "_saving", "checkpoint-2"]
    assert find_fault(tmp_path / "run" / "_saving" / "checkpoint-4") is not None
    assert last_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-2")
    run(*argv, "--resume_from_checkpoint", "last")
    assert not (tmp_path / "run" / "_saving").exists()
    assert json.loads((tmp_path / "run" / "trainer_state.json").read_text())["global_step"] == 18


@pytest.mark.slow
def test_a_terminated_run_ends_at_once_with_its_own_exit_code(breakable, prepared, tmp_path):
    argv = [*QUICK, "--data", prepared, *LOGGED, *STREAMED, "--output_dir", tmp_path / "run"]
    stopped = breakable(argv, event="terminate", step=4)  # too late for that step
    assert time.time() - (tmp_path / "run" / "checkpoint-5").stat().st_mtime < 10  # the worker ends too
    assert stopped.returncode == 143
    assert stopped.stderr.splitlines()[-1] == (
        f"train_tier.py: SIGTERM stopped the run at step 5 of 18. The checkpoint is {tmp_path}/run/checkpoint-5; "
        "resume with --resume_from_checkpoint last."
    )


@pytest.mark.slow
def test_two_processes_save_once_when_their_launcher_is_terminated(breakable, prepared, tmp_path):
    argv = [*QUICK, "--data", prepared, *LOGGED, *STREAMED]
    folders = [tmp_path / name for name in ("whole", "run")]
    assert breakable([*argv, "--output_dir", folders[0]], 2).returncode == 0
    stopped = breakable([*argv, "--output_dir", folders[1]], 2, "terminate the launcher", 4, ranks="0")
    assert stopped.returncode == 1  # torchrun's
    checkpoints = sorted(folders[1].glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    step = int(checkpoints[-1].name.split("-")[1])
    assert step >= 4 and find_fault(checkpoints[-1]) is None
    sentence = (
        f"train_tier.py: SIGTERM stopped the run at step {step} of 9. The checkpoint is {checkpoints[-1]}; resume with"
    )
    assert stopped.stderr.count("SIGTERM stopped the run") == 1 and sentence in stopped.stderr
    resumed = breakable([*argv, "--output_dir", folders[1], "--resume_from_checkpoint", "last"], 2)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert_equal_runs(folders)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_stops_both_within_the_step(breakable, prepared, tmp_path):
    argv = [*QUICK, "--data", prepared, *LOGGED, "--output_dir", tmp_path / "run"]
    stopped = breakable(argv, 2, "nan", 5, ranks="1")
    assert stopped.returncode == 1
    sentences = [line for line in stopped.stderr.splitlines() if line.startswith("train_tier.py: ")]
    match = re.fullmatch(
        r"train_tier\.py: The loss of step 5 is not finite; its images are (.*), and the last good checkpoint is "
        r"(.*)/checkpoint-4\. Check these images .*",
        sentences[0],
    )
    assert len(sentences) == 1 and match and match[2] == str(tmp_path / "run")
    ids = match[1].split(", ")
    assert len(set(ids)) == 16 and set(ids) <= set(make_phantom(52, 0, 64, "train")["image_id"])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.slow
def test_one_process_that_dies_brings_down_the_other_within_a_minute(breakable, prepared, tmp_path):
    argv = [*QUICK, "--data", prepared, *LOGGED, "--num_train_epochs", "200", "--output_dir", tmp_path / "run"]
    stopped = breakable(argv, 2, "kill", 6, ranks="1")
    saved = (tmp_path / "run" / "checkpoint-4").stat().st_mtime
    assert time.time() - saved < 60
    assert stopped.returncode == 1
    sentence = r"train_tier\.py: Process 0 stops after step [56], because another process has ended \("
    assert re.search(sentence, stopped.stderr), stopped.stderr[-3000:]
    assert f"the last good checkpoint is {tmp_path / 'run' / 'checkpoint-4'}." in stopped.stderr
    assert "Signal 9 (SIGKILL)" in stopped.stderr


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
    assert metrics["models"] == [f"{path.parent.name}/{path.name}" for path in members]
    shutil.copytree(members[0], tmp_path / "copy")
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        eval_zeroshot.main([str(word) for word in (*members, tmp_path / "copy", *data, "--overwrite")])
    assert exit_.value.code == 2
    copies = f"{members[0].parent.name}/{members[0].name} and {tmp_path.name}/copy"
    assert f"{copies} have identical weights" in capsys.readouterr().err


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
