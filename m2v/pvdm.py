"""Reading PVDM's published diffusion checkpoints (Yu et al. 2023) into the UNet core.

PVDM names two planes the other way round: its `yt` is indexed (frame, column), our xt; its `xt` is our yt. Its packing
order xy, yt, xt is therefore our xy, xt, yt, and the denoiser, whose weights all planes share, has no plane in any key.
Only the autoencoder's keys will need the swap.
"""

from collections.abc import Mapping

from torch import Tensor

from common.unet import UNetConfig

PREFIX = "diffusion_model."
LATENT_CHANNELS = 4

# The published denoiser at 256 x 256 x 16: planes of 32 x 32, 16 x 32 and 16 x 32.
DENOISER = UNetConfig(
    in_channels=2 * LATENT_CHANNELS,  # noised latents, then the condition: the previous clip's latents, or zeros
    model_channels=256,
    out_channels=LATENT_CHANNELS,
    num_res_blocks=2,
    attention_resolutions=(4, 2, 1),
    channel_mult=(1, 2, 4, 4),
    num_heads=8,
    use_scale_shift_norm=True,
    resblock_updown=True,
    plane_attention_resolutions=(1, 2, 4, 8),
)


def denoiser_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The UNet's state dict from a published one, with or without its prefix.

    Left out: the buffer of zeros that stands for "no condition"; here the caller concatenates zeros.
    """
    plain = {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}
    plain.pop("zeros", None)
    return plain
