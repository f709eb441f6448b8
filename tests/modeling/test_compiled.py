"""One graph: plans of batches, static forward, `compile_for_inference`, the loss under torch.compile; what a GPU would wait for."""

import copy

import numpy as np
import pytest
import torch
from counting import Launches
from reference_cases import base_vlm, meta_of
from test_reference_cases import TOLERANCE, VARIANTS, difference
from tiny_policies import ACTION_DIM, HORIZON, OWN, build, observation
from tiny_vlms import write_tiny_vlm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen3VLConfig

from hf_vla import Policy, QwenPIV3Config, QwenPIV3ForActionPrediction
from hf_vla.modeling import compiled_sampling
from hf_vla.modeling.backbone import layer_states
from hf_vla.modeling.compiled_sampling import CompiledSampling
from hf_vla.modeling.sampling import SamplingOptions
from hf_vla.modeling.static_backbone import make_plan

QWEN3, QWEN25 = "Qwen3-VL-4B-Instruct", "Qwen2.5-VL-3B-Instruct"
DENOISING = [name for name in OWN if build(name).denoises]


@pytest.fixture(autouse=True)
def no_graphs_of_others():
    torch.compiler.reset()


class Graphs:
    """A backend that keeps the graphs."""

    def __init__(self):
        self.found = []

    def __call__(self, graph, example_inputs):
        self.found.append((graph, example_inputs))
        return graph

    def __deepcopy__(self, memo):
        return self  # transformers copies its settings


def batch(policy, actions: bool = False) -> dict:
    """Two samples with unequal views, image sizes and instructions; with padding and a state each."""
    first = observation()
    processed = policy.processor(
        images=[first["image"], first["image"][:1]],
        text=[first["lang"], "put the red block on the plate"],
        state=np.array([first["state"], [0.1, 2.5]]),
        actions=np.random.default_rng(0).uniform(2, 3, (2, HORIZON, ACTION_DIM)) if actions else None,
    )
    return dict(processed)


def noise(rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, HORIZON, ACTION_DIM, generator=torch.Generator().manual_seed(0))


def static_call(policy, inputs: dict, **options):
    """`sample_actions` as it is compiled, not compiled."""
    options = policy.prepared_options(SamplingOptions(**options), len(inputs["input_ids"]))
    with torch.no_grad():
        return policy.sample_actions(options, **CompiledSampling().planned(policy, inputs)).float()


# ---------------------------------------------------------------------------------------------- plan and forward


