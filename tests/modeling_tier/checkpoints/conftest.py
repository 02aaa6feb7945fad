"""Batches and checkpoints of the original models."""

import json

import pytest
import torch
from original_clip import CONTEXT
from original_dual import BASE, DEPTHS, HEAD, CxrBert, projector_tensors, resnet_tensors, text_state
from transformers import BertConfig


@pytest.fixture
def batch():
    """Pixels, and ids as the original tokenizer gives them: begin 118, end 119, the rest 0."""
    ids = torch.zeros(3, CONTEXT, dtype=torch.long)
    for row, words in enumerate((10, 4, 0)):
        ids[row, : words + 2] = torch.cat([torch.tensor([118]), torch.randint(0, 118, (words,)), torch.tensor([119])])
    return torch.randn(3, 3, 32, 32), ids


@pytest.fixture
def cxr_bert():
    return CxrBert(
        BertConfig(
            vocab_size=90,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=96,
            max_position_embeddings=40,
        )
    ).eval()


@pytest.fixture
def tier_state(cxr_bert):
    """`model_state_dict` of TIER's MedCLIP: CNN, CXR-BERT, its head once more, and the logit scale."""
    state = resnet_tensors(DEPTHS, BASE, "cnn.encoder.encoder.") | projector_tensors("cnn.")
    state |= {f"transformer.{name}": tensor for name, tensor in text_state(cxr_bert).items()}
    state |= {k: v.clone() for k, v in cxr_bert.state_dict().items() if k.startswith("cls_projection_head")}
    return state | {"logit_scale": torch.tensor(2.9)}


@pytest.fixture
def dual_batch():
    ids = torch.randint(5, 90, (3, 9))
    mask = (torch.arange(9) < torch.tensor([[9], [5], [2]])).long()
    return torch.randn(3, 3, 96, 96), ids * mask, mask


@pytest.fixture
def biovil(tmp_path, cxr_bert):
    """BioViL's image file, its tensors, and the folder of CXR-BERT."""
    state = resnet_tensors(DEPTHS, BASE, "encoder.encoder.") | projector_tensors()
    torch.save(state, tmp_path / "biovil_image_resnet50_proj_size_128.pt")
    folder = tmp_path / "cxr_bert"
    folder.mkdir()
    torch.save(text_state(cxr_bert), folder / "pytorch_model.bin")
    settings = cxr_bert.config.to_dict()
    settings |= {
        "model_type": "cxr-bert",
        "projection_size": HEAD,
        "architectures": ["CXRBertModel"],
        "auto_map": {"AutoModel": "modeling_cxrbert.CXRBertModel"},
    }
    (folder / "config.json").write_text(json.dumps(settings, default=str))
    return tmp_path / "biovil_image_resnet50_proj_size_128.pt", state, folder
