"""Figures as HTML: one picture per dimension, so that they flow from one column on a phone to several on a desktop."""

import base64
import html
import io
import threading
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from PIL import Image

_SETTINGS = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.edgecolor": "0.6",
    "svg.hashsalt": "hf_vla",
}
_BLUE, _ORANGE = "#2563eb", "#ea580c"
_HEAT = colormaps["inferno"]
# matplotlib's settings and caches are the process's, and sliders are answered by several threads.
_LOCK = threading.Lock()


def chunk_plots(actions: np.ndarray, names: Sequence[str]) -> str:
    """Plot samples of an action chunk, (N, H, D) in robot units: one plot per dimension, with all samples, mean and range."""
    steps = np.arange(1, actions.shape[1] + 1)

    def draw(axes, dimension: int) -> None:
        values = actions[:, :, dimension]
        if len(values) > 1:
            axes.fill_between(steps, values.min(0), values.max(0), color=_BLUE, alpha=0.12, lw=0)
            axes.plot(steps, values.T, color=_BLUE, alpha=0.35, lw=0.8)
        axes.plot(steps, values.mean(0), color=_BLUE, lw=2, marker="o", ms=3)

    legend = (
        "blue: the chunk" if len(actions) == 1 else f"thick: mean of {len(actions)} samples; thin: each; band: range"
    )
    return _per_dimension(draw, names, steps, legend)


def comparison_plots(chunks: Sequence[np.ndarray], labels: Sequence[str], names: Sequence[str]) -> str:
    """Plot two policies' chunks (N, H, D), which may differ in N and H, on the same axes: the first blue, the second orange."""
    colors = (_BLUE, _ORANGE)
    steps = np.arange(1, max(chunk.shape[1] for chunk in chunks) + 1)

    def draw(axes, dimension: int) -> None:
        for chunk, color in zip(chunks, colors, strict=True):
            values, own = chunk[:, :, dimension], steps[: chunk.shape[1]]
            if len(values) > 1:
                axes.fill_between(own, values.min(0), values.max(0), color=color, alpha=0.12, lw=0)
            axes.plot(own, values.mean(0), color=color, lw=2, marker="o", ms=3)

    legend = f"blue: {labels[0]}; orange: {labels[1]}; bands: range of the samples"
    return _per_dimension(draw, names, steps, legend)


def formation_plots(chunks: np.ndarray, names: Sequence[str], step: int) -> str:
    """Plot how the first sample forms from noise: chunks (S + 1, N, H, D) in robot units, gray to blue, step `step` orange."""
    steps = np.arange(1, chunks.shape[2] + 1)
    shades = colormaps["Blues"](np.linspace(0.25, 1, len(chunks)))

    def draw(axes, dimension: int) -> None:
        for index, chunk in enumerate(chunks[:, 0, :, dimension]):
            axes.plot(steps, chunk, color="0.65" if index == 0 else shades[index], lw=1, ls=":" if index == 0 else "-")
        axes.plot(steps, chunks[step, 0, :, dimension], color=_ORANGE, lw=2, marker="o", ms=3)

    legend = f"dotted: noise; light to dark blue: denoising steps; orange: after step {step} of {len(chunks) - 1}"
    return _per_dimension(draw, names, steps, legend)


