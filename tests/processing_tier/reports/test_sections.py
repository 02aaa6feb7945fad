import re
import tarfile
import textwrap
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_texts import examples, pieces, sentences

from processing_tier.reports.deidentification import clean_text
from processing_tier.reports.duplicates import duplicate_groups
from processing_tier.reports.headings import HEADINGS, LINE_ONLY
from processing_tier.reports.markup import repair_markup
from processing_tier.reports.sections import extract_sections, split_sections
from processing_tier.reports.sentences import split_sentences

MIMIC = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough  // ? pneumonia

 TECHNIQUE:  Chest PA and lateral

 COMPARISON:  ___

 FINDINGS:

 There is no comparison: the findings are new. Heart size is normal, in
 comparison with before.

 IMPRESSION:

 1. Right lower lobe pneumonia.
 2. Small effusion.

 RECOMMENDATION(S):  Follow-up in 6 weeks.

 NOTIFICATION:   Dr. ___ by telephone at 8:50 PM.
""".replace("\n\n", "\n \n").replace(":\n", ": \n")  # as MIMIC-CXR has it
CHEXPERT = """NARRATIVE:
RADIOGRAPHIC EXAMINATION OF THE CHEST: 4/14/2008

CLINICAL HISTORY: 55 years of age, Female, Fever.

PROCEDURE COMMENTS: Single view of the chest.

FINDINGS: Clear lungs.

IMPRESSION:

1.  NO ACUTE PROCESS.

END OF IMPRESSION:

SUMMARY: 2-ABNORMAL, PREVIOUSLY REPORTED

I have personally reviewed the images for this examination and agreed
with the report transcribed above.

