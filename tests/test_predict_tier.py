"""The command tier-predict: table, files, overlays, bad files, thresholds."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from own_code import keep_modules_in, save_own_code
from own_model import OWN
from PIL import Image
from pipeline_checks import encode, make_dicom, make_image
from tiny_models import save_tiny_clip

from evaluation_tier.predict.files import NOTE
from modeling_tier import CxrZeroShotClassificationPipeline
from modeling_tier.findings_tier import SIDES
from predict_tier import main
from processing_tier.prompts.loader import load_prompts, prompt_findings

STORED = {
    "Edema": {"positive": ["Edema."], "negative": ["No edema."], "score_level": "global"},
    "Pleural Effusion": {
        "positive": ["Small left pleural effusion."],
        "negative": ["No pleural effusion."],
        "score_level": "global",
        "scale": 20.0,
        "bias": 0.5,
        "threshold": 0.4,
    },
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return save_tiny_clip(folder / "tiny", 0, image_pooling="patch_mean", zero_shot_findings=STORED)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three images, one of them DICOM without a suffix, and files that are not images."""
    folder = tmp_path / "images"
    (folder / "deeper" / ".hidden").mkdir(parents=True)
    (folder / "a.png").write_bytes(encode(make_image(40, 50)))
    (folder / "deeper" / "a.png").write_bytes(encode(make_image(60, 40, 1)))
    (folder / "deeper" / "IM1").write_bytes(make_dicom(np.random.default_rng(0).integers(0, 4096, (60, 50))))
    (folder / "metadata.csv").write_text("file_name\na.png\n")
    (folder / "deeper" / ".hidden" / "b.png").write_bytes(encode(make_image(40, 50)))
    return folder


def predictions(folder: Path) -> dict:
    return json.loads((folder / "predictions.json").read_text(encoding="utf-8"))


def test_files_are_what_the_pipeline_says(model, folder, tmp_path, capsys):
    out = tmp_path / "out"
    main([str(model), str(folder), "--output_dir", str(out)])
    printed = capsys.readouterr().out
    paths = [folder / "a.png", folder / "deeper" / "IM1", folder / "deeper" / "a.png"]
    assert f"Scored 3 of 3 images. {NOTE}" in printed and all(str(path) in printed for path in paths)
    told = predictions(out)
    assert (told["note"], told["n_images"], told["n_failed"]) == (NOTE, 3, 0)
    assert [image["image"] for image in told["images"]] == [str(path) for path in paths]
    assert {name: {key: entry[key] for key in STORED[name]} for name, entry in told["findings"].items()} == STORED

    from transformers import AutoModel, AutoProcessor

    processor = AutoProcessor.from_pretrained(model)
    pipe = CxrZeroShotClassificationPipeline(
        AutoModel.from_pretrained(model),
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
        device="cpu",
    )
    table = pd.read_csv(out / "predictions.csv")
    assert list(table["image"]) == [str(path) for path in paths for _ in STORED] and set(table["note"]) == {NOTE}
    assert sorted(path.name for path in (out / "overlays").iterdir()) == [
        f"{i}-{name}-{finding}.png"
        for i, name in enumerate(("a", "im1", "a"), 1)
        for finding in ("edema", "pleural_effusion")
    ]
    results = [pipe(path, return_heatmaps=True) for path in paths]
    # all images of a finding have one scale, that of the strongest
    limits = [max(result[column]["heatmap"].limit for result in results) for column in range(len(STORED))]
    assert [entry["overlay_limit"] for entry in told["findings"].values()] == limits
    for row, (image, expected) in enumerate(zip(told["images"], results, strict=True)):
        for column, (finding, other) in enumerate(zip(image["findings"], expected, strict=True)):
            heatmap, overlay = other.pop("heatmap"), finding.pop("overlay")
            assert finding == pytest.approx(other, abs=1e-6)
            of_table = table.iloc[2 * row + column]
            assert of_table["score"] == pytest.approx(finding["score"]) and of_table["overlay"] == overlay
            with Image.open(out / overlay) as picture:
                plain = heatmap.overlay(limit=limits[column])
                scale = 512 / plain.width
                enlarged = plain.resize((512, round(plain.height * scale)), Image.Resampling.BICUBIC)
                drawn = np.asarray(picture.convert("RGB"))
                np.testing.assert_array_equal(drawn[: enlarged.height], np.asarray(enlarged))
                assert drawn.shape[0] > enlarged.height and NOTE in picture.text["Description"]

    with pytest.raises(SystemExit) as exit_:
        main([str(model), str(folder), "--output_dir", str(out)])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.endswith(
        f"{out} holds predictions: choose another --output_dir, or pass --overwrite.\n"
    )
    main([str(model), str(folder / "a.png"), "--output_dir", str(out), "--overwrite", "--no_overlays"])
    assert sorted(path.name for path in out.iterdir()) == ["predictions.csv", "predictions.json"]