def _per_dimension(draw, names: Sequence[str], steps: np.ndarray, legend: str) -> str:
    with _LOCK, rc_context(_SETTINGS):
        pictures = []
        for dimension, name in enumerate(names):
            figure = Figure(figsize=(3.6, 2.1), layout="constrained")
            axes = figure.add_subplot(title=_plain(name), xlabel="step of the chunk", ylabel="robot units")
            draw(axes, dimension)
            axes.set_xticks(steps[:: max(1, len(steps) // 8)])
            pictures.append(_svg(figure, f"{name} over the steps of the chunk"))
    return f'<p class="legend">{html.escape(legend)}</p><div class="grid">{"".join(pictures)}</div>'


def position_dimensions(names: Sequence[str]) -> tuple[list[int], bool] | None:
    """Return which dimensions are the end effector's x, y, z, and whether their names say that they are displacements.

    "dx", "delta_x" and "x_delta" are displacements, "x" may be either; None if there are not three of one kind.
    """
    plain = [name.lower().removeprefix("action.").replace(".", "_") for name in names]
    for displaced, patterns in ((True, ("d{}", "delta_{}", "{}_delta")), (False, ("{}", "eef_{}", "ee_{}"))):
        for pattern in patterns:
            wanted = [pattern.format(axis) for axis in "xyz"]
            if all(name in plain for name in wanted):
                return [plain.index(name) for name in wanted], displaced
    return None


def path_plots(actions: np.ndarray, names: Sequence[str], displacements: bool) -> str:
    """Plot the end effector's path in each sample, (N, H, D): in space, from above, from the side; displacements are summed up."""
    found = position_dimensions(names)
    if found is None:
        shown = ", ".join(names[:12])
        return f'<p class="note">No path: no action dimensions are named x, y, z or dx, dy, dz; they are {html.escape(shown)}.</p>'
    points = actions[:, :, found[0]].astype(float)
    if displacements:
        points = np.concatenate([np.zeros_like(points[:, :1]), points.cumsum(1)], axis=1)
    with _LOCK, rc_context(_SETTINGS):
        space = Figure(figsize=(2.8, 2.7))
        axes = space.add_axes((0.0, 0.08, 0.86, 0.82), projection="3d")
        space.suptitle("in space", fontsize=10, y=0.97)
        for way in points:
            axes.plot(*way.T, color=_BLUE, lw=1.2, alpha=0.9 if len(points) == 1 else 0.5)
            axes.scatter(*way[0], color="black", s=20)
            axes.scatter(*way[-1], color=_ORANGE, s=14)
        axes.set(xlabel="x", ylabel="y", zlabel="z")
        axes.tick_params(labelsize=6, pad=-1)
        pictures = [_svg(space, "path of the end effector in space")]
        for title, first, second in (("from above", 0, 1), ("from the side", 1, 2)):
            figure = Figure(figsize=(2.8, 2.7), layout="constrained")
            axes = figure.add_subplot(title=title, xlabel="xyz"[first], ylabel="xyz"[second])
            axes.plot(points[:, :, first].T, points[:, :, second].T, color=_BLUE, lw=1.2, alpha=0.5)
            axes.plot(points[:, 0, first], points[:, 0, second], "o", color="black", ms=5)
            axes.plot(points[:, -1, first], points[:, -1, second], "o", color=_ORANGE, ms=4)
            axes.set_aspect("equal", "datalim")
            axes.locator_params(nbins=5)
            pictures.append(_svg(figure, f"path of the end effector {title}"))
    what = "sums of the displacements, from where it is now" if displacements else "positions"
    return (
        f'<p class="legend">End effector, {what}, in the actions’ units; black: start, orange: end of the chunk</p>'
        f'<div class="grid thirds">{"".join(pictures)}</div>'
    )


def heat_map(
    image: Image.Image, weights: np.ndarray, size: int = 384, limits: tuple[float, float] | None = None
) -> str:
    """Draw attention weights (rows, columns) over the image that they belong to, as an `<img>`.

    `limits` are the weights shown darkest and brightest, by default the map's smallest and largest.
    """
    low, high = limits or (float(weights.min()), float(weights.max()))
    scaled = np.clip((weights - low) / max(high - low, 1e-12), 0, 1)
    small = Image.fromarray((scaled * 255).astype(np.uint8))
    factor = size / max(image.size)
    shape = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    heat = np.asarray(small.resize(shape, Image.Resampling.BICUBIC)) / 255
    picture = np.asarray(image.convert("L").convert("RGB").resize(shape, Image.Resampling.BICUBIC)) / 255
    # What is not attended stays visible, in gray; what is glows.
    opacity = (0.15 + 0.75 * heat)[..., None]
    blended = picture * (1 - opacity) + _HEAT(heat)[..., :3] * opacity
    return image_tag(Image.fromarray((blended * 255).astype(np.uint8)), "attention over the image")


def image_tag(image: Image.Image, alternative: str, quality: int = 85) -> str:
    """Return the image as part of the page: no file is left behind, and no further request is made."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img decoding="sync" alt="{html.escape(alternative, quote=True)}" src="data:image/jpeg;base64,{data}">'


def _svg(figure: Figure, alternative: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alternative, quote=True)}" src="data:image/svg+xml;base64,{data}">'


def _plain(name: str) -> str:
    return name.replace("$", r"\$")  # no formula
