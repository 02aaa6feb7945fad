"""A model that brings its own code, of a kind that transformers does not know."""

import json
from pathlib import Path

import pytest
import torch
import transformers.dynamic_module_utils
from safetensors.torch import save_file
from tiny_models import save_tiny_clip

# Images by their pixels' mean in four quarters, texts by the mean of their tokens' embeddings
CODE = """
from pathlib import Path
import torch
from transformers import PretrainedConfig, PreTrainedModel

Path(r"{ran}").touch()

class MineConfig(PretrainedConfig):
    model_type = "mine"

class MineModel(PreTrainedModel):
    config_class = MineConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = torch.nn.Embedding(1000, 4)
        self.post_init()

    def get_image_features(self, pixel_values):
        return torch.nn.functional.adaptive_avg_pool2d(pixel_values.float().mean(1, keepdim=True), 2).flatten(1)

    def get_text_features(self, input_ids, attention_mask):
        weights = attention_mask[..., None] / attention_mask.sum(1)[:, None, None]
        return (self.words(input_ids) * weights).sum(1)
"""


def keep_modules_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers copies such code to."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(folder))
    monkeypatch.syspath_prepend(str(folder))


def save_own_code(folder: Path, ran: Path) -> Path:
    """Save the model; its code makes the file `ran` when it runs."""
    save_tiny_clip(folder, 0)
    for path in folder.glob("*.py"):
        path.unlink()
    (folder / "modeling_mine.py").write_text(CODE.replace("{ran}", str(ran)))
    torch.manual_seed(0)
    save_file({"words.weight": torch.randn(1000, 4)}, folder / "model.safetensors", metadata={"format": "pt"})
    auto_map = {"AutoConfig": "modeling_mine.MineConfig", "AutoModel": "modeling_mine.MineModel"}
    config = {"model_type": "mine", "architectures": ["MineModel"], "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
