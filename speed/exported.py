"""
Exported models: the image tower of ViT-B/16 in ONNX Runtime and OpenVINO, float32 and int8, against PyTorch.

    python speed/exported.py --threads 2

PyTorch is in float32, without compilation. A step embeds a batch of images and their patches. The backends take turns
within each repetition, so that a slower machine affects them all; the figure is the median ratio of the times. Weights
are random, and int8 is calibrated on random images, which does not matter for the time. Backends whose package is
missing are left out. --cpu_time counts the processor's time in place of the clock's, for a machine that others use;
then take one thread.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from turns import describe_ratios, time_in_turn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages, when they are not installed

from evaluation_tier.export.graphs import export_towers, to_openvino  # noqa: E402
from evaluation_tier.export.int8 import quantize  # noqa: E402
from modeling_tier import TierCLIPModel  # noqa: E402
from modeling_tier.exported_tier import FILES, start  # noqa: E402
from processing_tier import train_tokenizer  # noqa: E402
from training_tier.start.presets import PRESETS, preset_config  # noqa: E402

TEXTS = ["Small left pleural effusion.", "No pneumothorax. The heart is enlarged."]


def make_steps(model: TierCLIPModel, pixels: torch.Tensor, folder: Path) -> dict[str, Callable[[], object]]:
    """What embeds the batch, by the name of the backend."""

    def in_torch() -> object:
        with torch.inference_mode():
            return model.encode_images(pixels)

    steps: dict[str, Callable[[], object]] = {"PyTorch float32": in_torch}
    calibration = [torch.randn(1, *pixels.shape[1:]).numpy() for _ in range(8)]
    inputs = {"pixel_values": pixels.numpy()}
    for backend, suffixes in FILES.items():
        try:
            for kind in ("float32", "int8"):
                own = folder / f"{backend}-{kind}"  # each its own: OpenVINO keeps its file of weights mapped
                own.mkdir()
                export_towers(model, own)
                if kind == "int8":
                    quantize(own, calibration)
                if backend == "openvino":
                    to_openvino(model, own, kind == "int8")
                run = start(backend, own / f"image.{suffixes[0]}")
                steps[f"{backend} {kind}"] = lambda run=run: run(inputs)
        except ImportError as error:
            print(f"left out: {error}")
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--preset", choices=tuple(PRESETS), default="vit-b-16", help="architecture (default: vit-b-16)"
    )
    parser.add_argument("--repetitions", type=int, default=10, help="timed steps of each backend (default: 10)")
    parser.add_argument("--batch-size", type=int, default=4, help="images in a step (default: 4)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: as many as torch takes")
    parser.add_argument("--cpu_time", action="store_true", help="the processor's time, not the clock's")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS, 600, model_max_length=77)
    model = TierCLIPModel(preset_config(args.preset, tokenizer)).eval()
    size = model.config.vision_config.image_size
    with tempfile.TemporaryDirectory() as folder:
        steps = make_steps(model, torch.randn(args.batch_size, 3, size, size), Path(folder))
        clock = time.process_time if args.cpu_time else time.perf_counter
        seconds = time_in_turn(steps, args.repetitions, clock)
    baseline = seconds["PyTorch float32"]
    what = "processor time" if args.cpu_time else "time"
    print(
        f"{args.preset}, {args.batch_size} images a batch, {args.threads} threads, {what}, torch {torch.__version__}"
    )
    for name, values in seconds.items():
        own = statistics.median(values) / args.batch_size
        print(f"{name:18} {1000 * own:7.1f} ms an image; speed {describe_ratios(baseline, values, 2)} times PyTorch's")


if __name__ == "__main__":
    main()
