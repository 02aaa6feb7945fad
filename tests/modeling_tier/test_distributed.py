"""Two and three processes that share a batch compute the loss and the gradients of one process that has all of it."""

import functools
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
    contrastive_loss_tier,
)
from modeling_tier.global_batch_tier import Pairs

BOS, EOS = 97, 98
TERMS = ("loss", "contrastive_loss", "token_entropy", "patch_entropy", "evidence_entropy")


def make_model(options: dict) -> torch.nn.Module:
    torch.manual_seed(0)
    text = {"vocab_size": 99, "max_position_embeddings": 20, "bos_token_id": BOS, "eos_token_id": EOS}
    if "siglip" in options:
        options = {name: value for name, value in options.items() if name != "siglip"}
        sizes = siglip_sizes() | {"text_config": {**TOWER, **text, "projection_size": 24, "pad_token_id": EOS}}
        model = TierSiglipModel(TierSiglipConfig(**sizes, **WEIGHTS, **options))
        model.logit_scale.data.fill_(2.0)
        model.logit_bias.data.fill_(-3.0)
        return model
    size = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    if "frozen_text_layers" in options:
        sizes = {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8, "layer_type": "basic"}
        text |= size | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        text["initializer_range"] = 0.2  # else all texts are nearly the same, and rounding is all that differs
        model = TierDualEncoderModel(
            TierDualEncoderConfig(text_config=text, vision_config=sizes, **WEIGHTS, **options)
        )
        for module in model.modules():  # batch norms in training see the images of their process alone
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
    else:
        vision = {"image_size": 32, "patch_size": 8}
        sizes = {"text_config": text | size, "vision_config": vision | size, "projection_dim": 24}
        model = TierCLIPModel(TierCLIPConfig(**sizes, **WEIGHTS, **options))
    return model


def make_batch() -> dict[str, torch.Tensor]:
    """Six pairs; the texts have 9, 7, 0, 1, 2 and 1 words, so that the processes count very different numbers."""
    lengths = torch.tensor([9, 7, 0, 1, 2, 1])
    generator = torch.Generator().manual_seed(1)
    positions = torch.arange(11)
    input_ids = torch.randint(0, BOS, (6, 11), generator=generator)
    input_ids[:, 0] = BOS
    input_ids[positions > lengths[:, None]] = EOS
    attention_mask = (positions <= lengths[:, None] + 1).long()
    pixel_values = torch.randn(6, 3, 32, 32, generator=generator)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values}


def take_rows(batch: dict, rows: slice) -> dict:
    """Some pairs, or images with all their texts."""
    images = len(batch["pixel_values"])
    return {
        key: value.unflatten(0, (-1, images))[:, rows].flatten(0, 1) if torch.is_tensor(value) else value
        for key, value in batch.items()
    }


def train_one_step(model: torch.nn.Module, rows: slice, checkpointing: bool = False, kind: str = "") -> dict:
    if checkpointing:
        getattr(model, "module", model).gradient_checkpointing_enable({"use_reentrant": False})
    batch = make_batch()
    if "soft" in kind:
        batch["text_groups"] = torch.tensor([7, -1, 5, 7, 5, 7])
    if "several" in kind:  # texts of each image: its own and that of another one, most often of the last
        order = torch.tensor([0, 1, 2, 3, 4, 5, 5, 5, 3, 5, 1, 0])
        batch |= {name: batch[name][order] for name in ("input_ids", "attention_mask")}
        batch |= {"text_groups": order, "texts_per_image": 2}
    output = model(**take_rows(batch, rows), return_loss=True)
    output.loss.backward()
    trained = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    gradients = {name.removeprefix("module."): parameter.grad for name, parameter in trained}
    terms = torch.stack([output[name].detach() for name in TERMS if name in output])
    return {"terms": terms, "gradients": gradients}


WEIGHTS = {"token_entropy_weight": 3.0, "patch_entropy_weight": 5.0}
EVIDENCE = {"evidence_entropy_weight": 4.0, "evidence_patches": 3.0}
MODELS = {
    "clip": {"image_pooling": "patch_mean", "entropy_normalization": True},
    "sharp": {"entropy_temperature": 0.1},
    "dual": {"frozen_text_layers": 1},
    "soft": {},
    "adapter-dual": {"frozen_text_layers": 1, "adapter_layers": 2},
    "soft-dual": {"frozen_text_layers": 1},
    "several": {"image_pooling": "patch_mean"},
    "several-dual": {"frozen_text_layers": 1},
    "evidence": {"image_pooling": "patch_mean", **EVIDENCE},
    "siglip": {"siglip": True, "entropy_temperature": 0.1},
    "soft-siglip": {"siglip": True},
    "several-siglip": {"siglip": True},
    "evidence-several-dual": {"frozen_text_layers": 1, **EVIDENCE},
}
ROWS = {  # of each process
    2: {"equal": [slice(0, 3), slice(3, 6)], "ragged": [slice(0, 4), slice(4, 6)]},
    3: {"equal": [slice(0, 2), slice(2, 4), slice(4, 6)], "ragged": [slice(0, 1), slice(1, 5), slice(5, 6)]},
}
CASES = [
    case
    for case in itertools.product(MODELS, ("equal", "ragged"), (False, True))
    if not (case[0].startswith(("soft", "several", "evidence")) and case[2])
]


