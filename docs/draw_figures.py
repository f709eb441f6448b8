"""The diagrams of the documentation, as SVG files that need no network and read well on light and dark pages.

python docs/draw_figures.py
"""

import html
from collections.abc import Sequence
from pathlib import Path

IMAGES = Path(__file__).resolve().parent / "images"

# What a box stands for -> fill and border.
_COLORS = {
    "data": ("#f1f5f9", "#64748b"),
    "backbone": ("#dbeafe", "#2563eb"),
    "head": ("#ffedd5", "#ea580c"),
    "code": ("#dcfce7", "#15803d"),
}
_LINE, _PAD, _GAP_X, _GAP_Y, _CHAR = 17, 12, 52, 22, 7.1

Box = tuple[str, str, str]  # name, kind, text with "\n"


def draw(columns: Sequence[Sequence[Box]], arrows: Sequence[tuple[str, str, str]], title: str) -> str:
    """Lay boxes out in columns from left to right, and draw labelled arrows between them.

    Args:
        columns: of boxes, each `(name, kind, text)`.
        arrows: `(from, to, label)`.
        title: what the picture shows, for those who don't see it.
    """
    places, x = {}, _PAD
    heights = [sum(_height(text) for _, _, text in column) + _GAP_Y * (len(column) - 1) for column in columns]
    full = max(heights)
    labels = {(a, b): label for a, b, label in arrows}
    for number, (column, height) in enumerate(zip(columns, heights, strict=True)):
        width = max(_width(text) for _, _, text in column)
        y = _PAD + (full - height) / 2
        for name, kind, text in column:
            places[name] = (x, y, width, _height(text), kind, text)
            y += _height(text) + _GAP_Y
        leaving = {name for name, _, _ in column}
        longest = max((len(label) for (a, _), label in labels.items() if a in leaving), default=0)
        x += width + (0 if number == len(columns) - 1 else max(_GAP_X, _CHAR * 0.86 * longest + 22))
    total_width, total_height = x + _PAD, full + 2 * _PAD
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total_width:.0f} {total_height:.0f}" '
        f'width="{total_width:.0f}" font-family="system-ui, sans-serif" font-size="13" role="img">',
        f"<title>{html.escape(title)}</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#475569"/></marker></defs>',
        '<rect width="100%" height="100%" rx="8" fill="#ffffff"/>',
    ]
    for source, target, label in arrows:
        parts.append(_arrow(places[source], places[target], label))
    for left, top, width, height, kind, text in places.values():
        fill, border = _COLORS[kind]
        parts.append(
            f'<rect x="{left:.0f}" y="{top:.0f}" width="{width:.0f}" height="{height:.0f}" rx="6" fill="{fill}" '
            f'stroke="{border}"/>'
        )
        for number, line in enumerate(text.split("\n")):
            weight = ' font-weight="600"' if number == 0 else ""
            baseline = top + 8 + 13 + number * _LINE
            parts.append(
                f'<text x="{left + width / 2:.0f}" y="{baseline:.0f}" text-anchor="middle" fill="#0f172a"{weight}>'
                f"{html.escape(line)}</text>"
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _width(text: str) -> float:
    return max(len(line) for line in text.split("\n")) * _CHAR + 20


def _height(text: str) -> float:
    return len(text.split("\n")) * _LINE + 16


def _arrow(source, target, label: str) -> str:
    start = (source[0] + source[2], source[1] + source[3] / 2)
    end = (target[0], target[1] + target[3] / 2)
    if source[0] == target[0]:  # one above the other
        middle, down = source[0] + source[2] / 2, source[1] < target[1]
        start = (middle, source[1] + source[3] * down)
        end = (middle, target[1] + target[3] * (not down))
    line = f'<path d="M{start[0]:.0f} {start[1]:.0f} L{end[0]:.0f} {end[1]:.0f}" stroke="#475569" fill="none" marker-end="url(#tip)"/>'
    if not label:
        return line
    x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2 - 6
    return f'{line}<text x="{x:.0f}" y="{y:.0f}" text-anchor="middle" fill="#475569" font-size="11" paint-order="stroke" stroke="#ffffff" stroke-width="4">{html.escape(label)}</text>'


_INPUTS = [
    ("images", "data", "images\nV views"),
    ("text", "data", "instruction"),
]
_STATE = ("state", "data", "robot state")
_VLM = ("vlm", "backbone", "backbone\nN layers")
_CHUNK = ("chunk", "data", "action chunk\nH × D")
_NOISE = ("noise", "data", "noise, then its\nown last output")
_READ = [("images", "vlm", ""), ("text", "vlm", "")]


def _denoising(name: str, label: str, head: str, own: Box, state_to: str = "head", middle: Sequence[Box] = ()) -> str:
    """The figure of a framework that denoises; `own` is what its head reads of its own."""
    first, second = ([*_INPUTS, _STATE], [_VLM]) if state_to == "vlm" else (_INPUTS, [_VLM, _STATE])
    columns = [column for column in (first, second, middle, [("head", "head", head), own], [_CHUNK]) if column]
    arrows = [*_READ, ("state", state_to, ""), (own[0], "head", ""), ("head", "chunk", "")]
    way = ["vlm", *(box[0] for box in middle), "head"]
    arrows += [(a, b, label if a == "vlm" else "") for a, b in zip(way, way[1:], strict=False)]
    return draw(columns, arrows, f"{name}: from images and instruction to an action chunk")


def figures() -> dict[str, str]:
    """Return every diagram by its file's name without suffix."""
    return {
        "camera-to-motor": draw(
            [
                [("camera", "data", "cameras"), ("person", "data", "instruction"), ("joints", "data", "joint sensors")],
                [("processor", "code", "processor\nresize, prompt, tokens\nnormalise the state")],
                [("model", "backbone", "model\nbackbone\naction head")],
                [("un", "code", "processor\nun-normalise by\nunnorm_key")],
                [("control", "code", "control loop\nacts k of H steps,\nthen looks again")],
                [("motor", "data", "motors")],
            ],
            [
                ("camera", "processor", "images"),
                ("person", "processor", "text"),
                ("joints", "processor", "state"),
                ("processor", "model", "tensors"),
                ("model", "un", "normalised chunk"),
                ("un", "control", "robot units"),
                ("control", "motor", "action"),
            ],
            "From camera to motor: processor, model, un-normalisation, control loop",
        ),
        "training": draw(
            [
                [("data", "data", "LeRobot dataset\nv2.0, v2.1, v3.0"), ("talk", "data", "conversations\n(co-training)")],
                [("mixture", "code", "mixture\nweights, order,\naugmentation")],
                [("collator", "code", "collator\nthe processor, in\nthe loader's workers")],
                [("model", "backbone", "model\nforward: the loss")],
                [("trainer", "code", "trainer\nTrainer of transformers")],
                [("policy", "data", "policy's folder\nweights, config,\nstatistics, card")],
            ],
            [
                ("data", "mixture", "items"),
                ("talk", "mixture", ""),
                ("mixture", "collator", ""),
                ("collator", "model", "tensors"),
                ("model", "trainer", "loss"),
                ("trainer", "policy", ""),
            ],
            "Training: from datasets to a policy's folder",
        ),
        "qwen_pi_v3": _denoising(
            "QwenPI_v3", "h[1] … h[N]",
            "flow-matching head\nN narrow blocks;\nblock i reads h[i + 1]",
            _NOISE, state_to="vlm", middle=[("project", "head", "projectors\none per layer")],
        ),
        "qwen_pi": _denoising(
            "QwenPI", "h[1] … h[N]",
            "flow-matching head\nN blocks as wide as the\nbackbone; i reads h[i + 1]", _NOISE,
        ),
        "qwen_gr00t": _denoising(
            "QwenGR00T", "h[N]",
            "flow-matching head\nevery block that attends\nthe backbone reads h[N]", _NOISE,
        ),
        "qwen_dual": draw(
            [
                [("text", "data", "instruction"), ("images", "data", "images\nV views")],
                [_VLM, ("dino", "backbone", "DINOv2\nevery view"), _STATE],
                [("head", "head", "flow-matching head\nblocks read h[N] and\nDINO's patch tokens"), _NOISE],
                [_CHUNK],
            ],
            [*_READ, ("images", "dino", ""), ("state", "head", ""), ("noise", "head", ""), ("vlm", "head", "h[N]"), ("dino", "head", "patch tokens"), ("head", "chunk", "")],
            "QwenDual: backbone and DINOv2 condition a flow-matching head",
        ),
        "qwen_oft": draw(
            [
                [*_INPUTS, _STATE, ("marks", "data", "H placeholders")],
                [_VLM],
                [("head", "head", "MLP\nthe same for\nevery placeholder")],
                [_CHUNK],
            ],
            [*_READ, ("state", "vlm", ""), ("marks", "vlm", ""), ("vlm", "head", "h[N] at the placeholders"), ("head", "chunk", "")],
            "QwenOFT: actions regressed from placeholder tokens",
        ),
        "qwen_fast": draw(
            [
                _INPUTS,
                [("vlm", "backbone", "backbone\nwith its language-model head")],
                [("bpe", "code", "FAST tokenizer\nBPE, inverse DCT")],
                [_CHUNK],
            ],
            [*_READ, ("vlm", "bpe", "action tokens, one by one"), ("bpe", "chunk", "")],
            "QwenFAST: the language model writes action tokens",
        ),
        "qwen_adapter": draw(
            [
                [*_INPUTS, ("queries", "head", "learned queries\nin the prompt")],
                [_VLM, _STATE],
                [("head", "head", "regression head\nblock i reads the states of\nqueries and images in h[i]")],
                [_CHUNK],
            ],
            [*_READ, ("queries", "vlm", ""), ("state", "head", ""), ("vlm", "head", "h[1] … h[N]"), ("head", "chunk", "")],
            "QwenAdapter: learned queries and a block per layer",
        ),
        "qwen_discrete_diffusion": _denoising(
            "QwenDiscreteDiffusion", "h[1] … h[N]",
            "classifier of bins\nN blocks as wide as the\nbackbone; i reads h[i + 1]",
            ("bins", "data", "masked bins; the surest\nare kept in each round"),
        ),
    }  # fmt: skip


def main() -> None:
    for name, picture in figures().items():
        (IMAGES / f"{name}.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
