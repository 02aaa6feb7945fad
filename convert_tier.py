"""
Converts a checkpoint of another code base to a model of this package, with the processor that belongs to it; or a CLIP
model to what transformers or OpenCLIP load on their own.

    tier-convert best_64_5e-05_original_22000_0.864.pt models/chexzero            # CheXzero, as released
    tier-convert ViT-B-32.pt models/clip                                          # OpenAI's CLIP, as released
    tier-convert best_model.pt models/tier                                        # TIER, as its authors save it
    tier-convert biovil_image_resnet50_proj_size_128.pt models/biovil --text_model BiomedVLP-CXR-BERT-specialized
    tier-convert CLIP-ViT-B-32-laion2B-s34B-b79K models/laion                     # a folder of OpenCLIP or of CLIP
    tier-convert runs/mine models/mine_openclip --to openclip                     # and back

The output is loaded with AutoModel.from_pretrained, and read by train_tier.py and eval_zeroshot.py. Nothing in a
checkpoint is ever run: a file that would run code while it is read is refused. Exit code 0, or 2 with one sentence on
what is wrong; then nothing was written.
"""

import argparse
import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from command_line import Parser, can_write, command_name, one_sentence_errors

TARGETS = ("tier", "clip", "openclip")
CLIP_TOKENIZER = "openai/clip-vit-base-patch32"
CXR_BERT = "microsoft/BiomedVLP-CXR-BERT-specialized"
TIER_MAX_LENGTH = 128  # tokens (authors' code, Modeling/CLIP_Embedding.py:79-82)
CLIP_VOCABULARY = 49408  # tokens of the tokenizer that OpenCLIP brings along
RESIZE_MODES = {"shortest": "crop", "longest": "pad", "squash": "squash"}  # OpenCLIP's name: TierImageProcessor's
NO_WEIGHTS = (
    "the checkpoint does not say with which entropy weights it was trained, so both are 0; to train on, pass "
    "--token_entropy_weight and --patch_entropy_weight."
)
KIND_NAMES = {
    "openai": "OpenAI CLIP",
    "chexzero": "CheXzero",
    "openclip": "OpenCLIP",
    "clip": "a CLIP model of transformers",
    "tier": "TIER, as its authors save it",
    "biovil": "BioViL's image tower",
}

COMMAND = command_name("tier-convert", __file__)


def build_parser() -> Parser:
    parser = Parser(
        prog=COMMAND,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoint", help="file (.pt, .bin, .safetensors) or folder of a model (of transformers or OpenCLIP)"
    )
    parser.add_argument("output", help="folder to write; it must not exist, or be empty")
    parser.add_argument(
        "--to",
        choices=TARGETS,
        default="tier",
        help="what to write: a model of this package, CLIPModel of transformers, or OpenCLIP's weights and "
        "configuration (default: %(default)s)",
    )
    parser.add_argument(
        "--kind",
        choices=tuple(KIND_NAMES),
        help="what the checkpoint is (default: found out). Needed for a .pt file of bare tensors that is not called "
        "as CheXzero's released ones are: OpenAI's, CheXzero's and OpenCLIP's differ in the pixels they take, which "
        "no tensor tells",
    )
    parser.add_argument(
        "--activation",
        choices=("gelu", "quick_gelu"),
        help="of an OpenCLIP checkpoint without its open_clip_config.json, whose tensors do not tell (default: gelu, "
        'as in OpenCLIP; models named "-quickgelu" and those trained on from OpenAI\'s weights have quick_gelu)',
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FOLDER_OR_NAME",
        help="the model's tokenizer, a folder or a name on the Hub (default: the one in the checkpoint's folder; else "
        f"{CLIP_TOKENIZER}, or {CXR_BERT} for TIER)",
    )
    parser.add_argument(
        "--text_model", metavar="FOLDER", help=f"BioViL only: the folder of CXR-BERT, a download of {CXR_BERT}"
    )
    return parser


