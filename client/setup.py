"""Build hf-vla-client: the part of hf_vla that evaluates a served policy in a simulator, for Python 3.8 and newer.

The files are those of ../src/hf_vla. What Python 3.8 does not know in them is written as it does: annotations are not evaluated, and a
few calls lose what newer versions added. Records of benchmarks become JSON, so that PyYAML is not needed.
"""

import ast
import json
import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SOURCE = Path(__file__).resolve().parents[1] / "src" / "hf_vla"
#: Files, and folders of which all modules are taken, without these.
MODULES = (
    "_version.py",
    "plugins.py",
    "utils",
    "data/__init__.py",
    "data/checks.py",
    "data/video_writer.py",
    "processing/__init__.py",
    "processing/input_contract.py",
    "inference/__init__.py",
    "inference/chunk_rules.py",
    "inference/observations.py",
    "inference/policy_runner.py",
    "inference/trained_inputs.py",
    "serving/client.py",
    "serving/logs.py",
    "serving/packing.py",
    "evaluation",
)
WITHOUT = (
    "evaluation/collection.py",
    "evaluation/demonstrations.py",
    "evaluation/gymnasium.py",
    "evaluation/metaworld.py",
    "evaluation/recording.py",
    "evaluation/remote_simulators.py",
    "evaluation/success.py",
    "utils/pillow.py",
    "utils/renamed.py",
)
#: What the client has instead of the package's own: they import or offer more than it has.
OWN = {
    "__init__.py": '''"""The part of hf_vla that evaluates a served policy in a simulator; see `hf_vla.evaluation.client`."""

from ._version import __version__
from .utils.lazy import lazy_names

_LAZY = {"PolicyClient": "serving.client", "register_environment": "evaluation.environments"}

__all__ = ["__version__", *sorted(_LAZY)]
__getattr__, __dir__ = lazy_names(__name__, _LAZY)
''',
    "serving/__init__.py": '''"""The client of policy servers."""

from .client import PolicyClient

__all__ = ["PolicyClient"]
''',
}


def modules():
    """Return the paths of the client's modules below hf_vla."""
    found = [
        file
        for name in MODULES
        for file in ([SOURCE / name] if name.endswith(".py") else (SOURCE / name).glob("*.py"))
    ]
    return [name for name in (file.relative_to(SOURCE).as_posix() for file in sorted(found)) if name not in WITHOUT]


class ForPython38(ast.NodeTransformer):
    """Write a module without what Python 3.8 does not have."""

    def visit_Call(self, node):
        self.generic_visit(node)
        name = getattr(node.func, "id", None)
        if name == "zip":
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "strict"]
        elif name == "dataclass":
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "kw_only"]
        elif name == "isinstance" and isinstance(node.args[1], ast.BinOp):
            node.args[1] = ast.Tuple(self._members(node.args[1]), ast.Load())
        elif getattr(node.func, "attr", None) == "shutdown":
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "cancel_futures"]
        return node

    def visit_BinOp(self, node):
        self.generic_visit(node)
        if isinstance(node.op, ast.BitOr) and {type(node.left), type(node.right)} & {ast.Dict, ast.DictComp}:
            return ast.Dict([None, None], [node.left, node.right])
        return node

    def visit_AugAssign(self, node):
        self.generic_visit(node)
        if isinstance(node.op, ast.BitOr) and isinstance(node.value, (ast.Dict, ast.DictComp)):
            now = ast.parse(ast.unparse(node.target), mode="eval").body
            return ast.Assign([node.target], ast.Dict([None, None], [now, node.value]))
        return node

    def visit_Attribute(self, node):
        self.generic_visit(node)
        if node.attr == "cache" and getattr(node.value, "id", None) == "functools":
            return ast.parse("functools.lru_cache(maxsize=None)", mode="eval").body
        return node

    def visit_ImportFrom(self, node):
        if node.module == "functools" and any(alias.name == "cache" for alias in node.names):
            return ast.parse("import functools\ncache = functools.lru_cache(maxsize=None)").body
        return node

    def _members(self, node):
        """The types of `A | B | C`; None stands for its type."""
        if isinstance(node, ast.BinOp):
            return [*self._members(node.left), *self._members(node.right)]
        if isinstance(node, ast.Constant) and node.value is None:
            return [ast.parse("type(None)", mode="eval").body]
        return [node]


def for_python_38(source):
    """Return a module's source for Python 3.8."""
    tree = ForPython38().visit(ast.parse(source))
    future = ast.parse("from __future__ import annotations").body
    has_docstring = ast.get_docstring(tree) is not None
    if not any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body):
        tree.body[int(has_docstring) : int(has_docstring)] = future
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


class BuildClient(build_py):
    """Take the files from ../src/hf_vla instead of packages beside setup.py."""

    data_files = ()

    def get_source_files(self):
        return []

    def run(self):
        import yaml

        target = Path(self.build_lib) / "hf_vla"
        for name in modules():
            self.write(target / name, for_python_38((SOURCE / name).read_text(encoding="utf-8")))
        for name, text in OWN.items():
            self.write(target / name, text)
        for record in sorted((SOURCE / "evaluation" / "benchmarks").glob("*.yaml")):
            content = yaml.safe_load(record.read_text(encoding="utf-8"))
            self.write(target / "evaluation" / "benchmarks" / f"{record.stem}.json", json.dumps(content, indent=1))

    def write(self, file, text):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def get_outputs(self, include_bytecode=True):
        records = [
            f"evaluation/benchmarks/{f.stem}.json" for f in (SOURCE / "evaluation" / "benchmarks").glob("*.yaml")
        ]
        return [str(Path(self.build_lib) / "hf_vla" / name) for name in (*OWN, *modules(), *records)]


setup(
    name="hf-vla-client",
    version=re.search(r'__version__ = "(.+)"', (SOURCE / "_version.py").read_text(encoding="utf-8")).group(1),
    description="Evaluate policies that hf_vla serves, in simulators with an environment of their own",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.8",
    install_requires=["numpy>=1.19", "pillow>=9.1", "msgpack>=1.0", "websockets>=13"],
    packages=["hf_vla"],
    cmdclass={"build_py": BuildClient},
    entry_points={"console_scripts": ["hf-vla-client = hf_vla.evaluation.client:main"]},
)
