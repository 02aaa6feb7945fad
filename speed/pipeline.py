"""
Time per image of the pipeline cxr-zero-shot-classification on the CPU, against transformers' pipeline for CLIP.

    python speed/pipeline.py --repetitions 9

Both score 14 findings on the same synthetic radiographs, held in memory, with the same random weights of the size of
ViT-B/32 in float32: transformers' `zero-shot-image-classification` with a CLIPModel and CLIP's image processor, one
text per finding; ours with a TierCLIPModel and a TierImageProcessor, two texts per finding. The pipelines take turns
within each repetition, so that a slower machine affects them all. The figure is the median ratio of the two times over
the repetitions.
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, pipeline
from transformers.utils import logging
from turns import describe_ratios, time_in_turn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages, when they are not installed


from modeling_tier import TierCLIPConfig, TierCLIPModel  # noqa: E402
from modeling_tier.pipeline_tier import TASK  # noqa: E402
from processing_tier import TierImageProcessor, TierProcessor, read_radiograph, train_tokenizer  # noqa: E402
from processing_tier.phantom.dataset import make_phantom  # noqa: E402

FINDINGS = (
    "No Finding, Enlarged Cardiomediastinum, Cardiomegaly, Lung Opacity, Lung Lesion, Edema, Consolidation, "
    "Pneumonia, Atelectasis, Pneumothorax, Pleural Effusion, Pleural Other, Fracture, Support Devices"
).split(", ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=9, help="timed calls of each pipeline (default: 9)")
    parser.add_argument("--images", type=int, default=8, help="images in a call (default: 8)")
    parser.add_argument("--image-size", type=int, default=1024, help="edge of the images in pixels (default: 1024)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the weights and the images (default: 0)")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    logging.set_verbosity_error()
    phantom = make_phantom(args.images, seed=args.seed, image_size=args.image_size)
    images = [read_radiograph(image) for image in phantom["image"]]
    tokenizer = train_tokenizer(phantom["report"][:])
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text_config = {**tokens, "vocab_size": len(tokenizer)}
    clip = CLIPModel(CLIPConfig(text_config=text_config)).eval()  # the defaults are ViT-B/32
    tier = TierCLIPModel(TierCLIPConfig(text_config=text_config, image_pooling="patch_mean")).eval()
    tier.load_state_dict(clip.state_dict())
    stock = pipeline(
        "zero-shot-image-classification",
        model=clip,
        tokenizer=tokenizer,
        image_processor=CLIPImageProcessorPil(),
        device="cpu",
    )
    ours = pipeline(TASK, model=tier, processor=TierProcessor(TierImageProcessor(), tokenizer), device="cpu")

    def score(**options) -> None:
        ours(images, FINDINGS, **options)

    def score_without_cache() -> None:
        for image in images:
            ours._text_cache_key = None
            ours(image, FINDINGS)

    seconds = time_in_turn(
        {
            "zero-shot-image-classification": lambda: stock(images, candidate_labels=FINDINGS),
            f"{TASK}, texts embedded anew": score_without_cache,
            TASK: score,
            f"{TASK}, heat-maps": lambda: score(return_heatmaps=True),
            "zero-shot-image-classification, batches": lambda: stock(images, candidate_labels=FINDINGS, batch_size=8),
            f"{TASK}, batches": lambda: score(batch_size=8),
        },
        args.repetitions,
    )
    print(
        f"ViT-B/32, float32, CPU, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{len(FINDINGS)} findings, {args.images} images of {args.image_size}x{args.image_size} pixels, "
        f"{args.repetitions} repetitions"
    )
    baseline = seconds["zero-shot-image-classification"]
    for name, values in seconds.items():
        median = 1000 * statistics.median(values) / args.images
        print(f"{name:50s} median {median:6.1f} ms per image   ratio {describe_ratios(values, baseline)}")


if __name__ == "__main__":
    main()