ACCESSION NUMBER: 12345
"""


def test_a_mimic_report():
    assert split_sections(MIMIC) == {
        "examination": "CHEST (PA AND LAT)",
        "indication": "___F with cough // ? pneumonia",
        "technique": "Chest PA and lateral",
        "comparison": "___",
        "findings": "There is no comparison: the findings are new. Heart size is normal, in comparison with before.",
        "impression": "1. Right lower lobe pneumonia. 2. Small effusion.",
        "recommendation": "Follow-up in 6 weeks.",
        "notification": "Dr. ___ by telephone at 8:50 PM.",
    }
    for line_end in ("\r\n", "\r", "\f\n", "\u2028"):
        assert split_sections(MIMIC.replace("\n", line_end)) == split_sections(MIMIC)
    assert split_sections(" ".join(MIMIC.split())) == split_sections(MIMIC)
    assert split_sections("\ufeff" + MIMIC.replace(" ", "\xa0")) == split_sections(MIMIC)
    assert split_sections(MIMIC.replace(": ", ":\t")) == split_sections(MIMIC)


def test_a_chexpert_plus_report_without_its_signature():
    sections = split_sections(CHEXPERT)
    signature = sections.pop("")
    assert sections == {
        "examination": "4/14/2008",
        "history": "55 years of age, Female, Fever.",
        "technique": "Single view of the chest.",
        "findings": "Clear lungs.",
        "impression": "1. NO ACUTE PROCESS.",
    }
    assert "personally reviewed" in signature and signature.endswith("12345")


@pytest.mark.parametrize(
    ("report", "sections"),
    [
        # Spellings and typing errors.
        ("IMPRSSION: Normal.", {"impression": "Normal."}),
        ("CONCLUSION: Normal.", {"impression": "Normal."}),
        ("FINDINGS AND IMPRESSION: Normal.", {"impression": "Normal."}),
        ("REASON FOR EXAM: Cough.\nCOMPARISONS: None.", {"indication": "Cough.", "comparison": "None."}),
        ("FINDINGS:. Clear.", {"findings": "Clear."}),
        ("Impression - Normal\nRECOMMENDATIONS\nNone", {"impression": "Normal", "recommendation": "None"}),
        (f"{' ' * 11}FINDINGS\n{' ' * 11}Clear.\n\n{' ' * 120}IMPRESSION\n{' ' * 11}Normal.",
         {"findings": "Clear.", "impression": "Normal."}),
        ("IMPRESSION  1. Normal.", {"impression": "1. Normal."}),
        ("**Findings:** clear. **Impression:** normal", {"findings": "clear.", "impression": "normal"}),
        ("## Findings\n\nclear\n\n## Impression\n\nnormal", {"findings": "clear", "impression": "normal"}),
        ("HALLAZGOS: Nada.\nIMPRESI\u00d3N DIAGN\u00d3STICA: Normal.", {"findings": "Nada.", "impression": "Normal."}),
        # The first of two names the section.
        *((f"FINDINGS: Clear.\n{heading}: Normal.", {"findings": "Clear.", "impression": "Normal."}) for heading in (
            "IMPRESSION AND RECOMMENDATION", "IMPRESSION/RECOMMENDATIONS", "IMPRESSION & RECOMMENDATION(S)",
            "CONCLUSION AND RECOMMENDATION", "IMPRESSION AND PLAN", "OVERALL IMPRESSION", "REVISED IMPRESSION",
            "FINAL IMPRESSION")),
        ("FINDINGS AND RECOMMENDATIONS: Nodule. CT.", {"findings": "Nodule. CT."}),
        # One line.
        ("History: Dyspnea FINDINGS: Clear. Impression: Normal.",
         {"history": "Dyspnea", "findings": "Clear.", "impression": "Normal."}),
        ("EXAM: CHEST PORTABLE INDICATION: cough IMPRESSION: ok",
         {"examination": "CHEST PORTABLE", "indication": "cough", "impression": "ok"}),
        ("findings: clear. impression: normal.", {"findings": "clear.", "impression": "normal."}),
        # No headings.
        ("The findings are stable; no comparison: none.", {"": "The findings are stable; no comparison: none."}),
        ("FINDINGS: Clear.\nOTHER FINDINGS: None.", {"findings": "Clear. OTHER FINDINGS: None."}),
        ("FINDINGS: Clear. PULMONARY FINDINGS: None.", {"findings": "Clear. PULMONARY FINDINGS: None."}),
        ("FINDINGS:\nLUNGS: clear\nCHEST TUBE: none", {"findings": "LUNGS: clear CHEST TUBE: none"}),
        ("FINDINGS: NO PRIOR FILMS FOR\nCOMPARISON: STABLE.", {"findings": "NO PRIOR FILMS FOR COMPARISON: STABLE."}),
        # Several of one kind.
        ("IMPRESSION: A.\nADDENDUM: B.\nIMPRESSION: C.\nIMPRESSION:", {"impression": "C.", "addendum": "B."}),
        ("FINDINGS: A.\nTECHNIQUE: B.\nFINDINGS: C.", {"findings": "A. C.", "technique": "B."}),
        # Titles of the examination.
        ("CHEST, TWO VIEWS: The heart size is normal today.", {"findings": "The heart size is normal today."}),
        ("CHEST, TWO VIEWS: 3/4/2010\nFINDINGS: Clear.", {"examination": "3/4/2010", "findings": "Clear."}),
        ("PORTABLE CHEST, ___, AT 10:54 A.M. COMPARED WITH ___ AT 5 A.M.\n\n IMPRESSION:  No change.",
         {"": "PORTABLE CHEST, ___, AT 10:54 A.M. COMPARED WITH ___ AT 5 A.M.", "impression": "No change."}),
        # With a qualifier.
        ("FINDINGS, TWO VIEWS OF THE CHEST: Nodule.\nIMPRESSION: Normal.",
         {"findings": "Nodule.", "impression": "Normal."}),
        ("FINDINGS (CHEST X-RAY): Nodule.\nIMPRESSION: Normal.", {"findings": "Nodule.", "impression": "Normal."}),
        ("TECHNIQUE: AP.\nFINDINGS (CHEST): Nodule.\nIMPRESSION (PRELIM): Normal.",
         {"technique": "AP.", "findings": "Nodule.", "impression": "Normal."}),
        ("FINDINGS (AND IMPRESSION): Normal.", {"impression": "Normal."}),
        ("FINDINGS: Please see FINAL REPORT for CT. Lungs clear. IMPRESSION: ok",
         {"findings": "Please see FINAL REPORT for CT. Lungs clear.", "impression": "ok"}),
        # Read before the radiologist had read it.
        ("WET READ: ___ 8:50 PM\n Clear.\n ________\n    FINAL REPORT\n IMPRESSION: Edema.",
         {"provisional": "___ 8:50 PM Clear.", "impression": "Edema."}),
        ("PROVISIONAL FINDINGS IMPRESSION (PFI): Clear.\nFINDINGS: Edema.",
         {"provisional": "Clear.", "findings": "Edema."}),
        ("", {}),
        (" \n\t", {}),
    ],
)  # fmt: skip
def test_sections(report, sections):
    assert split_sections(report) == sections


@pytest.mark.parametrize(
    ("report", "findings"),
    [
        ("HISTORY: Cough.\n \n Two views. Clear.\n\n Normal heart.", "Two views. Clear. Normal heart."),
        ("COMPARISON:  ___.\n\n Clear lungs.\n\n The study and the report were reviewed by", "Clear lungs."),
        ("FINAL REPORT\n PORTABLE CHEST ___ AT 10:54 HOURS USING ONE AP VIEW\n\n HISTORY:  Fever\n\n"
         " COMPARISON:  ___\n\n The lungs are clear.  Heart is normal.", "The lungs are clear. Heart is normal."),
        ("CHEST RADIOGRAPH\n\nClear lungs.\n\nNormal heart.", "Clear lungs. Normal heart."),
        ("Clear lungs.\n\nNormal heart.", "Clear lungs. Normal heart."),
        ("Clear lungs.", "Clear lungs."),
        ("WET READ: Clear lungs.", "Clear lungs."),
        ("INDICATION: Cough.", ""),
        ("RECOMMENDATION: CT.\n\nSoon.", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_findings_without_a_heading_are_the_last_paragraphs(report, findings):
    assert extract_sections(report) == {"findings": findings, "impression": ""}


@pytest.mark.parametrize(
    ("report", "impression"),
    [
        ("FINDINGS: x IMPRESSION: No \n acute  process.", "No acute process."),
        ("IMPRESSION: first IMPRESSION: last", "last"),
        ("IMPRESSION: a b RECOMMENDATION(S): c", "a b"),
        ("IMPRESSION: a NOTIFICATION: b RECOMMENDATIONS: c", "a"),
        ("IMPRESSION: a RECOMMENDATIONS: b RECOMMENDATION: c", "a RECOMMENDATIONS: b"),  # the order of its search
        ("RECOMMENDATION: a IMPRESSION: b", "b"),  # position 0 counts as none
        ("x RECOMMENDATION: a IMPRESSION: b", " "),  # cut before it begins
        ("IMPRESSION:", " "),
        ("Impression: a", "NO IMPRESSION"),
        ("IMPRESSION : a", "NO IMPRESSION"),
        ("a IMPRESSION:b", "NO IMPRESSION"),
        ("FINDINGS/IMPRESSION: a", "NO IMPRESSION"),
        ("", "NO IMPRESSION"),
    ],
)
def test_chexzero_style(report, impression):
    assert extract_sections(report, style="chexzero") == {"findings": "", "impression": impression}


@pytest.mark.parametrize(
    ("report", "sections"),
    [
        (" FINDINGS: Clear.\n IMPRESSION: No Acute process.", ("clear.", "no acute process.")),
        (" IMPRESSION:  \n \n 1. A\n 2. B\n", ("", "1. a 2. b")),  # two blanks or more are one
        ("IMPRESSION: a\nb", ("", "a\\nb")),  # one line end is a backslash and an n
        ("IMPRESSION: a\n see note: b", ("", "a")),  # any words before a colon are a title
        ("IMPRESSION: first\nIMPRESSION: last", ("", "last")),
        ("IMPRESSION: first\nIMPRESSION:", ("", "")),  # also where the last is empty
        ("FINAL IMPRESSION: a\nCONCLUSION: b", ("", "")),
        ("FINDINGS/IMPRESSION: a", ("", "")),
        ("x IMPRESSION: a", ("", "")),
        ("IMPRESSION: Dr. ___ at 8:50 PM.", ("", "dr. at TIME pm.")),
        ("IMPRESSION: a\r\nNOTIFICATION: b", ("", "a")),
        ("IMPRESSION: a. The study and the report were reviewed by the staff radiologist.", ("", "a.")),
    ],
)
def test_tier_style(report, sections):
    assert extract_sections(report, style="tier") == dict(zip(("findings", "impression"), sections, strict=True))


def test_the_documented_headings_are_headings():
    page = (Path(__file__).resolve().parents[3] / "docs" / "radiology_reports.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([A-Z].*) \|$", page, re.MULTILINE)
    assert len(rows) == 11
    for name, spellings in rows:
        for heading in spellings.split(", "):
            assert split_sections(f"{heading}: Some text.") == {name: "Some text."}


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="^report style 'x' is not known; choose one of standard, chexzero, tier.$"):
        extract_sections("", style="x")
    with pytest.raises(ValueError, match="^deidentified='x' is not known; choose one of keep, remove, replace.$"):
        clean_text("", deidentified="x")


texts = st.lists(sentences, min_size=1, max_size=4).map(" ".join)
headings = {
    name: sorted(h for h, n in HEADINGS.items() if n == name and h not in LINE_ONLY)
    for name in ("findings", "impression", "indication", "comparison", "technique", "history", "recommendation")
}  # fmt: skip


@given(st.dictionaries(st.sampled_from(sorted(headings)), texts, min_size=1), st.randoms(use_true_random=False))
@examples
def test_composed_sections_are_read_back(sections, random):
    lines = []
    for name, text in sections.items():
        heading = random.choice(headings[name])
        layout = random.randrange(4)
        if layout == 0:  # wrapped, with the heading on its own line
            body = "\n ".join(textwrap.wrap(text, 40, break_on_hyphens=False))
            lines.append(f"\n {heading.upper()}:  \n \n {body}\n \n")
        elif layout == 1:
            lines.append(f"\n{heading.capitalize()}: {text}\n")
        elif layout == 2:
            lines.append(f"\r\n{heading.upper()}\r\n{text}\r\n\r\n")
        else:
            lines.append(f"{heading.upper()}: {text} ")
    assert split_sections("".join(lines)) == sections


@given(pieces)
@examples
def test_any_text_is_read_and_nothing_is_invented(text):
    for section in split_sections(text).values():
        assert section == " ".join(section.split()) != ""
        assert all(word in text for word in section.split())
    extracted = extract_sections(text)
    assert list(extracted) == ["findings", "impression"]
    assert all(word in text for section in extracted.values() for word in section.split())
    for style in ("chexzero", "tier"):
        assert list(extract_sections(text, style)) == ["findings", "impression"]
    for sentence in split_sentences(text):
        assert set(re.findall(r"[^\W_]+", sentence)) <= set(re.findall(r"[^\W_]+", text))
    assert duplicate_groups([text, text.upper().lower(), text]).tolist()[::2] in ([0, 0], [-1, -1])


@pytest.mark.parametrize(
    "pattern",
    ["a", " ", "\n", "a ", "A:", "FINDINGS", "FINDINGS ", "FINDINGS: ", "clinical ", "CHEST ", ".", "a. ", "1. ", "(",
     ")", "[**", "___", "XXXX", "X-", "___ ", " \n", "\t:", "IMPRESSION: a ", "I have personally ", "Dr. ", "8:"],
)  # fmt: skip
@pytest.mark.parametrize("length", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_time_is_linear_in_the_length_of_any_text(pattern, length):
    functions = (split_sections, extract_sections, split_sentences, lambda text: clean_text(text, "remove"),
                 lambda text: clean_text(text, "replace"), lambda text: extract_sections(text, "chexzero"),
                 lambda text: extract_sections(text, "tier"), lambda text: duplicate_groups([text]))  # fmt: skip

    def seconds(length):
        text = (pattern * length)[:length]
        started = time.process_time()
        for function in functions:
            function(text)
        return time.process_time() - started

    # Quadratic time would be 100 times as long; a tenth of a second is allowed for what else the machine does.
    assert min(seconds(length) for _ in range(2)) < 30 * min(seconds(length // 10) for _ in range(3)) + 0.1


def compose_mimic(comparison, indication, findings, impression):
    def wrap(text):
        return "\n ".join(textwrap.wrap(text, 78, break_on_hyphens=False))

    return (
        "                                 FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n \n"
        f" INDICATION:  {wrap(indication)}\n \n COMPARISON:  {wrap(comparison)}\n \n"
        f" FINDINGS: \n \n {wrap(findings)}\n \n IMPRESSION: \n \n {wrap(impression)}\n"
    )


def compose_lines(**sections):
    return "\r\n".join(f"{name.capitalize()}: {text}" for name, text in sections.items())


def compose_alone(**sections):
    return "\n\n".join(f"{name.upper()}\n{text}" for name, text in sections.items())


def test_the_sections_of_openi_are_read_back(shared_data):
    reports = []
    with tarfile.open(shared_data / "openi" / "NLMCXR_reports.tgz") as archive:
        for member in archive:
            if member.name.endswith(".xml"):
                texts = ElementTree.parse(archive.extractfile(member)).iter("AbstractText")
                reports.append({t.get("Label").lower(): " ".join(repair_markup(t.text or "").split()) for t in texts})
    assert len(reports) == 3955
    # Fifteen have a heading within a section, such as the indication "INDICATION: PAIN;": where it ends is unknown.
    heading = re.compile(r"\b(indication|comparison|history|impression|pression|findings|exam) ?:", re.IGNORECASE)
    assert sum(any(heading.search(text) for text in report.values()) for report in reports) == 15
    for compose, some, most in (
        (compose_mimic, reports, 16),
        (compose_lines, reports[::4], 4),
        (compose_alone, reports[1::4], 4),
    ):
        missed = 0
        for report in some:
            sections = split_sections(compose(**report))
            wrong = [name for name in report if sections.get(name, "") != report[name]]
            assert not wrong or any(heading.search(text) for text in report.values())
            missed += len(wrong)
        assert missed <= most


@pytest.mark.parametrize(
    ("report", "findings", "impression"),
    [
        ("[FINDINGS]\nClear lungs.\n[IMPRESSION]\nNormal.", "Clear lungs.", "Normal."),
        ("[FINDINGS] Clear lungs. [IMPRESSION] Normal.", "Clear lungs.", "Normal."),
        ("[FINDINGS]: Clear lungs.\n[IMPRESSION:] Normal.", "Clear lungs.", "Normal."),
        ("FINDINGS: Clear lungs.\nIMPRESSION #1: Normal.", "Clear lungs.", "Normal."),
        ("FINDINGS: Clear.\nIMPRESSION #1: Heart normal.\nIMPRESSION #2: Dry.", "Clear.", "Heart normal. Dry."),
        ("FINDINGS: Clear.\nIMPRESSION 1: Heart normal.\nIMPRESSION 2: Dry.", "Clear.", "Heart normal. Dry."),
        ("FINDINGS: Clear lungs.\\n\\nIMPRESSION:\\nNormal.", "Clear lungs.", "Normal."),
        ("FINDINGS: Clear lungs.<br><br/>IMPRESSION: Normal.", "Clear lungs.", "Normal."),
        ("<p><b>FINDINGS:</b> Heart &amp; lungs.</p><p><b>IMPRESSION:</b> Dry.</p>", "Heart & lungs.", "Dry."),
        ("FINDINGS:_x000D_\nClear lungs._x000D_\nIMPRESSION:_x000D_\nNormal.", "Clear lungs.", "Normal."),
        ("Hallazgos: Pulmones claros.\nImpresión diagnóstica: Normal.", "Pulmones claros.", "Normal."),
        ("TÉCNICA: PA.\nACHADOS: Pulmões livres.\nCONCLUSÃO: Exame normal.", "Pulmões livres.", "Exame normal."),
        ("Indication : Toux.\nRésultats : Poumons clairs.\nConclusion : Normal.", "Poumons clairs.", "Normal."),
        ("TECHNIQUE DE L'EXAMEN : Face.\nRÉSULTAT : Clair.\nAU TOTAL : Normal.", "Clair.", "Normal."),
        ("Fragestellung: Pneumonie?\nBefund: Lunge frei.\nBeurteilung: Normal.", "Lunge frei.", "Normal."),
        ("Klinische Angaben:\nHusten.\n\nBefund\nLunge frei.\n\nBeurteilung\nNormal.", "Lunge frei.", "Normal."),
    ],
)  # fmt: skip
def test_headings_of_exports_and_other_languages(report, findings, impression):
    assert extract_sections(report) == {"findings": findings, "impression": impression}


def test_brackets_that_are_not_headings():
    report = (
        "FINDINGS: [DATE] The heart [see comparison] is <unk> normal at 1:30. IMPRESSION: Normal [**Hospital 2**]."
    )
    assert extract_sections(report) == {
        "findings": "[DATE] The heart [see comparison] is <unk> normal at 1:30.",
        "impression": "Normal [**Hospital 2**].",
    }
