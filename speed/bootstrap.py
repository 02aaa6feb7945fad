"""
Bootstrap of all findings at once, against a loop over scikit-learn on the same resamples.

    python speed/bootstrap.py

Scores and labels are synthetic: normal scores rounded so that some are tied, findings of 2 to 50 % prevalence. Ours is
one call of `bootstrap`, which gives AUROC and average precision, and with thresholds MCC, F1, sensitivity and
specificity too; its whole time is compared with the loop of each metric, and of all together. The loop is timed
on the first `--loop` resamples of all findings and scaled up to `--resamples`. Both take the
resamples as given (drawing them is timed separately), and every value that the loop has computed is compared with
ours. Times are processor times of one core, without other programs.
"""

import argparse
import statistics
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn import metrics as yardstick

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages, when they are not installed

from evaluation_tier.statistics.bootstrap import bootstrap  # noqa: E402
from evaluation_tier.statistics.resampling import draw_resamples, draw_stratified_resamples  # noqa: E402

LOOP = {
    "auroc": yardstick.roc_auc_score,
    "auprc": yardstick.average_precision_score,
    "mcc": yardstick.matthews_corrcoef,
    "f1": yardstick.f1_score,
}
GOAL = 100  # times as fast


def make_data(num_images: int, num_findings: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_images, num_findings)) < np.linspace(0.02, 0.5, num_findings)).astype(float)
    return labels, (rng.standard_normal(labels.shape) + labels).round(2)


def loop_over(name: str, labels: np.ndarray, scores: np.ndarray, draws: np.ndarray, thresholds: np.ndarray):
    """The metric of each finding in each resample, (resamples, findings), as scikit-learn's user would write it."""
    values = np.full((len(draws), labels.shape[1]), np.nan)
    for r, row in enumerate(draws):
        drawn = np.repeat(np.arange(len(labels)), row)
        for i in range(labels.shape[1]):
            truth, given = labels[drawn, i], scores[drawn, i]
            if 0 < truth.sum() < len(truth):
                values[r, i] = LOOP[name](truth, given if name in ("auroc", "auprc") else given >= thresholds[i])
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resamples", type=int, default=1000, help="(default: 1000)")
    parser.add_argument("--findings", type=int, default=14, help="(default: 14)")
    parser.add_argument("--studies", type=int, default=500, help="(default: 500)")
    parser.add_argument("--loop", type=int, default=100, help="resamples that the loop is timed on (default: 100)")
    parser.add_argument(
        "--repetitions", type=int, default=9, help="timed calls of ours; the median counts (default: 9)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of data and resamples (default: 0)")
    args = parser.parse_args()

    labels, scores = make_data(args.studies, args.findings, args.seed)
    thresholds = np.quantile(scores, 0.7, axis=0)
    start = time.process_time()
    draws = draw_resamples(range(args.studies), args.resamples, args.seed)
    drawing = time.process_time() - start
    start = time.process_time()
    draw_stratified_resamples(labels, range(args.studies), args.resamples, args.seed)
    stratified = time.process_time() - start

    seconds = {}
    for kind, given in (("areas", None), ("all", thresholds)):
        times = []
        for _ in range(args.repetitions):
            start = time.process_time()
            ours = bootstrap(labels, scores, draws, given)
            times.append(time.process_time() - start)
        seconds[kind] = statistics.median(times)

    looped = draws[: args.loop]
    scale = len(draws) / len(looped)
    print(
        f"{args.resamples} resamples x {args.findings} findings x {args.studies} studies; the loop on {len(looped)} "
        f"resamples, times {scale:g}"
    )
    print(
        f"ours: {seconds['areas']:.3f} s for AUROC and AUPRC, {seconds['all']:.3f} s for all six metrics; "
        f"drawing: {drawing:.3f} s, stratified {stratified:.3f} s"
    )
    total = 0.0
    for name in LOOP:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            start = time.process_time()
            values = loop_over(name, labels, scores, looped, thresholds)
            elapsed = (time.process_time() - start) * scale
        total += elapsed
        defined = ~np.isnan(values)
        difference = np.abs(ours[name][: len(looped)] - values)[defined].max()
        assert difference < 1e-12, f"{name} differs by {difference}"
        kind = "areas" if name in ("auroc", "auprc") else "all"
        ratio = elapsed / seconds[kind]
        print(
            f"{name:6s} loop {elapsed:7.2f} s, {ratio:6.0f} times ours; {defined.sum()} values, largest difference "
            f"{difference:.0e}{'' if ratio >= GOAL else f'  BELOW THE GOAL OF {GOAL}'}"
        )
    print(f"{'all':6s} loop {total:7.2f} s, {total / seconds['all']:6.0f} times ours")


if __name__ == "__main__":
    main()
