"""
Images per second of published models of full size with random weights: the owner's code against the converted model.

    pip install torchvision SimpleITK scikit-image
    pip install --no-deps hi-ml-multimodal clip-anytorch "setuptools<81"
    python speed/published_models.py

Each checkpoint is written in its owner's layout and converted as `tier-convert` does it. Only the embedding of images
is timed, in turn within each repetition; the figures are medians over the repetitions. The owner's code is

- CheXzero: OpenAI's `clip/model.py`, which CheXzero copies (package clip-anytorch);
- BioViL: `ImageModel` of hi-ml-multimodal;
- TIER: the same `ImageModel`. TIER copies it (Modeling/Vision_Model.py of apalepu13/TIER_Regularized_CLIP at 3cfdd56),
  but its own files do not import with a torchvision above 0.12.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional as F
from transformers.utils import logging
from turns import describe_ratios, time_in_turn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages, when they are not installed

from modeling_tier.checkpoints import load_source, open_source  # noqa: E402


class Pair(NamedTuple):
    """An owner's image tower, the converted model, and height and width of the images in pixels."""

    owner: Callable[[torch.Tensor], torch.Tensor]
    converted: torch.nn.Module
    image_size: int


def make_chexzero(folder: Path) -> Pair:
    """ViT-B/32 at 224 pixels, as the released checkpoints."""
    from clip.model import CLIP

    model = CLIP(512, 224, 12, 768, 32, 77, 49408, 512, 8, 12).float().eval()
    file = folder / "best_64_5e-05_original_22000_0.864.pt"
    torch.save(model.state_dict(), file)
    return Pair(model.encode_image, load_source(open_source(file)), 224)


def make_image_model() -> torch.nn.Module:
    """BioViL's ResNet-50 with its projector."""
    from health_multimodal.image.model.model import ImageModel

    model = ImageModel("resnet50", joint_feature_size=128).eval()
    for name, buffer in model.named_buffers():  # random weights keep the signal, their batch norms should not lose it
        if name.endswith("running_var"):
            buffer.fill_(1.0)
    return model


def cxr_bert_state() -> dict[str, torch.Tensor]:
    """CXR-BERT of the released size under its owner's names."""
    from health_multimodal.text.model.configuration_cxrbert import CXRBertConfig
    from health_multimodal.text.model.modelling_cxrbert import CXRBertModel

    state = CXRBertModel(CXRBertConfig(vocab_size=30522)).state_dict()
    return {name: tensor.clone() for name, tensor in state.items()}


def make_biovil(folder: Path) -> Pair:
    """480 pixels."""
    model = make_image_model()
    torch.save(model.state_dict(), folder / "biovil_image_resnet50_proj_size_128.pt")
    torch.save(cxr_bert_state(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"model_type": "cxr-bert", "vocab_size": 30522}))
    return Pair(lambda pixels: model(pixels).projected_global_embedding, load_source(open_source(folder)), 480)


def make_tier(folder: Path) -> Pair:
    """224 pixels."""
    model = make_image_model()
    state = {f"cnn.{name}": tensor for name, tensor in model.state_dict().items()}
    state |= {f"transformer.{name}": tensor for name, tensor in cxr_bert_state().items()}
    state["logit_scale"] = torch.tensor(2.66)
    torch.save({"model_state_dict": state}, folder / "best_model.pt")
    converted = load_source(open_source(folder / "best_model.pt"))
    return Pair(lambda pixels: model(pixels).projected_global_embedding, converted, 224)


FAMILIES: dict[str, Callable[[Path], Pair]] = {"chexzero": make_chexzero, "tier": make_tier, "biovil": make_biovil}


def measure(family: str, batch_size: int, repetitions: int) -> None:
    """Print parameters, the largest difference of an embedding, and images per second of both."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        pair = FAMILIES[family](Path(folder))
    pixels = torch.randn(batch_size, 3, pair.image_size, pair.image_size)
    with torch.inference_mode():
        embeds = pair.owner(pixels), pair.converted.get_image_features(pixel_values=pixels).pooler_output
        first, second = (F.normalize(embed, dim=-1) for embed in embeds)
        steps = {
            "owner": lambda: pair.owner(pixels),
            "converted": lambda: pair.converted.get_image_features(pixel_values=pixels),
        }
        seconds = time_in_turn(steps, repetitions)
    speeds = {name: batch_size / statistics.median(values) for name, values in seconds.items()}
    ratio = describe_ratios(seconds["owner"], seconds["converted"])  # of speeds: seconds the other way round
    print(
        f"{family}: {pair.converted.num_parameters():,} parameters, {pair.image_size} pixels, largest difference "
        f"{(first - second).abs().max():.0e}, owner {speeds['owner']:.3g} images/s, converted "
        f"{speeds['converted']:.3g} images/s, converted / owner {ratio}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"{', '.join(FAMILIES)} (default: all)")
    parser.add_argument("--batch-size", type=int, default=4, help="images embedded at once (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=5, help="default: %(default)s")
    args = parser.parse_args()
    if unknown := set(args.families) - set(FAMILIES):
        parser.error(f"unknown family {unknown.pop()!r}: choose among {', '.join(FAMILIES)}.")
    logging.set_verbosity_error()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {args.batch_size}")
    for family in args.families or FAMILIES:
        try:
            measure(family, args.batch_size, args.repetitions)
        except ImportError as error:
            print(f"{family}: left out, because the package {error.name} is not installed.")


if __name__ == "__main__":
    main()
