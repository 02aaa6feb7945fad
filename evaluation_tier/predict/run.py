"""Scores images, from the arguments of `tier-predict` to the text that it prints."""

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging as transformers_logging

from evaluation_tier.models.adapters import AdapterName
from evaluation_tier.models.loading import hub_commit, short_names
from evaluation_tier.models.openclip import folder_of_file
from evaluation_tier.models.remote_code import describe_code, is_remote
from evaluation_tier.output.metrics_file import installed_versions
from evaluation_tier.output.tables import text_table
from evaluation_tier.predict.files import NOTE, check_free, write_predictions
from evaluation_tier.predict.inputs import ImageFiles, choose_findings, find_images
from evaluation_tier.predict.loading import Pipeline, load_pipeline, stored_findings
from processing_tier.escaping import printable
from processing_tier.progress import progress

logger = logging.getLogger(__name__)

MAX_PRINTED = 20  # images in the table, where the files hold all

UNCALIBRATED = "Scores marked ~ are not calibrated: they rank images and are not probabilities (docs/pipeline.md)."


def run(args: argparse.Namespace) -> str:
    """
    Score the images, write the files if `args.output_dir` is set, and return what to print.

    Raises:
        ValueError: for arguments that do not fit, or if no image can be read.
    """
    transformers_logging.disable_progress_bar()  # those of loading weights
    if args.output_dir is not None:
        check_free(Path(args.output_dir), args.overwrite)
    paths = find_images(args.images)
    args.model = AdapterName(args.model) if args.adapter else folder_of_file(args.model)
    pipe = load_pipeline(args.model, args.device, args.trust_remote_code, args.backend)
    findings = choose_findings(args.findings, args.prompts, stored_findings(args.model))
    findings = pipe.resolve_findings(findings)
    if args.top_k is not None and args.top_k >= len(findings):
        logger.warning("--top_k %d has no effect: %d findings are scored.", args.top_k, len(findings))
    with_maps = args.output_dir is not None and not args.no_overlays
    if with_maps:
        try:
            pipe.check_gives_maps()
        except ValueError as error:
            logger.warning("No overlays. %s", error)
            with_maps = False
    images, limits = predict(pipe, paths, findings, args, with_maps)
    failed = [image for image in images if "error" in image]
    if len(failed) == len(images):
        last = f"{failed[-1]['image']}: {failed[-1]['error']}"
        raise ValueError(f"None of the {len(images):,} images can be read. The last one: {last}")
    written: Sequence[Path] = []
    if args.output_dir is not None:
        own = {} if args.threshold is None else {"threshold": args.threshold}
        told = {name: {**entry, **own} for name, entry in findings.items()}
        head = describe(args.model, pipe.model, told, limits if with_maps else {})
        written = write_predictions(Path(args.output_dir), head, images, pipe, limits)
    return format_predictions(images, written)


def predict(
    pipe: Pipeline,
    paths: Sequence[Path],
    findings: dict[str, dict],
    args: argparse.Namespace,
    with_maps: bool,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """
    The results of each image, and by finding the value of the strongest colour of all its overlays.

    An image has `image`, its path, and either `findings`, as the pipeline returns them, or `error`. Of their heat-maps
    only the patches are kept, as `maps` (findings, rows, columns) with the `size` of the image, so that memory does
    not grow with the pixels.
    """
    images: list[dict[str, Any]] = []
    limits: dict[str, float] = {}
    options = {"return_heatmaps": with_maps, "on_error": "skip", "batch_size": args.batch_size}
    results = pipe(ImageFiles(paths), findings, **options)
    for path, result in zip(paths, progress(results, "scoring images", "image", len(paths)), strict=True):
        image: dict[str, Any] = {"image": str(path)}
        if isinstance(result, dict):
            images.append(image | {"error": result["error"].removeprefix(f"{path.name}: ")})
            continue
        if args.threshold is not None:
            for finding in result:
                finding |= {"threshold": args.threshold, "present": finding["score"] >= args.threshold}
        if args.top_k is not None:
            result = sorted(result, key=lambda finding: -finding["score"])[: args.top_k]
        if with_maps:
            maps = [finding.pop("heatmap") for finding in result]
            image |= {"maps": np.stack([heatmap.patches.numpy() for heatmap in maps]), "size": maps[0].shape}
            for finding, heatmap in zip(result, maps, strict=True):
                limits[finding["label"]] = max(limits.get(finding["label"], 0.0), heatmap.limit)
        images.append(image | {"findings": result})
    return images, limits


def describe(
    name: str | Path, model: Any, findings: Mapping[str, Mapping], limits: Mapping[str, float]
) -> dict[str, Any]:
    """
    What predictions.json says above the images.

    Args:
        name: of the model, as the user named it.
        model: the one that was loaded; code that it brought is told.
        findings: the entries that were scored.
        limits: by finding the value of the strongest colour of its overlays, where it has some.
    """
    told = {
        finding: {**entry, "overlay_limit": limits[finding]} if finding in limits else dict(entry)
        for finding, entry in findings.items()
    }
    head: dict[str, Any] = {"note": NOTE, "model": short_names([name])[name]}
    commit = hub_commit(name)
    head |= {"commit": commit} if commit else {}
    head |= {"adapter": name.describe()} if isinstance(name, AdapterName) else {}
    head |= {"remote_code": describe_code(model)} if is_remote(model) else {}
    return head | {"findings": told, "versions": installed_versions()}


def format_predictions(images: Sequence[Mapping], written: Sequence[Path]) -> str:
    """The table of scores, the count of images, and the paths of the files, for a terminal."""
    scored = [image for image in images if "error" not in image]
    shown = scored[:MAX_PRINTED] if written else scored
    rows, calibrated = [], True
    for image in shown:
        for i, finding in enumerate(image["findings"]):
            calibrated &= finding["calibrated"]
            verdict = {True: "present", False: "absent", None: ""}[finding.get("present")]
            threshold = f"{finding['threshold']:.3f}" if "threshold" in finding else ""
            score = f"{finding['score']:.3f}{' ' if finding['calibrated'] else '~'}"
            rows.append((image["image"] if i == 0 else "", finding["label"], score, threshold, verdict))
    parts = [text_table(("Image", "Finding", "Score", "Threshold", "Result"), rows, "llrrl")]
    if len(shown) < len(scored):
        parts.append(f"... and {len(scored) - len(shown):,} more images in the files below.")
    if not calibrated:
        parts.append(UNCALIBRATED)
    failed = [image for image in images if "error" in image]
    if failed:
        lines = [f"{image['image']}: {image['error']}" for image in failed[:MAX_PRINTED]]
        more = [f"... and {len(failed) - MAX_PRINTED:,} more"] if len(failed) > MAX_PRINTED else []
        parts.append("\n  ".join(["Skipped:", *map(printable, lines), *more]))
    parts.append(f"Scored {len(scored):,} of {len(images):,} images. {NOTE}")
    if written:
        parts.append("\n  ".join(["Written:", *(printable(path) for path in written)]))
    return "\n" + "\n\n".join(parts)
