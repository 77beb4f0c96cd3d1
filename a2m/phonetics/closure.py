"""Where the lips meet: /p b m/ as the phonetic encoder hears them.

Tracks are smoothed and half an hour of them holds few of each sound, so what is learnt from them leaves lips apart that
must meet: the error that everybody sees. The encoder knows these sounds from hours of speech.
"""

import torch
from torch import Tensor

from a2m.hearing import Features
from a2m.phonetics.encoder import PhoneticEncoder
from a2m.phonetics.inventory import FEATURES
from a2m.space import lip_gap
from a2m.speech import chunks
from common.audio import N_MELS

BILABIAL = FEATURES.index("bilabial")
DOUBTED, SURE = 0.3, 0.7  # how probable: below nothing happens, above the lips meet
BESIDE = 0.5  # how far they come together in the frames next to those in which they meet


@torch.no_grad()
def lip_closure(encoder: PhoneticEncoder, features: Features, n_frames: int) -> Tensor:
    """How far the lips are brought together in each frame: [T] in 0..1, on the CPU.

    features: (first, last) -> log-mel of these frames relative to the voice's mean, [frames, 1, 4 64]. Memory does not
    grow with the length but for the result.
    """
    device = encoder.phones.weight.device
    reach = -(-encoder.config.reach // 2)  # frames
    probable = []
    for first, last in chunks(n_frames):
        start, end = max(0, first - reach), min(n_frames, last + reach)
        mel = features(start, end).to(device).flatten().unflatten(0, (1, -1, N_MELS))
        states = encoder(mel).feature_logits[0, :, BILABIAL].float().sigmoid().cpu()  # [2 frames]
        probable.append(states.unflatten(0, (-1, 2)).amax(dim=1)[first - start : last - start])
    sure = ((torch.cat(probable) - DOUBTED) / (SURE - DOUBTED)).clamp(0, 1)
    beside = torch.nn.functional.pad(BESIDE * sure, (1, 1))
    return torch.maximum(sure, torch.maximum(beside[:-2], beside[2:]))


def lips_together(lips: Tensor, closure: Tensor, opening_direction: Tensor) -> Tensor:
    """Lip and jaw motion from the closed mouth [..., T, 37, 3], brought back to it by closure [T] as far as it opens.

    opening_direction: [37, 3] as in `a2m.space`: width, protrusion and what else the lips do stays.
    """
    opened = lip_gap(lips).clamp(min=0)  # [..., T]
    return lips - (closure * opened)[..., None, None] * opening_direction
