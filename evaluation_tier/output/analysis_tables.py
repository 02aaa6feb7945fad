"""The tables of retrieval, grounding, deletion, sparsity, robustness, transfer and the learning curve."""

from collections.abc import Mapping, Sequence

from evaluation_tier.analyses.grounding.map_names import MAPS, kind_of, shown_map
from evaluation_tier.output.dataset_names import describe_dataset
from evaluation_tier.output.tables import DASH, Table, column_name, format_cell, format_estimate, matrix_table


def retrieval_tables(retrieval: Mapping) -> list[Table]:
    """Recall and median rank in both directions; the layout is that of [`evaluate_retrieval`]."""
    rows = []
    for direction, name in (("image_to_text", "Report of an image"), ("text_to_image", "Image of a report")):
        numbers = retrieval.get(direction) or {}
        for key in numbers:
            if f"{key}_ci95" in numbers:
                levels = (format_cell(numbers.get(f"{key}_{level}")) for level in ("chance", "most_frequent"))
                measure = key.replace("recall_at_", "R@").replace("_", " ")
                digits = 1 if key == "median_rank" else 3
                rows.append((name, measure, format_estimate(numbers[key], numbers[f"{key}_ci95"], digits), *levels))
    note = (
        "R@k is the share of queries with a correct answer among the first k. The median rank is the k at which half "
        "of them have one. Texts that say the same count as correct. Chance ranks at random; the last column always "
        "ranks the most frequent text first."
    )
    header = ("Looked for", "Measure", "Model (95 % CI)", "Chance", "Most frequent first")
    return [Table("retrieval", "Retrieval", note, header, tuple(rows), "llrrr")] if rows else []


GROUNDING_MEASURES = {  # by the beginning of a measure's name; see `map_metrics.METRICS`
    "pointing": "Pointing: how often the highest pixel lies in the region.",
    "pixel_auroc": "Pixel AUROC: how often a pixel inside is higher than a pixel outside; 0.5 is chance.",
    "cnr": "CNR: the absolute difference of the means inside and outside, divided by the noise.",
    "signed_cnr": "Signed CNR is below 0 where the map is lower inside.",
    "miou": "IoU: the area that region and map share, divided by the area that either covers; 1 is perfect.",
    "miou_cosine": "mIoU cosine: the mean IoU at cosine thresholds of 0.1, 0.2, 0.3, 0.4 and 0.5.",
    "miou_scaled": "mIoU scaled: the mean IoU at thresholds of 0.1 to 0.5 of the map of each image scaled to 0 to 1.",
    "miou_centred": "mIoU centred: the same of the map scaled to -1 to 1, as AFLoc and KAF-Ground report it.",
    "dice": "Dice: like IoU, but the shared area counts twice.",
    "iou_top": "IoU top 5 %: IoU of the 5 % highest pixels of the image, and so on.",
    "iou_best": "IoU best and Dice best: at the finding's best threshold of the scaled map.",
    "iou_best_optimistic": "Optimistic: the threshold was chosen on these same regions.",
}


KINDS_OF_MAPS = {
    "class_activation": "The contribution of each patch to the logit (Zhou et al. 2016); the figures show these maps.",
    "contribution": "The contribution of each patch to the cosine of the whole image; the figures show these maps.",
    "direct_contribution": "What each patch adds to the image through the class token; the figures show these maps.",
    "cosine": "The cosine of each patch with the sentences, regardless of how much the patch weighs in the image.",
}


def measure_name(key: str) -> str:
    """The title of a measure of grounding: "iou_top_5" is "IoU top 5 %"."""
    return f"{column_name(key)} %" if key.startswith("iou_top_") else column_name(key)


