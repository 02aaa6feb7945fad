"""A small RadZero in the layout of its owner's training, and a second implementation of its scores."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BlipImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
)

from evaluation_tier.models.radzero import spread_levels
from processing_tier.radiograph_tier import read_radiograph

DIM, EDGE = 16, 56
TEXTS = ["Edema.", "There is no edema.", "The heart is enlarged and there is a small left pleural effusion."]
WORDS = ["<s>", "<pad>", "</s>", "<unk>", *dict.fromkeys(" ".join(TEXTS).lower().replace(".", " .").split())]

# The names in transformers 4.39, in which the owner's checkpoints are saved, of those in transformers 5.23
OLD_NAMES = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}


def old_names(state: dict, prefix: str) -> dict:
    renamed = {}
    for key, value in state.items():
        for new, old in OLD_NAMES.items():
            key = key.replace(new, old)
        renamed[prefix + key] = value.clone()
    return renamed


class Parts:
    """The towers and the parameters of a small checkpoint."""

    def __init__(self):
        torch.manual_seed(0)
        layers = {"hidden_size": DIM, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 28, "patch_size": 14}
        self.vision_config = Dinov2Config(**layers, num_hidden_layers=2)
        self.layers_config = Dinov2Config(**layers, num_hidden_layers=1)
        text = {"hidden_size": DIM, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 2}
        text |= {"vocab_size": len(WORDS), "max_position_embeddings": 64, "layer_norm_eps": 1e-5}
        self.vision = Dinov2Model(self.vision_config).eval()
        self.layers = Dinov2Model(self.layers_config).eval().encoder
        self.text = MPNetModel(MPNetConfig(**text)).eval()
        for module in (self.vision, self.layers, self.text):
            for parameter in module.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
        self.norm = {"weight": 1 + 0.3 * torch.randn(DIM), "bias": 0.3 * torch.randn(DIM)}
        self.temperature = torch.tensor([0.2]).log()

    def save(self, folder: Path) -> Path:
        vision = {**self.vision_config.to_dict(), "img_size": EDGE, "pretrained_name_or_path": "StanfordAIMI/x"}
        text = {"model_type": "mpnet", "use_text_projection": False, "use_cls_token": False}
        loss = {
            "apply": ["RadZeroLoss"],
            "RadZeroLoss": {"hidden_dim": DIM, "sim_op": "cos", "attn_temperature": None},
        }
        own = {"loss": loss, "compute_logits_type": "radzero"}
        config = {
            "architectures": ["CxrAlignModel"],
            "vision_config": vision,
            "text_config": {**text, "pretrained_name_or_path": "sentence-transformers/all-mpnet-base-v2"},
            "align_transformer_config": {
                **self.layers_config.to_dict(), "model_type": "align_transformer", "use_layer_norm": False
            },
            **own,
            "kwargs": own,
        }  # fmt: skip
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, default=str))
        tensors = {
            **old_names(self.vision.state_dict(), "vision_model."),
            **old_names(self.text.state_dict(), "text_model."),
            **old_names(self.layers.state_dict(), "align_transformer.transformer_layers."),
            **{f"loss_fns.RadZeroLoss.layer_norm.{key}": value for key, value in self.norm.items()},
            "loss_fns.RadZeroLoss.loss_temperature": self.temperature,
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 0))
        special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **special).save_pretrained(folder)
        BlipImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder)
        return folder

    def normalized(self, features: np.ndarray) -> np.ndarray:
        """RadZero's layer norm of the last axis, then unit length, in float64."""
        features = features - features.mean(axis=-1, keepdims=True)
        features = features / np.sqrt(features.var(axis=-1, keepdims=True) + 1e-5)
        features = features * self.norm["weight"].double().numpy() + self.norm["bias"].double().numpy()
        return features / np.linalg.norm(features, axis=-1, keepdims=True)

    def scores(self, images: list, texts: list[str], tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cosines (images, texts), texts (texts, dim), tokens (images, tokens, dim): one image and text at a time."""
        found, queries = [], []
        for text in texts:
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            with torch.no_grad():
                states = self.text(input_ids=ids).last_hidden_state[0].double().numpy()
            queries.append(self.normalized(states.mean(axis=0)))
        all_tokens = []
        for image in images:
            spread = spread_levels(np.asarray(read_radiograph(image)))
            rgb = np.repeat(spread[:, :, None], 3, axis=2)
            processor = BlipImageProcessorPil(size={"height": EDGE, "width": EDGE})
            with torch.no_grad():
                states = self.vision(processor(rgb, return_tensors="pt")["pixel_values"]).last_hidden_state
                tokens = self.layers(states).last_hidden_state[0].double().numpy()
            tokens = self.normalized(tokens)
            all_tokens.append(tokens)
            row = []
            for query in queries:
                similar = np.exp(tokens @ query / np.exp(self.temperature.item()))
                pooled = (similar / similar.sum()) @ tokens
                row.append(pooled @ query / np.linalg.norm(pooled))
            found.append(row)
        return np.array(found), np.array(queries), np.array(all_tokens)
