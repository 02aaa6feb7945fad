"""
A whole evaluation, from the command to the files, by this version and by an earlier one.

    python speed/versions.py --model runs/mine --data FOLDER --analyses retrieval sparsity robustness
    python speed/versions.py --model runs/mine --data FOLDER --commit v0.2.0 --options bf16
    python speed/versions.py --model runs/mine --data FOLDER --exported runs/mine-int8

The earlier version is checked out of the repository's history into a folder for the time of the run; both use the
Python and the packages of this environment. They take turns, each in a process of its own. The seconds are processor
time of all threads, which other programs change little, and wall time. --options adds runs of this version with
options of its own, --exported runs of this version with what tier-export made of the model. The figures are medians
over the repetitions. Images are decoded once by either version.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from turns import run_command

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="v0.2.0", help="the earlier version (default: %(default)s)")
    parser.add_argument("--model", help="model folder (default: train the recipe smoke on phantoms first)")
    parser.add_argument("--data", default="phantom:num_images=355,image_size=128", help="as for eval_zeroshot.py")
    parser.add_argument("--split", default="validation", help="(default: %(default)s)")
    parser.add_argument(
        "--analyses", nargs="+", default=["retrieval", "sparsity", "robustness"], help="(default: %(default)s)"
    )
    parser.add_argument("--max_images", type=int, help="evaluate the first N images only")
    parser.add_argument("--min_positives", type=int, default=10, help="positives that a finding needs (default: 10)")
    parser.add_argument("--options", nargs="*", default=["bf16"], help="this version with each of these options, too")
    parser.add_argument("--exported", nargs="*", default=[], metavar="FOLDER", help="this version with each of these")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each (default: all cores)")
    parser.add_argument("--repetitions", type=int, default=1, help="(default: 1)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, earlier = Path(name), Path(name, "earlier")
        archive = subprocess.run(["git", "-C", ROOT, "archive", args.commit], capture_output=True)
        if archive.returncode:
            parser.error(f"this clone does not have {args.commit!r}: fetch its tags, or name another --commit.")
        earlier.mkdir()
        subprocess.run(["tar", "-x", "-C", earlier], input=archive.stdout, check=True)
        model = args.model and str(Path(args.model).resolve())
        if model is None:
            model = str(folder / "model")
            train = [sys.executable, str(ROOT / "train_tier.py"), "smoke", "--data", "phantom", "--output_dir", model]
            subprocess.run(train, check=True)
        forms = {args.commit: (earlier, [model]), "this version": (ROOT, [model])}
        forms |= {f"this version --{option}": (ROOT, [model, f"--{option}"]) for option in args.options}
        exported = [Path(name).resolve() for name in args.exported]
        forms |= {f"this version, {path.name}": (ROOT, [str(path)]) for path in exported}
        used: dict[str, list[float]] = {form: [] for form in forms}
        wall: dict[str, list[float]] = {form: [] for form in forms}
        for repetition in range(args.repetitions):
            for form, (tree, arguments) in forms.items():
                command = [sys.executable, str(tree / "eval_zeroshot.py"), *arguments, "--data", args.data]
                command += ["--split", args.split, "--min_positives", str(args.min_positives), "--include_trained"]
                command += [] if args.max_images is None else ["--max_images", str(args.max_images)]
                command += ["--analyses", *args.analyses, "--output_dir", str(folder / f"{repetition} {form}")]
                start = time.perf_counter()
                _, seconds = run_command(command, {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(args.threads)})
                used[form].append(seconds)
                wall[form].append(time.perf_counter() - start)
    for form in forms:
        ratio = statistics.median(a / b for a, b in zip(used[args.commit], used[form], strict=True))
        print(
            f"{form:24s} {statistics.median(used[form]):7.1f} s of processor time, "
            f"{statistics.median(wall[form]):7.1f} s; {ratio:.2f} times as fast as {args.commit}",
            flush=True,
        )


if __name__ == "__main__":
    main()
