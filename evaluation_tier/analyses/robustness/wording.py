"""Six wordings of one question, and a finding against its negation."""

from collections.abc import Mapping, Sequence

import numpy as np

from evaluation_tier.analyses.robustness.intervals import resampled_aurocs, resampled_share, with_interval
from processing_tier.prompts.loader import Prompts

# Six ways to ask for a finding: with it, without it. The first is CheXzero's (zero_shot.py:119-124); the others are
# ways in which radiologists and the field's prompt sets write.
WORDINGS = {
    "name": ("{}", "no {}"),
    "there is": ("There is {}.", "There is no {}."),
    "evidence": ("Findings consistent with {}.", "No evidence of {}."),
    "seen": ("{} is seen.", "No {} is seen."),
    "presence": ("{} is present.", "{} is absent."),
    "radiograph": ("Chest radiograph with {}.", "Chest radiograph without {}."),
}


def phrase(template: str, finding: str) -> str:
    """A template filled with a finding's name as sentences write it ("Nodule/Mass": "nodule or mass")."""
    text = template.replace("{}", finding.replace("_", " ").replace("/", " or ").lower())
    return text[0].upper() + text[1:]


def as_prompts(templates: Sequence[str], finding: str) -> Prompts:
    """The sentences of two templates, such as those of `WORDINGS`, about a finding."""
    positive, negative = templates
    return Prompts([phrase(positive, finding)], [phrase(negative, finding)])


def compare_wordings(
    findings: Sequence[str], labels: np.ndarray, scores: Mapping[str, np.ndarray], draws: np.ndarray
) -> dict:
    """The `wordings` of [`evaluate_robustness`], from scores (images, findings) by wording."""
    if not findings:
        return {"findings": {}, "mean": None}
    values, intervals = with_interval(
        lambda draws: resampled_aurocs(draws, labels, scores.values()).reshape(len(draws), -1), draws
    )
    values = values.reshape(len(scores), len(findings) + 1)
    intervals = intervals.reshape(len(scores), len(findings) + 1, 2)
    results = [
        {
            "auroc": dict(zip(scores, column, strict=True)),
            "mean": column.mean(),
            "min": column.min(),
            "max": column.max(),
            "sd": column.std(ddof=1),
        }
        for column in values.T
    ]
    mean = results.pop() | {"auroc_ci95": dict(zip(scores, intervals[:, -1], strict=True))}
    return {"findings": dict(zip(findings, results, strict=True)), "mean": mean}


def compare_negations(
    findings: Sequence[str], labels: np.ndarray, scores: Mapping[str, np.ndarray], draws: np.ndarray
) -> dict:
    """The `negation` of [`evaluate_robustness`], from scores (images, findings) by wording."""
    if not findings:
        return {"chance": 0.5, "findings": {}, "mean": {}}
    present = np.stack([np.sign(each) for each in scores.values()], axis=1) / 2 + 0.5  # (images, wordings, findings)
    is_positive = np.broadcast_to((labels == 1)[:, None], present.shape)
    is_negative = np.broadcast_to((labels == 0)[:, None], present.shape)

    def statistic(draws: np.ndarray) -> np.ndarray:
        on_positives = resampled_share(draws, present, is_positive)
        on_negatives = resampled_share(draws, 1 - present, is_negative)
        shares = np.stack([on_positives, on_negatives, (on_positives + on_negatives) / 2], axis=1)
        return np.concatenate([shares, shares.mean(axis=-1, keepdims=True)], axis=-1).reshape(len(draws), -1)

    values, intervals = with_interval(statistic, draws)
    values = values.reshape(3, len(scores), -1)
    intervals = intervals.reshape(3, len(scores), -1, 2)[2]
    results = [
        {
            wording: {
                "on_positives": values[0, i, j],
                "on_negatives": values[1, i, j],
                "balanced": values[2, i, j],
                "balanced_ci95": intervals[i, j],
            }
            for i, wording in enumerate(scores)
        }
        for j in range(len(findings) + 1)
    ]
    mean = results.pop()
    return {"chance": 0.5, "findings": dict(zip(findings, results, strict=True)), "mean": mean}
