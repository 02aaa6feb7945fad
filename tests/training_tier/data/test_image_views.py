"""Several views of an image in the loss: each part is the mean over its views, and over the pairs of views."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import train_tier
from modeling_tier.contrastive_loss_tier import contrastive_loss, views_contrastive_loss
from processing_tier import TierImageProcessor
from processing_tier.phantom.dataset import make_phantom
from training_tier.data.collator import PairCollator
from training_tier.data.pairs import PairDataset, PairOptions
from training_tier.options.data import DataArguments
from training_tier.options.model import ModelArguments
from training_tier.start.initialization import make_model

TEXTS = ["small left pleural effusion", "no acute disease of the chest", "mild edema"]


def unit(*shape):
    return F.normalize(torch.from_numpy(np.random.default_rng(0).normal(size=shape)).float(), dim=-1)


@pytest.mark.parametrize("views", [2, 3])
def test_the_loss_is_the_mean_over_views_and_pairs_of_views(views):
    images, texts, scale = unit(views, 5, 8), unit(5, 8), torch.tensor(1.5)
    parts = []
    blocks = [(image, texts) for image in images]
    blocks += [(images[i], images[j]) for i in range(views) for j in range(i)]
    for one, other in blocks:
        logits = (one @ other.t() * scale.exp()).double()
        rows, columns = logits.log_softmax(1).diag().mean(), logits.log_softmax(0).diag().mean()
        parts.append(-(rows + columns).item() / 2)
    assert len(parts) == {2: 3, 3: 6}[views]
    loss = views_contrastive_loss(images.flatten(0, 1), texts, scale, views)
    assert loss.item() == pytest.approx(np.mean(parts), abs=1e-6)
    assert views_contrastive_loss(images[0], texts, scale, 1) == contrastive_loss(images[0], texts, scale)
    with pytest.raises(ValueError, match="image_views=2 needs 10 images for 5 texts, but there are 5"):
        views_contrastive_loss(images[0], texts, scale, 2)


@pytest.mark.parametrize("preset", ["nano", "resnet-tiny"])
def test_a_model_with_several_views(preset):
    torch.manual_seed(0)
    weights = {"token_entropy_weight": 0.2, "patch_entropy_weight": 0.1}
    model, processor = make_model(ModelArguments(model=preset, image_size=32, **weights), TEXTS * 4)
    model.eval()
    batch = processor.tokenizer(TEXTS, padding=True, return_tensors="pt")
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "return_loss": True}
    views = [torch.randn(3, 3, 32, 32) for _ in range(2)]
    single = [model(pixel_values=view, **inputs) for view in views]
    both = model(pixel_values=torch.cat(views), image_views=2, **inputs)
    for name in ("token_entropy", "patch_entropy"):
        mean = (single[0][name] + single[1][name]) / 2
        assert both[name].item() == pytest.approx(mean.item(), abs=1e-5)
    between = contrastive_loss(single[0].image_embeds, single[1].image_embeds, model.logit_scale)
    expected = (single[0].contrastive_loss + single[1].contrastive_loss + between) / 3
    assert both.contrastive_loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert both.loss.item() == pytest.approx(
        (both.contrastive_loss + 0.2 * both.token_entropy + 0.1 * both.patch_entropy).item(), abs=1e-5
    )
    both.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_views_are_varied_each_and_stand_one_after_the_other():
    records = make_phantom(2, seed=0, image_size=64, split="train")
    options = {"augmentation": "standard", "seed": 1}
    processor = TierImageProcessor(geometry="pad", size={"height": 32, "width": 32})
    one = [PairDataset(records, processor, PairOptions(**options))[i] for i in range(2)]
    two = [PairDataset(records, processor, PairOptions(image_views=2, **options))[i] for i in range(2)]
    for single, several in zip(one, two, strict=True):
        assert several["pixel_values"].shape == (2, 1, 32, 32)
        assert torch.equal(several["pixel_values"][0], single["pixel_values"])
        assert not torch.equal(several["pixel_values"][1], single["pixel_values"])

    tokenizer = make_model(ModelArguments(model="nano", image_size=32), TEXTS * 4)[1].tokenizer
    batch = PairCollator(tokenizer)(two)
    assert batch["image_views"] == 2 and len(batch["input_ids"]) == 2
    assert torch.equal(batch["pixel_values"], torch.stack([two[i]["pixel_values"][v] for v in (0, 1) for i in (0, 1)]))
    assert "image_views" not in PairCollator(tokenizer)(one)


def test_views_that_would_be_equal_are_refused():
    with pytest.raises(ValueError, match="image_views=0 must be at least 1"):
        DataArguments(image_views=0)
    with pytest.raises(ValueError, match="image_views=2 needs an augmentation"):
        DataArguments(image_views=2, augmentation="none")


@pytest.mark.slow
def test_a_training_with_two_views(tmp_path, capsys):
    quick = ["--data", "phantom:num_images=48,image_size=64", "--image_size", "32", "--model", "nano"]
    quick += ["--eval_split", "validation", "--per_device_train_batch_size", "8", "--min_positives", "2"]
    quick += ["--report_to", "none", "--use_cpu", "true", "--dataloader_pin_memory", "false"]
    quick += ["--num_train_epochs", "1", "--image_views", "2"]
    train_tier.main([*quick, "--output_dir", str(tmp_path / "run")])
    assert (tmp_path / "run" / "model.safetensors").is_file()
    with pytest.raises(SystemExit) as stop:
        train_tier.main([*quick, "--contrastive_chunk_size", "4", "--output_dir", str(tmp_path / "chunks")])
    assert stop.value.code == 2
    assert "contrastive_chunk_size does not work with image_views" in capsys.readouterr().err
