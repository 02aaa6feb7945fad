"""Checkpoints of other projects, made anywhere from the names and shapes of their tensors, with the same numbers."""

import functools
import json
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

BIOVIL_T_IMAGES = "biovil_t_image_model_proj_size_128.pt"
REFERENCES = Path(__file__).with_name("references")
WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] no No acute disease small Small left - sided effusion Effusion . ! ? ' \" the "
    "patient s is heart > < & 2 cm lungs ’ “ ” gt amp ;"
).split()
TEXTS = [  # upper case, punctuation, typographic quotes, entities, one longer than the context, one word
    "No acute disease.",
    "Small left-sided EFFUSION!",
    "the patient’s “effusion” is small...",
    "heart &gt; 2 cm  &amp; lungs.",
    "small effusion . no acute disease " * 12,
    "effusion",
]

# Models of OpenCLIP whose towers TierCLIPModel cannot hold: a ResNet with CLIP's text tower and tokenizer; and, as
# SigLIP's are, a tower of timm with a BERT whose tokens are averaged, a bias, texts without punctuation, and squashed
# pixels
OPEN_CLIP_BERT = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
OPEN_CLIP_BERT |= {"vocab_size": len(WORDS), "max_position_embeddings": 40}
OPEN_CLIP_SETTINGS = {
    "open_clip_resnet": {
        "model_cfg": {
            "embed_dim": 24,
            "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "patch_size": None},
            "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
        },
        "preprocess_cfg": {"interpolation": "bilinear"},
    },
    "open_clip_timm": {
        "model_cfg": {
            "embed_dim": 24,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": {"timm_model_name": "test_resnet", "timm_proj": "linear", "image_size": 96},
            "text_cfg": {
                "context_length": 16,
                "hf_model_name": "made/tiny-bert",
                "hf_tokenizer_name": "made/tiny-bert",
                "tokenizer_kwargs": {"clean": "canonicalize"},
                "hf_proj_type": "mlp",
                "hf_pooler_type": "mean_pooler",
            },
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash", "interpolation": "bicubic"},
    },
}


def make_picture() -> Image.Image:
    """A grey radiograph with structure, wider than high."""
    rows, columns = np.mgrid[:401, :523]
    waves = np.sin(rows / 7) * np.cos(columns / 11) + 0.4 * np.sin(rows * columns / 900)
    return Image.fromarray(np.uint8(128 + 80 * waves.clip(-1.5, 1.5)))


@functools.cache  # several tests write the same checkpoint
def seeded_tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Random numbers that depend on the name alone, of a size at which signals neither vanish nor explode."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    if not shape:
        return torch.tensor(2.9)  # the logit scale
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        noise = 1 + 0.1 * np.abs(noise)
    elif len(shape) == 1 and name.endswith(("weight", "gamma")):
        noise = 1 + 0.1 * noise
    elif len(shape) == 1:
        noise = 0.1 * noise
    elif len(shape) == 3:
        noise = 0.5 * noise  # positions
    else:
        noise = (noise * np.prod(shape[1:]) ** -0.5).astype(np.float32)
    return torch.from_numpy(noise)


def seeded_state(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    return {name: seeded_tensor(name, tuple(shape)) for name, shape in shapes.items()}


def write_vocabulary(folder: Path, lower_case: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower_case}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_pictures(folder: Path) -> dict[str, Path]:
    """A grey picture wider than high, a darker one higher than wide, and the first with 16 bits and an offset."""
    folder.mkdir(parents=True, exist_ok=True)
    wide = make_picture()
    ramp = np.linspace(0, 1, wide.width) ** 2
    high = Image.fromarray((np.asarray(wide)[:390] // 2 * ramp).astype(np.uint8)).rotate(90, expand=True)
    deep = np.asarray(wide).astype(np.uint16) * 97 + 1500
    pictures = {"wide": wide, "high": high, "deep": Image.fromarray(deep)}
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in pictures}


def sample_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """27 numbers from all over an image of shape (1, 3, size, size)."""
    step = pixels.shape[-1] // 3
    return pixels[0, :, 5::step, 7::step][:, :3, :3].flatten()


def reference(name: str) -> dict:
    """Names and shapes of tensors, settings, pixels and embeddings by the original code; see make_references.py."""
    return json.loads((REFERENCES / f"{name}.json").read_text())


def write_biomedclip(folder, name="biomedclip"):
    """The files of the repository on the Hub."""
    content = reference(name)
    write_vocabulary(folder, lower_case=True)
    torch.save(seeded_state(content["tensors"]), folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text(json.dumps(content["settings"]))
    return content


def write_chexficient(folder, name="chexficient"):
    content = reference(name)
    write_vocabulary(folder, lower_case=False)
    save_file(seeded_state(content["tensors"]), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "chexficient", "architectures": ["CheXficient"]}))
    return content


def write_biovil_t(folder, name="biovil_t"):
    content = reference(name)
    write_vocabulary(folder, lower_case=True)
    state = seeded_state(content["tensors"])
    text = {name: tensor for name, tensor in state.items() if name.startswith(("bert.", "cls"))}
    torch.save(text, folder / "pytorch_model.bin")
    torch.save({name: tensor for name, tensor in state.items() if name not in text}, folder / BIOVIL_T_IMAGES)
    (folder / "config.json").write_text(json.dumps(content["settings"]))
    return content


def write_open_clip(folder, name):
    """A folder of OpenCLIP with safetensors; the tokenizer is used if the settings name one."""
    content = reference(name)
    write_vocabulary(folder, lower_case=True)
    save_file(seeded_state(content["tensors"]), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(content["settings"]))
    return content


WRITERS = {"biomedclip": write_biomedclip, "chexficient": write_chexficient, "biovil_t": write_biovil_t}
