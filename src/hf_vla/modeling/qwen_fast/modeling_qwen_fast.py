"""QwenFAST: the backbone -> action tokens in its own language (FAST), learned as text -> inverse DCT -> action chunk."""

from collections.abc import Mapping

import torch
from torch import nn
from transformers import LogitsProcessorList
from transformers.utils import logging

from ...transformers_internals import compile_config
from ..backbone import build_backbone, with_token_types
from ..losses import ActionTargets, labelled, language_model_loss
from ..modeling_vla import VLAPreTrainedModel
from ..sampling import SamplingOptions
from .action_codebook import ActionCodebook, ActionTokenConstraint
from .configuration_qwen_fast import GENERATION_CONSTRAINTS, QwenFASTConfig
from .token_draws import GuidedTokens, GumbelNoise, token_log_probs

logger = logging.get_logger(__name__)


class QwenFASTForActionPrediction(VLAPreTrainedModel):
    """StarVLA's QwenFast. There is no action head: the backbone's own language-model head writes the actions."""

    config_class = QwenFASTConfig
    labels_are_actions = True
    one_graph = False
    sampling_options = frozenset({"guidance"})
    exploration_settings = frozenset({"temperature"})
    trace_entries = ("tokens",)
    reads_backbone_states = False

    def __init__(self, config: QwenFASTConfig):
        super().__init__(config)
        self.vlm = build_backbone(config.vlm_config)
        #: options of transformers' `generate`, set by `compile_for_inference`
        self.decoding: dict = {}
        self.post_init()

    def compile_for_inference(self, backend=None) -> None:
        """Make `predict_action` write each token by one compiled graph, with a static cache; prompts are read as before.

        Args:
            backend: of `torch.compile`; by default inductor, and CUDA graphs on a GPU.
        """
        mode = "reduce-overhead" if backend is None and self.device.type == "cuda" else None
        how = compile_config(fullgraph=True, dynamic=False, backend=backend or "inductor", mode=mode)
        self.decoding = {"cache_implementation": "static", "compile_config": how}

    def action_loss(
        self, targets: ActionTargets, *, labels: torch.Tensor | None = None, **inputs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the mean cross-entropy of the actions' tokens: `labels` (B, L), which the processor makes of the actions.

        Each token tells of the whole chunk, by its frequencies: samples whose chunk runs past the end of the episode
        (`action_mask`) have no token that does not tell of the padding, and don't count.
        """
        if labels is None:
            raise ValueError(
                "QwenFAST learns tokens: forward needs `labels` (B, L), which its processor makes of actions=; "
                "to predict, call predict_action"
            )
        if not torch.compiler.is_compiling():
            self._check_labels(labels)
        learnt = without_padded(labels, targets.action_mask)
        if not torch.compiler.is_compiling() and learnt is not labels and not labelled(learnt).any():
            # Nothing counts, but there must be a gradient, if only of zeros: other processes wait for it.
            nothing = torch.zeros(len(labels), device=labels.device)
            loss, per_sample = language_model_loss(self.vlm, labels, sample_weight=nothing, **inputs)
            return loss, per_sample * 0
        return language_model_loss(self.vlm, learnt, sample_weight=targets.sample_weight, **inputs)

    def targets_per_sample(self, batch: Mapping) -> torch.Tensor:
        """Return the number of labelled tokens of each sample (B,); 0 if its chunk is padded."""
        mask = batch.get("action_mask")
        mask = None if mask is None else mask[:, -self.config.action_horizon :]
        return labelled(without_padded(batch["labels"], mask)).sum(dim=1)

    def _check_labels(self, labels: torch.Tensor) -> None:
        """The first label of each sample (B, L) must be an action token."""
        first = labels.gather(1, (labels != -100).int().argmax(dim=1, keepdim=True)) - self.config.action_token_offset
        if ((first < 0) | (first >= self.config.num_action_tokens)).any():
            raise ValueError(
                f"labels begin with token {(first + self.config.action_token_offset)[:, 0].tolist()}, which is not an action "
                f"token: this policy's are {self.config.action_token_offset} to "
                f"{self.config.action_token_offset + self.config.num_action_tokens - 1}. Take the processor of this policy"
            )

    def sample_actions(
        self,
        options: SamplingOptions,
        *,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        constraint: str | None = "config",
        zeros_if_undecodable: bool | None = None,
        max_new_tokens: int | None = None,
        generation_options: Mapping | None = None,
        **inputs,
    ) -> torch.Tensor:
        """Generate one action chunk per sample, greedily unless `generation_options` say otherwise.

        Args:
            options: of which `guidance` is read; sampling draws from torch's global generator.
            input_ids, inputs: the prompts. In a training batch, `labels` say where the actions' tokens begin, which are cut off.
            constraint: "tokens", "length" or None, by default the config's `generation_constraint`.
            zeros_if_undecodable: predict zeros if a generation can't be decoded; by default the config's.
            max_new_tokens: by default twice the number of a chunk's coefficients.
            generation_options: for transformers' `generate`, for example {"do_sample": True, "temperature": 0.7}.

        Raises:
            ValueError: a generation can't be decoded, and `zeros_if_undecodable` is false; guidance of generations that are not
                greedy.
        """
        config = self.config
        if options.guidance is not None and generation_options:
            raise ValueError("guidance is for greedy generation: leave generation_options or guidance out")
        codebook = self.codebook()
        constraint = config.generation_constraint if constraint == "config" else constraint
        if constraint not in GENERATION_CONSTRAINTS:
            raise ValueError(f"constraint is {constraint!r}; known are {', '.join(map(repr, GENERATION_CONSTRAINTS))}")
        inputs = self._prompts(input_ids, labels, inputs)
        length = inputs["input_ids"].shape[1]
        processors = self._constraints(codebook, constraint, length)
        if options.guidance is not None:
            processors = LogitsProcessorList([GuidedTokens(options.guidance), *processors])
        generated = self.vlm.generate(
            **inputs,
            logits_processor=processors,
            max_new_tokens=max_new_tokens or self._max_new_tokens,
            eos_token_id=config.end_token_id,
            pad_token_id=config.end_token_id,
            **{"do_sample": False, **self.decoding, **(generation_options or {})},
        )
        if options.guidance is not None:
            generated = generated[: len(generated) // 2]
        zeros = config.zeros_if_undecodable if zeros_if_undecodable is None else zeros_if_undecodable
        return self._decode(codebook, generated[:, length:].tolist(), zeros).to(input_ids.device)

    def draw_chunk(self, exploration, generator, *, input_ids, labels: torch.Tensor | None = None, **inputs):
        """Generate tokens under the config's constraint, at a temperature; zeros are the action if they can't be decoded."""
        config, codebook = self.config, self.codebook()
        inputs = self._prompts(input_ids, labels, inputs)
        length = inputs["input_ids"].shape[1]
        mask = self._constraints(codebook, config.generation_constraint, length)
        temperature = exploration.temperature or 1.0
        generated = self.vlm.generate(
            **inputs,
            logits_processor=LogitsProcessorList([*mask, GumbelNoise(temperature, generator)]),
            max_new_tokens=self._max_new_tokens,
            eos_token_id=config.end_token_id,
            pad_token_id=config.end_token_id,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
        )[:, length:]
        is_end = generated == config.end_token_id
        generated = generated.masked_fill(is_end.cumsum(dim=1) - is_end.long() > 0, -1)
        tokens = nn.functional.pad(generated, (0, self._max_new_tokens - generated.shape[1]), value=-1)
        log_prob = token_log_probs(self.vlm, inputs, tokens, mask, temperature, config.end_token_id)
        return self._decode(codebook, tokens.tolist(), True).to(input_ids.device), log_prob, {"tokens": tokens}

    def log_prob_of(self, trace, exploration, *, input_ids, labels: torch.Tensor | None = None, **inputs):
        inputs = self._prompts(input_ids, labels, inputs)
        mask = self._constraints(self.codebook(), self.config.generation_constraint, inputs["input_ids"].shape[1])
        temperature = exploration.temperature or 1.0
        return token_log_probs(self.vlm, inputs, trace["tokens"], mask, temperature, self.config.end_token_id)

    @property
    def _max_new_tokens(self) -> int:
        return 2 * self.config.action_horizon * self.config.action_dim

    def _prompts(self, input_ids: torch.Tensor, labels: torch.Tensor | None, inputs: dict) -> dict:
        """Return the backbone's inputs, without the answers of a training batch."""
        inputs = {**inputs, "input_ids": input_ids}
        if labels is not None:
            inputs = cut_answers(inputs, labels, self.config.end_token_id)
        return with_token_types(self.vlm, inputs)

    def _constraints(self, codebook: ActionCodebook, constraint: str | None, length: int) -> LogitsProcessorList:
        """Return what masks the logits of tokens after a prompt of that length."""
        if constraint is None:
            return LogitsProcessorList()
        offset, end = self.config.action_token_offset, self.config.end_token_id
        return LogitsProcessorList([ActionTokenConstraint(codebook, offset, end, length, constraint == "length")])

    def codebook(self) -> ActionCodebook:
        """Return what the action tokens spell."""
        config = self.config
        needed = ("action_token_offset", "fast_codebook", "end_token_id")
        if missing := [name for name in needed if getattr(config, name) is None]:
            raise ValueError(
                f"config.{' and config.'.join(missing)} not set: QwenFASTProcessor.config_fields(tokenizer, fast) gives them"
            )
        return ActionCodebook(config.fast_codebook, config.action_horizon, config.action_dim)

    def _decode(self, codebook: ActionCodebook, generated: list[list[int]], zeros: bool) -> torch.Tensor:
        """Decode the generated ids of B samples to actions (B, T, D); as in StarVLA, all other ids are ignored."""
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
                f"{len(problems)} of {len(generated)} generations are not an action chunk ({'; '.join(problems[:3])}). "
                "Train longer, pass constraint='length' to generate decodable ones only, or zeros_if_undecodable=True to hold "
                "still"
            )
        if problems:
            logger.warning(
                f"predicting zeros for {len(problems)} generations that are not an action chunk: {problems[0]}"
            )
        return torch.stack(chunks)


