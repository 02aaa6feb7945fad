"""Names of data sets for readers: the phantom is always called synthetic."""


def is_synthetic(dataset_name: str | None) -> bool:
    """Whether the data are the phantom's, which every command calls "phantom" or "phantom:<options>"."""
    return bool(dataset_name) and dataset_name.partition(":")[0] == "phantom"


def describe_dataset(dataset_name: str) -> str:
    """The data's name for a reader; the phantom is always called synthetic."""
    return f"{dataset_name} (synthetic)" if is_synthetic(dataset_name) else dataset_name
