import numpy as np
import pytest

from evaluation_tier.benchmarks import (
    apply_benchmark,
    benchmark_data,
    benchmark_prompts,
    list_benchmarks,
    load_benchmark,
    published_differences,
)
from evaluation_tier.protocols import PROTOCOLS, find_prompts
from processing_tier.readers import READERS
from processing_tier.readers.chestxray14 import FINDINGS as NIH_FINDINGS
from processing_tier.readers.chexpert import CHEXPERT_FINDINGS
from processing_tier.readers.openi import OPENI_FINDINGS
from processing_tier.records import finding_columns

NAMES = (
    "chestx-det10 chestxray14 chexpert-14 chexpert-5 covid-qu-ex openi padchest-192 padchest-57 rsna siim vindr-cxr"
).split()


def test_the_files():
    assert list_benchmarks() == NAMES
    for name in NAMES:
        benchmark = load_benchmark(name)
        assert benchmark.views in ("frontal", "all") and benchmark.source.startswith("https://")
        known_splits = READERS[benchmark.reader][1]
        assert set(benchmark.splits) <= set(known_splits)
        for split in benchmark.splits.values():
            assert set(split) <= {"images", "positives", "options"}
            assert set(split.get("positives", {})) <= set(benchmark.findings or ())
        for name, protocol in PROTOCOLS.items():
            replaced = benchmark_prompts(benchmark, name)
            assert set(replaced) <= set(benchmark.findings or ())
            find_prompts(protocol.prompts, list(benchmark.findings or ["nodule"]), replaced)


def test_findings_are_those_of_the_readers():
    assert set(load_benchmark("chexpert-14").findings) == set(CHEXPERT_FINDINGS)
    assert set(load_benchmark("chestxray14").findings) == set(NIH_FINDINGS)
    assert set(load_benchmark("openi").findings) == set(OPENI_FINDINGS)
    five = load_benchmark("chexpert-5")
    assert list(five.findings) == ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"]
    assert (five.splits["validation"]["images"], five.splits["test"]["images"]) == (234, 500)


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(ValueError, match="no benchmark 'chexpert5': did you mean 'chexpert-5'"):
        load_benchmark("chexpert5")


def test_the_reader_gets_the_options():
    five, padchest = load_benchmark("chexpert-5"), load_benchmark("padchest-57")
    assert benchmark_data(five, "chexpert:data", "validation") == "chexpert:data"
    assert benchmark_data(five, "chexpert:data", "test") == "chexpert:data,views=first"
    assert benchmark_data(five, "chexpert:data,views=all", "test") == "chexpert:data,views=all"
    assert benchmark_data(padchest, "padchest:data", "train") == "padchest:data,method=Physician,min_images=51"
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
    assert sorted(finding_columns(result)) == sorted(five.findings)
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
    vindr = load_benchmark("vindr-cxr")
    (sentence,) = published_differences(vindr, apply_benchmark(vindr, dataset, "test"), "test")
    assert "has 1,372 images and not 3,000, 2 findings and not 28" in sentence


def test_covid_is_scored_against_pneumonia():
    replaced = benchmark_prompts(load_benchmark("covid-qu-ex"), "tier")
    assert all("pneumonia" in text for text in replaced["COVID-19"].negative)
    assert not benchmark_prompts(load_benchmark("covid-qu-ex"), "chexzero")
