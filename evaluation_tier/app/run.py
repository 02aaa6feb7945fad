"""From the arguments of `tier-app` to a page that is served."""

import argparse
import logging

from evaluation_tier.app.models import load_shown_models
from evaluation_tier.app.page import build_page
from evaluation_tier.app.samples import draw_samples
from evaluation_tier.app.serving import check_port, serve
from evaluation_tier.models.adapters import AdapterName
from evaluation_tier.models.openclip import folder_of_file
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
    names = [*map(folder_of_file, args.models), *map(AdapterName, args.adapter)]
    models = load_shown_models(names, args.device, samples, args.trust_remote_code)
    serve(build_page(models, samples), args.host, args.port)
