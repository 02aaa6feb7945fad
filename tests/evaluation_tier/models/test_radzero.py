"""RadZero in the layout of its owner's training, against a second implementation of what is its own."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from eval_command import PHANTOM, fails, run
from safetensors.torch import load_file, save_file
from tiny_radzero import DIM, EDGE, TEXTS, Parts
from torch.nn.functional import layer_norm

from evaluation_tier.analyses.grounding.maps import PatchMaps
from evaluation_tier.analyses.grounding.regions import read_cases
from evaluation_tier.models.contract import to_unit_length
from evaluation_tier.models.embedding import embed_prompts
from evaluation_tier.models.loading import load_model
from evaluation_tier.models.radzero import RadZero, spread_levels
from evaluation_tier.models.single_pass import Fed, asked_rows, feed
from evaluation_tier.scoring.protocols import choose_protocol
from evaluation_tier.scoring.zeroshot import evaluate_zero_shot
from evaluation_tier.statistics.resampling import Resampling
from modeling_tier.checkpoints import open_source
from processing_tier.prompts.loader import Prompts


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts()


@pytest.fixture
def folder(parts, tmp_path) -> Path:
    return parts.save(tmp_path / "radzero")


def test_scores_are_those_of_a_second_implementation(parts, folder, phantom):
    few = phantom.select(range(6))
    model, processor = load_model(folder)
    assert isinstance(model, RadZero) and processor is None
    expected, queries, tokens = parts.scores(few["image"], TEXTS, model.tokenizer)
    with torch.no_grad():
        texts = model.embed_texts(TEXTS)
        np.testing.assert_allclose(texts, queries, rtol=0, atol=1e-5)
        np.testing.assert_allclose(model.embed_texts(TEXTS, batch_size=1), texts, rtol=0, atol=1e-6)
        pixels = torch.cat([model.preprocess(model.read_image(image)) for image in few["image"]])
        assert pixels.shape == (6, 3, EDGE, EDGE)
        embeds = model.embed_patches(pixels)
        assert embeds.patches.shape == (6, 16, DIM)
        np.testing.assert_allclose(embeds.images, tokens[:, 0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(embeds.patches, tokens[:, 1:], rtol=0, atol=1e-5)
        np.testing.assert_allclose(model.score(*embeds[:2], texts), expected, rtol=0, atol=1e-5)
        alone = model.embed_patches(pixels[:1])
        np.testing.assert_allclose(alone.patches, embeds.patches[:1], rtol=0, atol=1e-6)
    assert np.abs(expected - tokens[:, 0] @ queries.T).max() > 0.05  # the class token alone would not do


# Cosines (images, texts) of the owner's losses.py, `RadZeroLoss` with sim_op "cos" and loss_temperature 0.2 and
# compute_loss=False, with and without the class token
OWNERS = {
    True: [
        [0.4306308627128601, 0.6603155136108398, 0.5324896574020386, 0.5280798673629761],
        [0.31623196601867676, 0.5086529850959778, 0.44607722759246826, 0.7738166451454163],
        [0.38484418392181396, 0.655651330947876, 0.5307106375694275, 0.7074543237686157],
    ],
    False: [
        [0.4560241401195526, 0.6820215582847595, 0.5565565824508667, 0.4000418484210968],
        [0.31695666909217834, -0.13797712326049805, 0.4600902497768402, 0.6620578765869141],
        [0.39523592591285706, 0.4643973708152771, 0.5312110781669617, 0.7236950397491455],
    ],
}


@pytest.mark.parametrize("with_class_token", OWNERS)
def test_the_pooling_is_the_owners(with_class_token):
    generator = torch.Generator().manual_seed(0)
    tokens, texts = torch.randn(3, 5, 8, generator=generator), torch.randn(4, 8, generator=generator)
    weight, bias = 1 + 0.3 * torch.randn(8, generator=generator), 0.3 * torch.randn(8, generator=generator)
    tokens, texts = (to_unit_length(layer_norm(part, (8,), weight, bias)) for part in (tokens, texts))
    model = SimpleNamespace(
        with_class_token=with_class_token, loss_temperature=torch.tensor([0.2]).log(), attn_temperature=None
    )
    scores = RadZero.score(model, tokens[:, 0], tokens[:, 1:], texts)
    np.testing.assert_allclose(scores, OWNERS[with_class_token], rtol=0, atol=1e-6)


def test_grey_levels_are_spread_as_opencv_does_it():
    """The hash is that of `cv2.normalize(levels, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)` of OpenCV 5.0.0."""
    digest = hashlib.sha256()
    for low in range(0, 256, 5):
        for high in range(low + 1, 256, 3):
            digest.update(spread_levels(np.arange(low, high + 1, dtype=np.uint8)[None]).tobytes())
    assert digest.hexdigest() == "e82430d45cd6e1d76f38ea978c477a52dfbd1fbfbdebab022789c78aa604e65f"
    assert not spread_levels(np.full((3, 3), 7, dtype=np.uint8)).any()


def test_an_evaluation_scores_by_text_conditioned_pooling(parts, folder, phantom):
    few = phantom.select(range(12))
    model = load_model(folder)
    prompts = {"Edema": Prompts([TEXTS[0]], [TEXTS[1]]), "Cardiomegaly": Prompts([TEXTS[2]], [])}
    expected, *_ = parts.scores(few["image"], TEXTS, model[0].tokenizer)
    options = {"findings": list(prompts), "min_positives": 1, "resampling": Resampling(5)}
    metrics, predictions = evaluate_zero_shot({"m": model}, few, protocol=choose_protocol(prompts=prompts), **options)
    scores = predictions[["score_Edema", "score_Cardiomegaly"]]
    wanted = np.stack([expected[:, 0] - expected[:, 1], expected[:, 2]], axis=1)
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-5)
    assert metrics["protocol"]["score_level"] == "global" and "similarities" not in metrics["protocol"]
    assert {"global", "patches-max", "both-lse"} <= set(metrics["score_levels"])
    plain = choose_protocol("plain", prompts=prompts)
    _, predictions = evaluate_zero_shot({"m": model}, few, protocol=plain, **options)
    np.testing.assert_allclose(predictions["score_Edema"], 1 / (1 + np.exp(-expected[:, 0])), rtol=0, atol=1e-5)


def test_its_maps_are_the_cosines_of_the_patches_over_the_squashed_picture(parts, folder, phantom):
    """The owner's map is that cosine, divided by a temperature (modeling.py, `similarity_scores`)."""
    model, _ = load_model(folder)
    cases = [case for case in read_cases(phantom) if case.finding == "Cardiomegaly"][:3]
    maps = PatchMaps(model, None, len(phantom), cases, {"Cardiomegaly": Prompts([TEXTS[2]], [TEXTS[1]])})
    assert maps.kinds == ("cosine",)
    feed([Fed(model, None, [maps])], phantom, asked_rows(phantom, [maps]), 16)
    _, queries, tokens = parts.scores([phantom[case.row]["image"] for case in cases], TEXTS, model.tokenizer)
    for case, of_image in zip(cases, tokens, strict=True):
        grid = maps.grids()[case]["positive"]
        np.testing.assert_allclose(grid, (of_image[1:] @ queries[2]).reshape(4, 4), rtol=0, atol=1e-5)
    ramp = torch.arange(4.0).expand(4, 4)  # in a picture twice as wide as high
    over_picture = model.map_processor.post_process_similarity_map(ramp[None], [(100, 200)], model.patch_centers)[0]
    columns = ((torch.arange(200) + 0.5) / 50 - 0.5).clamp(0, 3)
    torch.testing.assert_close(over_picture, columns.expand(100, 200), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_grounding_is_measured(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    options = ["--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 5, "--output_dir", tmp_path / "output"]
    options += ["--findings", "Cardiomegaly"]
    run(folder, *options, "--analyses", "grounding", "--figures", capsys=capsys)
    metrics = json.loads((tmp_path / "output" / "metrics.json").read_text())
    assert set(metrics["grounding"]["all_regions"]["maps"]) == {"positive", "difference", "above_average"}
    assert (tmp_path / "output" / "grounding.png").is_file()
    assert (tmp_path / "output" / "similarity_cardiomegaly.png").is_file()


def test_it_may_be_averaged_with_a_model_of_cosines(folder, tier_model, phantom):
    models_ = {"radzero": load_model(folder), "tier": tier_model}
    options = {"findings": ["Edema"], "min_positives": 1, "resampling": Resampling(5), "protocol": "tier"}
    alone = [evaluate_zero_shot({name: member}, phantom, **options)[1] for name, member in models_.items()]
    _, together = evaluate_zero_shot(models_, phantom, **options)
    mean = (alone[0]["score_Edema"] + alone[1]["score_Edema"]) / 2
    np.testing.assert_allclose(together["score_Edema"], mean, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_the_command_and_the_cache(folder, tmp_path, capsys):
    options = ["--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 5, "--cache_dir", tmp_path / "cache"]
    found = []
    for output in ("first", "second"):
        run(folder, *options, "--output_dir", tmp_path / output, capsys=capsys)
        found.append(json.loads((tmp_path / output / "metrics.json").read_text()))
    assert [size["image_size"] for size in found[0]["sizes"].values()] == [56]
    assert found[0] == found[1] and len(list((tmp_path / "cache").rglob("*.safetensors"))) == 40
    for analysis, message in {
        "retrieval": "A RadZero scores by more than one embedding of each image",
        "deletion": "RadZero does not give similarity maps of sentences",
    }.items():
        assert fails(folder, *options, "--analyses", analysis, capsys=capsys).startswith(message)
    assert embed_prompts(*load_model(folder), {"a": Prompts(TEXTS, [])})[0].shape == (1, DIM)


@pytest.mark.parametrize(
    "section, key, value, message",
    [
        ("text_config", "model_type", "biomedclip", "text_config.model_type 'biomedclip'; only the published design"),
        ("text_config", "use_cls_token", True, "text_config.use_cls_token True; only"),
        ("vision_config", "model_type", "m3ae", "vision_config.model_type 'm3ae'; only"),
        (None, "compute_logits_type", "cls_alignment", "compute_logits_type 'cls_alignment'; only"),
    ],
)
def test_the_ablations_are_refused(folder, section, key, value, message):
    config = json.loads((folder / "config.json").read_text())
    (config[section] if section else config)[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError) as error:
        load_model(folder)
    assert f"The RadZero model {folder} has {message}" in str(error.value)


@pytest.mark.parametrize(
    "key",
    [
        "vision_model.layernorm.weight",
        "text_model.embeddings.word_embeddings.weight",
        "text_model.encoder.layer.1.output.dense.bias",
        "align_transformer.transformer_layers.layer.0.norm1.weight",
        "loss_fns.RadZeroLoss.loss_temperature",
    ],
)
def test_a_missing_and_a_left_over_tensor_are_named(folder, key):
    tensors = load_file(folder / "model.safetensors")
    for changed, what, named in (
        ({name: tensor for name, tensor in tensors.items() if name != key}, "lack", key),
        ({**tensors, f"{key}_more": torch.ones(1)}, "have beyond RadZero's", f"{key}_more"),
    ):
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError) as error:
            load_model(folder)
        assert str(error.value).startswith(
            f"The weights of {folder} {what} 1 tensors, for example {named}: they belong"
        )


def test_it_is_not_converted(folder):
    with pytest.raises(ValueError) as error:
        open_source(folder)
    assert str(error.value) == (
        f"{folder} holds RadZero, which needs no conversion: tier-eval reads the folder as it is."
    )


def test_a_missing_processor_is_named(folder):
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="radzero has no complete processor .*: save those of StanfordAIMI"):
        load_model(folder)
