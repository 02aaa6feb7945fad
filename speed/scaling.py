"""
Measures the numbers that docs/multi_gpu.md calculates with.

    python speed/scaling.py                                    # phantoms; some minutes on 2 cores
    python speed/scaling.py flops loss communication           # some of the parts
    python speed/scaling.py images --data FOLDER --sizes 256 512    # an image folder or archive of tier-prepare

- flops: operations of a training step per pair (three forward passes, as the log of the training counts them) and
  parameters of each preset, for texts of --tokens tokens, counted by PyTorch without computing anything.
- loss: memory of forward and backward of the contrastive loss for n own of N pairs, in float32, above what the
  embeddings take, as a multiple of the 4 n N bytes of one matrix of logits; and of the two entropies, as a multiple of
  the 4 n T P bytes of the similarities of T tokens and P patches.
- communication: bytes that a process hands to collective operations in the loss of a step, counted in two gloo
  processes, beside the formula.
- images: bytes of a prepared image by its size, and images per second that a core reads at 224 pixels.
- steps: time of a step (forward and backward, DistributedDataParallel) of one and of two processes of one thread; on a
  busy machine, use the processor time.

Memory is VmHWM of Linux.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the packages, when they are not installed

from modeling_tier import (  # noqa: E402
    TierCLIPConfig,
    TierCLIPModel,
    TierDualEncoderConfig,
    TierDualEncoderModel,
)
from modeling_tier.contrastive_loss_tier import contrastive_loss, summed_cross_entropy  # noqa: E402
from modeling_tier.global_batch_tier import Pairs  # noqa: E402
from modeling_tier.losses_tier import token_and_patch_entropy, token_patch_similarity  # noqa: E402
from processing_tier import TierImageProcessor  # noqa: E402
from processing_tier.prepare.options import PrepareOptions  # noqa: E402
from processing_tier.prepare.run import prepare  # noqa: E402
from training_tier.data.pairs import PairDataset  # noqa: E402
from training_tier.data.streaming import ShardedImages, read_shards  # noqa: E402
from training_tier.loop.throughput import training_flops  # noqa: E402
from training_tier.start.presets import PRESETS  # noqa: E402

PARTS = ("flops", "loss", "communication", "images", "steps")
VOCABULARY = 49408  # CLIP's; BERT's has 30522
# glibc then gives tensors of 64 KiB and more back at once: the resident set is what is in use
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def make_model(name: str) -> torch.nn.Module:
    """A preset with CLIP's vocabulary, or BERT's."""
    preset = PRESETS[name]
    text = {**preset["text_config"], "intermediate_size": 4 * preset["text_config"]["hidden_size"]}
    if "model_type" not in preset["vision_config"]:
        vision = {**preset["vision_config"], "intermediate_size": 4 * preset["vision_config"]["hidden_size"]}
        return TierCLIPModel(TierCLIPConfig(**{**preset, "text_config": text, "vision_config": vision}))
    if text["model_type"] != "bert":
        text |= {"vocab_size": VOCABULARY, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}
    return TierDualEncoderModel(TierDualEncoderConfig(**{**preset, "text_config": text}))


def make_pairs(model: torch.nn.Module, pairs: int, tokens: int) -> dict[str, torch.Tensor]:
    size = getattr(model.config, "image_size", None) or model.config.vision_config.image_size
    input_ids = torch.randint(1000, 2000, (pairs, tokens))
    input_ids[:, -1] = getattr(model.config.text_config, "eos_token_id", None) or 102
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": torch.randint(0, 256, (pairs, 1, size, size), dtype=torch.uint8),
    }


def measure_flops(tokens: int) -> None:
    for name in PRESETS:
        model = make_model(name)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        flops = training_flops(model, make_pairs(model, 1, tokens))
        print(f"flops {name:15s} {flops / 1e9:8.2f} GFLOP per pair in training, {parameters / 1e6:6.1f} M parameters")


def resident(field: str) -> int:
    """Bytes of VmRSS or VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak_bytes(run) -> int:
    """The increase of the largest resident set during a call."""
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def make_embeddings(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1).requires_grad_()


def measure_loss(dim: int, tokens: int, patches: int) -> None:
    scale = torch.tensor(2.6592)
    contrastive_loss(
        make_embeddings(64, dim), make_embeddings(64, dim), scale
    ).backward()  # memory that is allocated once
    for own, pairs in ((1024, 1024), (2048, 2048), (4096, 4096), (512, 4096), (512, 8192)):
        images, texts, all_images, all_texts = (make_embeddings(n, dim) for n in (own, own, pairs, pairs))

        def several(images=images, texts=texts, all_images=all_images, all_texts=all_texts):
            summed_cross_entropy(Pairs(images, texts), Pairs(all_images, all_texts), 0, scale).backward()

        def one(images=images, texts=texts):
            contrastive_loss(images, texts, scale).backward()

        used = peak_bytes(one if own == pairs else several)
        print(
            f"loss  n {own:4d} of N {pairs:4d}: {used / 2**20:7.1f} MiB, {used / (4 * own * pairs):.2f} matrices of "
            f"logits; embeddings and gradients of all {16 * pairs * dim / 2**20:.1f} MiB (D {dim})"
        )
    for own in (256, 1024):
        local = [make_embeddings(own, count, dim) for count in (tokens, patches)]

        def entropies(local=local):
            sum(token_and_patch_entropy(token_patch_similarity(*local))).backward()

        matrix, inputs = 4 * own * tokens * patches, sum(4 * tensor.numel() for tensor in local)
        used = peak_bytes(entropies) - inputs  # their gradients
        print(
            f"loss  entropies of {own} pairs, T {tokens}, P {patches}: {used / 2**20:.1f} MiB, "
            f"{used / matrix:.2f} matrices of similarities; local embeddings {inputs / 2**20:.1f} MiB, and as much "
            "for their gradients"
        )