def without_padded(labels: torch.Tensor, action_mask: torch.Tensor | None) -> torch.Tensor:
    """Return the labels (B, L) without those of samples whose `action_mask` (B, T) is false somewhere; None is true everywhere."""
    return labels if action_mask is None else labels.where(action_mask.bool().all(dim=1, keepdim=True), -100)


def cut_answers(inputs: dict, labels: torch.Tensor, filler: int) -> dict:
    """Return the prompts of a training batch, without the answers that its labels cover, left-padded with `filler`."""
    batch, length = labels.shape
    device = labels.device
    starts = (labels != -100).int().argmax(dim=1, keepdim=True)  # (B, 1), positions at which the answers begin
    positions = torch.arange(length, device=device) - (length - starts)  # from which old position each new one comes
    kept = (positions >= 0).long()
    mask = inputs["attention_mask"] if inputs.get("attention_mask") is not None else torch.ones_like(labels)
    mask = mask.gather(1, positions.clamp(min=0)) * kept
    padding = int((mask.cumsum(1) == 0).sum(dim=1).min())  # common to all rows
    ids = inputs["input_ids"].gather(1, positions.clamp(min=0)).where(mask.bool(), filler)
    prompts = {"input_ids": ids[:, padding:], "attention_mask": mask[:, padding:], "mm_token_type_ids": None}
    return inputs | prompts


__all__ = ["QwenFASTForActionPrediction"]
