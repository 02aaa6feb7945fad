"""Evaluation and prediction of the trainers: of the data given, of every record, and on any number of processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from child_processes import launcher, run_child
from small_trainings import ENTROPY_WEIGHTS, NOTHING_BUT_TRAINING, break_images, small_arguments
from transformers import set_seed

from evaluation_tier.scoring.findings import read_labels
from evaluation_tier.scoring.zeroshot import zero_shot_auroc
from modeling_tier import TierCLIPForImageClassification, TierCLIPModel
from modeling_tier.contrastive_loss_tier import contrastive_loss
from processing_tier.phantom.dataset import make_phantom
from processing_tier.prompts.loader import load_prompts
from training_tier.data.collator import PairCollator
from training_tier.data.labels import LabelledDataset, collate_labelled
from training_tier.data.pairs import PairDataset
from training_tier.data.streaming import ShardedImages, read_shards
from training_tier.loop.contrastive import TierTrainer
from training_tier.loop.evaluation import BatchesInTurn
from training_tier.loop.make_trainer import make_compute_metrics
from training_tier.loop.trainer import RadiographTrainer
from training_tier.start.presets import preset_config

REPOSITORY = Path(__file__).resolve().parents[3]
FINDINGS = ["Consolidation", "Pneumothorax"]


def make_records(count, seed):
    """Phantom images whose labels are drawn at random, so that each finding has both classes."""
    records = make_phantom(count, seed=seed, image_size=64, split="validation")
    features = records.features
    for number, finding in enumerate(FINDINGS):
        drawn = np.random.default_rng([seed, number]).integers(0, 2, count).astype(np.float32)
        drawn[:2] = 0, 1
        records = records.remove_columns(finding).add_column(finding, drawn)
    return records.cast(features.__class__({name: features[name] for name in records.column_names}))


def arguments(folder, **options):
    defaults = {"per_device_eval_batch_size": 10, "num_train_epochs": 1, **NOTHING_BUT_TRAINING}
    return small_arguments(folder, **{**defaults, **options})


@pytest.fixture
def trainer(tmp_path, phantom, processor):
    set_seed(0)
    return TierTrainer(
        model=TierCLIPModel(preset_config("tiniest", processor.tokenizer, **ENTROPY_WEIGHTS)),
        args=arguments(tmp_path),
        train_dataset=PairDataset(phantom, processor.image_processor),
        eval_dataset=PairDataset(make_records(24, seed=0), processor.image_processor),
        data_collator=PairCollator(processor.tokenizer),
        processing_class=processor,
        findings=FINDINGS,
    )


def make_classifier_trainer(folder, processor, train, **options):
    set_seed(0)
    classifier = TierCLIPForImageClassification.from_image_tower(
        TierCLIPModel(preset_config("tiniest", processor.tokenizer)), FINDINGS
    )
    torch.nn.init.normal_(classifier.classifier.weight)
    images = {"findings": FINDINGS, "image_processor": processor.image_processor}
    return RadiographTrainer(
        model=classifier,
        args=arguments(folder, **options),
        train_dataset=LabelledDataset(train, **images),
        eval_dataset=LabelledDataset(make_records(24, seed=0), **images),
        data_collator=collate_labelled,
        compute_metrics=make_compute_metrics(FINDINGS, FINDINGS),
        processing_class=processor.image_processor,
    )


@pytest.fixture
def classifier_trainer(tmp_path, phantom, processor):
    return make_classifier_trainer(tmp_path, processor, phantom)


def expected_aurocs(trainer, records, prefix):
    prompts = load_prompts("report", FINDINGS)
    values = zero_shot_auroc(trainer.model, trainer.processing_class, records, FINDINGS, prompts, batch_size=10)
    return {f"{prefix}_auroc": values["mean"]} | {f"{prefix}_auroc_{name}": values[name] for name in FINDINGS}


def test_the_auroc_is_of_the_data_given(trainer, processor):
    other = make_records(33, seed=1)
    pairs = PairDataset(other, processor.image_processor)
    own = expected_aurocs(trainer, trainer.eval_dataset.all_columns, "eval")
    expected = expected_aurocs(trainer, other, "eval")
    assert own != expected
    assert {name: value for name, value in trainer.evaluate().items() if "auroc" in name} == own
    assert {name: value for name, value in trainer.evaluate(pairs).items() if "auroc" in name} == expected
    both = trainer.evaluate({"a": trainer.eval_dataset, "b": pairs})
    assert {name: value for name, value in both.items() if "auroc" in name} == {
        **expected_aurocs(trainer, trainer.eval_dataset.all_columns, "eval_a"),
        **expected_aurocs(trainer, other, "eval_b"),
    }
    assert both["eval_a_loss"] != both["eval_b_loss"]
    predicted = trainer.predict(pairs).metrics
    assert {name: value for name, value in predicted.items() if "auroc" in name} == expected_aurocs(
        trainer, other, "test"
    )


def test_data_without_labels_have_no_auroc(trainer, processor, caplog):
    records = make_records(12, seed=1).remove_columns(["Pneumothorax"])
    metrics = trainer.evaluate(PairDataset(records, processor.image_processor))
    assert metrics["eval_auroc"] == metrics["eval_auroc_Consolidation"] and "eval_auroc_Pneumothorax" not in metrics
    assert "Without labels in the evaluated records, the AUROC is left out: Pneumothorax." in caplog.text
    records = records.remove_columns(["Consolidation"])
    metrics = trainer.evaluate(PairDataset(records, processor.image_processor))
    assert not any("auroc" in name for name in metrics) and metrics["eval_loss"] > 0


def test_streamed_data_have_a_loss_and_no_auroc(trainer, processor, tmp_path, caplog):
    (tmp_path / "data").mkdir()
    records = make_records(12, seed=1)
    records.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    streamed = read_shards(tmp_path, "train")
    pairs = PairDataset(streamed, processor.image_processor, images=ShardedImages(streamed))
    metrics = trainer.evaluate(pairs)
    assert metrics["eval_loss"] == trainer.evaluate(PairDataset(records, processor.image_processor))["eval_loss"]
    assert "eval_auroc" not in metrics and "Without images (they are streamed) in the evaluated records" in caplog.text


def test_a_prediction_has_a_row_for_each_record(trainer, processor):
    records = break_images(make_records(101, seed=1), {100})  # the last one, in a batch by itself
    output = trainer.predict(PairDataset(records, processor.image_processor))
    texts, images = output.predictions
    assert images.shape == texts.shape == (101, 16) and output.label_ids is None
    assert np.isnan(images[100]).all() and np.isnan(texts[100]).all()
    pairs = [PairDataset(records, processor.image_processor)[i] for i in (0, 57)]
    batch = trainer.data_collator(pairs)
    with torch.no_grad():
        one = trainer.model.eval()(**{n: batch[n] for n in ("pixel_values", "input_ids", "attention_mask")})
    np.testing.assert_allclose(images[[0, 57]], one.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(texts[[0, 57]], one.text_embeds.numpy(), atol=1e-5)


def test_the_loss_is_over_batches_of_pairs_that_decode(trainer, processor):
    records = break_images(make_records(101, seed=1), {13})
    dataset = PairDataset(records, processor.image_processor)
    texts, images = trainer.predict(dataset).predictions
    losses = []
    for start in range(0, 101, 10):
        rows = [i for i in range(start, min(start + 10, 101)) if i != 13]
        embeds = (torch.from_numpy(values[rows]) for values in (images, texts))
        losses.append((len(rows), contrastive_loss(*embeds, trainer.model.logit_scale.detach()).item()))
    expected = sum(count * loss for count, loss in losses) / 100
    assert trainer.evaluate(dataset)["eval_contrastive_loss"] == pytest.approx(expected, rel=1e-5)


def test_too_many_images_to_evaluate_that_do_not_decode(trainer, classifier_trainer, processor):
    records = break_images(make_records(24, seed=1), {3})
    message = "^1 of 24 images to evaluate do not decode, more than 1 %: repair or remove them. The last one: "
    with pytest.raises(ValueError, match=message):
        trainer.evaluate(PairDataset(records, processor.image_processor))
    with pytest.raises(ValueError, match=message):
        classifier_trainer.evaluate(LabelledDataset(records, FINDINGS, image_processor=processor.image_processor))
    assert not trainer.unreadable  # those of training count apart


def test_what_is_no_data_of_pairs_is_refused(trainer, classifier_trainer, processor):
    records = make_records(4, seed=1)
    message = "^An evaluation needs a PairDataset, but got a Dataset; make one from the records"
    with pytest.raises(ValueError, match=message):
        trainer.evaluate(records)
    with pytest.raises(ValueError, match="^An evaluation needs at least one record, but the data set is empty.$"):
        trainer.predict(PairDataset(records.select([]), processor.image_processor))
    order = "Consolidation, Pneumothorax, in this order"
    message = f"^The findings of the classifier are {order}, but the labels of the data are "
    for findings, named in ((FINDINGS[::-1], "of Pneumothorax, Consolidation"), ([], "of no finding")):
        dataset = LabelledDataset(records, findings, image_processor=processor.image_processor)
        with pytest.raises(ValueError, match=f"{message}{named}. Make a LabelledDataset with the classifier's find"):
            classifier_trainer.evaluate(dataset)


def test_a_classifier_is_evaluated_on_the_data_given(classifier_trainer, processor):
    records = break_images(make_records(101, seed=1), {100})
    dataset = LabelledDataset(records, FINDINGS, image_processor=processor.image_processor)
    output = classifier_trainer.predict(dataset)
    labels = read_labels(records, FINDINGS)
    assert output.predictions.shape == output.label_ids.shape == (101, 2)
    assert np.isnan(output.predictions[100]).all() and (output.label_ids[100] == -100).all()
    np.testing.assert_array_equal(output.label_ids[:100], labels[:100])
    own, other = classifier_trainer.evaluate(), classifier_trainer.evaluate(dataset)
    assert own["eval_auroc"] != other["eval_auroc"] == output.metrics["test_auroc"]
    logits = torch.from_numpy(output.predictions[:100])
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(labels[:100]).float())
    assert other["eval_loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_the_loss_of_a_classifier_is_over_stated_labels_whatever_the_batches(classifier_trainer, processor):
    records = make_records(24, seed=1)
    dataset = LabelledDataset(records, FINDINGS, image_processor=processor.image_processor)
    dataset.labels[3:17] = -100
    losses = []
    for size in (24, 10, 7, 1):
        classifier_trainer.args.per_device_eval_batch_size = size
        losses.append(classifier_trainer.evaluate(dataset)["eval_loss"])
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)


def test_a_batch_of_a_classifier_without_a_readable_image_ends_the_run_with_a_sentence(tmp_path, processor, phantom):
    records = break_images(phantom, set(range(8, 16)))
    trainer = make_classifier_trainer(tmp_path, processor, records, train_sampling_strategy="sequential")
    message = "^None of the 8 images of a batch decodes: repair or remove them. The last one: "
    with pytest.raises(ValueError, match=message):
        trainer.train()


@pytest.mark.parametrize("task", ["contrastive", "classification"])
def test_failures_are_counted_by_record_whatever_the_ids(tmp_path, phantom, processor, trainer, task):
    records = phantom.remove_columns("image_id").add_column("image_id", ["same"] * 48)
    records = break_images(records, {5, 6})
    if task == "classification":
        trainer = make_classifier_trainer(tmp_path, processor, records, train_sampling_strategy="sequential")
    else:
        trainer.args.train_sampling_strategy = "sequential"
        trainer.train_dataset = PairDataset(records, processor.image_processor)
    with pytest.raises(ValueError, match="^At least 2 of 48 training images do not decode, more than 1 %: repair or"):
        trainer.train()
    assert sorted(trainer.unreadable) == [5, 6]


def test_failures_of_streamed_images_are_counted_by_record(tmp_path, phantom, processor, trainer):
    (tmp_path / "data").mkdir()
    break_images(phantom, {5, 6}).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", batch_size=7)
    streamed = read_shards(tmp_path, "train")
    trainer.args.dataloader_num_workers = 2
    trainer.args.per_device_train_batch_size = trainer._train_batch_size = 48
    images = ShardedImages(streamed, shuffle_buffer=10)
    trainer.train_dataset = PairDataset(streamed, processor.image_processor, images=images)
    with pytest.raises(ValueError, match="^At least 2 of 48 training images do not decode, more than 1 %: repair or"):
        trainer.train()
    assert sorted(trainer.unreadable) == [5, 6]


@pytest.mark.parametrize(("rows", "size"), [(24, 10), (24, 8), (7, 10), (31, 3)])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_batches_are_those_of_one_process(rows, size, processes):
    samplers = [BatchesInTurn(rows, size, rank, processes) for rank in range(processes)]
    assert len({len(sampler) for sampler in samplers}) == 1 and len(list(samplers[0])) == len(samplers[0])
    counted = [batch for sampler in samplers for batch in sampler if sampler.is_own(batch[0])]
    assert sorted(counted) == list(BatchesInTurn(rows, size))


SCRIPT = """
import json, os, sys
import torch
sys.path[:0] = sys.argv[2:]
from training_tier.data.labels import LabelledDataset
from training_tier.data.collator import PairCollator
from training_tier.data.pairs import PairDataset
from training_tier.start.presets import PRESETS, preset_config
from training_tier.loop.contrastive import TierTrainer
from modeling_tier import TierDualEncoderModel
from processing_tier import TierImageProcessor, TierProcessor, train_tokenizer
from transformers import set_seed
from small_trainings import TINIEST, TINIEST_DUAL, break_images
from test_evaluation import FINDINGS, arguments, make_classifier_trainer, make_records

