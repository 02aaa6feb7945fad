"""
Training speed, data loading included, against a plain `transformers.Trainer` on `CLIPModel`. As in the public
contrastive example, that Trainer pads texts to 77 tokens and makes float32 pixels for each sample.

    python speed/train_step.py                                            # phantoms, 10 minutes on one core
    python speed/train_step.py --data FOLDER      # real reports
    python speed/train_step.py --data FOLDER --edge 0  # and images as small as they are
    python speed/train_step.py --data FOLDER --device cuda --batch-size 256 --steps 40 --workers 15 --compile

Both train the same architecture from the same random weights on the same pairs, in turn: epochs of --steps batches,
after one that does not count. A model that is not of CLIP runs with ours only. Seconds on a CPU
are processor time without workers, which other programs do not change; on a GPU they are wall time. The last line is
the median ratio of images per second over the epochs. Ours decodes at reduced size, augments ("standard"), passes
8-bit grey pixels on, and reads several short texts in one row (--group_texts).
"""

import argparse
import copy
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

import datasets
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages, when they are not installed

from modeling_tier import (  # noqa: E402
    TierCLIPModel,
    TierDualEncoderModel,
    TierSiglipConfig,
    TierSiglipModel,
)
from processing_tier import (  # noqa: E402
    TierImageProcessor,
    TierProcessor,
    TierSiglipProcessor,
    read_radiograph,
    train_tokenizer,
)
from training_tier.data.collator import PairCollator  # noqa: E402
from training_tier.data.image_cache import CachedImages  # noqa: E402
from training_tier.data.pairs import PairDataset, PairOptions  # noqa: E402
from training_tier.data.splits import load_splits  # noqa: E402
from training_tier.data.text_packing import pack  # noqa: E402
from training_tier.loop.contrastive import TierTrainer  # noqa: E402
from training_tier.loop.throughput import flops_by_length, peak_flops  # noqa: E402
from training_tier.options.checks import CHOICES  # noqa: E402
from training_tier.options.data import DataArguments  # noqa: E402
from training_tier.options.training import TierTrainingArguments  # noqa: E402
from training_tier.start.presets import preset_config  # noqa: E402

MODELS = {
    "vit-b32": "vit-b-32",
    "vit-b16": "vit-b-16",
    "resnet50-bert": "resnet-50-bert",
    "tiny": "tiny",
    "resnet-tiny": "resnet-tiny",
}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
SIGLIP: dict[str, dict] = {
    "siglip-b16": {},  # the sizes of google/siglip-base-patch16-224 are transformers' defaults
    "siglip-tiny": {"text_config": TINY, "vision_config": {**TINY, "image_size": 64}},
}
DEVICE = "cpu"


def now() -> float:
    if DEVICE == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class Stopwatch(TrainerCallback):
    """Seconds of loading and in all, the end of each step, and the padded length of each text, in one epoch."""

    def __init__(self, group_texts: bool):
        self.group_texts = group_texts

    def on_train_begin(self, args, state, control, **kwargs):
        self.waits, self.ends, self.tokens, self.pairs = [], [], [], 0

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.start = now()

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(now())

    def on_epoch_end(self, args, state, control, **kwargs):
        self.data = sum(self.waits)
        self.total = now() - self.start


class Timed:
    """A Trainer that has a [`Stopwatch`]."""

    def get_batch_samples(self, *args, **kwargs):
        start = now()
        batches, count = super().get_batch_samples(*args, **kwargs)
        self.stopwatch.waits.append(now() - start)
        for batch in batches:
            self.stopwatch.pairs += len(batch["pixel_values"])
            if self.stopwatch.group_texts:
                packing = pack(batch["attention_mask"].sum(dim=1).tolist())
                tokens = packing.num_rows * packing.width / len(batch["input_ids"])
                self.stopwatch.tokens += [tokens] * len(batch["input_ids"])
            else:
                self.stopwatch.tokens += [batch["input_ids"].shape[1]] * len(batch["input_ids"])
        return batches, count


class PlainTrainer(Timed, Trainer):
    pass


class OurTrainer(Timed, TierTrainer):
    pass


class PlainPairs(torch.utils.data.Dataset):
    """RGB pictures decoded in full, resized and normalised one by one, and texts padded to the model's limit."""

    def __init__(self, records: datasets.Dataset, texts: list[str], tokenizer, size: int):
        self.records, self.texts, self.tokenizer = records, texts, tokenizer
        self.image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        )

    def set_epoch(self, epoch: int) -> None:
        pass

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        image = read_plainly(self.records[index]["image"])
        pixels = self.image_processor(image, return_tensors="pt")["pixel_values"][0]
        text = self.tokenizer(self.texts[index], padding="max_length", truncation=True, return_tensors="pt")
        return {"pixel_values": pixels, **{name: value[0] for name, value in text.items()}}


