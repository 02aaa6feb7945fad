import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import set_seed

from modeling_tier import TierCLIPModel, TierDualEncoderModel
from processing_tier import TierImageProcessor
from processing_tier.phantom.dataset import make_phantom
from training_tier.data.collator import PairCollator
from training_tier.data.image_cache import CachedImages
from training_tier.data.pairs import PairDataset, PairOptions
from training_tier.data.streaming import ShardedImages, read_shards
from training_tier.loop.contrastive import TierTrainer
from training_tier.options.training import TierTrainingArguments
from training_tier.start.presets import preset_config


@pytest.fixture(scope="module")
def evaluation():
    return make_phantom(24, seed=0, image_size=64, split="validation")


@pytest.fixture
def make_trainer(tmp_path, phantom, evaluation, processor):
    def make(
        records=phantom,
        folder="run",
        preset="tiniest",
        frozen_text_layers=0,
        images=None,
        avoid_duplicates=False,
        sample_sentences=False,
        entropy_tokens="words",
        **options,
    ):
        set_seed(0)
        defaults = {
            "output_dir": str(tmp_path / folder),
            "use_cpu": True,
            "report_to": "none",
            "per_device_train_batch_size": 8,
            "num_train_epochs": 2,
            "logging_steps": 1,
            "warmup_steps": 0,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        weights = {"token_entropy_weight": 0.1, "patch_entropy_weight": 0.2, "entropy_tokens": entropy_tokens}
        if preset == "tiniest":
            model = TierCLIPModel(preset_config(preset, processor.tokenizer, **weights))
        else:
            weights["frozen_text_layers"] = frozen_text_layers
            model = TierDualEncoderModel(preset_config(preset, processor.tokenizer, **weights))
        arguments = TierTrainingArguments(**{**defaults, **options})
        pairs = PairOptions(augmentation="standard", sample_sentences=sample_sentences)
        return TierTrainer(
            model=model,
            args=arguments,
            train_dataset=PairDataset(records, processor.image_processor, pairs, images),
            eval_dataset=PairDataset(evaluation, processor.image_processor),
            data_collator=PairCollator(processor.tokenizer, arguments.pad_to_multiple_of),
            processing_class=processor,
            avoid_duplicates=avoid_duplicates,
            findings=["Consolidation", "Pneumothorax"],
        )

    return make


def weights_of(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def test_the_log_has_the_three_terms_and_they_add_up(make_trainer):
    trainer = make_trainer(per_device_eval_batch_size=10)  # 10, 10 and 4 of the 24: each pair has to weigh the same
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(steps) == 12 and len(evaluations) == 2
    for entries, prefix in ((steps, ""), (evaluations, "eval_")):
        for entry in entries:
            terms = [entry[prefix + name] for name in ("contrastive_loss", "token_entropy", "patch_entropy")]
            assert entry[prefix + "loss"] == pytest.approx(terms[0] + 0.1 * terms[1] + 0.2 * terms[2], abs=2e-4)
    assert all(entry["logit_scale"] == pytest.approx(1 / 0.07, rel=0.02) for entry in steps)


def test_every_parameter_with_a_gradient_is_trained(make_trainer):
    trainer = make_trainer()
    before = weights_of(trainer)
    trainer.train()
    unchanged = [name for name, tensor in weights_of(trainer).items() if torch.equal(tensor, before[name])]
    # patch_mean pooling reads the patches alone; the class token still feeds them through attention
    assert [name for name in unchanged if "position_ids" not in name] == []


def test_the_auroc_of_each_finding_and_their_mean_choose_the_best_checkpoint(make_trainer):
    trainer = make_trainer(save_strategy="epoch")
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_auroc" in entry]
    for entry in evaluations:
        both = [entry["eval_auroc_Consolidation"], entry["eval_auroc_Pneumothorax"]]
        assert entry["eval_auroc"] == pytest.approx(sum(both) / 2)
    assert trainer.state.best_metric == max(entry["eval_auroc"] for entry in evaluations)
    assert (
        trainer.zero_shot_auroc(trainer.eval_dataset)["mean"] == trainer.state.best_metric
    )  # the best weights are loaded


def test_evaluation_counts_the_last_smaller_batch(make_trainer):
    trainer = make_trainer(per_device_eval_batch_size=10)
    assert [len(batch["input_ids"]) for batch in trainer.get_eval_dataloader()] == [10, 10, 4]
    assert trainer.args.dataloader_drop_last


def test_weight_decay_is_for_matrices_alone(make_trainer):
    trainer = make_trainer()
    decayed = trainer.get_decay_parameter_names(trainer.model)
    assert "vision_model.embeddings.patch_embedding.weight" in decayed and "visual_projection.weight" in decayed
    for name in decayed:
        assert trainer.model.get_parameter(name).ndim >= 2 and not name.endswith(("position_embedding.weight", "bias"))
    assert not {"logit_scale", "vision_model.embeddings.class_embedding"} & set(decayed)


def test_weight_decay_of_a_dual_encoder_is_for_matrices_alone(make_trainer):
    trainer = make_trainer(preset="tiniest-dual")
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    parameters = dict(trainer.model.named_parameters())
    spared = set(parameters) - decayed
    assert {name for name in spared if parameters[name].ndim > 1} == {
        f"text_model.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")
    }
    assert all(parameters[name].ndim > 1 for name in decayed)  # no norm, neither of batches nor of layers, and no bias
    assert {"visual_projection.0.weight", "text_projection.3.weight"} <= decayed
    assert "vision_model.embedder.embedder.convolution.weight" in decayed and "logit_scale" in spared


def test_a_dual_encoder_trains_all_but_its_frozen_layers(make_trainer):
    trainer = make_trainer(preset="tiniest-dual", frozen_text_layers=1)
    before = weights_of(trainer)
    trainer.train()
    unchanged = {name for name, tensor in weights_of(trainer).items() if torch.equal(tensor, before[name])}
    frozen = ("text_model.embeddings.", "text_model.encoder.layer.0.")
    assert unchanged == {name for name in before if name.startswith(frozen)}
    evaluations = [entry for entry in trainer.state.log_history if "eval_auroc" in entry]
    assert trainer.state.best_metric == max(entry["eval_auroc"] for entry in evaluations)
    assert (
        trainer.zero_shot_auroc(trainer.eval_dataset)["mean"] == trainer.state.best_metric
    )  # the best weights are loaded


def test_logit_scale_stays_at_100_or_below(make_trainer):
    trainer = make_trainer(max_steps=1, eval_strategy="no", save_strategy="no", load_best_model_at_end=False)
    trainer.model.logit_scale.data.fill_(9.0)
    trainer.train()
    assert trainer.model.logit_scale.item() == pytest.approx(math.log(100))


NOTHING_BUT_TRAINING = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_in_chunks_is_the_same_run(make_trainer, accumulation):
    """In its log: batches of 8, and chunks of 3, 3 and 2 pairs."""
    logs = []
    for size in (None, 3):
        options = {"gradient_accumulation_steps": accumulation, "contrastive_chunk_size": size, "max_steps": 3}
        trainer = make_trainer(**options, **NOTHING_BUT_TRAINING)
        trainer.train()
        logs.append([entry for entry in trainer.state.log_history if "loss" in entry])
    assert len(logs[0]) == len(logs[1]) == 3
    for expected, entry in zip(*logs, strict=True):
        assert entry.keys() == expected.keys()
        for name in ("loss", "contrastive_loss", "token_entropy", "patch_entropy", "logit_scale", "grad_norm"):
            assert entry[name] == pytest.approx(expected[name], rel=1e-4), name


def test_images_that_do_not_decode_are_left_out_of_the_chunks(make_trainer, phantom, monkeypatch):
    monkeypatch.setattr("training_tier.loop.stopping.MAX_UNREADABLE", 0.1)
    options = {"num_train_epochs": 1, "contrastive_chunk_size": 4, **NOTHING_BUT_TRAINING}
    trainer = make_trainer(break_images(phantom, {5}), **options)
    trainer.train()
    assert list(trainer.unreadable) == [5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"contrastive_chunk_size": 9},
            "^contrastive_chunk_size=9 is more than the 8 pairs of a batch, which would be one chunk; lower it, or",
        ),
        ({"contrastive_chunk_size": 0}, "^contrastive_chunk_size=0 must be at least 1.$"),
        (
            {"per_device_train_batch_size": 1},
            "^A batch of 1 pair has nothing to contrast it with; raise --per_device_train_batch_size to 2 or more.$",
        ),
    ],
)
def test_bad_sizes_of_chunks_and_batches_are_refused(make_trainer, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"train_sampling_strategy": "group_by_length", "avoid_duplicates": True},
            "^train_sampling_strategy='group_by_length' and avoid_duplicates each order the images; leave one of them",
        ),
        (
            {"train_sampling_strategy": "group_by_length", "sample_sentences": True},
            "^train_sampling_strategy='group_by_length' needs the length of each text beforehand, and sample_sent",
        ),
        (
            {"group_texts": True, "entropy_tokens": "all"},
            "^group_texts changes the padding, which entropy_tokens='all' counts as words; leave it out, or choose",
        ),
        (
            {"group_texts": True, "torch_compile": True},
            "^group_texts makes batches of many shapes, in each process others, which torch_compile, FSDP and DeepSp",
        ),
        (
            {"pad_to_multiple_of": 16, "entropy_tokens": "all"},
            "^pad_to_multiple_of changes the padding, which entropy_tokens='all' counts as words; leave it out, or",
        ),
    ],
)
def test_orders_and_paddings_that_cannot_be_are_refused(make_trainer, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**options)


