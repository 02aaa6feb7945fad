"""Contrastive training: the terms of the loss, the AUROC that chooses the checkpoint, chunks, batches, order."""

import math

import pytest
from small_trainings import NOTHING_BUT_TRAINING, assert_chosen_by_mean_auroc, break_images, same_weights
from torch._dynamo.utils import counters

from training_tier.data.image_cache import CachedImages
from training_tier.data.pairs import PairOptions
from training_tier.data.streaming import ShardedImages, read_shards
from training_tier.loop.stopping import TrainingStopped


def test_the_log_has_the_three_terms_and_they_add_up(make_contrastive):
    trainer = make_contrastive(per_device_eval_batch_size=10)  # 10, 10 and 4 of the 24; all pairs count the same
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(steps) == 12 and len(evaluations) == 2
    for entries, prefix in ((steps, ""), (evaluations, "eval_")):
        for entry in entries:
            terms = [entry[prefix + name] for name in ("contrastive_loss", "token_entropy", "patch_entropy")]
            assert entry[prefix + "loss"] == pytest.approx(terms[0] + 0.1 * terms[1] + 0.2 * terms[2], abs=2e-4)
    assert all(entry["logit_scale"] == pytest.approx(1 / 0.07, rel=0.02) for entry in steps)


EVIDENCE = {"evidence_entropy_weight": 0.3, "evidence_patches": 2.0}


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_the_evidence_entropy_is_a_term_with_a_warm_up(make_contrastive, chunk_size):
    options = {"entropy_warmup_steps": 4, "contrastive_chunk_size": chunk_size}
    trainer = make_contrastive(config=EVIDENCE, per_device_eval_batch_size=10, **options)
    trainer.train()
    for prefix in ("", "eval_"):
        entries = [entry for entry in trainer.state.log_history if f"{prefix}loss" in entry]
        for number, entry in enumerate(entries):
            scale = 1 if prefix else min(1, number / 4)
            names = ("contrastive_loss", "token_entropy", "patch_entropy", "evidence_entropy")
            contrastive, *entropies = (entry[prefix + name] for name in names)
            added = sum(weight * entropy for weight, entropy in zip((0.1, 0.2, 0.3), entropies, strict=True))
            assert entry[f"{prefix}loss"] == pytest.approx(contrastive + scale * added, abs=2e-4)
            assert 0 < entropies[2] < math.log(4 / 2)  # of 4 patches
        assert len(entries) == (2 if prefix else 12)


def test_a_run_may_resume_with_the_evidence_entropy(make_contrastive):
    options = {"logging_steps": 3, "save_strategy": "steps", "save_steps": 4, "load_best_model_at_end": False}
    first = make_contrastive(max_steps=4, eval_strategy="no", **options)
    first.train()
    resumed = make_contrastive(folder="resumed", config=EVIDENCE, eval_strategy="no", **options)
    resumed.train(resume_from_checkpoint=f"{first.args.output_dir}/checkpoint-4")
    with_terms = ["evidence_entropy" in entry for entry in resumed.state.log_history if "loss" in entry]
    assert with_terms == [False, True, True, True]


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (
            {"patch_entropy_weight": 1e39},
            "token_entropy_weight=0.1, patch_entropy_weight=1e+39, entropy_temperature=1",
        ),
        ({"entropy_temperature": 1e-42}, "token_entropy_weight=0.1, patch_entropy_weight=0.2, entropy_temperature="),
        (
            {"token_entropy_weight": 1e32},
            "token_entropy_weight=1e+32, patch_entropy_weight=0.2, entropy_temperature=1",
        ),
        ({"evidence_entropy_weight": 1e39}, "patch_entropy_weight=0.2, evidence_entropy_weight=1e+39, entropy_temper"),
    ],
)
def test_settings_that_make_the_loss_not_finite_are_named(make_contrastive, config, settings):
    trainer = make_contrastive(config=config, **NOTHING_BUT_TRAINING)
    with pytest.raises(TrainingStopped) as stop:
        trainer.train()
    kind = "gradient" if "1e+32" in settings else "loss"
    assert str(stop.value).startswith(
        f"The {kind} of step 1 is not finite, although its contrastive term is: lower the entropy weights, or raise "
        "the temperature ("
    )
    assert settings in str(stop.value) and str(stop.value).endswith(").") and stop.value.exit_code == 2


