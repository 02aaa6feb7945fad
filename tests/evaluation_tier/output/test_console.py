from evaluation_tier.output.console import comment_on_mean, format_table
from evaluation_tier.output.metrics_file import to_json


def test_table(metrics):
    lines = format_table(metrics).splitlines()
    assert lines == [
        "Finding       Positives         AUROC  95 % CI",
        "------------  ---------  ------------  -------------",
        "Cardiomegaly         25         0.851  0.801 - 0.901",
        "Nodule|Mass           1  not measured  not measured",
        "------------  ---------  ------------  -------------",
        "Mean of 2                       0.851  0.800 - 0.900",
    ]


def test_table_is_the_same_from_json(metrics):
    assert format_table(to_json(metrics)) == format_table(metrics)


def test_a_mean_below_chance_is_commented():
    assert comment_on_mean({"auroc": 0.5, "auroc_ci95": [0.4, 0.6]}) == comment_on_mean({"auroc": None}) == []
    (chance,) = comment_on_mean({"auroc": 0.48, "auroc_ci95": [0.4, 0.56]})
    (wrong,) = comment_on_mean({"auroc": 0.3, "auroc_ci95": [0.2, 0.4]})
    assert "as chance can make it" in chance and "the wrong way round" in wrong
