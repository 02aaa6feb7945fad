"""
Memory of a whole evaluation by its number of images.

    python speed/memory.py                               # 1,000, 10,000 and 100,000 images
    python speed/memory.py --counts 1000 2000 --analyses sparsity

`eval_zeroshot.py` runs in a process of its own for each count. The images are a few phantoms in JPEG files, which a
table names again and again under new ids and patients. The model has towers of a few layers and random weights, but
embeddings as long as a real one's, since their memory grows with the images. Memory is the largest resident set of the
process (Linux); the last column is what each image adds to the count before.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from turns import run_command

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the packages, when they are not installed

from modeling_tier import TierCLIPModel  # noqa: E402
from processing_tier import TierImageProcessor, TierProcessor, read_radiograph, train_tokenizer  # noqa: E402
from processing_tier.readers import read_records  # noqa: E402
from training_tier.start.presets import preset_config  # noqa: E402

FINDINGS = ("Cardiomegaly", "Pleural Effusion", "Consolidation")


def save_model(reports: list[str], folder: Path, dim: int) -> None:
    """A model of small towers and long embeddings."""
    tokenizer = train_tokenizer(reports)
    config = preset_config("nano", tokenizer, image_size=64, projection_dim=dim)
    config.vision_config.num_hidden_layers = 1
    TierCLIPModel(config).save_pretrained(folder)
    TierProcessor(TierImageProcessor(size=64), tokenizer).save_pretrained(folder)


def write_images(folder: Path) -> pd.DataFrame:
    """The phantoms as files, and the table of them."""
    rows = []
    for record in read_records("phantom:num_images=64,image_size=128", "train"):
        name = f"{record['image_id']}.jpg"
        read_radiograph(record["image"]).resize((64, 64)).save(folder / name)
        rows.append({"image": name, "impression": record["impression"]} | {name: record[name] for name in FINDINGS})
    return pd.DataFrame(rows)


def write_table(images: pd.DataFrame, count: int, path: Path) -> None:
    """`count` rows, each an image of its own to the evaluation."""
    table = images.iloc[[i % len(images) for i in range(count)]].reset_index(drop=True)
    ids = [f"{i:07d}" for i in range(count)]
    table.assign(image_id=ids, patient_id=ids, study_id=ids, view="PA", split="validation").to_csv(path, index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[1000, 10000, 100000], help="images (default: 1000 10000 100000)"
    )
    parser.add_argument("--dim", type=int, default=512, help="dimensions of the embeddings (default: 512)")
    parser.add_argument("--n_bootstrap", type=int, default=100, help="resamples (default: 100)")
    parser.add_argument("--analyses", nargs="+", default=[], help="as for eval_zeroshot.py (default: none)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = write_images(folder)
        save_model(images["impression"].tolist(), folder / "model", args.dim)
        before = None
        for count in args.counts:
            write_table(images, count, folder / "table.csv")
            command = [sys.executable, str(ROOT / "eval_zeroshot.py"), str(folder / "model")]
            command += ["--data", str(folder / "table.csv"), "--split", "validation", "--findings", *FINDINGS]
            command += ["--n_bootstrap", str(args.n_bootstrap), "--output_dir", str(folder / f"results{count}")]
            command += ["--analyses", *args.analyses] if args.analyses else []
            start = time.perf_counter()
            peak, seconds = run_command(command, {"PYTHONPATH": str(ROOT)})
            added = "" if before is None else f", {1024 * (peak - before[1]) / (count - before[0]):.2f} KiB per image"
            print(
                f"{count:7d} images: {peak:6.0f} MiB at most, {seconds:.0f} s of processor time, "
                f"{time.perf_counter() - start:.0f} s{added}",
                flush=True,
            )
            before = count, peak


if __name__ == "__main__":
    main()