def grounding_tables(grounding: Mapping) -> list[Table]:
    """Maps of each kind, baselines and each finding; the layout is that of [`evaluate_grounding`]."""
    mean = grounding.get("mean") or {}
    if not mean.get("maps") or not mean["maps"].get(shown_map(mean["maps"])):
        mean = grounding.get("all_regions") or {}
    maps, baselines = mean.get("maps") or {}, mean.get("baselines") or {}
    if not maps:
        return []
    measures = list(dict.fromkeys(metric for numbers in maps.values() for metric in numbers))
    of = f", over {', '.join(mean['findings'])}" if mean.get("findings") else ""
    intro = (
        f"How well the maps match the marked regions: {format_cell(mean.get('n_regions'))} regions of "
        f"{format_cell(mean.get('n_patients'))} patients{of}."
    )
    explained = [text for begin, text in GROUNDING_MEASURES.items() if any(key.startswith(begin) for key in measures)]
    tables: list[Table] = []
    for kind, sentence in KINDS_OF_MAPS.items():
        of_kind = {name: maps[name] for name in MAPS[kind] if name in maps}
        if of_kind:
            rows = [
                (measure_name(key), *(map_cell(numbers, key) for numbers in of_kind.values()))
                for key in measures
                if any(key in numbers for numbers in of_kind.values())
            ]
            note = " ".join([sentence] if tables else [intro, sentence, *explained])
            names = [column_name(name.removesuffix(f"_{kind}")) for name in of_kind]
            header = ("Measure", *(f"{name} (95 % CI)" for name in names))
            plural, align = f"{kind.replace('_', ' ')}s", "l" + "r" * len(of_kind)
            title = f"Maps of the model: {plural}"
            tables.append(Table(f"grounding-{plural.replace(' ', '-')}", title, note, header, tuple(rows), align))
    rows = [
        (measure_name(key), *(map_cell(numbers, key, False) for numbers in baselines.values())) for key in measures
    ]
    note = (
        "Baselines that do not use the image: the average map of all images, the mean region of the finding in other "
        "patients (prior), a blob in the centre, a random point."
    )
    header = ("Measure", *map(column_name, baselines))
    tables.append(
        Table("grounding-baselines", "Without the image", note, header, tuple(rows), "l" + "r" * len(baselines))
    )
    findings = grounding.get("findings") or {}
    return tables + ([findings_table(findings, shown_map(maps), measures)] if findings else [])


def findings_table(findings: Mapping, shown: str, measures: Sequence[str]) -> Table:
    """The map `shown` on each finding."""
    keys = [key for key in ("pointing", "pixel_auroc", "miou_scaled", "dice_scaled") if key in measures]
    rows = [
        (
            name,
            format_cell(part.get("n_regions")),
            *(map_cell((part.get("maps") or {}).get(shown), key) for key in keys),
        )
        for name, part in findings.items()
    ]
    note = f"The map of {kind_of(shown)}s minus the average map. With few regions, intervals are wide or missing."
    header = ("Finding", "Regions", *(f"{measure_name(key)} (95 % CI)" for key in keys))
    return Table("grounding-findings", "Maps of each finding", note, header, tuple(rows), "lr" + "r" * len(keys))


def map_cell(numbers: Mapping | None, metric: str, with_interval: bool = True) -> str:
    """The mean of a metric of one map, with its interval."""
    found = (numbers or {}).get(metric) or {}
    return format_estimate(found.get("mean"), found.get("ci95") if with_interval else None)


def deletion_tables(deletion: Mapping) -> list[Table]:
    """By how much the score of each finding falls, by kind of map; the layout is that of [`Deletion.results`]."""
    parts = {name: part for name, part in (deletion.get("findings") or {}).items() if part.get("n_pairs")}
    if not parts:
        return []
    mean = deletion.get("mean") or {}
    summary = {f"Mean of {len(mean['findings'])}": mean} if mean.get("findings") else {}
    kinds = list(dict.fromkeys(kind for part in parts.values() for kind in part.get("maps") or {}))
    rows = []
    for name, part in (parts | summary).items():
        found = [part.get("random") or {}]
        for what in ("hottest", "difference_sd"):
            found += [((part.get("maps") or {}).get(kind) or {}).get(what) or {} for kind in kinds]
        cells = (format_estimate(numbers.get("mean"), numbers.get("ci95")) for numbers in found)
        rows.append((name, format_cell(part.get("n_pairs")), *cells))
    note = (
        "By how much the score of a finding falls, on images with it, when 10 % of the patches become those of the "
        "mean image: random ones, or the hottest ones of a map. The more it falls beyond random, the better the map "
        "tells where the score comes from. Scores are differences of cosines. The last columns are in standard "
        "deviations of the finding's score over all images, which compares models."
    )
    header = ["Finding", "Images", "Random (95 % CI)", *(f"{column_name(kind)} (95 % CI)" for kind in kinds)]
    header += [f"{column_name(kind)} minus random, SD (95 % CI)" for kind in kinds]
    align = "lr" + "r" * (1 + 2 * len(kinds))
    return [Table("deletion", "Blanked patches", note, tuple(header), tuple(rows), align, len(summary))]


