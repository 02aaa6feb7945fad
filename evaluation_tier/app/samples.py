"""The radiographs that the page offers to everybody: synthetic ones, drawn when the page starts."""

from typing import NamedTuple

from evaluation_tier.app.questions import Upload
from processing_tier.phantom.dataset import make_phantom
from processing_tier.phantom.findings import PHANTOM_FINDINGS

NUM_DRAWN, NUM_SAMPLES = 40, 4
SPLIT = "test"  # `make demo` does not train on these


class Sample(NamedTuple):
    """A synthetic radiograph, what was drawn into it, and the impression of its report."""

    upload: Upload
    findings: tuple[str, ...]
    impression: str


def draw_samples() -> list[Sample]:
    """One healthy phantom, and others that show between them as many findings as possible, at most two each."""
    drawn = []
    for record in make_phantom(NUM_DRAWN, split=SPLIT):
        found = tuple(name for name in PHANTOM_FINDINGS if record[name])
        drawn.append(
            Sample(Upload(f"{record['image_id']}.png", record["image"]["bytes"]), found, record["impression"])
        )
    chosen = [next(sample for sample in drawn if not sample.findings)]
    shown: set[str] = set()
    while len(chosen) < NUM_SAMPLES:
        candidates = [sample for sample in drawn if sample not in chosen and len(sample.findings) <= 2]
        best = max(candidates, key=lambda sample: len(set(sample.findings) - shown))
        chosen.append(best)
        shown |= set(best.findings)
    return chosen
