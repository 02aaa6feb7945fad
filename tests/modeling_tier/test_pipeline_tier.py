"""The pipeline: scores, batches, heat-maps, options, and the folder it saves."""

import json
import math
import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from pipeline_checks import FINDINGS, SENTENCES, assert_same, encode, make_dicom, make_image, scores
from shipped import CLIP_CODE, DUAL_CODE, PROCESSOR_CODE
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPImageProcessorPil, CLIPModel, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from evaluation_tier.models.embedding import embed_batches
from evaluation_tier.scoring.image_scores import ImageScores
from modeling_tier import CxrZeroShotClassificationPipeline, TierCLIPModel
from modeling_tier.pipeline_tier import TASK
from modeling_tier.score_levels_tier import LEVELS
from processing_tier import TierImageProcessor, TierProcessor
from processing_tier.prompts.loader import Prompts


def test_scores_are_those_of_the_evaluation(pipe, processor):
    images = [make_image(40, 50, seed) for seed in range(5)]
    records = [{"image": {"bytes": encode(image), "path": None}} for image in images]
    dataset = datasets.Dataset.from_list(records).cast_column("image", datasets.Image(decode=False))
    prompts = {name: Prompts(entry["positive"], entry["negative"]) for name, entry in FINDINGS.items()}
    evaluated = {}
    for scoring in ("softmax", "difference"):
        of_images = ImageScores(pipe.model, processor, dataset, list(prompts), prompts, scoring)
        for rows, outputs in embed_batches(pipe.model, processor, dataset):
            of_images.add(rows, outputs)
        evaluated[scoring] = of_images.levels

    by_level = {}
    for level in LEVELS:
        asked = {name: {**vars(prompt), "score_level": level} for name, prompt in prompts.items()}
        by_level[level] = [scores(result) for result in pipe(images, asked)]
        np.testing.assert_allclose(by_level[level], evaluated["softmax"][level], rtol=0, atol=1e-6)
        assert np.ptp(by_level[level], axis=0).min() > 1e-4  # not all the same
    assert np.abs(np.subtract(by_level["global"], by_level["patches-lse"])).min() > 1e-5
    uncalibrated = {name: vars(prompt) for name, prompt in prompts.items()}
    assert [scores(result) for result in pipe(images, uncalibrated)] == by_level["patches-lse"]  # of patch_mean
    mixed = {name: uncalibrated[name] | {"score_level": level} for name, level in zip(prompts, LEVELS, strict=False)}
    expected = np.stack([np.array(by_level[level])[:, i] for i, level in enumerate(LEVELS[:2])], axis=1)
    np.testing.assert_array_equal([scores(result) for result in pipe(images, mixed)], expected)

    # with scale, bias and threshold of the configuration, which does not name a level: as of an older version
    difference = evaluated["difference"]["global"]
    expected = 1 / (1 + np.exp(-(difference * [20, 1] + [-0.5, 0])))[:, ::-1]  # in the order of the alphabet
    results = pipe(images)
    np.testing.assert_allclose([scores(result) for result in results], expected, rtol=0, atol=1e-5)
    for result in results:
        assert [finding["label"] for finding in result] == ["Edema", "Pleural Effusion"]
        assert result[1]["present"] is (result[1]["score"] >= 0.4)
        assert result[0].keys() == {"label", "score", "calibrated"} and result[0]["calibrated"] is False
        assert result[1].keys() == {"label", "score", "calibrated", "threshold", "present"}
        assert (result[1]["calibrated"], result[1]["threshold"]) == (True, 0.4)


def test_batches_generators_and_datasets_equal_single_images(pipe):
    images = [make_image(40, 50, seed) for seed in range(5)]
    single = [scores(pipe(image)) for image in images]
    runs = [pipe(images, batch_size=size) for size in (1, 2, 5)]
    runs += [pipe(tuple(images)), list(pipe(image for image in images))]
    undecoded = datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image(decode=False))
    runs += [list(pipe(KeyDataset(undecoded, "image"), batch_size=2))]
    for run in runs:
        np.testing.assert_allclose([scores(result) for result in run], single, rtol=0, atol=1e-6)
    assert pipe([]) == []


