"""A batch in chunks gives the gradients of the whole batch."""

import itertools
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from child_processes import end_at_once
from tiny_siglip import TOWER, siglip_sizes
from torch.nn.parallel import DistributedDataParallel

from modeling_tier import (
    TierCLIPConfig,
    TierCLIPModel,
    TierDualEncoderConfig,
    TierDualEncoderModel,
    TierSiglipConfig,
    TierSiglipModel,
)
from modeling_tier.contrastive_loss_tier import contrastive_loss
from modeling_tier.losses_tier import token_and_patch_entropy, token_patch_similarity
from training_tier.memory.gradient_caching import backward_in_chunks, split_batch

BOS, EOS = 97, 98
WEIGHTS = {"token_entropy_weight": 3.0, "patch_entropy_weight": 5.0}
TERMS = ("loss", "contrastive_loss", "token_entropy", "patch_entropy", "evidence_entropy")
EVIDENCE = {"evidence_entropy_weight": 4.0, "evidence_patches": 3.0}
# The gradient of the evidence entropy changes its sign where the evidence of a patch is 0. Rounding of convolutions
# (1e-7 of a pixel moves the gradient by 3e-5) crosses this; in float64, the chunks' gradients are equal to 1e-7.
TOLERANCES = {"dual evidence": 1e-3}
MODELS = {
    "clip": {"image_pooling": "cls", "entropy_normalization": True},
    "patch mean": {"image_pooling": "patch_mean", "entropy_temperature": 0.1},
    "dual": {"frozen_text_layers": 1},
    "dual evidence": {"frozen_text_layers": 1, **EVIDENCE},
    "plain": {"token_entropy_weight": 0.0, "patch_entropy_weight": 0.0},
    "several": {"image_pooling": "patch_mean"},
    "one sentence": {"image_pooling": "patch_mean"},
    "several plain": {"token_entropy_weight": 0.0, "patch_entropy_weight": 0.0},
    "siglip": {"entropy_temperature": 0.1},
    "siglip several": {},
    "several evidence": {"image_pooling": "patch_mean", **EVIDENCE},
}


def make_model(name: str, dropout: float = 0.0) -> torch.nn.Module:
    torch.manual_seed(0)
    options = {**WEIGHTS, **MODELS[name]}
    text = {"vocab_size": 99, "max_position_embeddings": 20, "bos_token_id": BOS, "eos_token_id": EOS}
    size = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    if name.startswith("siglip"):
        text |= {**TOWER, "projection_size": 24, "pad_token_id": EOS}
        model = TierSiglipModel(TierSiglipConfig(**siglip_sizes() | {"text_config": text}, **options)).train()
        model.logit_scale.data.fill_(2.0)
        model.logit_bias.data.fill_(-3.0)
        return model
    if name.startswith("dual"):
        vision = {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8, "layer_type": "basic"}
        text |= size | {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        text["initializer_range"] = 0.2  # else all texts are nearly the same, and rounding is all that differs
        options["image_head_dropout"] = dropout
        model = TierDualEncoderModel(TierDualEncoderConfig(text_config=text, vision_config=vision, **options))
        for module in model.modules():  # in training they see the images of a chunk alone
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        return model
    vision = {"image_size": 32, "patch_size": 8, "attention_dropout": dropout}
    sizes = {"text_config": text | size | {"attention_dropout": dropout}, "vision_config": vision | size}
    return TierCLIPModel(TierCLIPConfig(**sizes, projection_dim=24, **options)).train()


def make_batch() -> dict[str, torch.Tensor]:
    """Seven pairs; the texts have 9, 7, 0, 1, 2, 1 and 4 words, so that the chunks count very different numbers."""
    lengths = torch.tensor([9, 7, 0, 1, 2, 1, 4])
    generator = torch.Generator().manual_seed(1)
    positions = torch.arange(11)
    input_ids = torch.randint(0, BOS, (7, 11), generator=generator)
    input_ids[:, 0] = BOS
    input_ids[positions > lengths[:, None]] = EOS
    attention_mask = (positions <= lengths[:, None] + 1).long()
    pixel_values = torch.randn(7, 3, 32, 32, generator=generator)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "pixel_values": pixel_values,
        "return_loss": True,
    }


def with_groups(batch: dict) -> dict:
    """The same pairs, three of which say the same, and two others."""
    return {**batch, "text_groups": torch.tensor([3, 1, 4, 3, 3, 4, 0])}


def with_three_texts(batch: dict) -> dict:
    """The same images with three texts each: their own, and those of other images, that of image 2 most often."""
    order = torch.tensor([*range(7), *reversed(range(7)), 2, 2, 2, 0, 2, 1, 2])
    texts = {name: batch[name][order] for name in ("input_ids", "attention_mask")}
    return {**batch, **texts, "text_groups": order, "texts_per_image": 3}


