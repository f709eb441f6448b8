"""One HTML page of a run: settings, curves, speed, memory, evaluations with videos. Everything is inside the page.

What a run has not written yet is said on the page; nothing is needed but the run's folder.
"""

import base64
import csv
import html
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from ..cards.sections import read_json, read_summary
from ..utils.files import atomic_write

#: Files of a training run's folder, either of which tells it, and of an evaluation's.
_TRAINING, _EVALUATION = ("summary.jsonl", "config.yaml"), ("evaluation.json", "episodes.csv")
#: Folders of a run in which its parts may lie, apart from the run's own.
_DEPTH = 2
#: Settings that the page shows on top, if the run has them.
_FACTS = (
    "framework", "policy", "base_vlm", "dataset", "mixture", "robot", "max_steps", "num_train_epochs",
    "per_device_train_batch_size", "global_batch_size", "learning_rate", "module_learning_rates", "freeze_modules", "use_peft",
    "bf16", "seed",
)  # fmt: skip
_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;margin:1.5em auto;max-width:1000px;padding:0 1em}
table{border-collapse:collapse;margin:.6em 0;display:block;overflow-x:auto}
td,th{padding:3px 12px 3px 0;border-bottom:1px solid #8884;text-align:left;vertical-align:top;overflow-wrap:anywhere}
img{max-width:100%;background:#fff;border-radius:6px}
.films{display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:12px}
.films figure{margin:0}.films video{width:100%;border-radius:6px}figcaption{font-size:.85em}
.missing{border-left:4px solid #d97706;padding:.2em .8em;background:#f59e0b22}
pre{overflow-x:auto;font-size:.85em}
"""


@dataclass
class Run:
    """What was found in a run's folder.

    Attributes:
        folder: the run's.
        training: the folder with the training's log, or None.
        evaluations: folders of `hf-vla eval`.
        missing: what the run has not written, or not yet.
    """

    folder: Path
    training: Path | None = None
    evaluations: list[Path] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def find_run(folder: str | Path, evaluations: Sequence[str] = ()) -> Run:
    """Find a training and its evaluations in a folder, its subfolders, and the folders that `evaluations` names.

    Raises:
        OSError: there is no such folder, or nothing in it is of a run.
        ValueError: there are several trainings in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; give the output folder of hf-vla train, eval or quickstart"
        )
    run = Run(folder)
    places = sorted(_folders(folder, _DEPTH), key=lambda place: (len(place.parts), place))
    trainings = [place for place in places if _has(place, _TRAINING)]
    trainings = [place for place in trainings if not any(other in place.parents for other in trainings)]
    if len(trainings) > 1:
        raise ValueError(f"{folder} holds several trainings: {', '.join(map(str, trainings))}; name the folder of one")
    run.training = next(iter(trainings), None)
    run.evaluations = [place for place in places if _has(place, _EVALUATION)]
    for name in map(Path, evaluations):
        if not _has(name, _EVALUATION):
            raise FileNotFoundError(f"{name} holds no evaluation.json; give an output folder of hf-vla eval")
        if name.resolve() not in {place.resolve() for place in run.evaluations}:
            run.evaluations.append(name)
    if run.training is None and not run.evaluations:
        wanted = " nor ".join((*_TRAINING, *_EVALUATION))
        raise FileNotFoundError(
            f"{folder} is not a run's folder: neither {wanted} is in it or its subfolders; give the output folder of "
            "hf-vla train, eval or quickstart"
        )
    return run


def write_report(run: Run, output: str | Path, max_video_megabytes: float = 50.0) -> Path:
    """Write the page.

    Args:
        run: of `find_run`; what it lacks is added to `run.missing`.
        output: the file to write, ending in .html.
        max_video_megabytes: how much of the page may be videos; those beyond it are named instead.
    """
    if Path(output).suffix != ".html":
        raise ValueError(f"the report {output} must end in .html")
    body = [*_training_parts(run), *_evaluation_parts(run, max_video_megabytes)]
    title = html.escape(run.folder.resolve().name)
    missing = ""
    if run.missing:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in run.missing)
        missing = f'<div class="missing"><b>Missing</b><ul>{items}</ul></div>'
    page = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>",
        missing,
        *body,
    ]
    with atomic_write(output) as partial:
        partial.write_text("\n".join(page) + "\n", encoding="utf-8")
    return Path(output)


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    yield folder
    if depth:
        for below in folder.iterdir():
            if below.is_dir() and not below.name.startswith((".", "checkpoint-")):
                yield from _folders(below, depth - 1)


