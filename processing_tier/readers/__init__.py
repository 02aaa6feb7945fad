"""
Readers: each brings one layout of data into the schema of `processing_tier.records`.

[`READERS`] lists the archives, one file each. `table`, `imagefolder` and `hub` read everything else.

To add an archive, write a function `read_NAME(root, split, *, OPTIONS)` in a new file, as in `chestx_det10`. It builds
a data frame and ends in [`make_records`]. Add it to [`READERS`] and to the tables in docs/public_datasets.md. If it
has the patients of another archive, add it to `SAME_IMAGES` in `records/identities.py`.
"""

import difflib
import inspect
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import datasets

from processing_tier.hub_names import DATASET_NAME
from processing_tier.records.table_options import STANDARD_TABLE, TableOptions

from . import (
    brax,
    chest_imagenome,
    chestx_det10,
    chestxray14,
    chestxray14_experts,
    chexlocalize,
    chexpert,
    chexpert_plus,
    covid_qu_ex,
    cxr_lt_2026,
    mimic_cxr,
    ms_cxr,
    nlm_tuberculosis,
    openi,
    padchest,
    padchest_gr,
    rexgradient,
    rsna,
    siim,
    taix_ray,
    tbx11k,
    vindr_cxr,
    vindr_pcxr,
)
from .formats import is_table_name, read_frame
from .hub import list_hub_splits, read_hub
from .hub_files import has_embedded_images, is_saved, parquet_files
from .imagefolder import find_metadata, read_imagefolder, split_folders
from .splits import list_table_splits
from .table import read_table

# Name of an archive (`--data NAME:FOLDER`) to the function that reads one split, and its splits. The keyword-only
# parameters of the function are the options of `--data NAME:FOLDER,OPTION=VALUE`.
READERS: dict[str, tuple[Callable[..., datasets.Dataset], tuple[str, ...]]] = {
    "mimic_cxr": (mimic_cxr.read_mimic_cxr, mimic_cxr.SPLITS),
    "mimic_cxr_jpg": (mimic_cxr.read_mimic_cxr_jpg, mimic_cxr.SPLITS),
    "chexpert": (chexpert.read_chexpert, chexpert.SPLITS),
    "chexpert_plus": (chexpert_plus.read_chexpert_plus, chexpert_plus.SPLITS),
    "padchest": (padchest.read_padchest, padchest.SPLITS),
    "openi": (openi.read_openi, openi.SPLITS),
    "chestxray14": (chestxray14.read_chestxray14, chestxray14.SPLITS),
    "vindr_cxr": (vindr_cxr.read_vindr_cxr, vindr_cxr.SPLITS),
    "rsna": (rsna.read_rsna, rsna.SPLITS),
    "siim": (siim.read_siim, siim.SPLITS),
    "ms_cxr": (ms_cxr.read_ms_cxr, ms_cxr.SPLITS),
    "chexlocalize": (chexlocalize.read_chexlocalize, chexlocalize.SPLITS),
    "chestx_det10": (chestx_det10.read_chestx_det10, chestx_det10.SPLITS),
    "covid_qu_ex": (covid_qu_ex.read_covid_qu_ex, covid_qu_ex.SPLITS),
    "brax": (brax.read_brax, brax.SPLITS),
    "taix_ray": (taix_ray.read_taix_ray, taix_ray.SPLITS),
    "chest_imagenome": (chest_imagenome.read_chest_imagenome, chest_imagenome.SPLITS),
    "chestxray14_experts": (chestxray14_experts.read_chestxray14_experts, chestxray14_experts.SPLITS),
    "cxr_lt_2026": (cxr_lt_2026.read_cxr_lt_2026, cxr_lt_2026.SPLITS),
    "rexgradient": (rexgradient.read_rexgradient, rexgradient.SPLITS),
    "padchest_gr": (padchest_gr.read_padchest_gr, padchest_gr.SPLITS),
    "montgomery": (nlm_tuberculosis.read_montgomery, nlm_tuberculosis.SPLITS),
    "shenzhen": (nlm_tuberculosis.read_shenzhen, nlm_tuberculosis.SPLITS),
    "tbx11k": (tbx11k.read_tbx11k, tbx11k.SPLITS),
    "vindr_pcxr": (vindr_pcxr.read_vindr_pcxr, vindr_pcxr.SPLITS),
}

