"""Chunks as draws from a distribution: ratio 1 before an update, closed forms, gradients, settings, a bandit for each kind."""

import copy
import dataclasses
import functools

import numpy as np
import pytest
import torch
from tiny_policies import ACTION_DIM, HORIZON, STATE_DIM, STEPS, build
from torch.distributions import MultivariateNormal, Normal

import hf_vla
from hf_vla.modeling.backbone import with_token_types
from hf_vla.modeling.chunk_distributions import correlated
from hf_vla.modeling.flow_exploration import transition
from hf_vla.modeling.qwen_fast.action_codebook import ActionTokenConstraint
from hf_vla.registry import FRAMEWORKS

FLOW = ("qwen_pi", "qwen_pi_v3", "qwen_gr00t", "qwen_dual")
REGRESSION = ("qwen_oft", "qwen_adapter")
TOKENS = ("qwen_fast", "qwen_discrete_diffusion")
INSTRUCTIONS = ["open the drawer", "put the red block on the green plate, then close the drawer", "stop"]

of_each = pytest.mark.parametrize("framework", FRAMEWORKS)


@functools.cache
def policy_of(framework: str):
    """Not to be changed. Padding is masked, so that a sample does not depend on its batch."""
    model = copy.deepcopy(build(framework).model)
    if model.attends_padding:
        model.config.mask_padding = True
    return model


