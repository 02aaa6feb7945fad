"""
Time and memory of `tier-prepare --check` by its number of images.

    python speed/look_alikes.py                                            # 1,000 and 10,000 images
    python speed/look_alikes.py --counts 100000 --data my_data

The images are parts of synthetic radiographs, or of the frontal images of --data: cropped, turned and mirrored at
random, so that hardly two look alike, and saved as JPEG files of 256 x 256 pixels. Nine tenths of them are one data
set, and the rest another one. A hundredth of the images is in both, in the second one at half the size. The command
runs with one worker, in a process of its own. Memory is the largest resident set of the process (Linux).
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from turns import run_command

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the packages, when they are not installed

from processing_tier import read_radiograph  # noqa: E402
from processing_tier.look_alikes.run import FILE  # noqa: E402
from processing_tier.phantom.dataset import make_phantom  # noqa: E402
from processing_tier.readers import list_splits, read_records  # noqa: E402
from processing_tier.records.schema import select_views  # noqa: E402

EDGE = 256
COPIES = 0.01


def read_pictures(data: Sequence[str]) -> list[tuple[Image.Image, str]]:
    """Grey images of at most 320 pixels, and their reports."""
    if data:
        parts = [select_views(read_records(one, split), "frontal", one) for one in data for split in list_splits(one)]
    else:
        parts = [make_phantom(300, image_size=EDGE)]
    found = []
    for records in parts:
        for record in records.select_columns(["image", "report"]):
            picture = read_radiograph(record["image"]).convert("L")
            picture.thumbnail((320, 320))
            found.append((picture, record["report"] or ""))
    return found


def change(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """A part of an image, turned, perhaps mirrored."""
    width, height = picture.size
    left, top, right, bottom = generator.uniform(0.08, 0.25, 4)
    turned = picture.rotate(generator.uniform(-15, 15), Image.Resampling.BILINEAR)
    part = turned.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )
    part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if generator.random() < 0.5 else part
    return part.resize((EDGE, EDGE), Image.Resampling.BILINEAR)


def write_data(folder: Path, pictures: Sequence[tuple[Image.Image, str]], count: int) -> tuple[list[str], int]:
    """Two image folders with so many images together, and how many images the second has of the first."""
    generator = np.random.default_rng(0)
    paths = [folder / name / "train" for name in ("first", "second")]
    files, tables = [], []
    for path in paths:
        path.mkdir(parents=True)
        files.append(open(path / "metadata.csv", "w", newline="", encoding="utf-8"))
        tables.append(csv.writer(files[-1]))
        tables[-1].writerow(["file_name", "image_id", "patient_id", "text"])
    copies = round(COPIES * count)
    for i in range(count - copies):
        picture, report = pictures[i % len(pictures)]
        part, place = change(picture, generator), int(i >= 0.9 * count)
        part.save(paths[place] / f"{i}.jpg", quality=90)
        tables[place].writerow([f"{i}.jpg", f"i{i}", f"p{i}", report])
        if i < copies:
            part.resize((EDGE // 2, EDGE // 2), Image.Resampling.BOX).save(paths[1] / f"copy{i}.jpg", quality=90)
            tables[1].writerow([f"copy{i}.jpg", f"c{i}", f"q{i}", report])
    for file in files:
        file.close()
    return [str(path.parent) for path in paths], copies


def count_found(path: Path) -> tuple[int, int]:
    """How many copies the command lists, and how many other pairs of images."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["what"] == "image"]
    copies = sum(row["image_id_b"] == f"c{row['image_id_a'][1:]}" for row in rows)
    return copies, len(rows) - copies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10000], help="images (default: 1000 10000)")
    parser.add_argument("--data", nargs="+", default=[], help="data to make them of (default: 300 phantoms)")
    args = parser.parse_args()
    pictures = read_pictures(args.data)
    for count in args.counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            data, copies = write_data(folder, pictures, count)
            command = [sys.executable, str(ROOT / "prepare_tier.py"), "--check", *data, "--num_workers", "1"]
            peak, seconds = run_command([*command, "--output_dir", name], {"PYTHONPATH": str(ROOT)})
            found, others = count_found(folder / FILE)
            print(
                f"{count:7,d} images: {peak:6.0f} MiB at most, {seconds:.0f} s of processor time; "
                f"{found:,} of {copies:,} copies found, {others:,} other pairs",
                flush=True,
            )


if __name__ == "__main__":
    main()
