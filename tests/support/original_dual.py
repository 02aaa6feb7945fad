"""TIER and BioViL in plain torch, written here: torchvision's ResNet over a dict of tensors, and CXR-BERT."""

import argparse

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertForMaskedLM


def resnet_tensors(depths, base, prefix="", classes=10, make=torch.randn):
    """Random tensors under torchvision's names, in the shapes of its bottleneck ResNets (stride in the 3x3)."""
    tensors = {}

    def conv(name, out, inner, size):
        tensors[f"{name}.weight"] = make(out, inner, size, size) * (2 / (inner * size**2)) ** 0.5

    def norm(name, out):
        tensors[f"{name}.weight"] = 1 + 0.1 * make(out)
        tensors[f"{name}.bias"] = 0.1 * make(out)
        tensors[f"{name}.running_mean"] = 0.1 * make(out)
        tensors[f"{name}.running_var"] = 1 + 0.1 * make(out).abs()
        tensors[f"{name}.num_batches_tracked"] = torch.zeros((), dtype=torch.long, device=make(1).device)

    conv("conv1", base, 3, 7)
    norm("bn1", base)
    inner = base
    for stage, depth in enumerate(depths):
        planes = base * 2**stage
        for block in range(depth):
            at = f"layer{stage + 1}.{block}"
            for k, (out, before, size) in enumerate(
                ((planes, inner, 1), (planes, planes, 3), (4 * planes, planes, 1)), start=1
            ):
                conv(f"{at}.conv{k}", out, before, size)
                norm(f"{at}.bn{k}", out)
            if block == 0:
                conv(f"{at}.downsample.0", 4 * planes, inner, 1)
                norm(f"{at}.downsample.1", 4 * planes)
            inner = 4 * planes
    tensors["fc.weight"], tensors["fc.bias"] = make(classes, inner), make(classes)
    return {prefix + name: tensor for name, tensor in tensors.items()}


def resnet_forward(t, pixels, depths):
    def norm(x, name):
        return F.batch_norm(
            x, t[f"{name}.running_mean"], t[f"{name}.running_var"], t[f"{name}.weight"], t[f"{name}.bias"]
        )

    x = F.max_pool2d(F.relu(norm(F.conv2d(pixels, t["conv1.weight"], stride=2, padding=3), "bn1")), 3, 2, 1)
    for stage, depth in enumerate(depths):
        for block in range(depth):
            at, stride = f"layer{stage + 1}.{block}", 2 if block == 0 and stage > 0 else 1
            y = F.relu(norm(F.conv2d(x, t[f"{at}.conv1.weight"]), f"{at}.bn1"))
            y = F.relu(norm(F.conv2d(y, t[f"{at}.conv2.weight"], stride=stride, padding=1), f"{at}.bn2"))
            y = norm(F.conv2d(y, t[f"{at}.conv3.weight"]), f"{at}.bn3")
            if block == 0:
                x = norm(F.conv2d(x, t[f"{at}.downsample.0.weight"], stride=stride), f"{at}.downsample.1")
            x = F.relu(x + y)
    return x


DEPTHS, BASE, HEAD = (1, 2, 1, 1), 8, 16


def projector_tensors(prefix=""):
    tensors = {
        "0.weight": torch.randn(HEAD, 32 * BASE, 1, 1) * (32 * BASE) ** -0.5,
        "1.weight": 1 + 0.1 * torch.randn(HEAD),
        "1.bias": 0.1 * torch.randn(HEAD),
        "1.running_mean": 0.1 * torch.randn(HEAD),
        "1.running_var": 1 + 0.1 * torch.rand(HEAD),
        "1.num_batches_tracked": torch.tensor(7),
        "3.weight": torch.randn(HEAD, HEAD, 1, 1) * HEAD**-0.5,
        "3.bias": 0.1 * torch.randn(HEAD),
    }
    return {f"{prefix}projector.model.{name}": tensor for name, tensor in tensors.items()}


def project_image(tensors, features):
    t = {name.rpartition("model.")[2]: tensor for name, tensor in tensors.items()}
    x = F.conv2d(features, t["0.weight"])
    x = F.relu(F.batch_norm(x, t["1.running_mean"], t["1.running_var"], t["1.weight"], t["1.bias"]))
    return F.conv2d(x, t["3.weight"], t["3.bias"])


class CxrBert(BertForMaskedLM):
    """CXR-BERT: BERT for masked words, and a head for [CLS]."""

    def __init__(self, config):
        super().__init__(config)
        self.cls_projection_head = nn.ModuleDict(
            {
                "dense_to_hidden": nn.Linear(config.hidden_size, HEAD),
                "LayerNorm": nn.LayerNorm(HEAD, eps=1e-12),
                "dense_to_output": nn.Linear(HEAD, HEAD),
            }
        )
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))

    def embed(self, ids, mask):
        head = self.cls_projection_head
        x = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        return head["dense_to_output"](head["LayerNorm"](F.gelu(head["dense_to_hidden"](x))))


def text_state(cxr_bert):
    state = {name: tensor.clone() for name, tensor in cxr_bert.state_dict().items()}
    state["bert.embeddings.position_ids"] = torch.arange(40)[None]  # as transformers before 4.31 saved it
    return state


def tier_checkpoint(state):
    """What TIER's train.py saves every epoch, with arguments and numbers of numpy in it."""
    return {
        "epoch": 4,
        "model_state_dict": state,
        "optimizer_state_dict": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4}]},
        "best_val_loss": 1.5,
        "val_loss": 1.5,
        "train_loss": np.float32(1.25),
        "train_losses": np.array(1.0),
        "args": argparse.Namespace(lam_words=0.1, lam_patches=0.0, model_path="/x"),
    }
