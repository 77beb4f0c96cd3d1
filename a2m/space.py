"""The space that AToM-Net diffuses in: what lips, the rest of the face, head and lids do, as numbers of unit variance.

K = lip + rest + slow, in this order. `coefficients`: principal directions of mirror-symmetric lip and jaw motion and of
the rest's motion, whitened. `points`: the coordinates themselves (the paper's), over one deviation for each stream.
The slow part is the head's pose (pitch, yaw, roll; x, y; log scale, as `a2m.pose`) and the lids' relative aperture - 1.
All is linear, so the residual to the reference frame (paper, sec. AToM-Net) is a difference here as well.
"""

import torch
from torch import Tensor, nn

from a2m.data import Clip, raw_aperture, smooth
from a2m.pose import LIMITS, N_DIMENSIONS, apply_lids, head_motion, relative_aperture
from common.face.model import LIP_STREAM, REST, FaceModel, mirror

UPPER_MIDDLE, LOWER_MIDDLE = LIP_STREAM.index(62), LIP_STREAM.index(66)
N_LIP_VALUES, N_REST_VALUES = 3 * len(LIP_STREAM), 3 * len(REST)  # 111, 93
N_SLOW = N_DIMENSIONS + 1
SPACES = ("coefficients", "points")
_JAW_METRIC, _DEPTH_METRIC = 0.3, 0.5  # the jaw line slides along the cheek, and depth is noisy: they weigh less
_REST_SMOOTHING_FRAMES = 2.0  # brows are slow; what is faster in their tracks is noise
_LEAST_STD = 1e-5  # of what never moves
_MIRROR_SLOW = (1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0)


def lip_gap(lips: Tensor) -> Tensor:
    """Height of the middle of the upper above that of the lower inner lip: [..., 37, 3] -> [...]."""
    return lips[..., UPPER_MIDDLE, 1] - lips[..., LOWER_MIDDLE, 1]


