"""The names of the maps that grounding measures, in the results and on the figures."""

from collections.abc import Collection, Sequence

DIRECT = "direct_contribution"  # the kind "direct" of `modeling_tier.maps_tier`, in words

MAPS = {  # by kind, see `modeling_tier.maps_tier`: map to the same map of the average image
    "cosine": {"positive": "average_positive", "difference": "average", "above_average": "average"},
    "contribution": {
        "positive_contribution": "average_positive_contribution",
        "difference_contribution": "average_contribution",
        "above_average_contribution": "average_contribution",
    },
    DIRECT: {
        "positive_direct_contribution": "average_positive_direct_contribution",
        "difference_direct_contribution": "average_direct_contribution",
        "above_average_direct_contribution": "average_direct_contribution",
    },
    "class_activation": {  # of a classifier: what each patch contributes to the logit
        "class_activation": "average_class_activation",
        "above_average_class_activation": "average_class_activation",
    },
}

AVERAGE_OF = {name: average for of_kind in MAPS.values() for name, average in of_kind.items()}

COSINES = (*MAPS["cosine"], *dict.fromkeys(MAPS["cosine"].values()))  # thresholds of cosines say nothing of the others

PLACES = ("prior", "centre")  # baselines that know neither the image nor the model


def map_names(kinds: Sequence[str]) -> tuple[str, ...]:
    """The maps of these kinds, in the order of the results."""
    return tuple(name for kind in kinds for name in MAPS[kind])


def baseline_names(kinds: Sequence[str]) -> tuple[str, ...]:
    """Their baselines in the order of the results, but for the random point, which is not a map."""
    return (*dict.fromkeys(average for kind in kinds for average in MAPS[kind].values()), *PLACES)


def shown_map(names: Collection[str]) -> str:
    """Which of these maps people see: what exceeds the average image, in contributions where the model has them."""
    kinds = ("class_activation", "contribution", DIRECT)
    return next((name for kind in kinds if (name := f"above_average_{kind}") in names), "above_average")


def kind_of(name: str) -> str:
    """The kind of a map, in words."""
    return next(kind for kind, names in MAPS.items() if name in names).replace("_", " ")