PRESETS |= {"tiniest": TINIEST, "tiniest-dual": TINIEST_DUAL}
records = break_images(make_records(124, seed=1), {103})
train = make_records(12, seed=2)
tokenizer = train_tokenizer(records["impression"][:] + records["findings"][:], vocab_size=700)
processor = TierProcessor(TierImageProcessor(size=32), tokenizer)
set_seed(0)
weights = {"token_entropy_weight": 0.1, "patch_entropy_weight": 0.2}
pairs = {"image_processor": processor.image_processor}
contrastive = TierTrainer(
    model=TierDualEncoderModel(preset_config("tiniest-dual", tokenizer, **weights)),
    args=arguments(sys.argv[1], dataloader_drop_last=True),
    train_dataset=PairDataset(train, **pairs),
    eval_dataset=PairDataset(records, **pairs),
    data_collator=PairCollator(tokenizer),
    processing_class=processor,
    findings=FINDINGS,
)
classifier = make_classifier_trainer(sys.argv[1], processor, train)
rank = contrastive.args.process_index
for name, buffer in contrastive.model.named_buffers():
    if name.endswith("running_mean"):  # as after a training, where each process has its own
        buffer.fill_(0.01 * rank)
results = {}
for name, trainer in (("contrastive", contrastive), ("classifier", classifier)):
    for count in (24, 7, 124):
        part = records.select(range(count))
        dataset = PairDataset(part, **pairs)
        if name == "classifier":
            dataset = LabelledDataset(part, FINDINGS, **pairs)
            dataset.labels[3:11] = -100
        metrics = trainer.evaluate(dataset)
        output = trainer.predict(dataset).predictions
        rows = output if name == "classifier" else torch.from_numpy(output[0]).numpy()
        speed = ("runtime", "per_second", "preparation_time", "epoch")
        numbers = {key: value for key, value in metrics.items() if not key.endswith(speed)}
        results[f"{name} {count}"] = {"numbers": numbers, "rows": rows.tolist()}
