"""The policies agree with what was recorded from StarVLA's own code (float32, CPU)."""

import numpy as np
import pytest
import torch
from reference_cases import REFERENCE, Case, ReferenceCases, meta_of

from hf_vla.registry import starvla_mapping

#: variant -> how far predictions from the images may differ: Qwen2.5-VL's image resizing is another library's there
VARIANTS = {
    "QwenPI_v3": 1e-5,
    "QwenPI_v3__interleave": 1e-5,
    "QwenPI_v3__qwen25": 1e-5,
    "QwenPI": 1e-5,
    "QwenGR00T": 1e-5,
    "QwenOFT": 1e-5,
    "QwenAdapter": 1e-5,
    "QwenDiscreteDiffusion": 1e-5,
}
CASES = [(name, case) for name in VARIANTS for case in meta_of(name)["cases"]]
TOLERANCE = 1e-5


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return (ours - theirs).abs().max().item()


@pytest.fixture(params=CASES, ids="-".join, scope="module")
def name_and_case(request) -> tuple[str, str]:
    return request.param


@pytest.fixture(scope="module")
def variant(name_and_case) -> str:
    return name_and_case[0]


@pytest.fixture(scope="module")
def case(reference: ReferenceCases, name_and_case) -> Case:
    return reference.case(*name_and_case)


@pytest.fixture(scope="module")
def policy(reference: ReferenceCases, variant):
    return reference.policy(variant)


@pytest.mark.parametrize("mode", ["forward", "predict"])
def test_hidden_states(policy, case, mode):
    inputs = case.backbone_inputs(mode)
    with torch.no_grad():
        states = policy.backbone_states(**inputs)
    attended = inputs["attention_mask"].bool()
    assert len(states) == policy.config.vlm_num_layers + 1
    for index, state in enumerate(states):
        recorded = case.tensor(f"{mode}/hidden_{index}")[attended]
        # Relative to the states' size, 2 to 8: what was recorded is itself up to 9e-6 from the same in float64, by rounding
        # that differs between processors with and without AVX-512.
        assert difference(state[attended], recorded) < TOLERANCE * max(1, recorded.abs().max().item())


def test_loss_and_gradients(reference, policy, variant, case):
    policy.zero_grad()
    torch.manual_seed(reference.meta(variant)["seed_forward"])  # for discrete diffusion, whose draws were not recorded
    loss = policy(**case.model_inputs("forward")).loss
    assert abs(loss.item() - case.meta["loss"]) < TOLERANCE
    loss.backward()
    gradients = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    for name, norm in case.meta["grad_norm"].items():
        gradient = gradients.pop(starvla_mapping(policy.config.model_type).rename(name), None)
        ours = 0.0 if gradient is None else gradient.double().norm().item()
        assert abs(ours - norm) < TOLERANCE * max(1, norm), name
    assert not gradients, "parameters with a gradient that have none in StarVLA"


def test_parameters_without_gradient_are_the_same(policy, case):
    parameters = {name for name, _ in policy.named_parameters()}
    rename = starvla_mapping(policy.config.model_type).rename
    assert parameters == {rename(name) for name in [*case.meta["grad_norm"], *case.meta["no_grad"]]}


def test_prediction(reference, policy, variant, case):
    torch.manual_seed(reference.meta(variant)["seed_predict"])
    actions = policy.predict_action(**case.model_inputs("predict"))
    assert actions.dtype == torch.float32
    assert difference(actions, case.tensor("predict/normalized_actions")) < TOLERANCE


def test_a_seed_gives_the_same_draw(reference, policy, variant, case):
    meta = reference.meta(variant)
    drawn = ("noise", "timestep")
    inputs = {name: x for name, x in case.model_inputs("forward").items() if name not in drawn}
    torch.manual_seed(meta["seed_forward"])
    with torch.no_grad():
        assert abs(policy(**inputs).loss.item() - case.meta["loss"]) < TOLERANCE
    inputs = {name: x for name, x in case.model_inputs("predict").items() if name not in drawn}
    torch.manual_seed(meta["seed_predict"])
    assert difference(policy.predict_action(**inputs), case.tensor("predict/normalized_actions")) < TOLERANCE


def test_prompts(reference, variant, case, monkeypatch):
    processor = reference.processor(variant)
    observations = {"images": case.images(), "text": case.meta["lang"], "state": case.stacked("state")}
    for mode in ("predict", "forward"):
        recorded = case.backbone_inputs(mode)
        if mode == "forward":  # StarVLA's loss does not resize
            monkeypatch.setattr(processor, "image_size", None)
        inputs = processor(**observations, normalized=True)
        for name in ("input_ids", "attention_mask", "image_grid_thw"):
            assert torch.equal(inputs[name].long(), recorded[name].long()), name
        if mode == "forward":
            assert processor.tokenizer.batch_decode(inputs["input_ids"]) == case.meta["forward_text"]


def test_prediction_from_images(reference, policy, variant, case):
    processor = reference.processor(variant)
    assert processor.image_size == [96, 64]
    inputs = processor(case.images(), case.meta["lang"], case.stacked("state"), normalized=True)
    torch.manual_seed(reference.meta(variant)["seed_predict"])
    actions = policy.predict_action(**inputs, noise=case.tensor("predict/randn_0"))
    assert difference(actions, case.tensor("predict/normalized_actions")) < VARIANTS[variant]


@pytest.mark.parametrize("variant", VARIANTS)
def test_unnormalised_actions(reference, variant):
    recorded = np.load(REFERENCE / variant / "unnorm_oxe_bridge.npz")
    actions = reference.processor(variant).unnormalize_actions(recorded["normalized"], unnorm_key="oxe_bridge")
    assert np.abs(actions - recorded["unnormalized"]).max() < TOLERANCE
