"""The policies that the app has loaded: the one it starts with, and those that visitors ask for."""

import html
import json
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import yaml
from transformers import AutoProcessor

from ..checkpoints import open_checkpoint
from ..checkpoints.checkpoint import Checkpoint
from ..hub import is_repository_name
from ..inference.policy import Policy
from ..processing.new_backbone import write_new_backbone
from ..registry import class_of
from ..robots.robot_types import find_robot

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "recipes" / "quickstart.yaml"
EXAMPLES = json.loads((HERE / "examples" / "examples.json").read_text(encoding="utf-8"))
#: Where the quickstart leaves its policy, from the folder that both are started in.
TRAINED = Path("outputs") / "quickstart" / "policy"
#: Stands for the policy that is made here.
UNTRAINED = "untrained"

# MetaWorld's hand (metres) and gripper: the workspace of all its tasks.
_STATE_RANGE = {"min": [-0.5, 0.3, 0.0, 0.0], "max": [0.5, 1.0, 0.6, 1.0]}
_ACTION_RANGE = {"min": [-1.0] * 4, "max": [1.0] * 4}


class Policies:
    """Loads policies by name and keeps the last `capacity` of them, by default one if they fill a GPU's memory, else two.

    Args:
        capacity: how many.
        folders: whether visitors may name folders of this machine, as its owner may. Otherwise they may name Hub repositories
            only, besides the policy that the app starts with.
        lend_token: whether visitors' repositories are loaded with this machine's Hub token, if they may not name folders. The
            policy that the app starts with always is.
        options: of `from_pretrained`, such as `robot_type`; they hold for all policies.
    """

    def __init__(self, capacity: int | None = None, folders: bool = True, lend_token: bool = False, **options):
        self._options, self._folders, self._lend_token = options, folders, lend_token
        self._own = {UNTRAINED}
        self._capacity = capacity or (1 if torch.accelerator.is_available() else 2)
        self._loaded: OrderedDict[str, Policy] = OrderedDict()

    def get(self, name: str | None) -> Policy:
        """Return the policy of a folder or Hub repository, or `UNTRAINED`.

        Raises:
            ValueError, OSError: there is none of that name, it can't be loaded, or it holds no statistics.
        """
        name = (name or "").strip()
        if not name:
            raise ValueError("There is no model. Give a folder, or a repository on the Hub such as user/policy.")
        if name not in self._loaded:
            load = make_untrained if name == UNTRAINED else self._loader(name)
            while len(self._loaded) >= self._capacity:  # before there is another one in memory
                self._loaded.popitem(last=False)
            self._loaded[name] = load()
        self._loaded.move_to_end(name)
        return self._loaded[name]

    def first(self, wanted: str | None = None) -> tuple[str, str]:
        """Load what the app starts with: `wanted`, else `MODEL_ID`, else the quickstart's policy, else an untrained one.

        Returns:
            The policy's name, and why it isn't the one that was asked for, or "".
        """
        wanted = wanted or os.environ.get("MODEL_ID")
        wanted = wanted or (str(TRAINED) if (TRAINED / "config.json").is_file() else UNTRAINED)
        self._own.add(wanted)
        try:
            self.get(wanted)
            return wanted, ""
        except (ValueError, OSError, ImportError) as error:
            logger.warning("%s can't be loaded: %s", wanted, error)
            self.get(UNTRAINED)
            return UNTRAINED, f"{wanted} can't be loaded: {' '.join(str(error).split())}"

    def _loader(self, name: str) -> Callable[[], Policy]:
        """Return a function that loads this policy, after all checks that need no weights."""
        if self._folders or name in self._own:
            return _loader(open_checkpoint(name), self._options)
        if not is_repository_name(name):
            raise ValueError(
                f"{name[:100]!r} is not the name of a repository on the Hub. Give one such as user/policy."
            )
        checkpoint = open_checkpoint(name, **({} if self._lend_token else {"token": False}))
        needed = checkpoint.base() if checkpoint.is_adapter else checkpoint.base_vlm if checkpoint.is_native else None
        if needed is not None and not is_repository_name(needed):
            raise ValueError(
                f"{name} needs a model that it does not name as a repository on the Hub, so it can't be loaded."
            )
        return _loader(checkpoint, self._options)


