"""Training from a SigLIP checkpoint: texts and pixels as its owners', the sigmoid loss, the same trainer."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_trainings import NOTHING_BUT_TRAINING, small_arguments
from tiny_siglip import save_siglip
from training_runs import QUICK, refused, run
from transformers import SiglipProcessor

import eval_zeroshot
from evaluation_tier.models.embedding import embed_images
from evaluation_tier.models.loading import load_model
from modeling_tier import TierSiglipModel
from modeling_tier.texts_tier import embed_texts
from processing_tier import TierSiglipProcessor, read_radiograph
from processing_tier.phantom.dataset import make_phantom
from training_tier.data.collator import PairCollator
from training_tier.loop.contrastive import TierTrainer
from training_tier.options.model import ModelArguments
from training_tier.start.initialization import make_model

FROM_CHECKPOINT = [word for word in QUICK if word not in ("--image_size", "32")]
TEXTS = ["EDEMA!", "There is a small left pleural effusion, and the heart is enlarged. " * 3, "No edema."]


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip")
    save_siglip(folder)
    return folder


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def history(folder) -> list[dict]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


@pytest.fixture(scope="module")
def trained(siglip_folder, tmp_path_factory):
    """A run of six steps, with a checkpoint after three."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(*FROM_CHECKPOINT, "--model", siglip_folder, "--output_dir", folder, "--logging_steps", "1", "--soft_targets",
        "true", "--eval_strategy", "steps", "--save_strategy", "steps", "--eval_steps", "3", "--save_steps", "3",
        "--load_best_model_at_end", "false")  # fmt: skip
    return folder