def make_batch_of(name: str) -> dict:
    """The batch that a model of `MODELS` is given."""
    if "several" in name:
        return with_three_texts(make_batch())
    if name == "one sentence":
        return {**with_groups(make_batch()), "texts_per_image": 1}
    return with_groups(make_batch()) if name == "patch mean" else make_batch()


def take_rows(batch: dict, rows: slice) -> dict:
    images = len(batch["pixel_values"])
    return {
        key: value.unflatten(0, (-1, images))[:, rows].flatten(0, 1) if torch.is_tensor(value) else value
        for key, value in batch.items()
    }


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    trained = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    return {name.removeprefix("module."): parameter.grad.clone() for name, parameter in trained}


def assert_equal(gradients: dict, expected: dict, tolerance: float = 1e-5) -> None:
    assert gradients.keys() == expected.keys()
    whole = torch.cat([gradient.flatten() for gradient in expected.values()])
    assert whole.isfinite().all() and whole.norm() > 0.1
    for name, gradient in expected.items():
        # The keys' biases have a gradient of 0 up to rounding; so a part of the size of all the gradients is allowed.
        error = (gradients[name] - gradient).norm()
        assert error <= tolerance * gradient.norm() + tolerance / 100 * whole.norm(), name


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 3, 4, 7])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_and_terms_are_those_of_the_whole_batch(name, chunk_size, checkpointing):
    model, batch = make_model(name), make_batch_of(name)
    output = model(**batch)
    output.loss.backward()
    expected = gradients_of(model)
    model.zero_grad()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    terms = backward_in_chunks(model, batch, chunk_size)
    assert_equal(gradients_of(model), expected, TOLERANCES.get(name, 1e-5))
    assert (terms["evidence_entropy"] is None) == ("evidence" not in name)
    for term in TERMS:
        if term in output:
            torch.testing.assert_close(terms[term], output[term].detach(), rtol=1e-5, atol=0)
            assert not terms[term].requires_grad


def one_pass_over_chunks(model: torch.nn.Module, batch: dict, chunk_size: int) -> torch.Tensor:
    """The loss of the whole batch with all its activations in memory, where dropout draws chunk by chunk."""
    outputs = [model(**chunk, return_entropy_sums=True) for chunk in split_batch(batch, chunk_size)]
    images, texts, tokens, patches = (
        torch.cat([output[name] for output in outputs])
        for name in ("image_embeds", "text_embeds", "token_embeds", "patch_embeds")
    )
    positions = torch.arange(11)
    lengths = batch["attention_mask"].sum(1, keepdim=True)
    words = (positions > 0) & (positions < lengths - 1)
    similarity = token_patch_similarity(tokens, patches, model.config.entropy_temperature)
    entropies = token_and_patch_entropy(similarity, words, normalize=model.config.entropy_normalization)
    return contrastive_loss(images, texts, model.logit_scale) + 3.0 * entropies[0] + 5.0 * entropies[1]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["clip", "patch mean", "dual"])
def test_both_passes_draw_the_same_dropout_and_draw_it_once(name, checkpointing):
    model, batch = make_model(name, dropout=0.3), make_batch()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(5)
    loss = one_pass_over_chunks(model, batch, 3)
    loss.backward()
    expected, next_draw = gradients_of(model), torch.rand(())
    model.zero_grad()
    torch.manual_seed(5)
    terms = backward_in_chunks(model, batch, 3)
    assert torch.rand(()) == next_draw
    assert_equal(gradients_of(model), expected)
    torch.testing.assert_close(terms["loss"], loss.detach(), rtol=1e-5, atol=0)
    torch.manual_seed(6)
    assert abs(backward_in_chunks(model, batch, 3)["loss"] - loss) > 1e-4  # there is dropout


def test_gradients_are_added_to_those_that_are_there():
    model, batch = make_model("clip"), make_batch()
    backward_in_chunks(model, batch, 3)
    once = gradients_of(model)
    backward_in_chunks(model, batch, 2, lambda loss: (loss * 2).backward())
    assert_equal(gradients_of(model), {name: 3 * gradient for name, gradient in once.items()})


@pytest.mark.parametrize("tower", ["vision_model", "text_model"])
def test_a_frozen_tower(tower):
    model, batch = make_model("patch mean"), make_batch()
    getattr(model, tower).requires_grad_(False)
    model.logit_scale.requires_grad_(False)
    model(**batch).loss.backward()
    expected = gradients_of(model)
    model.zero_grad()
    backward_in_chunks(model, batch, 3)
    assert_equal(gradients_of(model), expected)
    assert all(parameter.grad is None for parameter in getattr(model, tower).parameters())


def test_soft_targets_and_weights_that_still_grow():
    model, batch = make_model("patch mean"), with_groups(make_batch())
    model.entropy_scale = 0.5
    output = model(**batch)
    output.loss.backward()
    expected = gradients_of(model)
    hard = model(**make_batch())
    assert abs(hard.contrastive_loss - output.contrastive_loss) > 1e-3
    model.zero_grad()
    terms = backward_in_chunks(model, batch, 3)
    assert_equal(gradients_of(model), expected)
    for term in TERMS[:-1]:
        torch.testing.assert_close(terms[term], output[term].detach(), rtol=1e-5, atol=0)