def test_top_k_threshold_and_findings(model, folder, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--findings", "Cardiomegaly", "edema", "pleural_effusion", "--top_k", "2", "--threshold", "0.5"]
    main([str(model), str(folder / "a.png"), *options, "--output_dir", str(out)])
    told = predictions(out)
    assert list(told["findings"]) == ["Cardiomegaly", "edema", "pleural_effusion"]
    assert told["findings"]["pleural_effusion"]["scale"] == 20  # found in the configuration, whatever its spelling
    report = load_prompts("report", ["Cardiomegaly"])["Cardiomegaly"]
    assert [told["findings"]["Cardiomegaly"][side] for side in SIDES] == [report.positive, report.negative]
    (image,) = told["images"]
    scores = [finding["score"] for finding in image["findings"]]
    assert len(scores) == 2 and scores == sorted(scores, reverse=True)
    for finding in image["findings"]:
        assert finding["threshold"] == 0.5 and finding["present"] is (finding["score"] >= 0.5)
    assert len(list((out / "overlays").iterdir())) == 2
    assert "uncalibrated" not in capsys.readouterr().out

    prompts = tmp_path / "mine.yaml"
    prompts.write_text('findings: {Edema: {positive: ["The lungs are wet."], negative: ["The lungs are dry."]}}')
    main([str(model), str(folder / "a.png"), "--prompts", str(prompts), "--output_dir", str(tmp_path / "own")])
    own = predictions(tmp_path / "own")
    assert list(own["findings"]) == ["Edema"] and own["findings"]["Edema"]["positive"] == ["The lungs are wet."]
    assert not own["images"][0]["findings"][0]["calibrated"]
    assert prompt_findings(prompts) == ["Edema"]


def test_bad_files_are_skipped(model, folder, tmp_path, capsys):
    bad, absent = tmp_path / "=bad.png", tmp_path / "absent.png"
    bad.write_text("not an image")
    out = tmp_path / "out"
    main([str(model), str(bad), str(folder / "a.png"), str(absent), "--output_dir", str(out)])
    printed = capsys.readouterr()
    assert "Scored 1 of 3 images." in printed.out
    assert f"  {bad}: the file is text, not an image; name the image file.\n  {absent}: the image file" in printed.out
    told = predictions(out)
    assert (told["n_images"], told["n_failed"]) == (1, 2)
    assert [sorted(image) for image in told["images"]] == [
        ["error", "image"],
        ["findings", "image"],
        ["error", "image"],
    ]
    table = pd.read_csv(out / "predictions.csv")
    assert table["error"].notna().tolist() == [True, False, False, True]
    assert sorted(path.name[0] for path in (out / "overlays").iterdir()) == ["2", "2"]

    main([str(model), "=bad.png", str(folder / "a.png")])  # without --output_dir nothing is written
    with pytest.raises(SystemExit) as exit_:
        main([str(model), str(bad), str(absent), "--output_dir", str(tmp_path / "none")])
    assert exit_.value.code == 2 and not (tmp_path / "none").exists()
    assert f"None of the 2 images can be read. The last one: {absent}: the image file" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit):
        main([str(model), str(tmp_path / "empty")])
    assert f"error: The folder {tmp_path / 'empty'} does not hold an image (PNG," in capsys.readouterr().err


def test_the_model_of_a_file(folder, tmp_path, capsys, caplog):
    mine, out = tmp_path / "mine.py", tmp_path / "out"
    mine.write_text(OWN)
    (tmp_path / "grey.png").write_bytes(encode(Image.new("L", (64, 48), 200)))
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text('findings: {Edema: {positive: ["Edema."], negative: ["No edema."]}}')
    options = [str(tmp_path / "grey.png"), "--prompts", str(prompts), "--output_dir", str(out)]
    main(["--adapter", f"{mine}:make=y", *options])
    told = predictions(out)
    digest = hashlib.sha256(mine.read_bytes()).hexdigest()
    assert told["adapter"] == {"file": "mine.py", "sha256": digest, "function": "make"}
    assert told["model"] == "mine.py:make=y" and "commit" not in told and "remote_code" not in told
    [finding] = told["images"][0]["findings"]
    difference = (200 - 100) / np.hypot(200, 100)
    assert finding == {
        "label": "Edema",
        "score": pytest.approx(1 / (1 + np.exp(-difference)), abs=1e-6),
        "calibrated": False,
    }
    assert "No overlays. UserModel does not give heat-maps." in caplog.text and not (out / "overlays").exists()
    for arguments, message in (
        ([f"{mine}:make"], f"{mine}:make looks like a Python file that makes a model: add --adapter."),
        (["--adapter", "runs/mine"], "--adapter takes FILE.py:FUNCTION or FILE.py:FUNCTION=NAME, but is 'runs/mine'."),
        ([str(mine)], f"The model {mine} is a file, and only open_clip_config.json beside weights of OpenCLIP says"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main([*arguments, str(folder / "a.png")])
        assert exit_.value.code == 2 and f"error: {message}" in capsys.readouterr().err


def test_code_of_the_model_runs_only_when_asked(folder, tmp_path, capsys, monkeypatch):
    keep_modules_in(tmp_path / "modules", monkeypatch)
    model, ran, out = save_own_code(tmp_path / "mine", tmp_path / "ran"), tmp_path / "ran", tmp_path / "out"
    options = [str(model), str(folder / "a.png"), "--findings", "Edema", "--output_dir", str(out)]
    with pytest.raises(SystemExit):
        main(options)
    assert "needs code of its own, which does not run unasked" in capsys.readouterr().err and not ran.exists()
    main([*options, "--trust_remote_code"])
    told = predictions(out)
    assert ran.exists() and told["remote_code"]["class"] == "MineModel" and len(told["images"][0]["findings"]) == 1