def sparsity_tables(sparsity: Mapping) -> list[Table]:
    """Entropies and statistics of words, of each model and of the differences; see [`evaluate_sparsity`]."""
    models = dict(sparsity.get("models") or {})
    first = next(iter(models), "")
    parts = models | {f"{name} minus {first}": part for name, part in (sparsity.get("differences") or {}).items()}
    if not parts:
        return []
    shown = ("token_entropy_weight", "patch_entropy_weight", "token_entropy", "patch_entropy")
    entropies = {name: {key: part[key] for key in part if key.startswith(shown)} for name, part in parts.items()}
    patches = models[first].get("num_patches")
    note = (
        "How strongly a word concentrates on few patches, and a patch on few words. The entropy in nats is 0 for one, "
        f"and ln K if all K are alike (K is {format_cell(patches)} patches for a word). Lower is sparser."
    )
    tables = [matrix_table("sparsity", "Entropies", note, entropies, "Model", digits=4)]
    note = (
        "By class of word. Gini and Hoyer are 0 if all patches are alike and near 1 if one stands out. Near zero and "
        "negative are shares of the patches."
    )
    for i, (name, part) in enumerate(parts.items()):
        title = f"Words, {name}" if len(parts) > 1 else "Words"
        tables.append(
            matrix_table(f"sparsity-words-{i + 1}", title, "" if i else note, part["words"], "Class", digits=4)
        )
    return tables


def robustness_tables(robustness: Mapping) -> list[Table]:
    """One table per probe; the layout is that of [`evaluate_robustness`]."""
    tables = []
    wordings = (robustness.get("wordings") or {}).get("mean") or {}
    if wordings.get("auroc"):
        intervals = wordings.get("auroc_ci95") or {}
        rows = [(name, format_estimate(value, intervals.get(name))) for name, value in wordings["auroc"].items()]
        summary = [
            (f"{name} over the wordings", format_cell(wordings.get(name))) for name in ("mean", "min", "max", "sd")
        ]
        note = "Mean AUROC with other wordings of the same question: the less it varies, the better."
        header = ("Wording", "AUROC, mean (95 % CI)")
        rows = (*rows, *summary)
        tables.append(Table("robustness-wordings", "Wordings", note, header, rows, "lr", len(summary)))
    negation = (robustness.get("negation") or {}).get("mean") or {}
    if negation:
        note = (
            "The share of images that are nearer to the true one of a sentence and its negation: among images with "
            "the finding, among images without it, and the mean of both. 0.5 is chance."
        )
        tables.append(matrix_table("robustness-negation", "Negation", note, negation, "Wording"))
    sides = robustness.get("laterality") or {}
    of_findings = {**(sides.get("findings") or {}), **({"All": sides["all"]} if sides.get("all") else {})}
    if of_findings:
        note = (
            "The share of images nearer to the sentence with the side that the report states. The same for mirrored "
            "images, where the other side is correct (0.5 is chance). The share whose preference mirroring reverses."
        )
        table = matrix_table("robustness-laterality", "Left and right", note, of_findings, "Finding")
        tables.append(table._replace(num_summary=1 if sides.get("all") else 0))
    empty = (robustness.get("empty_images") or {}).get("findings") or {}
    if empty:
        cells = {}
        for finding, part in empty.items():
            cells[finding] = {
                name: format_cell(image.get("quantile")) + (" *" if image.get("positive") else "")
                for name, image in part["images"].items()
            }
        note = (
            "The score of an image that shows nothing, as a quantile of the scores of the real images. A * marks a "
            "score that reaches the threshold, which is a defect."
        )
        tables.append(matrix_table("robustness-empty-images", "Empty images", note, cells, "Finding"))
    degraded = {
        name: part["mean"] for name, part in (robustness.get("degradations") or {}).items() if part.get("mean")
    }
    if degraded:
        note = "Mean AUROC on images of lower resolution and stronger compression, and its drop."
        tables.append(matrix_table("robustness-degradations", "Degraded images", note, degraded, "Images"))
    alignment = robustness.get("report_alignment") or {}
    if alignment.get("all"):
        note = (
            "The share of images nearer to their report than to the same report with a finding negated, with it left "
            "out, and than to both. Ties count half. Chance is 0.5, 0.5 and a third. A model that prefers long texts "
            "also prefers the report over the shortened one."
        )
        rows = {**(alignment.get("findings") or {}), "All": alignment["all"]}
        table = matrix_table("robustness-report-alignment", "CXR-Align", note, rows, "Finding")
        tables.append(table._replace(num_summary=1))
    return tables


