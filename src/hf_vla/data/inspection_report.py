"""A dataset on one page: its facts, what looks odd, the ranges, and some episodes as pictures and curves."""

import base64
from html import escape
from io import BytesIO
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np

from ..utils.files import atomic_write
from .inspection import Description
from .lerobot import LeRobotDataset

_MAX_EPISODES = 3
_MAX_CURVES = 12
_COLUMNS = ("part", "index", "name", "min", "q01", "mean", "q99", "max", "std")
_STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2em auto;max-width:1100px;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}td,th{padding:3px 10px;border-bottom:1px solid #ddd;text-align:right}"
    "td:first-child,th:first-child{text-align:left}li.odd{color:#a40000}img{max-width:100%}"
)


def report_path(output: str | Path | None) -> Path | None:
    """`output` as a path.

    Raises:
        ValueError: it ends neither in .html nor in .png.
    """
    if output is not None and Path(output).suffix not in (".html", ".png"):
        raise ValueError(f"the report {output} must end in .html or .png")
    return None if output is None else Path(output)


def write_report(output: str | Path, dataset: LeRobotDataset, description: Description, checked: bool) -> Path:
    """Write a self-contained `.html`, or the pictures and curves alone as a `.png`.

    Args:
        checked: whether `check` found that everything can be read.

    Raises:
        ValueError: another ending.
        OSError: it cannot be written.
    """
    output = report_path(output)
    picture = _figure(dataset)
    if output.suffix == ".png":
        with atomic_write(output) as partial:
            partial.write_bytes(picture)
        return output
    read = "Every row and frame was read." if checked else "Not every frame was read; --check does that."
    parts = [
        f"<!doctype html><meta charset='utf-8'><title>{escape(dataset.name)}</title><style>{_STYLE}</style>",
        f"<h1>{escape(Path(dataset.name).name)}</h1>",
        _table([{"": name, "value": value} for name, value in description.facts.items()], ("", "value")),
        "<h2>Looks odd</h2>" + _list(description.suspicious or ["nothing"], bool(description.suspicious)),
        f"<p>{read}</p>",
        "<h2>Ranges</h2>" + _table(description.dimensions, _COLUMNS),
        "<h2>Instructions</h2>" + _list(dataset.instructions[:50], False),
        f"<h2>Episodes</h2><img src='data:image/png;base64,{base64.b64encode(picture).decode()}'>",
    ]
    with atomic_write(output) as partial:
        partial.write_text("\n".join(parts), encoding="utf-8")
    return output


def format_description(description: Description) -> str:
    """Facts, ranges and what looks odd as plain text."""
    width = max(map(len, description.facts))
    lines = [f"{name:<{width}}  {value}" for name, value in description.facts.items()]
    lines += ["", "  ".join(f"{name:>10}" for name in _COLUMNS)]
    lines += ["  ".join(f"{_text(row[name]):>10}" for name in _COLUMNS) for row in description.dimensions]
    lines += ["", "looks odd:", *(f"  - {line}" for line in description.suspicious or ["nothing"])]
    return "\n".join(lines)


def _figure(dataset: LeRobotDataset) -> bytes:
    from matplotlib.figure import Figure

    lengths = dataset.metadata.length
    starts = np.cumsum(lengths) - lengths
    episodes = np.unique(np.linspace(0, len(lengths) - 1, _MAX_EPISODES).astype(int)).tolist()
    cameras = len(dataset.cameras)
    columns = max(3, 3 * cameras)
    figure = Figure(figsize=(2.2 * columns, 7 * len(episodes)), layout="constrained")
    rows = figure.subfigures(len(episodes), 1, squeeze=False)[:, 0]
    for row, part in zip(episodes, rows, strict=True):
        first, last = int(starts[row]), int(starts[row] + lengths[row] - 1)
        item = dataset[first]
        part.suptitle(_label(f"episode {dataset.episode_indices[row]}: {item['lang']}"))
        top, bottom = part.subfigures(2, 1, height_ratios=[2, 3])
        if cameras:
            axes = top.subplots(1, 3 * cameras, squeeze=False)[0]
            for position, index in enumerate((first, (first + last) // 2, last)):
                images = dataset[index]["image"][-cameras:]
                for camera, image in enumerate(images):
                    axis = axes[position * cameras + camera]
                    axis.imshow(np.asarray(image))
                    axis.set_title(f"{dataset.cameras[camera].rsplit('.', 1)[-1]}, frame {index - first}", fontsize=8)
                    axis.axis("off")
        table, of_episode = dataset.episode_table(row)
        curves = [("action", table.action[of_episode], dataset.action_names)]
        if table.state is not None:
            curves.append(("state", table.state[of_episode], dataset.state_names))
        for axis, (name, values, names) in zip(bottom.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
            shown = values[:, :_MAX_CURVES]
            axis.plot(np.arange(len(shown)) / dataset.fps, shown, linewidth=1)
            axis.set(title=name, xlabel="seconds")
            labels = names or range(values.shape[1])
            axis.legend([_label(str(label)) for label in labels[:_MAX_CURVES]], fontsize=7, loc="upper right")
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=70)
    return stream.getvalue()


def _label(text: str) -> str:
    """Return a text as a label: Matplotlib takes what is between two dollar signs for a formula."""
    return shorten(text, 120).replace("$", r"\$") or " "


def _table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_text(row[name]))}</td>" for name in columns) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _list(lines: list[str], odd: bool) -> str:
    kind = " class='odd'" if odd else ""
    return "<ul>" + "".join(f"<li{kind}>{escape(line)}</li>" for line in lines) + "</ul>"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
