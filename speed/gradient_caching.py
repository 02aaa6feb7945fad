"""
Memory and time of a training step by the size of its batch, whole and in chunks (--contrastive_chunk_size).

    python speed/gradient_caching.py                                                # 2 minutes on 2 cores
    python speed/gradient_caching.py --batch-sizes 64 1024 4096 --no-whole          # the aim of the project
    python speed/gradient_caching.py --device cuda --model vit-b-32 --bf16 --chunk-size 256 --batch-sizes 256 4096

Each figure comes from a separate process. It makes the model and the batch (uint8 pixels, as in training), notes the
memory in use, and runs one step: forward and backward. The optimizer is left out, because its memory does not depend
on the batch. Memory is the peak above the memory before the step (on the CPU the resident set, VmHWM of Linux; on a
GPU torch.cuda.max_memory_allocated). The gradients of the parameters, as large as these, are allocated before. Weights
are random, texts have 77 tokens.

The first line is the first of --batch-sizes as one whole batch; the ratio compares another step's memory with it,
after subtracting the embeddings of all pairs and their gradients. The aim is at most 1.25 for any number of chunks of
that size.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the packages, when they are not installed

from modeling_tier import TierCLIPConfig, TierCLIPModel  # noqa: E402
from training_tier.memory.gradient_caching import backward_in_chunks  # noqa: E402
from training_tier.start.presets import PRESETS  # noqa: E402

TOKENS = 77


def resident(field: str) -> int:
    """Bytes of VmRSS or VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def step(name: str, batch_size: int, chunk_size: int, device: str, bf16: bool) -> dict:
    """One step in this process: bytes, seconds, and the size of the embeddings; chunk_size 0 for the whole batch."""
    torch.manual_seed(0)
    config = {**PRESETS[name], "token_entropy_weight": 0.1, "patch_entropy_weight": 0.1}
    for tower in ("text_config", "vision_config"):
        config[tower] = {**config[tower], "intermediate_size": 4 * config[tower]["hidden_size"]}
    model = TierCLIPModel(TierCLIPConfig(image_pooling="patch_mean", **config)).train().to(device)
    text, vision = model.config.text_config, model.config.vision_config
    input_ids = torch.randint(0, text.bos_token_id, (batch_size, TOKENS))
    input_ids[:, 0], input_ids[:, -1] = text.bos_token_id, text.eos_token_id
    batch = {
        "input_ids": input_ids.to(device),
        "attention_mask": torch.ones_like(input_ids).to(device),
        "pixel_values": torch.randint(
            0, 256, (batch_size, 1, vision.image_size, vision.image_size), dtype=torch.uint8
        ).to(device),
    }

    def run(pairs: int, chunk_size: int) -> None:
        part = {key: value[:pairs] for key, value in batch.items()}
        if chunk_size:
            backward_in_chunks(model, part, chunk_size)
        else:
            model(**part, return_loss=True).loss.backward()

    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        run(2, 0)  # memory that is allocated once, including the gradients
        on_gpu = device == "cuda"
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        before = torch.cuda.memory_allocated() if on_gpu else resident("VmRSS")
        start = time.perf_counter()
        run(batch_size, chunk_size)
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated() if on_gpu else resident("VmHWM")
    # images and texts, and the gradients of both, in float32
    return {"bytes": peak - before, "seconds": seconds, "embeddings": 16 * batch_size * model.config.projection_dim}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="preset of two transformers (default: tiny)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 128, 512], help="(default: 32 128 512)")
    parser.add_argument("--chunk-size", type=int, help="pairs of a chunk (default: the first batch size)")
    parser.add_argument("--no-whole", action="store_true", help="run larger batches only in chunks")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="(default: cpu)")
    parser.add_argument("--bf16", action="store_true", help="run under autocast to bfloat16")
    parser.add_argument("--step", type=int, nargs=2, help=argparse.SUPPRESS)  # the process of one figure
    args = parser.parse_args()
    if args.step:
        print(json.dumps(step(args.model, *args.step, args.device, args.bf16)))
        return

    chunk_size = args.chunk_size or args.batch_sizes[0]
    runs = [(args.batch_sizes[0], 0)]
    for size in args.batch_sizes[1:]:
        runs += [(size, chunk_size)] if args.no_whole else [(size, 0), (size, chunk_size)]
    print(f"{args.model}, {args.device}, {'bfloat16' if args.bf16 else 'float32'}, torch {torch.__version__}")
    base = None
    for batch_size, chunk in runs:
        command = [sys.executable, __file__, "--model", args.model, "--device", args.device]
        command += ["--step", str(batch_size), str(chunk)] + ["--bf16"] * args.bf16
        # glibc gives tensors of 64 KiB and more back at once: the resident set is what is in use
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        result = json.loads(done.stdout)
        base = base or result
        one = base["bytes"] - base["embeddings"]
        ratio = (result["bytes"] - result["embeddings"]) / one
        pace = (result["seconds"] / batch_size) / (base["seconds"] / args.batch_sizes[0])
        print(
            f"batch {batch_size:5d} {f'in chunks of {chunk}' if chunk else 'whole':17s} "
            f"{result['bytes'] / 2**20:7.0f} MiB ({result['embeddings'] / 2**20:.1f} of embeddings), "
            f"{ratio:6.2f} times that of one chunk; {result['seconds']:6.1f} s, {pace:4.2f} times per pair"
        )


if __name__ == "__main__":
    main()
