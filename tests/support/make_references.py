"""
Writes references/*.json with the original projects' own code, in an environment of its own:

    python3.11 -m venv /tmp/original && /tmp/original/bin/pip install torch open_clip_torch timm transformers==5.23.0
    /tmp/original/bin/pip install SimpleITK scikit-image && /tmp/original/bin/pip install --no-deps hi-ml-multimodal
    git clone https://github.com/cwangrun/CheXficient /tmp/CheXficient                # at 93b55e9
    PYTHONPATH=tests/support:/tmp/CheXficient /tmp/original/bin/python tests/support/make_references.py

Written with open_clip_torch 3.3.0, timm 1.0.31, torchvision 0.28.0, hi-ml-multimodal 0.2.2, torch 2.13.0.
"""

import json
import sys
import tempfile
import types
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from seeded_checkpoints import (
    OPEN_CLIP_BERT,
    OPEN_CLIP_SETTINGS,
    REFERENCES,
    TEXTS,
    WORDS,
    sample_pixels,
    seeded_state,
    write_pictures,
    write_vocabulary,
)
from torch.nn import functional as F

BERT = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
VIT = {"embed_dim": 128, "depth": 2, "num_heads": 2}
DIM = 24


def fill(module):
    """Fills a module with the numbers that the tests will make, and returns names and shapes of its tensors."""
    shapes = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    module.load_state_dict(seeded_state(shapes))
    module.eval()
    return shapes


# More than 7 parameters: what a reference holds
def write(name, shapes, settings, texts, ids, pixels, encode_image, every=1):
    """Everything is rounded to what float32 can tell; of embeddings, one number in `every` is written."""
    images = {key: encode_image(value) for key, value in pixels.items()}
    REFERENCES.mkdir(exist_ok=True)
    content = {
        "tensors": shapes,
        "settings": settings,
        "input_ids": [row[row != 0].tolist() for row in ids],
        "text_embeds": F.normalize(texts, dim=-1)[:, ::every].tolist(),
        "pixels": {key: sample_pixels(value).tolist() for key, value in pixels.items()},
        "image_embeds": {key: F.normalize(value, dim=-1)[0, ::every].tolist() for key, value in images.items()},
    }
    text = json.dumps(json.loads(json.dumps(content), parse_float=lambda number: round(float(number), 8)))
    (REFERENCES / f"{name}.json").write_text(text + "\n")


def biomedclip(folder):
    """OpenCLIP's model, transforms and tokenizer of a folder, with a small ViT of timm and a small BERT."""
    import open_clip
    from timm.models import register_model
    from timm.models.vision_transformer import VisionTransformer
    from transformers import BertConfig

    def vit_tiny_patch16_64(pretrained=False, **options):
        options = {key: value for key, value in options.items() if key in ("global_pool", "num_classes")}
        model = VisionTransformer(img_size=64, patch_size=16, **VIT, **options)
        model.default_cfg = {}
        return model

    sys.modules[__name__].__all__ = ["vit_tiny_patch16_64"]
    vit_tiny_patch16_64.__module__ = __name__
    register_model(vit_tiny_patch16_64)
    BertConfig(vocab_size=len(WORDS), max_position_embeddings=40, **BERT).save_pretrained(folder / "bert")
    write_vocabulary(folder / "bert", lower_case=True)
    pictures = write_pictures(folder / "pictures")
    for pool, projection in (("", "mlp"), ("avg", "linear")):
        settings = {
            "model_cfg": {
                "embed_dim": DIM,
                "vision_cfg": {
                    "timm_model_name": "vit_tiny_patch16_64",
                    "timm_model_pretrained": False,
                    "timm_pool": pool,
                    "timm_proj": "linear",
                    "image_size": 64,
                },
                "text_cfg": {
                    "hf_model_name": str(folder / "bert"),
                    "hf_tokenizer_name": str(folder / "bert"),
                    "hf_proj_type": projection,
                    "hf_pooler_type": "cls_last_hidden_state_pooler",
                    "context_length": 24,
                    "hf_model_pretrained": False,
                },
            },
            "preprocess_cfg": {
                "mean": [0.48145466, 0.4578275, 0.40821073],
                "std": [0.26862954, 0.26130258, 0.27577711],
            },
        }
        place = folder / f"open_clip{pool}"
        place.mkdir()
        (place / "open_clip_config.json").write_text(json.dumps(settings))
        options = {key: value for key, value in settings["model_cfg"].items()}
        model = open_clip.CustomTextCLIP(**options)
        shapes = fill(model)
        torch.save(model.state_dict(), place / "open_clip_pytorch_model.bin")
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{place}")
        tokenizer = open_clip.tokenizer.HFTokenizer(str(folder / "bert"), context_length=24)
        ids = tokenizer(TEXTS)
        settings["model_cfg"]["text_cfg"] |= {"hf_model_name": "x/BiomedBERT", "hf_tokenizer_name": "x/BiomedBERT"}
        pixels = {name: preprocess(Image.open(path))[None] for name, path in pictures.items()}
        model.eval()
        with torch.no_grad():
            name = "biomedclip" + ("_avg" if pool else "")
            write(name, shapes, settings, model.encode_text(ids), ids, pixels, model.encode_image)