def transfer_tables(transfer: Mapping) -> list[Table]:
    """Thresholds and calibration of other data, and the controls; the layout is that of `measure_transfer`."""
    findings, mean, origin = (
        transfer.get("findings") or {},
        transfer.get("mean") or {},
        transfer.get("fitted_on") or {},
    )
    if not findings:
        return []
    measures = {"sensitivity": "Sensitivity", "specificity": "Specificity", "ece": "ECE"}
    header, rows = ["Finding", "Positives", "Threshold"], []
    for title in measures.values():
        header += [f"{title} there", f"{title} here (95 % CI)"]
    for name, part in {**findings, "Mean": mean}.items():
        fitted = part.get("fitted") or {}
        cells = [format_cell(part.get("n_positive")), format_estimate(fitted.get("threshold"), digits=4)]
        for key in measures:
            cells += [format_estimate(fitted.get(key)), format_estimate(part.get(key), part.get(f"{key}_ci95"))]
        rows.append((name, *cells) if fitted else (name, *("" if cell == DASH else cell for cell in cells)))
    note = (
        f"Thresholds and calibration come from {describe_dataset(origin.get('dataset') or '')}, split "
        f"{origin.get('split')!r} ({format_cell(origin.get('n_images'))} images), and stay fixed here. Each threshold "
        f"has a sensitivity of at least {transfer['wanted_sensitivity']:g} there. {transfer_sentence(transfer)} "
        "ECE is the calibration error: 0 is best."
    )
    align = "l" + "r" * (len(header) - 1)
    tables = [Table("transfer", "Thresholds of other data", note, tuple(header), tuple(rows), align, 1)]
    keys = {
        "auroc_healthy": "AUROC, healthy",
        "auroc_sick": "AUROC, sick",
        "auroc_difference": "Difference",
        "specificity_healthy": "Specificity, healthy",
        "specificity_sick": "Specificity, sick",
    }
    if any(key in mean for key in keys):
        rows = [
            (name, *(format_estimate(part.get(key), part.get(f"{key}_ci95")) for key in keys))
            for name, part in {**findings, "Mean": mean}.items()
        ]
        note = (
            'The same positives against images with "No Finding" (healthy) and against images with other findings '
            "(sick). Specificity is at the threshold of the other data. A large difference means that the model tells "
            "sick from healthy rather than one finding from another."
        )
        header = ["Finding", *(f"{title} (95 % CI)" for title in keys.values())]
        tables.append(
            Table("controls", "Healthy and sick controls", note, tuple(header), tuple(rows), "l" + "r" * len(keys), 1)
        )
    return tables


def transfer_sentence(transfer: Mapping) -> str:
    """How many thresholds keep the wanted sensitivity, in two sentences."""
    kept = f"{transfer['n_kept']} of {transfer['n_findings']} thresholds have it here, too."
    return f"{kept} For {transfer['n_lost']}, the whole interval lies below."


CURVES = {"linear_probe": "Linear probe", "knn": "k-NN", "fine_tuning": "Fine-tuning"}


def learning_curve_tables(curve: Mapping) -> list[Table]:
    """Mean AUROC by number of patients; the layout is that of `LearningCurve.results`."""
    points = {name: curve["methods"][name] for name in CURVES if (curve.get("methods") or {}).get(name)}
    if not points:
        return []
    rows = []
    for of_size in zip(*points.values(), strict=True):
        first = of_size[0]
        ranges = ((point["lowest"], point["highest"]) if len(point["draws"]) > 1 else None for point in of_size)
        cells = (format_estimate(point["auroc"], of_draws) for point, of_draws in zip(of_size, ranges, strict=True))
        images, lacking = f"{first['n_images']:,.0f}", f"{first['n_one_class']:.1f}"
        rows.append((f"{first['n_patients']:,}", images, *cells, lacking))
    zero_shot = curve["zero_shot"]
    steps = curve.get("fine_tuning_steps")
    fine_tuned = f", and the image tower itself, trained for {steps:,} steps" if steps else ""
    note = (
        f"Classifiers that learn from patients of the split {curve['split']!r}: linear probe and k-NN of the frozen "
        f"embeddings{fine_tuned}. AUROC, mean over {len(curve['findings'])} findings and {curve['n_draws']} draws "
        f"(lowest and highest draw). Zero-shot: "
        f"{format_estimate(zero_shot['auroc'], zero_shot['auroc_ci95'])}. {curve_sentence(curve)} A finding of which "
        "the drawn images lack a class counts as chance, 0.5; the last column has their mean number."
    )
    if curve.get("n_seen"):
        note += f" The model was trained on {curve['n_seen']:,} of the images to learn from, which flatters it."
    header = ("Patients", "Images", *(CURVES[name] for name in points), "Findings without both classes")
    return [Table("learning-curve", "Learning curve", note, header, tuple(rows), "rr" + "r" * (len(points) + 1))]


def curve_sentence(curve: Mapping) -> str:
    """From how many patients on each method is as good as zero-shot."""
    parts = []
    for name, number in curve["reaches_zero_shot"].items():
        parts.append(f"{CURVES[name]} {'never' if number is None else f'from {number:,} patients on'}")
    return f"As good as zero-shot: {', '.join(parts)}."
