"""
The library's own common tests on our classes, as they are: whatever passes for CLIP's classes passes for ours.

They come with the source distribution of transformers, which is downloaded once into pytest's cache and never becomes
part of this repository. It has the mixins, but not the test of each model, so that library_cases.py sets up CLIP's
classes as theirs do, and ours beside them. With --log-cli-level=info the counts of each class are shown.
"""

import importlib.metadata
import logging
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytestmark = pytest.mark.slow
logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).parents[2]
VERSION = importlib.metadata.version("transformers")
MODULES = [f"test_{kind}_common.py" for kind in ("modeling", "configuration", "processing", "image_processing")]
STAND_INS = {  # of modules that the four above import and the source distribution leaves out
    "transformers_tests/__init__.py": "",
    "transformers_tests/exporters/__init__.py": "",
    "transformers_tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "transformers_tests/generation/__init__.py": "",
    "transformers_tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "transformers_tests/utils/__init__.py": "",
    "transformers_tests/utils/test_configuration_utils.py": "config_common_kwargs = {}  # unused for two towers\n",
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
}

# What CLIP's own classes fail, and CLIP's test in the library skips or overrides for that reason.
FAILED_BY_CLIP = {
    "CLIPTest": {
        "test_attention_outputs": "a model of two towers has none of its own",
        "test_hidden_states_output": "likewise",
        "test_retain_grad_hidden_states_attentions": "likewise",
        "test_model_get_set_embeddings": "CLIPModel has no input embeddings of its own",
    },
    "CLIPClassificationTest": {
        "test_model_get_set_embeddings": "likewise",
        "test_training_gradient_checkpointing": "its post_layernorm takes no part, and gets no gradient",
        "test_training_gradient_checkpointing_use_reentrant_true": "likewise",
        "test_training_gradient_checkpointing_use_reentrant_false": "likewise",
    },
    "CLIPProcessorTest": {},
    "CLIPImageProcessorTest": {
        "test_new_models_require_torchvision_backend": "asks the folder of the test for the age of the model",
    },
}
# What passes for CLIP's classes and not for ours, and cannot.
EXCEPTIONS = {
    "TierDualEncoderResNetTest": {
        "test_get_image_features_attentions": "a ResNet has no attention",
        "test_can_set_attention_dynamically": "skipped for a tower without a choice of attention",
        "test_can_load_from_already_mapped_keys": "skipped for towers whose weights were never renamed",
    },
    "TierImageProcessorTest": {
        "test_call_numpy_4_channels": "asks for four channels out, and a radiograph is grey",
    },
}


@pytest.fixture(scope="session")
def library(pytestconfig, tmp_path_factory) -> Path:
    """A folder from which the library's test modules can be imported."""
    pytest.importorskip("parameterized", reason="the library's tests need parameterized")
    pinned = re.search(r"^transformers==([\w.]+)", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)[1]
    if pinned != VERSION:
        pytest.skip(f"the lists of this file are for transformers {pinned}, and {VERSION} is installed")
    cache = getattr(pytestconfig, "cache", None)
    folder = (cache.mkdir("transformers-tests") if cache else tmp_path_factory.mktemp("library")) / VERSION
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "transformers", "--quiet"]
        try:
            run = subprocess.run(
                [*command, f"transformers=={VERSION}", "--dest", temporary],
                capture_output=True,
                text=True,
                timeout=900,
            )
            reason = run.stderr.strip().splitlines()[-1:] if run.returncode else None
        except subprocess.TimeoutExpired:
            reason = ["it took longer than 5 minutes"]
        if reason is not None:
            pytest.skip(f"the source distribution of transformers {VERSION} cannot be downloaded: {' '.join(reason)}")
        extracted = Path(temporary) / "extracted"
        for name, text in STAND_INS.items():
            (extracted / name).parent.mkdir(parents=True, exist_ok=True)
            (extracted / name).write_text(text)
        [archive] = Path(temporary).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            for name in MODULES:
                content = tar.extractfile(f"transformers-{VERSION}/tests/{name}").read()
                (extracted / "transformers_tests" / name).write_bytes(content)
        extracted.rename(folder)
    return folder


@pytest.fixture(scope="session")
def outcomes(library, tmp_path_factory) -> dict[str, dict[str, str]]:
    """`"passed"`, `"failed"` or `"skipped"` by class of library_cases.py and by test, all from one run."""
    report = tmp_path_factory.mktemp("report") / "report.xml"
    cases = str(Path(__file__).with_name("library_cases.py"))
    options = ["-q", "-c", os.devnull, "-p", "no:cacheprovider", "--import-mode=importlib", "-W", "ignore"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(library), str(REPOSITORY), str(REPOSITORY / "tests" / "support")]),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, "-m", "pytest", cases, *options, f"--junitxml={report}"],
        env=environment,
        cwd=report.parent,
        capture_output=True,
        text=True,
    )
    assert result.returncode in (0, 1), result.stdout[-3000:] + result.stderr[-3000:]
    found = defaultdict(dict)
    for case in ElementTree.parse(report).iter("testcase"):
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        tests = found[case.get("classname").split(".")[-1]]
        if tests.get(case.get("name")) != "failed":  # one of its subtests may have
            tests[case.get("name")] = outcome
    for name, tests in found.items():
        logger.info("%s: %d run, %s", name, len(tests), dict(sorted(Counter(tests.values()).items())))
    return found


def names(outcomes: dict[str, str], outcome: str) -> set[str]:
    return {name for name, found in outcomes.items() if found == outcome}


@pytest.mark.parametrize("name", FAILED_BY_CLIP)
def test_what_fails_for_clip_is_known(outcomes, name):
    """Else the comparison below would compare less than it says."""
    assert names(outcomes[name], "failed") == set(FAILED_BY_CLIP[name])
    assert len(names(outcomes[name], "passed")) >= {"CLIPTest": 95, "CLIPClassificationTest": 95}.get(name, 18)


@pytest.mark.parametrize(
    "name, clip",
    [
        ("TierCLIPTest", "CLIPTest"),
        ("TierCLIPPatchMeanTest", "CLIPTest"),
        ("TierDualEncoderTest", "CLIPTest"),
        ("TierDualEncoderResNetTest", "CLIPTest"),
        ("TierCLIPClassificationTest", "CLIPClassificationTest"),
        ("TierDualEncoderClassificationTest", "CLIPClassificationTest"),
        ("TierProcessorTest", "CLIPProcessorTest"),
        ("TierImageProcessorTest", "CLIPImageProcessorTest"),
    ],
)
def test_whatever_passes_for_clip_passes(outcomes, name, clip):
    expected, computed = outcomes[clip], outcomes[name]
    assert computed.keys() == expected.keys()
    assert names(expected, "passed") - names(computed, "passed") == set(EXCEPTIONS.get(name, {}))
    assert names(computed, "failed") <= set(FAILED_BY_CLIP[clip]) | set(EXCEPTIONS.get(name, {}))