def biomedclip_full(folder):
    """The published sizes: open_clip_config.json of microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224."""
    import open_clip
    from transformers import BertConfig

    BertConfig(vocab_size=30522, max_position_embeddings=512).save_pretrained(folder / "bert")
    write_vocabulary(folder / "bert", lower_case=True)
    model_cfg = {
        "embed_dim": 512,
        "vision_cfg": {
            "timm_model_name": "vit_base_patch16_224",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 224,
        },
        "text_cfg": {
            "hf_model_name": str(folder / "bert"),
            "hf_tokenizer_name": str(folder / "bert"),
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": 256,
        },
    }
    text_cfg = {**model_cfg["text_cfg"], "hf_model_pretrained": False}
    model = open_clip.CustomTextCLIP(**{**model_cfg, "text_cfg": text_cfg})
    shapes = fill(model)
    tensors = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
    preprocess = open_clip.image_transform(224, is_train=False, **tensors)
    ids = open_clip.tokenizer.HFTokenizer(str(folder / "bert"), context_length=256)(TEXTS)
    pixels = {"wide": preprocess(Image.open(write_pictures(folder / "pictures")["wide"]))[None]}
    name = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
    model_cfg["text_cfg"] |= {"hf_model_name": name, "hf_tokenizer_name": name}
    settings = {"model_cfg": model_cfg, "preprocess_cfg": tensors}
    with torch.no_grad():
        texts = model.encode_text(ids)
        write("biomedclip_full", shapes, settings, texts, ids, pixels, model.encode_image, every=16)


# Sizes of each family: small, and as published
CHEXFICIENT = {  # image size, dimensions, longest text, DINOv2, BERT
    "chexficient": (70, DIM, 24, VIT, {"vocab_size": len(WORDS), "max_position_embeddings": 40, **BERT}),
    "chexficient_full": (378, 512, 256, {"embed_dim": 768, "depth": 12, "num_heads": 12}, {"vocab_size": 28996}),
}
BIOVIL_T = {  # blocks of the ResNet, its classes, dimensions, BERT
    "biovil_t": ([1, 1, 1, 1], 9, DIM, {"vocab_size": len(WORDS), "max_position_embeddings": 80, **BERT}),
    "biovil_t_full": ([3, 4, 6, 3], 1000, 128, {"vocab_size": 30522}),
}


def chexficient(folder):
    """The authors' class, transforms (README.md) and tokenization, with random towers in place of the downloads."""
    for name, sizes in CHEXFICIENT.items():
        chexficient_of(folder / name, name, *sizes)


