"""
Convert a checkpoint of another code base to a model of this package, with its processor. Or convert a CLIP model of
this package for transformers or OpenCLIP.

    tier-convert best_64_5e-05_original_22000_0.864.pt models/chexzero            # CheXzero, as released
    tier-convert ViT-B-32.pt models/clip                                          # OpenAI's CLIP, as released
    tier-convert best_model.pt models/tier                                        # TIER, as its authors save it
    tier-convert biovil_image_resnet50_proj_size_128.pt models/biovil --text_model BiomedVLP-CXR-BERT-specialized
    tier-convert CLIP-ViT-B-32-laion2B-s34B-b79K models/laion                     # a folder of OpenCLIP or of CLIP
    tier-convert microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224 models/biomedclip     # a name on the Hub
    tier-convert runs/mine models/mine_openclip --to openclip                     # and back

AutoModel.from_pretrained, tier-train and tier-eval load the output. Code inside a checkpoint never runs: the
command refuses a file that would run code while it is read. The exit code is 0, or 2 after one sentence about the
fault; in that case, nothing is written.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from command_line import Parser, command_name, one_sentence_errors
from evaluation_tier.output.writing import can_write

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    from modeling_tier.checkpoints import Source

TARGETS = ("tier", "clip", "openclip")
KIND_NAMES = {
    "openai": "OpenAI CLIP",
    "chexzero": "CheXzero",
    "openclip": "OpenCLIP",
    "clip": "a CLIP model of transformers",
    "tier": "TIER, as its authors save it",
    "biovil": "BioViL",
    "biovil_t": "BioViL-T",
    "biomedclip": "OpenCLIP with timm's ViT and a BERT, as BiomedCLIP",
    "chexficient": "CheXficient",
}
WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")  # of a file, never of a name on the Hub
COMMAND = command_name("tier-convert", __file__)


def build_parser() -> Parser:
    parser = Parser(COMMAND, __doc__)
    parser.add_argument(
        "checkpoint",
        help="file (.pt, .bin, .safetensors), folder of a model (of transformers or OpenCLIP), or name on the Hub "
        "(owner/name, or owner/name@revision)",
    )
    parser.add_argument("output", help="folder to write; it must not exist, or be empty")
    parser.add_argument(
        "--to",
        choices=TARGETS,
        default="tier",
        help="what to write: a model of this package, a CLIPModel of transformers, or OpenCLIP's weights and "
        "configuration (default: %(default)s)",
    )
    parser.add_argument(
        "--kind",
        choices=tuple(KIND_NAMES),
        help="the code base of the checkpoint (default: detected). A .pt file of bare tensors needs it (except "
        "CheXzero's own releases): OpenAI, CheXzero and OpenCLIP expect different pixels, and the tensors do not "
        "show which",
    )
    parser.add_argument(
        "--activation",
        choices=("gelu", "quick_gelu"),
        help="activation of an OpenCLIP checkpoint without open_clip_config.json (default: gelu, as in OpenCLIP). "
        'Models named "-quickgelu" and those fine-tuned from OpenAI\'s weights need quick_gelu',
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FOLDER_OR_NAME",
        help="folder, or name on the Hub, of the model's tokenizer (default: the original's)",
    )
    parser.add_argument(
        "--text_model", metavar="FOLDER", help="BioViL only: the folder of its CXR-BERT (default: the checkpoint's)"
    )
    return parser


def check_output(folder: Path) -> None:
    """Raises ValueError, before any work, for a folder that cannot be written or is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"the output {folder} exists and is not an empty folder; name another one.")
    if not can_write(folder.parent):
        raise ValueError(f"the output folder {folder} cannot be written; name another one.")


def find_checkpoint(name: str) -> Path:
    """The path of a file or folder, or of the download of a name on the Hub; a mistyped path is not looked up."""
    from modeling_tier.checkpoints import download_checkpoint
    from processing_tier.hub_names import MODEL_NAME, check_hub_name

    path = Path(name)
    if path.exists() or "/" not in name or not MODEL_NAME.fullmatch(name) or path.suffix in WEIGHT_SUFFIXES:
        return path
    check_hub_name(name, "checkpoint")
    return download_checkpoint(name)


