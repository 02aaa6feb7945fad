"""What cannot be converted gets a sentence that says what it is and what to do."""

import gzip
import json

import pytest
import torch
from safetensors.torch import save_file

from modeling_tier.checkpoints import open_source
from modeling_tier.checkpoints.refusals import refuse_tokenizer

ROBERTA = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": {"hf_model_name": "roberta-base", "hf_pooler_type": "mean_pooler"},
}
SIGLIP = {
    "embed_dim": 768,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map"},
    "text_cfg": {"context_length": 64, "pool_type": "last", "no_causal_mask": True},
}
RN50 = {"embed_dim": 1024, "vision_cfg": {"layers": [3, 4, 6, 3], "width": 64}, "text_cfg": {"width": 512}}
CONVNEXT = {"embed_dim": 640, "vision_cfg": {"timm_model_name": "convnext_base"}, "text_cfg": {"width": 640}}
COCA = {"vision_cfg": {"layers": 12}, "text_cfg": {"width": 512}, "multimodal_cfg": {"width": 512}}


@pytest.mark.parametrize(
    "settings, sentences",
    [
        (
            ROBERTA,
            ("with a vision transformer for images and roberta-base for texts", "the extra [open_clip]"),
        ),
        (SIGLIP, ("is a SigLIP model in OpenCLIP's format", "SiglipModel), which tier-eval reads")),
        (RN50, ("with a ResNet as image tower (layers [3, 4, 6, 3], as RN50)", "for example ViT-B-32")),
        (CONVNEXT, ("with the image tower convnext_base of timm", "for example ViT-B-32")),
        (COCA, ("is a CoCa model of OpenCLIP, with a text decoder", "Only a plain vision transformer")),
    ],
    ids=["RoBERTa", "SigLIP", "RN50", "ConvNeXt", "CoCa"],
)
@pytest.mark.parametrize("named", ["folder", "file"])
def test_openclip_models_with_other_towers(tmp_path, settings, sentences, named):
    save_file({"a": torch.zeros(2)}, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": {}}))
    with pytest.raises(ValueError) as error:
        open_source(tmp_path if named == "folder" else tmp_path / "open_clip_model.safetensors")
    assert all(sentence in str(error.value) for sentence in sentences)


@pytest.mark.parametrize(
    "name, tensors, sentence",
    [
        (
            "RN50.pt",
            ("visual.conv1.weight", "visual.layer1.0.conv1.weight"),
            "ResNet as image tower (such as RN50)",
        ),
        (
            "RN50.pt",
            ("visual.conv1.weight", "visual.attnpool.q_proj.bias"),
            "ResNet as image tower (such as RN50)",
        ),
        (
            "open_clip_pytorch_model.bin",
            ("visual.trunk.cls_token",),
            "is an OpenCLIP model with an image tower of timm and CLIP's text tower",
        ),
        ("siglip.bin", ("visual.trunk.cls_token", "logit_bias"), "is a SigLIP model in OpenCLIP's format"),
        ("pytorch_model.bin", ("bert.embeddings.LayerNorm.bias",), "such as CXR-BERT, BioViL's text tower"),
    ],
)
def test_tensors_of_other_models(tmp_path, name, tensors, sentence):
    torch.save({tensor: torch.zeros(1) for tensor in tensors}, tmp_path / name)
    with pytest.raises(ValueError) as error:
        open_source(tmp_path / name)
    assert str(error.value).startswith(f"{name} ") and sentence in str(error.value)
    # as of a folder: another command scores it
    assert ("tier-eval scores it without a conversion, by its folder, its file" in str(error.value)) != (
        "BERT" in sentence
    )


@pytest.mark.parametrize(
    "model_type, sentence",
    [
        ("cxr-bert", "holds CXR-BERT, BioViL's text tower, without an image tower. Name BioViL's image file"),
        ("siglip", "tier-eval reads the folder as it is"),
        ("tier_siglip", r"its to_siglip\(\) makes a SiglipModel of transformers with identical logits"),
        ("vit", "holds a model of type 'vit', which cannot be converted"),
    ],
)
def test_folders_of_transformers_with_other_models(tmp_path, model_type, sentence):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ValueError, match=sentence):
        open_source(tmp_path)


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        (
            "bpe_simple_vocab_16e6.txt.gz",
            gzip.compress(b"#version: 0.2", mtime=0),
            "is the list of merges of CLIP's tokenizer (OpenAI's, CheXzero's and OpenCLIP's code have it), not a "
            "checkpoint",
        ),
        ("best_model.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
        ("best_model.pt", b"<!doctype html><html>", "is a web page, not a checkpoint; download the file itself"),
        ("best_model.pt.gz", gzip.compress(b"a", mtime=0), "is compressed with gzip; unpack it"),
        ("cxr.h5", b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    ],
)
def test_files_that_are_not_checkpoints(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        open_source(tmp_path / name)
    assert str(error.value).startswith(f"{name} {sentence}")


def test_a_tokenizer_that_is_a_file(tmp_path):
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(gzip.compress(b"#version: 0.2", mtime=0))
    with pytest.raises(ValueError, match="not a tokenizer folder. The same tokenizer is openai/clip-vit-base-patch32"):
        refuse_tokenizer(str(path))
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match="vocab.json is a file; --tokenizer takes a folder or a name on the Hub"):
        refuse_tokenizer(str(tmp_path / "vocab.json"))
    refuse_tokenizer(str(tmp_path))
    refuse_tokenizer("openai/clip-vit-base-patch32")