# More than 7 parameters: the sizes of a model
def chexficient_of(folder, name, size, dim, longest, vit, bert_sizes):
    sys.modules.setdefault("cv2", types.ModuleType("cv2"))  # for figures only
    import models_clip
    import torchvision.transforms as transforms
    from dinov2.models.vision_transformer import DinoVisionTransformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    write_vocabulary(folder / "cased", lower_case=False)
    bert = BertModel(BertConfig(**bert_sizes))
    models_clip.AutoModel = types.SimpleNamespace(from_pretrained=lambda *_, **__: bert)
    models_clip.AutoTokenizer = types.SimpleNamespace(
        from_pretrained=lambda *_, **__: AutoTokenizer.from_pretrained(folder / "cased")
    )
    models_clip.vit_base = partial(DinoVisionTransformer, **vit)
    positions = torch.zeros(1, (size // 14) ** 2 + 1, vit["embed_dim"])
    torch.hub.load_state_dict_from_url = lambda *_, **__: {"pos_embed": positions}
    model = models_clip.CheXficient(image_size=size, proj_dim=dim)
    shapes = fill(model)
    transform = transforms.Compose(
        [
            transforms.Resize(size, interpolation=Image.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.48145466, 0.4578275, 0.40821073], std=[0.26862954, 0.26130258, 0.27577711]),
        ]
    )
    tokenizer = model.text_encoder.tokenizer
    tokens = tokenizer(TEXTS, padding="longest", truncation=True, max_length=longest, return_tensors="pt")
    pictures = write_pictures(folder / "pictures")
    pixels = {name: transform(Image.open(path).convert("RGB"))[None] for name, path in pictures.items()}
    with torch.no_grad():
        texts, settings = model.encode_text(tokens), {"max_length": longest}
        every = dim // DIM
        write(name, shapes, settings, texts, tokens["input_ids"], pixels, model.encode_image, every)


def biovil_t(folder):
    """hi-ml-multimodal's model, inference engines and pixels, with fewer blocks in the ResNet and a small BERT."""
    for name, sizes in BIOVIL_T.items():
        biovil_t_of(folder / name, name, *sizes)


def biovil_t_of(folder, name, blocks, num_classes, dim, bert_sizes):
    import health_multimodal.image.model.encoder as encoder
    from health_multimodal.image import ImageInferenceEngine
    from health_multimodal.image.data.transforms import create_chest_xray_transform_for_inference
    from health_multimodal.image.model.model import ImageModel
    from health_multimodal.image.model.resnet import ResNetHIML
    from health_multimodal.text.data.io import TextInput
    from health_multimodal.text.model import CXRBertModel
    from health_multimodal.text.model.configuration_cxrbert import CXRBertConfig
    from torchvision.models.resnet import Bottleneck
    from transformers import BertTokenizer

    encoder.resnet50 = lambda *_, **__: ResNetHIML(block=Bottleneck, layers=blocks, num_classes=num_classes)
    model = ImageModel(img_encoder_type="resnet50_multi_image", joint_feature_size=dim)
    shapes = fill(model)
    engine = ImageInferenceEngine(model, create_chest_xray_transform_for_inference(resize=512, center_crop_size=448))
    pixels = {
        name: engine.load_and_transform_input_image(path, engine.transform)[0]
        for name, path in write_pictures(folder / "pictures").items()
    }

    def embed(values):  # as ImageInferenceEngine.get_projected_global_embedding
        return model.forward(values).projected_global_embedding

    write_vocabulary(folder / "text", lower_case=True)
    config = CXRBertConfig(projection_size=dim, **bert_sizes, tie_word_embeddings=False)
    text = CXRBertModel(config)
    shapes |= fill(text)
    prompts = TextInput(BertTokenizer.from_pretrained(folder / "text"))
    prompts.tokenizer.batch_encode_plus = lambda batch_text_or_text_pairs, **options: prompts.tokenizer(
        batch_text_or_text_pairs, **options
    )  # gone in transformers 5
    tokens = prompts.tokenize_input_prompts(TEXTS, verbose=False)
    with torch.no_grad():
        texts = text.get_projected_text_embeddings(tokens.input_ids, tokens.attention_mask, normalize_embeddings=True)
        settings = config.to_dict() | {"model_type": "cxr-bert"}
        write(name, shapes, settings, texts, tokens.input_ids, pixels, embed, dim // DIM)


def open_clip_towers(folder):
    """OpenCLIP's model, transforms and tokenizer of a folder, with towers that TierCLIPModel cannot hold."""
    import open_clip
    from transformers import BertConfig

    BertConfig(**OPEN_CLIP_BERT).save_pretrained(folder / "bert")
    pictures = write_pictures(folder / "pictures")
    for name, settings in OPEN_CLIP_SETTINGS.items():
        place = folder / name
        write_vocabulary(place, lower_case=True)
        text_cfg = dict(settings["model_cfg"]["text_cfg"])
        if "hf_model_name" in text_cfg:
            text_cfg["hf_model_name"] = str(folder / "bert")
        used = {**settings, "model_cfg": {**settings["model_cfg"], "text_cfg": text_cfg}}
        (place / "open_clip_config.json").write_text(json.dumps(used))
        options = {"pretrained_text": False, "load_weights": False}
        shapes = fill(open_clip.create_model(f"local-dir:{place}", **options))
        torch.save(seeded_state(shapes), place / "open_clip_pytorch_model.bin")
        model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{place}")
        ids = open_clip.get_tokenizer(f"local-dir:{place}")(TEXTS)
        pixels = {key: preprocess(Image.open(path).convert("RGB"))[None] for key, path in pictures.items()}
        model.eval()
        with torch.no_grad():
            write(name, shapes, settings, model.encode_text(ids), ids, pixels, model.encode_image)


if __name__ == "__main__":
    # torchvision built for CUDA lacks its operators beside torch for CPUs, and then cannot be imported
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for make in (biomedclip, biomedclip_full, chexficient, biovil_t, open_clip_towers):
        with tempfile.TemporaryDirectory() as temporary:
            make(Path(temporary))
