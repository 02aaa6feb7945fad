"""`train_tier.py --task classification`, and what `eval_zeroshot.py` says of its classifiers."""

import json
import logging
import shutil

import pandas as pd
import pytest
import torch
from child_processes import launcher, run_child
from PIL import Image
from safetensors.torch import load_file, save_file
from training_runs import REPOSITORY, refused, run
from transformers import pipeline, set_seed

import eval_zeroshot
from evaluation_tier.models.loading import load_model
from evaluation_tier.scoring.protocols import choose_protocol
from evaluation_tier.scoring.zeroshot import evaluate_zero_shot
from evaluation_tier.statistics.resampling import Resampling
from processing_tier import read_radiograph
from processing_tier.phantom.dataset import make_phantom
from processing_tier.readers import read_records
from training_tier.options.model import ModelArguments
from training_tier.start.initialization import make_model

DATA = "phantom:num_images=48,image_size=64"
FINDINGS = ["Consolidation", "Nodule", "Support Devices"]
QUICK = [
    *("--task", "classification", "--data", DATA, "--eval_split", "validation", "--findings", *FINDINGS),
    *("--num_train_epochs", "1", "--per_device_train_batch_size", "8", "--min_positives", "2"),
    *("--report_to", "none", "--use_cpu", "true", "--dataloader_pin_memory", "false", "--disable_tqdm", "true"),
]


def save_base(folder, preset: str):
    """A model of images and texts with random weights, small images, and its processor, in a folder."""
    set_seed(3)
    reports = make_phantom(48, seed=0, image_size=64)["report"][:]
    model, processor = make_model(ModelArguments(model=preset, image_size=32, vocab_size=600), reports)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["nano", pytest.param("resnet-tiny", marks=pytest.mark.slow)])
def base(request, tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base") / request.param, request.param)


@pytest.fixture(scope="module")
def probe(base, tmp_path_factory):
    """Folder of a linear probe that started as the zero-shot classifier."""
    folder = tmp_path_factory.mktemp("probe") / "probe"
    run(*QUICK, "--model", base, "--output_dir", folder, "--freeze_image_tower", "--head_from_prompts",
        "--eval_on_start", "true", "--learning_rate", "1e-2")  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("vit") / "vit", "nano")


def test_a_linear_probe_is_the_models_image_tower_and_a_head(base, probe):
    source, tensors = load_file(base / "model.safetensors"), load_file(probe / "model.safetensors")
    tower = [name for name in source if name.startswith(("vision_model.", "visual_projection."))]
    assert sorted(tensors) == sorted([*tower, "classifier.weight", "classifier.bias"])
    assert all(torch.equal(tensors[name], source[name]) for name in tower)
    config = json.loads((probe / "config.json").read_text())
    assert list(config["id2label"].values()) == FINDINGS
    assert not (probe / "tokenizer.json").exists() and (probe / "preprocessor_config.json").is_file()
    assert not list(probe.rglob("training_args.bin"))


def test_the_evaluation_before_training_is_the_zero_shot_one(base, probe):
    history = json.loads((probe / "trainer_state.json").read_text())["log_history"]
    start = next(entry for entry in history if "eval_auroc" in entry)
    assert start["epoch"] == 0
    records = read_records(DATA, "validation")
    options = {"protocol": choose_protocol(score_level="global"), "resampling": Resampling(1)}
    expected, _ = evaluate_zero_shot({"base": load_model(base)}, records, FINDINGS, **options)
    assert start["eval_auroc"] == pytest.approx(expected["mean"]["auroc"], abs=1e-12)
    for finding in FINDINGS:
        assert start[f"eval_auroc_{finding}"] == pytest.approx(expected["findings"][finding]["auroc"], abs=1e-12)


def test_the_stock_pipeline_gives_each_finding_a_probability_of_its_own(probe):
    classify = pipeline("image-classification", model=str(probe))
    image = read_radiograph(make_phantom(1, seed=9, image_size=64)[0]["image"])
    scores = classify(image, function_to_apply="sigmoid")
    assert sorted(score["label"] for score in scores) == sorted(FINDINGS)
    model, image_processor = load_model(probe)
    with torch.no_grad():
        logits = model(**image_processor(image, return_tensors="pt")).logits[0]
    expected = dict(zip(FINDINGS, logits.sigmoid().tolist(), strict=True))
    assert {score["label"]: score["score"] for score in scores} == pytest.approx(expected, abs=1e-6)
    assert classify(Image.new("RGB", (50, 70)))  # any picture


