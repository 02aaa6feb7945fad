import numpy as np
import pytest
import torch

from evaluation_tier.analyses.word_grounding import (
    MAPS,
    class_of,
    evaluate_word_grounding,
    find_questions,
    measure_words,
    named_findings,
)
from evaluation_tier.statistics.resampling import Resampling
from processing_tier.phantom.wording import FINDING_WORDS, NEGATIVES, NOUNS, SENTENCES

DEVICES = ("pacemaker", "central line", "port")


def test_the_words_of_the_phantom_name_one_finding():
    for table in (NOUNS, SENTENCES):
        for key, texts in table.items():
            finding = "Support Devices" if key in DEVICES else key
            assert all(named_findings(text, FINDING_WORDS) == [finding] for text in texts)
    assert not any(
        named_findings(text, FINDING_WORDS) for texts in NEGATIVES.values() for text in texts if "o " in text
    )


def test_questions_ask_about_one_finding_each(phantom):
    questions = find_questions(phantom, FINDING_WORDS)
    assert len(questions) > 30
    for question in questions:
        record = phantom[question.case.row]
        assert record[question.case.finding] == 1
        assert question.sentence in record["report"]
        assert named_findings(question.sentence, FINDING_WORDS) == [question.case.finding]


def test_classes_of_words():
    own = {"effusion"}
    words = ("Effusion", "left", "pleural", "is", "no", ".")
    assert [class_of(word, own) for word in words] == ["own", "other", "other", "function", "function", "punctuation"]


def test_the_measure_by_hand():
    """The finding's own words see exactly the region, the others all but the region, the sentence nothing."""
    mask = np.zeros((8, 8), dtype=bool)
    mask[2:4, 3:7] = True
    words = [(word, (mask if word == "effusion" else ~mask).astype(float)) for word in ("No", "effusion", ".")]
    measured = measure_words(np.zeros((8, 8)), words, mask, {"effusion"})
    values = dict(zip(MAPS, measured, strict=True))
    assert values["sentence"].tolist() == [mask.mean(), 0.5]  # equal pixels: chance
    assert values["own"].tolist() == [1, 1]
    assert values["punctuation"].tolist() == values["function"].tolist() == [0, 0]
    assert np.isnan(values["other"]).all()


def test_a_real_model(tier_model, phantom):
    results = evaluate_word_grounding(*tier_model, phantom, max_regions=8, resampling=Resampling(5))
    assert results["kind"] == "contribution" and results["n_regions"] == 8
    assert list(results["maps"]) == ["sentence", "own", "other", "function", "punctuation"]
    assert list(results["differences"]) == ["sentence", "other", "function", "punctuation"]
    maps, differences = results["maps"], results["differences"]
    for measure in ("pointing", "pixel_auroc"):
        expected = maps["own"][measure]["mean"] - maps["sentence"][measure]["mean"]
        assert differences["sentence"][measure]["mean"] == pytest.approx(expected)
        assert 0 <= maps["own"][measure]["mean"] <= 1


def test_it_says_what_it_cannot_measure(tier_model, phantom):
    with pytest.raises(ValueError, match=r"The words that name the findings \(fracture\) are not in any report"):
        evaluate_word_grounding(*tier_model, phantom, {"Edema": {"fracture"}})
    with pytest.raises(ValueError, match="does not give similarity maps"):
        evaluate_word_grounding(torch.nn.Linear(1, 1), tier_model[1], phantom)
