"""The model card (README.md) that saving a policy leaves in its folder, and pushing it in its repository.

Model, processor, trainer and evaluation each save their own files, in any order; the card is updated from the files that exist.
Generated sections stand between comments, `<!-- hf_vla: data -->` … `<!-- hf_vla: end of data -->`. Text outside of them and
metadata that a user set are kept. A card without such comments is a user's own, and is not touched.
"""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from transformers.utils import logging

from ..hub import is_repository_name
from ..utils.files import atomic_write
from . import sections as card_sections
from .markdown import plain

logger = logging.get_logger(__name__)

FILE = "README.md"
TAGS = ("robotics", "vision-language-action")
_NOTE = (
    "<!-- hf_vla: sections between such comments are renewed when the policy is saved; what is outside of them stays. "
    "Remove all of them to keep the whole card as it is. -->"
)
# In the card that transformers makes for a repository without one.
_EMPTY_CARD = "This is the model card of a 🤗 transformers model that has been pushed on the Hub."
_WHAT = (
    "A vision-language-action policy: camera images, an instruction and the robot's state in, a chunk of actions out."
)


def write_model_card(
    folder: str | os.PathLike,
    *,
    name: str | None = None,
    metadata: Mapping | None = None,
    training: Mapping | None = None,
    settings: str | os.PathLike | None = None,
    existing: str | None = None,
) -> Path:
    """Write or update the card of the policy in a folder.

    Args:
        folder: with the saved model, processor or both.
        name: the policy's, for the title and in the example of use: a Hub repository, or by default the folder's name.
        metadata: fields of the card's metadata to set: `license`, `datasets`, `language`, `base_model`, `tags`, ….
        training: facts on the training, name -> value; without, an earlier card's section is kept.
        settings: the training's YAML file; by default `config.yaml` in the folder.
        existing: the card to update; by default the one in the folder.

    Returns:
        the card's path.
    """
    folder = Path(folder)
    file = folder / FILE
    if existing is None and file.is_file():
        existing = file.read_text(encoding="utf-8")
    text = compose(folder, existing, name, metadata or {}, training, settings)
    if text is not None:
        with atomic_write(file) as partial:
            partial.write_text(text, encoding="utf-8")
    return file


def add_results(folder: str | os.PathLike, summary: str | os.PathLike) -> Path:
    """Put an evaluation's table (the success_summary.csv of `hf-vla eval`) beside a policy and into its card."""
    folder = Path(folder)
    if not card_sections.policy_config(folder):
        raise ValueError(f"{folder} holds no policy that results could belong to")
    if not card_sections.read_summary(Path(summary)):
        raise ValueError(f"{summary} is not a table of hf-vla eval: it has other columns, or no rows")
    shutil.copyfile(summary, folder / card_sections.SUMMARY)
    return write_model_card(folder)


def compose(folder: Path, existing, name, metadata: Mapping, training=None, settings=None) -> str | None:
    """Return the card's text; None if the existing one is a user's own, or the folder has nothing to describe."""
    from huggingface_hub import ModelCardData

    # A folder being written beside or in its final place has a name with a dot.
    own_name = next(part for part in reversed(folder.resolve().parts) if not part.startswith("."))
    name = name or own_name
    sections = {key: section(folder) for key, section in card_sections.OF_FILES.items()}
    sections["use"] = card_sections.use(folder, name)
    settings = folder / "config.yaml" if settings is None else Path(settings)
    text = settings.read_text(encoding="utf-8") if settings.is_file() else None
    if training or (text and "<!-- hf_vla: training -->" not in (existing or "")):  # facts of an earlier card are kept
        sections["training"] = card_sections.recipe(training, text)
    sections = {key: sections[key] for key in card_sections.ORDER if sections.get(key)}
    if not sections:
        return None
    if existing is None:
        fields = ModelCardData(tags=list(TAGS), library_name="hf_vla", pipeline_tag="robotics", license="unknown")
        body = f"{_NOTE}\n\n# {plain(name)}\n\n{_WHAT}\n\n"
    else:
        read = read_card(existing, name)
        if read is None:
            return None
        fields, body = read
        title = re.escape(plain(own_name))
        body = re.sub(rf"^# {title}$", lambda _: f"# {plain(name)}", body, count=1, flags=re.MULTILINE)
    _describe(fields, folder, metadata, name)
    sections["licence"] = card_sections.licence(fields.license)
    for key, section in sections.items():
        body = put_section(body, key, section, card_sections.ORDER)
    return f"---\n{fields.to_yaml()}\n---\n\n{body}"


