"""The command tier-export: what it refuses, and what its folder does in tier-predict, tier-eval and the pipeline."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from pipeline_checks import encode, make_image
from tiny_models import save_tiny_clip
from transformers import AutoModel

import eval_zeroshot
import predict_tier
from export_tier import main, parse

PHANTOM = ["--data", "phantom:num_images=40,image_size=64", "--split", "validation", "--min_positives", "3"]
FORMATS = [
    pytest.param("onnx", marks=pytest.mark.skipif(not find_spec("onnxruntime"), reason="needs onnxruntime")),
    pytest.param("openvino", marks=pytest.mark.skipif(not find_spec("openvino"), reason="needs openvino")),
]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "onnx"], "the following arguments are required: --output_dir"),
        (["--to", "tflite", "--output_dir", "out"], "invalid choice: 'tflite'"),
        (["--to", "onnx", "--output_dir", "full"], "--output_dir full exists and is not an empty folder"),
        (["--to", "onnx", "--output_dir", ""], "--output_dir is empty: give a folder."),
        (["--to", "onnx", "--output_dir", "out", "--int8"], "--int8 is calibrated on your images: give --data"),
        (["--to", "onnx", "--output_dir", "out", "--split", "test"], "--split has no effect without --data."),
        (
            ["--to", "onnx", "--output_dir", "out", "--data", "phantom", "--calibration_images", "9"],
            "--calibration_images has no effect without --int8.",
        ),
        (
            ["--to", "onnx", "--output_dir", "out", "--data", "phantom", "--int8", "--calibration_images", "4"],
            "--calibration_images must be from 8 to 1,024, but is 4.",
        ),
    ],
)
def test_options_that_do_not_fit(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full" / "inside").mkdir(parents=True)
    with pytest.raises(ValueError) as refused:
        parse(["model", *options])
    assert message in str(refused.value)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    stored = {"Edema": {"positive": ["Edema."], "negative": ["No edema."], "threshold": 0.5, "score_level": "global"}}
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return save_tiny_clip(folder, 0, image_pooling="patch_mean", zero_shot_findings=stored)


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize("to", FORMATS)
def test_a_folder_of_the_command_does_what_the_model_does(to, int8, model, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    out = tmp_path / "out"
    options = ["--int8", "--calibration_split", "train", "--calibration_images", "16"] if int8 else []
    main([str(model), "--to", to, "--output_dir", str(out), *PHANTOM, *options])
    printed = capsys.readouterr().out
    told = json.loads((out / "export.json").read_text())
    change = told["change"]
    assert f"Wrote {out}: {to}" in printed and (told["format"], told["int8"]) == (to, int8)
    assert change["n_images"] == change["n_maps"] == 40 and len(change["findings"]) > 3
    for finding, of in change["findings"].items():
        assert of["auroc_change"] == pytest.approx(of["auroc_after"] - of["auroc_before"])
        assert of["largest_score_change"] < (0.5 * of["score_sd"] if int8 else 1e-5), finding
        assert abs(of["auroc_change"]) <= (0.1 if int8 else 1e-9)
    assert change["maps"]["lowest_correlation"] > (0.9 if int8 else 1 - 1e-6)
    card = (out / "README.md").read_text()
    assert f"Mean AUROC: {change['mean']['auroc_before']:.4f} before" in card and "threshold" in card
    assert ("No label was used" in card) == int8
    if int8:
        assert told["calibration"] == {
            "dataset": "phantom:num_images=40,image_size=64",
            "split": "train",
            "n_images": 16,
        }
        assert not change["calibrated_on_them"]

    image = tmp_path / "a.png"
    image.write_bytes(encode(make_image(40, 50)))
    scores = {}
    for name, folder in (("model", model), ("out", out)):
        predict_tier.main([str(folder), str(image), "--output_dir", str(tmp_path / f"{name}-p")])
        predictions = json.loads((tmp_path / f"{name}-p" / "predictions.json").read_text())
        [scores[name]] = [entry["score"] for entry in predictions["images"][0]["findings"]]
        assert len(list((tmp_path / f"{name}-p" / "overlays").iterdir())) == 1
    assert scores["out"] == pytest.approx(scores["model"], abs=0.02 if int8 else 1e-5)

    eval_zeroshot.main([str(out), *PHANTOM, "--n_bootstrap", "5", "--output_dir", str(tmp_path / "e")])
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert metrics["mean"]["auroc"] == pytest.approx(change["mean"]["auroc_after"], abs=1e-9)
    [size] = metrics["sizes"].values()
    assert size["parameters"] == AutoModel.from_pretrained(model).num_parameters()


@pytest.mark.slow
def test_a_clean_process_loads_the_folder_by_its_own_code(model, tmp_path):
    """Without this package and without a network, as after a download; and no pickle is read."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    out = tmp_path / "out"
    main([str(model), "--to", "onnx", "--output_dir", str(out)])
    assert "Not measured." in (out / "README.md").read_text()
    assert {path.suffix for path in out.iterdir()} == {".json", ".md", ".onnx", ".py"}
    image = tmp_path / "a.png"
    image.write_bytes(encode(make_image(40, 50)))
    code = (
        "import sys, torch; torch.load = None\n"
        "from transformers import pipeline\n"
        f"pipe = pipeline('cxr-zero-shot-classification', model={str(out)!r}, trust_remote_code=True, device='cpu')\n"
        f"[one] = pipe({str(image)!r}, return_heatmaps=True)\n"
        "assert 'modeling_tier' not in sys.modules and type(pipe.model).__name__ == 'TierExportedModel'\n"
        "print(one['score'], one['heatmap'].patches.sum().item())"
    )
    environment = {
        **os.environ,
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": "",
    }
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    from transformers import pipeline

    pipe = pipeline("cxr-zero-shot-classification", model=str(model), trust_remote_code=True, device="cpu")
    [expected] = pipe(str(image), return_heatmaps=True)
    found = [float(number) for number in done.stdout.split()]
    assert found == pytest.approx([expected["score"], expected["heatmap"].patches.sum().item()], abs=1e-5)
