import numpy as np
import pytest
from small_trainings import FINDINGS, TINIEST, TINIEST_DUAL, with_labels
from training_runs import QUICK, run, write_folder
from transformers import set_seed

from modeling_tier import TierCLIPModel
from processing_tier import TierImageProcessor, TierProcessor, train_tokenizer
from processing_tier.phantom.dataset import make_phantom
from training_tier.start.presets import PRESETS, preset_config


@pytest.fixture(autouse=True)
def tiniest_presets(monkeypatch):
    """Presets small enough for training in a test."""
    monkeypatch.setitem(PRESETS, "tiniest", TINIEST)
    monkeypatch.setitem(PRESETS, "tiniest-dual", TINIEST_DUAL)


@pytest.fixture(scope="session")
def phantom():
    return make_phantom(48, seed=0, image_size=64)


@pytest.fixture(scope="session")
def processor(phantom):
    tokenizer = train_tokenizer(phantom["impression"][:] + phantom["findings"][:], vocab_size=700)
    return TierProcessor(TierImageProcessor(size=32), tokenizer)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    run(*QUICK, "--output_dir", folder, "--token_entropy_weight", "0.1")
    return folder


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A prepared data set of two splits, the first in two files of several row groups."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "data").mkdir()
    train, validation = (make_phantom(n, 0, 64, split) for n, split in ((52, "train"), (24, "validation")))
    for number, part in enumerate((range(30), range(30, 52))):
        train.select(part).to_parquet(folder / f"data/train-{number:05d}-of-00002.parquet", batch_size=7)
    validation.to_parquet(folder / "data/validation-00000-of-00001.parquet", batch_size=7)
    return folder


@pytest.fixture(scope="session")
def labelled():
    """24 images with labels drawn at random, so that each finding has both classes."""
    drawn = np.random.default_rng(0).integers(0, 2, (len(FINDINGS), 24)).astype(float).tolist()
    records = make_phantom(24, seed=0, image_size=64, split="validation")
    return with_labels(records, **dict(zip(FINDINGS, drawn, strict=True)))


@pytest.fixture
def base(tmp_path, processor):
    """Folder of a model of images and texts, with its processor."""
    set_seed(0)
    TierCLIPModel(preset_config("tiniest", processor.tokenizer)).save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")
