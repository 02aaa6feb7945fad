"""
A training step with the cached outputs of frozen towers (--cache_features), against the same step through the towers.

    python speed/cached_features.py                                  # 10 minutes on 2 cores
    python speed/cached_features.py --models resnet-50 --steps 5
    python speed/cached_features.py --device cuda --batch-size 256 --images 1024

Both steps read a batch of the same phantoms and their reports (pixels decoded, or features from the disk), compute the
loss with the entropy terms, and update the projection heads, in turn. The weights of the towers are random: their time
does not depend on them. The text tower is a BERT-base, frozen too. Seconds on a CPU are processor time, which other
programs do not change; on a GPU they are wall time. The columns: seconds of a step through the towers and of a cached
one, their ratio, and what an epoch of --pairs pairs takes with the cache. What one image takes on the disk and
how long it takes to fill the cache, per image with its text, are stated once for each model.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
from transformers import BertConfig, Dinov2Config, PreTrainedConfig, ResNetConfig, ViTConfig
from turns import describe_ratios, time_in_turn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages, when they are not installed

from modeling_tier import TierDualEncoderConfig, TierDualEncoderModel  # noqa: E402
from processing_tier import TierImageProcessor, train_tokenizer  # noqa: E402
from processing_tier.phantom.dataset import make_phantom  # noqa: E402
from training_tier.data.collator import PairCollator  # noqa: E402
from training_tier.data.feature_cache import cache_features  # noqa: E402
from training_tier.data.pairs import PairDataset, PairOptions  # noqa: E402

MODELS: dict[str, PreTrainedConfig] = {
    "vit-b-16": ViTConfig(image_size=224, patch_size=16),
    "dinov2-b-14": Dinov2Config(image_size=224, patch_size=14),
    "resnet-50": ResNetConfig(),
}


def make_model(name: str, vocab_size: int) -> TierDualEncoderModel:
    """Random weights, frozen but for the heads."""
    torch.manual_seed(0)
    towers = {"vision_config": MODELS[name], "text_config": BertConfig(vocab_size=vocab_size)}
    weights = {"token_entropy_weight": 0.1, "patch_entropy_weight": 0.1}
    model = TierDualEncoderModel(TierDualEncoderConfig(**towers, image_size=224, **weights))
    for tower in (model.vision_model, model.text_model):
        tower.requires_grad_(False)
    return model.train()


def make_step(
    model: TierDualEncoderModel, dataset: PairDataset, collator: PairCollator, batch_size: int
) -> Callable[[], None]:
    """A step on the next batch of the data set."""
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    done = 0

    def step() -> None:
        nonlocal done
        rows = [i % len(dataset) for i in range(done, done + batch_size)]
        done += batch_size
        batch = collator([dataset[row] for row in rows])
        inputs = {key: value.to(model.device) for key, value in batch.items() if torch.is_tensor(value)}
        with torch.autocast("cuda", torch.bfloat16, enabled=model.device.type == "cuda"):
            loss = model(**inputs, return_loss=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    return step


def measure(name: str, args: argparse.Namespace, records: datasets.Dataset, folder: str) -> None:
    """Prints the line of one model."""
    texts = [f"{record['impression']} {record['findings']}" for record in records]
    tokenizer = train_tokenizer(texts, vocab_size=4000)
    model = make_model(name, len(tokenizer)).to(args.device)
    processor = TierImageProcessor(size=224, image_mean=model.config.pixel_mean, image_std=model.config.pixel_std)
    through, cached = (PairDataset(records, processor, PairOptions(text="both")) for _ in range(2))
    plain, with_texts = PairCollator(tokenizer), PairCollator(tokenizer)
    start = time.perf_counter()
    cache_features(model, with_texts, [cached], folder)
    filling = (time.perf_counter() - start) / len(records)
    steps = {
        "through": make_step(model, through, plain, args.batch_size),
        "cached": make_step(model, cached, with_texts, args.batch_size),
    }
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    seconds = time_in_turn(steps, args.steps, clock)
    tower, cache = (statistics.median(seconds[kind]) for kind in ("through", "cached"))
    print(
        f"{name:12s} {tower:7.2f} s through the towers, {cache:6.3f} s cached, ratio "
        f"{describe_ratios(seconds['through'], seconds['cached'], 1)}; an epoch of {args.pairs:,} pairs "
        f"{cache * args.pairs / args.batch_size:.1f} s; {cached[0]['vision_hidden_state'].nbytes / 2**20:.2f} MiB an "
        f"image, {filling:.2f} s to fill",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS, help="(default: all)")
    parser.add_argument("--batch-size", type=int, default=32, help="(default: 32)")
    parser.add_argument("--images", type=int, default=64, help="phantoms that the steps go through (default: 64)")
    parser.add_argument(
        "--steps", type=int, default=3, help="of each kind, after one that does not count (default: 3)"
    )
    parser.add_argument("--pairs", type=int, default=2654, help="of the epoch in the last column (default: 2654)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="(default: cpu)")
    args = parser.parse_args()
    precision = "bfloat16" if args.device == "cuda" else "float32"
    threads = torch.get_num_threads()
    print(f"{args.device}, {precision}, batch {args.batch_size}, {threads} threads, torch {torch.__version__}")
    records = make_phantom(args.images, seed=0, image_size=256)
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, args, records, folder)


if __name__ == "__main__":
    main()
