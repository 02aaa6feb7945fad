"""Exports a model, from the arguments of `tier-export` to the folder and the text that it prints."""

import argparse
import json
import logging
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import logging as transformers_logging

from evaluation_tier.export.card import change_table, write_card
from evaluation_tier.export.change import measure_change
from evaluation_tier.export.graphs import export_towers, text_length, to_openvino
from evaluation_tier.export.int8 import choose_images, quantize, read_pixels
from evaluation_tier.inputs import Records
from evaluation_tier.models import trained_on
from evaluation_tier.models.loading import is_classifier, load_model, short_names
from evaluation_tier.output.metrics_file import installed_versions, to_json
from evaluation_tier.output.tables import format_number, text_table
from evaluation_tier.scoring.findings import select_findings
from evaluation_tier.scoring.protocols import find_prompts, prompts_name
from modeling_tier.base_tier import TierModelMixin
from modeling_tier.checkpoints.output_folder import new_folder
from modeling_tier.exported_tier import TierExportedConfig, TierExportedModel, file_names, hash_file, import_backend
from modeling_tier.pipeline_tier import custom_pipelines
from modeling_tier.texts_tier import is_padded_to_the_end
from processing_tier import readers
from processing_tier.prompts.loader import prompt_findings
from processing_tier.records.labels import parse_label_values
from processing_tier.records.schema import finding_columns, select_views
from processing_tier.records.table_options import TableOptions

logger = logging.getLogger(__name__)

ONNX = ("onnx", "onnxscript", "onnxruntime")
PACKAGES = {"onnx": ONNX, "openvino": (*ONNX, "openvino")}
BATCH_SIZE = 8  # images in memory at once, in both models


class Data(NamedTuple):
    """The images that an export is calibrated on and measured on."""

    name: str
    split: str
    dataset: datasets.Dataset
    calibration_split: str
    calibration: datasets.Dataset


