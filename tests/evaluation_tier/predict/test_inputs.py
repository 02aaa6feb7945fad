from pathlib import Path

import pytest
from pipeline_checks import encode, make_image

from evaluation_tier.predict.inputs import choose_findings, find_images
from processing_tier.prompts.loader import load_prompts, prompt_findings

STORED = {"Edema": {"positive": ["Edema."], "negative": ["Dry."], "scale": 2.0, "score_level": "global"}}


def test_images_of_files_and_folders(tmp_path):
    for name in ("b.JPG", "a.png", "deeper/c.dcm", ".d.png", ".deeper/e.png", "notes.txt", "deeper/plain"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encode(make_image(20, 20)))
    (tmp_path / "deeper" / "1.2.840").write_bytes(bytes(128) + b"DICM")
    inside = [tmp_path / name for name in ("a.png", "b.JPG", "deeper/1.2.840", "deeper/c.dcm")]
    assert find_images([str(tmp_path)]) == inside
    named = [str(tmp_path / "notes.txt"), "absent.png", str(tmp_path), str(tmp_path / "a.png")]
    assert find_images(named) == [Path(named[0]), Path("absent.png"), *inside]


def test_findings_of_the_model_come_first(tmp_path):
    report = load_prompts("report", ["Nodule"])["Nodule"]
    assert choose_findings(None, None, STORED) == STORED
    chosen = choose_findings(["Nodule", "edema"], None, STORED)
    assert chosen == {
        "Nodule": {"positive": report.positive, "negative": report.negative},
        "edema": STORED["Edema"],
    }
    assert list(choose_findings(None, None, None)) == prompt_findings("report")
    own = choose_findings(["Edema"], "tier", STORED)["Edema"]
    assert own.keys() == {"positive", "negative"} and own["positive"] != ["Edema."]
    with pytest.raises(
        ValueError, match="^The prompts 'chexzero' have templates but no findings: name some in --find"
    ):
        choose_findings(None, "chexzero", STORED)
