"""The cells of a study: their commands, each in a process of its own, and which of them are finished."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from evaluation_tier.output.file_names import file_names
from evaluation_tier.output.writing import write_beside
from processing_tier.progress import progress
from processing_tier.readers import PHANTOM, dataset_name, list_splits, parse_data
from processing_tier.yaml_files import read_yaml
from training_tier.loop.checkpoints import list_checkpoints
from training_tier.options.parsing import parse_options

ROOT = Path(__file__).resolve().parents[1]
DESCRIBED = "study.json"  # what the study is, in its folder
TRAINED = "trained"  # in the folder of a cell, once its training has ended well


class Source(NamedTuple):
    """Data to train on, and how."""

    data: str
    name: str
    recipe: str
    split: str  # that is evaluated
    analyses: tuple[str, ...]

    @property
    def is_phantom(self) -> bool:
        return self.recipe == "demo-phantom"


def make_source(data: str) -> Source:
    """
    Raises:
        ValueError: the data do not exist, or lack a split that the recipe needs.
    """
    analyses = ("deletion", "retrieval", "sparsity")
    if parse_data(data)[0] == PHANTOM:
        return Source(data, dataset_name(data), "demo-phantom", "test", ("grounding", *analyses))
    splits = list_splits(data)
    for split in ("train", "validation"):
        if split not in splits:
            raise ValueError(f"{data} does not have the split {split!r}, which the study needs: name other --data.")
    return Source(data, dataset_name(data), "indiana", "validation", analyses)


class Cell(NamedTuple):
    """One training and its evaluations."""

    source: Source
    form: str
    seed: int
    folder: Path

    @property
    def is_trained(self) -> bool:
        return (self.folder / TRAINED).is_file()


class Step(NamedTuple):
    """One command of a cell; it is finished if the file `done` exists."""

    name: str
    command: list[str]
    done: Path


class Failure(NamedTuple):
    step: str
    reason: str
    log: Path


@dataclass(frozen=True)
class Study:
    """
    What is trained and measured.

    Args:
        folder: of all files of the study.
        sources: the data to train on.
        forms: options of the training by the name of the form; a value may be a mapping from the recipe.
        options: of every training; those of a form go first.
        seeds: of the trainings.
        grounding_data: data with boxes or masks for the models that are trained on radiographs.
    """

    folder: Path
    sources: tuple[Source, ...]
    forms: Mapping[str, Mapping[str, Any]]
    options: Mapping[str, Any]
    seeds: tuple[int, ...]
    grounding_data: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        folder: Path,
        data: Sequence[str],
        forms: Mapping[str, Mapping[str, Any]],
        options: Mapping[str, Any],
        seeds: Sequence[int],
        grounding_data: Sequence[str] = (),
    ) -> "Study":
        """
        The study of these words of a command line.

        Raises:
            ValueError: data that do not exist or share a name, or an option that a training refuses.
        """
        sources = tuple(make_source(word) for word in dict.fromkeys(data))
        grounding_data = tuple(dict.fromkeys(grounding_data))
        for word in grounding_data:
            list_splits(word)
        for names in ([source.name for source in sources], [dataset_name(word) for word in grounding_data]):
            folders = [folder_name(name) for name in names]
            if len(set(folders)) < len(folders):
                raise ValueError(
                    f"Two data sets of one study have the name {max(folders, key=folders.count)}: rename one."
                )
        if grounding_data and all(source.is_phantom for source in sources):
            raise ValueError("--grounding_data is for models trained on radiographs: name some in --data.")
        study = cls(folder, sources, forms, options, tuple(seeds), grounding_data)
        for source in sources:
            for form in forms:
                parse_options(study.training_words(source, form), "tier-train")
        return study

    @property
    def cells(self) -> list[Cell]:
        """All cells, one seed of every form before the next seed."""
        return [
            Cell(source, form, seed, self.folder / folder_name(source.name) / form / f"seed-{seed}")
            for source in self.sources
            for seed in self.seeds
            for form in self.forms
        ]

    def training_words(self, source: Source, form: str) -> list[str]:
        """The options of `train_tier.py` for a form, without seed and folder."""
        options = {**self.options, **self.forms[form]}
        options = {name: v[source.recipe] if isinstance(v, Mapping) else v for name, v in options.items()}
        words = [str(ROOT / "configs" / f"{source.recipe}.yaml"), "--data", source.data]
        return [*words, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]

    def steps(self, cell: Cell) -> list[Step]:
        """The commands of a cell in their order."""
        source, model = cell.source, str(cell.folder / "model")
        script = [sys.executable, str(ROOT / "train_tier.py")]
        options = [
            "--seed",
            str(cell.seed),
            "--save_total_limit",
            "1",
            "--disable_tqdm",
            "true",
            "--report_to",
            "none",
        ]
        command = [*script, *self.training_words(source, cell.form), *options, "--output_dir", model]
        steps = [Step("training", command, cell.folder / TRAINED)]

        of_classifiers = {**self.options, **self.forms[cell.form]}.get("task") == "classification"
        analyses = [name for name in source.analyses if name == "grounding" or not of_classifiers]
        output = self.measured_folder(cell)
        command = [sys.executable, str(ROOT / "eval_zeroshot.py"), model, "--data", source.data]
        command += ["--split", source.split, *(["--analyses", *analyses] if analyses else [])]
        steps.append(Step("evaluation", [*command, "--output_dir", str(output)], output / "metrics.json"))

        script = [sys.executable, str(Path(__file__).with_name("measure_maps.py"))]
        if source.is_phantom and not of_classifiers:
            command = [*script, "words", model, source.data, str(self.words_folder(cell)), "--split", source.split]
            steps.append(Step("words", command, self.words_folder(cell) / "metrics.json"))
        for data in () if source.is_phantom else self.grounding_data:
            output = self.measured_folder(cell, data)
            command = [*script, "boxes", model, data, str(output)]
            steps.append(Step(f"grounding on {dataset_name(data)}", command, output / "metrics.json"))
        return steps

    def measured_folder(self, cell: Cell, grounding_data: str | None = None) -> Path:
        """Where the numbers of a cell are: of its evaluation, or of the boxes of other data."""
        return cell.folder / (
            "evaluation" if grounding_data is None else f"grounding-{folder_name(dataset_name(grounding_data))}"
        )

    def words_folder(self, cell: Cell) -> Path:
        """Where the numbers of the words of a cell are."""
        return cell.folder / "words"

    def check_and_describe(self) -> None:
        """
        Note in the folder which study it holds. More data, forms and seeds may be added later.

        Raises:
            ValueError: the folder holds another study: the same data or the same form with other options, or cells
                that other code trained and measured.
        """
        path = self.folder / DESCRIBED
        here = {
            "options": {"of every training": dict(self.options)},
            "data": {source.name: describe_source(source) for source in self.sources},
            "forms": {name: dict(options) for name, options in self.forms.items()},
            "code": {"of training and evaluation": hash_sources()},
        }
        here = json.loads(json.dumps(here))
        merged = here
        if path.is_file():
            try:
                there = json.loads(path.read_text(encoding="utf-8"))
                merged = {part: {**there[part], **entries} for part, entries in here.items()}
            except (ValueError, LookupError, TypeError):
                raise ValueError(f"{path} cannot be read: choose another --output_dir.") from None
            for part, entries in here.items():
                for name, entry in entries.items():
                    if there[part].get(name, entry) != entry:
                        other = "by other code" if part == "code" else f"with other options ({part}: {name})"
                        raise ValueError(f"{self.folder} holds a study {other}: choose another --output_dir.")
        text = json.dumps(merged, indent=2, ensure_ascii=False) + "\n"
        write_beside(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def describe_source(source: Source) -> dict:
    """Everything that the numbers of a cell depend on, but form and seed."""
    data = str(Path(source.data).resolve()) if Path(source.data).exists() else source.data
    recipe = read_yaml(ROOT / "configs" / f"{source.recipe}.yaml")
    return {"data": data, "split": source.split, "analyses": source.analyses, "recipe": recipe}


def hash_sources() -> str:
    """SHA-256 of all Python files that train and measure a cell: those of the packages and of the commands."""
    folders = ("modeling_tier", "processing_tier", "evaluation_tier", "training_tier")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    files += [ROOT / "train_tier.py", ROOT / "eval_zeroshot.py", Path(__file__).with_name("measure_maps.py")]
    digest = sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(ROOT)} {sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def folder_name(name: str) -> str:
    return file_names([name])[name]


class Processes:
    """Runs commands with a number of threads each, from several threads of this process, until it is stopped."""

    def __init__(self, num_threads: int):
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads), "TOKENIZERS_PARALLELISM": "false"}
        self.running: set[subprocess.Popen] = set()
        self.lock = threading.Lock()
        self.stopped = False

    def run(self, command: Sequence[str], log: Path) -> int | None:
        """The exit code of a command, whose output goes into `log`; None if the study was stopped."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w", encoding="utf-8") as stream:
            with self.lock:
                if self.stopped:
                    return None
                # a session of its own: Ctrl-C reaches this process alone, which stops the others
                process = subprocess.Popen(
                    command, stdout=stream, stderr=subprocess.STDOUT, env=self.environment, start_new_session=True
                )
                self.running.add(process)
            code = process.wait()
        with self.lock:
            self.running.discard(process)
            return None if self.stopped else code

    def stop(self) -> None:
        """End the running commands; a training leaves the process within a step."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                process.terminate()


def run_cell(study: Study, cell: Cell, processes: Processes) -> Failure | None:
    """Run the steps of a cell that are not finished; returns the step that failed, if any."""
    if not cell.is_trained:
        shutil.rmtree(cell.folder, ignore_errors=True)  # of an interrupted or failed training
    for step in study.steps(cell):
        if step.done.is_file():
            continue
        log = cell.folder / f"{step.name.replace(' ', '-')}.log"
        code = processes.run(step.command, log)
        if code is None:
            return None
        if code != 0:
            return Failure(step.name, last_line(log) or f"exit code {code}", log)
        if step.done.name == TRAINED:
            for checkpoint in list_checkpoints(cell.folder / "model").values():
                shutil.rmtree(checkpoint)  # the best one is the model
            step.done.touch()
    return None


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def run_cells(study: Study, jobs: int, num_threads: int) -> dict[Cell, Failure]:
    """
    Run all cells that are not finished, `jobs` at a time with `num_threads` threads each.

    Returns:
        The failed cells. A failure does not stop the others.
    """
    processes, failures = Processes(num_threads), {}
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(run_cell, study, cell, processes): cell for cell in study.cells}
        try:
            for future in progress(as_completed(futures), "study", "cell", len(futures)):
                if failure := future.result():
                    failures[futures[future]] = failure
        except BaseException:
            processes.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {cell: failures[cell] for cell in study.cells if cell in failures}