def read_plainly(source: dict) -> Image.Image:
    if source["bytes"] is None:
        return Image.open(source["path"]).convert("RGB")
    return Image.open(io.BytesIO(source["bytes"])).convert("RGB")


def collate_plainly(pairs: list[dict]) -> dict:
    return {name: torch.stack([pair[name] for pair in pairs]) for name in pairs[0]} | {"return_loss": True}


def enlarge(records: datasets.Dataset, edge: int, folder: str) -> datasets.Dataset:
    """The same pictures as JPEG files of the size that hospitals archive."""
    images = []
    for record in records:
        path = f"{folder}/{len(images)}.jpg"
        image = read_radiograph(record["image"])
        image.resize((edge, round(edge * image.height / image.width)), Image.Resampling.BICUBIC).save(path, quality=90)
        images.append({"bytes": None, "path": path})
    return records.remove_columns("image").add_column("image", images, feature=datasets.Image(decode=False))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="phantom:num_images=100", help="as for train_tier.py (default: phantoms)")
    parser.add_argument("--text", default="both", help="as for train_tier.py (default: both)")
    parser.add_argument(
        "--edge",
        type=int,
        default=2500,
        help="JPEG files of this width, as archives keep; 0: as they are (default: 2500)",
    )
    parser.add_argument("--model", default="vit-b32", choices=[*MODELS, *SIGLIP], help="(default: vit-b32)")
    parser.add_argument("--batch-size", type=int, default=16, help="(default: 16)")
    parser.add_argument("--steps", type=int, default=4, help="batches in an epoch (default: 4)")
    parser.add_argument("--repetitions", type=int, default=3, help="measured epochs of each (default: 3)")
    orders = CHOICES["train_sampling_strategy"]
    parser.add_argument("--order", default="random", choices=orders, help="order of our batches (default: random)")
    parser.add_argument("--no-groups", action="store_true", help="run ours without --group_texts")
    parser.add_argument("--cache", action="store_true", help="let ours read images from an --image_cache")
    parser.add_argument("--compile", action="store_true", help="run ours with --torch_compile")
    parser.add_argument("--bf16", action="store_true", help="use bfloat16 for both on a CPU too; on a GPU always")
    parser.add_argument("--workers", type=int, default=0, help="workers of both (default: 0)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="(default: cpu)")
    return parser


def make_model(name: str, tokenizer) -> tuple[torch.nn.Module, TierProcessor]:
    """A model of random weights and its processor; SigLIP's kind reads texts of 64 tokens."""
    torch.manual_seed(0)
    if name in SIGLIP:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.model_max_length = 64
        ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        towers = copy.deepcopy(SIGLIP[name])
        towers["text_config"] = {**towers.get("text_config", {}), **ids, "vocab_size": len(tokenizer)}
        config = TierSiglipConfig(**towers)
        image_processor = TierImageProcessor(size=config.vision_config.image_size, image_mean=0.5, image_std=0.5)
        return TierSiglipModel(config), TierSiglipProcessor(image_processor, tokenizer)
    config = preset_config(MODELS[name], tokenizer)
    is_dual = config.model_type == "tier_dual_encoder"
    size = config.image_size if is_dual else config.vision_config.image_size
    model = (TierDualEncoderModel if is_dual else TierCLIPModel)(config)
    return model, TierProcessor(TierImageProcessor(size=size), tokenizer)


def make_trainers(
    args: argparse.Namespace, records: datasets.Dataset, tokenizer, folder: str, forms: dict[str, dict] | None = None
) -> dict[str, Trainer]:
    """
    Ours and, if the model is a CLIP model, the plain one from the same weights; each with a [`Stopwatch`].

    Args:
        forms: options of our trainings by the name of each; by default, one with those of the command line.
    """
    if forms is None:
        asked = {"group_texts": not args.compile and not args.no_groups, "torch_compile": args.compile}
        forms = {"ours": {**asked, "train_sampling_strategy": args.order}}
    model, processor = make_model(args.model, tokenizer)
    tokenizer = processor.tokenizer
    images = CachedImages(records, processor.image_processor, f"{folder}/cache") if args.cache else None
    pairs = PairDataset(
        records, processor.image_processor, PairOptions(args.text, augmentation="standard"), images=images
    )
    options = {
        "output_dir": folder,
        "per_device_train_batch_size": args.batch_size,
        "num_train_epochs": 1,
        "dataloader_num_workers": args.workers,
        "dataloader_drop_last": True,
        "bf16": args.bf16,
        "use_cpu": DEVICE == "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    trainers = {}
    for form, given in forms.items():
        ours = TierTrainingArguments(**{"group_texts": False, **options, **given}, load_best_model_at_end=False)
        collator = PairCollator(tokenizer, ours.pad_to_multiple_of, for_siglip=args.model in SIGLIP)
        trainers[form] = OurTrainer(
            model=copy.deepcopy(model),
            args=ours,
            train_dataset=pairs,
            data_collator=collator,
            processing_class=processor,
        )
    config = model.config
    if config.model_type == "tier_clip":
        towers = {"text_config": config.text_config.to_dict(), "vision_config": config.vision_config.to_dict()}
        clip = CLIPModel(CLIPConfig(**towers, projection_dim=config.projection_dim))
        clip.load_state_dict(model.state_dict())
        plain = PlainPairs(records, list(pairs.texts()), tokenizer, config.vision_config.image_size)
        arguments = TrainingArguments(**options, remove_unused_columns=False)
        trainers["plain"] = PlainTrainer(clip, arguments, collate_plainly, plain)
    for trainer in trainers.values():
        trainer.remove_callback(PrinterCallback)
        trainer.stopwatch = Stopwatch(bool(getattr(trainer.args, "group_texts", False)))
        trainer.add_callback(trainer.stopwatch)
    return trainers


def describe_utilisation(trainer: Trainer, speed: float) -> str:
    """The share of the GPU's peak arithmetic that was used; `""` on a device whose peak is not known."""
    peak = peak_flops(torch.cuda.get_device_name()) if DEVICE == "cuda" else None
    if not peak:
        return ""
    batch = trainer.data_collator([trainer.train_dataset[0]])
    pair = {name: value.to(DEVICE) for name, value in batch.items() if torch.is_tensor(value)}
    flops = flops_by_length(trainer.model, pair)
    mean = statistics.mean(flops @ [1, length, length**2] for length in trainer.stopwatch.tokens)
    return f"; utilisation {speed * mean / peak:.2f}"


def measure(trainers: dict[str, Trainer], repetitions: int) -> dict[str, list[float]]:
    """Images per second of each trainer in each epoch, printed too; the first epoch is a warm-up."""
    speeds: dict[str, list[float]] = {name: [] for name in trainers}
    for epoch in range(1 + repetitions):
        for name, trainer in trainers.items():
            trainer.train()
            watch = trainer.stopwatch
            if epoch == 0:
                continue
            speed = watch.pairs / watch.total
            speeds[name].append(speed)
            print(
                f"{name:5s} {speed:8.2f} images/s; of a pair {1000 * watch.data / watch.pairs:6.1f} ms "
                f"data, {1000 * (watch.total - watch.data) / watch.pairs:7.1f} ms step; "
                f"texts padded to {statistics.mean(watch.tokens):.0f} tokens"
                + (describe_utilisation(trainer, speed) if name == "ours" else ""),
                flush=True,
            )
    return speeds


def main() -> None:
    global DEVICE
    parser = build_parser()
    args = parser.parse_args()
    DEVICE = args.device
    args.bf16 = args.bf16 or DEVICE == "cuda"
    disable_progress_bar()
    set_verbosity_error()
    count = args.batch_size * args.steps
    with tempfile.TemporaryDirectory() as folder:
        records, _ = load_splits(DataArguments(data=args.data, eval_split="validation", text=args.text), seed=0)
        if len(records) < count:
            parser.error(f"{count} pairs are asked for, but {args.data} has {len(records)}; lower --steps.")
        texts = [f"{r['impression']} {r['findings']}" for r in records.select_columns(["impression", "findings"])]
        tokenizer = train_tokenizer(texts, vocab_size=4000)
        records = records.shuffle(seed=0).select(range(count)).flatten_indices()
        if args.edge:
            records = enlarge(records, args.edge, folder)
        trainers = make_trainers(args, records, tokenizer, folder)
        precision = "bfloat16" if args.bf16 else "float32"
        print(f"{args.model}, {DEVICE}, {precision}, batch {args.batch_size}, torch {torch.__version__}, {args.data}")
        speeds = measure(trainers, args.repetitions)
    if "plain" in speeds:
        ratios = [a / b for a, b in zip(speeds["ours"], speeds["plain"], strict=True)]
        print(f"ours / plain: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
