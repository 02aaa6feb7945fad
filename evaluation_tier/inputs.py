"""Models, data and prompts of an evaluation, read and checked before any image is embedded."""

import argparse
import logging
from functools import partial
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import torch

from evaluation_tier.models import exposure, loading, trained_on
from evaluation_tier.models.adapters import AdapterName
from evaluation_tier.models.processes import fail_together
from evaluation_tier.models.single_pass import Models
from evaluation_tier.output import folder
from evaluation_tier.output.file_names import file_names
from evaluation_tier.scoring import protocols
from evaluation_tier.scoring.protocols import Protocol
from evaluation_tier.test_sets import loader
from evaluation_tier.test_sets.loader import Benchmark
from modeling_tier import TierExportedModel
from processing_tier import readers
from processing_tier.prompts.loader import Prompts
from processing_tier.records.labels import parse_label_values
from processing_tier.records.schema import check_disjoint_patients, select_views
from processing_tier.records.table_options import TableOptions

logger = logging.getLogger(__name__)


class Inputs(NamedTuple):
    """The models, data and settings of an evaluation, the same in every process."""

    names: dict[str | Path, str]  # of the models, as the user named them, to their names in the results
    models: Models
    dataset_name: str
    dataset: datasets.Dataset
    threshold_dataset: datasets.Dataset | None
    learning: tuple[datasets.Dataset, int] | None  # of --learning_curve, and how many of its images trained a model
    protocol: Protocol
    replaced_prompts: dict[str, Prompts]  # by a benchmark
    min_positives: int
    groups: dict[str, float]  # of findings by their frequency, of a benchmark
    phrases: bool  # whether grounding asks for the sentences of boxes
    grounded: list[str] | None  # the findings that a benchmark grounds; None for all
    described: dict  # the results' entries for benchmark, split, views and overlap with the training
    exposures: dict[str, exposure.Exposure]  # by name in the results, see `find_exposures`
    seen: np.ndarray  # (images,) bool: of the training

    def find_prompts(self, findings: list[str]) -> dict[str, Prompts]:
        """See `protocols.find_prompts`."""
        return protocols.find_prompts(self.protocol.prompts, findings, self.replaced_prompts)

    def alone(self, name: str | Path) -> "Inputs":
        """Those of one model of --each, by its name as the user gave it."""
        shown = self.names[name]
        described = dict(self.described)
        if len(self.names) > 1:
            described["training_overlap"] += f" (of all models evaluated together: {', '.join(self.names.values())})"
        exposures = {model: told for model, told in self.exposures.items() if model == shown}
        return self._replace(
            names={name: shown}, models={shown: self.models[shown]}, described=described, exposures=exposures
        )

    def load(self, name: str) -> tuple:
        """A model and its processor, by its name in the results."""
        member = self.models[name]
        return member() if callable(member) else member


def read_inputs(args: argparse.Namespace, device: torch.device) -> Inputs:
    """
    Read everything that the arguments name. `args.output_dir` becomes the folder to write, see `choose_folders`.

    Raises:
        ValueError: for arguments that do not fit the models, the data or one another.
    """
    benchmark = loader.load_benchmark(args.benchmark) if args.benchmark else None
    split = args.split or (next(iter(benchmark.splits)) if benchmark else None)
    check_other_splits(args, split)
    protocol = protocol_of_options(args)
    for name in args.models:
        loading.check_name(name)
    names = loading.short_names(args.models)
    table = TableOptions(args.columns or None, args.image_root, args.sheet, parse_label_values(args.label_values))
    with fail_together():
        kept = trained_on.read_lists({name: names[name] for name in names if not isinstance(name, AdapterName)})
        lists = {shown: kept.get(shown) for shown in names.values()}  # an adapter's model keeps none
        split = split or trained_on.choose_split(args.data, table, lists)
    check_other_splits(args, split)
    dataset_name = readers.dataset_name(args.data)
    identity = {"dataset": dataset_name, "split": split, "benchmark": args.benchmark, "protocol": protocol.name}
    choose_folders(args, list(names.values()), identity)
    with fail_together():
        models = prepare_models(args, names, device)
        records = Records(args, benchmark, table, lists)
        dataset = records.read(split)
        threshold_dataset = None
        if args.threshold_split:
            threshold_dataset = records.read(args.threshold_split)
            check_disjoint_patients(**{split: dataset, args.threshold_split: threshold_dataset})
        learning = records.read_for_learning(args.learning_curve, split) if args.learning_curve else None
        differs = records.find_differences()
        replaced = loader.benchmark_prompts(benchmark, args.protocol) if benchmark and not args.prompts else {}
    if args.trained != "refuse" and not any("trained" in overlap for overlap in records.overlaps.values()):
        logger.warning("--%s_trained has no effect: the model was not trained on any evaluated image.", args.trained)
    described = {"benchmark": benchmark.name, "benchmark_differs": differs} if benchmark else {}
    described |= {"split": split, "views": records.views, **records.overlaps[split]}
    origin = readers.origin_name(args.data)
    exposures = exposure.find_exposures(names, lists, origin, benchmark.reader if benchmark else None)
    if args.threshold_split and "trained" in records.overlaps[args.threshold_split]:
        described["threshold_overlap"] = records.overlaps[args.threshold_split]["training_overlap"]
    return Inputs(
        names=names,
        models=models,
        dataset_name=dataset_name,
        dataset=dataset,
        threshold_dataset=threshold_dataset,
        learning=learning,
        protocol=protocol,
        replaced_prompts=replaced,
        min_positives=args.min_positives or (benchmark.min_positives if benchmark else 10),
        groups=benchmark.groups if benchmark else {},
        phrases=args.phrases or bool(benchmark and benchmark.phrases),
        grounded=list(benchmark.splits.get(split, {}).get("regions", ())) or None if benchmark else None,
        described=described,
        exposures=exposures,
        seen=records.seen[split],
    )


