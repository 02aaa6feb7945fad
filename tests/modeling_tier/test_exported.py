"""A model of exported towers: its numbers, its maps, and which folders it refuses."""

import json
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from exported_models import IMAGE, patches_of, save_exported  # noqa: E402
from pipeline_checks import encode, make_image  # noqa: E402
from transformers import AutoModel  # noqa: E402

import predict_tier  # noqa: E402
from evaluation_tier.models.cache import hash_weights  # noqa: E402
from evaluation_tier.models.loading import load_model  # noqa: E402
from evaluation_tier.models.model_size import model_size  # noqa: E402
from modeling_tier import CxrZeroShotClassificationPipeline, TierExportedModel  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    stored = {"Edema": {"positive": ["Edema."], "negative": ["No edema."], "threshold": 0.25, "score_level": "global"}}
    return save_exported(tmp_path_factory.mktemp("exported"), zero_shot_findings=stored)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def model(folder):
    return AutoModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def pipe(folder):
    model, processor = load_model(folder)
    return CxrZeroShotClassificationPipeline(model, processor=processor, device="cpu")


def test_images_and_texts_are_what_the_graphs_say(model):
    assert isinstance(model, TierExportedModel) and model.config.model_type == "tier_clip"
    pixels = torch.randn(3, 3, 32, 32)
    outputs, patches = model.encode_images(pixels)
    np.testing.assert_allclose(patches, patches_of(pixels), atol=1e-6)
    np.testing.assert_allclose(outputs.pooler_output, patches_of(pixels).mean(axis=(1, 2)), atol=1e-6)
    grey = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    as_float = model.normalize_pixels(grey)
    torch.testing.assert_close(model.get_patch_map(grey), model.get_patch_map(as_float), rtol=0, atol=0)
    for length in (3, 5):  # of any length
        ids = torch.arange(2 * length).view(2, length)
        mask = torch.ones_like(ids)
        mask[1, -1] = 0
        texts = model.get_text_features(ids, mask)
        sines = (ids.sin() * mask).sum(dim=1)
        torch.testing.assert_close(texts.pooler_output[:, 0], sines, rtol=0, atol=1e-6)
        assert model.project_tokens(texts.last_hidden_state).shape == (2, length, 3)
    logits = model(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits_per_image
    assert logits.shape == (3, 2) and logits.abs().max() <= model.logit_scale.exp()


def test_the_pipeline_gives_scores_and_maps(pipe):
    image = np.random.default_rng(0).integers(0, 256, (50, 40), dtype=np.uint8)
    [one] = pipe(
        image,
        {"Edema": {"positive": "Edema.", "negative": "No edema.", "score_level": "global"}},
        return_heatmaps=True,
    )
    positive, negative = pipe.encode_texts(["Edema.", "No edema."])
    difference = pipe.encode_images(image) @ (positive - negative)
    assert one["score"] == pytest.approx(1 / (1 + np.exp(-difference)), abs=1e-6)
    assert one["heatmap"].patches.sum().item() == pytest.approx(difference, abs=1e-5)  # contributions add up
    assert one["heatmap"].array.shape == (50, 40)
    words = pipe.word_maps(image, "No edema.")
    assert [word["word"] for word in words] == ["No", "edema", "."]


def test_what_knows_a_model_by_its_weights_knows_this_one(folder, model, tmp_path):
    again = AutoModel.from_pretrained(folder)
    other = AutoModel.from_pretrained(save_exported(tmp_path, IMAGE.replace("AveragePool", "MaxPool")))
    assert hash_weights(again) == hash_weights(model) != hash_weights(other)
    original, _ = load_model(folder.parent / "model")
    assert model_size(model) == model_size(original)
    assert model.patch_centers == original.patch_centers == (4.0, 8.0)
    assert model.config.to_diff_dict().keys() <= original.config.to_dict().keys()


def truncate(folder):
    path = folder / "image.onnx"
    path.write_bytes(path.read_bytes()[:-1])


def change_a_byte(folder):
    path = folder / "text.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def swap(folder):
    shutil.copy(folder / "image.onnx", folder / "text.onnx")


def edit(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "image.onnx has"),
        (change_a_byte, "text.onnx is not the file that was exported"),
        (swap, "text.onnx"),
        (lambda folder: (folder / "text.onnx").unlink(), "lacks the file text.onnx"),
        (edit(files=None), "does not tell size and hash of image.onnx; export it again"),
        (edit(graph_format="tflite"), "graph_format must be one of onnx, openvino, not 'tflite'"),
        (edit(model={"model_type": "bert"}), "does not hold the model's own; export it again"),
        (edit(patch_centers=[1.0]), "lacks patch_centers"),
    ],
)
def test_a_folder_that_is_not_the_exported_one_is_refused(copy, damage, message):
    damage(copy)
    with pytest.raises(ValueError, match=message):
        TierExportedModel.from_pretrained(copy)
    with pytest.raises(ValueError, match=message):
        load_model(copy)


def test_a_file_that_the_runtime_does_not_read_is_one_sentence(tmp_path):
    folder = save_exported(tmp_path, IMAGE.replace("AveragePool", "NoSuchOperation"))
    with pytest.raises(ValueError, match=r"onnx [\d.]+ does not read .*image.onnx \(.*export it again"):
        TierExportedModel.from_pretrained(folder)


def test_what_an_exported_model_cannot_do(model, folder):
    ids = torch.ones(1, 78, dtype=torch.long)
    with pytest.raises(ValueError, match="Texts of 78 tokens are longer than the 77"):
        model.get_text_features(ids, ids)
    with pytest.raises(ValueError, match="attention_mask is missing"):
        model.get_text_features(ids[:, :5])
    with pytest.raises(ValueError, match="takes images of 32 x 32 pixels only, not of 64 x 64"):
        model.get_image_features(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="does not have a loss"):
        model(ids[:, :5], torch.zeros(1, 3, 32, 32), ids[:, :5], return_loss=True)
    with pytest.raises(ValueError, match="copy its folder"):
        model.save_pretrained("elsewhere")
    with pytest.raises(ValueError, match="backend must be one of onnx, openvino, not 'torch'"):
        TierExportedModel.from_pretrained(folder, backend="torch")
    with pytest.raises(ValueError, match="was exported to openvino, which the backend 'onnx' does not run"):
        edited = shutil.copytree(folder, folder.parent / "edited")
        files = dict.fromkeys(("image.xml", "image.bin", "text.xml", "text.bin"), {"bytes": 0, "sha256": ""})
        edit(graph_format="openvino", files=files)(edited)
        TierExportedModel.from_pretrained(edited, backend="onnx")


def test_the_backend_of_a_command(folder, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(encode(make_image(40, 50)))
    arguments = [str(tmp_path / "a.png"), "--output_dir", str(tmp_path / "out")]
    predict_tier.main([str(folder), *arguments, "--backend", "onnx"])
    assert "Scored 1 of 1 images" in capsys.readouterr().out
    [image] = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    [finding] = image["findings"]  # the one that the model holds, with its threshold
    assert (finding["label"], finding["threshold"]) == ("Edema", 0.25)
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 1
    for model, backend, message in (
        (folder, "torch", "was exported, and torch does not run it: leave --backend out."),
        (folder.parent / "model", "onnx", "is not one: export it with tier-export --to onnx, or leave --backend out."),
    ):
        with pytest.raises(SystemExit, match="2"):
            predict_tier.main([str(model), *arguments, "--backend", backend, "--overwrite"])
        assert message in capsys.readouterr().err