class MotionSpace(nn.Module):
    """Linear maps between motion and its numbers, fitted to clips once; buffers, stored with the weights.

    lip_encoder, lip_decoder: [n_lip, 111]; rest_encoder, rest_decoder: [n_rest, 93]; slow_std: [7]; opening_direction:
    [37, 3], how lips and jaw move per unit that the middle of the inner lips opens.
    """

    lip_encoder: Tensor
    lip_decoder: Tensor
    rest_encoder: Tensor
    rest_decoder: Tensor
    slow_std: Tensor
    opening_direction: Tensor

    def __init__(self, n_lip: int, n_rest: int, n_slow: int):
        super().__init__()
        self.n_lip, self.n_rest, self.n_slow = n_lip, n_rest, n_slow
        for name, n, width in (("lip", n_lip, N_LIP_VALUES), ("rest", n_rest, N_REST_VALUES)):
            self.register_buffer(f"{name}_encoder", torch.eye(n, width))
            self.register_buffer(f"{name}_decoder", torch.eye(n, width))
        self.register_buffer("slow_std", torch.ones(N_SLOW))
        self.register_buffer("opening_direction", torch.zeros(len(LIP_STREAM), 3))

    @property
    def n_values(self) -> int:
        return self.n_lip + self.n_rest + self.n_slow

    def encode(self, lips: Tensor, rest: Tensor, slow: Tensor) -> Tensor:
        """lips [..., 37, 3], rest [..., 31, 3], slow [..., 7] -> values [..., K]."""
        parts = [lips.flatten(-2) @ self.lip_encoder.mT, rest.flatten(-2) @ self.rest_encoder.mT]
        return torch.cat([*parts, (slow / self.slow_std)[..., : self.n_slow]], dim=-1)

    def split(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """values [..., K] -> the streams' [..., n_lip], [..., n_rest], [..., n_slow]."""
        lips, rest, slow = values.split([self.n_lip, self.n_rest, self.n_slow], dim=-1)
        return lips, rest, slow

    def decode_lips(self, values: Tensor) -> Tensor:
        """values [..., K] -> lip and jaw motion [..., 37, 3] in units of the face model."""
        return (values[..., : self.n_lip] @ self.lip_decoder).unflatten(-1, (len(LIP_STREAM), 3))

    def decode(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """values [..., K] -> lips [..., 37, 3], rest [..., 31, 3], slow [..., 7] (zeros where the model has none)."""
        _, rest, slow = self.split(values)
        rest_motion = (rest @ self.rest_decoder).unflatten(-1, (len(REST), 3))
        slow = torch.nn.functional.pad(slow, (0, N_SLOW - self.n_slow)) * self.slow_std
        return self.decode_lips(values), rest_motion, slow

    def opening_weights(self) -> Tensor:
        """[K]: values @ these = height between the middles of the inner lips."""
        unit = lip_gap(self.lip_decoder.unflatten(-1, (len(LIP_STREAM), 3)))
        return torch.nn.functional.pad(unit, (0, self.n_rest + self.n_slow))

    @torch.no_grad()
    def fit(self, clips: list[Clip], shares: Tensor, model: FaceModel, is_points: bool) -> None:
        """Directions and deviations of the clips' motion about their own means; shares: [n], of each clip, sum 1."""
        lips, rest = [clip.lip_motion for clip in clips], [rest_motion(clip, model) for clip in clips]
        lip_metric, rest_metric = metric_weights(), torch.ones(len(REST), 3)
        rest_metric[:, 2] *= _DEPTH_METRIC
        mirrored = [mirror_rest(part) for part in rest]  # nobody raises one brow only on average
        self._fit_part("lip", lips, shares, lip_metric, is_points)
        self._fit_part("rest", rest + mirrored, torch.cat([shares, shares]) / 2, rest_metric, is_points)
        slow = torch.stack([slow_motion(clip, model).var(dim=0) for clip in clips])
        self.slow_std.copy_((shares @ slow).sqrt().clamp(min=_LEAST_STD))
        direction = torch.zeros(len(LIP_STREAM), 3)
        for part, share in zip(lips, shares.tolist(), strict=True):
            gap = lip_gap(part) - lip_gap(part).mean()
            direction += share * torch.einsum("t,tpc->pc", gap, part) / (gap.square().sum() + 1e-4)
        self.opening_direction.copy_(direction / (direction[UPPER_MIDDLE, 1] - direction[LOWER_MIDDLE, 1]))

    def _fit_part(self, name: str, parts: list[Tensor], shares: Tensor, metric: Tensor, is_points: bool) -> None:
        """Whitened principal directions under a metric [P, 3], or the coordinates over their common deviation."""
        encoder, decoder = getattr(self, f"{name}_encoder"), getattr(self, f"{name}_decoder")
        covariance = torch.zeros(metric.numel(), metric.numel(), dtype=torch.float64)
        for part, share in zip(parts, shares.tolist(), strict=True):
            rows = ((part - part.mean(dim=0)) * metric).flatten(1).double()
            covariance += share / len(rows) * rows.mT @ rows
        if is_points:
            std = float(covariance.diagonal().mean().sqrt())
            encoder.copy_(torch.eye(len(encoder)) / std)
            decoder.copy_(torch.eye(len(encoder)) * std)
            return
        vectors, variance, _ = torch.linalg.svd(covariance)  # eigh may fail where little moves
        directions = vectors[:, : len(encoder)].mT.float()  # [n, P 3]
        std = variance[: len(encoder), None].clamp(min=_LEAST_STD**2).sqrt().float()
        encoder.copy_(directions * metric.flatten() / std)
        decoder.copy_(directions / metric.flatten() * std)


def metric_weights() -> Tensor:
    """What a displacement of each coordinate of lips and jaw counts: [37, 3]."""
    metric = torch.ones(len(LIP_STREAM), 3)
    metric[:17] *= _JAW_METRIC
    metric[:, 2] *= _DEPTH_METRIC
    return metric


def rest_motion(clip: Clip, model: FaceModel) -> Tensor:
    """Brows, nose and eyes of a clip (LM3D), smoothed, blinks removed: [T, 31, 3]."""
    shape = clip.lm3d + model.mean
    aperture = raw_aperture(shape)
    median = aperture.median()
    without_blinks = apply_lids(shape, clip.lids * median / aperture.clamp(min=0.2 * float(median)))
    return smooth(without_blinks - model.mean, _REST_SMOOTHING_FRAMES)[:, list(REST)]


def slow_motion(clip: Clip, model: FaceModel) -> Tensor:
    """Head pose about the clip's mean, within the limits of `a2m.pose`, and relative lid aperture - 1: [T, 7]."""
    limits = 2 * torch.tensor(LIMITS)  # between two frames at opposite limits
    lids = relative_aperture(clip.lm3d + model.mean).clamp(0, 1.3) - 1
    return torch.cat([limits * torch.tanh(head_motion(clip) / limits), lids[:, None]], dim=1)


def mirror_rest(rest: Tensor) -> Tensor:
    """The mirror image of the rest's motion [T, 31, 3]."""
    full = torch.zeros(*rest.shape[:-2], 68, 3)
    full[..., list(REST), :] = rest
    return mirror(full)[..., list(REST), :]


def mirror_slow(slow: Tensor) -> Tensor:
    """The mirror image of head and lids [..., 7]: yaw, roll and x change sign."""
    return slow * slow.new_tensor(_MIRROR_SLOW)
