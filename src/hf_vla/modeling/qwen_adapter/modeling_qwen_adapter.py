"""QwenAdapter: learned queries in the prompt -> each backbone layer's states of queries and images -> one block -> chunk."""

from collections.abc import Iterator

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from ..attention import attend
from ..backbone import TokenEmbeddings, build_backbone
from ..placeholders import last_placeholders
from ..regression_policy import RegressionPolicy
from .configuration_qwen_adapter import QwenAdapterConfig


def rotate(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x (B, heads, K, dim) at positions (B, K …), as VLA-Adapter has it: neighbours turn by halves' angles."""
    dim = x.shape[-1]
    rates = 10000 ** -(torch.arange(0, dim, 2, dtype=torch.float32, device=x.device) / dim)
    angles = positions[:, None, : x.shape[2], None].float() * torch.cat([rates, rates])
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return (x * angles.cos() + turned * angles.sin()).to(x.dtype)


class AdapterBlock(GradientCheckpointingLayer):
    """The chunk's states attend themselves, the queries (and the robot's state), and the images; then one ReLU layer."""

    num_key_value_groups, is_causal = 1, False

    def __init__(self, config: QwenAdapterConfig):
        super().__init__()
        width, self.config = config.vlm_hidden_size, config
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())
        sources = ("self", "adapter", "task") if config.use_pro_version else ("proj",)
        for name in ("q_proj", *(f"{kind}_{source}" for source in sources for kind in "kv"), "o_proj"):
            setattr(self, name, nn.Linear(width, width))
        self.gating_factor = nn.Parameter(torch.zeros(1))

    def forward(self, x, adapter, task, positions, key_mask) -> torch.Tensor:
        """x (B, H, width); adapter, task (B, ·, width) or None; positions, key_mask (B, K) of all three, true = attend."""
        pro, keys, values = self.config.use_pro_version, [], []
        for source, states in (("self", x), ("adapter", adapter), ("task", task)):
            if states is not None:
                part = source if pro else "proj"
                key = self.get_submodule(f"k_{part}")(states)
                keys.append(key * self.gating_factor.tanh() if source == ("task" if pro else "adapter") else key)
                values.append(self.get_submodule(f"v_{part}")(states))
        projected = (self.q_proj(x), torch.cat(keys, dim=1), torch.cat(values, dim=1))
        query, key, value = (h.unflatten(-1, (self.config.num_action_heads, -1)).transpose(1, 2) for h in projected)
        if pro:
            query, key = rotate(query, positions), rotate(key, positions)
        return self.ffn(x + self.o_proj(attend(self, query, key, value, key_mask)))


class AdapterActionHead(nn.Module):
    """VLA-Adapter's head (StarVLA's `VLA_Adapter_L1RegressionActionHead`), its queries, and what projects the state."""

    def __init__(self, config: QwenAdapterConfig):
        super().__init__()
        width, dim = config.vlm_hidden_size, config.action_dim
        self.action_queries = nn.Embedding(config.num_action_queries, width)
        self.chunk_embeddings = nn.Embedding(config.action_horizon, dim * width)
        sizes = {"fc1": config.state_dim, "fc2": width} if config.state_dim else {}
        self.state_projector = nn.ModuleDict({name: nn.Linear(size, width) for name, size in sizes.items()})
        self.layer_norm1, self.fc1 = nn.LayerNorm(dim * width), nn.Linear(dim * width, width)
        self.blocks = nn.ModuleList(AdapterBlock(config) for _ in range(config.num_action_layers))
        self.layer_norm2, self.fc2 = nn.LayerNorm(width), nn.Linear(width, dim)

    def forward(self, queries, task, task_positions, task_mask, state=None) -> torch.Tensor:
        """Per backbone layer queries (B, Q, width) and task (B, L, width), the latter's positions and mask (B, L) -> actions."""
        x = self.fc1(self.layer_norm1(self.chunk_embeddings.weight)).relu().expand(len(task_mask), -1, -1)
        if state is not None:
            hidden = nn.functional.gelu(self.state_projector["fc1"](state.to(x.dtype)))
            state = self.state_projector["fc2"](hidden)
            queries = [torch.cat([of_layer, state], dim=1) for of_layer in queries]
        own, of_queries = (torch.arange(h.shape[1], device=x.device).expand(len(x), -1) for h in (x, queries[0]))
        positions = torch.cat([own, of_queries, task_positions], dim=1)
        key_mask = nn.functional.pad(task_mask, (positions.shape[1] - task_mask.shape[1], 0), value=True)
        beyond = torch.cat([own, of_queries[:, :1]], dim=1)  # of blocks for which the backbone has no layer
        for index, block in enumerate(self.blocks):
            has_layer = index < len(queries)
            read = (queries[index], task[index], positions, key_mask) if has_layer else (state, None, beyond, None)
            x = block(x, *read)
        return self.fc2(self.layer_norm2(x))


class QwenAdapterForActionPrediction(RegressionPolicy):
    """StarVLA's QwenAdapter. The head's "task" states are those of the prompt up to its last image token."""

    config_class = QwenAdapterConfig
    placeholders = "num_action_queries"

    def __init__(self, config: QwenAdapterConfig):
        super().__init__(config)
        self.vlm = build_backbone(config.vlm_config)
        self.action_head = AdapterActionHead(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AdapterBlock):
            init.zeros_(module.gating_factor)

    def backbone_states(self, input_ids, attention_mask, **vlm_inputs) -> list[torch.Tensor]:
        """As all policies', with the queries in the place of the prompt's placeholders."""
        positions = last_placeholders(input_ids, self.config, self.placeholders)
        queries = TokenEmbeddings(positions, self.action_head.action_queries.weight)
        return super().backbone_states(input_ids, attention_mask, token_embeddings=queries, **vlm_inputs)

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        yield from super().backbone_parameters()
        yield self.action_head.action_queries.weight

    def regress(self, input_ids, attention_mask, state=None, **inputs) -> torch.Tensor:
        needed = min(self.config.num_action_layers, self.config.vlm_num_layers)
        states = self.backbone_states(input_ids, attention_mask, up_to=needed, **inputs)[1:]
        states = [h.to(self.action_head.fc1.weight.dtype) for h in states]
        queries = last_placeholders(input_ids, self.config, self.placeholders)[..., None]
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (place * (input_ids == self.vlm.config.image_token_id)).amax(dim=1, keepdim=True)
        if self.config.mask_padding:
            first = 0 if attention_mask is None else attention_mask.int().argmax(dim=1, keepdim=True)
            attended = is_task = (place >= first) & (place <= last)
        else:  # as in StarVLA: the padding before the prompt is attended, and zeros after shorter ones
            first, is_task, attended = 0, place <= last, (place <= last.max()).expand(len(last), -1)
        task = [h.masked_fill(~is_task[..., None], 0) for h in states]
        of_queries = [h.take_along_dim(queries, dim=1) for h in states]
        return self.action_head(of_queries, task, (place - first).expand(len(last), -1), attended, state)


__all__ = ["QwenAdapterForActionPrediction"]
