"""Any number of evaluations of the same images in one table, each with its gain over a baseline.

[`compare_with_baseline`] returns a dict of JSON's own types. Undefined numbers are `None`.

- `"baseline"`: the name of the evaluation that the others are compared with.
- `"dataset"`, `"n_images"`, `"n_patients"`, `"n_bootstrap"`, `"seed"`, `"trained"`, `"findings_left_out"`: as of
  [`compare_evaluations`].
- `"findings"`: by name `n_positive` and `n_negative`.
- `"results"`: by name, in the order given, of each evaluation
  - `folder`, `models`, and `protocol_differences`: by key the baseline's value and its own,
  - `training_overlap`, `exposure` and `exposure_overlap` of its protocol,
  - `images_per_second` and `devices`, see [`combined_speed`],
  - `parameters` of all its models together, `None` if not known, and `image_size`, the different ones of its models
    in pixels,
  - `findings` (by name) and `mean`: `auroc` and `auroc_ci95`, on the findings and images that all evaluations share,
  - `gain` (not of the baseline): `findings` and `mean` as of [`compare_evaluations`], `first` being the baseline.
    Each number also has `p_holm`.

`p_holm` is the p-value of [`choose_p`] after the correction of [`holm`]. A family of tests is all models against the
baseline in one number: in the mean AUROC, say, or in the AUROC of one finding. It is corrected for the number of
models, not for the number of findings.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation_tier.output.metrics_file import as_float, to_json
from evaluation_tier.output.speed_file import combined_speed
from evaluation_tier.statistics.comparable import (
    SavedEvaluation,
    protocol_differences,
    read_comparable,
    warn_of_protocols,
)
from evaluation_tier.statistics.comparison import COMPARED, ResampledEvaluations, choose_p
from evaluation_tier.statistics.paired import holm
from evaluation_tier.statistics.resampling import PATIENT_BOOTSTRAP, Resampling

logger = logging.getLogger(__name__)

LEVEL = 0.05  # of significance, that a p-value of the resamples must be able to reach


def has_name(result: str) -> bool:
    """Whether a result is given as `NAME=FOLDER`; a folder whose own name has a "=" is a folder."""
    return "=" in result and not Path(result).is_dir()


def name_results(results: Sequence[str]) -> dict[str, str]:
    """
    The folder of each evaluation, by its name.

    Args:
        results: folders, or `NAME=FOLDER`. A folder without a name is called by the last part of its path.

    Raises:
        ValueError: fewer than two results, an empty name, or a name that occurs twice.
    """
    if len(results) < 2:
        raise ValueError("A comparison needs at least two results: name another folder that tier-eval wrote.")
    named: dict[str, str] = {}
    for result in results:
        name, _, folder = result.partition("=")
        if not has_name(result):
            name, folder = Path(result).resolve().name, result
        if not name or not folder:
            raise ValueError(f"{result!r} is not a folder, and not NAME=FOLDER: give both the name and the folder.")
        if name in named:
            raise ValueError(
                f"Two results are called {name!r} ({named[name]} and {folder}): name each differently, as in "
                f"NAME={folder}."
            )
        named[name] = folder
    return named


def compare_with_baseline(
    named: Mapping[str, str | Path],
    baseline: str | None = None,
    resampling: Resampling = PATIENT_BOOTSTRAP,
    trained: str = "refuse",
) -> dict:
    """
    Evaluations of the same images, each minus the baseline, all on the same resamples of the patients.

    Args:
        named (`Mapping[str, str | Path]`): name to a folder that `eval_zeroshot.py` wrote, see [`name_results`].
        baseline (`str`, *optional*): the name of the evaluation to compare with; the first by default.
        resampling ([`Resampling`], *optional*): of the patients.
        trained (`str`, *optional*, defaults to `"refuse"`): see [`compare_evaluations`].

    Returns:
        `dict`: see the docstring of this module.

    Raises:
        `ValueError`: an unknown baseline; see also [`compare_evaluations`].
    """
    baseline = next(iter(named)) if baseline is None else baseline
    if baseline not in named:
        raise ValueError(f"The baseline {baseline!r} is not one of the results: choose one of {', '.join(named)}.")
    ordered = [baseline, *(name for name in named if name != baseline)]
    compared = read_comparable([named[name] for name in ordered], trained)
    evaluations = dict(zip(ordered, compared.evaluations, strict=True))
    resampled = ResampledEvaluations(compared.evaluations, compared.findings, resampling)
    results = {}
    for i, (name, evaluation) in enumerate(evaluations.items()):
        differing = protocol_differences(evaluations[baseline].metrics, evaluation.metrics)
        warn_of_protocols(f"{baseline} and {name}", differing)
        results[name] = {**describe_result(evaluation), "protocol_differences": differing, **resampled.own(i)}
        if i:
            results[name]["gain"] = resampled.compare(0, i)
    counts = compared.describe()
    correct([result["gain"] for name, result in results.items() if name != baseline], counts)
    warn_of_few_resamples(len(named) - 1, resampling.num_resamples)
    return to_json(
        {
            "baseline": baseline,
            "dataset": evaluations[baseline].metrics["dataset"],
            **counts,
            "n_bootstrap": resampling.num_resamples,
            "seed": resampling.seed,
            "trained": trained,
            "findings": {finding: resampled.counts(i) for i, finding in enumerate(compared.findings)},
            "results": {name: results[name] for name in named},
            "findings_left_out": compared.left_out,
        }
    )


def describe_result(evaluation: SavedEvaluation) -> dict[str, Any]:
    """The facts of an evaluation that do not depend on the others."""
    metrics = evaluation.metrics
    sizes = list((metrics.get("sizes") or {}).values())
    parameters = [size.get("parameters") for size in sizes]
    return {
        "folder": evaluation.folder,
        "models": metrics.get("models") or [],
        "parameters": None if None in parameters or not sizes else sum(parameters),
        **combined_speed(evaluation.folder),
        "image_size": list(dict.fromkeys(size.get("image_size") for size in sizes)),
        **{key: metrics["protocol"].get(key) for key in ("training_overlap", "exposure", "exposure_overlap")},
    }


def correct(gains: Sequence[dict], counts: Mapping[str, int]) -> None:
    """Add `p_holm` to every number of the gains of all models over the baseline."""
    independent = counts["n_patients"] == counts["n_images"]
    for finding in (*gains[0]["findings"], None):
        parts = [gain["mean"] if finding is None else gain["findings"][finding] for gain in gains]
        for key in COMPARED:
            adjusted = holm([as_float(choose_p(part[key], independent)) for part in parts])
            for part, p_value in zip(parts, adjusted, strict=True):
                part[key]["p_holm"] = p_value


def warn_of_few_resamples(num_tests: int, num_resamples: int) -> None:
    """Warn if no p-value of the resamples can stay below the level of significance after the correction."""
    lowest = 2 * num_tests / (num_resamples + 1)  # see `bootstrap_p_value`
    if lowest > LEVEL:
        logger.warning(
            "With %d resamples, the correction over %d models leaves no p-value of the resamples below %.3f: raise "
            "--n_bootstrap to %d.",
            num_resamples,
            num_tests,
            min(lowest, 1.0),
            round(2 * num_tests / LEVEL),
        )
