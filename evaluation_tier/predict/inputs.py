"""What `tier-predict` reads: the images of files and folders, and the sentences of the findings."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from modeling_tier.findings_tier import lookup_key
from processing_tier.prompts.loader import load_prompts, prompt_findings

DEFAULT_PROMPTS = "report"  # of findings whose sentences the model does not hold, as in the default protocol

IMAGE_SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jp2", ".j2k", ".tif", ".tiff", ".bmp", ".webp", ".pgm", ".ppm", ".dcm", ".dicom")
}


class ImageFiles(Dataset):
    """The paths of images, which the pipeline reads one by one. A `Path` is never fetched from a server."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Path:
        return self.paths[row]


def find_images(arguments: Sequence[str]) -> list[Path]:
    """
    The files that the arguments name, and the images in the folders that they name, without repetitions. In a folder,
    an image is a file with the suffix of one, or a DICOM file of any name; hidden files are left out.

    Raises:
        ValueError: a folder does not hold an image.
    """
    found: dict[Path, None] = {}
    for argument in arguments:
        path = Path(argument)
        if not path.is_dir():
            found[path] = None  # a missing file is reported with the others that cannot be read
            continue
        inside = list(walk(path))
        if not inside:
            raise ValueError(
                f"The folder {argument} does not hold an image (PNG, JPEG, TIFF, DICOM, ...): name another, or name "
                "the files themselves."
            )
        found |= dict.fromkeys(inside)
    return list(found)


def walk(folder: Path) -> Iterator[Path]:
    """The images of a folder and of the folders in it, in the order of their names."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(place, name)
            if not name.startswith(".") and (path.suffix.lower() in IMAGE_SUFFIXES or is_dicom(path)):
                yield path


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do (PS3.10, 7.1), whatever its name; False if it cannot be opened."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def choose_findings(
    asked: Sequence[str] | None, prompts: str | None, stored: dict[str, dict] | None
) -> dict[str, dict[str, Any]]:
    """
    The findings to score with their sentences: those of `prompts`, or else those that the model holds with its
    thresholds and calibration, or else those of the default protocol.

    Args:
        asked: names; by default all of `prompts`, or all that the model holds, or all of the default protocol.
        prompts: name of a set of sentences, or a YAML file, see `processing_tier.prompts.loader.load_prompts`. What
            the model holds was measured with other sentences, so it is then not used.
        stored: `zero_shot_findings` of the model's configuration.

    Raises:
        ValueError: as `load_prompts`; or `prompts` has templates only, and no finding is named.
    """
    stored = {} if prompts else stored or {}
    names = list(dict.fromkeys(asked or [])) or sorted(stored) or prompt_findings(prompts or DEFAULT_PROMPTS)
    if not names:
        raise ValueError(f"The prompts {prompts!r} have templates but no findings: name some in --findings.")
    by_key = {lookup_key(name): entry for name, entry in stored.items()}
    own = {name: entry for name in names if (entry := stored.get(name) or by_key.get(lookup_key(name)))}
    others = load_prompts(prompts or DEFAULT_PROMPTS, [name for name in names if name not in own])
    sentences = {name: {"positive": told.positive, "negative": told.negative} for name, told in others.items()}
    return {name: own.get(name) or sentences[name] for name in names}
