"""Sparsity, TIER's own claim: on how few patches of its image each word of a report rests, and the reverse.

For each radiograph and its own report, S[t, p] is the cosine of token t with patch p. All that is measured here is
measured on S. It says how concentrated the similarities are, not whether they are concentrated on the right place.
"""

import math
import re
from collections.abc import Mapping

import datasets
import numpy as np
import torch
from torch import nn
from transformers import BatchEncoding, CLIPModel, PreTrainedModel, ProcessorMixin

from evaluation_tier.analyses.relative_similarity import RelativeSimilarity, name_ranked
from evaluation_tier.analyses.retrieval import WORD, read_texts
from evaluation_tier.models.embedding import check_finite, read_batches
from evaluation_tier.models.loading import is_classifier
from evaluation_tier.output.metrics_file import installed_versions
from evaluation_tier.statistics.bootstrap import percentile_interval
from evaluation_tier.statistics.metrics import divide
from evaluation_tier.statistics.resampling import Resampling, chunks
from modeling_tier import TierCLIPModel
from modeling_tier.losses_tier import masked_entropy, token_patch_similarity
from modeling_tier.texts_tier import tokenize

# English words of chest radiograph reports, lower case; plurals in -s, -es and -ies are recognised by themselves. Made
# by hand, to compare models with: it is no terminology. What a sentence is about ("disease", "abnormality", a device)
# counts as a finding, an adjective of an organ as anatomy; sides, sizes and judgements ("left", "small", "clear",
# "normal") are other words.
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

STATISTICS = ("entropy", "gini", "hoyer", "near_zero", "negative")

NEAR_ZERO = 0.05


def word_class(word: str) -> str:
    """`"finding"`, `"anatomy"`, `"negation"`, `"function"` or `"other"`, by `LEXICON`; case does not count."""
    word = word.lower()
    singulars = [word, word.removesuffix("s"), word.removesuffix("es"), re.sub("ies$", "y", word)]
    return next((CLASS_OF[form] for form in singulars if form in CLASS_OF), "other")


def gini(values: torch.Tensor) -> torch.Tensor:
    """Gini index along the last dimension (Hurley & Rickard 2009, Comparing Measures of Sparsity, table I).

    1 - 2 sum_k c_(k) / |c|_1 * (N - k + 1/2) / N, of the magnitudes c_(1) <= ... <= c_(N): as there, a negative value
    counts by how far it lies from zero. Multiplying all values by a number changes nothing.

    Returns:
        `values` without the last dimension, float32: 0 for equal magnitudes (zeros too), 1 - 1 / N where all but one
        are zero.
    """
    magnitudes = values.float().abs().sort(dim=-1).values
    count = magnitudes.shape[-1]
    shares = (count - torch.arange(count, device=values.device) - 0.5) / count
    total = magnitudes.sum(-1)
    return torch.where(total > 0, 1 - 2 * (magnitudes * shares).sum(-1) / total.clamp(min=1e-30), 0.0)


def hoyer(values: torch.Tensor) -> torch.Tensor:
    """Hoyer's sparseness along the last dimension (Hoyer 2004, JMLR 5:1457-1469, section 3.1).

    (sqrt(N) - |c|_1 / |c|_2) / (sqrt(N) - 1); a negative value counts by its magnitude.

    Returns:
        `values` without the last dimension, float32: 0 for equal magnitudes (zeros and a single value too), 1 where
        all but one are zero.
    """
    values = values.float()
    root = math.sqrt(values.shape[-1])
    length = values.norm(dim=-1)
    if root == 1:
        return torch.zeros_like(length)
    return torch.where(length > 0, (root - values.abs().sum(-1) / length.clamp(min=1e-30)) / (root - 1), 0.0)


def row_statistics(similarity: torch.Tensor, temperature: float = 1.0, near_zero: float = NEAR_ZERO) -> torch.Tensor:
    """The `STATISTICS` of each row of similarities, along a new last dimension.

    Args:
        similarity: (..., patches), cosines.
        temperature: divides the cosines in the entropy, in nats, and in nothing else.
        near_zero: a cosine of a smaller magnitude is near zero; its share and that of negative ones are in [0, 1].
    """
    return torch.stack(
        [
            masked_entropy(similarity / temperature),
            gini(similarity),
            hoyer(similarity),
            (similarity.abs() < near_zero).float().mean(-1),
            (similarity < 0).float().mean(-1),
        ],
        dim=-1,
    )


