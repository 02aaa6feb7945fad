"""What the tests of the Hub share: the trainings, the files that are expected, and how results are compared."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from shipped import CLASSIFIER_CODE, CLIP_CODE, DUAL_CODE
from transformers import AutoModel, AutoProcessor

MODEL_CODE = {"clip": CLIP_CODE, "dual": DUAL_CODE, "classifier": CLASSIFIER_CODE}
SENTENCES = ["There is a pleural effusion.", "No pleural effusion.", "Normal chest."]
FINDINGS = ["Pleural Effusion", "Edema"]
STEPS = (3, 6)  # where the two epochs of the trainings end
TRAINING = [
    *("--data", "phantom:num_images=24,image_size=64"),
    *("--eval_split", "validation"),
    *("--per_device_train_batch_size", "8"),
    *("--num_train_epochs", "2"),
    *("--min_positives", "2"),
    *("--vocab_size", "700"),
    *("--report_to", "none"),
    *("--use_cpu", "true"),
    *("--disable_tqdm", "true"),
]


def commit_at(repo, message: str):
    return next(commit for commit in repo.commits if commit.message == message)


def expected_logits(model_folder: Path, image_folder: Path) -> torch.Tensor:
    model, processor = AutoModel.from_pretrained(model_folder), AutoProcessor.from_pretrained(model_folder)
    inputs = processor(text=SENTENCES, images=Image.open(image_folder / "image.png"), return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs).logits_per_image


def assert_same(logits: list, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(logits), expected, rtol=1e-6, atol=1e-6)


def refused(main, arguments, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def code_in(files) -> set[str]:
    return {path for path in map(str, files) if path.endswith(".py")}