def test_streamed_images_have_their_own_order(make_trainer, phantom, tmp_path):
    (tmp_path / "data").mkdir()
    phantom.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    records = read_shards(tmp_path, "train")
    with pytest.raises(ValueError, match="^train_sampling_strategy='sequential' and streaming both set the order of"):
        make_trainer(records=records, images=ShardedImages(records), train_sampling_strategy="sequential")


@pytest.mark.parametrize("options", [{"group_texts": True}, {"pad_to_multiple_of": 16}, {"image_cache": True}])
def test_a_faster_run_is_the_same_run(make_trainer, phantom, processor, tmp_path, options):
    images = CachedImages(phantom, processor.image_processor, tmp_path) if options.pop("image_cache", None) else None
    plain, faster = make_trainer(folder="plain"), make_trainer(folder="faster", images=images, **options)
    losses = []
    for trainer in (plain, faster):
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    if images is not None:
        expected, got = weights_of(plain), weights_of(faster)
        assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_a_compiled_run_is_the_same_run(make_trainer, chunk_size):
    options = {"max_steps": 2, "contrastive_chunk_size": chunk_size, "pad_to_multiple_of": 16, **NOTHING_BUT_TRAINING}
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}  # traced, but not made to machine code
    losses = []
    for folder, more in (("plain", {}), ("compiled", compiled)):
        counters.clear()
        trainer = make_trainer(folder=folder, **options, **more)
        trainer.train()
        assert (counters["stats"]["unique_graphs"] > 0) == bool(more)
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_run_in_batches_of_similar_lengths_is_resumed_exactly(make_trainer):
    options = {"train_sampling_strategy": "group_by_length", **NOTHING_BUT_TRAINING}
    options |= {"save_strategy": "steps", "save_steps": 9, "save_total_limit": None}
    whole, resumed = make_trainer(folder="whole", **options), make_trainer(folder="resumed", **options)
    whole.train()
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-9")
    expected, got = weights_of(whole), weights_of(resumed)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_accumulation_without_chunks_is_warned_of(make_trainer, caplog):
    make_trainer(gradient_accumulation_steps=4, contrastive_chunk_size=2)
    assert "negatives" not in caplog.text
    make_trainer(gradient_accumulation_steps=4)
    assert "gradient_accumulation_steps=4 adds no negatives: a pair is contrasted with the 8 of its own" in caplog.text
    assert "raise --per_device_train_batch_size and add --contrastive_chunk_size 8." in caplog.text


