"""tier-convert of TIER's and BioViL's checkpoints: the same numbers and the same pixels come out."""

import argparse
import json

import numpy as np
import pytest
import torch
from convert_checks import load, pixels_of, refuse, run
from PIL import Image
from seeded_checkpoints import make_picture
from transformers import BertConfig, ResNetConfig

from modeling_tier import TierDualEncoderConfig, TierDualEncoderModel
from modeling_tier.checkpoints.layout import to_layout
from modeling_tier.checkpoints.tier import dual_names

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "acute", "disease", "small", "effusion"]


def make_dual():
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "max_position_embeddings": 150}
    return TierDualEncoderModel(
        TierDualEncoderConfig(
            vision_config=ResNetConfig(embedding_size=8, hidden_sizes=[32, 64, 128, 256], depths=[1, 1, 1, 1]),
            text_config=BertConfig(vocab_size=len(WORDS), num_attention_heads=1, **sizes),
            projection_dim=16,
        )
    ).eval()


@pytest.fixture
def cxr_bert_folder(tmp_path):
    """The folder of CXR-BERT's tokenizer, whose class is code of its own."""
    folder = tmp_path / "cxr_bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    settings = {"tokenizer_class": "CXRBertTokenizer", "do_lower_case": True}
    settings["auto_map"] = {"AutoTokenizer": ["configuration_cxrbert.CXRBertTokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_tier(tmp_path, capsys, cxr_bert_folder):
    picture = make_picture()
    original = make_dual()
    state = original.state_dict()
    names = {"logit_scale": ("logit_scale",), **dual_names(list(state), "cnn.", "transformer.")}
    path = tmp_path / "best_model.pt"
    torch.save({"model_state_dict": to_layout(state, names), "args": argparse.Namespace(lam_words=0.1)}, path)
    out = run(capsys, path, tmp_path / "tier", "--tokenizer", cxr_bert_folder)
    assert "TIER, as its authors save it" in out and "TierDualEncoderModel" in out
    assert "Note: the checkpoint was trained with token_entropy_weight=0.1 (lam_words), patch_entropy_weight=0" in out
    model, processor = load(tmp_path / "tier")

    # Shortest side to 256 (bilinear), the centre 224, ImageNet's mean and deviation (MedCLIP_Datasets.py:46-52)
    small = picture.convert("RGB").resize((int(256 * 523 / 401), 256), Image.Resampling.BILINEAR)
    left, top = round((small.width - 224) / 2), 16
    crop = torch.from_numpy(np.array(small)[top : top + 224, left : left + 224]).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (crop - mean[:, None, None]) / std[:, None, None]
    assert (pixels_of(processor, picture)[0] - expected).abs().max() < 1e-5

    encoded = processor(text=["No acute DISEASE " * 60, "small effusion"], images=[picture] * 2, return_tensors="pt")
    ids = encoded["input_ids"]
    assert ids.shape == (2, 128)  # the authors' longest text
    assert ids[0, :4].tolist() == [2, 5, 6, 7] and ids[0, -1] == 3 and ids[1, :5].tolist() == [2, 8, 9, 3, 0]
    with torch.no_grad():
        for name in ("image_embeds", "text_embeds"):
            one, other = (getattr(which(**encoded), name) for which in (original, model))
            assert (one - other).abs().max() < 1e-6


def test_biovil(tmp_path, capsys, cxr_bert_folder):
    picture = make_picture()
    state = make_dual().state_dict()
    tensors = to_layout(state, dual_names(list(state), "", ""))
    path = tmp_path / "biovil_image_resnet50_proj_size_128.pt"
    text = {name: tensor for name, tensor in tensors.items() if name.startswith(("bert.", "cls_projection_head."))}
    torch.save({name: tensor for name, tensor in tensors.items() if name not in text}, path)
    torch.save(text, cxr_bert_folder / "pytorch_model.bin")
    settings = make_dual().config.text_config.to_dict() | {"model_type": "cxr-bert", "projection_size": 16}
    (cxr_bert_folder / "config.json").write_text(json.dumps(settings, default=str))
    run(capsys, path, tmp_path / "biovil", "--text_model", cxr_bert_folder)
    model, processor = load(tmp_path / "biovil")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
    pixels = pixels_of(processor, picture)
    assert pixels.shape == (1, 3, 480, 480) and 0 <= pixels.min() < 0.3 and 0.7 < pixels.max() <= 1
    assert processor.image_processor.resize_edge == 512 and processor.tokenizer.model_max_length == 150
    assert processor.tokenizer("Small effusion.?!").input_ids == [2, 8, 9, 3]  # as hi-ml's TextInput
    message = refuse(capsys, path, tmp_path / "x", "--text_model", cxr_bert_folder, "--to", "clip")
    assert "--to clip needs a CLIP model" in message
