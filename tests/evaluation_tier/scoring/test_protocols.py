import numpy as np
import pytest

from evaluation_tier.scoring.protocols import PROTOCOLS, choose_protocol
from evaluation_tier.scoring.zeroshot import evaluate_zero_shot
from evaluation_tier.statistics.resampling import Resampling
from processing_tier.prompts.loader import Prompts, load_prompts

# By its prompts, "Normal" is scored upside down
PROMPTS = {
    "Bright": Prompts(["Bright."], ["No brightness."]),
    "Support Devices": Prompts(["Tube."], ["No tube."]),
    "Normal": Prompts(["A normal chest."], ["No such chest."]),
}


def test_every_protocol_has_prompts_for_anything():
    for name, protocol in PROTOCOLS.items():
        prompts = load_prompts(protocol.prompts, ["Pleural Effusion", "normal", "hemidiaphragm elevation"])
        assert all(prompt.positive for prompt in prompts.values()), name
        assert protocol.source


def test_the_references_prompts_are_verbatim():
    assert load_prompts("chexzero", ["Edema"])["Edema"] == Prompts(["Edema"], ["no Edema"])
    assert load_prompts("tier-padchest", ["nodule"])["nodule"] == Prompts(["noduleis present"], ["No nodule."])
    assert load_prompts("plain", ["Edema"])["Edema"] == Prompts(["There is Edema."], [])


def test_overrides_are_named():
    assert choose_protocol("chexzero").name == "chexzero"
    assert choose_protocol("chexzero", scoring="softmax").name == "chexzero"  # its own
    protocol = choose_protocol("chexzero", prompts="report", no_finding="prompts")
    assert (protocol.name, protocol.scoring) == ("chexzero, own prompts, own no_finding", "softmax")
    assert choose_protocol("chexzero", score_level="global").name == "chexzero"
    assert choose_protocol(score_level="global").name == "report, own score_level"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"name": "chexzro"}, "The protocol 'chexzro' is not known: did you mean 'chexzero'"),
        ({"scoring": "ratio"}, "scoring must be one of difference, softmax, sigmoid, but is 'ratio'"),
        ({"score_level": "patch"}, "score level must be one of auto, global, patches-max, .*, but is 'patch'"),
        ({"no_finding": "never"}, "way of no_finding must be one of prompts, others, but is 'never'"),
    ],
)
def test_unknown_names_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        choose_protocol(**options)


def test_chexzeros_centre_stands_beside_the_estimate(tier_model, phantom):
    metrics, _ = evaluate_zero_shot({"m": tier_model}, phantom, resampling=Resampling(50), protocol="chexzero")
    assert metrics["protocol"]["name"] == "chexzero" and "as CheXzero's" in metrics["protocol"]["intervals"]
    for result in metrics["findings"].values():
        low, high = result["auroc_ci95"]
        assert low <= result["auroc_bootstrap_mean"] <= high
        assert result["auroc_bootstrap_mean"] == pytest.approx(result["auroc"], abs=0.05)
    assert metrics["mean"]["auroc_bootstrap_mean"] == pytest.approx(metrics["mean"]["auroc"], abs=0.05)


def test_plain_scores_by_the_positive_sentence_alone(brightness, make_grey_dataset):
    metrics, predictions = evaluate_zero_shot(
        {"m": brightness}, make_grey_dataset([0, 51, 255], [0, 0, 1]), min_positives=1, protocol="plain"
    )
    cosines = np.sin(np.array([0, 0.2, 1]) * np.pi / 2)  # to "There is Bright."
    np.testing.assert_allclose(predictions["score_Bright"], 1 / (1 + np.exp(-cosines)), atol=1e-6)
    assert metrics["protocol"]["scoring"] == "sigmoid" and metrics["findings"]["Bright"]["auroc"] == 1.0


def test_no_finding_is_scored_by_the_others_or_by_its_prompts(brightness, make_grey_dataset):
    levels, bright = [0, 51, 204, 255], [0, 0, 1, 1]
    dataset = make_grey_dataset(levels, bright, **{"Normal": [1, 1, 0, 0], "Support Devices": [1, 0, 1, 0]})
    options = {"min_positives": 1, "resampling": Resampling(40), "protocol": choose_protocol("chexzero", PROMPTS)}
    metrics, predictions = evaluate_zero_shot({"m": brightness}, dataset, **options)
    assert metrics["protocol"]["no_finding"] == "others"
    assert metrics["findings"]["Normal"]["auroc"] == 1.0
    scores = predictions["score_Bright"]  # the only other finding: devices do not make a chest abnormal
    expected = -(scores - scores.mean()) / scores.std(ddof=0)
    np.testing.assert_allclose(predictions["score_Normal"], expected, atol=1e-9)
    by_prompts = choose_protocol("chexzero", PROMPTS, no_finding="prompts")
    reference, _ = evaluate_zero_shot({"m": brightness}, dataset, **{**options, "protocol": by_prompts})
    assert reference["findings"]["Normal"]["auroc"] == 0.0
    assert reference["protocol"]["name"] == "chexzero, own prompts, own no_finding"
    with pytest.raises(ValueError, match="'Normal' is scored by the other findings, but no other one is"):
        evaluate_zero_shot({"m": brightness}, dataset, ["Normal", "Support Devices"], **options)


def test_thresholds_of_no_finding_hold_on_other_images(brightness, make_grey_dataset):
    """The standardisation comes with the threshold from the split that chose it."""
    dataset = make_grey_dataset([0, 255], [0, 1], Normal=[1, 0])
    other = make_grey_dataset([0, 51, 204, 255], [0, 0, 1, 1], Normal=[1, 1, 0, 0])
    options = {"min_positives": 1, "resampling": Resampling(40), "protocol": choose_protocol("chexzero", PROMPTS)}
    metrics, predictions = evaluate_zero_shot({"m": brightness}, dataset, threshold_dataset=other, **options)
    _, alone = evaluate_zero_shot({"m": brightness}, other, **options)
    assert predictions["score_Normal"].tolist() == pytest.approx(alone["score_Normal"].iloc[[0, 3]].tolist())
    assert metrics["findings"]["Normal"]["mcc"] == 1.0