def test_throughput_of_a_run_is_logged(make_trainer):
    trainer = make_trainer(max_steps=2, **NOTHING_BUT_TRAINING)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 2
    for entry in entries:
        assert entry["images_per_second"] > 0 and 0 < entry["data_wait"] < 1 and entry["tflops"] > 0
        assert "mfu" not in entry


def test_a_seed_fixes_the_run(make_trainer):
    runs = []
    for folder in ("a", "b"):
        trainer = make_trainer(folder=folder)
        trainer.train()
        runs.append(weights_of(trainer))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


@pytest.mark.parametrize(
    ("steps", "workers"),
    [(3, None), (6, None), (6, 0), (8, 0), (8, 2)],
    ids=[
        "within an epoch",
        "between epochs",
        "between streamed epochs",
        "within a streamed epoch",
        "within an epoch streamed by 2 workers",
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(make_trainer, phantom, tmp_path, monkeypatch, steps, workers):
    decoded = []
    read = TierImageProcessor.read
    monkeypatch.setattr(TierImageProcessor, "read", lambda self, source: decoded.append(1) or read(self, source))
    options = {"save_strategy": "steps", "save_steps": steps, "eval_strategy": "no", "load_best_model_at_end": False}
    if workers is not None:
        (tmp_path / "data").mkdir()
        phantom.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", batch_size=7)
        options |= {"dataloader_num_workers": workers, "records": read_shards(tmp_path, "train")}

    def make(folder):
        images = None if workers is None else ShardedImages(options["records"], shuffle_buffer=10)
        return make_trainer(folder=folder, images=images, **options, save_total_limit=None)

    whole = make("whole")
    whole.train()
    decoded.clear()
    resumed = make("resumed")
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{steps}")
    if not workers:
        assert len(decoded) == 8 * (12 - steps)  # none of the images that are skipped
    assert resumed.state.global_step == whole.state.global_step == 12
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (whole, resumed)]
    assert losses[0] == losses[1] and len(losses[0]) == 12
    expected, got = weights_of(whole), weights_of(resumed)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def break_images(records, indices):
    image = records[0]["image"]["bytes"][:100]
    return records.map(
        lambda row, i: {"image": {"bytes": image, "path": None}} if i in indices else row,
        with_indices=True,
        features=records.features,
    )


def test_an_image_that_does_not_decode_is_skipped_and_listed(make_trainer):
    records = make_phantom(104, seed=1, image_size=64)
    trainer = make_trainer(break_images(records, {5}), num_train_epochs=1, dataloader_drop_last=False)
    trainer.train()
    assert trainer.unreadable[5][0] == records[5]["image_id"] and len(trainer.unreadable) == 1
    assert trainer.state.global_step == 13


def test_more_than_one_percent_of_them_stops_the_run(make_trainer, phantom):
    trainer = make_trainer(break_images(phantom, {5}))
    with pytest.raises(ValueError, match="^At least 1 of 48 training images do not decode, more than 1 %: repair or"):
        trainer.train()


def test_checkpoints_hold_no_pickle_but_the_arguments_as_json(make_trainer):
    trainer = make_trainer(num_train_epochs=1)
    trainer.train()
    trainer.save_model()
    folder = trainer.args.output_dir
    with open(f"{folder}/training_args.json", encoding="utf-8") as file:
        assert json.load(file)["learning_rate"] == 5e-4
    assert not list(Path(folder).rglob("*.bin"))


def test_a_card_is_written_where_there_is_none_and_kept_where_there_is(make_trainer, caplog):
    trainer = make_trainer()
    trainer.training_facts = {"dataset": "phantom", "seed": 7}
    trainer.save_model()
    trainer.create_model_card(model_name="a name")
    card = Path(trainer.args.output_dir) / "README.md"
    assert "# a name" in card.read_text() and "| Seed | 7 |" in card.read_text()
    card.write_text("with results")
    trainer.create_model_card(model_name="another", tags=["tag"])
    assert card.read_text() == "with results"
    assert "tags: no effect on the model card" in caplog.text


def test_the_entropy_weights_grow_from_0_over_the_first_steps(make_trainer):
    options = {"entropy_warmup_steps": 5, "max_steps": 8, "save_total_limit": None}
    options |= {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(**options)
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
    resumed = make_trainer(folder="resumed", **options)
    whole = [entry["loss"] for entry in steps]
    resumed.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-2")
    assert [entry["loss"] for entry in resumed.state.log_history if "loss" in entry] == whole


def test_a_share_of_the_steps_for_the_warmup(make_trainer):
    trainer = make_trainer(
        entropy_warmup_steps=0.5, max_steps=8, eval_strategy="no", save_strategy="no", load_best_model_at_end=False
    )
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    added = [entry["loss"] - entry["contrastive_loss"] for entry in steps]
    entropies = [0.1 * entry["token_entropy"] + 0.2 * entry["patch_entropy"] for entry in steps]
    shares = [one / all_ for one, all_ in zip(added, entropies, strict=True)]
    assert shares == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1, 1], abs=1e-3)