def test_the_auroc_of_each_finding_and_their_mean_choose_the_best_checkpoint(make_contrastive):
    trainer = make_contrastive(save_strategy="epoch")
    trainer.train()
    assert_chosen_by_mean_auroc(trainer)
    assert (
        trainer.zero_shot_auroc(trainer.eval_dataset)["mean"] == trainer.state.best_metric
    )  # the best weights are loaded


@pytest.mark.parametrize(("accumulation", "sentences"), [(1, 0), (2, 0), (1, 1), (2, 3)])
def test_a_run_in_chunks_is_the_same_run(make_contrastive, accumulation, sentences):
    """In its log: batches of 8, and chunks of 3, 3 and 2 images."""
    pairs, logs = PairOptions(augmentation="standard", sentences_per_image=sentences), []
    for size in (None, 3):
        options = {"gradient_accumulation_steps": accumulation, "contrastive_chunk_size": size, "max_steps": 3}
        trainer = make_contrastive(pairs=pairs, **options, **NOTHING_BUT_TRAINING)
        trainer.train()
        logs.append([entry for entry in trainer.state.log_history if "loss" in entry])
    assert len(logs[0]) == len(logs[1]) == 3
    for expected, entry in zip(*logs, strict=True):
        assert entry.keys() == expected.keys()
        for name in ("loss", "contrastive_loss", "token_entropy", "patch_entropy", "logit_scale", "grad_norm"):
            assert entry[name] == pytest.approx(expected[name], rel=1e-4), name


def test_images_that_do_not_decode_are_left_out_of_the_chunks(make_contrastive, phantom, monkeypatch):
    monkeypatch.setattr("training_tier.loop.stopping.MAX_UNREADABLE", 0.1)
    options = {"num_train_epochs": 1, "contrastive_chunk_size": 4, **NOTHING_BUT_TRAINING}
    trainer = make_contrastive(break_images(phantom, {5}), **options)
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
            "^A batch of 1 pair has no negatives; raise --per_device_train_batch_size to 2 or more.$",
        ),
    ],
)
def test_bad_sizes_of_chunks_and_batches_are_refused(make_contrastive, options, message):
    with pytest.raises(ValueError, match=message):
        make_contrastive(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"train_sampling_strategy": "group_by_length", "avoid_duplicates": True},
            "^train_sampling_strategy='group_by_length' and avoid_duplicates both set the order of the images; use",
        ),
        (
            {"train_sampling_strategy": "group_by_length", "pairs": PairOptions(sample_sentences=True)},
            "^train_sampling_strategy='group_by_length' needs the length of each text beforehand, but sample_sent",
        ),
        (
            {"train_sampling_strategy": "group_by_length", "pairs": PairOptions(sentences_per_image=2)},
            "^train_sampling_strategy='group_by_length' needs the length of each text beforehand, but sentences_per_",
        ),
        (
            {"group_texts": True, "config": {"entropy_tokens": "all"}},
            "^group_texts changes the padding, which entropy_tokens='all' counts as words; leave it out, or",
        ),
        (
            {"group_texts": True, "torch_compile": True},
            "^group_texts makes batches of many shapes, which differ between processes; torch_compile, FSDP and DeepS",
        ),
        (
            {"torch_compile": True, "config": {"entropy_tokens": "all"}},
            "^pad_to_multiple_of changes the padding, which entropy_tokens='all' counts as words; set it to 1, or",
        ),
        (
            {"pad_to_multiple_of": 16, "config": {"entropy_tokens": "all"}},
            "^pad_to_multiple_of changes the padding, which entropy_tokens='all' counts as words; leave it out, or",
        ),
    ],
)
def test_orders_and_paddings_that_cannot_be_are_refused(make_contrastive, options, message):
    with pytest.raises(ValueError, match=message):
        make_contrastive(**options)