def process(rank: int, processes: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    timeout = timedelta(minutes=10)  # not 30
    dist.init_process_group("gloo", store, rank=rank, world_size=processes, timeout=timeout)
    for name, rows, checkpointing in CASES:
        model = make_model(MODELS[name])
        own = ROWS[processes][rows][rank]
        result = train_one_step(DistributedDataParallel(model), own, checkpointing, kind=name)
        torch.save(result, Path(folder) / f"{name}-{rows}-{checkpointing}-{rank}.pt")
    dist.destroy_process_group()
    end_at_once()


@pytest.fixture(scope="module")
def run_processes(tmp_path_factory):
    """Gives, for a number of processes, the folder where they left what they computed in each case."""

    @functools.cache
    def run(processes: int) -> Path:
        folder = tmp_path_factory.mktemp(f"processes{processes}")
        # They fork from one process that has imported what they need, and not each its own
        torch.multiprocessing.set_forkserver_preload(["torch", "torch.distributed", "modeling_tier"])
        torch.multiprocessing.start_processes(
            process, args=(processes, str(folder)), nprocs=processes, start_method="forkserver"
        )
        return folder

    return run


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "rows", "checkpointing"), CASES)
def test_processes_are_one_with_the_whole_batch(run_processes, name, rows, checkpointing, processes):
    folder = run_processes(processes)
    ranks = [
        torch.load(folder / f"{name}-{rows}-{checkpointing}-{rank}.pt", weights_only=True) for rank in range(processes)
    ]
    expected = train_one_step(make_model(MODELS[name]), slice(None), kind=name)

    terms = torch.stack([rank["terms"] for rank in ranks]).mean(dim=0)
    torch.testing.assert_close(terms, expected["terms"], rtol=1e-5, atol=0)
    whole = torch.cat([gradient.flatten() for gradient in expected["gradients"].values()])
    for parameter, gradient in expected["gradients"].items():
        for rank in ranks[1:]:
            assert torch.equal(rank["gradients"][parameter], ranks[0]["gradients"][parameter]), parameter
        # The biases of keys and of normalisations have gradients that cancel, to 0 or nearly, and what is left of them
        # is rounding, which differs from machine to machine; so 1e-6 of the size of all the gradients is allowed.
        # The gradient of the evidence entropy changes its sign where the evidence of a patch is 0, so the rounding of
        # convolutions counts more.
        tolerance = 1e-3 if name == "evidence-several-dual" else 1e-5
        error = (ranks[0]["gradients"][parameter] - gradient).norm()
        assert error <= tolerance * gradient.norm() + tolerance / 10 * whole.norm(), parameter


def test_no_process_holds_all_the_logits(monkeypatch):
    """Four processes of three pairs: each compares 3 with 12, twice, and the mean is the loss of the 12."""
    torch.manual_seed(0)
    images, texts = torch.nn.functional.normalize(torch.randn(2, 12, 8), dim=-1)
    scale = torch.tensor(1.5)
    expected = contrastive_loss_tier.contrastive_loss(images, texts, scale)
    shapes, losses = [], []
    cross_entropy = torch.nn.functional.cross_entropy

    def spy(logits, *args, **kwargs):
        shapes.append(tuple(logits.shape))
        return cross_entropy(logits, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", spy)
    monkeypatch.setattr(contrastive_loss_tier, "world_size", lambda: 4)
    for first in range(0, 12, 3):
        monkeypatch.setattr(
            contrastive_loss_tier, "gather_pairs", lambda own, first=first: (Pairs(images, texts), first)
        )
        losses.append(
            contrastive_loss_tier.contrastive_loss(images[first : first + 3], texts[first : first + 3], scale)
        )
    assert shapes == [(3, 12)] * 8
    torch.testing.assert_close(torch.stack(losses).mean(), expected, rtol=1e-6, atol=0)
