"""Two processes that share a batch compute the loss and the gradients of one process that has all of it."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from modeling_tier import TierCLIPConfig, TierCLIPModel, TierDualEncoderConfig, TierDualEncoderModel

BOS, EOS = 97, 98
TERMS = ("loss", "contrastive_loss", "token_entropy", "patch_entropy")


def make_model(options: dict) -> torch.nn.Module:
    torch.manual_seed(0)
    text = {"vocab_size": 99, "max_position_embeddings": 20, "bos_token_id": BOS, "eos_token_id": EOS}
    size = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    if "frozen_text_layers" in options:
        sizes = {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8, "layer_type": "basic"}
        config = TierDualEncoderConfig(text_config=text | size, vision_config=sizes, **WEIGHTS, **options)
        model = TierDualEncoderModel(config).eval()  # batch norms in training see the images of their process alone
    else:
        vision = {"image_size": 32, "patch_size": 8}
        sizes = {"text_config": text | size, "vision_config": vision | size, "projection_dim": 24}
        model = TierCLIPModel(TierCLIPConfig(**sizes, **WEIGHTS, **options))
    return model.double()  # the entropies stay in float32


def make_batch() -> dict[str, torch.Tensor]:
    """Six pairs; the texts have 9, 7, 0, 1, 2 and 1 words, so that the processes count very different numbers."""
    lengths = torch.tensor([9, 7, 0, 1, 2, 1])
    generator = torch.Generator().manual_seed(1)
    positions = torch.arange(11)
    input_ids = torch.randint(0, BOS, (6, 11), generator=generator)
    input_ids[:, 0] = BOS
    input_ids[positions > lengths[:, None]] = EOS
    attention_mask = (positions <= lengths[:, None] + 1).long()
    pixel_values = torch.randn(6, 3, 32, 32, generator=generator, dtype=torch.float64)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values}


def train_one_step(model: torch.nn.Module, rows: slice) -> dict:
    output = model(**{key: value[rows] for key, value in make_batch().items()}, return_loss=True)
    output.loss.backward()
    trained = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    gradients = {name.removeprefix("module."): parameter.grad for name, parameter in trained}
    return {"terms": torch.stack([output[name].detach().double() for name in TERMS]), "gradients": gradients}


WEIGHTS = {"token_entropy_weight": 3.0, "patch_entropy_weight": 5.0}
CASES = {
    "equal": ([slice(0, 3), slice(3, 6)], {"image_pooling": "patch_mean", "entropy_normalization": True}),
    "ragged": ([slice(0, 4), slice(4, 6)], {"entropy_temperature": 0.1}),  # batches of different sizes
    "dual": ([slice(0, 4), slice(4, 6)], {"frozen_text_layers": 1}),
}


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", store, rank=rank, world_size=2, timeout=timedelta(minutes=2))  # not 30
    for case, (rows, options) in CASES.items():
        result = train_one_step(DistributedDataParallel(make_model(options)), rows[rank])
        torch.save(result, Path(folder) / f"{case}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """The folder where both processes left what they computed in each case."""
    folder = tmp_path_factory.mktemp("distributed")
    torch.multiprocessing.spawn(process, args=(str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one_with_the_whole_batch(results, case):
    first, second = (torch.load(results / f"{case}-{rank}.pt", weights_only=True) for rank in (0, 1))
    expected = train_one_step(make_model(CASES[case][1]), slice(None))

    torch.testing.assert_close((first["terms"] + second["terms"]) / 2, expected["terms"], rtol=1e-6, atol=0)
    assert first["terms"][1].item() == pytest.approx(expected["terms"][1].item(), rel=1e-9)  # all the pairs' contrast
    whole = torch.cat([gradient.flatten() for gradient in expected["gradients"].values()])
    for name, gradient in expected["gradients"].items():
        assert torch.equal(first["gradients"][name], second["gradients"][name]), name
        # The keys' biases have a gradient of 0 up to rounding; so a part of the size of all the gradients is allowed.
        error = (first["gradients"][name] - gradient).norm()
        assert error <= 1e-5 * gradient.norm() + 1e-9 * whole.norm(), name
