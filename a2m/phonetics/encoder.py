"""What a recording says, sound by sound: log-mel columns to phones and what lips, jaw and voice do, 50 times a second.

The phonetic front end of AToM-Net, in HuBERT's place: half an hour of filmed speech does not teach phonetics, hours of
synthesised speech do (`a2m.phonetics.training`). Residual convolutions over 100 Hz columns, each state centred between
its two columns; phones and articulatory features are read off a narrow bottleneck, which is what others listen to.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from einops import rearrange
from torch import Tensor, nn

from a2m.phonetics.inventory import FEATURES, PHONES
from common import weights
from common.audio import N_MELS
from common.errors import InputError

FORMAT = "duet-a2m-phonetics-1"  # of the weights' config.json
WEIGHTS = "small/a2m_phonetics"


@dataclass
class PhoneticConfig:
    """What the encoder looks like; part of the weights' config.json."""

    width: int = 160
    dilations: tuple[int, ...] = (
        1,
        1,
        2,
        2,
        4,
        4,
        2,
        2,
        1,
        1,
    )  # of the blocks: states seen on either side, together 20
    bottleneck: int = 32

    def __post_init__(self) -> None:
        self.dilations = tuple(self.dilations)  # JSON and YAML know lists only

    @property
    def reach(self) -> int:
        """States on either side that a state hears."""
        return sum(self.dilations) + 1


class Phonetic(NamedTuple):
    """Of 2 T states: bottleneck [B, 2T, D], mean 0 and variance 1 in each state; phone_logits [B, 2T, P], softmax;

    feature_logits [B, 2T, F], sigmoid. Classes as in `inventory.PHONES` and `inventory.FEATURES`.
    """

    bottleneck: Tensor
    phone_logits: Tensor
    feature_logits: Tensor


class PhoneticEncoder(nn.Module):
    """forward(mel [B, 4T, 64]) -> Phonetic of 2 T states; mel relative to the voice's mean, in units of 10 dB."""

    def __init__(self, config: PhoneticConfig):
        super().__init__()
        d = config.width
        self.config = config
        # State i is the middle of columns 2 i and 2 i + 1; it sees two more on either side.
        self.mel_in = nn.Conv1d(N_MELS, d, 6, stride=2, padding=2)
        self.blocks = nn.ModuleList(Block(d, dilation) for dilation in config.dilations)
        self.norm = nn.LayerNorm(d)
        self.to_bottleneck = nn.Linear(d, config.bottleneck)
        self.phones = nn.Linear(config.bottleneck, len(PHONES))
        self.features = nn.Linear(config.bottleneck, len(FEATURES))

    @classmethod
    def from_pretrained(cls, name: str | Path = WEIGHTS) -> PhoneticEncoder:
        """Load weights by built-in name, folder or hub id, in float32; raises InputError where they don't fit."""
        state, config = weights.from_pretrained(name)
        return cls.from_state(state, config, name)

    @classmethod
    def from_state(cls, state: dict[str, Tensor], config: dict[str, Any], source: str | Path) -> PhoneticEncoder:
        """The encoder of a file's tensors and configuration."""
        try:
            model = cls(PhoneticConfig(**config["phonetics"]))
            known = (tuple(config["phones"]), tuple(config["features"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{source} holds no phonetic encoder of this version ({error}): choose others.") from error
        if known != (PHONES, FEATURES):
            raise InputError(f"{source} knows other phones than a2m/phonetics/inventory.py: train it again.")
        return weights.load_into(model, state, source).eval()

    def save(self, folder: Path) -> None:
        """Write what `from_pretrained` reads, in bfloat16."""
        config = {"format": FORMAT, "phonetics": asdict(self.config), "phones": PHONES, "features": FEATURES}
        weights.save(folder, self, config)

    def forward(self, mel: Tensor) -> Phonetic:
        x = self.mel_in(mel.mT)  # [B, C, 2T]
        for block in self.blocks:
            x = block(x)
        bottleneck = self.to_bottleneck(self.norm(x.mT))  # [B, 2T, D]
        bottleneck = nn.functional.layer_norm(bottleneck, bottleneck.shape[-1:])
        return Phonetic(bottleneck, self.phones(bottleneck), self.features(bottleneck))

    def per_frame(self, mel: Tensor) -> Tensor:
        """What AToM-Net hears: mel [B, T, 4, 64], a frame's columns -> the bottlenecks of its states [B, T, 2 D]."""
        bottleneck = self(mel.flatten(1, 2)).bottleneck.to(mel.dtype)
        return rearrange(bottleneck, "b (t state) d -> b t (state d)", state=2)


class Block(nn.Module):
    """x [B, C, N] plus what three states, `dilation` apart, say of it; nothing is averaged over time or the batch."""

    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.out = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.norm(x.mT).mT)
        return x + self.out(nn.functional.gelu(y))
