"""
The uploads of a Trainer to the Hub, during training and at the end: models that load, with this project's card.

- During training, the files of `output_dir` without its folders: the last checkpoint, except for the files that only
  resuming needs, and the card. `hub_strategy` `checkpoint` or `all_checkpoints` adds a folder with all its files.
- At the end ([`Trainer.push_to_hub`]), `output_dir` without the checkpoints.
- Never a file or folder whose name begins with `_` (`NOT_PUSHED`), and never through a link out of the folder.

`modeling_tier` decides which code `save_pretrained` puts beside the weights.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import model_info, upload_folder
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress, logging

from evaluation_tier.output.links import refuse_links_outside
from evaluation_tier.output.model_card import write_model_card
from training_tier.loop.integrity import CHECKSUMS, PICKLES

logger = logging.get_logger(__name__)

# The lock, unfinished files, and in a run that pushes publicly the list of its images and patients. As in
# transformers' `push_to_hub`.
NOT_PUSHED = "_*"


class HubTrainer(Trainer):
    """[`Trainer`] whose pushes can be loaded and have this project's card."""

    training_facts: Mapping | None = None
    _saving = False
    push_in_progress: PushInProgress | None  # of [`Trainer`]

    @property
    def pushes_publicly(self) -> bool:
        return self.args.push_to_hub and not self.args.hub_private_repo

    def init_hf_repo(self, token: str | None = None, **kwargs: Any) -> None:
        """
        Makes the repository on the Hub, private by default.

        Args:
            token (`str`, *optional*): instead of `hub_token`.
            kwargs: `private` where [`Trainer`] takes it (from transformers 5.23 at the latest), instead of
                `hub_private_repo`.

        Raises:
            `ValueError`: a link in `output_dir` leads out of it, the Hub cannot be reached or refuses, or the
                repository exists and is public although a private one was asked for.
        """
        if not self.is_world_process_zero():
            return
        refuse_links_outside(self.args.output_dir)
        try:
            super().init_hf_repo(token=token, **kwargs)
            is_public = not model_info(self.hub_model_id, token=token or self.args.hub_token).private
        except Exception as error:  # huggingface_hub and its HTTP library raise many kinds
            name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
            raise ValueError(
                f"The Hub does not take the repository {name!r}; log in with `hf auth login` or choose another "
                f"--hub_model_id ({type(error).__name__}: {' '.join(str(error).split())[:200]})."
            ) from error
        private = kwargs.get("private")
        if is_public and (self.args.hub_private_repo if private is None else private):
            raise ValueError(
                f"The repository {self.hub_model_id!r} exists and is public; choose another --hub_model_id. If the "
                "training data allow a public model, use --hub_private_repo false."
            )

    def create_model_card(self, model_name: str | None = None, **kwargs: Any) -> None:
        """Writes this project's card into `output_dir`, unless it has one, which [`Trainer`] would overwrite."""
        if kwargs:
            logger.warning(f"{', '.join(kwargs)}: no effect on the model card, which write_model_card writes.")
        if self.is_world_process_zero() and not os.path.isfile(os.path.join(self.args.output_dir, "README.md")):
            self.write_card(model_name)

    def write_card(self, model_name: str | None = None) -> None:
        """Writes the card into `output_dir`, under the name of the repository on the Hub if it has one."""
        write_model_card(
            self.args.output_dir, training=self.training_facts, model_name=self.hub_model_id or model_name
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # This replaces super's (transformers 5.23, trainer.py:4423-4490), which pushes config and weights without the
        # code that loads them, and a pickle. The files are copied first, as there: the checkpoint may be deleted
        # before they are sent.
        args = self.args
        if self._saving or not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return  # super calls this while the checkpoint is still being saved
        if self.push_in_progress is not None and not self.push_in_progress.is_done() and not args.hub_always_push:
            return
        self._finish_current_push()  # it reads the files that are about to change
        self.callback_handler.on_push_begin(args, self.state, self.control)
        for path in Path(checkpoint_folder).iterdir():
            if path.is_file() and path.suffix not in PICKLES and path.name != CHECKSUMS:
                shutil.copy(path, args.output_dir)
        self.write_card()

        message = f"Training in progress, step {self.state.global_step}"
        target = {"repo_id": self.hub_model_id, "token": args.hub_token, "revision": args.hub_revision}
        jobs = [
            upload_folder(
                folder_path=args.output_dir,
                ignore_patterns=[NOT_PUSHED, "*/*"],
                commit_message=message,
                run_as_future=True,
                **target,
            )
        ]
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = args.hub_strategy == HubStrategy.CHECKPOINT
            jobs.append(
                upload_folder(
                    folder_path=checkpoint_folder,
                    path_in_repo="last-checkpoint" if last else Path(checkpoint_folder).name,
                    ignore_patterns=[NOT_PUSHED],
                    commit_message=f"{message}, checkpoint",
                    run_as_future=True,
                    **target,
                )
            )
        self.push_in_progress = PushInProgress(jobs)