def read_card(text: str, name: str) -> tuple | None:
    """Return metadata and body of a card; None if it is a user's own, or its metadata can't be read, which is logged."""
    from huggingface_hub import ModelCard

    if "<!-- hf_vla:" not in text:
        return None
    try:
        card = ModelCard(text, ignore_metadata_errors=False)
    except (ValueError, yaml.YAMLError) as error:
        logger.warning(
            f"the card of {name} is left as it is, as its metadata can't be read: {' '.join(str(error).split())}"
        )
        return None
    return card.data, card.text.lstrip("\n")


def put_section(body: str, key: str, section: str, order: Sequence[str]) -> str:
    """Replace the section of that name in a card's body, or insert it in its place in the order."""
    # What a section quotes must not end it.
    section = section.replace("<!-- hf_vla", "<!- - hf_vla")
    block = f"<!-- hf_vla: {key} -->\n{section}\n<!-- hf_vla: end of {key} -->"
    pattern = rf"<!-- hf_vla: {key} -->\n.*?<!-- hf_vla: end of {key} -->"
    if re.search(pattern, body, flags=re.DOTALL):
        return re.sub(pattern, lambda _: block, body, flags=re.DOTALL)
    later = [f"<!-- hf_vla: {other} -->" for other in order[order.index(key) + 1 :]]
    places = [body.index(mark) for mark in later if mark in body]
    at = min(places, default=len(body))
    return f"{body[:at].rstrip()}\n\n{block}\n\n{body[at:].lstrip()}".rstrip() + "\n"


def renew_training(card: str, local: str) -> str:
    """Return a card with the section on the training of another one, if both have sections of ours."""
    found = re.search(r"<!-- hf_vla: training -->\n(.*?)\n<!-- hf_vla: end of training -->", local, flags=re.DOTALL)
    if found is None or "<!-- hf_vla:" not in card:
        return card
    return put_section(card, "training", found[1], card_sections.ORDER)


def _describe(fields, folder: Path, metadata: Mapping, name: str) -> None:
    """Add facts from the folder to the metadata, and set the caller's; all else that is there is kept."""
    from huggingface_hub import EvalResult

    config = card_sections.policy_config(folder)
    own = list(fields.tags or [])
    for tag in (*TAGS, config.get("model_type"), *_as_list(metadata.get("tags"))):
        if tag and tag not in own:
            own.append(tag)
    fields.tags = own
    for key, value in metadata.items():
        if value is not None and key != "tags":
            setattr(fields, key, value)
    backbone = config.get("vlm_name_or_path")
    if backbone and fields.base_model is None and is_repository_name(backbone):
        fields.base_model = backbone
    rows = [row for row in card_sections.summary_rows(folder) if row["control"] == "none"]
    if rows:
        fields.model_name = fields.model_name or name
        fields.eval_results = [
            EvalResult(
                task_type="robotics",
                dataset_type=row["env"],
                dataset_name=f"{row['env']} {row['task']}",
                metric_type="success_rate",
                metric_name=f"success rate in {row['episodes']} episodes",
                metric_value=float(row["success_rate"]),
            )
            for row in rows
        ]


def _as_list(value) -> list:
    return [value] if isinstance(value, str) else list(value or ())


class LeavesModelCard:
    """Mixin for models and processors: `save_pretrained` and `push_to_hub` update the policy's card."""

    def save_pretrained(self, save_directory, *args, **kwargs):
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        is_main_process = kwargs.get("is_main_process", args[0] if args else True)
        if is_main_process and not kwargs.get("push_to_hub") and os.path.isdir(save_directory):
            write_model_card(save_directory)
        return saved

    def _upload_modified_files(self, working_dir, repo_id, files_timestamps, **kwargs):
        """Write the card before pushing; all of transformers 5's ways to push end here.

        By then it has put the repository's card, or an empty one of its own, into the folder.
        """
        from huggingface_hub import ModelCard
        from huggingface_hub.errors import EntryNotFoundError

        file = Path(working_dir) / FILE
        tags = ModelCard.load(file, ignore_metadata_errors=True).data.tags if file.is_file() else None
        try:
            existing = ModelCard.load(repo_id, token=kwargs.get("token"), ignore_metadata_errors=True).content
        except EntryNotFoundError:
            existing = None
            if file.is_file() and _EMPTY_CARD in file.read_text(encoding="utf-8"):
                file.unlink()
        write_model_card(working_dir, name=repo_id, metadata={"tags": tags}, existing=existing)
        return super()._upload_modified_files(working_dir, repo_id, files_timestamps, **kwargs)


__all__ = ["LeavesModelCard", "add_results", "write_model_card"]