def run(args: argparse.Namespace) -> str:
    """
    Export the model and return what to print.

    Raises:
        ValueError: for a model that cannot be exported, or data that do not fit.
        ImportError: a package is missing.
    """
    transformers_logging.disable_progress_bar()  # those of loading weights
    check_packages(args.to)
    model, processor = load_model(args.model)
    check_exportable(args.model, model)
    data = read_data(args) if args.data else None
    prompts, labelled = choose_prompts(args, data.dataset) if data else ({}, False)
    output = Path(args.output_dir)
    told = describe(args, model)
    with new_folder(output) as folder:
        text_inputs = export_towers(model, folder)
        if args.int8:
            rows = choose_images(data.calibration, args.calibration_images)
            pixels = read_pixels(model, processor, data.calibration, rows)
            quantize(folder, pixels)
            told["calibration"] = {"dataset": data.name, "split": data.calibration_split, "n_images": len(pixels)}
        if args.to == "openvino":
            to_openvino(model, folder, args.int8)
        write_config(folder, model, args, text_inputs, told["versions"])
        processor.save_pretrained(folder)
        exported = TierExportedModel.from_pretrained(folder)
        write_code(folder, exported)
        copy_training_list(args.model, folder)
        if data:
            members = (model, processor), (exported, processor)
            change = measure_change(*members, data.dataset, prompts, labelled, BATCH_SIZE)
            told["change"] = {
                "dataset": data.name,
                "split": data.split,
                "prompts": prompts_name(args.prompts),
                "calibrated_on_them": args.int8 and data.calibration_split == data.split,
                **change,
            }
        text = json.dumps(to_json(told), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        (folder / "export.json").write_text(text, encoding="utf-8")
        write_card(folder, output.name, told)
    return format_export(output, told)


def check_packages(graph_format: str) -> None:
    """Raises ImportError, before any work, for a missing package."""
    import_backend(graph_format)
    for name in PACKAGES[graph_format]:
        try:
            version(name)
        except PackageNotFoundError as error:
            raise ImportError(
                f"--to {graph_format} needs the package {name}: pip install 'tier-clip[{graph_format}]'."
            ) from error


def check_exportable(name: str, model: Any) -> None:
    """Raises ValueError for a model that is not TIER's."""
    if isinstance(model, TierExportedModel):
        raise ValueError(f"The model {name} is already exported: name the model that it was exported from.")
    if is_classifier(model) or not isinstance(model, TierModelMixin):
        raise ValueError(
            f"The model {name} is of the class {type(model).__name__}, which tier-export does not export: name a TIER "
            "model. tier-convert makes one of a CLIP model, and docs/export.md shows how to export any tower by hand."
        )


def read_data(args: argparse.Namespace) -> Data:
    """The images of --data, see `Records`; those of --calibration_split may be of the training."""
    table = TableOptions(args.columns or None, args.image_root, args.sheet, parse_label_values(args.label_values))
    lists = trained_on.read_lists({args.model: short_names([args.model])[args.model]})
    split = args.split or trained_on.choose_split(args.data, table, lists)
    records = Records(args, None, table, lists)
    calibration_split = args.calibration_split or split
    calibration = None
    if calibration_split != split:
        calibration = trained_on.read_split(args.data, calibration_split, table, lists)
        calibration = select_views(calibration, records.views, calibration_split)
    dataset = records.read(split)
    name = readers.dataset_name(args.data)
    return Data(name, split, dataset, calibration_split, dataset if calibration is None else calibration)


def choose_prompts(args: argparse.Namespace, dataset: datasets.Dataset) -> tuple[dict, bool]:
    """The sentences of the findings that are compared, and whether the data have labels of them."""
    labelled = bool(finding_columns(dataset))
    if labelled:
        findings, _ = select_findings(dataset, args.findings, args.min_positives)
    else:
        findings = args.findings or prompt_findings(args.prompts)
        logger.warning("The data have no label: scores and maps are compared, and the AUROC is not measured.")
    return find_prompts(args.prompts, findings), labelled


def describe(args: argparse.Namespace, model: PreTrainedModel) -> dict[str, Any]:
    """What `export.json` says of an export, before anything is measured."""
    config = model.config
    return {
        "model": short_names([args.model])[args.model],
        "format": args.to,
        "int8": args.int8,
        "image_size": getattr(config, "image_size", None) or config.vision_config.image_size,
        "text_length": text_length(model),
        "text_varies": not is_padded_to_the_end(config),
        "thresholds": any("threshold" in entry for entry in (config.zero_shot_findings or {}).values()),
        "versions": installed_versions() | {name: version(name) for name in PACKAGES[args.to]},
    }


def write_config(
    folder: Path, model: PreTrainedModel, args: argparse.Namespace, text_inputs: list[str], versions: Mapping[str, str]
) -> None:
    """The configuration of the exported model, with the hashes of its files."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": hash_file(folder / name)}
        for name in file_names(args.to)
    }
    own = {key: value for key, value in model.config.to_dict().items() if key not in ("auto_map", "custom_pipelines")}
    config = TierExportedConfig(
        graph_format=args.to,
        int8=args.int8,
        files=files,
        model=own,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        text_length=text_length(model),
        text_inputs=text_inputs,
        patch_centers=[float(value) for value in model.patch_centers],
        logit_scale=model.logit_scale.item(),
        logit_bias=model.logit_bias.item() if "logit_bias" in model.logit_parameters else 0.0,
        versions=dict(versions),
        architectures=["TierExportedModel"],
        custom_pipelines=custom_pipelines(),
    )
    config.save_pretrained(folder)


def write_code(folder: Path, exported: TierExportedModel) -> None:
    """The code by which transformers loads the folder, and its entry in the configuration."""
    custom_object_save(exported, folder, config=exported.exported)
    exported.exported.save_pretrained(folder)


def copy_training_list(name: str, folder: Path) -> None:
    """The list of the model's training images, by which an evaluation knows them."""
    path = trained_on.locate(name)
    if path is not None:
        shutil.copyfile(path, folder / path.name)


def format_export(output: Path, told: Mapping[str, Any]) -> str:
    """The table of the change and the path of the folder, for a terminal."""
    lines = []
    if change := told.get("change"):
        table = change_table(change)
        lines += [text_table(table.header, table.rows, table.align), ""]
        if "mean" in change:
            before, after = (format_number(change["mean"][f"auroc_{when}"], 4) for when in ("before", "after"))
            lines.append(f"Mean AUROC: {before} before, {after} after ({change['mean']['auroc_change']:+.4f})")
        maps = change["maps"]
        lines.append(
            f"Maps: correlation {format_number(maps['correlation'], 4)} on average, "
            f"{format_number(maps['lowest_correlation'], 4)} at least"
        )
    size = sum(path.stat().st_size for path in output.iterdir() if path.suffix in (".onnx", ".xml", ".bin"))
    lines.append(
        f"Wrote {output}: {told['format']}{', int8' if told['int8'] else ''}, {size / 2**20:,.1f} MiB of graphs"
    )
    return "\n".join(lines)
