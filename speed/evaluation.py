"""
Time of a whole zero-shot evaluation, with and without a warm cache, against a loop over images and prompts.

    python speed/evaluation.py --model runs/mine --data FOLDER --split validation

The loop works like the references' scripts: it reads an image and calls the model once for every sentence of every
finding. It runs over the first images only (--loop-images), and its time per image counts. The evaluation is
`evaluate_zero_shot` on all images: reading, both towers, scores of all levels, metrics and 1,000 bootstrap resamples.
All are timed in turn within each repetition; the figures are median ratios of the times per image over the
repetitions. Without --model, random weights of the size of ViT-B/32 and the phantom are used.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from transformers.utils import logging
from turns import time_in_turn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages, when they are not installed

from evaluation_tier.models.loading import choose_device, load_model  # noqa: E402
from evaluation_tier.scoring.findings import select_findings  # noqa: E402
from evaluation_tier.scoring.zeroshot import evaluate_zero_shot  # noqa: E402
from modeling_tier import TierCLIPConfig, TierCLIPModel  # noqa: E402
from processing_tier import TierImageProcessor, TierProcessor, train_tokenizer  # noqa: E402
from processing_tier.prompts.loader import load_prompts  # noqa: E402
from processing_tier.readers import read_records  # noqa: E402
from processing_tier.records.schema import select_views  # noqa: E402

LOOP = "loop over images and sentences"


def make_random_model(reports: list[str], device: torch.device):
    torch.manual_seed(0)
    tokenizer = train_tokenizer(reports)
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = TierCLIPConfig(text_config={**tokens, "vocab_size": len(tokenizer)}, image_pooling="patch_mean")
    return TierCLIPModel(config).eval().to(device), TierProcessor(TierImageProcessor(), tokenizer)


def score_in_a_loop(model, processor, dataset, prompts) -> torch.Tensor:
    """Scores (images, findings), one pair of an image and a sentence at a time."""
    rows = []
    with torch.inference_mode():
        for record in dataset:
            image = processor.image_processor.read(record["image"])
            pixels = processor.image_processor(images=[image], return_tensors="pt")["pixel_values"].to(model.device)
            row = []
            for prompt in prompts.values():
                sides = []
                for sentences in (prompt.positive, prompt.negative):
                    cosines = []
                    for sentence in sentences:
                        text = processor.tokenizer([sentence], truncation=True, return_tensors="pt").to(model.device)
                        image_embeds = model.get_image_features(pixel_values=pixels).pooler_output
                        text_embeds = model.get_text_features(
                            input_ids=text["input_ids"], attention_mask=text["attention_mask"]
                        ).pooler_output
                        cosines.append(torch.cosine_similarity(image_embeds, text_embeds).item())
                    sides.append(sum(cosines) / len(cosines))
                row.append(sides[0] - sides[1])
            rows.append(row)
    return torch.tensor(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model folder (default: random weights of the size of ViT-B/32)")
    parser.add_argument("--data", default="phantom:num_images=64,image_size=512", help="data, as for eval_zeroshot.py")
    parser.add_argument("--split", default="validation", help="default: %(default)s")
    parser.add_argument("--protocol", default="chexzero", help="default: %(default)s, two sentences per finding")
    parser.add_argument("--min-positives", type=int, default=1, help="positives that a finding needs (default: 1)")
    parser.add_argument("--loop-images", type=int, default=4, help="images of the loop (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=3, help="default: %(default)s")
    args = parser.parse_args()

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = choose_device()
    dataset = select_views(read_records(args.data, args.split), "frontal", args.split)
    model, processor = (
        load_model(args.model, device) if args.model else make_random_model(dataset["report"][:], device)
    )
    findings, _ = select_findings(dataset, min_positives=args.min_positives)
    prompts = load_prompts(args.protocol, findings)
    few = dataset.select(range(min(args.loop_images, len(dataset))))

    def evaluate(cache_dir: str | None = None) -> None:
        options = {"protocol": args.protocol, "no_finding": "prompts", "min_positives": args.min_positives}
        evaluate_zero_shot({"model": (model, processor)}, dataset, cache_dir=cache_dir, **options)

    with tempfile.TemporaryDirectory() as folder:
        evaluate(folder)  # fills the cache
        steps = {
            LOOP: lambda: score_in_a_loop(model, processor, few, prompts),
            "evaluation": evaluate,
            "evaluation, warm cache": lambda: evaluate(folder),
        }
        seconds = time_in_turn(steps, args.repetitions)

    sentences = sum(len(prompt.positive) + len(prompt.negative) for prompt in prompts.values())
    print(
        f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}; {len(dataset)} images, "
        f"{len(findings)} findings, {sentences} sentences; loop over {len(few)} images; {args.repetitions} repetitions"
    )
    loop = [value / len(few) for value in seconds[LOOP]]
    for name, values in seconds.items():
        values = loop if name == LOOP else [value / len(dataset) for value in values]
        ratio = statistics.median(base / value for base, value in zip(loop, values, strict=True))
        print(f"{name:32s} {1000 * statistics.median(values):9.2f} ms per image   {ratio:7.1f} times the loop's speed")


if __name__ == "__main__":
    main()
