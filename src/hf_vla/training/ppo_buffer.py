"""The episodes of one iteration of PPO: their returns and advantages, and the chunks of each optimizer step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..evaluation.collection import CollectedEpisode
from ..inference.exploring import SampledChunk
from ..training_args.ppo_arguments import PPOArguments
from .ppo import generalized_advantages, group_advantages


@dataclass(frozen=True)
class EpisodeFacts:
    """What all processes know of an episode of any of them.

    Attributes:
        index: its number among the iteration's episodes.
        success, length, score: of the whole episode; the score is the sum of its rewards.
        chunks: how many it has.
    """

    index: int
    success: bool
    length: int
    score: float
    chunks: int


def chunk_rewards(episode: CollectedEpisode, args: PPOArguments) -> list[float]:
    """Return one reward per chunk: 1 in that which solves the task, and with "dense" the simulator's own, shifted and scaled."""
    rewards, solved = [], False
    for chunk in episode.chunks:
        reward = float(chunk.success and not solved)
        solved |= chunk.success
        if args.reward == "dense":
            reward += args.reward_scale * sum(own + args.reward_offset for own in chunk.rewards)
        rewards.append(reward)
    return rewards


class Buffer:
    """An iteration's episodes: this process's own, and the facts of all.

    Chunks are numbered in the order of their episodes' indices, over all processes; which chunks make up an optimizer step then
    does not depend on how many processes there are.

    Args:
        episodes: index → episode, of this process.
        facts: of the episodes of all processes, in the order of their indices.
        args: the run's.
    """

    def __init__(self, episodes: Mapping[int, CollectedEpisode], facts: Sequence[EpisodeFacts], args: PPOArguments):
        self.facts, self.args = list(facts), args
        self.rewards = {index: chunk_rewards(episode, args) for index, episode in episodes.items()}
        self.kept = self._episodes_with_advantage()
        first, self.total = {}, 0  # number of each kept episode's first chunk, and of all chunks
        for one in self.facts:
            if one.index in self.kept:
                first[one.index], self.total = self.total, self.total + one.chunks
        self.chunks: list[SampledChunk] = []
        self.numbers: list[int] = []
        self._places: dict[int, slice] = {}  # of this process's episodes among its chunks
        for index in sorted(episodes):
            if index in self.kept:
                begin = len(self.chunks)
                self.chunks += [chunk.sample for chunk in episodes[index].chunks]
                self.numbers += range(first[index], first[index] + len(episodes[index].chunks))
                self._places[index] = slice(begin, len(self.chunks))
        #: What a process without any chunk runs in its place, with weight 0.
        self.spare = next(iter(episodes.values())).chunks[0].sample
        size = len(self.chunks)
        self.advantages, self.returns = np.zeros(size, np.float32), np.zeros(size, np.float32)
        self.values, self.old_log_probs = np.zeros(size, np.float32), np.zeros(size, np.float32)

    def _episodes_with_advantage(self) -> set[int]:
        if self.args.advantage == "gae":
            return {one.index for one in self.facts}
        groups = self.groups().values()
        return {
            one.index for group in groups for one in group if max(o.score for o in group) > min(o.score for o in group)
        }

    def groups(self) -> dict[int, list[EpisodeFacts]]:
        """Return the episodes of each group, those from the same start."""
        groups: dict[int, list[EpisodeFacts]] = {}
        for one in self.facts:
            groups.setdefault(one.index // self.args.group_size, []).append(one)
        return groups

    def set_values(self, values: np.ndarray) -> None:
        """Compute advantages and returns from the critic's values of this process's chunks."""
        self.values = np.asarray(values, np.float32)
        for index, place in self._places.items():
            self.advantages[place], self.returns[place] = generalized_advantages(
                self.rewards[index], self.values[place], self.args.gamma, self.args.gae_lambda
            )

    def compare_groups(self) -> None:
        """Compute advantages from the returns of the groups' episodes."""
        for group in self.groups().values():
            found = group_advantages([one.score for one in group], self.args.advantage)
            for one, advantage in zip(group, found, strict=True):
                if one.index in self._places:
                    self.advantages[self._places[one.index]] = advantage

    def parts(self, number: int, seed: Sequence[int]) -> list[tuple[np.ndarray, int]]:
        """Deal out all processes' chunks at random to `number` parts; return this process's chunks of each, and all's count."""
        order = np.random.default_rng(list(seed)).permutation(self.total)
        part_of = np.empty(self.total, np.int64)
        part_of[order] = np.arange(self.total) * number // self.total
        own, counts = part_of[self.numbers], np.bincount(part_of, minlength=number)
        return [(np.flatnonzero(own == part), int(counts[part])) for part in range(number)]


def stacked(chunks: Sequence[SampledChunk]) -> dict:
    """Make the model's inputs of chunks that kept their states, padded on the left as the processor pads."""
    length = max(len(chunk.inputs["input_ids"]) for chunk in chunks)
    batch: dict = {}
    for name in chunks[0].inputs:
        of_tokens = name in ("input_ids", "attention_mask")
        rows = [_padded(chunk.inputs[name], length, 0) if of_tokens else chunk.inputs[name] for chunk in chunks]
        batch[name] = torch.stack(rows)
    states = torch.stack([_padded(chunk.states, length, 1) for chunk in chunks], dim=1)  # (N + 1, B, L, hidden_size)
    return batch | {"known_states": list(states)}


def _padded(x: torch.Tensor, length: int, dim: int) -> torch.Tensor:
    missing = length - x.shape[dim]
    return x if not missing else torch.nn.functional.pad(x, [0] * (2 * (x.ndim - dim - 1)) + [missing, 0])


def stacked_traces(chunks: Sequence[SampledChunk]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([chunk.trace[name] for chunk in chunks]) for name in chunks[0].trace}


__all__ = ["Buffer", "EpisodeFacts", "chunk_rewards", "stacked", "stacked_traces"]
