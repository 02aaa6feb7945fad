"""The zero-shot pipeline: what goes in, what comes out, and that a saved folder gives the same anywhere."""

import copy
import http.server
import json
import math
import os
import subprocess
import sys
import threading

import datasets
import numpy as np
import pytest
import torch
from pipeline_checks import (
    FINDINGS,
    SENTENCES,
    assert_same,
    encode,
    make_dicom,
    make_image,
    scores,
)
from shipped import CLIP_CODE, DUAL_CODE, PROCESSOR_CODE
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPImageProcessorPil, CLIPModel, pipeline
from transformers.pipelines.pt_utils import KeyDataset
from transformers.utils import logging

from evaluation_tier.models.embedding import embed_images, embed_prompts
from evaluation_tier.scoring.scores import zero_shot_scores
from modeling_tier import (
    CxrZeroShotClassificationPipeline,
    TierCLIPModel,
)
from modeling_tier.pipeline_tier import MAX_CACHED_TEXTS, TASK
from modeling_tier.texts_tier import embed_texts, tokenize
from processing_tier import TierImageProcessor, TierProcessor, read_radiograph, train_tokenizer
from processing_tier.prompts.loader import Prompts


class Calls:
    """Counts the calls of a model's text tower."""

    def __init__(self, model, monkeypatch):
        self.texts, original = [], model.get_text_features

        def spy(input_ids, attention_mask):
            self.texts.append(len(input_ids))
            return original(input_ids=input_ids, attention_mask=attention_mask)

        monkeypatch.setattr(model, "get_text_features", spy)


def test_scores_are_those_of_the_evaluation(pipe, processor):
    images = [make_image(40, 50, seed) for seed in range(5)]
    records = [{"image": {"bytes": encode(image), "path": None}} for image in images]
    dataset = datasets.Dataset.from_list(records).cast_column("image", datasets.Image(decode=False))
    prompts = {name: Prompts(entry["positive"], entry["negative"]) for name, entry in FINDINGS.items()}
    embeds = embed_images(pipe.model, processor, dataset), *embed_prompts(pipe.model, processor, prompts)

    uncalibrated = {name: vars(prompt) for name, prompt in prompts.items()}
    results = [scores(result) for result in pipe(images, uncalibrated)]
    np.testing.assert_allclose(results, zero_shot_scores(*embeds, scoring="softmax"), rtol=0, atol=1e-6)
    assert np.ptp(results, axis=0).min() > 1e-4  # not all the same

    # with scale, bias and threshold of the configuration
    difference = zero_shot_scores(*embeds, scoring="difference")
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


