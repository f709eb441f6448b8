"""StarVLA's YAML <-> our configurations, one pair of functions a framework (StarVLA's semantics, sections 5 and 8)."""

from dataclasses import dataclass
from typing import Any

from ..modeling.qwen_dual import dinov2_names as dinov2


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
        more_yaml: (our config) -> further leaves of the `framework` tree.
        image_size: (YAML tree) -> the size [width, height] that images are resized to, or None.
        convert: (tensors, to_starvla) -> the tensors under our names, or under StarVLA's.
    """

    model_type: str
    to_config: Any
    to_yaml: Any
    more_yaml: Any = lambda config: {}
    image_size: Any = lambda tree: lookup(tree, "datasets.vla_data.obs_image_size")
    convert: Any = lambda tensors, to_starvla: {rename(name, to_starvla): x for name, x in tensors.items()}


def _horizon(action_model: dict, default: int = 16) -> int:
    window = action_model.get("future_action_window_size")
    return int(_some(action_model.get("action_horizon"), None if window is None else window + 1, default))


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
        **_chunk_config(tree),
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
        **_chunk_yaml(config),
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


def _pi_config(tree: dict) -> dict[str, Any]:
    return _flow_matching(tree, interleave=True, repeated_diffusion_steps=2)  # 2 whatever the YAML says


def _pi_yaml(config) -> tuple[dict[str, Any], dict[str, Any]]:
    action_model = {"action_model_type": "LayerwiseFM", **_flow_matching_yaml(config)}
    action_model["diffusion_model_cfg"] |= {
        "num_layers": config.vlm_num_layers,
        "input_embedding_dim": config.vlm_hidden_size,
        "cross_attention_dim": config.vlm_hidden_size,
        "num_attention_heads": config.vlm_hidden_size // config.attention_head_dim,
    }
    return action_model, {}


#: `action_model_type` of GR00T's head -> width, attention head width
DIT_SIZES = {"DiT-B": (768, 64), "DiT-L": (1536, 48)}


def _dit_config(tree: dict) -> dict[str, Any]:
    """GR00T's and Dual's: a head of a fixed size that attends one state of the backbone."""
    action_model = lookup(tree, "framework.action_model") or {}
    diffusion = action_model.get("diffusion_model_cfg") or {}
    size = _some(action_model.get("action_model_type"), "DiT-B")
    if size not in DIT_SIZES:
        raise ValueError(f"action_model.action_model_type is {size!r}; known are {', '.join(DIT_SIZES)}")
    width, head_dim = DIT_SIZES[size]
    inner = int(_some(action_model.get("hidden_size"), 1024))
    output_dim = int(_some(diffusion.get("output_dim"), 1024))
    if inner != output_dim:
        raise ValueError(
            f"action_model.hidden_size is {inner} and diffusion_model_cfg.output_dim {output_dim}: the action decoder "
            "reads the transformer's output, so they must be the same"
        )
    steps = _some(action_model.get("repeated_diffusion_steps"), 8)
    return {
        **_flow_matching(tree, interleave=True, repeated_diffusion_steps=steps),
        "action_horizon": _horizon(action_model, 8),
        "attention_head_dim": int(_some(diffusion.get("attention_head_dim"), head_dim)),
        "output_dim": output_dim,
        "action_hidden_size": width,
        "num_action_layers": int(_some(diffusion.get("num_layers"), 16)),
        "connect_layer_index": int(_some(action_model.get("connect_layer_index"), -1)),
    }


def _dit_yaml(config) -> tuple[dict[str, Any], dict[str, Any]]:
    size = next((name for name, (width, _) in DIT_SIZES.items() if width == config.action_hidden_size), None)
    if size is None:
        widths = " and ".join(f"{width} ({name})" for name, (width, _) in DIT_SIZES.items())
        raise ValueError(f"action_hidden_size is {config.action_hidden_size}; StarVLA's format knows {widths} only")
    action_model = {
        "action_model_type": size,
        "action_hidden_dim": config.output_dim,
        "hidden_size": config.output_dim,
        "connect_layer_index": config.connect_layer_index,
        **_flow_matching_yaml(config),
    }
    action_model["diffusion_model_cfg"] |= {
        "num_layers": config.num_action_layers,
        "cross_attention_dim": config.vlm_hidden_size,
        "num_attention_heads": config.action_hidden_size // config.attention_head_dim,
    }
    return action_model, {}


#: Meta's name of a DINOv2 -> hidden_size, num_hidden_layers, num_attention_heads, use_swiglu_ffn
DINO_SIZES = {
    "dinov2_vits14": (384, 12, 6, False),
    "dinov2_vitb14": (768, 12, 12, False),
    "dinov2_vitl14": (1024, 24, 16, False),
    "dinov2_vitg14": (1536, 40, 24, True),
}
_DINO_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "use_swiglu_ffn")


def _dual_config(tree: dict) -> dict[str, Any]:
    name = _some(lookup(tree, "framework.dino.dino_backbone"), "dinov2_vits14")
    if name not in DINO_SIZES:
        raise ValueError(f"framework.dino.dino_backbone is {name!r}; known are {', '.join(DINO_SIZES)}")
    dino = dict(zip(_DINO_FIELDS, DINO_SIZES[name], strict=True))
    return {**_dit_config(tree), "dino_config": {**dino, "image_size": 518, "patch_size": 14}}


def _dual_more_yaml(config) -> dict[str, Any]:
    dino = config.dino_config
    size = tuple(getattr(dino, name) for name in _DINO_FIELDS)
    name = next((name for name in DINO_SIZES if DINO_SIZES[name] == size), None)
    if name is None or (dino.image_size, dino.patch_size) != (518, 14):
        raise ValueError(f"StarVLA's format knows {', '.join(DINO_SIZES)} only; this policy's DINOv2 is none of them")
    return {"dino": {"dino_backbone": name}}


def _dual_convert(tensors: dict, to_starvla: bool) -> dict:
    """As for all frameworks, and DINO's own names."""
    prefix = "dino." if to_starvla else "dino_encoder.body."
    dino = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    others = {rename(name, to_starvla): x for name, x in tensors.items() if not name.startswith(prefix)}
    converted = dinov2.to_meta(dino) if to_starvla else dinov2.from_meta(dino)
    new_prefix = "dino_encoder.body." if to_starvla else "dino."
    return others | {new_prefix + name: x for name, x in converted.items()}