def test_the_card_says_what_was_trained(probe):
    card = (probe / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card and 'pipeline("image-classification", model=' in card
    assert "| Trained part | head |" in card and "| Share of the training patients | 1.0 |" in card
    assert "**Trained on synthetic radiographs.** The training images and labels are drawn" in card
    assert f"| Findings | {', '.join(FINDINGS)} |" in card
    for absent in ("entropy regularization", "sentences", "Zero-shot", "| Text |"):
        assert absent not in card


@pytest.mark.slow
def test_a_classifier_is_evaluated_like_any_model(probe, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    model, output = shutil.copytree(probe, tmp_path / "probe"), tmp_path / "evaluation"
    arguments = [model, "--data", DATA, "--min_positives", 2, "--n_bootstrap", 50, "--output_dir", output]
    eval_zeroshot.main([str(word) for word in [*arguments, "--figures", "--model_card"]])
    assert "Classifier on phantom" in capsys.readouterr().out
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["protocol"]["scoring"] == "logit" and metrics["protocol"]["prompts"] == "none (trained heads)"
    best = json.loads((probe / "trainer_state.json").read_text())["best_metric"]
    assert metrics["mean"]["auroc"] == pytest.approx(best, abs=1e-9)
    low, high = metrics["mean"]["auroc_ci95"]
    assert low < metrics["mean"]["auroc"] < high
    assert list(metrics["findings"]) == FINDINGS
    assert metrics["protocol"]["findings_left_out"]["Edema"] == "never learnt"
    predictions = pd.read_parquet(output / "predictions.parquet")
    assert len(predictions) == 48 and {f"score_{finding}" for finding in FINDINGS} <= set(predictions)
    card = (model / "README.md").read_text()
    assert "Classification on" in card and "Scores are logits" in card and "type: image-classification" in card
    assert (output / "roc.png").is_file() and len(list(output.glob("similarity_*.png"))) == len(FINDINGS)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--findings", "Edema"], "was not trained on 'Edema': it knows Consolidation, Nodule, Support Devices."),
        (["--save_thresholds"], "--save_thresholds needs a TIER model, but"),
    ],
)
def test_what_a_classifier_cannot_be_asked(probe, argv, message, tmp_path, capsys):
    common = ["--data", DATA, "--min_positives", 2, "--output_dir", tmp_path / "evaluation"]
    assert message in refused(capsys, probe, *common, *argv, command=eval_zeroshot)
    assert not (tmp_path / "evaluation").exists()


def test_a_classifier_and_a_model_of_images_and_texts_are_no_ensemble(base, probe, tmp_path, capsys):
    message = refused(
        capsys, probe, base, "--data", DATA, "--output_dir", tmp_path / "evaluation", command=eval_zeroshot
    )
    name = f"{base.parent.name}/{base.name}"
    assert (
        message == f"{name} is not a classifier. Classifiers and zero-shot models cannot be mixed: evaluate it alone."
    )


@pytest.mark.slow
def test_a_share_of_the_labels_and_going_on_from_a_probe(vit, tmp_path, caplog):
    few = [*QUICK[:-2], "--label_fraction", "0.5", "--dataloader_drop_last", "false", "--disable_tqdm", "true"]
    run(*few, "--model", vit, "--output_dir", tmp_path / "probe", "--freeze_image_tower")
    facts = json.loads((tmp_path / "probe" / "training_facts.json").read_text())
    patients = len(set(read_records(DATA, "train")["patient_id"][:]))
    assert facts["n_patients"] == round(0.5 * patients) and facts["n_images"] < 48
    assert facts["label_fraction"] == 0.5 and facts["trained_part"] == "head"
    with caplog.at_level(logging.WARNING):
        run(*few, "--model", tmp_path / "probe", "--output_dir", tmp_path / "whole", "--token_entropy_weight", "0.2")
    assert "These options have no effect on a classifier: token_entropy_weight." in caplog.text
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("probe", "whole"))
    assert all(
        not torch.equal(first[name], second[name]) for name in ("visual_projection.weight", "classifier.weight")
    )