@functools.cache
def inputs_of(framework: str, *which: int) -> dict:
    """Observations with unequal prompts, padded."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    states = rng.uniform(-1, 1, (3, STATE_DIM)).astype(np.float32)
    policy = policy_of(framework)
    state = {"state": states[list(which)]} if policy.config.state_input else {}
    return dict(
        build(framework).processor(
            images=[[images[i]] for i in which], text=[INSTRUCTIONS[i] for i in which], normalized=True, **state
        )
    )


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ways(framework: str) -> list[hf_vla.Exploration | None]:
    """Explorations of every kind that the framework has."""
    learned = {"learned_std": policy_of(framework).new_learned_std()} if framework not in TOKENS else {}
    if framework in FLOW:
        return [
            None,
            hf_vla.Exploration(noisy_steps="all", executed_steps=2),
            hf_vla.Exploration(noisy_steps="one", noise_level=0.8, num_inference_steps=3),
            hf_vla.Exploration(noisy_steps="all", noise_correlation=0.8, executed_steps=2),
            hf_vla.Exploration(noisy_steps="all", **learned),
        ]
    if framework == "qwen_fast":
        return [None, hf_vla.Exploration(temperature=0.5)]
    if framework == "qwen_discrete_diffusion":
        return [None, hf_vla.Exploration(temperature=0.5, executed_steps=2, num_inference_steps=3)]
    correlated = hf_vla.Exploration(std=0.2, noise_correlation=0.8)
    return [None, hf_vla.Exploration(std=0.2, executed_steps=1), correlated, hf_vla.Exploration(**learned)]


@of_each
def test_before_an_update_the_ratio_is_one(framework):
    policy, batch = policy_of(framework), inputs_of(framework, 0, 1, 2)
    for exploration in ways(framework):
        actions, log_prob, trace = policy.sample_chunk(**batch, exploration=exploration, generator=seeded())
        assert actions.shape == (3, HORIZON, ACTION_DIM) and actions.isfinite().all()
        assert actions.dtype == log_prob.dtype == torch.float32 and log_prob.shape == (3,)
        again = policy.chunk_log_prob(**batch, exploration=exploration, trace=trace)
        assert again.requires_grad and (again - log_prob).abs().max() < 1e-4
        for row in range(3):
            alone = {name: x[row : row + 1] for name, x in trace.items()}
            own = policy.chunk_log_prob(**inputs_of(framework, row), exploration=exploration, trace=alone)
            assert (own - log_prob[row]).abs().max() < 1e-4
        order = [2, 0]
        mixed = {name: x[order] for name, x in trace.items()}
        mixed = policy.chunk_log_prob(**inputs_of(framework, *order), exploration=exploration, trace=mixed)
        assert (mixed - log_prob[order]).abs().max() < 1e-4


@of_each
def test_the_generator_decides(framework):
    policy, batch = policy_of(framework), inputs_of(framework, 0, 1)
    exploration = ways(framework)[1]
    first, again, other = (
        policy.sample_chunk(**batch, exploration=exploration, generator=seeded(s))[0] for s in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


@of_each
def test_gradients_reach_head_backbone_and_noise(framework):
    policy, batch = copy.deepcopy(policy_of(framework)), inputs_of(framework, 0, 1)
    exploration = ways(framework)[-1]
    _, _, trace = policy.sample_chunk(**batch, exploration=exploration, generator=seeded())
    policy.chunk_log_prob(**batch, exploration=exploration, trace=trace).sum().backward()
    reached = {name.split(".")[0] for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"vlm"} | ({"action_head"} if framework != "qwen_fast" else set()) <= reached
    if exploration is not None and exploration.learned_std is not None:
        assert exploration.learned_std.z.grad.any()


@pytest.mark.parametrize("framework", REGRESSION)
def test_regression_is_a_gaussian_around_the_prediction(framework):
    policy, batch = policy_of(framework), inputs_of(framework, 0, 1)
    mean = policy.predict_action(**batch)
    for executed in (None, 2):
        exploration = hf_vla.Exploration(std=0.3, executed_steps=executed)
        actions, log_prob, _ = policy.sample_chunk(**batch, exploration=exploration, generator=seeded())
        drawn = torch.randn(mean.shape, generator=seeded())
        assert torch.allclose(actions, mean + 0.3 * drawn, atol=1e-5)
        expected = Normal(mean, 0.3).log_prob(actions)[:, :executed].sum((1, 2))
        assert torch.allclose(log_prob, expected, atol=1e-3)


@pytest.mark.parametrize("framework", ["qwen_oft", "qwen_pi_v3"])
def test_correlated_noise_has_the_closed_form_of_its_covariance(framework):
    """Of the first steps, too, since these depend on no later ones."""
    policy, batch = policy_of(framework), inputs_of(framework, *[0] * 300)
    settings = {"num_inference_steps": 1, "noise_level": 0.5} if framework in FLOW else {"std": 0.5}
    places = torch.arange(HORIZON)
    covariance = 0.5**2 * 0.9 ** (places[:, None] - places).abs()
    for executed in (None, 2):
        exploration = hf_vla.Exploration(**settings, noise_correlation=0.9, executed_steps=executed)
        actions, log_prob, _ = policy.sample_chunk(**batch, exploration=exploration, generator=seeded())
        if framework in FLOW:  # from noise e: e + u - R e a² / 2
            noise = torch.randn(300, 1, HORIZON, ACTION_DIM, generator=seeded())[:, 0]
            mean = policy.predict_action(**batch, noise=noise, num_inference_steps=1)
            mean = mean - covariance / 2 @ noise
        else:
            mean = policy.predict_action(**batch)
        apart = (actions - mean).transpose(1, 2)  # (B, ACTION_DIM, HORIZON)
        found = torch.cov(apart.flatten(0, 1).T)
        assert (found - covariance).abs().max() < 0.06
        normal = MultivariateNormal(torch.zeros(HORIZON)[:executed], covariance[:executed, :executed])
        assert torch.allclose(log_prob, normal.log_prob(apart[..., :executed]).sum(1), atol=2e-3)


@pytest.mark.parametrize("framework", FLOW)
def test_one_step_flow_is_a_gaussian_around_its_end(framework):
    """With one step, from noise e: mean e + u - e a² / 2 by Flow-SDE, e + u with learned noise; e + u is the prediction."""
    policy, batch = policy_of(framework), inputs_of(framework, 0, 1)
    noise = torch.randn(2, HORIZON, ACTION_DIM, generator=seeded())
    end = policy.predict_action(**batch, noise=noise, num_inference_steps=1)
    learned = hf_vla.LearnedStd(ACTION_DIM, min_std=0.1, max_std=0.4)
    for mean, std, setting in (
        (end - noise * 0.7**2 / 2, 0.7, {"noise_level": 0.7}),
        (end, 0.2, {"learned_std": learned}),
    ):
        exploration = hf_vla.Exploration(num_inference_steps=1, **setting)
        generator = seeded()
        actions, log_prob, _ = policy.sample_chunk(**batch, exploration=exploration, generator=generator)
        assert torch.allclose(log_prob, Normal(mean, std).log_prob(actions).sum((1, 2)), atol=1e-3)


@pytest.mark.parametrize("framework", FLOW)
def test_little_noise_in_the_last_step_is_the_prediction(framework):
    policy, batch = policy_of(framework), inputs_of(framework, 0, 1)
    noise = torch.randn(2, 1, HORIZON, ACTION_DIM, generator=seeded())[:, 0]
    predicted = policy.predict_action(**batch, noise=noise)
    quiet = hf_vla.Exploration(noise_level=1e-4)
    actions, _, trace = policy.sample_chunk(**batch, exploration=quiet, generator=seeded())
    assert torch.allclose(actions, predicted, atol=1e-3)
    assert trace["step"].tolist() == [[STEPS - 1]] * 2
    spread = policy.sample_chunk(**batch, generator=seeded())[0] - predicted
    assert 0.08 < spread.std() < 0.25  # 0.144 by the formula


@pytest.mark.parametrize("correlation", [None, 0.9])
def test_flow_sde_keeps_the_marginals(correlation):
    """Of two independent N(0.5, 0.2²), whose velocity is known: with noise in all of many steps, mean and covariance stay."""
    torch.manual_seed(0)
    number, mean, std = 200, 0.5, 0.2
    x = torch.randn(20000, 1, 2, 1)
    for index in range(number):
        t = index / number
        var = (1 - t) ** 2 + (t * std) ** 2
        velocity = mean + (t * std**2 - (1 - t)) / var * (x - t * mean)
        step = torch.full((len(x), 1), index)
        center, spread = transition(x, velocity, step, torch.full_like(step, number), 0.5, correlation)
        x = center + spread * correlated(torch.randn_like(x), correlation)
    assert x.mean().item() == pytest.approx(mean, abs=0.01) and x.std().item() == pytest.approx(std, abs=0.01)
    assert torch.corrcoef(x[:, 0, :, 0].T)[0, 1].abs() < 0.03


def test_std_of_each_flow_sde_step():
    step, number = torch.arange(4)[None], torch.full((1, 4), 4)
    _, std = transition(torch.zeros(1, 4, 1, 1), torch.zeros(1, 4, 1, 1), step, number, 0.5)
    assert torch.allclose(std.flatten(), torch.tensor([0.5, 0.433, 0.25, 0.144]), atol=1e-3)


def test_a_trace_keeps_its_number_of_steps():
    """chunk_log_prob does not need to be told again how many denoising steps there were."""
    policy, batch = policy_of("qwen_pi"), inputs_of("qwen_pi", 0)
    exploration = hf_vla.Exploration(noisy_steps="all", num_inference_steps=6)
    _, log_prob, trace = policy.sample_chunk(**batch, exploration=exploration, generator=seeded())
    forgotten = dataclasses.replace(exploration, num_inference_steps=None)
    assert torch.allclose(policy.chunk_log_prob(**batch, trace=trace, exploration=forgotten), log_prob, atol=1e-4)


def test_learned_std_stays_between_its_bounds():
    torch.manual_seed(0)
    learned = hf_vla.LearnedStd(2, num_steps=3, feature_size=4, min_std=0.05, max_std=0.2)
    assert torch.allclose(learned(torch.randn(5, 4)), torch.tensor(0.1)) and learned(torch.randn(5, 4)).shape == (
        5,
        3,
        2,
    )
    torch.nn.init.normal_(learned.of_features[-1].weight, std=100)
    stds = learned(torch.randn(5, 4))
    assert 0.0499 < stds.min() < 0.06 and 0.19 < stds.max() < 0.2001


class TestTokens:
    """FAST and discrete diffusion, against sums written out."""

    @pytest.mark.parametrize("constraint", ["length", "tokens"])
    def test_fast_is_the_sum_over_tokens(self, constraint):
        """Token after token, each by a pass of its own over one sample's prefix, without padding."""
        policy, offset = copy.deepcopy(policy_of("qwen_fast")), policy_of("qwen_fast").config.action_token_offset
        policy.config.generation_constraint = constraint
        end, temperature, size = policy.config.end_token_id, 0.7, HORIZON * ACTION_DIM
        exploration = hf_vla.Exploration(temperature=temperature)
        batch = inputs_of("qwen_fast", 0, 1)
        actions, log_prob, trace = policy.sample_chunk(**batch, exploration=exploration, generator=seeded())
        spells, codebook = policy.codebook().coefficients_per_token(), policy.codebook()
        for row in range(2):
            own, expected, missing = inputs_of("qwen_fast", row), 0.0, size
            ids, chosen = own["input_ids"], [t for t in trace["tokens"][row].tolist() if t >= 0]
            assert constraint == "tokens" or chosen[-1] == end
            for token in chosen:
                inputs = {**own, "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": None}
                with torch.no_grad():
                    logits = policy.vlm(**with_token_types(policy.vlm, inputs)).logits[0, -1]
                allowed = [offset + i for i, n in enumerate(spells) if constraint == "tokens" or 0 < n <= missing]
                allowed += [end] * (constraint == "tokens" or missing <= 0)
                weights = (logits[allowed].double() / temperature).exp()
                expected += (weights[allowed.index(token)] / weights.sum()).log().item()
                missing -= 0 if token == end else spells[token - offset].item()
                ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
            assert log_prob[row].item() == pytest.approx(expected, abs=1e-3)
            if constraint == "length":
                words = [t - offset for t in chosen[:-1]]
                assert torch.equal(actions[row], codebook.decode(words))

    def test_fast_draws_from_its_distribution(self):
        """Of 300 draws of the first token, those with half of the probability are about half."""
        policy, batch = policy_of("qwen_fast"), inputs_of("qwen_fast", *[0] * 100)
        tokens = torch.cat([policy.sample_chunk(**batch, generator=seeded(s))[2]["tokens"][:, 0] for s in range(3)])
        own = inputs_of("qwen_fast", 0)
        with torch.no_grad():
            logits = policy.vlm(**with_token_types(policy.vlm, {**own, "mm_token_type_ids": None})).logits[:, -1]
        length = own["input_ids"].shape[1]
        codebook, config = policy.codebook(), policy.config
        mask = ActionTokenConstraint(codebook, config.action_token_offset, config.end_token_id, length, True)
        probabilities = mask(own["input_ids"], logits).softmax(dim=-1)[0]
        order = probabilities.argsort(descending=True)
        likely = order[: int((probabilities[order].cumsum(0) < 0.5).sum())]
        share, expected = torch.isin(tokens, likely).float().mean().item(), probabilities[likely].sum().item()
        assert share == pytest.approx(expected, abs=0.12)  # four standard errors

    def test_fast_without_constraint_holds_still_if_undecodable(self):
        policy = copy.deepcopy(policy_of("qwen_fast"))
        policy.config.generation_constraint = None
        batch = inputs_of("qwen_fast", 0, 1)
        actions, log_prob, trace = policy.sample_chunk(**batch, generator=seeded())
        assert (actions == 0).all() and log_prob.isfinite().all()
        assert (policy.chunk_log_prob(**batch, trace=trace) - log_prob).abs().max() < 1e-4

    def test_discrete_diffusion_is_the_sum_over_masked_tokens_of_all_rounds(self):
        policy, batch = policy_of("qwen_discrete_diffusion"), inputs_of("qwen_discrete_diffusion", 0, 1)
        head, temperature = policy.action_head, 0.7
        exploration = hf_vla.Exploration(temperature=temperature, num_inference_steps=3)
        actions, log_prob, trace = policy.sample_chunk(**batch, exploration=exploration, generator=seeded())
        observation = {name: x for name, x in batch.items() if name != "state"}
        expected, masks = torch.zeros(2), trace["tokens"] == policy.config.num_bins
        assert masks[:, 0].all() and masks.sum((2, 3))[0].tolist() == [
            6,
            *sorted(masks.sum((2, 3))[0].tolist()[1:])[::-1],
        ]
        with torch.no_grad():
            conditioning = policy.conditioning(**observation)
            for index in range(3):
                logits = head.logits(trace["tokens"][:, index, None], conditioning, state=batch["state"])[:, 0]
                for place in masks[:, index].nonzero().tolist():
                    of_place = (logits[tuple(place)] / temperature).log_softmax(0)
                    expected[place[0]] += of_place[trace["proposed"][:, index][tuple(place)]]
        assert torch.allclose(log_prob, expected, atol=1e-3)
        assert torch.equal(actions, head.decode(trace["proposed"][:, -1]))

    def test_nothing_is_drawn_at_temperature_0(self):
        policy = copy.deepcopy(policy_of("qwen_discrete_diffusion"))
        policy.config.decode_temperature = 0.0
        with pytest.raises(ValueError, match=r"decode_temperature is 0.*Exploration\(temperature=1.0\)"):
            policy.sample_chunk(**inputs_of("qwen_discrete_diffusion", 0))