def start(rank: int, processes: int, folder: str) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(minutes=2)
    dist.init_process_group("gloo", f"file://{folder}/store{processes}", timeout, processes, rank)


def count_communication(rank: int, processes: int, folder: str, own: int, dim: int) -> None:
    start(rank, processes, folder)
    counted = {"all_gather": 0, "all_reduce": 0}

    def counting(name):
        collective = getattr(dist, name)

        def call(*args, **kwargs):
            tensor = args[1] if name == "all_gather" else args[0]
            counted[name] += tensor.numel() * tensor.element_size()
            return collective(*args, **kwargs)

        return mock.patch.object(dist, name, call)

    images, texts = make_embeddings(own, dim), make_embeddings(own, dim)
    similarity = token_patch_similarity(make_embeddings(own, 10, dim), make_embeddings(own, 20, dim))
    with counting("all_gather"), counting("all_reduce"):
        loss = contrastive_loss(images, texts, torch.tensor(2.6592, requires_grad=True))
        (loss + sum(token_and_patch_entropy(similarity))).backward()
    expected = {"all_gather": 2 * 4 * own * dim + 2 * 8, "all_reduce": 2 * 4 * processes * own * dim + 2 * 8}
    if rank == 0:
        print(f"communication, n {own}, D {dim}, {processes} processes: counted {counted}, by the formula {expected}")
    assert counted == expected
    dist.destroy_process_group()


def measure_images(data: str, sizes: list[int], folder: str) -> None:
    for size in sizes:
        output = f"{folder}/prepared{size}"
        prepare(PrepareOptions(data, splits=("train",), size=size), output)
        shards = list(Path(output, "data").glob("*.parquet"))
        records = read_shards(output, "train")
        images = ShardedImages(records, 1000)
        images.set_layout(batch_size=32)
        loader = DataLoader(PairDataset(records, TierImageProcessor(size=224), images=images), 32, sampler=images)
        speeds = []
        for epoch in range(3):
            loader.dataset.set_epoch(epoch)
            begin = time.process_time()
            count = sum(len(batch["image_id"]) for batch in loader)
            speeds.append(count / (time.process_time() - begin))
        total = sum(shard.stat().st_size for shard in shards)
        print(
            f"images of {size} px: {total / len(records) / 1024:.1f} KiB with text and labels ({len(records)} of "
            f"{data.partition(':')[0] if ':' in data else 'the folder'}), "
            f"read at {statistics.median(speeds):.0f} images/s of processor time"
        )


def time_steps(rank: int, processes: int, folder: str, name: str, pairs: int, tokens: int, repetitions: int) -> None:
    start(rank, processes, folder)
    torch.manual_seed(0)
    model = DistributedDataParallel(make_model(name).train())
    batch = make_pairs(model.module, pairs // processes, tokens)
    seconds, work = [], []
    for _ in range(repetitions + 1):
        dist.barrier()
        begin, begin_work = time.perf_counter(), time.process_time()
        model.zero_grad()
        model(**batch, return_loss=True).loss.backward()
        seconds.append(time.perf_counter() - begin)
        work.append(time.process_time() - begin_work)
    if rank == 0:
        print(
            f"steps {name}, {processes} processes of {pairs // processes} pairs: median "
            f"{statistics.median(seconds[1:]):.3f} s, quickest {min(seconds[1:]):.3f} s; processor time of a process "
            f"{statistics.median(work[1:]):.3f} s"
        )
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--tokens", type=int, default=77, help="tokens of a text (default: 77)")
    parser.add_argument(
        "--patches", type=int, default=196, help="patches of an image, in the entropies (default: 196)"
    )
    parser.add_argument("--dim", type=int, default=512, help="dimensions of the embeddings (default: 512)")
    parser.add_argument(
        "--data", default="phantom:num_images=200", help="data of the part images (default: 200 phantoms)"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[256, 512], help="sizes of the stored images (default: 256 512)"
    )
    parser.add_argument("--model", default="nano", help="preset of the timed steps (default: nano)")
    parser.add_argument("--pairs", type=int, default=64, help="pairs of all processes in a timed step (default: 64)")
    parser.add_argument("--repetitions", type=int, default=10, help="timed steps (default: 10)")
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"the part {unknown.pop()!r} is not known; choose from {', '.join(PARTS)}")
    parts = args.parts or PARTS
    if "loss" in parts and any(os.environ.get(name) != value for name, value in MALLOC.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | MALLOC)
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, float32")
    with tempfile.TemporaryDirectory() as folder:
        if "flops" in parts:
            measure_flops(args.tokens)
        if "loss" in parts:
            measure_loss(args.dim, args.tokens, args.patches)
        if "communication" in parts:
            torch.multiprocessing.spawn(count_communication, (2, folder, 8, args.dim), nprocs=2)
        if "images" in parts:
            measure_images(args.data, args.sizes, folder)
        if "steps" in parts:
            for processes in (1, 2):
                options = (f"{folder}", args.model, args.pairs, args.tokens, args.repetitions)
                torch.multiprocessing.spawn(time_steps, (processes, *options), nprocs=processes)


if __name__ == "__main__":
    main()
