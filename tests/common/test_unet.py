"""The UNet core against two published systems, and what any UNet must keep to.

Reference vectors (small networks with random weights, run by the original programs) are too large for the repository.
Where a copy lies at $DUET_REFERENCE, outputs are compared with it directly. Otherwise `vectors/unet.safetensors` stands
for it: this implementation's outputs for the same two configurations, on weights made from their names
(`made_weights`). It was recorded by running this file, which first demands agreement with the reference to 1e-5.
"""

import json
import os
import shutil
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.triplane import TriPlane, unpack
from common.unet import UNet, UNetConfig
from common.unet_layers import timestep_embedding
from m2v import pvdm

ROOT = Path(__file__).parents[2]
REFERENCE = Path(os.environ.get("DUET_REFERENCE", ROOT.parent / "shared" / "reference"))
RECORDED = ROOT / "tests" / "vectors" / "unet.safetensors"
PUBLISHED = json.loads((ROOT / "tests" / "vectors" / "unet_keys.json").read_text())

DIFFTALK = UNetConfig(
    in_channels=9,
    model_channels=256,
    out_channels=3,
    num_res_blocks=2,
    attention_resolutions=(8, 4, 2),
    channel_mult=(1, 2, 3, 4),
    num_head_channels=32,
    use_spatial_transformer=True,
    context_dim=128,
)
# The configurations of the reference vectors.
SMALL_DIFFTALK = UNetConfig(
    in_channels=9,
    model_channels=32,
    out_channels=3,
    num_res_blocks=1,
    attention_resolutions=(4, 2),
    channel_mult=(1, 2, 2),
    num_head_channels=16,
    use_spatial_transformer=True,
    context_dim=48,
)
SMALL_PVDM = UNetConfig(
    in_channels=8,
    model_channels=32,
    out_channels=4,
    num_res_blocks=1,
    attention_resolutions=(2, 1),
    channel_mult=(1, 2),
    num_heads=4,
    use_scale_shift_norm=True,
    resblock_updown=True,
    plane_attention_resolutions=(1, 2),
)
PVDM_GRID = (4, 8, 8)  # frames, height, width of the vectors


def made_values(name: str, *shape: int) -> Tensor:
    """Uniform in [-1, 1), from the name alone: the raw stream of PCG64 is the same everywhere and for good."""
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    return torch.from_numpy((raw >> np.uint64(11)) * 2.0**-52 - 1).float().reshape(shape)


def made_weights(net: nn.Module) -> dict[str, Tensor]:
    """Weights with output of order one: nothing is left at zero, so that every path counts."""
    weights = {}
    for name, parameter in net.named_parameters():
        values = made_values(name, *parameter.shape)
        if parameter.ndim > 1:
            values *= (3 / parameter[0].numel()) ** 0.5  # unit gain for a unit-variance input
        elif name.endswith("weight"):
            values = 1 + 0.2 * values  # of a norm
        weights[name] = values
    return weights


def made_net(config: UNetConfig) -> UNet:
    net = UNet(config)
    net.load_state_dict(made_weights(net))
    return net.eval()


def made_planes(channels: int, batch: int = 2, n_frames: int = 4, height: int = 8, width: int = 8) -> TriPlane:
    return TriPlane(
        made_values("xy", batch, channels, height, width),
        made_values("xt", batch, channels, n_frames, width),
        made_values("yt", batch, channels, n_frames, height),
    )


def made_inputs(config: UNetConfig, n_tokens: int = 1, batch: int = 2) -> tuple[Any, Tensor, Tensor | None]:
    """(x, timesteps, context): a plane where the configuration has a context, else a TriPlane; neither is square."""
    timesteps = torch.tensor([0, 999, 321, 17])[:batch]
    if config.context_dim is None:
        return made_planes(config.in_channels, batch, 4, 8, 12), timesteps, None
    context = made_values("context", batch, n_tokens, config.context_dim)
    return made_values("x", batch, config.in_channels, 8, 16), timesteps, context


def packed(output: Tensor | TriPlane) -> Tensor:
    return output.pack() if isinstance(output, TriPlane) else output


