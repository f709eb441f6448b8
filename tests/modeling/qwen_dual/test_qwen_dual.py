"""QwenDual: StarVLA's recorded case, DINOv2 in Meta's format, several views, padding, files, bad input."""

import numpy as np
import pytest
import torch
from reference_cases import REFERENCE, base_vlm
from torch import nn
from transformers import AutoConfig, AutoModel, AutoProcessor, Dinov2Config, Dinov2Model

from hf_vla import QwenDualConfig, QwenDualForActionPrediction, QwenDualProcessor
from hf_vla.checkpoints.starvla_writer import save_repository
from hf_vla.modeling.qwen_dual import dinov2_names as dinov2
from hf_vla.modeling.qwen_dual.dino import DinoEncoder
from hf_vla.modeling.qwen_dual.processing_qwen_dual import dino_pixels
from hf_vla.registry import starvla_mapping

TOLERANCE = 1e-5  # 1e-4 is asked for
HORIZON, ACTION_DIM, STATE_DIM = 4, 5, 3
DINO = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 518, "patch_size": 14}
FIELDS = {
    "action_dim": ACTION_DIM,
    "state_dim": STATE_DIM,
    "action_horizon": HORIZON,
    "action_hidden_size": 32,
    "num_action_layers": 3,
    "attention_head_dim": 16,
    "output_dim": 24,
    "dropout": 0.0,
    "num_future_tokens": 4,
    "dino_config": DINO,
    "image_size": [64, 64],
}
convert = starvla_mapping("qwen_dual").convert


@pytest.fixture(scope="module")
def policy(reference):
    return reference.policy("QwenDual")


@pytest.fixture(scope="module")
def processor(reference):
    return reference.processor("QwenDual")


@pytest.fixture(scope="module")
def case(reference):
    return reference.case("QwenDual", "a")


@pytest.fixture(scope="module")
def tiny():
    """A tiny policy with random weights that masks padding, and its processor."""
    torch.manual_seed(0)
    return QwenDualForActionPrediction.from_vlm(base_vlm(), random_init=True, mask_padding=True, **FIELDS)


def observations(views=(1, 2, 1), texts=("open the drawer", "put the red block on the green plate", "stop")):
    rng = np.random.default_rng(0)
    images = [[rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(number)] for number in views]
    state = rng.uniform(-1, 1, (len(texts), STATE_DIM))
    return {"images": images, "text": list(texts), "state": state, "normalized": True}


def noise(samples=3):
    return torch.randn(samples, HORIZON, ACTION_DIM, generator=torch.Generator().manual_seed(1))


def single(batch, i):
    return {name: x if name == "normalized" else x[i : i + 1] for name, x in batch.items()}


