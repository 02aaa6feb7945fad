"""
What one GPU does: training, the entropy terms, large batches, inference, and where the time goes.

    python speed/gpu.py --output_dir runs/gpu           # on a GPU; made for 8 minutes of one H200, without network
    python speed/gpu.py --data FOLDER --models vit-b16  # your own pairs, one of the models
    python speed/gpu.py                                 # without a GPU: every part at small sizes, numbers of no use

All parts are ratios of one run. It prints the tables of docs/speed.md in Markdown and, with --output_dir, writes them
to `gpu.md` and the numbers to `gpu.json`, after each part. A part that fails says why and does not stop the others.

- training: epochs of --steps batches through the Trainer, in bfloat16, after one that does not count: ours with and
  without `--torch_compile` and `--group_texts`, against the plain Trainer of `train_step.py` on the same JPEG files.
  The first quarter of the steps of each epoch, in which workers start, does not count. TFLOP/s and utilisation are
  those of the training log (three forward passes, padding included).
- where the time goes: waiting for data, as the Trainer measured it; forward and backward of each tower alone, and the
  optimizer, as shares of a step of ours.
- entropies: forward and backward with both weights at 0.1 against weights of 0.
- large batches: memory and time per pair of `speed/gradient_caching.py`, against one chunk as a whole batch.
- inference: images per second from 8-bit pixels in memory to embeddings, float32 and bfloat16.

Without --data, the images are phantoms, and the texts have the lengths of 2,654 Indiana reports (`LENGTHS`).
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import gradient_caching
import numpy as np
import torch
import train_step
from transformers import Trainer
from transformers.utils.logging import disable_progress_bar, set_verbosity_error
from turns import time_in_turn

from processing_tier import train_tokenizer
from training_tier.data.splits import load_splits
from training_tier.loop.throughput import flops_by_length, peak_flops
from training_tier.options.data import DataArguments

MODELS = ("vit-b32", "vit-b16", "resnet50-bert", "siglip-b16")
SMALL_MODELS = ("tiny", "resnet-tiny", "siglip-tiny")

# Tokens of the impression, or the findings without one, of the Indiana reports: the quantiles 0, 5, ... 100 %
LENGTHS = (4, 6, 6, 7, 7, 7, 7, 7, 8, 8, 9, 10, 11, 13, 15, 18, 22, 27, 33, 46, 77)

HEADERS = {
    "training": ("model", "training", "images/s", "TFLOP/s", "utilisation", "data wait", "times the plain Trainer"),
    "where the time goes": ("model", "data", "image tower", "text tower", "loss and rest", "optimizer"),
    "entropies": ("model", "step with entropies / without"),
    "large batches": (
        "model",
        "batch",
        "chunks of",
        "MiB",
        "memory, times one chunk",
        "time per pair, times one chunk",
    ),
    "inference": ("model", "precision", "images/s", "times float32"),
}


def set_lengths(records: datasets.Dataset, tokenizer) -> datasets.Dataset:
    """The records with texts of words from their own reports, as long as those of `LENGTHS`."""
    words = [word for text in records["impression"] for word in text.split() if len(tokenizer(word)["input_ids"]) == 3]
    drawn = np.random.default_rng(0).uniform(size=len(records))
    counts = np.interp(drawn, np.linspace(0, 1, len(LENGTHS)), LENGTHS).round().astype(int) - 2  # begin and end
    texts = [" ".join(words[(row + i) % len(words)] for i in range(count)) for row, count in enumerate(counts)]
    features = datasets.Features({**records.features, "impression": datasets.Value("string")})
    return records.remove_columns("impression").add_column("impression", texts, feature=features["impression"])


def read_pairs(args: argparse.Namespace, folder: str) -> tuple[datasets.Dataset, Any]:
    """Enough pairs for an epoch, of JPEG files of `args.edge` pixels, and a tokenizer of their words."""
    count = args.batch_size * args.steps
    named = args.data or f"phantom:num_images={2 * min(count, 512)},image_size={args.edge}"
    records, _ = load_splits(DataArguments(data=named, eval_split="validation"), seed=0)
    records = records.shuffle(seed=0).select(range(min(count, len(records))))
    texts = [f"{record['impression']} {record['findings']}" for record in records.remove_columns("image")]
    tokenizer = train_tokenizer(texts, vocab_size=4000)
    if not args.data:
        records = set_lengths(records, tokenizer)
    records = train_step.enlarge(records, args.edge, folder)
    return records.select([i % len(records) for i in range(count)]), tokenizer


def choose_forms(name: str, on_gpu: bool) -> dict[str, dict]:
    """The options of our trainings by name."""
    compiled = {"torch_compile": True} if on_gpu else {"torch_compile": True, "torch_compile_backend": "eager"}
    forms = {"ours": {}, "ours, compiled": compiled}
    return forms if "siglip" in name else {**forms, "ours, --group_texts": {"group_texts": True}}


def measure_training(name: str, trainers: dict[str, Trainer], repetitions: int, batch_size: int) -> list[dict]:
    """A row for each Trainer; the median over the epochs."""
    speeds: dict[str, list[float]] = {form: [] for form in trainers}
    waits: dict[str, list[float]] = {form: [] for form in trainers}
    for epoch in range(1 + repetitions):
        for form, trainer in trainers.items():
            trainer.train()
            watch = trainer.stopwatch
            skipped = max(1, len(watch.ends) // 4)
            seconds = watch.ends[-1] - watch.ends[skipped - 1]
            if epoch:
                speeds[form].append(batch_size * (len(watch.ends) - skipped) / seconds)
                waits[form].append(sum(watch.waits[skipped : len(watch.ends)]) / seconds)
    ours = trainers["ours"]
    device = ours.model.device
    batch = ours.data_collator([ours.train_dataset[0]])
    pair = {key: value.to(device) for key, value in batch.items() if torch.is_tensor(value)}
    flops = flops_by_length(ours.model, pair)
    peak = peak_flops(torch.cuda.get_device_name()) if device.type == "cuda" else None
    rows = []
    for form, trainer in trainers.items():
        speed = statistics.median(speeds[form])
        per_pair = statistics.mean(flops @ [1, length, length**2] for length in trainer.stopwatch.tokens)
        ratios = [a / b for a, b in zip(speeds[form], speeds.get("plain", []), strict=False)]
        rows.append(
            {
                "model": name,
                "training": form,
                "images/s": speed,
                "TFLOP/s": speed * per_pair / 1e12,
                "utilisation": speed * per_pair / peak if peak else None,
                "data wait": statistics.median(waits[form]),
                "times the plain Trainer": statistics.median(ratios) if ratios else None,
            }
        )
    return rows


def clock() -> float:
    """Seconds, once the GPU has done what it was asked to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def median_times(steps: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    return {name: statistics.median(each) for name, each in time_in_turn(steps, repetitions, clock).items()}


def prepare(trainer: Trainer, batch_size: int) -> tuple[torch.nn.Module, dict, dict, dict]:
    """The trained model, one batch on its device, and what of it each tower takes."""
    model = trainer.model.train()
    pairs = [trainer.train_dataset[i] for i in range(batch_size)]
    batch = trainer.data_collator(pairs)
    batch = {key: value.to(model.device) for key, value in batch.items() if torch.is_tensor(value)}
    texts = {key: value for key, value in batch.items() if key in ("input_ids", "attention_mask")}
    return model, batch, {"pixel_values": batch["pixel_values"]}, texts


def measure_parts(name: str, trainer: Trainer, wait: float, batch_size: int, repetitions: int) -> list[dict]:
    """The shares of a step of ours; `wait` is the share of its data in the Trainer."""
    model, batch, images, texts = prepare(trainer, batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def run(forward: Callable, inputs: dict) -> None:
        model.zero_grad()
        with torch.autocast(model.device.type, torch.bfloat16):
            outputs = forward(**inputs)
        loss = outputs.loss if "loss" in outputs else outputs.pooler_output.float().sum()
        loss.backward()

    steps = {
        "image tower": lambda: run(model.get_image_features, images),
        "text tower": lambda: run(model.get_text_features, texts),
        "whole": lambda: run(model, {**batch, "return_loss": True}),
        "optimizer": optimizer.step,  # after a backward pass of all parameters
    }
    seconds = median_times(steps, repetitions)
    computing = seconds["whole"] + seconds["optimizer"]
    shares = {part: (1 - wait) * seconds[part] / computing for part in steps}
    shares["loss and rest"] = shares.pop("whole") - shares["image tower"] - shares["text tower"]
    return [{"model": name, "data": wait, **shares}]


def measure_entropies(name: str, trainer: Trainer, batch_size: int, repetitions: int) -> list[dict]:
    model, batch, *_ = prepare(trainer, batch_size)

    def run(weight: float) -> None:
        model.config.token_entropy_weight = model.config.patch_entropy_weight = weight
        model.zero_grad()
        with torch.autocast(model.device.type, torch.bfloat16):
            loss = model(**batch, return_loss=True).loss
        loss.backward()

    seconds = median_times({"with": lambda: run(0.1), "without": lambda: run(0.0)}, repetitions)
    model.config.token_entropy_weight = model.config.patch_entropy_weight = 0.0
    return [{"model": name, "step with entropies / without": seconds["with"] / seconds["without"]}]


def measure_inference(name: str, trainer: Trainer, batch_size: int, repetitions: int) -> list[dict]:
    model, _, images, _ = prepare(trainer, batch_size)
    model.eval()
    speeds = {}
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model.to(dtype)
        with torch.inference_mode():
            seconds = median_times({precision: lambda: model.get_image_features(**images)}, repetitions)
        speeds[precision] = batch_size / seconds[precision]
    return [
        {"model": name, "precision": precision, "images/s": speed, "times float32": speed / speeds["float32"]}
        for precision, speed in speeds.items()
    ]


def measure_large_batches(on_gpu: bool) -> list[dict]:
    """Batches in chunks, beside one chunk as a whole batch."""
    preset, sizes, chunk = ("vit-b-32", (4096, 32768), 512) if on_gpu else ("nano", (8, 16), 4)
    rows, base = [], None
    for size, chunk_size in ((chunk, 0), *((size, chunk) for size in sizes)):
        measured = gradient_caching.step(preset, size, chunk_size, "cuda" if on_gpu else "cpu", on_gpu)
        base = base or measured
        memory = measured["bytes"] - measured["embeddings"]
        rows.append(
            {
                "model": preset,
                "batch": size,
                "chunks of": chunk_size or "whole",
                "MiB": measured["bytes"] / 2**20,
                "memory, times one chunk": memory / max(1, base["bytes"] - base["embeddings"]),
                "time per pair, times one chunk": measured["seconds"] / size / (base["seconds"] / chunk),
            }
        )
    return rows


class Report:
    """The results so far, written after each part."""

    def __init__(self, args: argparse.Namespace):
        self.folder = Path(args.output_dir) if args.output_dir else None
        self.results: dict[str, Any] = {part: [] for part in HEADERS} | {
            "device": torch.cuda.get_device_name() if args.on_gpu else "CPU, small sizes: every part runs, no more",
            "torch": torch.__version__,
            "batch_size": args.batch_size,
            "failed": [],
        }

    def add(self, part: str, name: str, measure: Callable[..., list[dict]], *arguments: Any) -> None:
        """Measures a part; one that fails must not cost the minutes of the others."""
        start = time.perf_counter()
        try:
            self.results[part] += measure(*arguments)
        except Exception as error:
            self.results["failed"].append(f"{part}, {name}: {type(error).__name__}: {error}")
        print(f"{part}, {name}: {time.perf_counter() - start:.0f} s", flush=True)
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "gpu.json").write_text(json.dumps(self.results, indent=2) + "\n", encoding="utf-8")
            (self.folder / "gpu.md").write_text(self.to_markdown() + "\n", encoding="utf-8")

    def to_markdown(self) -> str:
        """The tables, the machine above them."""

        def show(value: Any) -> str:
            if isinstance(value, float):
                return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
            return "" if value is None else str(value)

        known = self.results
        lines = [f"{known['device']}, torch {known['torch']}, batches of {known['batch_size']}, bfloat16", ""]
        for part, header in HEADERS.items():
            if known[part]:
                lines += [f"**{part.capitalize()}**", "", f"| {' | '.join(header)} |", "| --- " * len(header) + "|"]
                lines += [f"| {' | '.join(show(row.get(name)) for name in header)} |" for row in known[part]] + [""]
        return "\n".join([*lines, *(f"Failed: {failure}" for failure in known["failed"])])


def measure_model(args: argparse.Namespace, name: str, records: datasets.Dataset, tokenizer, report: Report) -> None:
    """All parts of one model."""
    how = argparse.Namespace(**{**vars(args), "model": name, "text": "both", "cache": False, "bf16": True})
    forms = choose_forms(name, args.on_gpu)
    if args.no_compile:
        del forms["ours, compiled"]
    with tempfile.TemporaryDirectory() as folder:
        trainers = train_step.make_trainers(how, records, tokenizer, folder, forms)
        report.add("training", name, measure_training, name, trainers, args.repetitions, args.batch_size)
    waits = [row["data wait"] for row in report.results["training"] if row["model"] == name][:1]
    ours, repetitions = trainers["ours"], 5 * args.repetitions
    report.add("where the time goes", name, measure_parts, name, ours, sum(waits), args.batch_size, repetitions)
    report.add("entropies", name, measure_entropies, name, ours, args.batch_size, repetitions)
    report.add("inference", name, measure_inference, name, ours, args.batch_size, repetitions)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small sizes on the CPU (default without a GPU)")
    parser.add_argument("--data", help="pairs, as for train_tier.py (default: phantoms with texts of real lengths)")
    choices = (*train_step.MODELS, *train_step.SIGLIP)
    parser.add_argument("--models", nargs="+", choices=choices, help=f"(default: {' '.join(MODELS)})")
    parser.add_argument("--batch-size", type=int, help="pairs of a step (default: 256; small: 4)")
    parser.add_argument("--steps", type=int, help="batches of an epoch (default: 16; small: 2)")
    parser.add_argument("--repetitions", type=int, default=2, help="measured epochs, and timed steps (default: 2)")
    parser.add_argument("--edge", type=int, help="width of the JPEG files (default: 512; small: 128)")
    parser.add_argument("--workers", type=int, help="data-loader workers of each Trainer (default: 15; small: 0)")
    parser.add_argument("--no-compile", action="store_true", help="leave out --torch_compile")
    parser.add_argument("--output_dir", help="folder for gpu.md and gpu.json")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    args.on_gpu = torch.cuda.is_available() and not args.small
    defaults = {"models": MODELS, "batch_size": 256, "steps": 16, "edge": 512, "workers": 15}
    small = {"models": SMALL_MODELS, "batch_size": 4, "steps": 2, "edge": 128, "workers": 0}
    for key, value in (defaults if args.on_gpu else small).items():
        setattr(args, key, value if getattr(args, key) is None else getattr(args, key))
    disable_progress_bar()
    set_verbosity_error()
    train_step.DEVICE = "cuda" if args.on_gpu else "cpu"
    report = Report(args)
    with tempfile.TemporaryDirectory() as folder:
        records, tokenizer = read_pairs(args, folder)
        for name in args.models:
            measure_model(args, name, records, tokenizer, report)
            if args.on_gpu:
                torch.cuda.empty_cache()
    report.add("large batches", "ViT", measure_large_batches, args.on_gpu)
    print("\n" + report.to_markdown())


if __name__ == "__main__":
    main()