def reference(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(weights, inputs and outputs) of a file of reference vectors."""
    path = REFERENCE / "vectors" / f"{name}.safetensors"
    if not path.exists():
        pytest.skip("no reference vectors here (DUET_REFERENCE); the recorded outputs stand for them")
    tensors = load_file(path)
    weights = {key.removeprefix("weight."): t.float() for key, t in tensors.items() if key.startswith("weight.")}
    return weights, tensors


def difftalk_error() -> float:
    weights, tensors = reference("difftalk_unet")
    net = UNet(SMALL_DIFFTALK).eval()
    net.load_state_dict(weights, strict=True)
    x = torch.cat([tensors[f"in.{name}"] for name in ("x_noisy", "mask_latent", "reference_latent")], dim=1)
    context = torch.cat([tensors["in.audio"], tensors["in.landmarks"]], dim=1)[:, None]
    with torch.no_grad():
        return (net(x, tensors["in.t"], context) - tensors["out.eps"]).abs().max().item()


def pvdm_error() -> float:
    weights, tensors = reference("pvdm_unet")
    net = UNet(SMALL_PVDM).eval()
    published = {f"diffusion_model.{key}": tensor for key, tensor in weights.items()}
    net.load_state_dict(
        pvdm.denoiser_state({**published, "diffusion_model.zeros": torch.zeros(1, 4, 128)}), strict=True
    )
    errors = []
    for name, cond in (("cond", tensors["in.cond"]), ("uncond", torch.zeros_like(tensors["in.cond"]))):
        x = unpack(torch.cat([tensors["in.x"], cond], dim=1), *PVDM_GRID)
        with torch.no_grad():
            errors.append((net(x, tensors["in.t"]).pack() - tensors[f"out.{name}"]).abs().max().item())
    return max(errors)


def made_outputs() -> dict[str, Tensor]:
    with torch.no_grad():
        return {
            name: packed(made_net(config)(*made_inputs(config))).contiguous()
            for name, config in (("difftalk", SMALL_DIFFTALK), ("pvdm", SMALL_PVDM))
        }


# --- Published systems -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "config", "n_parameters"), [
    ("difftalk", DIFFTALK, 530_152_963),
    ("pvdm", pvdm.DENOISER, 528_273_412),
])  # fmt: skip
def test_full_size_has_the_published_keys_and_shapes(name: str, config: UNetConfig, n_parameters: int) -> None:
    with torch.device("meta"):
        net = UNet(config)
    assert {key: list(tensor.shape) for key, tensor in net.state_dict().items()} == PUBLISHED[name]
    assert sum(parameter.numel() for parameter in net.parameters()) == n_parameters


def test_single_plane_equals_difftalk() -> None:
    assert difftalk_error() < 1e-5  # the reference's own rounding: 1.3e-6


def test_triplane_equals_pvdm_with_and_without_condition() -> None:
    assert pvdm_error() < 1e-5  # the reference's own rounding: 1.0e-6


def test_outputs_equal_the_recorded_ones() -> None:
    recorded = load_file(RECORDED)
    for name, output in made_outputs().items():
        assert output.std() > 0.3, name
        torch.testing.assert_close(output, recorded[name], atol=1e-4, rtol=0)  # float32 rounding: about 1e-5


def test_timestep_embedding_is_cosines_then_sines_from_frequency_one() -> None:
    timesteps = torch.tensor([0, 1, 999])
    embedding = timestep_embedding(timesteps, 6).double()
    for row, t in zip(embedding, timesteps.tolist(), strict=True):
        angles = [t * 10_000 ** (-i / 3) for i in range(3)]
        expected = torch.tensor([*np.cos(angles), *np.sin(angles)])
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=0)  # float32 angles up to 999
    torch.testing.assert_close(timestep_embedding(timesteps + 0.5, 6)[0, :1], torch.tensor([0.5]).cos())


# --- Any UNet --------------------------------------------------------------------------------------------------------

# At a width of 32 a group norm takes an added time vector out again; 64 leaves two channels to a group.
TRAINED = {
    "one context token": (replace(SMALL_DIFFTALK, model_channels=64), 1),
    "two context tokens": (replace(SMALL_DIFFTALK, model_channels=64), 2),
    "three planes": (replace(SMALL_PVDM, model_channels=64), 0),
}


@pytest.mark.parametrize("config", [SMALL_DIFFTALK, SMALL_PVDM], ids=["difftalk", "pvdm"])
def test_a_fresh_unet_predicts_zero_and_its_branches_are_identities(config: UNetConfig) -> None:
    net = UNet(config)
    zero = {name for name, p in net.named_parameters() if name.endswith(".weight") and not p.any()}
    assert zero == {name for name, _ in net.named_parameters() if name.endswith(
        ("out_layers.3.weight", "proj_out.weight")) or name == "out.2.weight"}  # fmt: skip
    assert not packed(net(*made_inputs(config))).any()


@pytest.mark.parametrize("case", TRAINED)
def test_gradients_reach_every_parameter_once_zero_layers_have_moved(case: str) -> None:
    config, n_tokens = TRAINED[case]
    torch.manual_seed(0)
    net = UNet(config)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    packed(net(*made_inputs(config, n_tokens))).square().mean().backward()
    gradients = {name: p.grad.abs().max().item() for name, p in net.named_parameters() if p.grad is not None}
    assert gradients.keys() == dict(net.named_parameters()).keys()
    unreached = {name for name, size in gradients.items() if size < 1e-8}
    dead = ("attn2.to_q.", "attn2.to_k.", "norm2.") if n_tokens == 1 else ()  # a softmax over one entry is 1
    assert unreached == {name for name in gradients if any(part in name for part in dead)}


@pytest.mark.parametrize("config", [SMALL_DIFFTALK, SMALL_PVDM], ids=["difftalk", "pvdm"])
def test_an_item_ignores_the_rest_of_its_batch(config: UNetConfig) -> None:
    net = made_net(config)
    x, timesteps, context = made_inputs(config, batch=3)
    alone = x.map(lambda plane: plane[1:2]) if isinstance(x, TriPlane) else x[1:2]
    with torch.no_grad():
        whole = packed(net(x, timesteps, context))
        one = packed(net(alone, timesteps[1:2], None if context is None else context[1:2]))
    torch.testing.assert_close(one, whole[1:2], atol=1e-4, rtol=0)


@pytest.mark.parametrize("config", [SMALL_DIFFTALK, SMALL_PVDM], ids=["difftalk", "pvdm"])
def test_checkpointing_gives_equal_outputs_and_gradients(config: UNetConfig) -> None:
    def run(config: UNetConfig) -> tuple[Tensor, dict[str, Tensor | None]]:
        net = made_net(config)
        output = packed(net(*made_inputs(config)))
        output.square().mean().backward()
        return output, {name: parameter.grad for name, parameter in net.named_parameters()}

    output, gradients = run(config)
    output_again, gradients_again = run(replace(config, use_checkpoint=True))
    assert torch.equal(output, output_again)
    torch.testing.assert_close(gradients, gradients_again, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("config", [SMALL_DIFFTALK, SMALL_PVDM], ids=["difftalk", "pvdm"])
def test_channels_last_gives_the_same(config: UNetConfig) -> None:
    net = made_net(config)
    x, timesteps, context = made_inputs(config)

    def last(plane: Tensor) -> Tensor:
        return plane.to(memory_format=torch.channels_last)

    with torch.no_grad():
        expected = packed(net(x, timesteps, context))
        net.to(memory_format=torch.channels_last)
        found = net(x.map(last) if isinstance(x, TriPlane) else last(x), timesteps, context)
    torch.testing.assert_close(packed(found), expected, atol=1e-4, rtol=0)


def test_only_attention_over_planes_carries_anything_between_them() -> None:
    for config, crosses in ((SMALL_PVDM, True), (replace(SMALL_PVDM, plane_attention_resolutions=()), False)):
        net = made_net(config)
        x = made_planes(config.in_channels)
        timesteps = torch.tensor([5, 500])
        with torch.no_grad():
            before, after = net(x, timesteps), net(TriPlane(x.xy, x.xt, x.yt + 1), timesteps)
        assert not torch.equal(before.yt, after.yt)
        assert torch.equal(before.xy, after.xy) != crosses
        assert torch.equal(before.xt, after.xt) != crosses


def test_planes_share_weights_so_that_swapped_planes_give_swapped_outputs() -> None:
    net = made_net(SMALL_PVDM)
    x, timesteps = made_planes(SMALL_PVDM.in_channels), torch.tensor([5, 500])
    with torch.no_grad():
        plain, swapped = net(x, timesteps), net(TriPlane(x.xy, x.yt, x.xt), timesteps)
    for found, expected in zip(swapped, (plain.xy, plain.yt, plain.xt), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_transformer_with_context_acts_on_three_planes_too() -> None:
    config = replace(SMALL_DIFFTALK, plane_attention_resolutions=(2,))
    x = made_planes(config.in_channels, 2, 4, 8, 12)
    output = made_net(config)(x, torch.tensor([1, 2]), made_values("context", 2, 3, 48))
    assert [list(plane.shape) for plane in output] == [[2, 3, 8, 12], [2, 3, 4, 12], [2, 3, 4, 8]]


def test_runs_in_bfloat16() -> None:
    net = made_net(SMALL_PVDM)
    x, timesteps, _ = made_inputs(SMALL_PVDM)
    with torch.no_grad():
        expected = net(x, timesteps).pack()
        found = net.bfloat16()(x.map(Tensor.bfloat16), timesteps).pack()
    assert found.dtype == torch.bfloat16
    assert (found - expected).square().mean() < 1e-3 * expected.square().mean()  # 8 bits, some 30 layers


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("config", [SMALL_DIFFTALK, SMALL_PVDM], ids=["difftalk", "pvdm"])
def test_compiles_to_one_graph_with_the_same_output(config: UNetConfig) -> None:
    net = made_net(config)
    with torch.no_grad():
        expected = packed(net(*made_inputs(config)))
        found = packed(torch.compile(net, fullgraph=True)(*made_inputs(config)))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


# --- Configuration and inputs ----------------------------------------------------------------------------------------


def test_config_survives_json_and_hydra() -> None:
    assert UNetConfig(**json.loads(json.dumps(asdict(pvdm.DENOISER)))) == pvdm.DENOISER
    assert OmegaConf.to_object(OmegaConf.structured(pvdm.DENOISER)) == pvdm.DENOISER


@pytest.mark.parametrize(("changes", "message"), [
    ({"model_channels": 48}, "multiple of 32"),
    ({"num_heads": -1}, "num_heads or num_head_channels"),
    ({"num_heads": 5}, "5 heads do not divide"),
    ({"context_dim": 16}, "use_spatial_transformer and context_dim"),
])  # fmt: skip
def test_impossible_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(replace(SMALL_PVDM, **changes))


def test_inputs_that_do_not_fit_are_refused_with_both_shapes() -> None:
    net = UNet(SMALL_DIFFTALK)
    x, timesteps, context = made_inputs(SMALL_DIFFTALK)
    with pytest.raises(ValueError, match=r"takes \[B, 9, H, W\], got shape \[2, 8, 8, 16\]"):
        net(x[:, :8], timesteps, context)
    with pytest.raises(ValueError, match="multiples of 4, got 8 x 14"):
        net(x[..., :14], timesteps, context)
    with pytest.raises(ValueError, match=r"timesteps must be \[2\]"):
        net(x, timesteps[:1], context)
    with pytest.raises(ValueError, match=r"context must be \[2, M, 48\], got none"):
        net(x, timesteps)
    with pytest.raises(ValueError, match="takes no context"):
        UNet(SMALL_PVDM)(made_planes(8), timesteps, context)


if __name__ == "__main__":
    assert max(difftalk_error(), pvdm_error()) < 1e-5
    save_file(made_outputs(), RECORDED)
