import pytest
import yaml

from processing_tier.phantom.findings import PHANTOM_FINDINGS
from processing_tier.prompts.loader import EXAMPLE, PROMPTS_FOLDER, Prompts, load_prompts, warn_of_templates

CHEXPERT = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
    "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
).split(",")
INDIANA = (
    "No Finding,Atelectasis,Cardiomegaly,Consolidation,Edema,Pleural Effusion,Pneumonia,Pneumothorax,Fracture,"
    "Lung Opacity,Nodule/Mass,Granuloma,Emphysema,Fibrosis,Hernia,Support Devices"
).split(",")
NIH = (
    "No Finding,Atelectasis,Cardiomegaly,Consolidation,Edema,Effusion,Emphysema,Fibrosis,Hernia,Infiltration,Mass,"
    "Nodule,Pleural_Thickening,Pneumonia,Pneumothorax"
).split(",")


def test_chexzero():
    prompts = load_prompts("chexzero", ["Atelectasis", "Pleural_Thickening"])
    assert prompts == {
        "Atelectasis": Prompts(["Atelectasis"], ["no Atelectasis"]),
        "Pleural_Thickening": Prompts(["Pleural Thickening"], ["no Pleural Thickening"]),
    }


def test_tier_negatives_are_normal_sentences_and_no_finding():
    prompts = load_prompts("tier", ["Cardiomegaly", "No Finding", "Scoliosis"])
    normal = prompts["No Finding"].positive
    assert len(normal) == 5
    assert prompts["Cardiomegaly"].negative == [*normal, "No Cardiomegaly."]
    assert prompts["Scoliosis"] == Prompts(["Scoliosis is present."], [*normal, "No Scoliosis."])
    assert not set(prompts["No Finding"].negative) & set(normal)
    counts = {finding: len(load_prompts("tier", [finding])[finding].positive) for finding in CHEXPERT}
    assert (counts["Cardiomegaly"], counts["Edema"], counts["Consolidation"]) == (3, 2, 2)
    assert (counts["Atelectasis"], counts["Pleural Effusion"]) == (3, 3)


@pytest.mark.parametrize(
    "findings", [CHEXPERT, INDIANA, NIH, PHANTOM_FINDINGS], ids=["chexpert", "iu", "nih", "phantom"]
)
def test_report_has_its_own_sentences_for_every_finding(findings):
    templates = load_prompts("report", ["Scoliosis"])["Scoliosis"]
    prompts = load_prompts("report", findings)
    assert list(prompts) == list(findings)
    for finding, sentences in prompts.items():
        assert len(sentences.positive) >= 5 and len(sentences.negative) >= 4
        assert not set(sentences.positive) & set(sentences.negative)
        generated = [text.replace("Scoliosis", finding.replace("_", " ")) for text in templates.positive]
        assert sentences.positive != generated
        assert all(text.isascii() and text[0].isupper() and text.endswith(".") for text in sentences.positive)
        assert len(set(sentences.positive)) == len(sentences.positive)


def test_names_are_found_whatever_their_spelling():
    effusion = load_prompts("report", ["Pleural Effusion"])["Pleural Effusion"]
    for name in ("pleural_effusion", "Effusion", "EFFUSION", " pleural  effusion"):
        assert load_prompts("report", [name]) == {name: effusion}


def test_no_finding_is_scored_the_right_way_round():
    prompts = load_prompts("report", ["No Finding"])["No Finding"]
    assert "Normal chest." in prompts.positive
    assert "Abnormal chest radiograph." in prompts.negative and "Mild cardiomegaly." in prompts.negative


@pytest.mark.parametrize("name", ["chexzero", "tier", "report"])
def test_shipped_files_are_plain(name):
    path = PROMPTS_FOLDER / f"{name}.yaml"
    assert path.read_text().isascii()
    assert set(yaml.safe_load(path.read_text())) <= {"templates", "findings"}


def test_own_file(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "templates: {positive: ['{} seen'], negative: ['no {}', 'normal']}\n"
        "findings: {Cardiomegaly: {aliases: [Big_Heart], positive: ['big {braces} heart']}}\n"
    )
    assert load_prompts(path, ["big heart", "Edema"]) == {
        "big heart": Prompts(["big {braces} heart"], ["no big heart", "normal"]),
        "Edema": Prompts(["Edema seen"], ["no Edema", "normal"]),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompts: {}", "unknown key 'prompts' in the file; use templates, findings."),
        ("templates: {postive: [x]}", "unknown key 'postive' in templates; use positive, negative."),
        (
            "findings: {Edema: {positive: [x], neg: [y]}}",
            "unknown key 'neg' in finding 'Edema'; use positive, negative, aliases.",
        ),
        (
            "templates: {positive: 'x {}'}",
            "'positive' of templates is not a list of sentences; put each in quotes, in brackets.",
        ),
        (
            "findings: {Edema: {negative: [no]}}",
            "'negative' of finding 'Edema' is not a list of sentences; put each in quotes, in brackets.",
        ),
        ("templates: false", f"templates is not a mapping; write it as in {EXAMPLE}."),
        ("findings: {}\nfindings: {Edema: {positive: [x]}}", "line 2 names 'findings' twice; keep one of them."),
        ("- x", f"the file is not a mapping; write it as in {EXAMPLE}."),
        ("findings: [Edema]", f"findings is not a mapping; write it as in {EXAMPLE}."),
        ("a: [", "the file is not valid YAML (line 1: expected the node content, but found '<stream end>'); fix it."),
        (
            "templates: {positive: ['{}']}",
            "finding 'Edema' has no negative prompts; add them or a negative template.",
        ),
        (
            "findings: {Edema: {aliases: [x]}, X: {positive: [y]}}",
            "'X' is named twice; keep one entry for it.",
        ),
    ],
)
def test_bad_files(text, message, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        load_prompts(path, ["Edema"])
    assert str(error.value) == f"{path}: {message}"


def test_unknown_names(tmp_path):
    with pytest.raises(ValueError) as error:
        load_prompts("chexpert", ["Edema"])
    assert str(error.value) == (
        "prompts 'chexpert' are not known; choose one of chexzero, plain, report, tier, tier-covid, "
        "tier-padchest, or a .yaml file."
    )
    with pytest.raises(ValueError) as error:
        load_prompts(tmp_path / "x.yaml", ["Edema"])
    assert str(error.value) == f"{tmp_path / 'x.yaml'}: the prompt file does not exist; check the path."


def test_findings_without_sentences_are_told(caplog):
    warn_of_templates.cache_clear()
    load_prompts("report", ["Edema", "Derrame pleural", "肺炎"])
    load_prompts("report", ["Edema", "Derrame pleural", "肺炎"])  # said once
    assert caplog.messages == [
        "prompts 'report' have no sentences for 'Derrame pleural', '肺炎': the templates were used. Write a .yaml "
        "file with sentences for them where the words differ."
    ]
    caplog.clear()
    load_prompts("report", ["Edema", "Enlarged_Heart"])
    load_prompts("plain", ["Edema", "肺炎"])  # has only templates
    assert caplog.messages == []
