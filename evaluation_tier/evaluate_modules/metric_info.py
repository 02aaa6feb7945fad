"""The description of every metric in this folder, for `evaluate`."""

import datasets
import evaluate


def finding_metric_info(description: str, citation: str, inputs: str) -> evaluate.MetricInfo:
    """The info of a metric of one finding: scores as predictions, labels as references."""
    features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("float64")})
    return evaluate.MetricInfo(
        description=description, citation=citation, inputs_description=inputs, features=features
    )
