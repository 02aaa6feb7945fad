import io
import re

import datasets
import numpy as np
import pytest
from PIL import Image

from processing_tier.phantom.anatomy import Chest, draw_normal, draw_patient, film
from processing_tier.phantom.dataset import VISIBLE, make_phantom
from processing_tier.phantom.findings import DRAW, PHANTOM_FINDINGS, Finding, draw_findings
from processing_tier.phantom.wording import CM_PER_UNIT, NEGATIVES, draw_negatives, write_findings, write_impression
from processing_tier.records.annotations import MASKS
from processing_tier.records.masks import finding_mask

SIZE = 64
MENTIONS = {
    "Cardiomegaly": r"cardiomegaly|enlarged heart|(heart|silhouette) is (\w+ly )?enlarged|enlargement of the cardiac",
    "Pleural Effusion": r"effusion",
    "Consolidation": r"consolidation",
    "Pneumothorax": r"pneumothorax",
    "Nodule": r"nodule|mass",
    "Atelectasis": r"atelectasis",
    "Edema": r"edema",
    "Support Devices": r"pacemaker|port\b|central (line|venous catheter)",
}


def pixels(png: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png["bytes"])))


def affirmative(text: str) -> list[str]:
    """Sentences that deny nothing."""
    sentences = re.split(r"(?<=[a-z)]\.) |(?<=\d cm\.) |(?<=0\.\d\d\.) ", text)
    return [
        s for s in sentences if not re.match(r"(?i)no |there is no |(the )?(both )?lungs|heart size|pulmonary vasc", s)
    ]


@pytest.fixture(scope="module")
def phantom() -> datasets.Dataset:
    return make_phantom(240, seed=5, image_size=SIZE)


@pytest.fixture(scope="module")
def cases() -> list[tuple[dict[str, Finding], str, str]]:
    """Findings, and the two parts of the report, of 3,000 images that are not drawn."""
    written = []
    for seed in range(3000):
        rng = np.random.default_rng(seed)
        found = draw_findings(rng)
        negatives = draw_negatives(found, rng)
        written.append((found, write_findings(found, negatives, rng), write_impression(found, negatives, rng)))
    return written


def test_the_same_arguments_give_the_same_bytes(phantom):
    assert make_phantom(9, image_size=96).to_dict() == make_phantom(9, image_size=96).to_dict()


def test_an_image_does_not_depend_on_how_many_are_made(phantom):
    assert make_phantom(41, seed=5, image_size=SIZE).to_dict() == phantom.select(range(41)).to_dict()


@pytest.mark.parametrize("change", [{"seed": 6}, {"split": "validation"}, {"split": "test"}])
def test_another_seed_or_split_is_another_set(phantom, change):
    other = make_phantom(8, **({"seed": 5, "image_size": SIZE} | change))
    assert all(a["bytes"] != b["bytes"] for a, b in zip(other["image"], phantom["image"], strict=False))


def test_schema(phantom):
    text, png = datasets.Value("string"), datasets.Image(decode=False)
    texts = [
        "image_id",
        "patient_id",
        "study_id",
        "view",
        "findings",
        "impression",
        "report",
        "split",
        "sex",
        "source",
    ]
    assert phantom.features == datasets.Features(
        {"image": png, "age": datasets.Value("float32"), "masks": MASKS}
        | {name: text for name in texts}
        | {name: datasets.Value("float32") for name in PHANTOM_FINDINGS}
    )
    assert phantom[0]["image_id"] == "synthetic-train-000001" and phantom[0]["image"]["path"].startswith("synthetic-")
    assert len(set(phantom["image_id"])) == len(set(phantom["study_id"])) == len(phantom)
    assert set(phantom["source"]) == {"synthetic"} and set(phantom["split"]) == {"train"}
    assert set(phantom["view"]) == {"AP", "PA"} and set(phantom["sex"]) == {"F", "M"}
    assert all(row["report"] == f"FINDINGS: {row['findings']} IMPRESSION: {row['impression']}" for row in phantom)
    assert all(set(phantom[name]) == {0.0, 1.0} for name in PHANTOM_FINDINGS)


@pytest.mark.parametrize("size", [64, 224, 300])
def test_images_are_grey_and_of_the_size_asked_for(size):
    image = Image.open(io.BytesIO(make_phantom(1, image_size=size)[0]["image"]["bytes"]))
    assert image.mode == "L" and image.size == (size, size) and image.format == "PNG"
    assert 40 < np.asarray(image).std() < 90 and np.asarray(image).min() < 30 and np.asarray(image).max() > 180