def test_heatmaps_lie_in_the_original_pixels(pipe):
    image = make_image(90, 60)
    result = pipe(image, return_heatmaps=True)
    assert_same(result, pipe(image))
    for finding in result:
        assert finding["heatmap"].shape == (60, 90) and finding["heatmap"].array.dtype == np.float32
        assert np.abs(finding["heatmap"].array).max() <= 2
    # one sentence per side: the difference of their similarity maps
    tokens = pipe.tokenizer(SENTENCES[2:], padding=True, return_tensors="pt")
    pixels = pipe.image_processor(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        inputs = (tokens["input_ids"], pixels, tokens["attention_mask"])
        maps = pipe.model.get_similarity_map(*inputs, kind="contribution")
        logits = pipe.model(*inputs).logits_per_image[0] / pipe.model.logit_scale.exp()
    difference = (maps[0, 0] - maps[0, 1]).sum().item()
    assert difference == pytest.approx((logits[0] - logits[1]).item(), abs=1e-6)
    assert result[0]["score"] == pytest.approx(1 / (1 + math.exp(-difference)), abs=1e-6)  # what the map adds up to
    expected = pipe.to_pixels(maps[:, :1] - maps[:, 1:], (60, 90))
    np.testing.assert_allclose(result[0]["heatmap"], expected[0], rtol=0, atol=1e-6)
    assert np.ptp(expected[0]) > 1e-3 * np.abs(expected[0]).max() > 0
    if isinstance(pipe.model, TierCLIPModel):
        pipe.model.config.image_pooling = "cls"
        again = pipe(image, return_heatmaps=True)
        assert_same(again, pipe(image))
        assert again[0]["score"] != pytest.approx(result[0]["score"], abs=1e-4)
        with torch.no_grad():
            direct = pipe.model.get_similarity_map(*inputs, kind="direct")  # such a score is not a sum over patches
        direct = pipe.to_pixels(direct[:, :1] - direct[:, 1:], (60, 90))
        np.testing.assert_allclose(again[0]["heatmap"], direct[0], rtol=0, atol=1e-6)
        pipe.model.config.image_pooling = "patch_mean"
    # images of different sizes in one batch
    batch = pipe([image, make_image(33, 44)], return_heatmaps=True, batch_size=2)
    np.testing.assert_allclose(batch[0][0]["heatmap"], expected[0], rtol=0, atol=1e-6)
    assert batch[1][1]["heatmap"].shape == (44, 33)


def test_what_the_model_never_saw_is_nan(clip_pipe):
    clip_pipe.image_processor = TierImageProcessor(size={"height": 32, "width": 32}, geometry="crop")
    heatmap = clip_pipe(make_image(100, 50), "Edema", return_heatmaps=True)[0]["heatmap"].array
    assert np.isnan(heatmap[:, :25]).all() and np.isnan(heatmap[:, 75:]).all()
    assert np.isfinite(heatmap[:, 25:75]).all()


def test_word_maps(pipe):
    image, text = make_image(90, 60), "Small left  pleural effusion, xyz."
    maps = pipe.word_maps(image, text)
    assert [entry["word"] for entry in maps] == ["Small", "left", "pleural", "effusion", ",", "xyz", "."]
    tokens = pipe.tokenizer(text, return_tensors="pt")
    pixels = pipe.image_processor(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = pipe.model.get_similarity_map(
            tokens["input_ids"], pixels, tokens["attention_mask"], per_token=True, kind="contribution"
        )[:, 0]
    (expected,) = pipe.image_processor.post_process_similarity_map(
        expected, [(60, 90)], pipe.model.patch_centers
    )  # (tokens, 60, 90)
    words = tokens.word_ids(0)
    assert words.count(words[-3]) >= 1 and words[0] is words[-1] is None  # BOS and EOS have no map
    positions = [[i for i, word in enumerate(words) if word == number] for number in dict.fromkeys(words[1:-1])]
    assert max(map(len, positions)) > 1  # "xyz" is no word of the tokenizer
    for entry, position in zip(maps, positions, strict=True):
        np.testing.assert_allclose(entry["heatmap"], expected[position].mean(0), rtol=0, atol=1e-6)
    for several in pipe.word_maps(image, [SENTENCES[0], text]), pipe.word_maps(image, (SENTENCES[0], text)):
        for words, alone in zip(several, (pipe.word_maps(image, SENTENCES[0]), maps), strict=True):
            assert [entry["word"] for entry in words] == [entry["word"] for entry in alone]
            for entry, other in zip(words, alone, strict=True):
                np.testing.assert_allclose(entry["heatmap"], other["heatmap"], rtol=0, atol=1e-6)
    for bad in ("  ", [text, ""]):
        with pytest.raises(ValueError, match="^The text does not hold a word; pass a sentence.$"):
            pipe.word_maps(image, bad)


def test_bad_options(clip_pipe, processor):
    with pytest.raises(ValueError) as error:
        clip_pipe(make_image(40, 50), candidate_labels=["edema"])
    assert str(error.value) == (
        "The pipeline cxr-zero-shot-classification has no option 'candidate_labels'; its options are findings, "
        "return_heatmaps, timeout, on_error, batch_size, num_workers."
    )
    clip_pipe.model.config.zero_shot_findings = None
    with pytest.raises(ValueError) as error:
        clip_pipe(make_image(40, 50))
    assert str(error.value) == (
        "The model's configuration does not hold findings. Name some, such as findings=['Pleural Effusion']."
    )
    message = "^The pipeline cxr-zero-shot-classification needs a tokenizer and a TierImageProcessor, not {} and {}:"
    for parts, names in (
        ({}, ("NoneType", "NoneType")),
        ({"tokenizer": processor.tokenizer}, (type(processor.tokenizer).__name__, "NoneType")),
        (
            {"tokenizer": processor.tokenizer, "image_processor": CLIPImageProcessorPil()},
            (type(processor.tokenizer).__name__, CLIPImageProcessorPil.__name__),
        ),
    ):
        with pytest.raises(ValueError, match=message.format(*names)):
            pipeline(TASK, model=clip_pipe.model, **parts)
    with torch.no_grad():
        clip_pipe.model.visual_projection.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="^The model's embeddings are not finite: its weights are damaged"):
        clip_pipe(make_image(40, 50), ["Edema"])


def test_plain_clip_has_scores_but_no_heatmaps(clip_pipe, models, processor):
    model = CLIPModel(
        CLIPConfig(
            **{k: getattr(models["clip"].config, k).to_dict() for k in ("text_config", "vision_config")},
            projection_dim=24,
        )
    ).eval()
    model.load_state_dict(models["clip"].state_dict())
    models["clip"].config.image_pooling = "cls"
    try:
        expected = pipeline(TASK, model=models["clip"], processor=processor)(make_image(40, 50), FINDINGS)
    finally:
        models["clip"].config.image_pooling = "patch_mean"
    pipe = pipeline(TASK, model=model, tokenizer=processor.tokenizer, image_processor=processor.image_processor)
    assert scores(pipe(make_image(40, 50), FINDINGS)) == pytest.approx(scores(expected), abs=1e-6)
    with pytest.raises(ValueError, match="^A CLIPModel does not give heat-maps. Use a TIER model.$"):
        pipe(make_image(40, 50), FINDINGS, return_heatmaps=True)
    assert "Edema" not in (getattr(model.config, "zero_shot_findings", None) or {})
    assert_same(pipe(make_image(40, 50), ["Edema"]), pipe(make_image(40, 50), {"Edema": {"score_level": "global"}}))
    message = "^The finding 'Edema' has the score_level 'both-max', but a CLIPModel does not embed patches. Use a TIER"
    with pytest.raises(ValueError, match=message):
        pipe(make_image(40, 50), {"Edema": {"score_level": "both-max"}})
    with pytest.raises(ValueError, match="^A CLIPModel does not give heat-maps. Use a TIER model.$"):
        pipe.word_maps(make_image(40, 50), "Edema.")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(pipe, dtype):
    image = make_image(40, 50)
    expected = scores(pipe(image))
    half = pipeline(TASK, model=pipe.model.to(dtype), processor=pipe.processor, device="cpu")
    assert scores(half(image)) == pytest.approx(expected, abs=0.05)
    assert half(image, return_heatmaps=True)[0]["heatmap"].array.dtype == np.float32


CLEAN_PROCESS = """
import json, sys
from pathlib import Path

for name in ("modeling_tier", "processing_tier", "evaluation_tier", "training_tier"):
    sys.modules[name] = None
from transformers import AutoProcessor, pipeline

folder, kinds = Path(sys.argv[1]), sys.argv[2:]
options = {"trust_remote_code": True, "device": "cpu"}
result = {}
for kind in kinds:
    source = str(folder / kind)
    task = "cxr-zero-shot-classification"
    pipes = [pipeline(model=source, **options), pipeline(task, model=source, **options)]
    pipes[0].save_pretrained(folder / f"{kind}-again")
    AutoProcessor.from_pretrained(folder / f"{kind}-again", trust_remote_code=True)
    pipes.append(pipeline(task, model=str(folder / f"{kind}-again"), **options))
    result[kind] = []
    for pipe in pipes:
        assert type(pipe).__module__.startswith("transformers_modules."), type(pipe)
        scores = pipe([str(folder / "x.png"), str(folder / "x.dcm")], return_heatmaps=True)
        words = pipe.word_maps(str(folder / "x.dcm"), "Pleural effusion.")
        result[kind].append([
            [[finding["score"] for finding in image] for image in scores],
            scores[1][1]["heatmap"].array.tolist(),
            words[1]["word"], words[1]["heatmap"].array.tolist(),
        ])
    stock = pipeline("zero-shot-image-classification", model=source, **options)
    result[kind].append(stock(str(folder / "x.png"), candidate_labels=["edema", "effusion"]))
sys.modules["pydicom"] = None
try:
    pipes[0](str(folder / "x.dcm"))
except ValueError as error:
    result["no pydicom"] = str(error)
print("RESULT" + json.dumps(result))
"""


@pytest.mark.slow
def test_a_saved_folder_gives_the_same_where_only_transformers_is(models, processor, tmp_path):
    kinds = list(models)
    (tmp_path / "x.png").write_bytes(encode(make_image(40, 50)))
    (tmp_path / "x.dcm").write_bytes(make_dicom(np.random.default_rng(0).integers(0, 4096, (60, 50))))
    here = {kind: pipeline(TASK, model=model, processor=processor, device="cpu") for kind, model in models.items()}
    models["clip"].save_pretrained(tmp_path / "clip")  # as the Trainer saves it
    processor.save_pretrained(tmp_path / "clip")
    here["dual"].save_pretrained(tmp_path / "dual")
    for kind, pipe in here.items():
        files = (DUAL_CODE if kind == "dual" else CLIP_CODE) | PROCESSOR_CODE
        assert {path.name for path in (tmp_path / kind).glob("*.py")} == files
        config = json.loads((tmp_path / kind / "config.json").read_text())
        assert config["custom_pipelines"] == {
            TASK: {"impl": "pipeline_tier.CxrZeroShotClassificationPipeline", "pt": ["AutoModel"]}
        }
        assert config["zero_shot_findings"] == FINDINGS
        assert type(AutoModel.from_pretrained(tmp_path / kind)) is type(pipe.model)
        assert type(AutoProcessor.from_pretrained(tmp_path / kind)) is TierProcessor

    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", CLEAN_PROCESS, str(tmp_path), *kinds]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.split("RESULT")[1])
    for kind, pipe in here.items():
        expected = pipe([tmp_path / "x.png", tmp_path / "x.dcm"], return_heatmaps=True)
        words = pipe.word_maps(tmp_path / "x.dcm", "Pleural effusion.")
        *ours, stock = result[kind]
        assert len(ours) == 3
        for there, heatmap, word, word_map in ours:
            np.testing.assert_allclose(there, [scores(image) for image in expected], rtol=0, atol=1e-6)
            np.testing.assert_allclose(heatmap, expected[1][1]["heatmap"], rtol=0, atol=1e-6)
            assert word == words[1]["word"] == "effusion"
            np.testing.assert_allclose(word_map, words[1]["heatmap"], rtol=0, atol=1e-6)
        assert {score["label"] for score in stock} == {"edema", "effusion"}
        assert sum(score["score"] for score in stock) == pytest.approx(1.0, abs=1e-6)
    assert result["no pydicom"] == (
        "x.dcm: pydicom, which reads DICOM, is not installed: pip install pydicom, or export the image as PNG."
    )


def test_with_the_package_installed(models, processor, tmp_path):
    pipe = pipeline(TASK, model=models["clip"], processor=processor, device="cpu")
    assert type(pipe) is CxrZeroShotClassificationPipeline
    pipe.save_pretrained(tmp_path)
    image, expected = make_image(40, 50), pipe(make_image(40, 50))
    with pytest.raises(ValueError, match="trust_remote_code=True"):  # of transformers, for any custom pipeline
        pipeline(TASK, model=str(tmp_path))
    own = pipeline(TASK, model=str(tmp_path), pipeline_class=CxrZeroShotClassificationPipeline)
    assert type(own) is CxrZeroShotClassificationPipeline and type(own.model) is TierCLIPModel
    assert_same(own(image), expected)
    assert_same(pipeline(model=str(tmp_path), trust_remote_code=True)(image), expected)
    (tmp_path / "processor_config.json").unlink()  # a folder as the stock pipelines save it
    apart = pipeline(TASK, model=str(tmp_path), pipeline_class=CxrZeroShotClassificationPipeline)
    assert_same(apart(image), expected)
