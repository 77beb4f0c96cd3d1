"""Speech to lip, jaw and lid motion by regression: the yardstick for AToM-Net, and `a2m=regression`.

Log-mel features of a recording, relative to the mean spectrum of its voice, go through two convolutions and a
bidirectional GRU to coefficients of a small basis of mirror-symmetric lip and jaw motion (residual landmarks of the
lip stream relative to the closed mouth) and to the lids' aperture. A few such networks are averaged. A regression
mumbles: it predicts the mean of all that the sound leaves open. So the coefficients that follow the sound are stretched
about their means by the factor that restores the variance of held-out people, at most threefold (`gain`). That helps
the eye and no error measure.

`python -m a2m.regression train --data DIR --out weights/small/a2m_regression` makes the weights.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from a2m.phonetics.encoder import PhoneticConfig, PhoneticEncoder
from a2m.speech import Voice, mel_columns
from common import weights
from common.audio import N_MELS, n_frames
from common.errors import InputError
from common.face.model import LIP_STREAM

WEIGHTS = "small/a2m_regression"
PREFIX = "mouth."  # of this module's tensors in the file that it shares with the head's prior
MEL_RANGE = (-6.0, 4.0)  # 10 dB; digital silence is nothing that training has seen


@dataclass(frozen=True)
class RegressionConfig:
    """What the networks look like; part of the weights' config.json."""

    n_components: int = 6  # 98 % of the variance of lips and jaw; the seventh output is the lids' aperture
    n_members: int = 3  # networks averaged
    conv_width: int = 64
    gru_width: int = 64  # each way; twice as many overfit at once
    dropout: float = 0.3
    phonetics: PhoneticConfig | None = None  # the encoder, part of the model, whose states are heard beside log-mel


class Member(nn.Module):
    """One network: features [B, T, 256 or more] -> [B, T, K + 1], of unit variance in training."""

    def __init__(self, config: RegressionConfig):
        super().__init__()
        n_heard = 4 * N_MELS + (0 if config.phonetics is None else 2 * config.phonetics.bottleneck)
        self.conv_in = nn.Conv1d(n_heard, config.conv_width, 5, padding=2)
        self.conv = nn.Conv1d(config.conv_width, config.conv_width, 3, padding=1)
        self.gru = nn.GRU(config.conv_width, config.gru_width, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * config.gru_width, config.n_components + 1)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, features: Tensor) -> Tensor:
        x = self.dropout(nn.functional.gelu(self.conv_in(features.mT)))  # [B, C, T]
        x = self.dropout(nn.functional.gelu(self.conv(x)))
        x, _ = self.gru(x.mT)  # [B, T, 2 C]
        return self.out(self.dropout(x))