def test_a_mask_exists_exactly_where_its_finding_does(phantom):
    for row in phantom:
        assert [mask["finding"] for mask in row["masks"]] == [name for name in PHANTOM_FINDINGS if row[name]]
        for name in PHANTOM_FINDINGS:
            mask = finding_mask(row["masks"], name)
            if mask is not None:
                assert mask.shape == (SIZE, SIZE) and 1.5e-3 < mask.mean() < 0.6, name


def test_patients_have_one_or_two_images_and_never_cross_splits(phantom):
    counts = [phantom["patient_id"].count(patient) for patient in set(phantom["patient_id"])]
    assert sorted(set(counts)) == [1, 2] and counts.count(2) == len(phantom) // 4
    for other in ("validation", "test"):
        assert not set(make_phantom(8, seed=5, image_size=SIZE, split=other)["patient_id"]) & set(
            phantom["patient_id"]
        )
    second = [row for row in phantom if row["patient_id"] == phantom[2]["patient_id"]]
    assert len(second) == 2 and second[0]["sex"] == second[1]["sex"] and second[0]["age"] == second[1]["age"]
    assert second[0]["image"]["bytes"] != second[1]["image"]["bytes"]


def test_each_finding_is_common_enough_to_learn_and_a_third_is_normal(cases):
    for name in PHANTOM_FINDINGS:
        assert 0.12 < np.mean([name in found for found, _, _ in cases]) < 0.20, name
    assert 0.28 < np.mean([not found for found, _, _ in cases]) < 0.36


def test_findings_share_no_place_in_the_lungs(cases):
    for found, _, _ in cases:
        assert not {"Pneumothorax", "Edema"} <= set(found)
        if "Pneumothorax" in found:
            others = [
                found[n].side for n in ("Pleural Effusion", "Consolidation", "Nodule", "Atelectasis") if n in found
            ]
            assert found["Pneumothorax"].side not in others and "bilateral" not in others


def test_every_positive_is_reported_and_none_denied(cases):
    for found, findings, impression in cases:
        said = " ".join(affirmative(findings))
        for name in found:
            assert re.search(MENTIONS[name], said, re.IGNORECASE), (name, findings)
        positive = " ".join(affirmative(findings) + affirmative(impression))
        for name in set(PHANTOM_FINDINGS) - set(found):
            assert not re.search(MENTIONS[name], positive, re.IGNORECASE), (name, findings, impression)
        for group, texts in NEGATIVES.items():
            if set(group) & set(found):
                assert not any(text in f"{findings} {impression}" for text in texts), (group, findings, impression)


def test_the_impression_nearly_always_names_every_positive(cases):
    positive = [(found, impression) for found, _, impression in cases if found]
    complete = [all(re.search(MENTIONS[n], text, re.IGNORECASE) for n in found) for found, text in positive]
    assert 0.92 < np.mean(complete) < 1.0


def test_reports_vary(cases):
    normal = {impression for found, _, impression in cases if not found}
    assert len(normal) >= 6
    assert len({findings for _, findings, _ in cases}) > 0.9 * len(cases)


def test_reports_name_the_side_the_lobe_and_the_severity_of_the_truth(cases):
    degrees = {"mild": 0, "small": 0, "moderate": 1, "severe": 2, "large": 2}
    checked = 0
    for found, findings, impression in cases:
        if len(found) != 1:
            continue
        finding, text = next(iter(found.values())), " ".join(affirmative(findings) + affirmative(impression))
        text = text.lower().replace("right ventricle", "").replace("bilateral perihilar", "")
        sides = set(re.findall(r"\b(right|left|bilateral)\b", text))
        assert sides <= {finding.side}, text
        assert set(re.findall(r"\w+ lobe", text)) <= {finding.lobe}, text
        assert {degrees[word] for word in re.findall(rf"\b({'|'.join(degrees)})(?:ly)?\b", text)} <= {finding.grade}, (
            text
        )
        for size in re.findall(r"(\d\.\d) cm", text):
            assert float(size) == pytest.approx(2 * finding.radius * CM_PER_UNIT, abs=0.051)
        checked += bool(sides)
    assert checked > 300