def check_output(folder: Path) -> None:
    """ValueError when the folder could not be written or holds something; known before any work."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"the output {folder} exists and is not an empty folder; name another one.")
    if not can_write(folder.parent):
        raise ValueError(f"the output folder {folder} cannot be written; name another one.")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` when all of it is written and is removed when anything fails."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rmdir()  # empty, see check_output
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_tokenizer(source, model, args: argparse.Namespace):
    """
    The tokenizer of a converted model; it truncates to what the model was trained on, begin and end kept.

    Raises:
        ValueError: it does not load, or its tokens are not the model's.
    """
    from transformers import AutoTokenizer, BertTokenizer, CLIPConfig

    from modeling_tier.checkpoints.others import refuse_tokenizer
    from processing_tier.hub_names import check_hub_name

    text_config = model.config.text_config
    is_clip = isinstance(model.config, CLIPConfig)
    refuse_tokenizer(args.tokenizer or "")
    name = args.tokenizer or args.text_model or (CLIP_TOKENIZER if is_clip else CXR_BERT)
    if args.tokenizer is None and source.path.is_dir() and (source.path / "tokenizer_config.json").is_file():
        name = str(source.path)
    check_hub_name(name, "tokenizer")
    try:
        if is_clip:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        else:  # CXR-BERT's own class is remote code, and BERT's in all that matters here
            tokenizer = BertTokenizer.from_pretrained(name)
    except Exception as error:  # transformers raises many kinds for damaged files
        files = "tokenizer.json, or vocab.json and merges.txt" if is_clip else "vocab.txt"
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(
            f"no tokenizer can be loaded from {name!r} ({reason}); name a folder that holds {files} with --tokenizer."
        ) from None
    if len(tokenizer) > text_config.vocab_size:
        raise ValueError(
            f"the tokenizer {name!r} has {len(tokenizer)} tokens, the model {text_config.vocab_size}; name the "
            "model's own with --tokenizer."
        )
    if not is_clip:
        longest = TIER_MAX_LENGTH if source.kind == "tier" else text_config.max_position_embeddings
        tokenizer.model_max_length = min(longest, text_config.max_position_embeddings)
        return tokenizer
    # 2 marks an old configuration, which pools the text at its highest token id.
    end = text_config.vocab_size - 1 if text_config.eos_token_id == 2 else text_config.eos_token_id
    if tokenizer.eos_token_id != end:
        raise ValueError(
            f"the tokenizer {name!r} ends a text with the token {tokenizer.eos_token_id}, the model with {end}; name "
            "the model's own with --tokenizer."
        )
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(text_config, token, getattr(tokenizer, token))
    tokenizer.model_max_length = text_config.max_position_embeddings
    return tokenizer


def make_image_processor(source, image_size: int):
    """
    The pixels that a checkpoint was trained on.

    Raises:
        ValueError: the checkpoint's own settings ask for something that TierImageProcessor does not do.
    """
    from transformers.image_utils import PILImageResampling

    from processing_tier import TierImageProcessor

    size = {"height": image_size, "width": image_size}
    if source.kind == "chexzero":
        # The 320 px model takes the padded square as it is (train.py:69-76 of CheXzero).
        return TierImageProcessor.chexzero(size=size, **({"resize_edge": None} if image_size == 320 else {}))
    if source.kind == "tier":
        return TierImageProcessor.tier(size=size)
    if source.kind == "biovil":
        return TierImageProcessor.biovil(size=size)
    if source.kind == "clip":
        return from_stored(source.path, size)
    settings = source.settings.get("preprocess_cfg") or {}  # of OpenCLIP; its defaults are OpenAI's pixels
    mode, filter_name = settings.get("resize_mode", "shortest"), settings.get("interpolation", "bicubic")
    if mode not in RESIZE_MODES or filter_name not in ("bicubic", "bilinear"):
        raise ValueError(f"open_clip_config.json asks for resize_mode={mode!r} and interpolation={filter_name!r}.")
    options = {
        "geometry": RESIZE_MODES[mode],
        "size": size,
        "resample": PILImageResampling[filter_name.upper()],
        "image_mean": settings.get("mean"),
        "image_std": settings.get("std"),
    }
    return TierImageProcessor(**{name: value for name, value in options.items() if value is not None})


def from_stored(folder: Path, size: dict[str, int]):
    """The image processor of a folder of transformers: ours as it is, CLIP's as ours; CLIP's pixels without one."""
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    from processing_tier import TierImageProcessor

    if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        return TierImageProcessor(geometry="crop", size=size)
    try:
        stored = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
        if isinstance(stored, TierImageProcessor):
            return stored
        image_processor = TierImageProcessor.from_clip(stored)
    except Exception as error:  # likewise
        raise ValueError(
            f"the image processor of {folder} cannot be read ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); mend or remove its preprocessor_config.json."
        ) from None
    if dict(image_processor.size) != size:
        raise ValueError(f"the image processor of {folder} does not make squares of {size['height']} pixels.")
    return image_processor


def to_stock(image_processor):
    """CLIP's own image processor for the same pixels; None where it cannot make them (see [`TierImageProcessor`])."""
    from transformers import CLIPImageProcessorPil

    size = dict(image_processor.size)
    options = {name: getattr(image_processor, name) for name in ("resample", "image_mean", "image_std")}
    if image_processor.geometry == "crop":
        edge = image_processor.resize_edge or size["height"]
        return CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size=size, **options)
    if image_processor.geometry == "squash":
        return CLIPImageProcessorPil(size=size, do_center_crop=False, **options)
    return None


def write_tier(folder: Path, model, image_processor, tokenizer) -> list[str]:
    """A model of this package and its processor; what the user has to know."""
    from processing_tier import TierProcessor

    # The model normalises uint8 pixels itself: with the same numbers.
    model.config.pixel_mean = list(image_processor.image_mean)
    model.config.pixel_std = list(image_processor.image_std)
    model.save_pretrained(folder)
    TierProcessor(image_processor, tokenizer).save_pretrained(folder)
    return []


