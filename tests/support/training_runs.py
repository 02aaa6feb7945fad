"""Short trainings by `train_tier.py` on the phantom, for tests of the whole run."""

from pathlib import Path

import pandas as pd
import pytest

import train_tier
from processing_tier import read_radiograph
from processing_tier.phantom.dataset import make_phantom

REPOSITORY = Path(train_tier.__file__).parent
QUICK = [
    "--data",
    "phantom:num_images=48,image_size=64",
    *("--image_size", "32"),
    *("--eval_split", "validation"),
    *("--per_device_train_batch_size", "8"),
    *("--num_train_epochs", "1"),
    *("--min_positives", "2"),
    *("--report_to", "none"),
    *("--use_cpu", "true"),
    *("--dataloader_pin_memory", "false"),
    *("--disable_tqdm", "true"),
]


def write_folder(folder: Path, num_images: int = 24, patients: dict | None = None) -> Path:
    """An image folder of phantoms with the splits train and validation."""
    for split in ("train", "validation"):
        records = make_phantom(num_images, seed=0, image_size=64, split=split)
        (folder / split).mkdir(parents=True)
        rows = []
        for record in records:
            name = f"{record['image_id']}.png"
            read_radiograph(record["image"]).save(folder / split / name)
            rows.append(
                {
                    "file_name": name,
                    "patient_id": (patients or {}).get(split, record["patient_id"]),
                    "impression": record["impression"],
                    "Consolidation": record["Consolidation"],
                    "Fracture": 0,
                }
            )
        pd.DataFrame(rows).to_csv(folder / split / "metadata.csv", index=False)
    return folder


def run(*argv) -> None:
    train_tier.main([str(word) for word in argv])


def refused(capsys, *argv, command=train_tier) -> str:
    """The one sentence on stderr of a command that ends with code 2."""
    with pytest.raises(SystemExit) as stop:
        command.main([str(word) for word in argv])
    assert stop.value.code == 2
    name, mark, sentence = capsys.readouterr().err.strip().splitlines()[-1].partition(": error: ")
    assert mark and name == Path(command.__file__).name
    return sentence
