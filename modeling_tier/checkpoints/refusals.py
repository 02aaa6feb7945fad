"""Error messages for files and models that cannot be converted: the kind of each, and the remedy."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

ONLY_VIT = "Only a plain vision transformer with CLIP's own text tower, or timm's with a BERT, can be converted"
SCORED_AS_IT_IS = (
    "tier-eval scores it without a conversion, by its folder, its file or its name on the Hub, if "
    "open_clip_config.json lies beside its weights and the extra [open_clip] is installed (docs/openclip.md)"
)
BPE_FILE = re.compile(r"bpe_simple_vocab\w*\.txt(\.gz)?")  # of openai/CLIP, which CheXzero and OpenCLIP have too
BPE_ADVICE = (
    "is the list of merges of CLIP's tokenizer (OpenAI's, CheXzero's and OpenCLIP's code have it), not a {what}. The "
    "same tokenizer is openai/clip-vit-base-patch32 on the Hub: leave --tokenizer out, or name a folder with it."
)
FIRST_BYTES = {  # of a file: its kind, and the remedy
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself; run `git lfs pull` where it came from.",
    b"<!DOCTYPE": "is a web page, not a checkpoint; download the file itself.",
    b"<html": "is a web page, not a checkpoint; download the file itself.",
    b"\x1f\x8b": "is compressed with gzip; unpack it and name the checkpoint inside.",
    b"\x89HDF\r\n": "is an HDF5 file (Keras or a CheXzero data set), not a PyTorch checkpoint; name a .pt file.",
}


def refuse_file(path: Path) -> None:
    """Raises ValueError for a file whose name or first bytes show that it is not a checkpoint."""
    if BPE_FILE.fullmatch(path.name):
        raise ValueError(f"{path.name} {BPE_ADVICE.format(what='checkpoint')}")
    with open(path, "rb") as file:
        start = file.read(32).lstrip()
    for first, advice in FIRST_BYTES.items():
        if start.lower().startswith(first.lower()):
            raise ValueError(f"{path.name} {advice}")


def refuse_tokenizer(name: str) -> None:
    """Raises ValueError for a tokenizer that is a file; a folder, or a name on the Hub, passes."""
    path = Path(name)
    if path.is_file():
        advice = BPE_ADVICE.format(what="tokenizer folder") if BPE_FILE.fullmatch(path.name) else None
        raise ValueError(f"{path.name} {advice or 'is a file; --tokenizer takes a folder or a name on the Hub.'}")


def refuse_kind(file: Path, kind: str | None, expected: Collection[str], beside: str) -> None:
    """Raises ValueError for weights of another kind than the folder says: its tokenizer and pixels would be wrong."""
    if kind not in expected:
        raise ValueError(
            f"{file.name} holds a model of the kind {kind!r}, but {beside} lies beside it, so the folder is a mixture "
            "of two models. Name the file in its own folder, with its own tokenizer."
        )


def refuse_settings(folder: Path, settings: Mapping) -> None:
    """Raises ValueError for an OpenCLIP model whose configuration describes other towers than CLIP's."""
    model = settings.get("model_cfg") if isinstance(settings.get("model_cfg"), dict) else {}
    vision, text = (
        model.get(name) if isinstance(model.get(name), dict) else {} for name in ("vision_cfg", "text_cfg")
    )
    timm, bert = vision.get("timm_model_name"), text.get("hf_model_name")
    if "siglip" in str(timm).lower() or model.get("init_logit_bias") is not None:
        raise ValueError(
            f"{folder} is a SigLIP model in OpenCLIP's format, which is not a CLIP model: it has a bias, other text "
            "padding and a pooling head. Use its release for transformers (SiglipModel), which tier-eval reads; or "
            f"{SCORED_AS_IT_IS}."
        )
    if "multimodal_cfg" in model:
        raise ValueError(f"{folder} is a CoCa model of OpenCLIP, with a text decoder. {ONLY_VIT}; {SCORED_AS_IT_IS}.")
    if bert and timm:
        return  # biomedclip.py checks these
    if bert:
        raise ValueError(
            f"{folder} is an OpenCLIP model with a vision transformer for images and {bert} for texts. {ONLY_VIT}; "
            f"{SCORED_AS_IT_IS}. To train from such towers, pass --vision_model and --text_model."
        )
    if timm:
        raise ValueError(
            f"{folder} is an OpenCLIP model with the image tower {timm} of timm. {ONLY_VIT}; choose such a model (for "
            f"example ViT-B-32), or {SCORED_AS_IT_IS}."
        )
    if isinstance(vision.get("layers"), list):
        raise ValueError(
            f"{folder} is an OpenCLIP model with a ResNet as image tower (layers {vision['layers']}, as RN50). "
            f"{ONLY_VIT}; choose such a model (for example ViT-B-32), or {SCORED_AS_IT_IS}."
        )


def refuse_other_models(name: str, tensors: Collection[str]) -> None:
    """Raises ValueError for a file whose tensors have the names of another kind of model."""
    if has_prefix(tensors, "visual.attnpool.", "visual.layer"):
        raise ValueError(
            f"{name} is a CLIP model with a ResNet as image tower (such as RN50). {ONLY_VIT}; choose such a model "
            f"(for example ViT-B-32), or {SCORED_AS_IT_IS}."
        )
    if has_prefix(tensors, "visual.trunk."):
        if "logit_bias" in tensors:
            raise ValueError(
                f"{name} is a SigLIP model in OpenCLIP's format, which is not a CLIP model. Use its release for "
                f"transformers (SiglipModel), which tier-eval reads; or {SCORED_AS_IT_IS}."
            )
        if not has_prefix(tensors, "text.transformer.embeddings."):
            raise ValueError(
                f"{name} is an OpenCLIP model with an image tower of timm and CLIP's text tower. {ONLY_VIT}; "
                f"{SCORED_AS_IT_IS}."
            )
    if has_prefix(tensors, "bert."):
        raise ValueError(
            f"{name} holds a BERT, such as CXR-BERT, BioViL's text tower. Name BioViL's image file as the checkpoint, "
            "and the folder of CXR-BERT with --text_model."
        )


def refuse_model_type(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises ValueError for a folder that does not hold a CLIP model, by its config.json."""
    model_type = config.get("model_type")
    if "align_transformer_config" in config:
        raise ValueError(f"{folder} holds RadZero, which needs no conversion: tier-eval reads the folder as it is.")
    if model_type == "cxr-bert":
        raise ValueError(
            f"{folder} holds CXR-BERT, BioViL's text tower, without an image tower. Name BioViL's image file "
            "(biovil_image_resnet50_proj_size_128.pt) as the checkpoint, and this folder with --text_model."
        )
    if model_type in ("siglip", "siglip2"):
        raise ValueError(
            f"{folder} holds a SigLIP model of transformers, which is not a CLIP model and needs no conversion: "
            "tier-eval reads the folder as it is."
        )
    if model_type == "tier_siglip":
        raise ValueError(
            f"{folder} holds a TierSiglipModel, which is not a CLIP model: its to_siglip() makes a SiglipModel of "
            "transformers with identical logits."
        )
    raise ValueError(f"{folder} holds a model of type {model_type!r}, which cannot be converted.")


def has_prefix(names: Collection[str], *prefixes: str) -> bool:
    return any(name.startswith(prefixes) for name in names)
