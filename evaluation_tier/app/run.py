"""From the arguments of `tier-app` to a page that is served."""

import argparse
import logging

from evaluation_tier.app.models import load_shown_models
from evaluation_tier.app.page import build_page
from evaluation_tier.app.samples import draw_samples
from evaluation_tier.app.serving import check_port, serve
from modeling_tier import findings_tier


def run(args: argparse.Namespace) -> None:
    """
    Load the models, and serve their page until Ctrl-C.

    Raises:
        ValueError: a model does not load, or the port cannot be used.
    """
    check_port(args.host, args.port)  # before the models, which may take minutes
    # Its warnings name the sentences of visitors; the page says of each score whether it is calibrated
    logging.getLogger(findings_tier.__name__).setLevel(logging.ERROR)
    samples = draw_samples()
    models = load_shown_models(args.models, args.device, samples)
    serve(build_page(models, samples), args.host, args.port)