def choose_folders(args: argparse.Namespace, models: list[str], identity: dict) -> None:
    """
    `args.output_dir` becomes the folder to write; with --each it becomes a mapping of each model to its own.

    Raises:
        ValueError: as `choose_folder`.
    """
    if not args.each:
        args.output_dir = folder.choose_folder(args.output_dir, {"models": models, **identity}, args.overwrite)
        return
    parts = file_names(models)
    chosen = {}
    for model in models:
        asked = None if args.output_dir is None else Path(args.output_dir, parts[model])
        chosen[model] = folder.choose_folder(asked, {"models": [model], **identity}, args.overwrite)
        if chosen[model] in list(chosen.values())[:-1]:
            raise ValueError(
                f"The results of {model} and of another model would both be {chosen[model]}: give --output_dir."
            )
    args.output_dir = chosen


def check_other_splits(args: argparse.Namespace, split: str | None) -> None:
    if args.threshold_split and args.threshold_split == split:
        raise ValueError(f"--threshold_split is the evaluated split {split!r}: name another or leave it out.")
    if args.learning_curve and args.learning_curve == split:
        raise ValueError(f"--learning_curve names the evaluated split {split!r}: name the one to learn from.")


def protocol_of_options(args: argparse.Namespace) -> Protocol:
    given = args.prompts, args.scoring, args.no_finding, args.score_level
    protocol = protocols.choose_protocol(args.protocol, *given)
    if args.save_thresholds and protocol.scoring == "sigmoid":
        raise ValueError(
            "--save_thresholds needs the scores of the pipeline: choose a protocol or a --scoring with negative "
            "sentences."
        )
    return protocol


def prepare_models(args: argparse.Namespace, names: dict[str | Path, str], device: torch.device) -> Models:
    """One model, or several with --each, loaded; of an ensemble the functions that load its members one by one."""
    if len(args.models) > 1 and not args.each:
        return {names[name]: partial(load_member, args, name, device) for name in args.models}
    return {names[name]: load_alone(args, name, device) for name in args.models}


def load_member(args: argparse.Namespace, name: str | Path, device: torch.device) -> tuple:
    """A model in the precision that is asked for, and its processor."""
    model, processor = loading.load_model(name, device, args.trust_remote_code)
    return loading.in_bfloat16(name, model) if args.bf16 else model, processor


def load_alone(args: argparse.Namespace, name: str, device: torch.device) -> tuple:
    """A model that is evaluated alone, and its processor."""
    model, processor = load_member(args, name, device)
    written = next((option for option in ("save_thresholds", "model_card") if getattr(args, option)), None)
    if written and isinstance(model, TierExportedModel):
        raise ValueError(
            f"--{written} does not write into {name}, which tier-export wrote: evaluate the model that it was "
            "exported from, and export that again."
        )
    if args.save_thresholds and (
        loading.is_classifier(model) or not hasattr(getattr(model, "config", None), "zero_shot_findings")
    ):
        raise ValueError(f"--save_thresholds needs a TIER model, but {name} holds a {type(model).__name__}.")
    return model, processor


class Records:
    """
    Reads splits of the data as they are evaluated: chosen views, a benchmark's images, `--max_images`, and the
    treatment of training images.

    Attributes:
        views: that are evaluated.
        overlaps: split to the results' entry for its overlap with the training.
        seen: split to which of its images are of the training, (images,) bool.
    """

    def __init__(self, args: argparse.Namespace, benchmark: Benchmark | None, table: TableOptions, lists: dict):
        self.args, self.benchmark, self.table, self.lists = args, benchmark, table, lists
        self.views = args.views or (benchmark.views if benchmark else "frontal")
        self.datasets: dict[str, datasets.Dataset] = {}  # by split
        self.overlaps: dict[str, dict] = {}
        self.seen: dict[str, np.ndarray] = {}

    def read(self, split: str) -> datasets.Dataset:
        args, benchmark = self.args, self.benchmark
        if benchmark:
            data = loader.benchmark_data(benchmark, args.data, split)
            dataset = readers.read_records(data, split, self.table)
        else:
            dataset = trained_on.read_split(args.data, split, self.table, self.lists)
        dataset = select_views(dataset, self.views, split)
        dataset = loader.apply_benchmark(benchmark, dataset, split) if benchmark else dataset
        dataset = dataset.select(range(min(args.max_images or len(dataset), len(dataset))))
        origin = readers.origin_name(args.data)
        dataset, self.overlaps[split], self.seen[split] = trained_on.check_overlap(
            self.lists, dataset, origin, split, args.trained
        )
        self.datasets[split] = dataset
        return dataset

    def read_for_learning(self, split: str, evaluated: str) -> tuple[datasets.Dataset, int]:
        """The split that --learning_curve learns from, and how many of its images a model was trained on."""
        dataset = trained_on.read_split(self.args.data, split, self.table, self.lists)
        dataset = select_views(dataset, self.views, split)
        check_disjoint_patients(**{evaluated: self.datasets[evaluated], split: dataset})
        origin = readers.origin_name(self.args.data)
        return dataset, int(trained_on.find_overlap(list(self.lists.values()), dataset, origin).seen.sum())

    def find_differences(self) -> list[str]:
        """Sentences on how the data differ from the published test set; they are logged."""
        if self.benchmark is None:
            return []
        differs = [
            sentence
            for split, dataset in self.datasets.items()
            for sentence in loader.published_differences(self.benchmark, dataset, split)
        ]
        for sentence in differs:
            logger.warning(sentence)
        return differs