@pytest.mark.parametrize("family", [QWEN3, QWEN25])
def test_rotary_positions_are_transformers(family):
    """Of prompts with several images, one after the other or apart, padded on either side."""
    vlm = build("qwen_oft", base_vlm(family)).model.vlm
    side = 2 * vlm.model.visual.patch_size
    image, grids = vlm.config.image_token_id, torch.tensor([[1, 4, 6], [1, 2, 2], [1, 6, 4], [1, 4, 4]])
    counts = [6, 1, 6, 4]
    rows = [
        [*[5] * 3, *[image] * counts[0], 6, *[image] * counts[1], *[7] * 4],
        [0, 0, 0, 5, *[image] * counts[2], *[7] * 5],
        [5, *[image] * counts[3], *[8] * 3, *[0] * 7],
    ]
    ids = torch.tensor(rows)
    mask = (ids != 0).long()
    types = (ids == image).int()
    positions, _ = vlm.model.get_rope_index(ids, types, image_grid_thw=grids, attention_mask=mask)
    expected = vlm.model.language_model.rotary_emb(torch.empty(0), positions)
    patches = torch.empty(int(grids.prod(1).sum()), 3 * 2 * (side // 2) ** 2)
    plan = make_plan(vlm, ids, mask, patches, grids)
    cosines, sines = plan.token_rotation
    assert torch.equal(cosines[:, :, 0], expected[0])
    assert torch.equal(sines[:, :, 0].abs(), expected[1].abs())
    assert torch.equal(plan.image_places, types.flatten().nonzero()[:, 0])


@pytest.mark.parametrize(("variant", "case"), [(v, c) for v in VARIANTS for c in meta_of(v)["cases"]])
def test_reference_cases_without_host_reads(reference, variant, case):
    """What StarVLA predicted, by the static forward."""
    policy = reference.policy(variant)
    inputs = reference.case(variant, case).model_inputs("predict")
    expected = reference.case(variant, case).tensor("predict/normalized_actions")
    torch.manual_seed(reference.meta(variant)["seed_predict"])
    assert difference(static_call(policy, inputs, noise=inputs.pop("noise", None)), expected) < TOLERANCE


# --------------------------------------------------------------------------------------------------- whole calls


@pytest.mark.parametrize(
    ("framework", "family"),
    [(name, family) for name in OWN if name != "qwen_fast" for family in (QWEN3, QWEN25)],
)
def test_a_prediction_is_one_graph_that_never_waits(framework, family):
    policy = build(framework, base_vlm(family))
    inputs, given = batch(policy), {"noise": noise(), "num_inference_steps": 2} if framework in DENOISING else {}
    expected = policy.model.predict_action(**inputs, **given)
    graphs = Graphs()
    policy.model.compile_for_inference(backend=graphs)
    try:
        for _ in range(2):
            found = policy.model.predict_action(**inputs, **given)
            assert torch.allclose(found, expected, atol=1e-5)
        ((graph, example_inputs),) = graphs.found
    finally:
        policy.model.compiled_sampling = None
    (result,) = without_numbers(graph, example_inputs)
    assert result.shape == expected.shape


def without_numbers(graph: torch.fx.GraphModule, example_inputs: list) -> tuple[torch.Tensor, ...]:
    """Run a graph on a device whose tensors hold no numbers, which raises where the host would read or copy any."""
    nowhere = torch.device("meta")
    for node in graph.graph.nodes:
        node.kwargs = {name: nowhere if isinstance(x, torch.device) else x for name, x in node.kwargs.items()}
        node.args = tuple(nowhere if isinstance(x, torch.device) else x for x in node.args)
    graph.recompile()

    class OnOneDevice(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            result = operator(*args, **(kwargs or {}))
            for x in tree_leaves(result):
                assert not isinstance(x, torch.Tensor) or x.is_meta, operator
            return result

    with OnOneDevice(), torch.no_grad():
        return graph(*(x.to(nowhere) if isinstance(x, torch.Tensor) else x for x in example_inputs))


@pytest.mark.parametrize(("framework", "family"), [(name, family) for name in OWN for family in (QWEN3, QWEN25)])
def test_a_loss_is_one_graph_that_never_waits(framework, family):
    model = build(framework, base_vlm(family)).model
    inputs = batch(build(framework, base_vlm(family)), actions=True)
    if framework in DENOISING:
        inputs |= {"noise": noise(4), "timestep": torch.tensor([0.1, 0.4, 0.6, 0.9])}
    inputs["sample_weight"] = torch.tensor([1.0, 0.5])

    def gradients(forward):
        model.zero_grad()
        loss = forward(**inputs).loss
        loss.backward()
        return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected, of_parameters = gradients(model.forward)
    graphs = Graphs()
    found, ours = gradients(torch.compile(model, backend=graphs, fullgraph=True))
    ((graph, example_inputs),) = graphs.found
    assert without_numbers(graph, example_inputs)[0].shape == ()
    model.zero_grad(set_to_none=True)
    assert torch.allclose(found, expected, atol=1e-5) and ours.keys() == of_parameters.keys()
    for name, gradient in of_parameters.items():
        assert difference(ours[name], gradient) < 1e-5 * max(1, gradient.abs().max().item()), name


@pytest.mark.parametrize("framework", DENOISING)
def test_a_loss_whose_draws_are_not_given_is_one_graph(framework):
    model, inputs = build(framework).model, batch(build(framework), actions=True)
    torch.manual_seed(0)
    expected = model(**inputs).loss
    torch.manual_seed(0)
    found = torch.compile(model, backend="eager", fullgraph=True)(**inputs).loss
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.fixture
def policy():
    """A tiny PI_v3 of its own, whose compiling concerns no other test."""
    shared = build("qwen_pi_v3")
    model = copy.deepcopy(shared.model)
    model.config.num_inference_steps = 2
    return Policy(model, shared.processor)


@pytest.fixture
def regressing():
    """The same of OFT, which is compiled sooner."""
    shared = build("qwen_oft")
    return Policy(copy.deepcopy(shared.model), shared.processor)


def test_one_graph_continues_every_previous_chunk(policy):
    """Real-time chunking: whatever the delay, and however much is left of the previous chunk."""
    given = [(np.full((left, ACTION_DIM), 2.5, np.float32), delay) for left, delay in ((2, 1), (3, 0), (1, 1))]
    expected = [policy.infer(observation(), *chunk, seed=1) for chunk in given]
    graphs = Graphs()
    policy.model.compile_for_inference(backend=graphs)
    for chunk, actions in zip(given, expected, strict=True):
        np.testing.assert_allclose(policy.infer(observation(), *chunk, seed=1), actions, atol=1e-5)
    ((graph, example_inputs),) = graphs.found
    without_numbers(graph, example_inputs)


def test_several_draws_and_a_trace(policy):
    expected = policy.predict(observation(), num_samples=3, seed=1).actions
    policy.model.compile_for_inference(backend="eager")
    found = policy.predict(observation(), num_samples=3, seed=1).actions
    np.testing.assert_allclose(found, expected, atol=1e-5)
    traced = policy.predict(observation(), seed=1, trace=True)  # not compiled: it looks between denoising steps
    assert len(traced.chunks) == 2 + 1


def test_a_policy_is_compiled_in_advance(regressing):
    """For the batch sizes and views given; then for other instructions of about this length too."""
    given = {**observation(), "state": None}  # whether its prompts tell states is not known, so the graphs are without
    graphs, expected = Graphs(), regressing.infer(given)
    sizes = [(96, 64), (64, 96)]
    regressing.compile_for_inference(batch_sizes=(1, 2), views=sizes, instruction="shut the drawer", backend=graphs)
    assert len(graphs.found) == 2
    np.testing.assert_allclose(regressing.infer(given), expected, atol=1e-5)
    assert len(graphs.found) == 2
    with pytest.raises(ValueError, match="batch_size is 0"):
        regressing.compile_for_inference(batch_sizes=(0,), backend=graphs)


def test_compiled_when_loaded(regressing, tmp_path):
    regressing.save_pretrained(tmp_path)
    expected = regressing.infer(observation(), seed=1)
    loaded = Policy.from_pretrained(str(tmp_path), device="cpu", compile={"backend": "eager", "batch_sizes": ()})
    np.testing.assert_allclose(loaded.infer(observation(), seed=1), expected, atol=1e-5)
    assert loaded.untrained().model.compiled_sampling is None and copy.deepcopy(loaded.model).compiled_sampling is None


def test_weights_that_change_are_those_that_predict(regressing):
    regressing.model.compile_for_inference(backend="eager")
    before = regressing.infer(observation(), seed=1)
    with torch.no_grad():
        for parameter in regressing.model.parameters():
            parameter.mul_(1.05)
    after = regressing.infer(observation(), seed=1)
    regressing.model.compiled_sampling = None
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(regressing.infer(observation(), seed=1), after, atol=1e-5)


def test_where_nothing_can_be_compiled(regressing, monkeypatch):
    """Such as without a C++ compiler: calls run as before, and it says why."""
    expected, calls, said = regressing.infer(observation(), seed=1), [], []
    monkeypatch.setattr(compiled_sampling.logger, "warning", said.append)

    def broken(graph, example_inputs):
        calls.append(1)
        raise RuntimeError("no compiler")

    regressing.model.compile_for_inference(backend=broken)
    for _ in range(2):
        np.testing.assert_allclose(regressing.infer(observation(), seed=1), expected, atol=1e-5)
    assert len(calls) == 1
    assert len(said) == 1 and "can't be compiled, so this call runs as before" in said[0] and "no compiler" in said[0]


def test_other_backbones_run_as_before(tmp_path, monkeypatch):
    policy, said = build("qwen_oft", write_tiny_vlm(tmp_path / "vlm")), []
    monkeypatch.setattr(compiled_sampling.logger, "warning_once", said.append)
    expected = policy.infer(observation())
    policy.model.compile_for_inference(backend="eager")
    try:
        np.testing.assert_array_equal(policy.infer(observation()), expected)
    finally:
        policy.model.compiled_sampling = None
    assert len(said) == 1 and "does not run as one compiled graph: its model type is" in said[0]


# -------------------------------------------------------------------------------------------------------- launches


def deep_pi_v3(layers: int, depth: int):
    """PI_v3 of these numbers of layers in language model and head, and in the vision tower, very narrow; one 224² view."""
    text = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 32,
    }
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
    vision = {"depth": depth, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32}
    vision |= {"patch_size": 16, "deepstack_visual_indexes": [5, 11, 17], "num_position_embeddings": 64}
    vlm_config = Qwen3VLConfig(
        text_config={**text, "num_hidden_layers": layers, "vocab_size": 64, "rope_parameters": rope},
        vision_config=vision,
        image_token_id=60,
    )
    config = QwenPIV3Config(
        vlm_config=vlm_config, action_hidden_size=32, attention_head_dim=16, interleave_self_attention=False
    )
    policy = QwenPIV3ForActionPrediction(config).eval()
    ids = torch.full((1, 111), 5)
    ids[:, 4:68] = 60
    inputs = {"input_ids": ids, "pixel_values": torch.randn(256, 3 * 2 * 16**2)}
    return policy, inputs | {"image_grid_thw": torch.tensor([[1, 16, 16]])}


def test_launches_of_a_chunk_at_full_depth():
    """At most 3,500 with the 4 B backbone: 36 layers, 24 in the vision tower, 4 denoising steps; RMSNorm counted as 6."""
    policy, inputs = deep_pi_v3(36, 24)
    with Launches() as ordinary:
        expected = policy.predict_action(**inputs, noise=torch.zeros(1, policy.config.action_horizon, 7))
    options = policy.prepared_options(SamplingOptions(noise=torch.zeros(1, policy.config.action_horizon, 7)), 1)
    inputs = CompiledSampling().planned(policy, inputs)
    with torch.no_grad(), Launches() as static:
        found = policy.sample_actions(options, **inputs)
    assert torch.allclose(found, expected, atol=1e-5)
    assert static.number <= 3500 < ordinary.number


@pytest.mark.parametrize("family", [QWEN3, QWEN25])
def test_fast_writes_its_tokens_by_one_graph(family):
    policy = build("qwen_fast", base_vlm(family))
    inputs = batch(policy)
    expected, graphs = policy.model.predict_action(**inputs), Graphs()
    policy.model.compile_for_inference(backend=graphs)
    try:
        assert torch.equal(policy.model.predict_action(**inputs), expected)
    finally:
        policy.model.decoding = {}
    ((graph, example_inputs),) = graphs.found
    without_numbers(graph, example_inputs)


@pytest.mark.parametrize("convention", ["transformers-4.57", "transformers-5"])
@torch.no_grad()
def test_no_layer_runs_after_the_last_that_is_read(convention):
    vlm = build("qwen_adapter").model.vlm
    inputs = {
        name: x for name, x in batch(build("qwen_adapter")).items() if name not in ("state", "mm_token_type_ids")
    }
    expected, plan = layer_states(vlm, convention, **inputs), make_plan(vlm, **inputs)
    ran = []
    hooks = [layer.mlp.register_forward_hook(lambda *_: ran.append(1)) for layer in vlm.get_decoder().layers]
    try:
        for up_to in (-1, 0, 1, 3):
            ran.clear()
            states = layer_states(vlm, convention, plan=plan, up_to=up_to, **inputs)
            assert len(ran) == len(states) - 1 == up_to % len(expected)
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(states, expected, strict=False))
            ran.clear()
            ordinary = layer_states(vlm, convention, up_to=up_to, **inputs)
            assert len(ordinary) == len(states) and torch.equal(ordinary[-1], expected[len(states) - 1])
            assert len(ran) == up_to % len(expected)
    finally:
        for hook in hooks:
            hook.remove()