def test_a_checkpoint_becomes_a_tier_model_with_the_same_embeddings(siglip_folder):
    """Equal to SiglipModel and SiglipProcessor: short and long texts in one batch, upper case, punctuation."""
    model, processor = make_model(ModelArguments(model=str(siglip_folder)), [])
    assert type(model) is TierSiglipModel and type(processor) is TierSiglipProcessor
    config = model.config
    assert (config.text_config.pad_token_id, config.text_config.eos_token_id) == (0, 1)
    assert config.pixel_mean == config.pixel_std == [0.5] * 3
    assert (processor.image_processor.geometry, processor.image_processor.resample) == ("squash", 2)

    plain, owners = load_model(siglip_folder)
    assert type(owners) is SiglipProcessor
    few = make_phantom(6, seed=0, image_size=64)
    pixels = processor.image_processor(images=[image["bytes"] for image in few["image"]], return_tensors="pt")
    pairs = [
        {"pixel_values": pixels["pixel_values"][i], "text": text, "index": i, "image_id": str(i)}
        for i, text in enumerate(TEXTS * 2)
    ]
    batch = PairCollator(processor.tokenizer, for_siglip=True)(pairs)
    assert "attention_mask" not in batch and batch["input_ids"].shape == (6, 64)
    pictures = [read_radiograph(image).convert("RGB") for image in few["image"]]
    options = {"padding": "max_length", "truncation": True, "max_length": 64, "return_tensors": "pt"}
    inputs = owners(text=TEXTS * 2, images=pictures, do_convert_rgb=True, **options)
    assert torch.equal(batch["input_ids"], inputs["input_ids"])
    assert torch.equal(batch["pixel_values"], inputs["pixel_values"])
    with torch.no_grad():
        expected = plain(**inputs)
        computed = model.eval()(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"])
        texts = embed_texts(model, processor.tokenizer, TEXTS).numpy()
    assert torch.equal(computed.logits_per_image, expected.logits_per_image)
    np.testing.assert_allclose(texts, expected.text_embeds[:3].numpy(), rtol=0, atol=1e-6)
    for loaded in ((model, processor), (plain, owners)):  # the latter does not convert grey to RGB by itself
        images = embed_images(*loaded, few, batch_size=4)
        np.testing.assert_allclose(images, expected.image_embeds.numpy(), rtol=0, atol=1e-6)


def test_a_training_logs_the_terms_and_changes_every_weight(trained, siglip_folder):
    steps = [entry for entry in history(trained) if "loss" in entry]
    assert len(steps) == 6
    for entry in steps:
        total = entry["contrastive_loss"] + 0.2 * entry["token_entropy"] + 0.2 * entry["patch_entropy"]
        assert entry["loss"] == pytest.approx(total, rel=1e-5)
        assert entry["logit_bias"] == pytest.approx(-12.0, abs=0.01)
        assert entry["logit_scale"] == pytest.approx(np.exp(4.7), rel=0.01)  # not clamped at 100
    before, after = weights(siglip_folder), weights(trained)
    assert before.keys() == after.keys()
    never_read = "text_model.embeddings.token_embedding.weight"  # some of its rows
    for name, tensor in before.items():
        assert not torch.equal(tensor, after[name]), name
    assert torch.equal(before[never_read][4], after[never_read][4])  # <mask>
    card = (trained / "README.md").read_text()
    assert "a SigLIP model" in card and "| Embedding width | 24 |" in card


def test_the_trained_folder_is_evaluated_as_in_the_training(trained, tmp_path):
    model, processor = load_model(trained)
    assert type(model) is TierSiglipModel and type(processor) is TierSiglipProcessor
    argv = [trained, "--data", QUICK[1], "--split", "validation", "--min_positives", "2", "--n_bootstrap", "10"]
    eval_zeroshot.main([str(word) for word in [*argv, "--output_dir", tmp_path / "evaluation"]])
    mean = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["mean"]["auroc"]
    assert mean == pytest.approx([e["eval_auroc"] for e in history(trained) if "eval_auroc" in e][-1], abs=1e-9)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(trained, siglip_folder, tmp_path):
    folder = tmp_path / "run"
    command = [*FROM_CHECKPOINT, "--model", siglip_folder, "--output_dir", folder, "--logging_steps", "1"]
    command += ["--soft_targets", "true", "--eval_strategy", "steps", "--save_strategy", "steps", "--eval_steps", "3"]
    command += ["--save_steps", "3", "--load_best_model_at_end", "false"]
    (folder / "checkpoint-3").mkdir(parents=True)
    for path in (trained / "checkpoint-3").iterdir():
        (folder / "checkpoint-3" / path.name).write_bytes(path.read_bytes())
    run(*command, "--resume_from_checkpoint", folder / "checkpoint-3")
    resumed, whole = weights(folder), weights(trained)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.slow
def test_chunks_and_several_sentences_train_as_the_whole_batch(siglip_folder, tmp_path):
    command = [*FROM_CHECKPOINT, "--model", siglip_folder, "--sentences_per_image", "2", "--max_steps", "2"]
    command += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
    run(*command, "--output_dir", tmp_path / "whole")
    run(*command, "--output_dir", tmp_path / "chunks", "--contrastive_chunk_size", "3")
    whole, chunks, start = (weights(folder) for folder in (tmp_path / "whole", tmp_path / "chunks", siglip_folder))
    moved = torch.cat([(whole[name] - start[name]).flatten() for name in whole]).norm()
    apart = torch.cat([(whole[name] - chunks[name]).flatten() for name in whole]).norm()
    assert (
        0 < apart < 0.05 * moved
    )  # AdamW's first steps have the size of the learning rate, even where rounding rules


def test_frozen_towers_train_their_heads(siglip_folder, tmp_path):
    run(*FROM_CHECKPOINT, "--model", siglip_folder, "--output_dir", tmp_path / "run", "--max_steps", "2",
        "--freeze_image_tower", "true", "--freeze_text_tower", "true")  # fmt: skip
    before, after = weights(siglip_folder), weights(tmp_path / "run")
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert {name for name in changed if ".head." not in name} == {"logit_scale", "logit_bias"}
    assert {"text_model.head.weight", "vision_model.head.attention.in_proj_weight"} < changed


@pytest.mark.slow
def test_cached_features_train_the_same_heads(siglip_folder, tmp_path, monkeypatch):
    frozen = ["--freeze_image_tower", "true", "--freeze_text_tower", "true", "--augmentation", "none"]
    frozen += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
    command = [*FROM_CHECKPOINT, "--model", siglip_folder, *frozen, "--max_steps", "3"]
    run(*command, "--output_dir", tmp_path / "plain")
    use = TierTrainer.use_cached_features
    monkeypatch.setattr(TierTrainer, "use_cached_features", lambda trainer, path: use(trainer, path, torch.float32))
    for name in ("cached", "again"):  # the head, which is inside the tower, does not count
        run(*command, "--cache_features", tmp_path / "features", "--output_dir", tmp_path / name)
        plain, cached = weights(tmp_path / "plain"), weights(tmp_path / name)
        for key, tensor in plain.items():
            torch.testing.assert_close(cached[key], tensor, rtol=1e-5, atol=1e-5)
    assert len(list((tmp_path / "features").iterdir())) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--group_texts", "true"), "group_texts has no effect on SigLIP, whose texts all have one length; leave it"),
        (("--pad_to_multiple_of", "16"), "pad_to_multiple_of has no effect on SigLIP"),
        (("--train_sampling_strategy", "group_by_length"), "train_sampling_strategy has no effect on SigLIP"),
        (("--image_views", "2"), "image_views=2 does not work with SigLIP, whose loss does not compare images"),
        (("--image_pooling", "patch_mean"), "image_pooling must be one of attention, not 'patch_mean'."),
        (
            ("--evidence_entropy_weight", "1"),
            "evidence_entropy_weight=1.0 needs scores that are sums over the patches",
        ),
        (("--task", "classification"), "--task classification does not support SigLIP models"),
    ],
)
def test_what_siglip_cannot_do_is_one_sentence(capsys, siglip_folder, tmp_path, options, message):
    sentence = refused(capsys, *FROM_CHECKPOINT, "--model", siglip_folder, "--output_dir", tmp_path / "run", *options)
    assert message in sentence


