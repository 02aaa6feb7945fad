"""Reports of the phantom, from tables of words."""

import numpy as np

from processing_tier.phantom.findings import Finding

CM_PER_UNIT = 17.5  # a plate 35 cm wide

# Wording, in the patient's sides: noun phrases for both parts of a report, and whole sentences for the findings.
NOUNS = {
    "Cardiomegaly": (
        "{degree} cardiomegaly",
        "{degree} enlargement of the cardiac silhouette",
        "{degree}ly enlarged heart",
    ),
    "Pleural Effusion": (
        "{amount} {side} pleural effusion{s}",
        "{side} pleural effusion{s}",
        "{amount} {side} effusion{s}",
    ),
    "Consolidation": (
        "{side} {lobe} consolidation",
        "consolidation in the {side} {lobe}",
        "{degree} {side} {lobe} airspace consolidation",
        "focal consolidation of the {side} {lobe}",
    ),
    "Pneumothorax": ("{amount} {side} pneumothorax", "{side} pneumothorax", "{amount} {side}-sided pneumothorax"),
    "Nodule": ("{size} cm nodule in the {side} {zone} lung", "{side} {zone} lung nodule", "{side} pulmonary nodule"),
    "Atelectasis": (
        "{side} basilar atelectasis",
        "{degree} {side} lower lung atelectasis",
        "linear atelectasis at the {side} base",
    ),
    "Edema": ("{degree} pulmonary edema", "{degree} interstitial edema", "{degree} bilateral perihilar edema"),
    "pacemaker": (
        "{side} chest wall pacemaker",
        "{side}-sided pacemaker with lead in the right ventricle",
        "support device ({side} pacemaker)",
    ),
    "central line": (
        "{side} central venous catheter",
        "{side} central line with tip in the superior vena cava",
        "support device ({side} central line)",
    ),
    "port": ("{side} chest port", "{side} port catheter", "support device ({side} port catheter)"),
}

SENTENCES = {
    "Cardiomegaly": (
        "The heart is {degree}ly enlarged.",
        "The cardiac silhouette is enlarged, with a cardiothoracic ratio of {ratio}.",
    ),
    "Pleural Effusion": ("The {side} costophrenic angle{s} {be} blunted by {article}{amount} pleural effusion{s}.",),
    "Consolidation": ("Airspace opacity in the {side} {lobe} is consistent with consolidation.",),
    "Pneumothorax": ("A visceral pleural line is seen on the {side}, with a {amount} pneumothorax.",),
    "Nodule": ("A rounded nodule projects over the {side} {zone} lung, measuring {size} cm.",),
    "Atelectasis": ("Linear opacities at the {side} lung base with volume loss are compatible with atelectasis.",),
    "Edema": ("Bilateral perihilar haze and Kerley lines are consistent with {degree} edema.",),
    "pacemaker": ("A pacemaker projects over the {side} chest, its lead ending in the right ventricle.",),
    "central line": ("A {side} central line ends in the superior vena cava.",),
    "port": ("A {side} chest port ends in the superior vena cava.",),
}

# The words that name a finding and no other one, lower case, by which a sentence can be told to be about it
FINDING_WORDS = {
    "Cardiomegaly": {"cardiomegaly", "cardiac", "heart", "silhouette"},
    "Pleural Effusion": {"effusion", "effusions"},
    "Consolidation": {"consolidation"},
    "Pneumothorax": {"pneumothorax"},
    "Nodule": {"nodule"},
    "Atelectasis": {"atelectasis"},
    "Edema": {"edema"},
    "Support Devices": {"pacemaker", "central", "catheter", "port"},
}

LUNGS = ("Consolidation", "Nodule", "Atelectasis", "Edema", "Pneumothorax", "Pleural Effusion")

