"""Saving a whole policy: model, processor and model card."""

from pathlib import Path

from ..cards.model_card import write_model_card
from ..utils.files import new_folder


def save_policy(model, processor, folder: str | Path) -> None:
    """Write model, processor and model card, all or nothing.

    Raises:
        OSError: `folder` exists and is not empty.
    """
    folder = Path(folder)
    with new_folder(folder) as work:
        model.save_pretrained(work)
        processor.save_pretrained(work)
        write_model_card(work, name=folder.resolve().name)  # else the card has the temporary folder's name


__all__ = ["save_policy"]