PHANTOM = "phantom"
PHANTOM_OPTIONS = ("num_images", "seed", "image_size")
PHANTOM_SPLITS = ("train", "validation", "test")
PHANTOM_IMAGES = {"train": 2000}
PHANTOM_OTHER_IMAGES = 300

PREPARED_FILE = "prepare.json"  # the options of `tier-prepare`, in its output
MAX_PREPARED_BYTES = 2**20
MAX_DIGITS = 9  # of a number among the options of a reader


def read_records(data: str | os.PathLike, split: str, table: TableOptions = STANDARD_TABLE) -> datasets.Dataset:
    """
    Read one split of the data set `data`, in the schema of [`records`].

    Args:
        data (`str` or `os.PathLike`):
            One of
            - `"phantom"`, the embedded synthetic radiographs (`"phantom:num_images=200,seed=1,image_size=64"`);
            - the name of a reader and the folder of its archive (`"padchest:/data/padchest"`), with the reader's
              options behind the folder (`"padchest:/data/padchest,method=Physician"`);
            - an image folder, or a table (`.csv`, `.tsv`, `.xlsx`, `.jsonl`, `.parquet`);
            - a folder that `tier-prepare` or `save_to_disk` wrote, or a data set on the Hub (`"owner/name"`).
        split (`str`): such as `"train"`, see [`list_splits`].
        table ([`TableOptions`], *optional*): column names and the like, for data without a reader.

    Raises:
        `ValueError`: data of another kind, an option without effect there, or an error of the reader.
    """
    reader, data, options = parse_data(data)
    if reader is not None:
        return read_named(reader, data, split, options, table)
    has_images = is_hub(data)
    if is_table(data) and not has_images:
        return read_table(data, split, table)
    if table.image_root:
        raise no_effect_of_image_root(table.image_root, dataset_name(data))
    if not has_images:
        return read_imagefolder(data, split, table)
    if table.sheet:
        raise ValueError(f"sheet={table.sheet!r} is for Excel files only; leave it out.")
    return read_hub(data, split, table.columns, label_values=table.label_values)


def read_named(
    reader: str, folder: str, split: str, options: Mapping[str, str], table: TableOptions
) -> datasets.Dataset:
    """One split of an archive or of the phantom. `options` are those that [`parse_data`] finds behind the folder."""
    image_root = table.image_root
    if table.columns or reader == PHANTOM and image_root:
        raise ValueError(f"columns and image_root have no effect on {reader!r}; leave them out.")
    if table.sheet or table.label_values:
        raise ValueError(f"sheet and label_values have no effect on {reader!r}; leave them out.")
    if reader == PHANTOM:
        return read_phantom({name: int(value) for name, value in options.items()}, split)
    function = READERS[reader][0]  # it checks the split itself: some options add splits
    parameters = inspect.signature(function).parameters.values()
    known = {parameter.name: parameter.default for parameter in parameters if parameter.kind == parameter.KEYWORD_ONLY}
    if image_root and "image_root" not in known:
        raise no_effect_of_image_root(image_root, reader)
    for name in options:
        if name not in known:
            there = f"has {', '.join(known)}" if known else "takes no options"
            raise ValueError(f"{reader} has no option {name!r}; it {there}.")
    parsed = {name: parse_option(reader, name, value, known[name]) for name, value in options.items()}
    return function(folder, split, **parsed, **({"image_root": image_root} if image_root else {}))


def no_effect_of_image_root(image_root: str | os.PathLike, name: str) -> ValueError:
    return ValueError(f"image_root={str(image_root)!r} has no effect on {name!r}; leave it out.")


def list_splits(data: str | os.PathLike, table: TableOptions = STANDARD_TABLE) -> list[str]:
    """
    Names of the splits that [`read_records`] can read.

    Raises:
        `ValueError`: data that do not exist, or have no split.
    """
    reader, data, _ = parse_data(data)
    if reader is not None:
        return list(PHANTOM_SPLITS if reader == PHANTOM else READERS[reader][1])
    if is_hub(data):
        return list_hub_splits(data)
    path = Path(data)
    if not is_table(data):
        if path.is_dir() and (folders := split_folders(path)):
            return folders
        path = find_metadata(path)
        if path is None:
            read_imagefolder(data, "train")  # its error names the missing part
    return list_table_splits(read_frame(path, sheet=table.sheet), table.split_column)