NEGATIVES = {  # sentences for patients who have none of these findings
    ("Cardiomegaly",): (
        "The heart is normal in size.",
        "Heart size is within normal limits.",
        "No cardiomegaly.",
        "The cardiomediastinal silhouette is normal.",
    ),
    ("Pleural Effusion",): (
        "No pleural effusion.",
        "There is no pleural effusion.",
        "The costophrenic angles are sharp.",
    ),
    ("Pneumothorax",): ("No pneumothorax.", "There is no pneumothorax.", "No evidence of pneumothorax."),
    ("Pleural Effusion", "Pneumothorax"): ("No pleural effusion or pneumothorax.", "No pneumothorax or effusion."),
    ("Consolidation",): ("No focal consolidation.", "There is no consolidation.", "No airspace consolidation."),
    ("Consolidation", "Pleural Effusion", "Pneumothorax"): (
        "No focal consolidation, pleural effusion, or pneumothorax.",
        "There is no consolidation, effusion, or pneumothorax.",
    ),
    ("Nodule",): ("No pulmonary nodule.", "No suspicious nodule or mass."),
    ("Atelectasis",): ("No atelectasis.", "No evidence of atelectasis."),
    ("Edema",): ("No pulmonary edema.", "There is no edema.", "Pulmonary vascularity is normal."),
    ("Support Devices",): ("No support devices.", "No pacemaker or central line."),
    LUNGS: ("The lungs are clear.", "Lungs are clear bilaterally.", "Both lungs are clear and well expanded."),
}

NEUTRAL = (
    "The bones are intact.",
    "No acute osseous abnormality.",
    "The trachea is midline.",
    "Visualized upper abdomen is unremarkable.",
)

NORMAL = (
    "No acute cardiopulmonary abnormality.",
    "No acute cardiopulmonary process.",
    "Normal chest radiograph.",
    "No acute disease.",
    "Normal chest.",
    "No radiographic evidence of acute cardiopulmonary disease.",
)


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def word(name: str, finding: Finding, table: dict[str, tuple[str, ...]], rng: np.random.Generator) -> str:
    """One wording of a finding from a table."""
    both = finding.side == "bilateral"
    return str(rng.choice(table[finding.kind or name])).format(
        degree=("mild", "moderate", "severe")[finding.grade],
        amount=("small", "moderate", "large")[finding.grade],
        side=finding.side,
        zone=finding.zone,
        lobe=finding.lobe,
        size=f"{2 * finding.radius * CM_PER_UNIT:.1f}",
        ratio=f"{finding.heart_ratio:.2f}",
        s="s" if both else "",
        be="are" if both else "is",
        article="" if both else "a ",
    )


def write_findings(found: dict[str, Finding], negatives: list[str], rng: np.random.Generator) -> str:
    """The findings section: all positive findings and some of the negatives, in varying order."""
    said = []
    for name, finding in found.items():
        if rng.random() < 0.4:
            said.append(word(name, finding, SENTENCES, rng))
        else:
            be = "are" if name == "Pleural Effusion" and finding.side == "bilateral" else "is"
            verb = str(rng.choice(["", f" {be} present", f" {be} seen", f" {be} noted"]))
            said.append(sentence(word(name, finding, NOUNS, rng) + verb))
    rng.shuffle(said)
    said += negatives[: rng.integers(2, 5)]
    said += [str(text) for text in rng.choice(NEUTRAL, size=rng.integers(2))]
    if rng.random() < 0.5:
        rng.shuffle(said)
    return " ".join(said)


def write_impression(found: dict[str, Finding], negatives: list[str], rng: np.random.Generator) -> str:
    """The impression: nearly always all positive findings, sometimes hedged, sometimes with a negative."""
    if not found:
        return str(rng.choice(NORMAL))
    names = [str(name) for name in rng.permutation(list(found))]
    if len(names) > 1 and rng.random() < 0.08:
        names.pop()
    nouns = [word(name, found[name], NOUNS, rng) for name in names]
    if rng.random() < 0.05:
        nouns[0] = f"probable {nouns[0]}"
    style = rng.random()
    if len(nouns) > 1 and style < 0.3:
        text = " ".join(f"{number}. {sentence(noun)}" for number, noun in enumerate(nouns, 1))
    elif len(nouns) > 1 and style < 0.6:
        text = sentence(f"{', '.join(nouns[:-1])} and {nouns[-1]}")
    else:
        text = " ".join(sentence(noun) for noun in nouns)
    return f"{text} {negatives[-1]}" if negatives and rng.random() < 0.35 else text


def draw_negatives(found: dict[str, Finding], rng: np.random.Generator) -> list[str]:
    """True negative statements in random order; no finding is denied twice."""
    groups, denied, texts = list(NEGATIVES), set(found), []
    for number in rng.permutation(len(groups)):
        if denied.isdisjoint(groups[number]):
            denied.update(groups[number])
            texts.append(str(rng.choice(NEGATIVES[groups[number]])))
    return texts