def test_a_multiple_of_one_leaves_the_padding_as_it_is(make_contrastive):
    trainer = make_contrastive(torch_compile=True, pad_to_multiple_of=1, config={"entropy_tokens": "all"})
    assert trainer.args.pad_to_multiple_of == 1


def test_streamed_images_have_their_own_order(make_contrastive, phantom, tmp_path):
    (tmp_path / "data").mkdir()
    phantom.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    records = read_shards(tmp_path, "train")
    with pytest.raises(ValueError, match="^train_sampling_strategy='sequential' and streaming both set the order of"):
        make_contrastive(records=records, images=ShardedImages(records), train_sampling_strategy="sequential")


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"group_texts": True}, {"pad_to_multiple_of": 16}, {"image_cache": True}])
def test_a_faster_run_is_the_same_run(make_contrastive, phantom, processor, tmp_path, options):
    images = CachedImages(phantom, processor.image_processor, tmp_path) if options.pop("image_cache", None) else None
    plain, faster = make_contrastive(folder="plain"), make_contrastive(folder="faster", images=images, **options)
    losses = []
    for trainer in (plain, faster):
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    if images is not None:
        assert same_weights(plain, faster)


def test_texts_are_packed_by_default_on_a_cpu(make_contrastive):
    trainer = make_contrastive()
    assert trainer.groups_texts() and trainer.throughput.group_texts and trainer.args.group_texts is None
    for unchanged in (
        {"group_texts": False},
        {"torch_compile": True, "torch_compile_backend": "eager"},
        {"config": {"entropy_tokens": "all"}},
    ):
        assert not make_contrastive(**unchanged).throughput.group_texts


def test_three_sentences_of_each_image_in_the_log_and_packed(make_contrastive):
    pairs, logs = PairOptions(sentences_per_image=3), []
    for grouped in (False, True):
        trainer = make_contrastive(pairs=pairs, group_texts=grouped, max_steps=2, **NOTHING_BUT_TRAINING)
        trainer.throughput.pop, counted = lambda *_: {}, trainer.throughput
        trainer.train()
        assert counted.counted[0] == 16  # images, not sentences
        logs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)
    evaluated = trainer.evaluate()  # one whole text for each image
    trainer.train_dataset.options = PairOptions()
    assert trainer.evaluate()["eval_loss"] == evaluated["eval_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_a_compiled_run_is_the_same_run(make_contrastive, chunk_size):
    options = {"max_steps": 2, "contrastive_chunk_size": chunk_size, "pad_to_multiple_of": 16, **NOTHING_BUT_TRAINING}
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}  # traced, but not made to machine code
    losses = []
    for folder, more in (("plain", {}), ("compiled", compiled)):
        counters.clear()
        trainer = make_contrastive(folder=folder, **options, **more)
        trainer.train()
        assert (counters["stats"]["unique_graphs"] > 0) == bool(more)
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_accumulation_without_chunks_is_warned_of(make_contrastive, caplog):
    make_contrastive(gradient_accumulation_steps=4, contrastive_chunk_size=2)
    assert "negatives" not in caplog.text
    make_contrastive(gradient_accumulation_steps=4)
    assert (
        "gradient_accumulation_steps=4 does not add negatives: a pair is contrasted with the 8 pairs of its own"
        in caplog.text
    )
    assert "raise --per_device_train_batch_size and add --contrastive_chunk_size 8." in caplog.text


def test_equal_texts_do_not_share_a_batch(make_contrastive, phantom):
    texts = ["No acute disease.", "NO ACUTE DISEASE", "Effusion."] * 2 + phantom["impression"][6:]
    records = phantom.remove_columns("impression").add_column("impression", texts)
    trainer = make_contrastive(records)
    trainer.avoid_duplicates = True
    for epoch in range(3):
        trainer.train_dataset.set_epoch(epoch)
        sampler = trainer._get_train_sampler()
        order = list(sampler)
        per_batch = [[sampler.groups[i] for i in order[start : start + 8]] for start in range(0, 48, 8)]
        assert all(groups.count(0) <= 1 and groups.count(1) <= 1 for groups in per_batch)
    trainer.train()
    assert trainer.state.global_step == 12