def test_autocast():
    """bf16: the logits alone are made in float32 here, so that the gradients agree as well as bf16 allows."""
    model, batch = make_model("patch mean"), make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        model(**batch).loss.backward()
        expected = gradients_of(model)
        model.zero_grad()
        backward_in_chunks(model, batch, 3)
    assert_equal(gradients_of(model), expected, tolerance=0.05)


def test_running_statistics_are_updated_once_by_each_chunk():
    model, batch = make_model("dual").train(), make_batch()
    norm = model.visual_projection[1]
    assert norm.training
    before = norm.running_mean.clone()
    with torch.no_grad():
        for chunk in split_batch(batch, 4):
            model(**chunk)
    expected = norm.running_mean.clone()
    norm.running_mean.copy_(before)
    norm.num_batches_tracked.zero_()
    backward_in_chunks(model, batch, 4)
    torch.testing.assert_close(norm.running_mean, expected)
    assert norm.num_batches_tracked == 2


def test_chunks_are_of_nearly_equal_sizes():
    batch = {**make_batch(), "position_ids": torch.arange(11)[None]}
    chunks = split_batch(batch, 3)
    assert [len(chunk["pixel_values"]) for chunk in chunks] == [3, 2, 2]
    assert torch.equal(torch.cat([chunk["input_ids"] for chunk in chunks]), batch["input_ids"])
    assert all(chunk["position_ids"].shape == (1, 11) and chunk["return_loss"] is True for chunk in chunks)


def test_the_texts_of_an_image_stay_in_its_chunk():
    batch = with_three_texts(make_batch())
    chunks = split_batch(batch, 3)
    assert [len(chunk["pixel_values"]) for chunk in chunks] == [3, 2, 2]
    assert chunks[1]["text_groups"].tolist() == [3, 4, 3, 2, 0, 2]  # the first texts of images 3 and 4, the second ...
    assert torch.equal(chunks[1]["input_ids"], batch["input_ids"][[3, 4, 10, 11, 17, 18]])
    assert all(chunk["texts_per_image"] == 3 for chunk in chunks)


ROWS = {"equal": [slice(0, 3), slice(3, 6)], "ragged": [slice(0, 5), slice(5, 6)]}  # 2 and 2 chunks; 3 and 1
CASES = list(itertools.product(["patch mean", "dual evidence", "several evidence"], ROWS, (False, True)))


def terms_of(name: str) -> tuple[str, ...]:
    return TERMS if "evidence" in name else TERMS[:-1]


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(minutes=10)  # not 30
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=timeout)
    for name, rows, find_unused in CASES:
        # As Trainer does: unused parameters are looked for, but not with gradient checkpointing.
        model = make_model(name)
        if not find_unused:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        wrapped = DistributedDataParallel(model, find_unused_parameters=find_unused)
        batch = take_rows(make_batch_of(name), ROWS[rows][rank])
        waits = []  # whether a chunk with a graph is to wait for the other process
        model.register_forward_pre_hook(
            lambda *_, waits=waits, wrapped=wrapped: (
                waits.append(wrapped.require_backward_grad_sync) if torch.is_grad_enabled() else None
            )
        )
        with wrapped.no_sync():  # a step of accumulation
            backward_in_chunks(wrapped, batch, 2)
        terms = backward_in_chunks(wrapped, batch, 2)
        chunks = len(waits) // 2
        assert chunks == -(-len(batch["pixel_values"]) // 2)
        assert waits == [False] * (2 * chunks - 1) + [True]
        result = {"terms": torch.stack([terms[term] for term in terms_of(name)]), "gradients": gradients_of(model)}
        torch.save(result, Path(folder) / f"{name}-{rows}-{find_unused}-{rank}.pt")
    dist.destroy_process_group()
    end_at_once()


@pytest.mark.slow
def test_two_processes_are_one_with_the_whole_batch(tmp_path):
    torch.multiprocessing.spawn(process, args=(str(tmp_path),), nprocs=2)
    for name, rows, find_unused in CASES:
        ranks = [
            torch.load(tmp_path / f"{name}-{rows}-{find_unused}-{rank}.pt", weights_only=True) for rank in range(2)
        ]
        model = make_model(name)
        output = model(**take_rows(make_batch_of(name), slice(0, 6)))
        (2 * output.loss).backward()  # two steps of accumulation
        expected = torch.stack([output[term].detach() for term in terms_of(name)])
        torch.testing.assert_close((ranks[0]["terms"] + ranks[1]["terms"]) / 2, expected, rtol=1e-5, atol=0)
        # 1e-5 holds on most processors; some round sums of other batches more
        assert_equal(ranks[0]["gradients"], gradients_of(model), TOLERANCES.get(name, 5e-5))
        assert all(
            torch.equal(gradient, ranks[1]["gradients"][key]) for key, gradient in ranks[0]["gradients"].items()
        )
