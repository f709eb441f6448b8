"""QwenFAST: actions are words of the backbone's language (FAST tokens) -> next-token loss; generate, look up, inverse DCT."""

from collections.abc import Mapping

import torch
from transformers import LogitsProcessorList
from transformers.utils import logging

from ..backbone import build_backbone, with_token_types
from ..losses import labelled, language_model_loss
from ..modeling_vla import VLAOutput, VLAPreTrainedModel
from .action_codebook import ActionCodebook, ActionTokenConstraint
from .configuration_qwen_fast import GENERATION_CONSTRAINTS, QwenFASTConfig

logger = logging.get_logger(__name__)


class QwenFASTForActionPrediction(VLAPreTrainedModel):
    """StarVLA's QwenFast. There is no action head: the backbone's own language-model head writes the actions."""

    config_class = QwenFASTConfig

    def __init__(self, config: QwenFASTConfig):
        super().__init__(config)
        self.vlm = build_backbone(config.vlm_config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        actions: torch.Tensor | None = None,
        action_mask: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        vlm_batch: dict[str, torch.Tensor] | None = None,
        **vlm_inputs,
    ) -> VLAOutput:
        """Mean cross-entropy of the labelled tokens: those of the actions, or of text in image-text samples.

        Args:
            input_ids, attention_mask: (B, L), the actions' tokens included.
            labels: (B, L), -100 where a token does not count.
            actions: (B, T, action_dim), which a processor's batch holds; the labels were made of them. Only whether they
                are there is read: it tells `action_loss` from `vlm_loss`.
            action_mask, noise, timestep: not read, as tokens have no steps and no noise.
            vlm_batch: a batch of image-text samples with labels, for co-training: its language-model loss is added.
            vlm_inputs: the backbone's other inputs: `pixel_values`, and what else its family has.
        """
        if labels is None:
            raise ValueError(
                "QwenFAST learns tokens: forward needs `labels` (B, L), which its processor makes of actions=; "
                "to predict, call predict_action"
            )
        if actions is not None:
            self._check_labels(labels)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **vlm_inputs}
        loss = language_model_loss(self.vlm, labels, **inputs)
        if actions is None:
            return VLAOutput(loss=loss, vlm_loss=loss)
        return self.with_language_model_loss(VLAOutput(loss=loss, action_loss=loss), vlm_batch)

    def loss_counts(self, batch: Mapping) -> dict[str, int | torch.Tensor]:
        counts = super().loss_counts(batch)
        return counts | {"action_loss": labelled(batch["labels"]).sum()} if "action_loss" in counts else counts

    def _check_labels(self, labels: torch.Tensor) -> None:
        """The first label of each sample (B, L) must be an action token."""
        first = labels.gather(1, (labels != -100).int().argmax(dim=1, keepdim=True)) - self.config.action_token_offset
        if ((first < 0) | (first >= self.config.num_action_tokens)).any():
            raise ValueError(
                f"labels begin with token {(first + self.config.action_token_offset)[:, 0].tolist()}, no action token: this "
                f"policy's are {self.config.action_token_offset} to "
                f"{self.config.action_token_offset + self.config.num_action_tokens - 1}. Take the processor of this policy"
            )

    @torch.no_grad()
    def predict_action(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        labels: torch.Tensor | None = None,
        actions: torch.Tensor | None = None,
        action_mask: torch.Tensor | None = None,
        constraint: str | None = "config",
        zeros_if_undecodable: bool | None = None,
        max_new_tokens: int | None = None,
        generation_options: Mapping | None = None,
        **vlm_inputs,
    ) -> torch.Tensor:
        """Generate one action chunk a sample, greedily unless `generation_options` say otherwise.

        Args:
            input_ids, attention_mask, vlm_inputs: as in `forward`, without the actions' tokens. In a training batch, which
                may be passed as it is, `labels` tell where these begin, and they are cut off.
            constraint: "tokens", "length" or None, by default the config's `generation_constraint`.
            zeros_if_undecodable: predict zeros where a generation can't be decoded; by default the config's.
            max_new_tokens: by default twice the number of coefficients that a chunk has.
            generation_options: for transformers' `generate`, for example {"do_sample": True, "temperature": 0.7}.
            noise, generator, num_inference_steps, actions, action_mask: not read; here so that all policies are called
                alike. Sampling draws from torch's global generator.

        Returns:
            float32 tensor (B, action_horizon, action_dim), normalised.

        Raises:
            ValueError: a generation can't be decoded, and zeros are not wanted.
        """
        config = self.config
        codebook = self.codebook()
        constraint = config.generation_constraint if constraint == "config" else constraint
        if constraint not in GENERATION_CONSTRAINTS:
            raise ValueError(f"constraint is {constraint!r}; known are {', '.join(map(repr, GENERATION_CONSTRAINTS))}")
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **vlm_inputs}
        if labels is not None:
            inputs = cut_answers(inputs, labels, config.end_token_id)
        inputs = with_token_types(self.vlm, inputs)
        length = inputs["input_ids"].shape[1]
        processors = LogitsProcessorList()
        if constraint is not None:
            exact = constraint == "length"
            processors.append(
                ActionTokenConstraint(codebook, config.action_token_offset, config.end_token_id, length, exact)
            )
        generated = self.vlm.generate(
            **inputs,
            logits_processor=processors,
            max_new_tokens=max_new_tokens or 2 * config.action_horizon * config.action_dim,
            eos_token_id=config.end_token_id,
            pad_token_id=config.end_token_id,
            **{"do_sample": False, **(generation_options or {})},
        )
        zeros = config.zeros_if_undecodable if zeros_if_undecodable is None else zeros_if_undecodable
        return self._decode(codebook, generated[:, length:].tolist(), zeros).to(input_ids.device)

    def codebook(self) -> ActionCodebook:
        """What the action tokens spell."""
        config = self.config
        needed = ("action_token_offset", "fast_codebook", "end_token_id")
        if missing := [name for name in needed if getattr(config, name) is None]:
            raise ValueError(
                f"config.{' and config.'.join(missing)} not set: QwenFASTProcessor.config_fields(tokenizer, fast) tells them"
            )
        return ActionCodebook(config.fast_codebook, config.action_horizon, config.action_dim)

    def _decode(self, codebook: ActionCodebook, generated: list[list[int]], zeros: bool) -> torch.Tensor:
        """Generated ids of B samples -> actions (B, T, D); every id that is an action token counts, as in StarVLA."""
        offset, number = self.config.action_token_offset, self.config.num_action_tokens
        chunks, problems = [], []
        for index, ids in enumerate(generated):
            try:
                chunks.append(codebook.decode([i - offset for i in ids if offset <= i < offset + number]))
            except ValueError as error:
                problems.append(f"sample {index}: {error}")
                chunks.append(torch.zeros(codebook.shape))
        if problems and not zeros:
            raise ValueError(
                f"{len(problems)} of {len(generated)} generations are no action chunk ({'; '.join(problems[:3])}). Train "
                "longer, pass constraint='length' to have decodable ones only, or zeros_if_undecodable=True to hold still"
            )
        if problems:
            logger.warning(f"predicting zeros for {len(problems)} generations that are no action chunk: {problems[0]}")
        return torch.stack(chunks)


def cut_answers(inputs: dict, labels: torch.Tensor, filler: int) -> dict:
    """A training batch without what its labels cover: the prompts, left-padded anew with `filler`."""
    batch, length = labels.shape
    device = labels.device
    starts = (labels != -100).int().argmax(dim=1, keepdim=True)  # (B, 1), where the answer begins
    positions = torch.arange(length, device=device) - (length - starts)  # of each new place in its old row
    kept = (positions >= 0).long()
    mask = inputs["attention_mask"] if inputs.get("attention_mask") is not None else torch.ones_like(labels)
    mask = mask.gather(1, positions.clamp(min=0)) * kept
    padding = int((mask.cumsum(1) == 0).sum(dim=1).min())  # that all rows have
    ids = inputs["input_ids"].gather(1, positions.clamp(min=0)).where(mask.bool(), filler)
    prompts = {"input_ids": ids[:, padding:], "attention_mask": mask[:, padding:], "mm_token_type_ids": None}
    return inputs | prompts


__all__ = ["QwenFASTForActionPrediction"]
