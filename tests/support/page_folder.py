"""The files that the pages name, small and in one folder: my_data, reports.csv, runs/phantom ..."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from page_commands import ROOT, blocks_of, run_command
from pipeline_checks import make_dicom
from tiny_models import save_tiny_clip
from tiny_siglip import save_siglip
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    CLIPImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
)

from modeling_tier import TierCLIPModel
from processing_tier import read_radiograph
from processing_tier.phantom.dataset import make_phantom

SPLITS = {"train": 96, "validation": 40, "test": 40}
COLUMNS = {"image_id": "Path", "patient_id": "Subject", "impression": "ReportText"}
OWN_TRAINING = "tier-train smoke --data phantom:num_images=96,image_size=64,seed=7 --eval_split validation"


def save_images(folder: Path, seed: int) -> pd.DataFrame:
    """An image folder of phantoms, and its rows with their split."""
    tables = []
    for split, count in SPLITS.items():
        records = make_phantom(count, seed=seed, image_size=64, split=split)
        (folder / split).mkdir(parents=True)
        for record in records:
            read_radiograph(record["image"]).save(folder / split / f"{record['image_id']}.png")
        table = records.remove_columns(["image", "masks"]).to_pandas()
        table["file_name"] = table["image_id"] + ".png"
        table.drop(columns=["split"], errors="ignore").to_csv(folder / split / "metadata.csv", index=False)
        tables.append(table.assign(split=split))
    return pd.concat(tables)


def save_table(folder: Path, rows: pd.DataFrame, images: Path) -> None:
    """`reports.csv` with columns of its own and labels in words, and its folder `images`."""
    (folder / "images").mkdir()
    for row in rows.itertuples():
        shutil.copy(images / row.split / row.file_name, folder / "images" / row.file_name)
    words = rows[["split", *COLUMNS]].rename(columns=COLUMNS).assign(Path=rows["file_name"])
    for finding, column in (("Edema", "edema_label"), ("Cardiomegaly", "Cardiomegaly")):
        words[column] = rows[finding].map({1.0: "yes", 0.0: "no"})
    words.to_csv(folder / "reports.csv", index=False)


def save_towers(folder: Path) -> None:
    """Image towers and a text tower under the names of published ones."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    stages = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    vit = Dinov2Config(**sizes, mlp_ratio=1, image_size=32, patch_size=8)
    for name, model in (
        ("microsoft/resnet-50", ResNetModel(ResNetConfig(**stages))),
        ("microsoft/rad-dino", Dinov2Model(vit)),
        ("facebook/dinov2-base", Dinov2Model(vit)),
    ):
        model.save_pretrained(folder / name)
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder / name)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + letter for letter in letters)]
    text = BertConfig(**sizes | {"num_hidden_layers": 9}, intermediate_size=16, vocab_size=len(words))
    for name in ("microsoft/BiomedVLP-CXR-BERT-specialized", "FacebookAI/roberta-base", "NAME"):
        BertForMaskedLM(text).save_pretrained(folder / name)
        BertTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=512).save_pretrained(
            folder / name
        )


def save_clip(folder: Path, names: tuple[str, ...]) -> None:
    """A CLIP as transformers saves it."""
    tiny = save_tiny_clip(folder / "tiny", 0)
    for name in names:
        TierCLIPModel.from_pretrained(tiny).to_clip().save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(tiny).save_pretrained(folder / name)
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder / name)


def make_models(folder: Path) -> None:
    """Two trainings, under the names of the pages; models of others, small and with random weights."""
    for seed, names in ((1, ("phantom", "indiana", "seed1", "plain")), (2, ("mine", "seed2", "tier"))):
        run_command(f"{OWN_TRAINING} --seed {seed} --output_dir runs/{names[0]}".split())
        for name in names[1:]:
            shutil.copytree(folder / "runs" / names[0], folder / "runs" / name)
    for name in ("owner/name", "MODEL", "runs/stopped/checkpoint-60"):
        shutil.copytree(folder / "runs" / "mine", folder / name)
    shutil.copytree(folder / "runs" / "phantom", folder / "runs" / "stopped" / "checkpoint-50")
    save_clip(folder, ("openai/clip-vit-base-patch32", "clip-vit-base-patch32"))
    for seed, name in enumerate(("google/medsiglip-448", "google/siglip2-base-patch16-224")):
        save_siglip(folder / name, seed)
    save_towers(folder)


def make_folder(folder: Path) -> None:
    """Fills the folder, which is the current one."""
    rows = save_images(folder / "my_data", seed=0)
    save_images(folder / "nih_images", seed=3)
    for name in ("FOLDER", "indiana"):
        shutil.copytree(folder / "my_data", folder / name)
    save_table(folder, rows, folder / "my_data")
    pixels = np.asarray(read_radiograph(folder / "my_data" / "test" / rows["file_name"].iloc[-1]))
    for name in ("chest.dcm", "b.dcm", "incoming/chest.dcm"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(make_dicom(pixels.astype(np.uint16)))
    for name in ("chest.png", "a.png", "more/second.png", "folder_of_images/third.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        read_radiograph(folder / "chest.dcm").save(folder / name)
    (folder / "incoming" / "letter.dcm").write_text("not an image")
    shutil.copy(ROOT / "examples" / "own_model.py", folder / "my_file.py")
    [sentences] = [block.text for block in blocks_of(ROOT / "docs" / "prompts.md") if block.language == "yaml"]
    (folder / "my_sentences.yaml").write_text(sentences, encoding="utf-8")
    for script in ROOT.glob("*.py"):
        (folder / script.name).symlink_to(script)
    make_models(folder)
    make_results(folder)


def make_results(folder: Path) -> None:
    """Evaluations of the two trained models, under the names of the pages."""
    results = folder / "runs" / "evaluation"
    for model, name in (("mine", "early"), ("phantom", "demo")):
        run_command(f"tier-eval runs/{model} --data my_data --split validation".split())
        shutil.copytree(results / f"{model}-my_data-validation", results / name)
    shutil.copytree(results / "demo", results / "classifier")
    run_command("tier-eval runs/phantom --data phantom --split test --output_dir runs/phantom-evaluation".split())
