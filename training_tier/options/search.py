"""Options of a search of the two entropy weights."""

import importlib.util
from dataclasses import dataclass, field


@dataclass
class SearchArguments:
    """Options of a search of the two entropy weights, which runs instead of a training."""

    search_trials: int | None = field(
        default=None,
        metadata={
            "help": "Search the two entropy weights: train this many short trials (TIER: 30). The first trial has "
            "both weights 0. The search ends with the command that trains with the best pair. An interrupted search "
            "continues when it is started again. It needs Optuna: pip install optuna."
        },
    )
    search_epochs: float = field(default=1.0, metadata={"help": "Epochs of each trial (TIER: 1)."})
    search_max_weight: float = field(
        default=0.5, metadata={"help": "Largest weight of the search (TIER: 0.5). The smallest is 0."}
    )

    def __post_init__(self) -> None:
        from training_tier.options import checks, compatibility  # here, so that --help needs no torch

        checks.check_values(self)
        compatibility.check_search(self)
        if self.search_trials is not None and importlib.util.find_spec("optuna") is None:
            raise ValueError("search_trials needs Optuna, which is not installed; run: pip install optuna")