def make_trainer(folder, tmp_path, options=None, **collator) -> TierTrainer:
    model, processor = make_model(ModelArguments(model=str(folder)), [])
    return TierTrainer(
        model=model,
        args=small_arguments(tmp_path, **NOTHING_BUT_TRAINING, **(options or {})),
        data_collator=PairCollator(processor.tokenizer, **collator),
        processing_class=processor,
    )


def test_a_collator_for_other_models_is_refused(siglip_folder, tmp_path):
    with pytest.raises(ValueError, match="SigLIP reads other texts: pass data_collator=PairCollator"):
        make_trainer(siglip_folder, tmp_path)


def test_the_query_of_the_pooling_head_is_not_decayed(siglip_folder, tmp_path):
    trainer = make_trainer(siglip_folder, tmp_path, for_siglip=True)
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    head = {name.removeprefix("vision_model.head.") for name in decayed if name.startswith("vision_model.head.")}
    assert head == {"attention.in_proj_weight", "attention.out_proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"}
    assert not decayed & {"logit_scale", "logit_bias"}


def test_the_padding_of_a_compiled_model_is_no_option_of_the_user(siglip_folder, tmp_path):
    trainer = make_trainer(siglip_folder, tmp_path, {"torch_compile": True}, for_siglip=True)
    assert trainer.args.pad_to_multiple_of == 16 and trainer.data_collator.for_siglip


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler, and there is no g++")
def test_a_compiled_training_logs_the_losses_of_an_eager_one(siglip_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    steps = {}
    for compiled in ("false", "true"):
        folder = tmp_path / compiled
        run(*FROM_CHECKPOINT, "--model", siglip_folder, "--output_dir", folder, "--max_steps", 3, "--logging_steps",
            1, "--learning_rate", 1e-3, "--warmup_steps", 0, "--token_entropy_weight", 0.2, "--patch_entropy_weight",
            0.1, "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false",
            "--torch_compile", compiled)  # fmt: skip
        steps[compiled] = [entry for entry in history(folder) if "contrastive_loss" in entry]
    names = ("loss", "contrastive_loss", "token_entropy", "patch_entropy", "grad_norm")
    eager, compiled = (np.array([[step[name] for name in names] for step in steps[key]]) for key in ("false", "true"))
    assert eager.shape == (3, len(names)) and (eager[0] != eager[2]).all()
    np.testing.assert_allclose(compiled, eager, rtol=1e-4)