if rank == 0:
    with open(os.path.join(sys.argv[1], "results.json"), "w") as file:
        json.dump(results, file)
contrastive.accelerator.wait_for_everyone()
contrastive.accelerator.end_training()
"""


@pytest.mark.slow
def test_one_two_and_three_processes_evaluate_alike(tmp_path):
    """To the last bit, of numbers of images that do not divide, with an image that does not decode."""
    (tmp_path / "script.py").write_text(SCRIPT)
    results = []
    for processes in (1, 2, 3):
        folder = tmp_path / str(processes)
        folder.mkdir()
        command = [*launcher(processes), tmp_path / "script.py", folder]
        command += [REPOSITORY, REPOSITORY / "tests" / "support", Path(__file__).parent]
        result = run_child(command, OMP_NUM_THREADS=1, PYTHONPATH=REPOSITORY)
        assert result.returncode == 0, result.stderr[-3000:]
        results.append(json.loads((folder / "results.json").read_text()))
    for name, expected in results[0].items():
        count = int(name.split()[1])
        assert len(expected["rows"]) == count and {"eval_loss", "eval_auroc"} <= expected["numbers"].keys()
        assert ("eval_token_entropy" in expected["numbers"]) == name.startswith("contrastive")
        for result in results[1:]:
            assert result[name]["numbers"] == expected["numbers"], name
            np.testing.assert_array_equal(result[name]["rows"], expected["rows"], name)