def has_splits(data: str | os.PathLike, table: TableOptions = STANDARD_TABLE) -> bool:
    """Whether the data say which split each image belongs to. Only a table, or the one of an image folder, may not."""
    reader, data, _ = parse_data(data)
    if reader is not None or is_hub(data):
        return True
    path = Path(data) if is_table(data) else None
    if path is None and os.path.isdir(data) and not split_folders(Path(data)):
        path = find_metadata(Path(data))
    return path is None or table.split_column in read_frame(path, sheet=table.sheet).columns


def dataset_name(data: str | os.PathLike) -> str:
    """The name of data in results and on model cards, without the folders of this machine."""
    reader, folder, _ = parse_data(data)
    return os.fspath(data) if reader == PHANTOM else reader or Path(folder).resolve().name


def origin_name(data: str | os.PathLike) -> str:
    """
    The name of the original of a copy: a folder of `tier-prepare` has the same patients as the data it was made from,
    in other files. For all other data, [`dataset_name`].
    """
    path = Path(data, PREPARED_FILE)
    try:
        if path.stat().st_size <= MAX_PREPARED_BYTES:
            name = json.loads(path.read_text(encoding="utf-8"))["data"]
            if isinstance(name, str) and name:
                return name
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        pass
    return dataset_name(data)


def is_table(data: str | os.PathLike) -> bool:
    """Whether data are a table, by their name."""
    return is_table_name(Path(data)) and not os.path.isdir(data)


def is_hub(data: str | os.PathLike) -> bool:
    """Whether data are images embedded in Parquet or Arrow files, or a name on the Hub; see [`read_hub`]."""
    path = Path(data)
    if path.is_dir():
        has_metadata = find_metadata(path) is not None or bool(split_folders(path))
        return is_saved(path) or not has_metadata and bool(parquet_files(path))
    if path.is_file():
        return path.suffix.lower() == ".parquet" and has_embedded_images(path)
    return DATASET_NAME.fullmatch(os.fspath(data)) is not None and not is_table(data)


def parse_data(data: str | os.PathLike) -> tuple[str | None, str, dict[str, str]]:
    """
    The reader that `data` names (`None` for a folder, a table or a name on the Hub), its folder, and its options.

    Raises:
        `ValueError`: an unknown reader, or a reader without a folder.
    """
    data = os.fspath(data)
    name, colon, rest = data.partition(":")
    if name == PHANTOM:
        parts = list(filter(None, rest.split(",")))
        for part in parts:
            option, _, value = part.partition("=")
            if option not in PHANTOM_OPTIONS or not value.isdecimal() or len(value) > MAX_DIGITS:
                raise ValueError(
                    f"phantom option {part!r} is not known; use {', '.join(PHANTOM_OPTIONS)} with a whole number each."
                )
        folder = ""
    elif name in READERS and (colon or not os.path.exists(data)):
        folder, *parts = rest.split(",")
        if not folder:
            raise ValueError(f"{name!r} needs the folder of its archive: {name}:FOLDER.")
    elif colon and not os.path.exists(data) and re.fullmatch(r"\w[\w-]+", name):  # C:\ is a drive
        plain = {re.sub("[^a-z0-9]", "", reader.lower()): reader for reader in (PHANTOM, *READERS)}
        nearest = difflib.get_close_matches(re.sub("[^a-z0-9]", "", name.lower()), plain, n=1)
        hint = f"did you mean {plain[nearest[0]]!r}? The" if nearest else "the"
        raise ValueError(f"the reader {name!r} is not known; {hint} readers are {', '.join(READERS)}.")
    else:
        return None, data, {}
    return name, folder, dict(part.partition("=")[::2] for part in parts)


def parse_option(reader: str, name: str, value: str, default: str | int | bool | None) -> str | int | bool:
    """The value of an option behind the folder, in the type of its default."""
    if isinstance(default, bool):
        if value.lower() not in ("true", "false", "0", "1"):
            raise ValueError(f"{reader}: {name}={value} is not true or false.")
        return value.lower() in ("true", "1")
    if isinstance(default, int):
        if not value.isdecimal() or len(value) > MAX_DIGITS:
            raise ValueError(f"{reader}: {name}={value[:20]} is not a whole number of at most {MAX_DIGITS} digits.")
        return int(value)
    return value


def read_phantom(options: Mapping[str, int], split: str) -> datasets.Dataset:
    """The phantom with these options; without `num_images`, with the usual number of images of the split."""
    from processing_tier.phantom.dataset import make_phantom

    return make_phantom(**{"num_images": PHANTOM_IMAGES.get(split, PHANTOM_OTHER_IMAGES), **options}, split=split)
