"""Show a model, or two side by side, on a web page: radiograph and sentences in, scores and heat-maps out.

    tier-app runs/phantom
    tier-app runs/mine owner/name --port 8000

Open the printed address in a browser. Drop a DICOM, PNG or JPEG file or choose a synthetic radiograph, choose findings
or write sentences, and ask. Click a finding or a word to see where the model sees it. The page works without a
network, keeps no image after its answer, and listens on this machine only, unless --host says otherwise.
Research software, not a medical device: not for clinical use.
The exit code is 2 after one sentence about the fault.
"""

import argparse
import importlib.util
from collections.abc import Sequence

from command_line import Parser, command_name, one_sentence_errors

COMMAND = command_name("tier-app", __file__)
LOOPBACK, PORT = "127.0.0.1", 7860  # Gradio's own


def build_parser() -> Parser:
    parser = Parser(COMMAND, __doc__)
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="one or two model folders, or names on the Hub (owner/name or owner/name@revision): any model of images "
        "and texts that tier-eval takes (docs/models.md)",
    )
    parser.add_argument(
        "--adapter",
        nargs="+",
        default=[],
        metavar="FILE.py:FUNCTION",
        help="add the model that FUNCTION of your own Python file returns (docs/own_model.md). FILE.py:FUNCTION=NAME "
        "calls FUNCTION with NAME",
    )
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run the Python code that a model brings. Needs a folder, or owner/name@ and the 40 hexadecimal digits "
        "of a commit: read its code before. Without this option such code never runs",
    )
    parser.add_argument(
        "--host",
        default=LOOPBACK,
        metavar="ADDRESS",
        help=f'address to listen on (default: {LOOPBACK}, this machine only). "0.0.0.0" lets other machines in, '
        "without a password",
    )
    parser.add_argument("--port", type=int, default=PORT, metavar="N", help=f"port to listen on (default: {PORT})")
    parser.add_argument("--device", help='"cpu", "cuda", "cuda:1", "mps" (default: a GPU if there is one)')
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, after all checks that do not need the models."""
    args = build_parser().parse(argv)
    named = [*args.models, *args.adapter]
    if not named:
        raise ValueError(
            "name a model. `make demo` makes one to look at: it trains on synthetic radiographs in some minutes. Then "
            f"run: {COMMAND} runs/phantom"
        )
    if len(named) > 2:
        raise ValueError(f"{len(named)} models are too many: name one, or two to see them side by side.")
    if len(set(named)) < len(named):
        raise ValueError(f"{named[0]} is named twice: name two different models, or one.")
    if not 1 <= args.port <= 65535:
        raise ValueError(f"--port must be a number from 1 to 65535, but is {args.port}.")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; SystemExit(2) after one sentence on stderr when the input is bad."""
    with one_sentence_errors(COMMAND, interrupted="the page is closed."):
        args = parse(argv)
        if importlib.util.find_spec("gradio") is None:
            raise ValueError("the page needs Gradio; install it: pip install 'tier-clip[app]'.")
        from evaluation_tier.app.run import run  # imported here, so that --help answers at once

        run(args)


if __name__ == "__main__":
    main()
