"""The distribution: what `import tier_clip` does, and what the wheel holds."""

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import tier_clip

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("tier_clip", "training_tier", "evaluation_tier", "processing_tier", "modeling_tier")
VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
COMMANDS = re.findall(r'^(tier-\w+) = "(\w+):main"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_version_is_that_of_pyproject():
    assert tier_clip.__version__ == VERSION, "the installed version is stale; run `make env`"
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{VERSION}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_importing_the_package_registers_everything():
    program = """
import tier_clip
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name
from transformers.models.auto.processing_auto import processor_class_from_name
from transformers.pipelines import PIPELINE_REGISTRY
for kind in ("tier_clip", "tier_dual_encoder"):
    config = AutoConfig.for_model(kind)
    for auto in (AutoModel, AutoModelForImageClassification):
        assert type(config) in auto._model_mapping, (kind, auto)
assert get_image_processor_class_from_name("TierImageProcessor")
assert processor_class_from_name("TierProcessor")
assert "cxr-zero-shot-classification" in PIPELINE_REGISTRY.get_supported_tasks()
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_the_wheel_holds_every_module_and_no_test(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        path.relative_to(ROOT).as_posix()
        for path in (*ROOT.glob("*.py"), *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")))
    }
    modules |= {f"evaluation_tier/{path.relative_to(ROOT)}" for path in (ROOT / "model_cards").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    folders = {name.split("/")[0] for name in names if "/" in name}
    assert folders == {*PACKAGES, f"tier_clip-{VERSION}.dist-info"}


def test_the_wheel_holds_the_files_that_the_code_reads(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in (("configs", "training_tier/configs"), ("model_cards", "evaluation_tier/model_cards")):
        for path in (ROOT / folder).rglob("*.*"):
            assert f"{inside}/{path.relative_to(ROOT / folder).as_posix()}" in names
    for package in PACKAGES:
        for path in (
            path for kind in ("yaml", "html", "md", "css", "js") for path in (ROOT / package).rglob(f"*.{kind}")
        ):
            assert path.relative_to(ROOT).as_posix() in names


def test_the_readme_of_the_wheel_has_no_link_into_the_repository(wheel):
    text = zipfile.ZipFile(wheel).read(f"tier_clip-{VERSION}.dist-info/METADATA").decode()
    readme = text.partition("\n\n")[2]
    assert readme.startswith("# tier-clip\n")
    assert [link for link in re.findall(r"\]\(([^)]*)\)", readme) if not link.startswith(("https://", "#"))] == []


@pytest.mark.slow
def test_an_installed_wheel_works_in_an_empty_folder(wheel, tmp_path):
    """In an environment whose only other packages are those of this one, without its link to the clone."""
    environment, folder = tmp_path / "environment", tmp_path / "empty"
    folder.mkdir()
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    where = [sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip()
    site = next((environment / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(packages)
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str) -> str:
        command = [str(environment / "bin" / command[0]), *command[1:]]
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(site) in run("python", "-c", "import tier_clip; print(tier_clip.__file__)")
    for command, _ in COMMANDS:
        assert VERSION in run(command, "--version")
        assert "usage" in run(command, "--help")
    data = ["--data", "phantom:num_images=120,image_size=64"]
    run("tier-train", "smoke", *data, "--max_steps", "2", "--min_positives", "1", "--output_dir", "run")
    run(
        "tier-eval", "run", *data, "--split", "test", "--min_positives", "5", "--model_card", "--output_dir", "results"
    )
    assert (folder / "run" / "README.md").is_file()
    assert (folder / "results" / "metrics.json").is_file()
