"""The package's layers: imports run downward only, and no files import each other in a circle; lazy imports count too."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"
#: From the bottom up; rooms of one layer do not import each other. A framework's folder is above what all frameworks share.
LAYERS = (
    ("_version", "utils", "hub", "plugins", "transformers_internals"),
    ("registry",),
    ("robots",),
    ("cards",),
    ("data",),
    ("checkpoints",),
    ("processing",),
    ("modeling",),
    ("a framework",),
    ("inference",),
    ("serving",),
    ("evaluation",),
    ("training_args",),
    ("training",),
    ("demo",),
    ("commands",),
    ("auto", "__main__"),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
MODULES = {
    ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): file
    for file in (SOURCE / "hf_vla").rglob("*.py")
}
IMPORTS = {}
for module, file in MODULES.items():
    package = (module if file.name == "__init__.py" else module.rpartition(".")[0]).split(".")
    IMPORTS[module] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            IMPORTS[module] |= {alias.name for alias in node.names} & MODULES.keys()
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            names = {f"{source}.{alias.name}" for alias in node.names}
            IMPORTS[module] |= (
                (names | {source}) & MODULES.keys() if names & MODULES.keys() else {source} & MODULES.keys()
            )


def room(module: str) -> str:
    _, first, *rest = [*module.split("."), ""]
    return (
        "a framework"
        if first == "modeling" and MODULES.get(f"hf_vla.modeling.{rest[0]}", SOURCE).name == "__init__.py"
        else first
    )


def test_every_room_has_a_layer():
    assert {room(module) for module in MODULES if module != "hf_vla"} <= LEVEL.keys()


def test_imports_run_downward():
    upward = {
        f"{module} -> {target}"
        for module, targets in IMPORTS.items()
        for target in targets
        if "hf_vla" not in (module, target) and room(module) != room(target)
        if LEVEL[room(target)] >= LEVEL[room(module)]
    }
    assert not upward, "\n".join(sorted(upward))


def test_no_circles():
    packages = {module for module, file in MODULES.items() if file.name == "__init__.py"}
    TopologicalSorter({m: t - packages - {m} for m, t in IMPORTS.items() if m not in packages}).prepare()