def choose_tokenizer(args: argparse.Namespace, source: "Source", is_clip: bool) -> str:
    """The folder or name of the tokenizer. ValueError for a file, or for a name that the Hub does not allow."""
    from modeling_tier.checkpoints import find_tokenizer
    from modeling_tier.checkpoints.refusals import refuse_tokenizer
    from processing_tier.hub_names import check_hub_name

    name = args.tokenizer or args.text_model or find_tokenizer(source, is_clip)
    refuse_tokenizer(name)
    check_hub_name(name, "tokenizer")
    return name


def write_model(
    target: str, folder: Path, model: "PreTrainedModel", processor: "ProcessorMixin", name: str
) -> list[str]:
    """Writes the model with the files that its code base needs; returns notes for the user."""
    from transformers import CLIPProcessor

    from modeling_tier.checkpoints import OPENCLIP_CONFIG, write_openclip
    from processing_tier.checkpoint_image_processors import to_openclip_preprocessing, to_stock

    image_processor, tokenizer = processor.image_processor, processor.tokenizer
    if target == "tier":
        # The model normalises uint8 pixels itself, with the same numbers.
        model.config.pixel_mean = list(image_processor.image_mean)
        model.config.pixel_std = list(image_processor.image_std)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return []
    if target == "clip":
        model.to_clip().save_pretrained(folder)
        stock = to_stock(image_processor)
        (processor if stock is None else CLIPProcessor(stock, tokenizer)).save_pretrained(folder)
        note = (
            "CLIP's own image processor cannot make this model's pixels: load the processor of this folder with "
            "AutoProcessor.from_pretrained(..., trust_remote_code=True)."
        )
        return [note] if stock is None else []
    preprocess_cfg, is_exact = to_openclip_preprocessing(image_processor)
    notes = []
    if write_openclip(folder, model.to_clip(), preprocess_cfg, tokenizer_name=name):
        notes.append(f"after an upload, set hf_tokenizer_name in {OPENCLIP_CONFIG} to the name of the repository.")
    if not is_exact:
        notes.append("OpenCLIP's transforms only approximate this model's pixels; TierImageProcessor makes them.")
    tokenizer.save_pretrained(folder)
    return notes


def convert(args: argparse.Namespace) -> None:
    """Runs the command."""
    # Imported here, so that --help and a mistyped option answer at once
    from transformers import CLIPConfig
    from transformers.utils import logging

    from modeling_tier.checkpoints import describe_assumptions, load_checkpoint_tokenizer, load_source, open_source
    from modeling_tier.checkpoints.output_folder import new_folder
    from modeling_tier.checkpoints.published import published_name
    from processing_tier import TierProcessor
    from processing_tier.checkpoint_image_processors import make_checkpoint_image_processor
    from processing_tier.records.identities import keep_origin

    logging.disable_progress_bar()  # those of loading and writing weights
    output = Path(os.path.abspath(args.output))
    check_output(output)

    source = open_source(find_checkpoint(args.checkpoint), args.kind)
    print(f"Reading {args.checkpoint}: {KIND_NAMES[source.kind]}")
    model = load_source(source, args.activation, args.text_model)
    notes = describe_assumptions(source, model.config, args.activation)
    is_clip = isinstance(model.config, CLIPConfig)
    if args.to != "tier" and not is_clip:
        raise ValueError(f"--to {args.to} needs a CLIP model, and this one joins two other towers; leave --to out.")

    tokenizer = load_checkpoint_tokenizer(choose_tokenizer(args, source, is_clip), model.config, source)
    image_size = model.config.vision_config.image_size if is_clip else model.config.image_size
    image_processor = make_checkpoint_image_processor(source.kind, source.folder, source.settings, image_size)

    with new_folder(output) as folder:
        notes += write_model(args.to, folder, model, TierProcessor(image_processor, tokenizer), output.name)
        if args.to == "tier":
            keep_origin(folder, published_name(source, args.checkpoint))
    print(f"Wrote {args.output}: {type(model).__name__}, {model.num_parameters():,} parameters, as {args.to}")
    for note in notes:
        print(f"Note: {note}")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; SystemExit(2) after one sentence on stderr when the input is bad."""
    with one_sentence_errors(COMMAND):
        convert(build_parser().parse(argv))


if __name__ == "__main__":
    main()
