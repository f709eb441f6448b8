"""Convert a training configuration of StarVLA to a recipe of hf-vla train.

    hf-vla convert-recipe starvla_cotrain_libero.yaml recipes/mine.yaml
    hf-vla train recipes/mine.yaml

Without OUTPUT.yaml the recipe is printed. Keys without a counterpart are listed, with the reason, on stderr and as
comments in the recipe; unknown ones too. Whether a run co-trains is not in StarVLA's file, but in which of its scripts is
started: name the conversations with --vlm-dataset to co-train.
"""

import argparse
import sys
from pathlib import Path

import yaml

from .command import command
from .parser import add_import_flag


def make_parser() -> argparse.ArgumentParser:
    # Not this package's parser: here the YAML file does not hold the command's flags.
    parser = argparse.ArgumentParser(
        prog="hf-vla convert-recipe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="STARVLA.yaml", help="StarVLA's training configuration")
    parser.add_argument("output", metavar="OUTPUT.yaml", nargs="?", help="recipe to write; it must not exist")
    parser.add_argument("--vlm-dataset", nargs="+", help="files of LLaVA's JSON to co-train with")
    add_import_flag(parser)
    parser.error = lambda message: parser.exit(2, f"error: {message} (see {parser.prog} --help)\n")
    return parser


@command
def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    from ..training_args.starvla_recipe import convert_recipe
    from ..utils.files import atomic_write

    output = Path(arguments.output) if arguments.output else None
    if output is not None and output.exists():
        raise FileExistsError(f"{output} exists; choose another name or remove it")
    source = Path(arguments.source)
    try:
        content = yaml.safe_load(source.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not valid YAML: {error}") from None
    converted = convert_recipe(content, str(source), arguments.vlm_dataset)
    text = converted.as_yaml(source.name)
    if output is not None:
        with atomic_write(output) as partial:
            partial.write_text(text, encoding="utf-8")
    for line in converted.report():
        print(line, file=sys.stderr)
    print(text if output is None else f"recipe written to {output}", end="\n" if output else "")
