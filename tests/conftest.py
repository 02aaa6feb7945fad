import gc
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any Hugging Face import: the tests never reach for the network

import pytest
import torch
from hypothesis import settings
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    CLIPImageProcessorPil,
    ResNetConfig,
    ResNetForImageClassification,
)

settings.register_profile("repeatable", derandomize=True, deadline=None)  # the same examples in every run
settings.load_profile("repeatable")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_finish() -> None:
    """What all the imports have made stays, and need not be searched at each garbage collection from here on."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real radiographs beside the repository; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no ../shared/data beside the repository: the tests on real radiographs are skipped")
    return SHARED_DATA


@pytest.fixture(scope="session")
def shared_cases() -> Path:
    """The folder of small files that broke decoders; as `shared_data`."""
    folder = SHARED_DATA.parent / "cases"
    if not folder.is_dir():
        pytest.skip("no ../shared/cases beside the repository: the tests on these files are skipped")
    return folder


@pytest.fixture(scope="session")
def tower_folders(tmp_path_factory) -> tuple[Path, Path]:
    """A small classifier of images and a small masked language model, as transformers saves them."""
    folder = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    ResNetForImageClassification(ResNetConfig(**sizes)).save_pretrained(folder / "resnet")
    CLIPImageProcessorPil(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(folder / "resnet")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + letter for letter in letters)]
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(**sizes, vocab_size=len(words))).save_pretrained(folder / "bert")
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=512)
    tokenizer.save_pretrained(folder / "bert")
    return folder / "resnet", folder / "bert"