def token_weights(inputs: BatchEncoding, texts: list[str]) -> torch.Tensor:
    """What each token counts for each class of words: 1 / n for each of the n tokens of a word, in the word's class.

    A word is a run of letters and digits, whatever the tokenizer makes of it ("##" and "</w>" alike), so that models
    with different tokenizers are measured on the same words. A token that begins outside of them is punctuation, and
    counts 1. Special tokens and padding count nothing.

    Returns:
        (texts, classes, tokens) float32; the classes are `WORD_CLASSES` and punctuation.

    Raises:
        ValueError: for a tokenizer that does not say where in the text its tokens stand.
    """
    if inputs.encodings is None:
        raise ValueError("The tokenizer does not say where in a text its tokens stand: use its fast version.")
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


def embed_pairs(
    model: PreTrainedModel, inputs: BatchEncoding, pixels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens (batch, tokens, dim), texts (batch, dim) and patches (batch, patches, dim), L2-normalised float32."""
    text = model.get_text_features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    if hasattr(model, "get_patch_features"):
        patches = model.get_patch_features(pixels)
    else:  # CLIP itself has all that it takes
        hidden = model.get_image_features(pixel_values=pixels).last_hidden_state
        patches = TierCLIPModel.project_patches(model, hidden)
    embeds = (model.text_projection(text.last_hidden_state), text.pooler_output, patches)
    return tuple(nn.functional.normalize(check_finite(tensor), dim=-1) for tensor in embeds)


def measure(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    texts: list[str],
    temperature: float,
    near_zero: float,
    batch_size: int,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int]:
    """Sums of one model, of which any weighting of the images makes means.

    Returns:
        Sums and counts per image: `"entropy_sums"` and `"entropy_counts"` (images, 2) of tokens and of patches;
        `"sums"` (images, classes, statistics) and `"counts"` (images, classes) of words, NaN for an image that does
        not decode. Then the rank-ordered similarities over all images: `"ranked"` (classes + 1, 2, patches), sums of
        the cosines and of their squares, and `"ranked_counts"` (classes + 1,), the last of them being whole texts,
        and the `"relative"` ones of whole texts. Then the number of texts that are cut off.
    """
    num_classes = len(WORD_CLASSES) + 1
    shapes = {"entropy_sums": (2,), "entropy_counts": (2,), "counts": (num_classes,)}
    shapes["sums"] = (num_classes, len(STATISTICS))
    per_image = {name: np.full((len(dataset), *shape), np.nan) for name, shape in shapes.items()}
    ranked, ranked_counts, num_cut = 0.0, np.zeros(num_classes + 1), 0
    relative = RelativeSimilarity()
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for rows, pixels in read_batches(model, processor, dataset, batch_size, "measuring sparsity"):
            batch = [texts[row] for row in rows]
            inputs = tokenize(model, processor.tokenizer, batch)
            weights = token_weights(inputs, batch).to(pixels.device)  # (batch, classes, tokens)
            num_cut += sum(bool(encoding.overflowing) for encoding in inputs.encodings)
            token_embeds, text_embeds, patch_embeds = embed_pairs(model, inputs.to(model.device), pixels)
            similarity = token_patch_similarity(token_embeds, patch_embeds)  # (batch, tokens, patches)
            counted = weights.sum(1) > 0  # (batch, tokens)
            statistics = row_statistics(similarity, temperature, near_zero)  # (batch, tokens, statistics)
            per_patch = masked_entropy(similarity / temperature, counted.unsqueeze(2), dim=1)  # (batch, patches)
            per_patch = per_patch * counted.any(1, keepdim=True)
            num_tokens = counted.sum(1)
            entropies = [(statistics[..., 0] * counted).sum(1), per_patch.sum(1)]
            counts = [num_tokens, (num_tokens > 0) * per_patch.shape[1]]
            per_image["entropy_sums"][rows] = torch.stack(entropies, dim=1).cpu().numpy()
            per_image["entropy_counts"][rows] = torch.stack(counts, dim=1).cpu().numpy()
            per_image["sums"][rows] = torch.einsum("bct,bts->bcs", weights, statistics).cpu().numpy()
            per_image["counts"][rows] = weights.sum(2).cpu().numpy()

            descending = similarity.sort(dim=-1, descending=True).values
            whole = token_patch_similarity(text_embeds.unsqueeze(1), patch_embeds).sort(dim=-1, descending=True).values
            moments = [
                torch.cat([torch.einsum("bct,btp->cp", weights, descending**power), (whole**power).sum(0)])
                for power in (1, 2)
            ]
            ranked = ranked + torch.stack(moments, dim=1).double().cpu().numpy()
            relative.add(whole.squeeze(1))
            ranked_counts += np.append(weights.sum((0, 2)).cpu().numpy(), len(rows))
    model.train(was_training)
    return per_image, {"ranked": ranked, "ranked_counts": ranked_counts, "relative": relative}, num_cut


def evaluate_sparsity(
    models: Mapping[str, tuple[PreTrainedModel, ProcessorMixin]],
    dataset: datasets.Dataset,
    text: str = "both",
    deidentified: str = "keep",
    temperature: float = 1.0,
    near_zero: float = NEAR_ZERO,
    n_bootstrap: int = 1000,
    seed: int = 0,
    batch_size: int = 32,
    dataset_name: str = "",
) -> dict:
    """How concentrated the similarities of words and patches are, for one model or for several side by side.

    Each word counts once: what is measured on its tokens is averaged over them. The mean of all words leaves
    punctuation out, which has a row of its own. Records without a word of text and images that do not decode are left
    out.

    Args:
        models: name to (model, processor), as `load_model` gives them, TIER models or CLIP's. The others are compared
            with the first one: name the unregularised one first.
        dataset: in the schema of `processing_tier.records`.
        text: see `retrieval.read_texts`; so is `deidentified`.
        temperature: divides the cosines in both entropies, for all models alike, whatever they were trained with; 1 is
            TIER's.
        near_zero: a cosine of a smaller magnitude is near zero.
        n_bootstrap: resamples of patients for the 95 % intervals; seeded by `seed`, and the same for all models, so
            that the intervals of the differences are paired.
        batch_size: pairs at once.
        dataset_name: what the results call the data.

    Returns:
        `"models"`, by name: `token_entropy` and `patch_entropy` in nats, over all tokens but special ones as in the
        loss; `"words"`, by class (`"all"`, those of `WORD_CLASSES`, `"punctuation"`), with `n_words` and the means of
        the `STATISTICS`; and `"ranked"`, by class and for `"text"` (the embedding of the whole text), the mean and the
        standard deviation of the similarities sorted from the highest down, each a list of `num_patches` numbers, and
        the `"relative"` ones of whole texts (see [`RelativeSimilarity`]).
        `"differences"`, by name of all but the first: the same numbers minus those of the first model. Beside each
        number stands `<name>_ci95`. Undefined numbers are NaN.

    Raises:
        ValueError: for a classifier, a model without patch embeddings, models with different numbers of patches, no
            usable pair, or what `read_texts` and `read_batches` refuse.
    """
    check_models(models)
    resampling = Resampling(n_bootstrap, seed)
    if not temperature > 0:
        raise ValueError(f"The temperature must be above 0, but is {temperature}.")
    if not near_zero > 0:
        raise ValueError(f"near_zero must be above 0, but is {near_zero}: no cosine lies nearer to zero than that.")
    texts = read_texts(dataset, text, deidentified)
    with_text = [i for i, words in enumerate(texts) if WORD.search(words)]
    dataset, num_records, texts = dataset.select(with_text), len(texts), [texts[i] for i in with_text]

    measured = {
        name: measure(model, processor, dataset, texts, temperature, near_zero, batch_size)
        for name, (model, processor) in models.items()
    }
    num_patches = {name: ranked["ranked"].shape[-1] for name, (_, ranked, _) in measured.items()}
    if len(set(num_patches.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in num_patches.items())
        raise ValueError(
            f"Models with different numbers of patches cannot be compared: evaluate each alone ({counts})."
        )
    readable = np.all([~np.isnan(sums["counts"]).any(axis=1) for sums, _, _ in measured.values()], axis=0)
    patient_ids, image_ids = np.array(dataset["patient_id"][:]), np.array(dataset["image_id"][:])

    values = {name: [] for name in models}  # each model's numbers, first on all the images, then in each resample
    draws = resampling.draw(patient_ids[readable])
    draws = np.concatenate([np.ones((1, draws.shape[1]), draws.dtype), draws])
    for part in chunks(*draws.shape):
        weights = draws[part].astype(np.float64)
        for name, (sums, _, _) in measured.items():
            values[name].append(means({key: rows[readable] for key, rows in sums.items()}, weights))
    values = {name: np.concatenate(rows) for name, rows in values.items()}
    first = next(iter(models))
    results = {
        name: {
            "num_patches": num_patches[name],
            "num_texts_cut_off": num_cut,
            "token_entropy_weight": getattr(models[name][0].config, "token_entropy_weight", 0.0),
            "patch_entropy_weight": getattr(models[name][0].config, "patch_entropy_weight", 0.0),
            **name_numbers(values[name], sums["counts"][readable].sum(axis=0)),
            "ranked": name_ranked(**ranked, word_classes=WORD_CLASSES),
        }
        for name, (sums, ranked, num_cut) in measured.items()
    }
    return {
        "dataset": dataset_name,
        "protocol": {
            "text": text,
            "deidentified": deidentified,
            "temperature": temperature,
            "near_zero": near_zero,
            "gini_and_hoyer": "of the magnitudes of the cosines",
            **resampling.describe(
                patient_ids[readable].tolist(), "95 % percentile bootstrap over patients, paired between models"
            ),
            "n_without_text": num_records - len(with_text),
            "images_skipped": image_ids[~readable].tolist(),
        },
        "n_images": int(readable.sum()),
        "models": results,
        "differences": {name: name_numbers(rows - values[first]) for name, rows in values.items() if name != first},
        "versions": installed_versions(),
    }


def check_models(models: Mapping[str, tuple[PreTrainedModel, ProcessorMixin]]) -> None:
    """ValueError where there is no model, or one that does not embed tokens and patches."""
    if not models:
        raise ValueError("There is no model to evaluate: name at least one.")
    for name, (model, _) in models.items():
        embeds = not is_classifier(model) and (hasattr(model, "get_patch_features") or isinstance(model, CLIPModel))
        if not embeds:
            raise ValueError(
                f"{name} is a {type(model).__name__}, which does not embed tokens and patches in one space: name a "
                "TIER model or a CLIPModel."
            )


def means(sums: dict[str, np.ndarray], weights: np.ndarray) -> np.ndarray:
    """The means of `measure`'s sums under weights (weightings, images) of the images.

    Returns:
        (weightings, 2 + (1 + classes) * statistics): token and patch entropy, then the statistics of all words and of
        each class; NaN where there is no word.
    """
    entropies = divide(weights @ sums["entropy_sums"], weights @ sums["entropy_counts"])
    by_class = np.einsum("wi,ics->wcs", weights, sums["sums"], optimize=True)
    counts = weights @ sums["counts"]
    words = len(WORD_CLASSES)  # all but punctuation
    by_class = np.concatenate([by_class[:, :words].sum(axis=1, keepdims=True), by_class], axis=1)
    counts = np.concatenate([counts[:, :words].sum(axis=1, keepdims=True), counts], axis=1)
    by_class = divide(by_class, counts[:, :, None])
    return np.concatenate([entropies, by_class.reshape(len(weights), -1)], axis=1)


def name_numbers(values: np.ndarray, counts: np.ndarray | None = None) -> dict:
    """The columns of `means` by name, the first row as numbers and the others as their intervals."""

    def number(name: str, column: np.ndarray) -> dict:
        return {name: column[0].item(), f"{name}_ci95": percentile_interval(column[1:]).tolist()}

    results = {**number("token_entropy", values[:, 0]), **number("patch_entropy", values[:, 1]), "words": {}}
    classes = ("all", *WORD_CLASSES, "punctuation")
    if counts is not None:
        counts = np.append(counts[: len(WORD_CLASSES)].sum(), counts)
    for i, name in enumerate(classes):
        results["words"][name] = {} if counts is None else {"n_words": round(counts[i])}
        for j, statistic in enumerate(STATISTICS):
            results["words"][name] |= number(statistic, values[:, 2 + i * len(STATISTICS) + j])
    return results
