"""What `save_pretrained` and `push_to_hub` of every model add to the library's: the training list, and privacy."""

import os
import shutil
from typing import Any

from transformers import PreTrainedModel

TRAINED_ON = ("trained_on.json", "_trained_on.json")  # which images and patients a model has seen, as hashes


def copy_trained_on(model: PreTrainedModel, save_directory: str | os.PathLike) -> None:
    """
    Copies the list of a model's training images from the folder it was loaded from. A push to a public repository
    leaves the list out: patient ids can be guessed and hashed.
    """
    if getattr(model, "_is_pushed_publicly", False):
        return
    for name in TRAINED_ON:
        source, target = (os.path.join(folder, name) for folder in (model.name_or_path, save_directory))
        if model.name_or_path and os.path.isfile(source) and not os.path.exists(target):
            shutil.copyfile(source, target)


class SavingMixin:
    """Saving and uploading, for models of images and texts and for classifiers."""

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Saves weights, configuration, code, and the list of the training images where there is one."""
        super().save_pretrained(save_directory, *args, **kwargs)
        copy_trained_on(self, save_directory)

    def push_to_hub(self, repo_id: str, *, private: bool = True, **kwargs: Any) -> str:
        """
        Uploads as [`PreTrainedModel.push_to_hub`] does, but to a private repository by default. Weights can reveal
        training data, and the terms of most collections of radiographs forbid sharing those. An existing repository
        keeps its visibility.

        Args:
            repo_id (`str`): Name on the Hub.
            private (`bool`, *optional*, defaults to `True`):
                `False` for a public repository, which does not get the list of the training images
                (`trained_on.json`).
            kwargs: What [`PreTrainedModel.push_to_hub`] takes.
        """
        self._is_pushed_publicly = not private
        try:
            return super().push_to_hub(repo_id, private=private, **kwargs)
        finally:
            del self._is_pushed_publicly