class Regression(nn.Module):
    """Features of a recording to lip motion [T, 37, 3] in units of the face model and lid aperture [T] (1 is open)."""

    basis: Tensor
    mean: Tensor
    std: Tensor
    gain: Tensor
    opening_direction: Tensor

    def __init__(self, config: RegressionConfig = RegressionConfig()):
        super().__init__()
        k, n_points = config.n_components, len(LIP_STREAM)
        self.config = config
        self.members = nn.ModuleList(Member(config) for _ in range(config.n_members))
        self.phonetics = None if config.phonetics is None else PhoneticEncoder(config.phonetics).requires_grad_(False)
        self.register_buffer("basis", torch.zeros(k, n_points, 3))
        self.register_buffer("mean", torch.zeros(k + 1))  # of the targets: coefficients, and aperture - 1
        self.register_buffer("std", torch.ones(k + 1))
        self.register_buffer("gain", torch.ones(k + 1))  # gives back variance that a regression loses
        self.register_buffer("opening_direction", torch.zeros(n_points, 3))  # lips and jaw per unit of lip gap

    @classmethod
    def from_pretrained(cls, name: str | Path = WEIGHTS) -> Regression:
        """Load weights by name, folder or hub id."""
        state, config = weights.from_pretrained(name)
        return cls.from_state(state, config, name)

    @classmethod
    def from_state(cls, state: dict[str, Tensor], config: dict[str, Any], source: str | Path) -> Regression:
        """The part of a file's tensors that is the regression's."""
        try:
            settings = dict(config["regression"])
            if settings.get("phonetics") is not None:
                settings["phonetics"] = PhoneticConfig(**settings["phonetics"])
            model = cls(RegressionConfig(**settings))
        except (KeyError, TypeError) as error:
            raise InputError(f"{source} holds no a2m regression of this kind ({error}): choose others.") from error
        part = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
        return weights.load_into(model, part, source).eval()

    def forward(self, mel: Tensor) -> Tensor:
        """mel [B, T, 4, 64] relative to the voice's mean, in 10 dB -> coefficients [B, T, K + 1]."""
        features = self.features(mel)
        predicted = torch.stack([member(features) for member in self.members]).mean(dim=0)
        return predicted * self.std + self.mean

    def features(self, mel: Tensor) -> Tensor:
        """What the networks hear: mel [B, T, 4, 64] -> [B, T, 256, or 256 + 2 D with the phonetic encoder's states]."""
        mel = mel.clamp(*MEL_RANGE)
        features = rearrange(mel, "b t column mel -> b t (column mel)")
        return features if self.phonetics is None else torch.cat([features, self.phonetics.per_frame(mel)], dim=-1)

    def stretched(self, coefficients: Tensor) -> Tensor:
        """Coefficients [..., K + 1] stretched by `gain`: those that follow the sound vary about as real ones do."""
        return self.mean + self.gain * (coefficients - self.mean)

    def decode(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients [..., K + 1] -> lip motion [..., 37, 3], lid aperture [...]."""
        motion = torch.einsum("...k,kpc->...pc", coefficients[..., :-1], self.basis)
        return motion, 1 + coefficients[..., -1]

    @torch.no_grad()
    def predict(self, audio: Tensor, voice: Voice, window: int = 750, overlap: int = 100) -> Tensor:
        """Coefficients [T, K + 1] of a recording [n], not stretched, in windows of bounded memory.

        voice: what `speech.analyse` says of it. Windows of `window` frames share `overlap` of them, half of which
        is thrown away at each seam (the GRU has forgotten its start by then) and the middle cross-faded.
        """
        T = n_frames(len(audio))
        spans = window_spans(T, window, overlap)
        device = self.mean.device
        result = torch.zeros(T, len(self.mean), device=device)
        for first, last in spans:
            mel = (mel_columns(audio, first, last, voice.gain) - voice.mel_mean).to(device)
            weight = seam_weight(first, last, T, overlap)[:, None].to(device)
            result[first:last] += weight * self(mel[None])[0]
        return result


def window_spans(T: int, window: int, overlap: int) -> list[tuple[int, int]]:
    """First and last (exclusive) frame of windows that cover T frames and share `overlap`."""
    if not 0 < overlap < window:
        raise ValueError(f"windows of {window} frames can't share {overlap}")
    firsts = range(0, max(1, T - overlap), window - overlap)
    return [(first, min(first + window, T)) for first in firsts]


def seam_weight(first: int, last: int, T: int, overlap: int) -> Tensor:
    """[last - first]: 1, and at seams 0, then a ramp over the middle half of the shared frames; seams add up to 1."""
    frame = torch.arange(first, last) + 0.5
    rising = ((frame - first - overlap / 4) / (overlap / 2)).clamp(0, 1) if first > 0 else torch.ones(len(frame))
    falling = ((last - overlap / 4 - frame) / (overlap / 2)).clamp(0, 1) if last < T else torch.ones(len(frame))
    return torch.minimum(rising, falling)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m a2m.regression", description=__doc__)
    commands = parser.add_subparsers(required=True)
    train_parser = commands.add_parser("train", help="train the networks and the head's prior; writes the weights")
    train_parser.add_argument("--data", type=Path, required=True, help="folder with index.csv, clips/ and tracks/")
    train_parser.add_argument("--out", type=Path, default=weights.BUILT_IN_DIR / WEIGHTS)
    train_parser.add_argument("--lags", type=Path, help="file of `python -m a2m.lag`: how late each clip's sound is")
    train_parser.add_argument("--phonetics", help="weights of the phonetic encoder to listen through (default: none)")
    train_parser.add_argument("--steps", type=int, default=300, help="per network")
    train_parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)

    from a2m.pose import PREFIX as HEAD_PREFIX
    from a2m.pose import HeadPrior, fit_head_prior
    from a2m.regression_train import TrainConfig, train
    from common.face.model import FaceModel

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    torch.set_num_threads(1)
    from a2m.data import read_clips, read_lags, realigned

    face_model = FaceModel.builtin()
    lags = read_lags(arguments.lags) if arguments.lags else {}
    encoder = PhoneticEncoder.from_pretrained(arguments.phonetics) if arguments.phonetics else None
    train_clips, val_clips = (
        realigned(read_clips(arguments.data, part, face_model), lags) for part in ("train", "val")
    )
    train_config = TrainConfig(steps=arguments.steps, seed=arguments.seed)
    regression, figures = train(train_clips, val_clips, RegressionConfig(), train_config, encoder)
    head: HeadPrior = fit_head_prior(train_clips, face_model)
    state = {PREFIX + key: value for key, value in regression.state_dict().items()}
    state |= {HEAD_PREFIX + key: value for key, value in head.state_dict().items()}
    config = {
        "format": "duet-a2m-regression-1",
        "regression": asdict(regression.config),
        "train": asdict(train_config),
        "features": "log-mel",
        "fps": 25,
        "face_model": face_model.name,
        "convention": face_model.convention,
        "gain": "restores the deviation of coefficients that follow the sound, at most threefold; val split, no LRS3",
        "val": figures,
    }
    weights.save(arguments.out, state, config, dtype=torch.float32)
    print(figures)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
