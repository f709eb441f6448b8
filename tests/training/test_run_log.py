"""The picture of a run: what is drawn, and in which panel."""

import math

from matplotlib.figure import Figure

from hf_vla.training.run_log import plot_curves

ROWS = [
    {"step": 5, "loss": 2.0, "action_loss": 1.5, "vlm_loss": 5.0, "learning_rate": 1e-4, "learning_rate/vlm": 1e-5},
    {"step": 5, "eval_loss": 1.4, "eval_action_error": 0.3, "eval_action_error/arm/x": 0.02, "eval_success": 0.2},
    {"step": 10, "loss": 0.2, "action_loss": 0.1, "vlm_loss": 1.0, "learning_rate": 5e-5, "learning_rate/vlm": 5e-6},
    {"step": 10, "eval_loss": 1.0, "eval_action_error": 0.2, "eval_success": 0.5, "eval_success/reach": 0.5},
    {"step": 10, "train_loss": 1.1, "train_runtime": 3.0},
]


def drawn(rows, path, monkeypatch) -> dict[str, dict[str, list[float]]]:
    """By panel and curve, the values that are drawn."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (figures.append(figure), save(figure, *a, **k)))
    assert plot_curves(rows, path)
    [figure] = figures
    return {
        axes.get_ylabel(): {line.get_label(): line.get_ydata().tolist() for line in axes.get_lines()}
        for axes in figure.get_axes()
    }


def test_every_kind_of_number_in_its_panel(tmp_path, monkeypatch):
    file = tmp_path / "new" / "loss.png"
    panels = drawn(ROWS, file, monkeypatch)
    assert panels == {
        "training loss": {"loss": [2.0, 0.2], "action_loss": [1.5, 0.1], "vlm_loss": [5.0, 1.0]},
        "learning rate": {"learning_rate/vlm": [1e-5, 5e-6]},
        "evaluation": {"eval_loss": [1.4, 1.0], "eval_action_error": [0.3, 0.2]},
        "success rate": {"eval_success": [0.2, 0.5], "eval_success/reach": [0.5]},
    }
    assert file.read_bytes().startswith(b"\x89PNG") and [path.name for path in file.parent.iterdir()] == ["loss.png"]


def test_one_learning_rate_where_there_are_no_groups_and_a_loss_that_is_none(tmp_path, monkeypatch):
    rows = [{"step": 1, "loss": 1.0, "learning_rate": 0.0}, {"step": 2, "loss": math.nan, "learning_rate": 1e-3}]
    panels = drawn(rows, tmp_path / "loss.png", monkeypatch)
    assert panels["learning rate"] == {"learning_rate": [0.0, 1e-3]} and list(panels["training loss"]) == ["loss"]


def test_nothing_to_draw(tmp_path):
    assert not plot_curves([{"step": 3, "train_runtime": 1.0}], tmp_path / "loss.png")
    assert not list(tmp_path.iterdir())
