"""Checkpoint folders: complete or absent; finding the one to resume from; which output folders a new run may use.

A checkpoint is written to `OUTPUT/.saving/checkpoint-N`, flushed to the disk and renamed to `OUTPUT/checkpoint-N` when every
process is done. Its `hf_vla_run.json` lists the files and their sizes, so that a partly copied or deleted one is detected
too.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

RUN_FILE = "hf_vla_run.json"
SAVING = ".saving"
_NAME = re.compile(r"checkpoint-(\d+)")


def commit(folder: Path, final: Path, run: dict[str, Any]) -> None:
    """Turn `folder`, written by all processes, into the checkpoint `final`, replacing an older one of that name.

    Args:
        run: the run's identity for `hf_vla_run.json`; see [`~hf_vla.training.run_identity.describe_run`].
    """
    files = {str(file.relative_to(folder)): file.stat().st_size for file in _files(folder)}
    (folder / RUN_FILE).write_text(json.dumps({"run": run, "files": files}, indent=1), encoding="utf-8")
    # A rename can reach the disk before the files' contents: after a power cut there would be a checkpoint of zeros.
    for path in [*_files(folder), *(path for path in folder.rglob("*") if path.is_dir()), folder]:
        _flush(path)
    replaced = folder.parent / "replaced"
    if final.exists():
        final.rename(replaced)
    folder.rename(final)
    _flush(final.parent)
    shutil.rmtree(folder.parent, ignore_errors=True)


def remove_unfinished(output_dir: str | Path) -> None:
    """Remove the unfinished checkpoint of a process that was killed while saving."""
    leftover = Path(output_dir, SAVING)
    if leftover.exists():
        logger.warning(f"removing {leftover}: a checkpoint that was not saved completely")
        shutil.rmtree(leftover)


def read_run(checkpoint: str | Path) -> dict[str, Any]:
    """Read the identity of the run that a checkpoint belongs to.

    Raises:
        ValueError: it was not saved by `VLATrainer`, or files are missing or have another size.
    """
    checkpoint = Path(checkpoint)
    try:
        content = json.loads((checkpoint / RUN_FILE).read_text(encoding="utf-8"))
        files, run = content["files"], content["run"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{checkpoint} has no readable {RUN_FILE}: it is incomplete, or was not saved by VLATrainer; "
            "start a new run from its weights with pretrained_checkpoint"
        ) from None
    for name, size in files.items():
        file = checkpoint / name
        if not file.is_file() or file.stat().st_size != size:
            there = f"has {file.stat().st_size}" if file.is_file() else "is missing"
            raise ValueError(
                f"{checkpoint} is incomplete: {name} of {size} bytes {there}; copy it again or use another"
            )
    return run


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Return the checkpoint folders of a run, complete or not, the latest step first."""
    folder = Path(output_dir)
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(_NAME.fullmatch(path.name)[1]), reverse=True)


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """Return the last complete checkpoint of a run; incomplete ones are skipped with a warning."""
    for checkpoint in checkpoints(output_dir):
        try:
            read_run(checkpoint)
            return checkpoint
        except ValueError as error:
            logger.warning(f"skipped: {error}")
    return None


def find_checkpoint(output_dir: str | Path, resume: str | bool | None) -> Path | None:
    """Return the checkpoint that `resume_from_checkpoint` refers to.

    Args:
        output_dir: the run's folder.
        resume: None or false: none. True or "true": the last complete one in `output_dir`. "auto": the same, or none if
            there is none. A path: that checkpoint, or the last complete one of the run in that folder.

    Raises:
        ValueError: there is no complete checkpoint.
    """
    resume = _normalize_resume(resume)
    if resume is None:
        return None
    folder = Path(output_dir if resume in ("true", "auto") else resume).expanduser()
    if resume not in ("true", "auto") and ((folder / RUN_FILE).exists() or _NAME.fullmatch(folder.name)):
        if not folder.is_dir():
            raise ValueError(f"resume_from_checkpoint: {folder} does not exist{_others(folder.parent)}")
        read_run(folder)
        return folder
    found = last_checkpoint(folder)
    if found is None and resume != "auto":
        raise ValueError(
            f"resume_from_checkpoint: no complete checkpoint in {folder}; name a checkpoint-N folder, or leave "
            "resume_from_checkpoint out to start a new run"
        )
    return found


def checkpoint_to_resume(args) -> Path | None:
    """Return the checkpoint to resume from, or None for a new run, whose folder must not hold any checkpoints.

    Args:
        args: `VLATrainingArguments`.

    Raises:
        ValueError: no complete checkpoint to resume from, or a new run in the folder of another.
    """
    if args.overwrite_output_dir:
        if _normalize_resume(args.resume_from_checkpoint):
            raise ValueError("overwrite_output_dir removes the checkpoints that resume_from_checkpoint needs; set one")
        return None
    found = find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    there = checkpoints(args.output_dir)
    if found is None and there:
        raise ValueError(
            f"{args.output_dir} has {len(there)} checkpoints of an earlier run, the last one of step "
            f"{_NAME.fullmatch(there[0].name)[1]}: continue from there with --resume_from_checkpoint true, or start a new run with "
            "another --output_dir, or with --overwrite_output_dir true, which removes them"
        )
    return found


def remove_checkpoints(output_dir: str | Path) -> None:
    """Remove all checkpoints of an earlier run."""
    for checkpoint in checkpoints(output_dir):
        logger.warning(f"overwrite_output_dir: removing {checkpoint}")
        shutil.rmtree(checkpoint)


def _normalize_resume(resume: str | bool | None) -> str | None:
    """Return None, "true", "auto" or a path: flags are text, YAML and Python have true and None."""
    word = str(resume).lower()
    return None if word in ("none", "false", "") else word if word in ("true", "auto") else str(resume)


def _others(folder: Path) -> str:
    names = [path.name for path in checkpoints(folder)]
    return f"; in {folder} there are {', '.join(names)}" if names else ""


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["checkpoint_to_resume", "find_checkpoint", "last_checkpoint", "read_run"]
