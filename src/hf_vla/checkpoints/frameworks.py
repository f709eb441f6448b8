"""StarVLA's YAML <-> our configurations, one pair of functions a framework (StarVLA's semantics, sections 5 and 8)."""

from dataclasses import dataclass
from typing import Any


def lookup(tree: dict, path: str, default: Any = None) -> Any:
    """The leaf at a dotted path, or `default` where the path does not exist; an explicit null is returned as None."""
    for name in path.split("."):
        if not isinstance(tree, dict) or name not in tree:
            return default
        tree = tree[name]
    return tree


def _some(*values):
    """The first that is not None."""
    return next((value for value in values if value is not None), None)


@dataclass(frozen=True)
class Framework:
    """How one of StarVLA's frameworks maps to ours.

    Args:
        model_type: ours.
        to_config: (YAML tree) -> keyword arguments of our config, the backbone's apart.
        to_yaml: (our config) -> the `framework.action_model` tree and the `trainer` tree.
    """

    model_type: str
    to_config: Any
    to_yaml: Any


def _horizon(action_model: dict) -> int:
    window = action_model.get("future_action_window_size")
    return int(_some(action_model.get("action_horizon"), None if window is None else window + 1, 16))


def _interleave(diffusion: dict, default: bool) -> bool:
    """`use_canonical_forward`, where not null, overrides `interleave_self_attention` (old configs)."""
    return bool(_some(diffusion.get("use_canonical_forward"), diffusion.get("interleave_self_attention"), default))


def _flow_matching(tree: dict, *, interleave: bool, repeated_diffusion_steps: int) -> dict[str, Any]:
    """What all flow-matching frameworks read."""
    action_model = lookup(tree, "framework.action_model", {})
    diffusion = action_model.get("diffusion_model_cfg") or {}
    for name, only in (("norm_type", "ada_norm"), ("positional_embeddings", None)):
        if diffusion.get(name, only) != only:
            raise ValueError(f"diffusion_model_cfg.{name} is {diffusion[name]!r}; only {only!r} is supported")
    return {
        "action_dim": int(_some(action_model.get("action_dim"), 7)),
        "state_dim": int(lookup(action_model, "state_dim", 7) or 0),
        "action_horizon": _horizon(action_model),
        "num_inference_steps": int(_some(action_model.get("num_inference_timesteps"), 4)),
        "repeated_diffusion_steps": int(repeated_diffusion_steps),
        "attention_head_dim": int(_some(diffusion.get("attention_head_dim"), 64)),
        "interleave_self_attention": _interleave(diffusion, interleave),
        "dropout": float(_some(diffusion.get("dropout"), 0.2)),
        "final_dropout": bool(_some(diffusion.get("final_dropout"), True)),
        "num_future_tokens": int(_some(action_model.get("num_target_vision_tokens"), 32)),
        "use_position_embedding": bool(_some(action_model.get("add_pos_embed"), True)),
        "max_action_positions": int(_some(action_model.get("max_seq_len"), 1024)),
        "noise_beta_alpha": float(_some(action_model.get("noise_beta_alpha"), 1.5)),
        "noise_beta_beta": float(_some(action_model.get("noise_beta_beta"), 1.0)),
        "noise_s": float(_some(action_model.get("noise_s"), 0.999)),
        "num_timestep_buckets": int(_some(action_model.get("num_timestep_buckets"), 1000)),
        "output_dim": int(_some(diffusion.get("output_dim"), action_model.get("hidden_size"), 26)),
    }


def _flow_matching_yaml(config) -> dict[str, Any]:
    """`framework.action_model` of a flow-matching config."""
    return {
        "action_dim": config.action_dim,
        "state_dim": config.state_dim,
        "action_horizon": config.action_horizon,
        "future_action_window_size": config.action_horizon - 1,
        "past_action_window_size": 0,
        "repeated_diffusion_steps": config.repeated_diffusion_steps,
        "num_inference_timesteps": config.num_inference_steps,
        "add_pos_embed": config.use_position_embedding,
        "max_seq_len": config.max_action_positions,
        "num_target_vision_tokens": config.num_future_tokens,
        "noise_beta_alpha": config.noise_beta_alpha,
        "noise_beta_beta": config.noise_beta_beta,
        "noise_s": config.noise_s,
        "num_timestep_buckets": config.num_timestep_buckets,
        "diffusion_model_cfg": {
            "dropout": config.dropout,
            "final_dropout": config.final_dropout,
            "interleave_self_attention": config.interleave_self_attention,
            "norm_type": "ada_norm",
            "positional_embeddings": None,
            "attention_head_dim": config.attention_head_dim,
            "output_dim": config.output_dim,
        },
    }


def _pi_v3_config(tree: dict) -> dict[str, Any]:
    fields = _flow_matching(
        tree, interleave=False, repeated_diffusion_steps=_some(lookup(tree, "trainer.repeated_diffusion_steps"), 16)
    )
    # An explicit null means the backbone's width, silence the default.
    width = lookup(tree, "framework.action_model.diffusion_model_cfg.action_dit_hidden_dim", 1024)
    return {**fields, "action_hidden_size": width}


def _pi_v3_yaml(config) -> tuple[dict[str, Any], dict[str, Any]]:
    action_model = {"action_model_type": "LayerwiseFM", **_flow_matching_yaml(config)}
    action_model["diffusion_model_cfg"] |= {
        "action_dit_hidden_dim": config.action_hidden_size,
        "num_layers": config.vlm_num_layers,
        "input_embedding_dim": config.head_hidden_size,
        "cross_attention_dim": config.head_hidden_size,
        "num_attention_heads": config.head_hidden_size // config.attention_head_dim,
    }
    return action_model, {"repeated_diffusion_steps": config.repeated_diffusion_steps}


#: StarVLA's `framework.name` -> how it maps to ours
FRAMEWORKS = {
    "QwenPI_v3": Framework("qwen_pi_v3", _pi_v3_config, _pi_v3_yaml),
}

#: Prefixes of StarVLA's tensor names and of ours, first match wins
PREFIXES = {
    "qwen_vl_interface.model.": "vlm.",
    "action_model.model.": "action_head.transformer.",
    "action_model.": "action_head.",
    "project_layers.": "projectors.",
}


def rename(name: str, to_starvla: bool = False) -> str:
    """A tensor's name in our model, or in StarVLA's; a name without a known prefix stays."""
    pairs = [(ours, theirs) if to_starvla else (theirs, ours) for theirs, ours in PREFIXES.items()]
    for old, new in pairs:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