def clipped(ratio: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
    """PPO's loss, with dual clip: no sample pushes away by more than three times its advantage."""
    objective = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    return -torch.where(advantage < 0, objective.maximum(3 * advantage), objective).mean()


#: how the bandit is explored, how many updates solve it, and their first learning rate
BANDIT = {
    **dict.fromkeys(FLOW, (hf_vla.Exploration(noise_level=0.8), 35, 1e-3)),
    **dict.fromkeys(REGRESSION, (hf_vla.Exploration(std=0.3), 20, 3e-3)),
}


@pytest.mark.slow
@pytest.mark.parametrize("framework", BANDIT)
def test_a_bandit_is_solved(framework):
    """One observation, reward minus the squared distance from one action: by PPO, predictions come near that action.

    Flow-matching policies have imitated another action before: an untrained one draws from too wide a distribution.
    """
    torch.manual_seed(0)
    exploration, updates, rate = BANDIT[framework]
    policy, rows, best = copy.deepcopy(policy_of(framework)), 32, torch.tensor([0.5, -0.3])
    policy.vlm.requires_grad_(False)
    one, batch, generator = inputs_of(framework, 0), inputs_of(framework, *[0] * rows), seeded()
    noise = torch.randn(rows, HORIZON, ACTION_DIM, generator=generator)
    parameters = [p for p in policy.parameters() if p.requires_grad]
    if framework in FLOW:
        optimizer = torch.optim.Adam(parameters, lr=3e-3)
        for _ in range(40):
            draw = torch.randn(64, HORIZON, ACTION_DIM, generator=generator), torch.rand(64, generator=generator)
            loss = policy(**one, actions=torch.zeros(1, HORIZON, ACTION_DIM), noise=draw[0], timestep=draw[1]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def distance() -> float:
        return (policy.predict_action(**batch, noise=noise) - best).abs().mean().item()

    start = distance()
    optimizer = torch.optim.Adam(parameters, lr=rate)
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = rate * (1 - update / updates)
        actions, log_prob, trace = policy.sample_chunk(**batch, exploration=exploration, generator=generator)
        rewards = -(actions - best).square().sum((1, 2))
        advantage = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        for _ in range(2):
            ratio = (policy.chunk_log_prob(**batch, exploration=exploration, trace=trace) - log_prob).exp()
            loss = clipped(ratio, advantage)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
    assert distance() < min(0.2, start / 2)


@pytest.mark.slow
@pytest.mark.parametrize("framework", TOKENS)
def test_a_bandit_of_two_arms_is_solved(framework):
    """A policy has imitated two answers to one observation; reward 1 for the first: by PPO, it draws no other."""
    torch.manual_seed(0)
    policy, rows = copy.deepcopy(policy_of(framework)), 24
    policy.vlm.requires_grad_(framework == "qwen_fast")
    parameters = [p for p in policy.parameters() if p.requires_grad]
    answers = torch.tensor([0.5, -0.5])[:, None, None].expand(2, HORIZON, ACTION_DIM)
    both, batch, generator = inputs_of(framework, 0, 0), inputs_of(framework, *[0] * rows), seeded()
    if framework == "qwen_fast":
        both = dict(
            build(framework).processor(
                images=[[np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)[0]]] * 2,
                text=[INSTRUCTIONS[0]] * 2,
                actions=answers.numpy(),
                normalized=True,
            )
        )
    both["actions"] = answers

    def reward(actions: torch.Tensor) -> torch.Tensor:
        return ((actions - answers[0]).abs().mean((1, 2)) < 0.1).float()

    def draw():
        return policy.sample_chunk(**batch, exploration=exploration, generator=generator)

    steps = {"num_inference_steps": 2} if framework == "qwen_discrete_diffusion" else {}
    exploration = hf_vla.Exploration(temperature=1.0, **steps)
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        policy(**both).loss.backward()
        optimizer.step()
    start = torch.cat([reward(draw()[0]) for _ in range(2)]).mean().item()
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    for _ in range(12):
        actions, log_prob, trace = draw()
        advantage = reward(actions) - reward(actions).mean()
        for _ in range(2):
            ratio = (policy.chunk_log_prob(**batch, exploration=exploration, trace=trace) - log_prob).exp()
            loss = clipped(ratio, advantage)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
    end = torch.cat([reward(draw()[0]) for _ in range(2)]).mean().item()
    assert start < 0.75 and end > 0.95


class TestBadInput:
    @of_each
    def test_dropout(self, framework):
        policy, batch = copy.deepcopy(policy_of(framework)), inputs_of(framework, 0)
        _, _, trace = policy.sample_chunk(**batch)
        policy.train()
        policy.vlm.model.language_model.layers[0].self_attn.attention_dropout = 0.1
        for call in (policy.sample_chunk, functools.partial(policy.chunk_log_prob, trace=trace)):
            with pytest.raises(ValueError, match=r"dropout is on .*policy\.eval\(\)"):
                call(**batch)

    @pytest.mark.parametrize(
        "setting, message",
        [
            ({"noisy_steps": "first"}, "noisy_steps is 'first'; it must be one of 'last', 'all', 'one'"),
            ({"noise_level": 0}, "noise_level is 0; it must be a number above 0"),
            ({"std": float("nan")}, "std is nan"),
            ({"noise_correlation": 1.0}, "noise_correlation is 1.0; it must be a number, at least 0, below 1"),
            ({"learned_std": 0.1}, "an hf_vla.LearnedStd"),
            ({"executed_steps": 2.5}, "executed_steps is 2.5; it must be a whole number"),
            ({"std": 0.1, "learned_std": hf_vla.LearnedStd(2)}, "learned_std replaces std"),
        ],
    )
    def test_impossible_settings(self, setting, message):
        with pytest.raises(ValueError, match=message):
            hf_vla.Exploration(**setting)

    def test_settings_of_other_frameworks(self):
        for framework, setting in (("qwen_oft", "noise_level"), ("qwen_pi", "std"), ("qwen_pi", "temperature")):
            with pytest.raises(ValueError, match=f"does not read {setting} of its exploration, only executed_steps, "):
                policy_of(framework).sample_chunk(
                    **inputs_of(framework, 0), exploration=hf_vla.Exploration(**{setting: 0.5})
                )

    def test_more_executed_steps_than_the_chunk_has(self):
        with pytest.raises(ValueError, match="executed_steps is 4; a chunk of this policy has 3"):
            policy_of("qwen_oft").sample_chunk(
                **inputs_of("qwen_oft", 0), exploration=hf_vla.Exploration(executed_steps=4)
            )

    def test_learned_std_of_other_steps(self):
        policy = policy_of("qwen_pi")
        exploration = hf_vla.Exploration(learned_std=policy.new_learned_std(), num_inference_steps=7)
        with pytest.raises(ValueError, match="learned_std is of 4 denoising steps, this exploration of 7"):
            policy.sample_chunk(**inputs_of("qwen_pi", 0), exploration=exploration)

    def test_traces_of_others(self):
        policy, batch = policy_of("qwen_oft"), inputs_of("qwen_oft", 0)
        _, _, trace = policy_of("qwen_pi").sample_chunk(**inputs_of("qwen_pi", 0))
        with pytest.raises(ValueError, match="the trace holds before, after, .*QwenOFT.* hold actions"):
            policy.chunk_log_prob(**batch, trace=trace)
        _, _, trace = policy.sample_chunk(**inputs_of("qwen_oft", 0, 1))
        with pytest.raises(ValueError, match="{'actions': 2} rows; 1 observations"):
            policy.chunk_log_prob(**batch, trace=trace)