class TestRecorded:
    """Agreement with what was recorded from StarVLA's own code, from the images on."""

    @pytest.mark.parametrize("mode", ["forward", "predict"])
    def test_backbone_inputs(self, processor, case, mode):
        """Images are resized in training too, before both encoders."""
        assert processor.image_size == [96, 64]
        inputs = processor(case.images(), case.meta["lang"], normalized=True)
        recorded = case.backbone_inputs(mode)
        for name in ("input_ids", "attention_mask", "image_grid_thw"):
            assert torch.equal(inputs[name].long(), recorded[name].long()), name
        assert torch.allclose(inputs["pixel_values"], recorded["pixel_values"], atol=1e-6)

    def test_loss_and_gradients(self, policy, processor, case):
        policy.zero_grad()
        batch = processor(case.images(), case.meta["lang"], actions=case.stacked("action"), normalized=True)
        draw = {"noise": case.tensor("forward/randn_0"), "timestep": case.tensor("forward/t")}
        loss = policy(**batch, **draw).loss
        loss.backward()
        assert abs(loss.item() - case.meta["loss"]) < TOLERANCE
        parameters = dict(policy.named_parameters())
        without = {name for name, p in parameters.items() if p.grad is None}
        gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}
        policy.zero_grad()
        gradients = convert(gradients, to_starvla=True)
        assert set(case.meta["no_grad"]) == set(convert({n: parameters[n] for n in without}, to_starvla=True))
        for name, norm in case.meta["grad_norm"].items():
            assert abs(gradients[name].double().norm().item() - norm) < TOLERANCE * max(1, norm), name

    def test_prediction(self, policy, processor, case):
        inputs = processor(case.images(), case.meta["lang"], normalized=True)
        draw = case.tensor("predict/randn_0")
        for given in (inputs, {**inputs, **case.backbone_inputs("predict")}):
            actions = policy.predict_action(**given, noise=draw)
            assert (actions - case.tensor("predict/normalized_actions")).abs().max() < TOLERANCE

    def test_a_seed_gives_the_same_draw(self, reference, policy, processor, case):
        inputs = processor(case.images(), case.meta["lang"], normalized=True)
        torch.manual_seed(reference.meta("QwenDual")["seed_predict"])
        actions = policy.predict_action(**inputs)
        assert (actions - case.tensor("predict/normalized_actions")).abs().max() < TOLERANCE

    def test_unnormalised_actions(self, processor):
        recorded = np.load(REFERENCE / "QwenDual" / "unnorm_oxe_bridge.npz")
        actions = processor.unnormalize_actions(recorded["normalized"], unnorm_key="oxe_bridge")
        assert np.abs(actions - recorded["unnormalized"]).max() < TOLERANCE

    def test_native_and_back(self, reference, policy, processor, tmp_path):
        run = reference.run_folder("QwenDual")
        folder = save_repository(policy, processor, tmp_path / "run", step=10)
        written, given = (
            torch.load(path / "checkpoints" / "steps_10_pytorch_model.pt", weights_only=True) for path in (folder, run)
        )
        assert set(written) == set(given) and all(torch.equal(written[name], given[name]) for name in given)
        again, config = (AutoConfig.from_pretrained(path, base_vlm=str(base_vlm())) for path in (folder, run))
        assert again.dino_config.to_dict() == config.dino_config.to_dict()
        assert {**again.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
        assert AutoProcessor.from_pretrained(folder, base_vlm=str(base_vlm())).image_size == [96, 64]

    def test_bf16(self, reference, processor, case):
        run = reference.run_folder("QwenDual")
        policy = AutoModel.from_pretrained(run, base_vlm=str(base_vlm()), dtype=torch.bfloat16)
        assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
        inputs = processor(case.images(), case.meta["lang"], normalized=True)
        actions = policy.predict_action(**inputs, noise=case.tensor("predict/randn_0"))
        assert actions.dtype == torch.float32
        assert (actions - case.tensor("predict/normalized_actions")).abs().max() < 0.1


class TestDino:
    def test_patch_tokens_are_metas(self):
        """Position embeddings are sampled where Meta's scale factor puts them, not where a size would."""
        torch.manual_seed(0)
        dino = DinoEncoder(Dinov2Config(**DINO)).eval()
        position = dino.embeddings.position_embeddings
        nn.init.normal_(position)
        pixels = torch.randn(2, 3, 56, 42)
        found = dino.embeddings.interpolate_pos_encoding(torch.zeros(2, 13, 32), 56, 42)
        grid = position[0, 1:].view(37, 37, 32)
        # A scale factor s puts the centre of new pixel i at (i + 1/2) / s - 1/2, s = (4 + 0.1) / 37 and (3 + 0.1) / 37.
        rows, columns = ((torch.arange(n) + 0.5) * 37 / (n + 0.1) - 0.5 for n in (4, 3))
        expected = torch.stack([torch.stack([cubic(grid, y, x) for x in columns]) for y in rows]).flatten(0, 1)
        assert torch.allclose(found[0, 1:], expected, atol=1e-4)
        assert torch.equal(found[0, 0], position[0, 0])
        plain = Dinov2Model(Dinov2Config(**DINO)).eval()
        plain.load_state_dict(dino.state_dict())
        tokens = dino.patch_tokens(pixels)
        assert tokens.shape == (2, 12, 32)
        assert (tokens - plain(pixels).last_hidden_state[:, 1:]).abs().max() > 0.01

    def test_no_interpolation_at_the_trained_size(self):
        dino = DinoEncoder(Dinov2Config(**{**DINO, "image_size": 28})).eval()
        plain = Dinov2Model(dino.config).eval()
        plain.load_state_dict(dino.state_dict())
        pixels = torch.randn(2, 3, 28, 28)
        assert torch.equal(dino.patch_tokens(pixels), plain(pixels).last_hidden_state[:, 1:])

    @pytest.mark.parametrize("swiglu", [False, True])
    def test_metas_names_come_back(self, swiglu):
        tensors = Dinov2Model(Dinov2Config(**DINO, use_swiglu_ffn=swiglu)).state_dict()
        tensors = {name: torch.randn_like(x) for name, x in tensors.items()}
        meta = dinov2.to_meta(tensors)
        assert not [name for name in meta if "encoder" in name or "embeddings" in name or "layernorm" in name]
        assert meta["blocks.1.attn.qkv.weight"].shape == (96, 32)
        assert ("blocks.0.mlp.w12.weight" in meta) == swiglu
        back = dinov2.from_meta(meta)
        assert set(back) == set(tensors) and all(torch.equal(back[name], tensors[name]) for name in tensors)

    def test_pixels(self):
        from PIL import Image

        white = dino_pixels(Image.new("RGB", (30, 20), (255, 255, 255)))
        assert white.shape == (3, 224, 224)
        assert torch.allclose(
            white[:, 0, 0], (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
        )


def cubic(grid, y, x):
    """Bicubic interpolation (a = -0.75, borders repeated) of grid (H, W, D) at one point."""

    def weights(t):
        d = torch.stack([1 + t, t, 1 - t, 2 - t])
        a = -0.75
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return torch.where(d <= 1, near, far)

    rows, columns = (
        (torch.floor(p).long() + torch.arange(-1, 3)).clamp(0, n - 1)
        for p, n in ((y, grid.shape[0]), (x, grid.shape[1]))
    )
    return torch.einsum("i,j,ijd->d", weights(y - y.floor()), weights(x - x.floor()), grid[rows][:, columns])


class TestPolicy:
    @pytest.mark.parametrize(
        "views", [(1, 1, 1), (2, 2, 2), (1, 3, 2)], ids=["one_view", "two_views", "unequal_views"]
    )
    def test_a_batch_equals_its_samples(self, tiny, views):
        policy, processor = tiny
        batch = observations(views)
        inputs = processor(**batch)
        assert (inputs["attention_mask"] == 0).any(), "the prompts have unequal lengths"
        assert ("dino_view_mask" in inputs) == (len(set(views)) > 1)
        together = policy.predict_action(**inputs, noise=noise())
        for i in range(3):
            alone = policy.predict_action(**processor(**single(batch, i)), noise=noise()[i : i + 1])
            assert torch.allclose(alone[0], together[i], atol=2e-6)

    def test_padding_is_attended_as_in_starvla_unless_masked(self, tiny):
        policy, processor = tiny
        assert QwenDualConfig().mask_padding is False
        batch = observations((1, 1, 1))

        def differ() -> float:
            together = policy.predict_action(**processor(**batch), noise=noise())[2]
            alone = policy.predict_action(**processor(**single(batch, 2)), noise=noise()[2:])[0]
            return (together - alone).abs().max().item()

        assert differ() < 2e-6
        policy.config.mask_padding = False
        try:
            assert differ() > 1e-5
            # Without padding there is nothing to mask, and views that a sample lacks are never attended.
            same = observations((1, 2), ("open it", "shut it"))
            inputs = processor(**same)
            assert inputs["attention_mask"].sum() < inputs["attention_mask"].numel(), "a second view is longer"
            more = inputs["dino_pixel_values"].clone()
            more[0, 1] = 5.0
            changed = policy.predict_action(**{**inputs, "dino_pixel_values": more}, noise=noise(2))
            assert torch.equal(changed, policy.predict_action(**inputs, noise=noise(2)))
        finally:
            policy.config.mask_padding = True

    def test_dino_and_state_change_the_prediction(self, tiny):
        policy, processor = tiny
        inputs = processor(**observations())
        before = policy.predict_action(**inputs, noise=noise())
        for name in ("dino_pixel_values", "state", "pixel_values"):
            after = policy.predict_action(**{**inputs, name: inputs[name] + 0.5}, noise=noise())
            assert (after - before).abs().max() > 1e-5, name

    def test_gradients_reach_every_part(self, tiny):
        policy, processor = tiny
        actions = np.random.default_rng(1).uniform(-1, 1, (3, HORIZON, ACTION_DIM))
        output = policy(**processor(**observations(), actions=actions))
        output.loss.backward()
        reached = {name.split(".")[0] for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
        policy.zero_grad()
        assert reached == {"vlm", "dino", "dino_projector", "action_head"}
        assert output.action_loss is output.loss

    def test_labels_give_the_language_model_loss(self, tiny):
        policy, processor = tiny
        inputs = {name: x for name, x in processor(**{**observations(), "state": None}).items()}
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        output = policy(**inputs, labels=labels)
        plain = {name: x for name, x in inputs.items() if not name.startswith("dino")}
        assert torch.allclose(output.vlm_loss, policy.vlm(**plain, labels=labels).loss, atol=1e-6)

    def test_save_and_load(self, tiny, tmp_path):
        policy, processor = tiny
        policy.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        loaded, its_processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
        assert type(its_processor) is QwenDualProcessor
        assert loaded.config.mask_padding and loaded.config.dino_config.hidden_size == 32
        assert type(loaded.dino) is DinoEncoder
        inputs, again = processor(**observations()), its_processor(**observations())
        assert set(inputs) == set(again) and all(torch.equal(inputs[name], again[name]) for name in inputs)
        predicted = loaded.predict_action(**again, noise=noise())
        assert torch.equal(predicted, policy.predict_action(**inputs, noise=noise()))

    def test_pretrained_dino(self, tmp_path):
        dino = Dinov2Model(Dinov2Config(**{**DINO, "num_hidden_layers": 1}))
        dino.save_pretrained(tmp_path)
        fields = {name: x for name, x in FIELDS.items() if name != "dino_config"}
        policy, _ = QwenDualForActionPrediction.from_vlm(
            base_vlm(), random_init=True, dino_name_or_path=tmp_path, **fields
        )
        ours = policy.dino.state_dict()
        assert set(ours) == set(dino.state_dict())
        assert all(torch.equal(ours[name], x) for name, x in dino.state_dict().items())


class TestBadInput:
    def test_dino_images(self, tiny):
        policy, processor = tiny
        inputs = processor(**observations())
        pixels = inputs.pop("dino_pixel_values")
        with pytest.raises(ValueError, match="QwenDual needs `dino_pixel_values`"):
            policy.predict_action(**inputs)
        for wrong in (pixels[0], pixels[:2]):
            with pytest.raises(ValueError, match="dino_pixel_values have shape .*; 3 prompts need"):
                policy.predict_action(**inputs, dino_pixel_values=wrong)

    def test_a_dino_that_starvla_does_not_know(self, tiny, reference, tmp_path):
        policy, processor = tiny
        size, policy.config.action_hidden_size = policy.config.action_hidden_size, 768
        try:
            with pytest.raises(ValueError, match="StarVLA's format knows dinov2_vits14, .* is none of them"):
                save_repository(policy, processor, tmp_path / "run")
        finally:
            policy.config.action_hidden_size = size
        assert not (tmp_path / "run").exists()
        to_config = starvla_mapping("qwen_dual").to_config
        with pytest.raises(ValueError, match="dino_backbone is 'dinov2_vits16'; known are dinov2_vits14"):
            to_config({"framework": {"dino": {"dino_backbone": "dinov2_vits16"}}})
        assert to_config({"framework": {"name": "QwenDual"}})["dino_config"]["hidden_size"] == 384
