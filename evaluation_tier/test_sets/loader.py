"""Published test sets by name: which images, which findings under which names, and how many there should be."""

import difflib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np

from processing_tier.prompts.loader import Prompts, normalize_finding
from processing_tier.readers import parse_data
from processing_tier.records.schema import finding_columns
from processing_tier.yaml_files import read_yaml

BENCHMARKS_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Benchmark:
    """
    A test set, from a file in `evaluation_tier/benchmarks`.

    Args:
        name: of the file.
        source: where the data are.
        reader: the one of `processing_tier.readers` that reads the archive.
        splits: name to its facts: `images`, `positives` and `regions` (finding to number), as published, and
            `options` of the reader. The first is the usual one. Grounding takes the findings of `regions` only.
        findings: name to other names that a table may use for it, in the order of the results. In the file, a list of
            names is enough without other names.
        options: of the reader, in every split.
        views: `"frontal"` or `"all"`.
        min_positives: that a finding needs.
        only_with: findings of which an image must have one to be evaluated; by default all images are.
        groups: of findings by their frequency among the evaluated images, see `group_by_frequency`.
        phrases: whether grounding asks for the sentences of the boxes.
        prompts: name of a protocol to finding to sentences that take the place of the protocol's own.
    """

    name: str
    source: str
    reader: str
    splits: dict[str, dict]
    findings: dict[str, list[str]]
    options: dict[str, str | int] = field(default_factory=dict)
    views: str = "all"
    min_positives: int = 1
    only_with: list[str] = field(default_factory=list)
    groups: dict[str, float] = field(default_factory=dict)
    phrases: bool = False
    prompts: dict[str, dict[str, dict]] = field(default_factory=dict)


def list_benchmarks() -> list[str]:
    """The names that `load_benchmark` knows."""
    return sorted(path.stem for path in BENCHMARKS_FOLDER.glob("*.yaml"))


def load_benchmark(name: str) -> Benchmark:
    """The benchmark of that name. ValueError if it does not exist."""
    names = list_benchmarks()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"The benchmark {name!r} is not known: {hint}choose one of {', '.join(names)}.")
    content = read_yaml(BENCHMARKS_FOLDER / f"{name}.yaml")
    if isinstance(content["findings"], list):
        content["findings"] = {finding: [] for finding in content["findings"]}
    return Benchmark(name=name, **content)


def benchmark_data(benchmark: Benchmark, data: str, split: str) -> str:
    """What `read_records` is to be given for `data`: the reader's options that the benchmark needs are added.

    Args:
        data: the archive with its reader (`"chexpert:FOLDER"`), whose own options prevail, or anything else that
            `read_records` takes, which stays as it is.

    Raises:
        ValueError: for a split that the benchmark lacks, or the reader of another archive.
    """
    if split not in benchmark.splits:
        raise ValueError(f"{benchmark.name} has no split {split!r}: it has {', '.join(benchmark.splits)}.")
    reader, _, given = parse_data(data)
    if reader is None:
        return data
    if reader != benchmark.reader:
        raise ValueError(
            f"{benchmark.name} is of {benchmark.reader!r}, not of {reader!r}: give {benchmark.reader}:FOLDER, or a "
            "folder or table with its images."
        )
    options = {**benchmark.options, **benchmark.splits[split].get("options", {})}
    added = [f"{name}={value}" for name, value in options.items() if name not in given]
    return ",".join([data, *added])


def apply_benchmark(benchmark: Benchmark, dataset: datasets.Dataset, split: str) -> datasets.Dataset:
    """The data set with the benchmark's findings alone, under its names and in its order, without the images that have
    no label or none of the findings of `only_with`.

    Raises:
        ValueError: for a finding that the data set has under no known name.
    """
    available = finding_columns(dataset)
    by_name = {normalize_finding(column): column for column in available}
    columns = {}
    for finding, aliases in benchmark.findings.items():
        found = [by_name[key] for name in (finding, *aliases) if (key := normalize_finding(name)) in by_name]
        if not found:
            options = ",".join(f"{name}={value}" for name, value in benchmark.options.items())
            remedy = f" Prepare it again from {benchmark.reader}:FOLDER,{options}." if options else ""
            raise ValueError(
                f"{benchmark.name}: the data set has no column {finding!r}; it has {', '.join(map(repr, available))}."
                f"{remedy}"
            )
        columns[finding] = found[0]
    dataset = dataset.select_columns(
        [*(name for name in dataset.column_names if name not in available), *columns.values()]
    )
    dataset = dataset.rename_columns({column: finding for finding, column in columns.items() if column != finding})
    labels = {finding: np.array(dataset.with_format(None)[finding][:], dtype=np.float64) for finding in columns}
    kept = ~np.all([np.isnan(values) for values in labels.values()], axis=0)
    if benchmark.only_with:
        kept &= np.any([labels[finding] == 1 for finding in benchmark.only_with], axis=0)
    if not kept.all():
        dataset = dataset.select(np.flatnonzero(kept))
    return dataset


def published_differences(benchmark: Benchmark, dataset: datasets.Dataset, split: str) -> list[str]:
    """Sentences on the numbers of images, positives and regions that are not the published ones; none if all agree.

    Args:
        dataset: of `apply_benchmark`, with the evaluated images only.
    """
    known = benchmark.splits[split]
    counts = [("images", known.get("images"), len(dataset))]
    for finding, number in known.get("positives", {}).items():
        found = int((np.array(dataset.with_format(None)[finding][:], dtype=np.float64) == 1).sum())
        counts.append((f"positives of {finding}", number, found))
    regions = count_regions(dataset, benchmark.phrases) if known.get("regions") else Counter()
    counts += [(f"regions of {name}", number, regions[name]) for name, number in known.get("regions", {}).items()]
    wrong = [f"{found:,} {what} and not {number:,}" for what, number, found in counts if number not in (None, found)]
    if not wrong:
        return []
    return [
        f"{benchmark.name}, split {split}, has {', '.join(wrong)}: the results are not those of the published test "
        "set."
    ]


def count_regions(dataset: datasets.Dataset, phrases: bool) -> Counter[str]:
    """How many regions of each finding grounding would measure: of all boxes of an image, or of each sentence."""
    regions = set()
    boxes = dataset.with_format(None)["boxes"] if "boxes" in dataset.column_names else ()
    for row, marks in enumerate(boxes):
        regions |= {(row, mark["finding"], phrases and mark["phrase"]) for mark in marks or ()}
    return Counter(finding for _, finding, phrase in regions if phrase or not phrases)


def benchmark_prompts(benchmark: Benchmark, protocol: str) -> dict[str, Prompts]:
    """The sentences that take the place of a protocol's own, by finding."""
    return {finding: Prompts(**sides) for finding, sides in benchmark.prompts.get(protocol, {}).items()}
