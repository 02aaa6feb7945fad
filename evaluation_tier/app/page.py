"""The page itself, in Gradio: the choice of image, findings and sentences, and what the button does."""

import logging
import traceback
from collections.abc import Sequence

import gradio as gr

from evaluation_tier.app.answers import answer
from evaluation_tier.app.models import ShownModel
from evaluation_tier.app.questions import (
    CONTRAST,
    MAX_CHARACTERS,
    MAX_SENTENCES,
    MAX_UPLOAD_BYTES,
    read_sentences,
    read_upload,
)
from evaluation_tier.app.samples import Sample
from evaluation_tier.app.view import answer_html, banner_html, chooser_html, error_html

logger = logging.getLogger(__name__)

TITLE = "tier-clip: findings on a chest radiograph"
COMMON = ("Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion", "Pneumothorax")  # chosen at the start
MAX_WAITING = 40  # questions in the queue
# The image of a question is what the script gives at the click, and never a value of a component
SEND = "async (image, chosen, sentences) => [await window.tierImage(), chosen, sentences]"
START = (
    "<ol class='tier-start'><li>Drop a radiograph, or choose a synthetic one.</li><li>Choose findings, or write "
    "sentences of your own.</li><li>Ask. The answer shows the scores, and where on the image the model sees each "
    "finding and each word.</li></ol>"
)


def build_page(models: Sequence[ShownModel], samples: Sequence[Sample]) -> gr.Blocks:
    """The page of one or two models. It keeps nothing of a question after its answer."""

    def ask(image: str | None, chosen: Sequence[str], sentences: str | None) -> str:
        try:
            upload = read_upload(image, [sample.upload for sample in samples])
            asked = read_sentences(sentences)
            return answer_html([answer(model, upload, chosen, asked) for model in models], upload)
        except ValueError as error:
            return error_html(str(error))
        except Exception as error:  # a defect: the visitor gets a sentence, the log the place, and neither the image
            place = "".join(traceback.format_tb(error.__traceback__))
            logger.error("A question was not answered: %s\n%s", type(error).__name__, place)
            return error_html("The page could not answer this question. The log of its server says where it failed.")

    findings = list(dict.fromkeys(name for model in models for name in model.findings))
    preselected = [name for name in findings if name in COMMON] or findings[: len(COMMON)]
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.HTML(banner_html(), apply_default_css=False)
        gr.Markdown(f"# {TITLE}")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                gr.HTML(chooser_html(samples, MAX_UPLOAD_BYTES), apply_default_css=False)
                image = gr.Textbox(visible=False)
                chosen = gr.CheckboxGroup(findings, value=preselected, label="Findings", elem_id="findings")
                sentences = gr.Textbox(
                    label="Your own sentences, one a line",
                    info=f"Each is scored against its negation, or against what you write behind {CONTRAST}",
                    placeholder=f"Small left pleural effusion.\nThe heart is large. {CONTRAST} The heart is normal.",
                    lines=3,
                    max_lines=MAX_SENTENCES,
                    max_length=MAX_SENTENCES * (MAX_CHARACTERS + 1),
                )
                button = gr.Button("Ask", variant="primary", elem_id="ask")
            with gr.Column(scale=5, min_width=320):
                shown = gr.HTML(START, elem_id="answer", apply_default_css=False)
        button.click(
            ask, [image, chosen, sentences], shown, js=SEND, show_progress="minimal", api_visibility="private"
        )
    return page.queue(max_size=MAX_WAITING, default_concurrency_limit=1, api_open=False)