def write_clip(folder: Path, model, image_processor, tokenizer) -> list[str]:
    """What `CLIPModel.from_pretrained` loads; likewise."""
    from transformers import CLIPProcessor

    from processing_tier import TierProcessor

    stock = to_stock(image_processor)
    model.to_clip().save_pretrained(folder)
    if stock is not None:
        CLIPProcessor(stock, tokenizer).save_pretrained(folder)
        return []
    TierProcessor(image_processor, tokenizer).save_pretrained(folder)
    return [
        "CLIP's own image processor cannot make this model's pixels: load the processor of this folder with "
        "AutoProcessor.from_pretrained(..., trust_remote_code=True)."
    ]


def write_openclip(folder: Path, model, image_processor, tokenizer, name: str) -> list[str]:
    """What `open_clip.create_model("local-dir:...")` loads; likewise."""
    from safetensors.torch import save_file
    from transformers.image_utils import PILImageResampling

    from modeling_tier.checkpoints import OPENCLIP_CONFIG, OPENCLIP_WEIGHTS, to_openclip

    tensors, model_cfg = to_openclip(model.to_clip())
    notes = []
    if model_cfg["text_cfg"]["vocab_size"] != CLIP_VOCABULARY:
        model_cfg["text_cfg"]["hf_tokenizer_name"] = name  # any name: of a local-dir, the folder itself is taken
        notes.append(f"after an upload, set hf_tokenizer_name in {OPENCLIP_CONFIG} to the name of the repository.")
    filters = {PILImageResampling.BICUBIC: "bicubic", PILImageResampling.BILINEAR: "bilinear"}
    preprocess_cfg = {
        "mean": list(image_processor.image_mean),
        "std": list(image_processor.image_std),
        "interpolation": filters.get(image_processor.resample, "bicubic"),
        "resize_mode": {ours: theirs for theirs, ours in RESIZE_MODES.items()}[image_processor.geometry],
    }
    if image_processor.resize_edge or image_processor.resample not in filters:
        notes.append(
            "OpenCLIP's transforms come close to this model's pixels, but only TierImageProcessor makes them."
        )
    save_file(tensors, folder / OPENCLIP_WEIGHTS, metadata={"format": "pt"})
    config = json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}, indent=2)
    (folder / OPENCLIP_CONFIG).write_text(config + "\n", encoding="utf-8")
    tokenizer.save_pretrained(folder)
    return notes


def convert(args: argparse.Namespace) -> None:
    """Everything that the command does."""
    # Imported here, so that --help and a mistyped option answer at once
    from transformers import CLIPConfig
    from transformers.utils import logging

    from modeling_tier.checkpoints import load_source, open_source

    logging.disable_progress_bar()  # those of loading and writing weights
    output = Path(os.path.abspath(args.output))
    check_output(output)

    # 1. Model
    source = open_source(args.checkpoint, args.kind)
    print(f"Reading {args.checkpoint}: {KIND_NAMES[source.kind]}")
    model = load_source(source, args.activation, args.text_model)
    is_clip = isinstance(model.config, CLIPConfig)
    if args.to != "tier" and not is_clip:
        raise ValueError(f"a model of two towers of their own is no CLIP; --to {args.to} cannot be had.")
    notes = []
    if source.kind == "openclip" and not source.settings and args.activation is None:
        notes.append(
            "there is no open_clip_config.json, so gelu is taken for the activation; if the model has quick_gelu, "
            "convert again with --activation quick_gelu."
        )

    if source.kind == "tier":
        weights = f"token_entropy_weight={model.config.token_entropy_weight:g} (lam_words), "
        weights += f"patch_entropy_weight={model.config.patch_entropy_weight:g} (lam_patches)"
        said = "lam_words" in source.arguments or "lam_patches" in source.arguments
        notes.append(f"the checkpoint was trained with {weights}." if said else NO_WEIGHTS)

    # 2. Processor
    tokenizer = load_tokenizer(source, model, args)
    image_processor = make_image_processor(
        source, model.config.vision_config.image_size if is_clip else model.config.image_size
    )

    # 3. Files
    with new_folder(output) as folder:
        if args.to == "openclip":
            notes += write_openclip(folder, model, image_processor, tokenizer, output.name)
        else:
            write = write_tier if args.to == "tier" else write_clip
            notes += write(folder, model, image_processor, tokenizer)
    print(f"Wrote {args.output}: {type(model).__name__}, {model.num_parameters():,} parameters, as {args.to}")
    for note in notes:
        print(f"Note: {note}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; SystemExit(2) after one sentence on stderr when the input is bad."""
    with one_sentence_errors(COMMAND):
        convert(build_parser().parse(argv))


if __name__ == "__main__":
    main()
