"""Classes of the words of reports, and how the tokens of a text count for them."""

import re

import numpy as np
import torch
from transformers import BatchEncoding

WORD = re.compile(r"[^\W_]+")

# English words of chest radiograph reports, lower case; plurals in -s, -es and -ies are recognised by themselves. Made
# by hand, to compare models with; it does not replace a terminology. What a sentence is about ("disease",
# "abnormality", a device) counts as a finding, an adjective of an organ as anatomy; sides, sizes and judgements
# ("left", "small", "clear", "normal") are other words.
LEXICON = {
    "finding": """
        abnormality abscess adenopathy aneurysm atelectasis atelectases atelectatic atherosclerosis atherosclerotic
        blunting bronchiectasis bulla bullae bullous calcification calcified cancer cardiomegaly catheter cavitary
        cavitation cavity clip collapse congestion consolidation copd cyst deformity degenerative density device
        disease ectasia ectatic edema effusion elevation emphysema emphysematous enlarged enlargement fibrosis fibrotic
        fluid fracture granuloma granulomatous hardware haziness hernia hyperexpanded hyperexpansion hyperinflated
        hyperinflation infection infiltrate infiltration kyphosis lesion lymphadenopathy malignancy mass metastasis
        metastases metastatic neoplasm nodular nodule opacification opacity osteophyte osteophytosis pacemaker picc
        pneumonia pneumothorax pneumothoraces scar scarring scoliosis spondylosis spurring stent sternotomy thickening
        tortuosity tortuous tube tuberculosis tumor wire
    """,
    "anatomy": """
        abdomen abdominal airspace airway alveolar aorta aortic apex apical apices arterial artery atrial atrium base
        basal basilar bibasilar bone bony bronchial bronchus bronchovascular cardiac cardiomediastinal cardiopulmonary
        cava chest clavicle costophrenic diaphragm fissure heart hemidiaphragm hemithorax hila hilar hilum humeral
        humerus interstitial interstitium lingula lobe lung mediastinal mediastinum osseous parenchyma parenchymal
        paratracheal perihilar pleura pleural pulmonary retrocardiac rib shoulder silhouette skeletal spinal spine
        sternum subclavian sulci sulcus thoracic thorax tissue trachea tracheal vascular vascularity vasculature vein
        venous ventricle ventricular vertebra vertebrae vertebral vessel
    """,
    "negation": "absence absent cannot free neither negative never no non none nor not without",
    "function": """
        a also although an and any are as at be been being both but by can could did do does due for from had has have
        i if in into is it its may might of on or s should than that the their there these this those through to was
        were when which while will with within would
    """,
}

CLASS_OF = {word: name for name, words in LEXICON.items() for word in words.split()}

WORD_CLASSES = (*LEXICON, "other")


def word_class(word: str) -> str:
    """`"finding"`, `"anatomy"`, `"negation"`, `"function"` or `"other"`, by `LEXICON`; case does not count."""
    word = word.lower()
    singulars = [word, word.removesuffix("s"), word.removesuffix("es"), re.sub("ies$", "y", word)]
    return next((CLASS_OF[form] for form in singulars if form in CLASS_OF), "other")


def token_weights(inputs: BatchEncoding, texts: list[str]) -> torch.Tensor:
    """The weight of each token in each class of words: 1 / n for each of the n tokens of a word, in the word's class.

    A word is a run of letters and digits, regardless of the tokenizer's pieces ("##", "</w>"), so that models
    with different tokenizers are measured on the same words. A token that begins outside of them is punctuation, and
    counts 1. Special tokens and padding count nothing.

    Returns:
        (texts, classes, tokens) float32; the classes are `WORD_CLASSES` and punctuation.

    Raises:
        ValueError: for a tokenizer that does not say where in the text its tokens stand.
    """
    if inputs.encodings is None:
        raise ValueError("The tokenizer does not give the positions of its tokens in a text: use its fast version.")
    weights = torch.zeros(len(texts), len(WORD_CLASSES) + 1, inputs["input_ids"].shape[1])
    for i, (encoding, text) in enumerate(zip(inputs.encodings, texts, strict=True)):
        words = [
            (match.start(), match.end(), WORD_CLASSES.index(word_class(match[0]))) for match in WORD.finditer(text)
        ]
        begins = [begin for begin, _, _ in words]
        tokens_of: dict[int, list[int]] = {}
        for token, ((start, end), special) in enumerate(
            zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
        ):
            if special:
                continue
            word = int(np.searchsorted(begins, start, side="right")) - 1
            if word >= 0 and start < words[word][1] and start < end:
                tokens_of.setdefault(word, []).append(token)
            else:
                weights[i, -1, token] = 1
        for word, tokens in tokens_of.items():
            weights[i, words[word][2], tokens] = 1 / len(tokens)
    return weights
