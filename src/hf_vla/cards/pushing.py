"""Folders to the Hub: a trained policy with its run (curves, recipe, evaluation, videos), or a dataset. One commit each.

What is pushed is first laid out as it will be, by links to the files, so that the card describes what it comes with.
"""

import csv
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from . import sections as card_sections
from .model_card import FILE, compose, renew_training

# Of a training, what continues it or belongs to this machine.
_NOT_PUSHED = re.compile(
    r"^(checkpoint-\d+|best|runs|logs|\.saving|\.hf_vla|\.cache|__pycache__|training_args\.bin|nan_batch\.json|"
    r"policy_files\.json)$|\.partial$"
)


def push_policy(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    evaluations: Sequence[str | os.PathLike] = (),
    report: str | os.PathLike | None = None,
    benchmark: str | None = None,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Upload a policy's folder and what is known of its run, with a card under the repository's name.

    Args:
        folder: with the policy, and if it was trained there, `config.yaml`, `summary.jsonl` and `loss.png`.
        repo_id: the repository, "user/name"; made if it is not there.
        evaluations: folders of `hf-vla eval`: tables, figures and videos go into `evaluation/`, if they are not in `folder`
            already, and rates into the card. Of one that is called evaluation_before the rates don't: it is of the policy that
            `hf-vla rl` started from.
        report: a page of `hf-vla report`, uploaded as `report.html`.
        benchmark: "USER/DATASET:TASK", a benchmark of the Hub and a task in its eval.yaml, whose leaderboard is to show the
            success rate: the mean over the tasks, in percent. It goes into `.eval_results/`, as
            https://huggingface.co/docs/hub/eval-results describes.
        private: whether a repository that is made here is private.
        token: of the Hub; by default the one that is logged in.

    Returns:
        the repository's address.

    Raises:
        ValueError: the folder holds no policy, or an evaluation no results, two evaluations have the same name, or the rates
            can't be one result of a benchmark.
        OSError: the Hub refuses, or cannot be reached.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file() or not card_sections.policy_config(folder):
        raise ValueError(
            f"{folder} holds no policy: no config.json of one is in it; give the output folder of a training"
        )
    with tempfile.TemporaryDirectory() as stage:
        staged = Path(stage) / folder.resolve().name
        _link(folder, staged)
        tables = []
        for source in (Path(one).resolve() for one in evaluations):
            if not (source / card_sections.SUMMARY).is_file():
                raise ValueError(
                    f"{source} has no {card_sections.SUMMARY}: the evaluation is not finished, or is none"
                )
            if source.name != card_sections.BEFORE:
                tables.append(source / card_sections.SUMMARY)
            if _is_staged(source, folder.resolve(), staged):
                continue
            name = "evaluation" if len(evaluations) == 1 else f"evaluation/{source.name}"
            if (staged / name).exists():
                raise ValueError(f"{source} would be {name} in the repository, as another one is: rename its folder")
            _link(source, staged / name)
        if tables:
            _merge_tables(tables, staged / card_sections.SUMMARY)
        if benchmark is not None:
            _write_benchmark_result(staged, benchmark, repo_id)
        if report is not None:
            (staged / "report.html").unlink(missing_ok=True)
            (staged / "report.html").symlink_to(Path(report).resolve())
        existing = remote_card(repo_id, None, token)
        if (staged / FILE).is_file():
            local = (staged / FILE).read_text(encoding="utf-8")
            existing = local if existing is None else renew_training(existing, local)
        text = compose(staged, existing, repo_id, {})
        return upload(staged, repo_id, text or existing, repo_type=None, private=private, token=token)


def upload(
    folder: Path,
    repo_id: str,
    card: str | None,
    *,
    repo_type: str | None,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Upload a folder in one commit, with `card` as its README.md, to a repository that is made if needed; return its address."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    url = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
    files = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    operations = [CommitOperationAdd(name, path) for name, path in sorted(files.items()) if name != FILE]
    if card is not None:
        operations.insert(0, CommitOperationAdd(FILE, card.encode()))
    api.create_commit(url.repo_id, operations, commit_message="Upload by hf_vla", repo_type=repo_type)
    return str(url)


def remote_card(repo_id: str, repo_type: str | None, token: str | None = None) -> str | None:
    """Return the card that a Hub repository has now, or None."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    try:
        file = HfApi(token=token).hf_hub_download(repo_id, FILE, repo_type=repo_type)
    except (EntryNotFoundError, RepositoryNotFoundError):
        return None
    return Path(file).read_text(encoding="utf-8")


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not _NOT_PUSHED.search(name)]
        yield from (Path(place) / name for name in names if not _NOT_PUSHED.search(name))


def _link(source: Path, target: Path) -> None:
    for path in _files(source):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.symlink_to(path.resolve())


def _is_staged(source: Path, folder: Path, staged: Path) -> bool:
    """Whether an evaluation lies in the pushed folder, and goes along with it."""
    return source.is_relative_to(folder) and (staged / source.relative_to(folder) / card_sections.SUMMARY).exists()


def _write_benchmark_result(staged: Path, benchmark: str, repo_id: str) -> None:
    """Write the success rate as the Hub's leaderboards read it: `.eval_results/DATASET-TASK.yaml`."""
    from huggingface_hub.constants import ENDPOINT

    found = re.fullmatch(r"([\w.-]+/([\w.-]+)):([\w.-]+)", benchmark)
    if not found:
        raise ValueError(
            f"the benchmark is {benchmark!r}; give USER/DATASET:TASK, a dataset on the Hub and a task of its eval.yaml"
        )
    rows = [row for row in card_sections.summary_rows(staged) if row["control"] == "none"]
    simulators = sorted({row["env"] for row in rows})
    if len(simulators) != 1 or len({row["task"] for row in rows}) != len(rows):
        raise ValueError(
            f"{len(rows)} results in {', '.join(simulators) or 'no simulator'} can't be one result of {benchmark}: give "
            "evaluations of one simulator, with each task once"
        )
    episodes = sum(int(row["episodes"]) for row in rows)
    result = {
        "dataset": {"id": found[1], "task_id": found[3]},
        "value": round(100 * sum(float(row["success_rate"]) for row in rows) / len(rows), 2),
        "source": {"url": f"{ENDPOINT}/{repo_id}", "name": "Model card"},
        "notes": f"success rate in {simulators[0]} in percent, mean over tasks; tasks: {len(rows)}, episodes: {episodes}",
    }
    file = staged / ".eval_results" / f"{found[2]}-{found[3]}.yaml"
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    file.write_text(yaml.safe_dump([result], sort_keys=False, allow_unicode=True), encoding="utf-8")


def _merge_tables(tables: Sequence[Path], target: Path) -> None:
    rows = [row for file in tables for row in card_sections.read_summary(file)]
    target.unlink(missing_ok=True)
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


__all__ = ["push_policy", "remote_card", "upload"]
