"""An archive in small."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from preparation import REPORT

SIZES = [(40, 60), (64, 40), (40, 40), (16, 30), (90, 80)]  # width, height


@pytest.fixture
def table(tmp_path) -> Path:
    """Twenty images in two splits, with boxes; patient 3 of train has a lateral image and no text."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "archive"
    folder.mkdir()
    rows = []
    for i in range(20):
        width, height = SIZES[i % len(SIZES)]
        Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8)).save(folder / f"{i:02d}.png")
        rows.append(
            {
                "image": f"{i:02d}.png",
                "patient_id": f"p{i // 2}",
                "study_id": f"s{i // 2}",
                "view": "LATERAL" if i == 6 else "PA",
                "findings": "" if i in (6, 7) else f"The heart {i // 2} is large.",
                "impression": "" if i in (6, 7) else ("No change." if i < 4 else f"Cardiomegaly {i // 2}."),
                "report": "" if i in (6, 7) else ("Same report." if i < 4 else REPORT + str(i)),
                "split": "train" if i < 14 else "validation",
                "Edema": ["1", "0", "-1", ""][i % 4],
                "boxes": json.dumps([{"label": "Edema", "bbox_xywh": [10, 5, 20, 10]}]) if i == 0 else "",
            }
        )
    path = folder / "reports.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path