def _chunk_config(tree: dict, default_horizon: int = 16) -> dict[str, Any]:
    """The shape of states and chunks, which is all that OFT and FAST read."""
    action_model = lookup(tree, "framework.action_model") or {}
    return {
        "action_dim": int(_some(action_model.get("action_dim"), 7)),
        "state_dim": int(lookup(action_model, "state_dim", 7) or 0),
        "action_horizon": _horizon(action_model, default_horizon),
    }


def _chunk_yaml(config) -> dict[str, Any]:
    return {
        "action_dim": config.action_dim,
        "state_dim": config.state_dim,
        "action_horizon": config.action_horizon,
        "future_action_window_size": config.action_horizon - 1,
        "past_action_window_size": 0,
    }


def _oft_config(tree: dict) -> dict[str, Any]:
    return _chunk_config(tree, default_horizon=9)


def _oft_yaml(config) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"action_model_type": "MLP", "action_hidden_dim": config.vlm_hidden_size, **_chunk_yaml(config)}, {}


def _fast_yaml(config) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"action_model_type": "FAST", **_chunk_yaml(config)}, {}


#: StarVLA's `framework.name` -> how it maps to ours. Of several names of one framework, the first is written.
STARVLA_FRAMEWORKS = {
    "QwenPI_v3": Framework("qwen_pi_v3", _pi_v3_config, _pi_v3_yaml),
    "QwenPI": Framework("qwen_pi", _pi_config, _pi_yaml),
    "QwenFM": Framework("qwen_pi", _pi_config, _pi_yaml),
    "QwenGR00T": Framework("qwen_gr00t", _dit_config, _dit_yaml),
    "QwenDual": Framework(
        "qwen_dual",
        _dual_config,
        _dit_yaml,
        more_yaml=_dual_more_yaml,
        image_size=lambda tree: lookup(tree, "datasets.vla_data.obs_image_size", [224, 224]),
        convert=_dual_convert,
    ),
    "QwenOFT": Framework("qwen_oft", _oft_config, _oft_yaml),
    "QwenFast": Framework("qwen_fast", _chunk_config, _fast_yaml, image_size=lambda tree: None),  # never resizes
}

#: Prefixes of StarVLA's tensor names and of ours, first match wins
PREFIXES = {
    "qwen_vl_interface.model.": "vlm.",
    "action_model.model.layer_norm": "action_head.layer_norm",  # OFT's head …
    "action_model.model.fc": "action_head.fc",
    "action_model.model.mlp_resnet_blocks.": "action_head.blocks.",  # … to here
    "action_model.model.": "action_head.transformer.",
    "action_model.": "action_head.",
    "project_layers.": "projectors.",
    "dino_pro.": "dino_projector.",
}


def rename(name: str, to_starvla: bool = False) -> str:
    """A tensor's name in our model, or in StarVLA's; a name without a known prefix stays."""
    pairs = [(ours, theirs) if to_starvla else (theirs, ours) for theirs, ours in PREFIXES.items()]
    for old, new in pairs:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
