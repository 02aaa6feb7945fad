"""Findings of the pipeline: by name or with sentences, templates, calibration, and what is refused."""

import pytest
from pipeline_checks import SENTENCES, assert_same, make_image
from transformers import pipeline
from transformers.utils import logging

from modeling_tier.pipeline_tier import TASK


def test_findings_by_name_or_by_sentences(clip_pipe):
    image = make_image(40, 50)
    edema, effusion = clip_pipe(image)
    assert_same(clip_pipe(image, "pleural_effusion"), [{**effusion, "label": "pleural_effusion"}])
    assert_same(clip_pipe(image, ["Pleural Effusion", "Edema"]), [effusion, edema])  # in the order asked for
    own = {"positive": SENTENCES[2], "negative": (SENTENCES[3],), "score_level": "global"}
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
        kept = clip_pipe.model.config.zero_shot_findings[name] | {"score_level": "global"}
        assert clip_pipe.resolve_findings([name])[name] == kept
    assert clip_pipe.resolve_findings("EDEMA")["EDEMA"]["positive"] in ([SENTENCES[2]], [SENTENCES[0], "Effusion."])


def test_the_score_level_of_each_finding(clip_pipe):
    stored = clip_pipe.model.config.zero_shot_findings
    sentences = {side: stored["Edema"][side] for side in ("positive", "negative")}
    asked = {"A": sentences, "B": sentences | {"score_level": "both-max"}}

    def levels(findings):
        return {name: entry["score_level"] for name, entry in clip_pipe.resolve_findings(findings).items()}

    # a saved model without levels scores as it did; what it does not hold has its own level
    assert levels(None) == {"Edema": "global", "Pleural Effusion": "global"}
    assert levels(["edema", "Nodule"]) == {"edema": "global", "Nodule": "patches-lse"}
    assert levels(asked) == {"A": "patches-lse", "B": "both-max"}
    stored["Edema"]["score_level"] = "patches-topk"
    assert levels(None) == {"Edema": "patches-topk", "Pleural Effusion": "global"}
    # a number that was measured at an unknown level is never applied to another
    for key in ("threshold", "scale", "bias"):
        with pytest.raises(ValueError) as error:
            clip_pipe("no_such_file.png", {"A": sentences | {key: 0.5}})
        assert str(error.value) == (
            f"The finding 'A' has a {key}, but this model can be scored by patches or by the whole image: add the "
            "score_level that it was measured at, 'patches-lse' (the default) or 'global'."
        )
    assert levels({"A": sentences | {"threshold": 0.5, "score_level": "global"}}) == {"A": "global"}
    # where the class token is the image, the whole image is scored
    clip_pipe.model.config.image_pooling = "cls"
    assert levels({"A": sentences | {"threshold": 0.5}, "B": {}}) == {"A": "global", "B": "global"}
    stored["Edema"]["score_level"] = "patches"
    with pytest.raises(ValueError, match="^The score_level of the finding 'Edema' must be one of global, .*'patches'"):
        clip_pipe.resolve_findings(["Nodule"])


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
        "The finding 'A' must have the keys positive, negative, threshold, scale, bias, score_level, measured_on, not "
        "'Yes.'.",
    ),
    (
        {"A": {"threshold": 2}},
        "The threshold of the finding 'A' must be a number between 0 and 1, not 2.",
    ),
    (
        {"A": {"score_level": "patch"}},
        "The score_level of the finding 'A' must be one of global, patches-max, patches-topk, patches-lse, both-max, "
        "both-topk, both-lse, not 'patch'.",
    ),
]


@pytest.mark.parametrize(("findings", "message"), BAD_FINDINGS)
def test_bad_findings_are_refused_before_the_image_is_read(clip_pipe, findings, message):
    with pytest.raises(ValueError) as error:
        clip_pipe("no_such_file.png", findings)
    assert str(error.value) == message
