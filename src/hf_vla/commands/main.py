"""`hf-vla COMMAND`: find the command, and run it. Nothing heavy is imported before the command is known."""

import importlib
import os
import sys
from collections.abc import Sequence

from ..utils.suggestions import did_you_mean

#: By name, what a command does; its module has the same name, "-" as "_".
COMMANDS = {
    "quickstart": "demonstrations, training and evaluation, end to end",
    "train": "train a policy by a recipe",
    "eval": "evaluate a policy in closed loop",
    "compare": "tell which evaluated policies differ by more than noise",
    "report": "make one HTML page of a run: settings, curves, evaluations, videos",
    "push": "upload a policy with its run, or a dataset, to the Hub",
    "rl": "improve a policy by letting it act (reinforcement learning)",
    "simulate": "serve simulators to reinforcement learning elsewhere",
    "serve": "serve a policy over WebSocket",
    "record": "record a scripted expert's demonstrations as a dataset",
    "label": "label datasets by advantage, for training on experience",
    "demo": "open the demo: predict, watch, look inside",
    "inspect": "look at a dataset before training on it",
    "stats": "compute a dataset's statistics",
    "reencode": "write a dataset again with videos that are fast to read",
    "convert": "convert a policy between StarVLA's format and this package's",
    "convert-episodes": "make a dataset from folders of recorded episodes",
    "convert-recipe": "convert a training configuration of StarVLA to a recipe",
    "export": "export a policy's prediction for ONNX Runtime and torch.export",
    "info": "tell what is here (versions, devices, extras, names), or what a policy is",
    "merge": "merge an adapter (LoRA) into its base",
}


def help_text() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: hf-vla COMMAND [arguments]",
            "",
            "Vision-language-action policies: train, evaluate, serve.",
            "",
            "commands:",
            *lines,
            "",
            "hf-vla COMMAND --help tells a command's arguments.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv`, by default the command line, names; returns the exit status."""
    name, *rest = sys.argv[1:] if argv is None else argv or ["--help"]
    if name in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS, f"possible: {', '.join(COMMANDS)}")
        sys.stderr.write(f"error: unknown command {name!r}{hint} (see hf-vla --help)\n")
        return 2
    if os.environ.get("MPLBACKEND", "").startswith("module://"):
        # Of the notebook that runs the command, and perhaps not installed here. Commands draw into files only.
        os.environ["MPLBACKEND"] = "agg"
    module = importlib.import_module(f"{__package__}.{name.replace('-', '_')}")
    return module.main(rest) or 0
