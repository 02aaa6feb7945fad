import numpy as np
import pytest

from evaluation_tier.scoring.protocols import PROTOCOLS, find_prompts
from evaluation_tier.test_sets.loader import (
    apply_benchmark,
    benchmark_data,
    benchmark_prompts,
    list_benchmarks,
    load_benchmark,
    published_differences,
)
from processing_tier.prompts.loader import normalize_finding
from processing_tier.readers import READERS
from processing_tier.readers.chestxray14 import FINDINGS as NIH_FINDINGS
from processing_tier.readers.chestxray14_experts import ALL, FOUR
from processing_tier.readers.chexpert import CHEXPERT_FINDINGS
from processing_tier.readers.cxr_lt_2026 import KNOWN, UNSEEN
from processing_tier.readers.openi import OPENI_FINDINGS
from processing_tier.records.schema import finding_columns

NAMES = (
    "brax chest-imagenome chestx-det10 chestxray14 chestxray14-experts-14 chestxray14-experts-4 chexpert-14 "
    "chexpert-5 covid-pneumonia covid-qu-ex cxr-lt-2026-task1 cxr-lt-2026-task2 montgomery openi padchest-192 "
    "padchest-57 padchest-gr rsna shenzhen siim taix-ray tbx11k vindr-cxr vindr-pcxr"
).split()
NUM_FINDINGS = (14, 14, 10, 14, 14, 4, 14, 5, 2, 3, 30, 5, 1, 16, 192, 57, 8, 1, 1, 1, 8, 1, 28, 6)


def test_the_files():
    assert list_benchmarks() == NAMES
    for name, num_findings in zip(NAMES, NUM_FINDINGS, strict=True):
        benchmark = load_benchmark(name)
        names = [
            {normalize_finding(text) for text in (finding, *others)} for finding, others in benchmark.findings.items()
        ]
        assert len(names) == num_findings and sum(map(len, names)) == len(set().union(*names))
        assert set(benchmark.only_with) <= set(benchmark.findings)
        assert list(benchmark.groups.values()) == sorted(benchmark.groups.values(), reverse=True)
        assert benchmark.views in ("frontal", "all") and benchmark.source.startswith("https://")
        known_splits = READERS[benchmark.reader][1]
        assert set(benchmark.splits) <= set(known_splits)
        for split in benchmark.splits.values():
            assert set(split) <= {"images", "positives", "options", "regions"}
            assert set(split.get("positives", {})) | set(split.get("regions", {})) <= set(benchmark.findings)
        for name, protocol in PROTOCOLS.items():
            replaced = benchmark_prompts(benchmark, name)
            assert set(replaced) <= set(benchmark.findings)
            find_prompts(protocol.prompts, list(benchmark.findings), replaced)


def test_findings_are_those_of_the_readers():
    assert set(load_benchmark("chexpert-14").findings) == set(CHEXPERT_FINDINGS)
    assert set(load_benchmark("chestxray14").findings) == set(NIH_FINDINGS)
    assert set(load_benchmark("openi").findings) == set(OPENI_FINDINGS)
    assert set(load_benchmark("brax").findings) == set(CHEXPERT_FINDINGS)
    assert set(load_benchmark("chest-imagenome").findings) == set(CHEXPERT_FINDINGS)
    assert list(load_benchmark("chestxray14-experts-4").findings) == list(FOUR)
    assert [*load_benchmark("chestxray14-experts-14").findings, "Other"] == sorted(ALL, key="Other".__eq__)
    for task, names in (("task1", KNOWN), ("task2", UNSEEN)):
        of_task = load_benchmark(f"cxr-lt-2026-{task}").findings
        known = [{normalize_finding(text) for text in (finding, *others)} for finding, others in of_task.items()]
        assert all(normalize_finding(name) in each for name, each in zip(names, known, strict=True))
    five = load_benchmark("chexpert-5")
    assert list(five.findings) == ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"]
    assert (five.splits["validation"]["images"], five.splits["test"]["images"]) == (234, 500)


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(ValueError, match="The benchmark 'chexpert5' is not known: did you mean 'chexpert-5'"):
        load_benchmark("chexpert5")


def test_the_reader_gets_the_options():
    five, padchest = load_benchmark("chexpert-5"), load_benchmark("padchest-57")
    assert benchmark_data(five, "chexpert:data", "validation") == "chexpert:data"
    assert benchmark_data(five, "chexpert:data", "test") == "chexpert:data,views=first"
    assert benchmark_data(five, "chexpert:data,views=all", "test") == "chexpert:data,views=all"
    assert benchmark_data(padchest, "padchest:data", "train") == "padchest:data,method=Physician,min_images=1"
    assert benchmark_data(five, "prepared/chexpert", "test") == "prepared/chexpert"
    with pytest.raises(ValueError, match="chexpert-5 is of 'chexpert', not of 'padchest'"):
        benchmark_data(five, "padchest:data", "test")
    with pytest.raises(ValueError, match="chexpert-5 has no split 'train': it has validation, test"):
        benchmark_data(five, "chexpert:data", "train")