def _has(folder: Path, names: Sequence[str]) -> bool:
    return any((folder / name).is_file() for name in names)


def _training_parts(run: Run) -> Iterator[str]:
    folder = run.training
    if folder is None:
        run.missing.append("a training: no summary.jsonl or config.yaml is here")
        return
    settings = _read_settings(run, folder / "config.yaml")
    rows = _read_log(run, folder / "summary.jsonl")
    yield "<h2>Training</h2>"
    yield _table([], _facts(run, folder, settings, rows))
    if curves := _curves(rows):
        yield "<h3>Curves</h3>"
        yield from (_picture(picture, name) for name, picture in curves.items())
    else:
        run.missing.append("curves: nothing was logged yet")
    if settings:
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        command = "rl" if "episodes_per_iteration" in settings else "train"
        yield f"<details><summary>All settings (hf-vla {command} {html.escape(str(folder / 'config.yaml'))})</summary>"
        yield f"<pre>{html.escape(text)}</pre></details>"


def _facts(run: Run, folder: Path, settings: dict, rows: list[dict]) -> Iterator[list[str]]:
    for name in _FACTS:
        if settings.get(name) not in (None, "", [], {}, False):
            yield [name, str(settings[name])]
    config = read_json(folder / "config.json")
    if config.get("action_horizon"):
        yield ["action chunk", f"{config['action_horizon']} steps of {config.get('action_dim', '?')} numbers"]
    else:
        checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
        last = f"; the last checkpoint is {checkpoints[-1].name}" if checkpoints else ""
        run.missing.append(f"the trained policy: the training has not finished{last}")
    if not rows:
        return
    last = rows[-1]
    wanted = settings.get("max_steps")
    of = f" of {wanted}" if isinstance(wanted, int) and wanted > 0 else ""
    yield ["steps", f"{last.get('step')}{of}, the last logged at {last.get('time', 'an unknown time')}"]
    for name, label, digits in (("loss", "last loss", 4), ("eval_success", "last success rate", 3)):
        if values := _numbers(rows, name):
            yield [label, f"{values[-1]:.{digits}g}"]
    if episodes := _numbers(rows, "rollout/episodes"):
        seconds = sum(_numbers(rows, "seconds/collection") + _numbers(rows, "seconds/update"))
        yield ["learned by acting", f"{episodes[-1]:,.0f} episodes, {seconds / 60:.1f} minutes"]
    elif speeds := _numbers(rows, "samples_per_second"):
        yield ["samples per second", f"{median(speeds):.3g} (median of {len(speeds)} logs)"]
    else:
        run.missing.append("samples per second: the log has none")
    if utilisations := _numbers(rows, "mfu"):
        yield ["MFU", f"{median(utilisations):.1%} (median of {len(utilisations)} logs)"]
    memory = _numbers(rows, "peak_memory_gib")
    if memory:
        yield ["peak memory of the main process", f"{max(memory):.3g} GiB"]
    else:
        run.missing.append("memory: the log has none; runs of this version record it")


def _numbers(rows: list[dict], name: str) -> list[float]:
    """Return what was logged under a name."""
    return [row[name] for row in rows if isinstance(row.get(name), int | float)]