def _loader(checkpoint: Checkpoint, options: dict) -> Callable[[], Policy]:
    keys = sorted(AutoProcessor.from_pretrained(checkpoint, **options).statistics)
    if not keys:
        raise ValueError(
            f"{checkpoint.name} holds no statistics, so its actions can't be turned into robot units. Save it again with "
            "processor.statistics set to those of its training data."
        )
    return partial(Policy.from_pretrained, checkpoint, unnorm_key=keys[0], **options)  # visitors choose another key


def make_untrained(recipe: Path = RECIPE, seed: int = 0) -> Policy:
    """The quickstart's policy with random weights, for MetaWorld's arm: made in a second, and of no use but to be looked at."""
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    key = "metaworld_robot"
    model_class = class_of(settings["framework"], "model")
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        texts = [example["instruction"] for example in EXAMPLES]
        write_new_backbone(Path(folder), settings["vlm_config"], texts, {})
        model, processor = model_class.from_vlm(
            folder,
            random_init=True,
            action_dim=4,
            state_dim=4,
            statistics={key: {"action": _ACTION_RANGE, "state": _STATE_RANGE}},
            normalization_modes={key: {"action": "min_max", "state": "min_max"}},
            action_names={key: find_robot(key).action.names},
            **settings["policy_config"],
        )
    if torch.accelerator.is_available():
        model = model.to(torch.accelerator.current_accelerator())
    return Policy(model, processor)


def released_choices() -> list[tuple[str, str]]:
    """Return the released checkpoints as (what is shown, repository): framework, backbone, robot, memory of the weights."""
    entries = yaml.safe_load((HERE / "released.yaml").read_text(encoding="utf-8"))
    return [
        (f"{name.partition('/')[2]}: {one['framework']} on {one['backbone']}, {one['robot']}, {one['gib']} GiB", name)
        for name, one in entries.items()
    ]


def statistics_keys(policy: Policy) -> list[str]:
    return sorted(policy.processor.statistics)


def state_dim(policy: Policy, key: str) -> int | None:
    """Return how many numbers a state of this robot has, or None if the policy takes none."""
    if Policy(policy.model, policy.processor, key).input_contract.uses_state is False:
        return None
    of_state = policy.processor.statistics[policy.processor.resolve_key(key)].get("state")
    return None if of_state is None else len(next(iter(of_state.values())))


def denoising_steps(policy: Policy) -> int | None:
    """Return the policy's own number of denoising steps, or None if its framework doesn't denoise."""
    return getattr(policy.model.config, "num_inference_steps", None)


def card(policy: Policy, name: str, trouble: str = "") -> str:
    """Describe what is loaded, as HTML."""
    model, config = policy.model, policy.model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    facts = {
        "framework": config.model_type,
        "parameters": f"{parameters / 1e6:,.2f} M",
        "chunk": f"{config.action_horizon} × {config.action_dim}",
        "runs on": f"{model.device}, {str(model.dtype).removeprefix('torch.')}",
        "robots": ", ".join(statistics_keys(policy)),
    }
    items = "".join(f"<span><b>{fact}</b> {html.escape(str(value))}</span>" for fact, value in facts.items())
    if name == UNTRAINED:
        trouble = (f"{trouble}. " if trouble else "") + (
            "This policy was made a moment ago and never trained: what it does means nothing. Train one with “make "
            "quickstart”, or load another."
        )
    warning = f'<p class="warning">{html.escape(trouble)}</p>' if trouble else ""
    return (
        f'<div class="card"><p class="title">{html.escape(title(name))}</p><p class="facts">{items}</p>{warning}</div>'
    )


def title(name: str) -> str:
    """Return a policy's name as it is shown; those that we make ourselves without a path."""
    return {UNTRAINED: "A policy with random weights", str(TRAINED): "The quickstart's policy"}.get(name, name)