def test_findings_are_found_by_their_aliases_and_counted(make_grey_dataset):
    five = load_benchmark("chexpert-5")
    labels = {name: [1, 0, np.nan] for name in ("atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion")}
    dataset = make_grey_dataset([1, 2, 3], [1, 1, 1], **labels)
    result = apply_benchmark(five, dataset, "test")
    assert finding_columns(result) == list(five.findings)
    assert result["image_id"][:] == ["image0", "image1"]  # the third has no label
    (sentence,) = published_differences(five, result, "test")
    assert sentence.startswith(
        "chexpert-5, split test, has 2 images and not 500, 1 positives of Atelectasis and not 153, 1 positives of"
    )
    assert sentence.endswith(": the results are not those of the published test set.")
    with pytest.raises(ValueError, match="no column 'Pleural Effusion'"):
        apply_benchmark(five, dataset.remove_columns("Effusion"), "test")


def test_counts_that_agree_say_nothing(make_grey_dataset):
    siim = load_benchmark("siim")
    dataset = make_grey_dataset([0] * 1372, [0] * 1372, Pneumothorax=[1.0] + [0.0] * 1371)
    result = apply_benchmark(siim, dataset, "test")
    assert finding_columns(result) == ["Pneumothorax"]
    assert published_differences(siim, result, "test") == []
    assert "has 1,372 images and not 3,000" in published_differences(load_benchmark("vindr-cxr"), dataset, "test")[0]


def test_padchest_has_the_labels_of_the_references(make_grey_dataset):
    """Whatever else the archive has: TIER's 57 are a list by hand, and the 192 are all labels but "normal"."""
    all_labels = [*load_benchmark("padchest-192").findings, "normal", "electronic device of another release"]
    labels = {name.lower(): [1.0, 0.0] for name in all_labels}  # as the reader writes them
    dataset = make_grey_dataset([1, 2], [1, 0], **labels)
    for name, left_out in (("padchest-57", 137), ("padchest-192", 2)):
        benchmark = load_benchmark(name)
        result = apply_benchmark(benchmark, dataset, "train")
        assert finding_columns(result) == list(benchmark.findings)
        assert len(finding_columns(dataset)) - 1 - len(benchmark.findings) == left_out  # without "Bright"
    findings = list(load_benchmark("padchest-57").findings)
    assert findings[:2] + findings[-2:] == ["COPD signs", "endotracheal tube", "pseudonodule", "end on vessel"]
    assert {"normal", "unchanged"} <= set(findings) and "normal" not in load_benchmark("padchest-192").findings
    assert set(findings) - {"normal"} < set(load_benchmark("padchest-192").findings)
    with pytest.raises(ValueError) as error:
        apply_benchmark(load_benchmark("padchest-57"), make_grey_dataset([1], [1]), "train")
    assert str(error.value) == (
        "padchest-57: the data set has no column 'COPD signs'; it has 'Bright'. Prepare it again from "
        "padchest:FOLDER,method=Physician,min_images=1."
    )


def test_covid_pneumonia_takes_the_images_with_one_of_the_two(make_grey_dataset):
    labels = {"COVID-19": [1, 0, 0, 1], "Non-COVID": [0, 1, 0, 0], "Normal": [0, 0, 1, 0]}
    dataset = make_grey_dataset([1, 2, 3, 4], [1, 1, 1, 1], **labels)
    result = apply_benchmark(load_benchmark("covid-pneumonia"), dataset, "test")
    assert finding_columns(result) == ["COVID-19", "Pneumonia"]
    assert result["image_id"][:] == ["image0", "image1", "image3"] and result["Pneumonia"][:] == [0, 1, 0]
    prompts = find_prompts(PROTOCOLS["tier-covid"].prompts, ["COVID-19", "Pneumonia"])
    assert prompts["COVID-19"].negative == prompts["Pneumonia"].positive and not prompts["Pneumonia"].negative


def test_covid_is_scored_against_pneumonia():
    replaced = benchmark_prompts(load_benchmark("covid-qu-ex"), "tier")
    assert all("pneumonia" in text for text in replaced["COVID-19"].negative)
    assert not benchmark_prompts(load_benchmark("covid-qu-ex"), "chexzero")
