"""
Time and memory of ranking a gallery in chunks of queries, against the whole matrix of scores at once.

    python speed/retrieval.py --sizes 1000 2000 4000 8000

The embeddings are random, with as many queries as items; a third of the items repeats an earlier one. Memory is
numpy's peak in the call, without the embeddings. Time is processor time, summed over threads. Both ways must give the
same ranks.
"""

import argparse
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages, when they are not installed

from evaluation_tier.analyses.retrieval import Ranks, ranks  # noqa: E402


def measure(
    queries: np.ndarray, gallery: np.ndarray, groups: np.ndarray, chunk_size: int
) -> tuple[Ranks, float, float]:
    """The ranks, processor seconds of one call, and MiB of another one, in which memory is traced."""
    start = time.process_time()
    ranks(queries, gallery, groups, groups, chunk_size)
    seconds = time.process_time() - start
    tracemalloc.start()
    result = ranks(queries, gallery, groups, groups, chunk_size)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return result, seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 2000, 4000, 8000], help="items in the gallery")
    parser.add_argument("--chunk-size", type=int, default=256, help="queries in a chunk (default: 256)")
    parser.add_argument("--dim", type=int, default=128, help="dimensions of an embedding (default: 128)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the embeddings (default: 0)")
    args = parser.parse_args()

    print("| items | CPU s, chunks | CPU s, whole | MiB, chunks | MiB, whole | whole / chunks, MiB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for size in args.sizes:
        generator = np.random.default_rng(args.seed)
        queries, gallery = generator.standard_normal((2, size, args.dim), dtype=np.float32) / np.sqrt(args.dim)
        groups = np.arange(size) % (2 * size // 3)
        chunked, seconds, peak = measure(queries, gallery, groups, args.chunk_size)
        whole, whole_seconds, whole_peak = measure(queries, gallery, groups, size)
        assert all(np.array_equal(one, other) for one, other in zip(chunked, whole, strict=True))
        print(
            f"| {size:,} | {seconds:.2f} | {whole_seconds:.2f} | {peak:.1f} | {whole_peak:.1f} | "
            f"{whole_peak / peak:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
