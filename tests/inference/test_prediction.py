"""`Policy.predict`: samples, the prompt, stages, and the trace of denoising and attention; where an image's tokens lie."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_policies import ACTION_DIM, HORIZON, OWN, STEPS, build, observation
from tiny_vlms import write_tiny_vlm

from hf_vla.inference.prediction import Recorder
from hf_vla.processing import backbone_families
from hf_vla.processing.image_layouts import LaidOutImages

FLOW_MATCHING = [
    name for name in OWN if name not in ("qwen_oft", "qwen_fast", "qwen_adapter", "qwen_discrete_diffusion")
]
flow_matching = pytest.mark.parametrize("framework", FLOW_MATCHING)


# ------------------------------------------------------------ predictions


@pytest.mark.parametrize("framework", OWN)
def test_a_prediction_is_what_infer_returns(framework):
    policy = build(framework)
    policy.reset(seed=3)
    expected = policy.infer(observation())
    assert set(policy.seconds) == {"processor", "model", "unnormalize"}
    following = policy.infer(observation())
    policy.reset(seed=3)
    for seed in (3, None):  # the seed's own draw, then the episode's first, which that has left alone
        prediction = policy.predict(observation(), seed=seed)
        assert prediction.actions.shape == (1, HORIZON, ACTION_DIM) and prediction.actions.dtype == np.float32
        assert np.array_equal(prediction.actions[0], expected)
    assert np.array_equal(policy.infer(observation()), following)
    assert prediction.unnorm_key == "arm"
    assert prediction.action_names == ["action 0", "action 1"]
    assert prediction.chunks is None and prediction.attention is None
    seconds = prediction.seconds
    assert min(seconds.values()) > 0
    if framework == "qwen_fast":  # the backbone itself writes the actions
        assert set(seconds) == {"processor", "model", "unnormalize"}
    else:
        assert set(seconds) == {"processor", "model", "backbone", "action head", "unnormalize"}
        assert seconds["backbone"] + seconds["action head"] == pytest.approx(seconds["model"])


@flow_matching
def test_samples_and_a_trace(framework):
    policy, calls = build(framework), []
    counted = policy.model.vlm.model.register_forward_hook(lambda *_: calls.append(1))
    drawn = policy.predict(observation(), num_samples=3, seed=3, trace=True)
    counted.remove()
    assert len(calls) == 1
    assert drawn.actions.shape == (3, HORIZON, ACTION_DIM)
    assert not np.allclose(drawn.actions[0], drawn.actions[1], atol=1e-3)
    np.testing.assert_allclose(drawn.actions[0], policy.predict(observation(), seed=3).actions[0], atol=1e-5)

    assert drawn.chunks.shape == (STEPS + 1, 3, HORIZON, ACTION_DIM)
    assert np.array_equal(drawn.chunks[-1], drawn.actions)
    noise = torch.randn(1, HORIZON, ACTION_DIM, generator=torch.Generator().manual_seed(3))
    assert np.array_equal(drawn.chunks[0, :1], policy.processor.unnormalize_actions(noise))

    blocks = 4 if framework == "qwen_pi_v3" else 2  # of four; in the other frameworks every second one attends itself
    assert [maps.shape for maps in drawn.attention] == [(blocks, STEPS, 2, 3), (blocks, STEPS, 3, 2)]
    assert all(maps.dtype == np.float32 and (maps > 0).all() for maps in drawn.attention)
    assert (sum(maps.sum(axis=(2, 3)) for maps in drawn.attention) < 1).all()  # the rest is on the text


@pytest.mark.parametrize("framework", ["qwen_pi_v3", "qwen_discrete_diffusion", "qwen_oft"])
def test_each_observation_of_a_batch_may_have_its_own_seed(framework):
    policy = build(framework)
    given = [observation(), observation() | {"state": [0.1, 3.5]}]
    together = policy.infer(given, seed=[3, 4])
    alone = [policy.infer(each, seed=seed) for each, seed in zip(given, (3, 4), strict=True)]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert np.array_equal(policy.infer(given, seed=[3, 3]), policy.infer(given, seed=3))
    for seeds, said in (([3], "1 seeds for 2 observations"), ([3, "x"], "seed is 'x'; give a whole number")):
        with pytest.raises(ValueError, match=said):
            policy.infer(given, seed=seeds)


def test_a_prediction_can_be_ended_between_denoising_steps():
    policy, steps = build("qwen_pi_v3"), []

    def stop(step):
        steps.append(step.index)
        if step.index == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        policy.infer(observation(), on_step=stop)
    assert steps == [0, 1]
    seen = policy.infer(observation(), seed=3, on_step=lambda step: None)
    assert np.array_equal(seen, policy.infer(observation(), seed=3))
    assert build("qwen_oft").infer(observation(), on_step=stop).shape == (HORIZON, ACTION_DIM)


def test_denoising_steps():
    policy = build("qwen_pi_v3")
    one, two = (policy.predict(observation(), seed=0, num_inference_steps=n, trace=True) for n in (1, 2))
    assert len(one.chunks) == 2 and len(two.chunks) == 3
    assert one.attention[0].shape[1] == 1
    assert np.array_equal(one.chunks[0], two.chunks[0]) and not np.allclose(one.actions, two.actions, atol=1e-4)


@pytest.mark.parametrize(
    ("framework", "given", "message"),
    [
        ("qwen_pi_v3", {"num_samples": 0}, "num_samples is 0; give a whole number, 1 or more"),
        ("qwen_pi_v3", {"num_samples": 2.5}, "num_samples is 2.5"),
        ("qwen_pi_v3", {"num_inference_steps": 0}, "num_inference_steps is 0"),
        ("qwen_pi_v3", {"num_inference_steps": True}, "num_inference_steps is True"),
        ("qwen_pi_v3", {"seed": "one"}, "seed is 'one'; give a whole number"),
        (
            "qwen_oft",
            {"num_samples": 2, "num_inference_steps": 3},
            "does not denoise .* leave out num_samples, num_inference_steps, or use .* QwenPI, QwenPI_v3, QwenGR00T",
        ),
    ],
)
def test_bad_arguments(framework, given, message):
    with pytest.raises(ValueError, match=message):
        build(framework).predict(observation(), **given)


@pytest.mark.parametrize("framework", ["qwen_oft", "qwen_adapter", "qwen_fast"])
def test_a_trace_of_a_policy_that_does_not_denoise(framework):
    """Where the backbone attends from the tokens that become actions: as its own attention weights say."""
    policy = build(framework)
    traced = policy.predict(observation(), trace=True)
    np.testing.assert_allclose(traced.actions, policy.predict(observation()).actions, atol=1e-4)
    config = policy.model.config
    layers = getattr(config, "num_action_layers", config.vlm_num_layers)  # of the backbone that are run
    assert traced.chunks is None and [maps.shape for maps in traced.attention] == [
        (layers, 1, 2, 3),
        (layers, 1, 3, 2),
    ]
    whole = sum(maps.sum(axis=(1, 2, 3)) for maps in traced.attention)
    assert (whole > 0).all() and (whole < 1).all()  # the rest is text
    assert policy.model.vlm.get_decoder().config._attn_implementation != "eager"
    if framework != "qwen_oft":
        return
    given = observation()
    inputs = policy.processor(images=[given["image"]], text=[given["lang"]], state=[given["state"]])
    decoder = policy.model.vlm.get_decoder()
    kept, decoder.config._attn_implementation = decoder.config._attn_implementation, "eager"
    try:
        with torch.no_grad():
            weights = policy.model.vlm.model(**inputs, output_attentions=True).attentions
    finally:
        decoder.config._attn_implementation = kept
    rows = inputs["input_ids"][0] == policy.model.config.action_token_id
    (positions,) = policy.processor.image_token_positions([given["image"]], inputs["input_ids"], None)
    for layer in range(layers):
        expected = weights[layer][0][:, rows].mean(dim=(0, 1)).numpy()
        np.testing.assert_allclose(traced.attention[0][layer, 0], expected[positions[0][..., 0]], atol=1e-6)


def test_a_seed_of_infer_is_each_observations_own():
    policy = build("qwen_gr00t")
    one, other = observation(), observation() | {"lang": "go"}
    expected = [policy.predict(o, seed=5, num_inference_steps=2).actions[0] for o in (one, other)]
    together = policy.infer([one, other], seed=5, num_inference_steps=2)
    np.testing.assert_allclose(together, expected, atol=1e-5)
    assert np.array_equal(policy.infer(one, seed=5, num_inference_steps=2), expected[0])
    assert not np.allclose(policy.infer(one, seed=6, num_inference_steps=2), expected[0], atol=1e-3)
    with pytest.raises(ValueError, match="leave out num_inference_steps"):
        build("qwen_oft").infer(one, num_inference_steps=2)


def test_one_observation():
    with pytest.raises(ValueError, match="for observations; give one"):
        build("qwen_pi_v3").predict([observation()])


# ------------------------------------------------------------------ hooks


@flow_matching
def test_steps_and_attention_of_a_batch(framework):
    """Two prompts of unequal lengths, two draws each, and in real-time chunking too."""
    policy = build(framework)
    views, state = observation()["image"], np.array([[0.5, 3.0]] * 2)
    inputs = policy.processor(images=[views, views[::-1]], text=["go", "open the drawer"], state=state)
    noise = torch.randn(4, HORIZON, ACTION_DIM, generator=torch.Generator().manual_seed(1))
    for real_time in ({}, {"previous_chunk": torch.zeros(2, 2, ACTION_DIM), "inference_delay": 1}):
        plain = policy.model.predict_action(**inputs, noise=noise, **real_time)
        for draw, expected in zip(noise.split(2), plain.split(2), strict=True):  # each draw of the whole batch
            one = policy.model.predict_action(**inputs, noise=draw, **real_time)
            assert torch.allclose(one, expected, atol=1e-5)
        bare, steps = [], []
        assert torch.equal(policy.model.predict_action(**inputs, noise=noise, on_step=bare.append, **real_time), plain)
        chunk = policy.model.predict_action(
            **inputs, noise=noise, on_step=steps.append, output_attentions=True, **real_time
        )
        assert torch.allclose(chunk, plain, atol=1e-5)
        assert all(step.attention == () for step in bare)
        assert [(step.index, step.time) for step in steps] == [(0, 0), (1, 0.25), (2, 0.5), (3, 0.75)]
        assert torch.equal(steps[0].noisy_actions, noise)
        assert all(torch.equal(a.actions, b.noisy_actions) for a, b in zip(steps, steps[1:], strict=False))
        free = 1 if real_time else 0
        assert torch.equal(steps[-1].actions[:, free:], chunk[:, free:])
        for step in steps:
            assert not step.actions.requires_grad
            reads = [weights is not None for weights in step.attention]
            assert reads == ([True] * 4 if framework == "qwen_pi_v3" else [True, False] * 2)
            for weights in (w for w in step.attention if w is not None):
                assert weights.dtype == torch.float32 and not weights.requires_grad
                rows, _, queries, keys = weights.shape
                assert rows == 4
                assert queries == (HORIZON if framework == "qwen_pi_v3" else HORIZON + 5)
                assert keys >= inputs["input_ids"].shape[1]
                assert torch.allclose(weights.sum(dim=-1), torch.ones(()), atol=1e-5)
                if framework != "qwen_dual":  # which was trained on unmasked padding
                    assert (weights[[0, 2]][..., inputs["attention_mask"][0] == 0] == 0).all()


def test_attention_needs_someone_to_give_it_to():
    policy = build("qwen_pi_v3")
    inputs = policy.processor(images=observation()["image"], text="go")
    with pytest.raises(ValueError, match="pass on_step"):
        policy.model.predict_action(**inputs, output_attentions=True)


@pytest.mark.parametrize("rows", [0, 3])
def test_noise_that_fits_no_batch(rows):
    policy = build("qwen_pi_v3")
    views = observation()["image"]
    inputs = policy.processor(images=[views] * 2, text=["go"] * 2)
    with pytest.raises(ValueError, match=r"noise has shape .* draws from \(2, 3, 2\), or R times as many rows"):
        policy.model.predict_action(**inputs, noise=torch.zeros(rows, HORIZON, ACTION_DIM))


# ------------------------------------------------------- images in prompts


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory):
    return write_tiny_vlm(tmp_path_factory.mktemp("smolvlm"))


def image_states(policy, views, text="go"):
    """What the backbone's first layer reads, (L, hidden_size), and where each view's tokens lie."""
    inputs = policy.processor(images=[[views[0]], views], text=["move", text])
    positions = policy.processor.image_token_positions([[views[0]], views], inputs["input_ids"])
    assert [len(of_sample) for of_sample in positions] == [1, len(views)]
    return policy.model.backbone_states(**inputs)[0][1], positions[1]


@pytest.mark.parametrize(
    ("family", "shapes", "grids"),
    [
        ("qwen3_vl", [(64, 96, 3), (96, 64, 3)], [(2, 3, 1), (3, 2, 1)]),
        ("smolvlm", [(32, 64, 3), (64, 64, 3)], [(2, 4, 2), (4, 4, 2)]),  # split into frames, and the whole
    ],
)
@torch.no_grad()
def test_tokens_lie_where_the_image_changes(family, shapes, grids, smolvlm):
    """Whatever cell of whatever view is painted, its tokens change more than all others."""
    policy = build("qwen_gr00t", folder=smolvlm if family == "smolvlm" else None)
    views = [np.full(shape, 60, np.uint8) for shape in shapes]
    before, positions = image_states(policy, views)
    assert [p.shape for p in positions] == grids
    for view, (rows, columns, layers) in enumerate(grids):
        for row in range(rows):
            for column in range(columns):
                painted = [image.copy() for image in views]
                height, width = shapes[view][0] // rows, shapes[view][1] // columns
                painted[view][row * height : (row + 1) * height, column * width : (column + 1) * width] = 250
                change = (image_states(policy, painted)[0] - before).norm(dim=-1)
                expected = positions[view][row, column]
                assert len(expected) == layers
                assert int(change.argmax()) in expected, (view, row, column)
                if layers == 2:  # of the tokens of the view of the whole, too
                    whole = np.unique(positions[view][..., 1])
                    assert whole[change[whole].argmax()] == expected[1], (view, row, column)


def test_an_image_that_is_not_split(smolvlm):
    policy = build("qwen_gr00t", folder=smolvlm)
    processor = policy.processor
    splits, processor.image_processor.do_image_splitting = processor.image_processor.do_image_splitting, False
    try:
        prediction = policy.predict(observation(), trace=True)
    finally:
        processor.image_processor.do_image_splitting = splits
    assert [maps.shape for maps in prediction.attention] == [(2, STEPS, 2, 2)] * 2


@pytest.mark.parametrize("family", ["qwen3_vl", "smolvlm"])
def test_the_prompt_is_the_text_of_the_tokens(family, smolvlm):
    policy = build("qwen_pi_v3", folder=smolvlm if family == "smolvlm" else None)
    given = observation() | {"lang": "öffne  the 抽屉 ××"}
    prediction = policy.predict(given)
    inputs = policy.processor(images=[given["image"]], text=[given["lang"]], state=[given["state"]])
    assert np.array_equal(prediction.input_ids, inputs["input_ids"][0])
    exact = policy.processor.tokenizer.decode(prediction.input_ids)
    token, count = {"qwen3_vl": ("<|image_pad|>", 6), "smolvlm": ("<image>", 4)}[family]
    assert f"{token}×{count}" in prediction.prompt and token * 2 not in prediction.prompt
    assert prediction.prompt.replace(f"{token}×{count}", token * count) == exact
    assert given["lang"] in prediction.prompt


def test_attention_of_a_cell():
    """Weights as if read: 0.5 on one token, 0.2 on one that covers four cells, and the rest on text."""

    class Step:
        noisy_actions = actions = torch.zeros(1, HORIZON, ACTION_DIM)
        attention = (torch.zeros(1, 2, 3, 12), None)

    Step.attention[0][..., 4], Step.attention[0][..., 10], Step.attention[0][..., 0] = 0.5, 0.2, 0.3
    recorder = Recorder([np.stack([np.arange(1, 9).reshape(2, 4), np.full((2, 4), 10)], axis=-1)])
    recorder(Step)
    (maps,) = recorder.attention()
    expected = np.full((1, 1, 2, 4), 0.2 / 8)
    expected[..., 0, 3] += 0.5
    np.testing.assert_allclose(maps, expected, atol=1e-6)


def test_images_of_other_prompts():
    policy = build("qwen_pi_v3")
    views = observation()["image"]
    input_ids = policy.processor(images=views, text="go")["input_ids"]
    with pytest.raises(ValueError, match="a prompt has 12 image tokens, its 1 images make 6"):
        policy.processor.image_token_positions(views[:1], input_ids)


def test_a_family_that_does_not_tell_its_grids(monkeypatch):
    policy = build("qwen_pi_v3")
    without = replace(backbone_families.family_of("qwen3_vl"), layout=lambda *_: LaidOutImages([], {}))
    monkeypatch.setitem(backbone_families._FAMILIES, without.name, without)
    with pytest.raises(ValueError, match="is not known for backbones with a Qwen2VLImageProcessor.*give `grids`"):
        policy.processor.image_token_positions(observation()["image"], torch.zeros(1, 4))
