"""
Speed of reading training images from the shards of a prepared data set (--streaming), against its copy in the cache of
`datasets` (map-style).

    python speed/streaming.py
    tier-prepare --data FOLDER --output_dir prepared --size 256 && python speed/streaming.py --data prepared

Both give the same pairs in batches of 32, without augmentation, in one process without workers, one epoch of each in
turn. Figures are images per second of processor time, and the median ratio of the two.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import datasets
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages, when they are not installed

from processing_tier import TierImageProcessor  # noqa: E402
from processing_tier.prepare.options import PrepareOptions  # noqa: E402
from processing_tier.prepare.run import prepare  # noqa: E402
from processing_tier.readers import read_records  # noqa: E402
from training_tier.data.pairs import PairDataset  # noqa: E402
from training_tier.data.streaming import SHUFFLE_BUFFER, ShardedImages, read_shards  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder of tier-prepare (default: 500 phantoms, prepared on the spot)")
    parser.add_argument("--split", default="train", help="split to read (default: train)")
    parser.add_argument("--image-size", type=int, default=224, help="pixels that the model sees (default: 224)")
    parser.add_argument("--shuffle-buffer", type=int, default=SHUFFLE_BUFFER, help="as for train_tier.py")
    parser.add_argument("--repetitions", type=int, default=5, help="epochs of each (default: 5)")
    args = parser.parse_args()

    image_processor = TierImageProcessor(size=args.image_size)
    with tempfile.TemporaryDirectory() as cache:
        if args.data is None:
            args.data = f"{cache}/prepared"
            prepare(PrepareOptions("phantom:num_images=500", splits=(args.split,)), args.data)
        start = time.perf_counter()
        streamed = read_shards(args.data, args.split)
        print(f"start of streaming: {time.perf_counter() - start:.2f} s for {len(streamed)} records")
        start, datasets.config.HF_DATASETS_CACHE = time.perf_counter(), Path(cache)
        copied = read_records(args.data, args.split)
        size = sum(os.path.getsize(file["filename"]) for file in copied.cache_files) / 2**20
        print(f"start of map-style: {time.perf_counter() - start:.2f} s, and {size:.0f} MiB in the cache")

        images = ShardedImages(streamed, args.shuffle_buffer)
        images.set_layout(batch_size=32)
        loaders = {
            "streaming": DataLoader(PairDataset(streamed, image_processor, images=images), 32, sampler=images),
            "map-style": DataLoader(PairDataset(copied, image_processor), 32, shuffle=True),
        }
        speeds = {name: [] for name in loaders}
        for epoch in range(args.repetitions):
            for name, loader in loaders.items():
                loader.dataset.set_epoch(epoch)
                start = time.process_time()
                for _ in loader:
                    pass
                speeds[name].append(len(loader.dataset) / (time.process_time() - start))
    for name, values in speeds.items():
        print(f"{name}: {statistics.median(values):.0f} images/s")
    ratio = statistics.median(a / b for a, b in zip(speeds["streaming"], speeds["map-style"], strict=True))
    print(f"streaming / map-style: {ratio:.2f}")


if __name__ == "__main__":
    main()
