"""
The model cards of the recipes' runs, `model_cards/phantom` and `model_cards/indiana`.

    python examples/render_cards.py                 # render them again, after a change of the template
    python examples/render_cards.py --phantom runs/phantom runs/phantom-evaluation    # from a new run

Beside each card (`README.md`) lies what it was rendered from: the model's `config.json` and `training_facts.json`, and
the numbers of `metrics.json` that a card can show.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from evaluation_tier.output.metrics_file import read_metrics, write_metrics
from evaluation_tier.output.model_card import CARD_FOLDER, TRAINING_FILE, write_model_card

RECIPES = {"phantom": "configs/demo-phantom.yaml", "indiana": "configs/indiana.yaml"}


def shown_numbers(metrics: Mapping, model_name: str) -> dict:
    """The results of one model under its name on the card, without what only figures and tables of findings show."""
    kept = json.loads(json.dumps(metrics)) | {"models": [model_name]}
    for key in ("weights", "sizes"):
        if key in kept:
            kept[key] = dict(zip([model_name], kept[key].values(), strict=True))
    for key in ("regions", "findings", "all_regions"):
        kept.get("grounding", {}).pop(key, None)
    if "sparsity" in kept:
        (model,) = kept["sparsity"]["models"].values()
        model.pop("ranked")
        kept["sparsity"]["models"] = {model_name: model}
    return kept


def keep_run(name: str, model: Path, evaluation: Path) -> None:
    """Put what the card of a run is rendered from into `model_cards/NAME`."""
    folder = CARD_FOLDER / name
    metrics = read_metrics(evaluation)
    folder.mkdir(exist_ok=True)
    for file in ("config.json", TRAINING_FILE):
        shutil.copyfile(model / file, folder / file)
    write_metrics(folder / "metrics.json", shown_numbers(metrics, f"tier-{name}"))


def render(folder: Path) -> Path:
    """The card of a folder that `keep_run` filled."""
    return write_model_card(folder, read_metrics(folder), model_name=f"tier-{folder.name}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--phantom", "--indiana"):
        parser.add_argument(
            option,
            nargs=2,
            type=Path,
            metavar=("MODEL", "EVALUATION"),
            help=f"folders of a new run of {RECIPES[option[2:]]} and of its evaluation",
        )
    args = parser.parse_args(arguments)
    for name in RECIPES:
        if run := getattr(args, name):
            keep_run(name, *run)
        print(render(CARD_FOLDER / name))


if __name__ == "__main__":
    main()