def test_early_stopping_counts_on_in_a_resumed_run(make_trainer, monkeypatch):
    aurocs = [0.5, 0.7, 0.6, 0.7, 0.65, 0.9, 0.9, 0.9]
    options = {"early_stopping_patience": 3, "save_strategy": "steps", "eval_strategy": "steps", "save_steps": 1}
    options |= {"eval_steps": 1, "max_steps": 8, "save_total_limit": None}

    def run(folder, checkpoint=None):
        trainer = make_trainer(folder=folder, **options)
        monkeypatch.setattr(
            trainer, "zero_shot_auroc", lambda dataset: {"mean": aurocs[trainer.state.global_step - 1]}
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    whole = run("whole")
    assert whole.state.global_step == 5 and whole.state.best_metric == 0.7  # three evaluations after the second
    resumed = Path(whole.args.output_dir).with_name("resumed")
    for step in (2, 3):  # the best one and the last one of an interrupted run
        shutil.copytree(f"{whole.args.output_dir}/checkpoint-{step}", resumed / f"checkpoint-{step}")
    assert run("resumed", str(resumed / "checkpoint-3")).state.global_step == 5


def test_equal_texts_do_not_share_a_batch(make_trainer, phantom):
    texts = ["No acute disease.", "NO ACUTE DISEASE", "Effusion."] * 2 + phantom["impression"][6:]
    records = phantom.remove_columns("impression").add_column("impression", texts)
    trainer = make_trainer(records)
    trainer.avoid_duplicates = True
    for epoch in range(3):
        trainer.train_dataset.set_epoch(epoch)
        sampler = trainer._get_train_sampler()
        order = list(sampler)
        per_batch = [[sampler.groups[i] for i in order[start : start + 8]] for start in range(0, 48, 8)]
        assert all(groups.count(0) <= 1 and groups.count(1) <= 1 for groups in per_batch)
    trainer.train()
    assert trainer.state.global_step == 12