def test_the_mask_lies_on_the_side_that_the_report_names(phantom):
    checked = 0
    for row in phantom:
        names = [name for name in PHANTOM_FINDINGS if row[name]]
        text = " ".join(affirmative(row["findings"])).lower()
        sides = set(re.findall(r"\b(right|left)\b", text))
        if len(names) == 1 and len(sides) == 1 and names[0] not in ("Cardiomegaly", "Support Devices"):
            columns = np.nonzero(finding_mask(row["masks"], names[0]))[1].mean() / SIZE
            assert (columns < 0.5) == (sides == {"right"}), text  # the patient's right is on the image's left
            checked += 1
    assert checked > 25


def chest_with(name: str, finding: Finding, seed: int = 0) -> tuple[Chest, np.ndarray, np.ndarray]:
    """Grey levels of one chest without noise, without and with a finding."""
    rng = np.random.default_rng(seed)
    ratio = finding.heart_ratio if name == "Cardiomegaly" else None
    chest = Chest(draw_patient(rng), "PA", ratio, rng, 128)
    normal = draw_normal(chest, rng)
    return chest, film(normal, 5.0, 0.48), film(normal + DRAW[name](chest, finding, rng), 5.0, 0.48)


@pytest.mark.parametrize("name", PHANTOM_FINDINGS)
def test_a_finding_changes_the_image_well_above_the_noise(name):
    kinds = ("pacemaker", "central line", "port") if name == "Support Devices" else ("",)
    for seed, kind in enumerate(kinds * (3 // len(kinds))):
        finding = Finding(
            0, 0.1, "bilateral" if name in ("Cardiomegaly", "Edema") else "left", "lower", "lower lobe", kind
        )
        _, without, with_finding = chest_with(name, finding, seed)
        change = with_finding - without
        strength = np.abs(change)[np.abs(change) > VISIBLE].mean()
        assert strength > 12, (name, strength)
        brighter = change[np.abs(change) > VISIBLE].mean() > 0
        assert brighter == (name != "Pneumothorax")


@pytest.mark.parametrize(
    "name", ["Cardiomegaly", "Pleural Effusion", "Consolidation", "Pneumothorax", "Nodule", "Edema"]
)
def test_a_more_severe_finding_changes_more(name):
    def changed(amount: float) -> float:
        side = "bilateral" if name in ("Cardiomegaly", "Edema") else "right"
        _, without, with_finding = chest_with(name, Finding(1, amount, side, "lower", "lower lobe"))
        return np.abs(with_finding - without).sum()

    assert changed(0.05) < changed(0.5) < changed(0.95)


def test_the_heart_has_the_ratio_that_the_report_states():
    finding = Finding(1, 0.5)
    chest, _, _ = chest_with("Cardiomegaly", finding)
    row = int(np.argmax((chest.drawn_heart[0] > 0.5).sum(axis=1)))
    heart, cage = (chest.drawn_heart[0][row] > 0.5).sum(), (chest.wall[row] > 0).sum()
    assert heart / cage == pytest.approx(finding.heart_ratio, abs=0.03)


@pytest.mark.parametrize("side, sign", [("right", -1), ("left", 1)])
@pytest.mark.parametrize("name", ["Pleural Effusion", "Consolidation", "Pneumothorax", "Nodule", "Atelectasis"])
def test_a_finding_on_one_side_leaves_the_other_alone(name, side, sign):
    chest, without, with_finding = chest_with(name, Finding(1, 0.5, side, "lower", "lower lobe"))
    assert np.abs(with_finding - without)[sign * chest.x < -0.02].max() < 0.01


def test_a_lobe_lies_in_its_part_of_the_lung():
    def level(lobe: str) -> float:
        chest, without, with_finding = chest_with("Consolidation", Finding(1, 0.5, "right", "lower", lobe), seed=4)
        return float(np.average(chest.y, weights=np.abs(with_finding - without)))

    assert level("upper lobe") < level("middle lobe") - 0.2 and level("middle lobe") < level("lower lobe")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_images": 0}, "num_images is 0; a phantom needs at least 1 image."),
        ({"num_images": -3}, "num_images is -3; a phantom needs at least 1 image."),
        ({"num_images": 1, "seed": -1}, "seed is -1; give 0 or a larger whole number."),
        (
            {"num_images": 1, "image_size": 63},
            "image_size is 63; give at least 64, or the findings cannot be seen.",
        ),
        ({"num_images": 1, "split": "dev"}, "split is 'dev'; a phantom has only train, validation, test."),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError) as error:
        make_phantom(**arguments)
    assert str(error.value) == message