@pytest.mark.slow
def test_two_processes_equal_one_whatever_is_stated_in_each(vit, tmp_path):
    """Each process has other labels missing, and yet each stated label weighs the same."""
    records = make_phantom(35, seed=0, image_size=64)
    rows = []
    for i, record in enumerate(records):
        read_radiograph(record["image"]).save(tmp_path / f"{i}.png")
        labels = {"Effusion": i % 2, "Mass": i % 3 == 0 if i % 5 else -1, "Edema": i // 4 % 2 if i % 4 == 0 else None}
        rows.append({"image": f"{i}.png", "patient_id": i, "split": "train" if i < 24 else "validation", **labels})
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    for count in (1, 2):
        argv = [*QUICK, "--data", tmp_path / "table.csv", "--findings", "Effusion", "Mass", "Edema", "--model", vit]
        argv += ["--per_device_train_batch_size", 8 // count, "--max_steps", 3, "--eval_strategy", "no"]
        argv += ["--save_strategy", "no", "--load_best_model_at_end", "false", "--min_positives", "1"]
        argv += [
            "--head_from_prompts",
            "--eval_on_start",
            "true",
            "--per_device_eval_batch_size",
            "4",
        ]  # 11 images: 4, 4 and 3
        command = [*launcher(count), REPOSITORY / "train_tier.py", *argv, "--output_dir", tmp_path / str(count)]
        result = run_child(command)
        assert result.returncode == 0, result.stderr[-2000:]
    starts = [
        next(entry for entry in json.loads(path.read_text())["log_history"] if "eval_auroc" in entry)
        for path in (tmp_path / "1" / "trainer_state.json", tmp_path / "2" / "trainer_state.json")
    ]
    aurocs = [{key: value for key, value in start.items() if "auroc" in key} for start in starts]
    assert aurocs[0] == aurocs[1] and len(aurocs[0]) == 4
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("1", "2"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=2e-5)


def test_labels_are_enough_no_report_is_needed(vit, tmp_path):
    records = make_phantom(40, seed=0, image_size=64)
    rows = []
    for i, record in enumerate(records):
        read_radiograph(record["image"]).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "patient_id": i, "split": "train", "Effusion": i % 2, "Mass": i % 3 == 0})
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    argv = [word for word in QUICK if word not in ("--eval_split", "validation", "--findings", *FINDINGS)]
    run(*argv, "--data", tmp_path / "table.csv", "--eval_fraction", "0.25", "--model", vit, "--output_dir",
        tmp_path / "run")  # fmt: skip
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["id2label"] == {"0": "Effusion", "1": "Mass"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--task", "clasification"], "task='clasification' is not known; choose one of contrastive, classification."),
        (["--label_fraction", "0"], "label_fraction=0.0 must be above 0 and at most 1."),
        (["--label_fraction", "1.5"], "label_fraction=1.5 must be above 0 and at most 1."),
        (["--label_fraction", "0.1"], "training images do not fill one batch of 8; lower --per_device_train_batch_si"),
        (["--findings", "Edma"], "The data set has no finding 'Edma': did you mean 'Edema'?"),
        (["--eval_split", "nowhere"], "nowhere"),
        (["--head_from_prompts", "--model", "nano"], "start from a trained --model."),
        (["--task", "contrastive", "--label_fraction", "0.5"], "label_fraction has no effect on the task 'contrast"),
        (["--head_from_prompts", "--prompts", "nonsense"], "prompts 'nonsense' are not known; choose one of"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(vit, argv, message, tmp_path, capsys):
    assert message in refused(capsys, *QUICK, "--model", vit, "--output_dir", tmp_path / "run", *argv)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_without_the_tower_that_is_needed(vit, tmp_path, capsys):
    broken = shutil.copytree(vit, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    texts = {name: tensor for name, tensor in tensors.items() if not name.startswith("vision_model.")}
    save_file(texts, broken / "model.safetensors", metadata={"format": "pt"})
    message = refused(capsys, *QUICK, "--model", broken, "--output_dir", tmp_path / "run")
    assert "does not fit a TierCLIPModel" in message and "missing keys, for example vision_model." in message


def test_a_head_from_prompts_needs_a_text_tower(probe, tmp_path, capsys):
    argv = ["--model", probe, "--head_from_prompts", "--output_dir", tmp_path / "run"]
    message = refused(capsys, *QUICK, *argv)
    assert message.startswith(f"head_from_prompts needs a text tower, which the classifier '{probe}' does not have;")


def test_a_finding_without_positives_in_training(vit, tmp_path, capsys):
    records = make_phantom(30, seed=0, image_size=64)
    rows = []
    for i, record in enumerate(records):
        read_radiograph(record["image"]).save(tmp_path / f"{i}.png")
        split = "train" if i < 20 else "validation"
        rows.append({"image": f"{i}.png", "patient_id": i, "split": split, "Mass": int(i >= 25), "Edema": i % 2})
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    argv = [*QUICK, "--data", tmp_path / "table.csv", "--model", vit, "--output_dir", tmp_path / "run", "--findings"]
    message = refused(capsys, *argv, "Mass")
    assert message.startswith("The finding 'Mass' has no positive image among the 20: leave it out")


@pytest.mark.slow
def test_the_image_tower_of_a_classifier_is_aligned_with_texts(probe, base, tmp_path):
    """With its weights and pixels, to the last bit; a frozen one stays as it is."""
    arguments = ModelArguments(vision_model=str(probe), text_model=str(base))
    model, processor = make_model(arguments, [])
    tensors = load_file(probe / "model.safetensors")
    tower = {name.removeprefix("vision_model."): t for name, t in tensors.items() if name.startswith("vision_model.")}
    state = model.vision_model.state_dict()
    assert tower.keys() == state.keys() and all(torch.equal(tower[name], state[name]) for name in tower)
    stored = load_model(str(probe))[1]
    for name in ("image_mean", "image_std", "size"):
        assert getattr(processor.image_processor, name) == getattr(stored, name)
    argv = [*QUICK[2:8], "--max_steps", "1", "--per_device_train_batch_size", "8", *QUICK[-6:], "--min_positives", "2"]
    run(*argv, "--vision_model", probe, "--text_model", base, "--freeze_image_tower", "--output_dir", tmp_path / "run")
    trained = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(tensor, trained[f"vision_model.{name}"]) for name, tensor in tower.items())