@pytest.fixture
def server():
    """URL of a loopback web server that has one image, x.png."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/x.png" else 404)
            self.end_headers()
            self.wfile.write(encode(make_image(40, 50)))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_sources_agree(clip_pipe, server, tmp_path):
    image = make_image(40, 50)
    path = tmp_path / "x.png"
    path.write_bytes(encode(image))
    expected = clip_pipe(image)
    sources = [path, str(path), path.read_bytes(), np.asarray(image), np.stack([image] * 3, axis=-1)]
    sources += [image.convert("RGB"), {"bytes": path.read_bytes(), "path": None}, f"{server}/x.png"]
    for source in sources:
        assert clip_pipe(source) == expected
    with open(path, "rb") as file:
        assert clip_pipe([file, path]) == [expected, expected]


def test_dicom_equals_its_pixels(clip_pipe, tmp_path):
    array = np.random.default_rng(0).integers(0, 4096, (60, 50)).astype(np.uint16)
    path = tmp_path / "x.dcm"
    path.write_bytes(make_dicom(array))  # no window: that of the percentiles, as for an array
    assert clip_pipe(path) == clip_pipe(array) == clip_pipe(path.read_bytes())
    inverted = make_dicom(4095 - array, PhotometricInterpretation="MONOCHROME1")
    assert scores(clip_pipe(inverted)) == pytest.approx(scores(clip_pipe(array)), abs=2e-3)


def test_real_dicom_equals_its_array(clip_pipe, shared_data):
    path = shared_data / "dicom" / "RG1_J2KI.dcm"
    array = np.asarray(read_radiograph(path))
    (result,), (expected,) = (clip_pipe(source, "Edema", return_heatmaps=True) for source in (path, array))
    assert result["score"] == expected["score"]
    np.testing.assert_array_equal(result["heatmap"], expected["heatmap"])
    assert result["heatmap"].shape == array.shape == (1955, 1841)


def test_findings_by_name_or_by_sentences(clip_pipe):
    image = make_image(40, 50)
    edema, effusion = clip_pipe(image)
    assert_same(clip_pipe(image, "pleural_effusion"), [{**effusion, "label": "pleural_effusion"}])
    assert_same(clip_pipe(image, ["Pleural Effusion", "Edema"]), [effusion, edema])  # in the order asked for
    own = {"positive": SENTENCES[2], "negative": (SENTENCES[3],)}
    assert_same(clip_pipe(image, {"Edema": own}), [edema])
    assert_same(clip_pipe(image, {"Edema": {**own, "threshold": 0.0}}), [{**edema, "threshold": 0.0, "present": True}])
    # templates, for a name without sentences and for a side left out
    templates = clip_pipe(image, {"Lung Lesion": {"positive": ["Lung Lesion."], "negative": ["No Lung Lesion."]}})
    assert_same(clip_pipe(image, {"Lung Lesion": {"positive": "Lung Lesion."}}), templates)
    assert_same(clip_pipe(image, {"Lung Lesion": {}}), templates)
    assert_same(clip_pipe(image, ["Lung_Lesion"]), [{**templates[0], "label": "Lung_Lesion"}])
    # given to the pipeline, not to the call
    bound = pipeline(
        TASK, model=clip_pipe.model, processor=clip_pipe.processor, findings=["Edema"], device="cpu", batch_size=2
    )
    for results in bound([image, image]):
        assert_same(results, [edema])
    assert_same(bound(image, "Pleural Effusion"), [effusion])


def test_a_name_without_sentences_is_told(clip_pipe, monkeypatch):
    told = []
    logger = logging.get_logger("modeling_tier.findings_tier")
    monkeypatch.setattr(logger, "warning_once", told.append)
    clip_pipe(make_image(40, 50), ["Oedema"])
    sentence = (
        "The model does not hold sentences for the finding 'Oedema': scored with 'Oedema.' and 'No Oedema.', "
        "uncalibrated."
    )
    assert told == [sentence]
    clip_pipe.model.config.zero_shot_findings = None
    for findings in ("Oedema", ["Oedema"], {"Oedema": {}}):
        clip_pipe(make_image(40, 50), findings)
    assert told == [sentence] * 4  # `warning_once` itself keeps the repeats back
    clip_pipe(make_image(40, 50), {"Oedema": {"positive": ["Oedema is seen."]}})
    assert len(told) == 4


def test_a_name_as_it_stands_goes_before_one_of_another_case(clip_pipe):
    stored = clip_pipe.model.config.zero_shot_findings
    clip_pipe.model.config.zero_shot_findings = {"Edema": stored["Edema"], "edema": stored["Pleural Effusion"]}
    for name in ("Edema", "edema"):
        assert clip_pipe.resolve_findings([name])[name] == clip_pipe.model.config.zero_shot_findings[name]
    assert clip_pipe.resolve_findings("EDEMA")["EDEMA"] in (stored["Edema"], stored["Pleural Effusion"])


def test_tells_once_which_images_a_calibration_comes_from(clip_pipe, monkeypatch):
    told = []
    monkeypatch.setattr(logging.get_logger("modeling_tier.findings_tier"), "warning_once", told.append)
    clip_pipe(make_image(40, 50), ["Edema"])
    assert told == []
    clip_pipe(make_image(40, 50), ["Pleural Effusion"])
    assert told == [
        "The calibrated scores are probabilities for images like those of the calibration (unnamed "
        "images). Calibrate again for other images."
    ]
    entry = clip_pipe.model.config.zero_shot_findings["Pleural Effusion"]
    entry["measured_on"] = {"dataset": "padchest", "split": "test", "images": 40, "date": "2026-01-31"}
    told.clear()
    clip_pipe(make_image(40, 50), ["Pleural Effusion", "Edema"])
    assert told[:2] == [
        "The calibrated scores are probabilities for images like those of the calibration (40 images of padchest, "
        "split 'test', 2026-01-31). Calibrate again for other images.",
        "Not calibrated: Edema. These scores are not probabilities; do not compare them with those of the other "
        "findings.",
    ]


def test_a_text_embedding_is_computed_once(pipe, monkeypatch):
    image, calls = make_image(40, 50), Calls(pipe.model, monkeypatch)
    first, second = pipe([image, image])
    assert calls.texts == [5]  # the sentences of both findings, in one batch
    assert pipe(image) == first == second
    assert_same(pipe([image] * 3, "Edema")[2], first[:1])
    assert calls.texts == [5]
    pipe(image, {"Edema": {"positive": ["Oedema.", SENTENCES[2]], "negative": SENTENCES[3:]}})
    assert calls.texts == [5, 1]  # the new sentence alone


def test_cached_embeddings_end_with_the_weights(pipe, models, monkeypatch):
    image = make_image(40, 50)
    calls = Calls(pipe.model, monkeypatch)
    before = pipe(image)

    def check_recomputed():
        fresh = pipeline(TASK, model=pipe.model, processor=pipe.processor, device="cpu")
        number = len(calls.texts)
        now = pipe(image)
        assert len(calls.texts) == number + 1
        assert now == fresh(image)
        return now

    weight = next(iter(pipe.model.text_projection.parameters()))
    with torch.no_grad():
        weight[0, 0] += 1  # counted by torch
    changed = check_recomputed()
    assert scores(changed) != scores(before)
    layer = max(pipe.model.text_model.parameters(), key=lambda parameter: parameter.numel())
    layer.data += 0.1 * torch.randn(layer.shape[0], 1)  # not counted, as when LoRA weights are merged
    assert scores(check_recomputed()) != scores(changed)
    kind = "clip" if isinstance(pipe.model, TierCLIPModel) else "dual"
    pipe.model.load_state_dict(models[kind].state_dict())
    assert check_recomputed() == before
    optimizer = torch.optim.SGD(pipe.model.text_projection.parameters(), lr=10.0)
    pipe.model.get_image_features(torch.ones(1, 3, 32, 32))
    pipe.model.text_projection(torch.ones(1, 32)).sum().backward()
    optimizer.step()
    check_recomputed()
    pipe.model.double()
    check_recomputed()


def test_cached_embeddings_end_with_model_and_tokenizer(clip_pipe, models, processor):
    image = make_image(40, 50)
    before = clip_pipe(image)
    other = copy.deepcopy(models["clip"])
    torch.nn.init.normal_(other.text_projection.weight)
    clip_pipe.model = other
    assert clip_pipe(image) == pipeline(TASK, model=other, processor=processor, device="cpu")(image) != before
    clip_pipe.model = models["clip"]
    assert clip_pipe(image) == before
    clip_pipe.tokenizer = train_tokenizer(["zzz"], 600, model_max_length=20)
    assert clip_pipe(image) != before


def test_the_cache_is_bounded(clip_pipe, monkeypatch):
    monkeypatch.setattr(sys.modules["modeling_tier.pipeline_tier"], "MAX_CACHED_TEXTS", 3)
    image = make_image(40, 50)
    expected = pipeline(TASK, model=clip_pipe.model, processor=clip_pipe.processor, device="cpu")(image)
    for _ in range(2):
        assert_same(clip_pipe(image), expected)  # of five sentences
        assert len(clip_pipe._text_cache) == 3
    assert MAX_CACHED_TEXTS == 4096


def test_a_long_text_keeps_its_end_token_and_is_told_once(pipe, caplog, monkeypatch):
    logging.get_logger("modeling_tier.findings_tier").warning_once.__func__.cache_clear()
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    text = "Effusion. " * 40
    tokens = tokenize(pipe.model, pipe.tokenizer, [text, "Effusion."])
    assert tokens["input_ids"].shape == (2, 20)
    assert tokens["input_ids"][0, -1] == pipe.tokenizer.eos_token_id and tokens["attention_mask"][0].all()
    image = make_image(40, 50)
    pipe._text_cache_key = None
    with caplog.at_level("WARNING"):
        cut = pipe(image, {"A": {"positive": text, "negative": "No."}})
        pipe(image, {"A": {"positive": text, "negative": "Not."}})
        pipe._text_cache_key = None
        pipe(image, {"A": {"positive": text, "negative": "No."}})
    told = [record.message for record in caplog.records if "tokens" in record.message]
    assert told == ["A text longer than the model's 20 tokens is cut off before its end token; shorten it."]
    kept = pipe.tokenizer.decode(tokens["input_ids"][0], skip_special_tokens=True)
    assert scores(pipe(image, {"A": {"positive": kept, "negative": "No."}})) == pytest.approx(scores(cut), abs=1e-6)


def test_heatmaps_lie_in_the_original_pixels(pipe):
    image = make_image(90, 60)
    result = pipe(image, return_heatmaps=True)
    assert_same(result, pipe(image))
    for finding in result:
        assert finding["heatmap"].shape == (60, 90) and finding["heatmap"].dtype == np.float32
        assert np.abs(finding["heatmap"]).max() <= 2
    # one sentence per side: the difference of their similarity maps
    tokens = pipe.tokenizer(SENTENCES[2:], padding=True, return_tensors="pt")
    pixels = pipe.image_processor(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        maps = pipe.model.get_similarity_map(tokens["input_ids"], pixels, tokens["attention_mask"])
    (expected,) = pipe.image_processor.post_process_similarity_map(maps[:, :1] - maps[:, 1:], [(60, 90)])
    np.testing.assert_allclose(result[0]["heatmap"], expected[0], rtol=0, atol=1e-6)
    assert np.ptp(expected[0].numpy()) > 1e-3
    if isinstance(pipe.model, TierCLIPModel):  # where the class token is the image, the tower is asked twice
        pipe.model.config.image_pooling = "cls"
        again = pipe(image, return_heatmaps=True)
        assert_same(again, pipe(image))
        assert again[0]["score"] != pytest.approx(result[0]["score"], abs=1e-4)
        np.testing.assert_array_equal(again[0]["heatmap"], result[0]["heatmap"])
        pipe.model.config.image_pooling = "patch_mean"
    # images of different sizes in one batch
    batch = pipe([image, make_image(33, 44)], return_heatmaps=True, batch_size=2)
    np.testing.assert_allclose(batch[0][0]["heatmap"], expected[0], rtol=0, atol=1e-6)
    assert batch[1][1]["heatmap"].shape == (44, 33)


def test_what_the_model_never_saw_is_nan(clip_pipe):
    clip_pipe.image_processor = TierImageProcessor(size={"height": 32, "width": 32}, geometry="crop")
    heatmap = clip_pipe(make_image(100, 50), "Edema", return_heatmaps=True)[0]["heatmap"]
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
            tokens["input_ids"], pixels, tokens["attention_mask"], per_token=True
        )[:, 0]
    (expected,) = pipe.image_processor.post_process_similarity_map(expected, [(60, 90)])  # (tokens, 60, 90)
    words = tokens.word_ids(0)
    assert words.count(words[-3]) >= 1 and words[0] is words[-1] is None  # BOS and EOS have no map
    positions = [[i for i, word in enumerate(words) if word == number] for number in dict.fromkeys(words[1:-1])]
    assert max(map(len, positions)) > 1  # "xyz" is no word of the tokenizer
    for entry, position in zip(maps, positions, strict=True):
        np.testing.assert_allclose(entry["heatmap"], expected[position].mean(0), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="^The text holds no word: give a sentence.$"):
        pipe.word_maps(image, "  ")


BAD_FINDINGS = [
    ([], "The list of findings is empty. Name at least one, or omit it to use the model's own."),
    ({}, "The list of findings is empty. Name at least one, or omit it to use the model's own."),
    (
        {"A": {"positive": [], "negative": "No."}},
        "The finding 'A' has no positive prompts: give a list of at least one sentence.",
    ),
    (
        {"A": {"positive": "Yes.", "negative": []}},
        "The finding 'A' has no negative prompts: give a list of at least one sentence.",
    ),
    ({"A": {"positive": 3}}, "The finding 'A' has no positive prompts: give a list of at least one sentence."),
    ({"A": {"positive": [""]}}, "The positive prompts of the finding 'A' must be sentences, not ['']."),
    ([""], "The name of a finding must be text, not ''."),
    ([3], "The name of a finding must be text, not 3."),
    (
        {"A": "Yes."},
        "The finding 'A' must have the keys positive, negative, threshold, scale, bias, measured_on, not 'Yes.'.",
    ),
    (
        {"A": {"threshold": 2}},
        "The threshold of the finding 'A' must be a number between 0 and 1, not 2.",
    ),
]


@pytest.mark.parametrize(("findings", "message"), BAD_FINDINGS)
def test_bad_findings_are_refused_before_the_image_is_read(clip_pipe, findings, message):
    with pytest.raises(ValueError) as error:
        clip_pipe("no_such_file.png", findings)
    assert str(error.value) == message


def test_bad_images(clip_pipe, server, tmp_path):
    (tmp_path / "page.png").write_text("<html><body>Not found</body></html>")
    (tmp_path / "cut.png").write_bytes(encode(make_image(64, 64))[:2000])
    (tmp_path / "ct.dcm").write_bytes(make_dicom(np.zeros((20, 20)), Modality="CT"))
    (tmp_path / "report.dcm").write_bytes(bytes(128) + b"DICM" + bytes(300))
    header = encode(make_image(20, 20))[:16] + (20000).to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00"
    (tmp_path / "huge.png").write_bytes(header + encode(make_image(20, 20))[29:])
    huge = np.broadcast_to(np.uint8(0), (20000, 20000))
    cases = [
        (tmp_path / "none.png", "none.png: there is no such image file; check the path and the image folder."),
        (tmp_path / "page.png", "page.png: the file is a web page, not an image; download it again, logged in."),
        (tmp_path / "cut.png", "cut.png: the file is cut short, its end is missing; copy or download it again."),
        (tmp_path / "ct.dcm", "ct.dcm: a DICOM image of the modality CT is not a radiograph; leave it out."),
        (
            tmp_path / "report.dcm",
            "report.dcm: the DICOM header cannot be read or describes no image; replace the file or leave it out.",
        ),
        (b"", "an image in memory: the file is empty; copy or download it again."),
        (make_image(1, 1), "1x1 pixels are too few for a radiograph; give at least 16x16."),
        (
            huge,
            "an image in memory: 20000x20000 pixels are more than 80,000,000; export it at a smaller size.",
        ),
        (
            f"{server}/y.png",
            "y.png: the URL cannot be fetched (HTTP Error 404: Not Found); check it, or download the file and give "
            "its path.",
        ),
        (
            None,
            "an image cannot be read from a NoneType; give a path, bytes, an open file, a PIL image or an array.",
        ),
    ]
    for source, message in cases:
        with pytest.raises(ValueError) as error:
            clip_pipe(source)
        assert str(error.value) == message
        with pytest.raises(ValueError) as error:  # in a list, the error says which
            clip_pipe([make_image(40, 50), source, make_image(40, 50)], batch_size=3)
        assert str(error.value) == f"image 2 of 3: {message}"
    with pytest.raises(ValueError, match="^huge.png: 20000x20000 pixels are more than 80,000,000"):
        clip_pipe(tmp_path / "huge.png")


def test_bad_options(clip_pipe, processor):
    with pytest.raises(ValueError) as error:
        clip_pipe(make_image(40, 50), candidate_labels=["edema"])
    assert str(error.value) == (
        "The pipeline cxr-zero-shot-classification has no option 'candidate_labels'; it has findings, "
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
    with pytest.raises(ValueError, match="^A CLIPModel gives no heat-maps: use a TIER model.$"):
        pipe(make_image(40, 50), FINDINGS, return_heatmaps=True)
    with pytest.raises(ValueError, match="^A CLIPModel gives no heat-maps: use a TIER model.$"):
        pipe.word_maps(make_image(40, 50), "Edema.")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(pipe, dtype):
    image = make_image(40, 50)
    expected = scores(pipe(image))
    half = pipeline(TASK, model=pipe.model.to(dtype), processor=pipe.processor, device="cpu")
    assert scores(half(image)) == pytest.approx(expected, abs=0.05)
    assert half(image, return_heatmaps=True)[0]["heatmap"].dtype == np.float32


def test_texts_are_embedded_as_the_model_embeds_them(clip_pipe):
    tokens = clip_pipe.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = clip_pipe.model(**tokens, pixel_values=torch.zeros(1, 3, 32, 32))
        embeds = embed_texts(clip_pipe.model, clip_pipe.tokenizer, SENTENCES, batch_size=3)
    torch.testing.assert_close(embeds, output.text_embeds, rtol=0, atol=1e-6)


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
            scores[1][1]["heatmap"].tolist(),
            words[1]["word"], words[1]["heatmap"].tolist(),
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