def _evaluation_parts(run: Run, megabytes: float) -> Iterator[str]:
    if not run.evaluations:
        run.missing.append(
            "an evaluation: run hf-vla eval with an output folder inside of the run's, or pass --evaluation"
        )
    left = megabytes * 1e6
    for folder in run.evaluations:
        name = folder.resolve().name if folder == run.folder else folder
        yield f"<h2>Evaluation: {html.escape(str(name))}</h2>"
        table = folder / "success_summary.csv"
        rows = read_summary(table) if table.is_file() else []
        if rows:
            columns = ["simulator", "task", "policy", "solved", "95 % interval"]
            yield _table(columns, ([*_of_row(row, len(run.evaluations) > 1)] for row in rows))
        else:
            run.missing.append(
                f"the results of {folder}: {_episodes(folder)} episodes are finished; the same command goes on"
            )
        picture = folder / "success_summary.png"
        if picture.is_file():
            yield _picture(picture.read_bytes(), "success rates")
        films, omitted = [], []
        for file in sorted((folder / "videos").glob("*.mp4")):
            left -= (size := file.stat().st_size)
            (films if left >= 0 else omitted).append(file)
            left += size if left < 0 else 0
        if films:
            yield f'<div class="films">{"".join(map(_film, films))}</div>'
        else:
            run.missing.append(f"videos of {folder}" + (": larger than --max-video-megabytes" if omitted else ""))
        if omitted and films:
            yield f"<p>{len(omitted)} more videos are in {html.escape(str(folder / 'videos'))}.</p>"


def _of_row(row: dict[str, str], with_name: bool) -> Iterator[str]:
    policy = "this one" if row["control"] == "none" else row["control"]
    yield from (row["env"], row["task"], row.get("policy", policy) if with_name else policy)
    yield f"{row['successes']} of {row['episodes']}"
    yield f"{float(row['wilson_low']):.2f} to {float(row['wilson_high']):.2f}"


def _episodes(folder: Path) -> int:
    file = folder / "episodes.csv"
    if not file.is_file():
        return 0
    with file.open(newline="", encoding="utf-8", errors="replace") as opened:
        return sum(1 for _ in csv.DictReader(opened))


def _read_settings(run: Run, file: Path) -> dict:
    if not file.is_file():
        run.missing.append(f"the settings: {file.name} is not here")
        return {}
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no settings; is {file.parent} the output of hf-vla train?")
    return {name: value for name, value in content.items() if value is not None}


def _read_log(run: Run, file: Path) -> list[dict[str, Any]]:
    from ..training.run_log import read_summary as read_log

    if not file.is_file():
        run.missing.append(f"the log: {file.name} is not here")
        return []
    try:
        rows = [row for row in read_log(file) if isinstance(row, dict) and isinstance(row.get("step"), int)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} can't be read: {error}; is {file.parent} the output of hf-vla train?") from error
    if not rows:
        run.missing.append(f"the log: {file.name} has no lines yet")
    return rows


def _curves(rows: list[dict[str, Any]]) -> dict[str, bytes]:
    """Return the pictures of a log by what they show; those without data are left out."""
    from ..training.rl_curves import plot_learning
    from ..training.run_log import plot_curves

    plots = {"training curves": plot_curves}
    if _numbers(rows, "rollout/success_once"):
        plots = {"learning by acting": plot_learning, **plots}
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "curves.png"
        return {name: picture.read_bytes() for name, plot in plots.items() if plot(rows, picture)}


def _table(columns: Sequence[str], rows) -> str:
    head = f"<tr>{''.join(f'<th>{html.escape(name)}</th>' for name in columns)}</tr>" if columns else ""
    lines = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{head}{lines}</table>"


def _picture(content: bytes, alternative: str) -> str:
    return f'<img alt="{html.escape(alternative)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'


def _film(file: Path) -> str:
    data = base64.b64encode(file.read_bytes()).decode()
    return (
        f'<figure><video controls muted preload="metadata" src="data:video/mp4;base64,{data}"></video>'
        f"<figcaption>{html.escape(file.stem)}</figcaption></figure>"
    )


__all__ = ["Run", "find_run", "write_report"]
