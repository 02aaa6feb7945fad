"""The options of an evaluation, and the checks that do not need models or data.

Only light packages are imported at the top, so that `--help` and a mistyped option answer at once.
"""

import argparse
from pathlib import Path

from evaluation_tier.output.writing import check_writable

MAX_COUNT = 2**31 - 1  # of images, resamples and the like
ANALYSES = ("grounding", "deletion", "retrieval", "sparsity", "robustness")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Every option of `eval_zeroshot.py`, in the order of its --help."""
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="model folder, a name on the Hub (owner/name or owner/name@revision), or the weights of an OpenCLIP "
        "folder; several models form one ensemble, whose scores are averaged",
    )
    add_model_options(parser.add_argument_group("models"))
    add_data_options(parser.add_argument_group("data"))
    add_protocol_options(parser.add_argument_group("protocol"))
    add_analysis_options(parser.add_argument_group("more than AUROC"))
    add_run_options(parser.add_argument_group("run"))


def add_model_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--each",
        action="store_true",
        help="evaluate the models one by one, not as an ensemble, from one reading of the images. All of them are in "
        "memory. Each gets a folder of results, under --output_dir if given; tier-compare takes these",
    )
    group.add_argument(
        "--adapter",
        nargs="+",
        default=[],
        metavar="FILE.py:FUNCTION",
        help="add the model that FUNCTION of your own Python file returns, for models that tier-eval does not know "
        "(docs/own_model.md). FILE.py:FUNCTION=NAME calls FUNCTION with NAME",
    )
    group.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run the Python code that a model brings. Needs a folder, or owner/name@ and the 40 hexadecimal digits "
        "of a commit: read its code before. Without this option such code never runs",
    )


def add_trained_options(group: argparse._ActionsContainer, exclude: str, include: str) -> None:
    """Add --exclude_trained and --include_trained with their help; without either, `trained` is "refuse"."""
    trained = group.add_mutually_exclusive_group()
    for choice, text in (("exclude", exclude), ("include", include)):
        trained.add_argument(
            f"--{choice}_trained", dest="trained", action="store_const", const=choice, default="refuse", help=text
        )


def add_data_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--data",
        help='"phantom" (synthetic), an image folder, a table (.csv, .tsv, .xlsx, .jsonl, .parquet), NAME:FOLDER for '
        "an archive as its owner ships it, the output of tier-prepare, or a data set on the Hub (owner/name)",
    )
    group.add_argument(
        "--split",
        help='split to evaluate. "held_out" is the part that the model\'s training held out (default: '
        "validation, or the benchmark's usual split; held_out or all images for data without splits)",
    )
    add_trained_options(
        group,
        exclude="leave out images that the model was trained on, and other images of its training patients; by "
        "default such data are refused",
        include="evaluate these images too; metrics.json, page and card say so",
    )
    group.add_argument("--image_root", metavar="FOLDER", help="folder that the image paths of a table start from")
    group.add_argument(
        "--columns", nargs="+", metavar="NAME=COLUMN", default=[], help="column names of a table: image=Path ..."
    )
    group.add_argument("--sheet", help="sheet of an Excel table that has several")
    group.add_argument(
        "--label_values",
        nargs="+",
        metavar="WORD=LABEL",
        help="words that a table uses as labels: yes=1 no=0 unclear=-1 unknown= (1 present, 0 absent, -1 uncertain, "
        "empty for not stated)",
    )
    group.add_argument(
        "--views",
        choices=("frontal", "all"),
        help="which views to evaluate (default: frontal, or the views of the benchmark)",
    )
    group.add_argument("--max_images", type=int, metavar="N", help="evaluate the first N images only")


# Longer than 60 lines: a table of options
def add_protocol_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--findings", nargs="+", metavar="NAME", help="findings to evaluate (default: all with enough positives)"
    )
    group.add_argument(
        "--min_positives",
        type=int,
        metavar="N",
        help="positives that a finding needs (default: 10, or the benchmark's number)",
    )
    group.add_argument(
        "--protocol",
        default="report",
        metavar="NAME",
        help='"report" (sentences of reports), "chexzero", "tier", "tier-padchest", "tier-covid" or "plain" (default: '
        "%(default)s)",
    )
    group.add_argument(
        "--benchmark",
        metavar="NAME",
        help='a published test set, such as "chexpert-5": its findings, images and expected counts; an unknown name '
        "lists them all",
    )
    group.add_argument(
        "--prompts",
        help="replaces the protocol's prompts: the name of another protocol's prompts, or a YAML file",
    )
    group.add_argument(
        "--scoring",
        choices=("difference", "softmax", "sigmoid"),
        help="replaces the protocol's scoring: cosine to the positive minus to the negative sentences (TIER), their "
        "softmax (CheXzero), or the sigmoid of the cosine to the positive ones",
    )
    group.add_argument(
        "--no_finding",
        choices=("prompts", "others"),
        help='replaces the protocol\'s way to score "No Finding": by its own sentences, or by the other findings',
    )
    group.add_argument(
        "--score_level",
        metavar="LEVEL",
        help='replaces the protocol\'s level, which is what to score: the whole image ("global"), its patches '
        '("patches-max", "patches-topk", "patches-lse"), the mean of both ("both-max", "both-topk", "both-lse"), or '
        '"auto": "patches-lse" if the image embedding of every model is the mean of its patches, else "global". '
        'The protocol "report" has "auto", the published ones have "global"; all levels are always compared',
    )
    group.add_argument(
        "--threshold_split",
        metavar="SPLIT",
        help="choose the thresholds of MCC and F1 on this split (default: the evaluated split, which is optimistic)",
    )
    group.add_argument(
        "--n_bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help="bootstrap resamples for the 95 %% intervals (default: 1000)",
    )
    group.add_argument("--seed", type=int, default=0, help="random seed of the bootstrap (default: 0)")


def add_analysis_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--analyses",
        nargs="+",
        choices=ANALYSES,
        default=[],
        metavar="NAME",
        help='"grounding" (maps against boxes or masks), "deletion" (how far the score falls without the hottest '
        'patches of a map), "retrieval", "sparsity" (of words and patches, for all named models side by side), '
        '"robustness" (to wording, negation, sides, empty and degraded images). The last three read the reports',
    )
    group.add_argument(
        "--cxr_align",
        metavar="FILE",
        help="cxr-align.json, for robustness on MIMIC-CXR: does an image prefer its report over the negated and the "
        "shortened one?",
    )
    group.add_argument(
        "--transfer",
        metavar="FOLDER",
        help="does it hold at another hospital? FOLDER holds the results of the same model on other data. Thresholds "
        "and calibration are fitted there and measured here, with healthy and with sick controls",
    )
    group.add_argument(
        "--sensitivity",
        type=float,
        metavar="SHARE",
        help="sensitivity that the thresholds of --transfer have on the other data, above 0 and at most 1 (default: "
        "0.95)",
    )
    group.add_argument(
        "--phrases",
        action="store_true",
        help="let --analyses grounding ask for the sentence that each box has (ms_cxr, padchest_gr), not for the "
        "sentences of its finding. The benchmark padchest-gr does so by itself",
    )
    group.add_argument(
        "--learning_curve",
        metavar="SPLIT",
        help="how few images do I need? SPLIT is the split to learn from, such as train. A linear probe and a k-NN "
        "classifier of the frozen embeddings learn from 10, 30, 100, 300, ... of its patients, and are compared with "
        "the zero-shot scores",
    )
    group.add_argument(
        "--fine_tuning_steps",
        type=int,
        metavar="N",
        help="also fine-tune the model for --learning_curve: on each draw of patients, train its image tower for N "
        "steps of 32 images, as the recipe finetune of tier-train does. Slow: about 25 trainings. Begin with 100",
    )
    group.add_argument(
        "--radiologists",
        metavar="FOLDER",
        help="labels of the three radiologists of CheXpert's test set: compare the model with them",
    )


def add_run_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--batch_size", type=int, default=32, help="images embedded at once (default: 32)")
    group.add_argument("--device", help='"cpu", "cuda", "cuda:1", "mps" (default: a GPU if there is one)')
    group.add_argument(
        "--bf16",
        action="store_true",
        help="weights in bfloat16, for transformers on a processor that computes in it: a ViT-B is 3 times as fast on "
        "a CPU with AMX (docs/speed.md). Scores change a little (default: float32)",
    )
    group.add_argument(
        "--cache_dir",
        metavar="FOLDER",
        help="keep embeddings in this folder, and reuse those of the same images and weights",
    )
    group.add_argument(
        "--output_dir",
        metavar="FOLDER",
        help="where to write (default: runs/evaluation/MODEL-DATA-SPLIT, by their names); with --each the folder "
        "that holds those of the models",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an evaluation of another model, data set or split in --output_dir",
    )
    group.add_argument(
        "--figures",
        action="store_true",
        help="also draw curves, calibration, similarity maps of each finding (of several models side by side, too), "
        "the worst errors, the results of --analyses, and the model's training curves if it has them",
    )
    group.add_argument("--model_card", action="store_true", help="also write the results into the model's README.md")
    group.add_argument(
        "--save_thresholds",
        action="store_true",
        help="also save prompts, thresholds and calibration in the model's config.json, for the pipeline "
        "cxr-zero-shot-classification. They are fitted on --threshold_split; without it, on the evaluated split, "
        "which should then be a validation split",
    )


def check_options(args: argparse.Namespace) -> None:
    """ValueError for options that are wrong for any models and data; `columns` becomes a mapping."""
    check_models(args)
    if not args.data:
        raise ValueError('--data is missing: give "phantom", a folder, or a table.')
    for name in ("min_positives", "n_bootstrap", "batch_size", "max_images", "fine_tuning_steps"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, but is {value}.")
        if value is not None and value > MAX_COUNT:
            raise ValueError(f"--{name} must be at most {MAX_COUNT:,}, but is {value}.")
    for name in (
        "split",
        "threshold_split",
        "output_dir",
        "cache_dir",
        "prompts",
        "image_root",
        "radiologists",
        "transfer",
        "learning_curve",
        "cxr_align",
    ):
        if getattr(args, name) == "":
            raise ValueError(f"--{name} is empty: leave it out, or give a value.")
    if args.radiologists is not None and not Path(args.radiologists).is_dir():
        raise ValueError(f"--radiologists {args.radiologists}: name the folder that holds the radiologists' labels.")
    check_transfer(args)
    check_parts_of_analyses(args)
    if args.seed < 0:
        raise ValueError(f"--seed must not be negative, but is {args.seed}.")
    if args.columns:
        from processing_tier.records.table_options import parse_columns  # which takes a while to import

        args.columns = parse_columns(args.columns)
    check_one_model(args)
    for name in ("output_dir", "cache_dir"):
        if getattr(args, name) is not None:
            check_writable(Path(getattr(args, name)), f"--{name}")


def check_parts_of_analyses(args: argparse.Namespace) -> None:
    """ValueError for options of one analysis that are wrong for any models and data."""
    if args.phrases and "grounding" not in args.analyses:
        raise ValueError("--phrases is for --analyses grounding: add that analysis, or leave --phrases out.")
    if args.fine_tuning_steps is not None and args.learning_curve is None:
        raise ValueError(
            "--fine_tuning_steps has no effect without --learning_curve: leave it out, or name the split to "
            "learn from."
        )
    if args.cxr_align is not None and "robustness" not in args.analyses:
        raise ValueError("--cxr_align has no effect without --analyses robustness: add it, or leave the file out.")
    if args.cxr_align is not None and not Path(args.cxr_align).is_file():
        raise ValueError(f"--cxr_align {args.cxr_align} is not a file: name the cxr-align.json of PhysioNet.")


def check_transfer(args: argparse.Namespace) -> None:
    """ValueError for a --transfer that is wrong for any models and data, and for a --sensitivity without it."""
    if args.transfer is not None and not Path(args.transfer).is_dir():
        raise ValueError(f"--transfer {args.transfer} is not a folder: name the results of this model on other data.")
    if args.transfer is not None and args.each:
        raise ValueError("--transfer holds the results of one model: evaluate the models without --each.")
    if args.sensitivity is not None and args.transfer is None:
        raise ValueError("--sensitivity has no effect without --transfer: leave it out, or name a folder of results.")
    if args.sensitivity is not None and not 0 < args.sensitivity <= 1:
        raise ValueError(f"--sensitivity must be above 0 and at most 1, but is {args.sensitivity}.")


def check_models(args: argparse.Namespace) -> None:
    """ValueError for models that are wrong for any data; those of --adapter join `models`."""
    for name in args.models:
        if ".py:" in name:
            raise ValueError(f"{name} looks like a Python file that makes a model: pass it as --adapter {name}.")
    if any(Path(name).is_file() for name in args.models):
        from evaluation_tier.models.openclip import folder_of_file  # which takes a while to import

        args.models = [str(folder_of_file(name)) for name in args.models]
    if args.adapter:
        from evaluation_tier.models.adapters import AdapterName  # which takes a while to import

        args.models = [*args.models, *map(AdapterName, args.adapter)]
    if not args.models:
        raise ValueError("the model is missing: give the folder that tier-train wrote, or a name on the Hub.")
    if args.trust_remote_code:
        from evaluation_tier.models.remote_code import check_pinned

        for name in args.models:
            if name not in args.adapter:
                check_pinned(name)
    twice = next((name for name in args.models if args.models.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"the model {twice} is named twice: leave one of the two out.")


def check_one_model(args: argparse.Namespace) -> None:
    """ValueError for options that take one model, or a model in a local folder."""
    for name in ("model_card", "save_thresholds"):
        if getattr(args, name) and len(args.models) > 1 and not args.each:
            raise ValueError(f"--{name} is for one model: evaluate an ensemble without it.")
        missing = [model for model in args.models if not Path(model).is_dir()]
        if getattr(args, name) and missing:
            raise ValueError(
                f"--{name} writes into a model folder, but {missing[0]} is not a folder: download a model of the "
                "Hub first, with `hf download NAME --local-dir FOLDER`."
            )
        without = [model for model in args.models if not (Path(model) / "config.json").is_file()]
        if getattr(args, name) and without:
            raise ValueError(
                f"--{name} needs the config.json of a model of transformers, which {without[0]} does not have: leave "
                f"--{name} out."
            )
    if args.learning_curve and len(args.models) > 1 and not args.each:
        raise ValueError("--learning_curve is for one model: evaluate an ensemble without it.")
    if args.learning_curve and args.benchmark:
        raise ValueError("--learning_curve does not support --benchmark: name the data and the split instead.")
    of_one = [name for name in args.analyses if name != "sparsity"]
    if of_one and len(args.models) > 1 and not args.each:
        raise ValueError(f"--analyses {of_one[0]} is for one model: evaluate an ensemble without it.")
