"""
What frozen towers give for images and texts, computed once for all epochs and runs.

The outputs of a frozen tower never change, as long as its input does not. So training reads them from the disk, and
computes only what is on top of the tower.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from evaluation_tier.models.cache import content_key, hash_tensors
from evaluation_tier.models.clip import NOT_OF_THE_NUMBERS
from evaluation_tier.models.embedding import inference
from evaluation_tier.models.processes import fail_together, is_main_process
from modeling_tier import TierCLIPModel, TierDualEncoderModel, TierSiglipModel
from training_tier.data import pairs
from training_tier.data.collator import PairCollator
from training_tier.data.feature_store import FeatureStore
from training_tier.data.features import ImageFeatures, TextFeatures, text_key
from training_tier.data.image_cache import source_key
from training_tier.data.pairs import PairDataset
from training_tier.options.compatibility import refuse
from training_tier.options.feature_rules import rules_on_augmented_features, rules_on_features_of_texts
from training_tier.options.training import usable_cores

logger = logging.getLogger(__name__)

BATCH = 32  # images that a tower sees at once
TEXTS = 64

OURS = re.compile(r"(images|texts)-[0-9a-f]{16}|\..*")  # what a folder of features may hold

CODE = (Path(__file__), Path(pairs.__file__))  # that makes the inputs of the towers, beside the shipped code

Entries = Iterator[tuple[bytes, torch.Tensor]]


def cache_features(
    model: TierCLIPModel | TierDualEncoderModel,
    collator: PairCollator,
    pair_datasets: Sequence[PairDataset],
    folder: str | os.PathLike,
    dtype: torch.dtype = torch.float16,
) -> dict[str, str]:
    """
    From now on, `pair_datasets` give what the image tower gives in place of pixels, and `collator` adds what the text
    tower gives, if that is frozen too. The folder keeps both, and what it lacks is computed: of an image, text, tower,
    image processor or code that it does not know. The towers run as in an evaluation, without dropout.

    All processes that train together have to call this. Each computes its share.

    Args:
        model: with a frozen image tower.
        collator ([`PairCollator`]): makes the batches of the pairs.
        pair_datasets (`Sequence[PairDataset]`): without augmentation.
        folder (`str` or `os.PathLike`): created if needed.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float16`): of what is kept.

    Returns:
        `dict`: the hash of the weights of each tower whose features are used, by the tower's attribute.

    Raises:
        `ValueError`: the image tower is not frozen, the images or the kind of model do not allow it, the folder holds
            other things, cannot be used or has no space, or an output is not finite.
    """
    options = [dataset.options for dataset in pair_datasets]
    refuse(*(rules_on_augmented_features(of_dataset.augmentation) for of_dataset in options))
    if isinstance(model, TierSiglipModel):
        raise ValueError(
            "cache_features does not work with SigLIP, whose projection heads are inside its towers; leave it out."
        )
    hashes = {"vision_model": hash_frozen(model, "vision_model")}
    if caches_texts(model, options):
        hashes["text_model"] = hash_frozen(model, "text_model")
    with usable(folder):
        check_folder(Path(folder))
        store = open_store(folder, "images", image_parts(model, pair_datasets[0], hashes["vision_model"]), dtype)
        for dataset in pair_datasets:
            add_images(store, model, dataset, dtype)
        if "text_model" in hashes:
            parts = {"weights": hashes["text_model"], "config": describe(model.text_model), **described_model(model)}
            texts = open_store(folder, "texts", parts, dtype)
            add_texts(texts, model, collator, pair_datasets, dtype)
            collator.text_features = TextFeatures(texts)
    return hashes


def is_frozen(tower: torch.nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in tower.parameters())


def hash_frozen(model: torch.nn.Module, name: str) -> str:
    """A hash of the weights of a tower; ValueError if some of them are trained."""
    tower = getattr(model, name)
    if not is_frozen(tower):
        kind = {"vision_model": "image", "text_model": "text"}[name]
        raise ValueError(
            f"cache_features needs a frozen {kind} tower, but this one is trained, so its outputs change; add "
            f"--freeze_{kind}_tower true, or leave cache_features out."
        )
    return hash_tensors(tower.state_dict())


def caches_texts(model: torch.nn.Module, options: Sequence[pairs.PairOptions]) -> bool:
    """Whether the text tower gives the same in every epoch."""
    if not is_frozen(model.text_model):
        return False
    if any(of_dataset.sample_sentences for of_dataset in options):
        logger.warning(
            "sample_sentences makes other texts in each epoch: only the outputs of the image tower are cached, and "
            "the text tower runs in each step."
        )
        return False
    config = model.config
    refuse(rules_on_features_of_texts(config.entropy_tokens, config.token_entropy_weight, config.patch_entropy_weight))
    return True


def describe(tower: torch.nn.Module) -> dict:
    return {name: value for name, value in tower.config.to_dict().items() if name not in NOT_OF_THE_NUMBERS}


def described_model(model: torch.nn.Module) -> dict:
    return {"model": type(model).__name__, "device": model.device.type}


def image_parts(model: torch.nn.Module, dataset: PairDataset, weights: str) -> dict:
    """What decides the outputs of the image tower."""
    config = model.config
    return {
        "weights": weights,
        "config": describe(model.vision_model),
        "pixels": [getattr(config, name, None) for name in ("pixel_mean", "pixel_std", "image_size")],
        "preprocessing": dataset.image_processor.to_dict(),
        **described_model(model),
    }


@contextmanager
def usable(folder: str | os.PathLike) -> Iterator[None]:
    """Turns the error of a disk into one sentence."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"cache_features {str(folder)!r} cannot be used ({error.strerror or error}); free some space there, or "
            "choose another folder. A later run continues with what is complete there."
        ) from error


def check_folder(folder: Path) -> None:
    """ValueError for a folder with something in it that this module did not write."""
    others = sorted(path.name for path in folder.iterdir() if not OURS.fullmatch(path.name)) if folder.is_dir() else []
    if others:
        raise ValueError(
            f"cache_features {str(folder)!r} is not a folder of features: it holds {others[0]!r}; name a new or empty "
            "folder."
        )


def open_store(folder: str | os.PathLike, kind: str, parts: dict, dtype: torch.dtype) -> FeatureStore:
    """The store of a tower in this folder, with a note if there are only those of other towers."""
    name = f"{kind}-{content_key({**parts, 'dtype': str(dtype)}, CODE)[:16]}"
    others = [path for path in Path(folder).glob(f"{kind}-*") if path.name != name]
    if others and not Path(folder, name).exists() and is_main_process():
        logger.info(
            "%s holds %s of %d other towers, image processors or versions of the code, which may be deleted. Those of "
            "this run are computed.",
            folder,
            kind,
            len(others),
        )
    with fail_together():  # all processes see the folder before one of them writes
        return FeatureStore(Path(folder, name))


def own_share(keys: Sequence) -> list:
    """The part of this process; each machine computes all, because it may have a folder of its own."""
    if not dist.is_initialized():
        return list(keys)
    rank = int(os.environ.get("LOCAL_RANK", dist.get_rank()))
    return list(keys[rank :: int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))])


def fill(store: FeatureStore, total: int, missing: int, kind: str, compute: Callable[[tqdm], Entries]) -> None:
    """Adds the entries of this process to the store, and then opens those of all."""
    if missing and is_main_process():
        logger.info(
            "Features of %d %s: %d are in %s, %d are computed.", total, kind, total - missing, store.folder, missing
        )
    with fail_together():
        if missing:
            share = -(-missing // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
            disable = None if is_main_process() else True
            with tqdm(total=share, desc=f"caching {kind}", unit=kind[:-1], delay=2, disable=disable) as bar:
                store.add(compute(bar))
    if missing:
        with fail_together():
            store.open()


def add_images(store: FeatureStore, model: torch.nn.Module, dataset: PairDataset, dtype: torch.dtype) -> None:
    """Has a data set read its images from the store, to which those are added that it lacks."""
    sources = tqdm(dataset.all_columns.select_columns(["image"]), desc="looking at images", delay=2, disable=None)
    keys = [source_key(record["image"]) for record in sources]
    missing = {key: index for index, key in enumerate(keys) if key is not None and key not in store}

    def compute(bar: tqdm) -> Entries:
        workers = (usable_cores() - 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        share = own_share(list(missing.values()))
        loader = DataLoader(dataset, BATCH, sampler=share, num_workers=workers, collate_fn=list)
        first = True
        with inference(model), torch.autocast(model.device.type, enabled=False):
            for items in loader:
                items = [item for item in items if "error" not in item]  # the data set gives the reason
                if items:
                    pixels = torch.stack([item["pixel_values"] for item in items]).to(model.device)
                    hidden = as_kept(model.encode_images(pixels)[0].last_hidden_state, dtype, "image")
                    if first:
                        check_space(store.folder, hidden[0].nbytes * len(missing))
                        first = False
                    yield from zip([keys[item["index"]] for item in items], hidden, strict=True)
                bar.update(len(items))

    fill(store, len(keys), len(missing), "images", compute)
    dataset.use_features(ImageFeatures(store, keys, dataset.all_columns, dataset.image_processor))


def add_texts(
    store: FeatureStore,
    model: torch.nn.Module,
    collator: PairCollator,
    pair_datasets: Sequence[PairDataset],
    dtype: torch.dtype,
) -> None:
    """Adds to the store what it lacks of the texts of the pairs, each distinct text once."""
    texts = list(dict.fromkeys(text for dataset in pair_datasets for text in dataset.texts_of_all_epochs()))
    tokens = collator.tokenize(texts)
    keys = [text_key(ids) for ids in tokens["input_ids"]]
    missing = {key: i for i, key in enumerate(keys) if key not in store}

    def compute(bar: tqdm) -> Entries:
        # the longest first: texts of similar lengths share a batch
        share = own_share(sorted(missing.values(), key=lambda i: -len(tokens["input_ids"][i])))
        with inference(model), torch.autocast(model.device.type, enabled=False):
            for start in range(0, len(share), TEXTS):
                rows = share[start : start + TEXTS]
                batch = {name: [values[i] for i in rows] for name, values in tokens.items()}
                batch = pad_without_fast_tokenizer_warning(collator.tokenizer, batch, return_tensors="pt")
                inputs = {name: value.to(model.device) for name, value in batch.items()}
                hidden = as_kept(model.get_text_features(**inputs).last_hidden_state, dtype, "text")
                for i, one in zip(rows, hidden, strict=True):
                    yield keys[i], one[: len(tokens["input_ids"][i])]
                bar.update(len(rows))

    fill(store, len(set(keys)), len(missing), "texts", compute)


def as_kept(hidden: torch.Tensor, dtype: torch.dtype, kind: str) -> torch.Tensor:
    """The outputs of a tower as the store keeps them; ValueError if they are not finite."""
    kept = hidden.to(dtype).cpu()
    if not kept.isfinite().all():
        largest = hidden.abs().max().item()
        raise ValueError(
            f"The {kind} tower gives numbers up to {largest:.3g}, which cache_features does not keep in "
            f"{str(dtype).removeprefix('torch.')}: its weights are damaged, or it needs a training without the cache."
        )
    return kept


def check_space(folder: Path, needed: int) -> None:
    """ValueError before hours of computing whose result does not fit on the disk."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"cache_features {str(folder.parent)!r} needs {needed / 2**30:.1f} GiB for these images, but the disk has "
            f"{free / 2**30:.1f} GiB free; free some space there, or choose another folder."
        )
