"""What may be asked of a performance beside the words: how strong each part of the face is, and when the eyes blink."""

from __future__ import annotations

from dataclasses import dataclass

from common.request import BLINK_EVERY_S, MOST_SCALE


@dataclass(frozen=True)
class Control:
    """Each moves its own part of the Motion and leaves the others where they were.

    mouth_scale: of lips and jaw; expression_scale: of brows and what else of the face does not speak; head_scale: of
    the pose. 0 holds a part as in the picture, 1 leaves it as the model makes it. blink: `auto`, `off`, or seconds from
    one blink to the next; None: `auto`, but `off` with the pose `still`. Raises ValueError where one is out of range.
    """

    mouth_scale: float = 1.0
    expression_scale: float = 1.0
    head_scale: float = 1.0
    blink: str | float | None = None

    def __post_init__(self) -> None:
        for name in ("mouth_scale", "expression_scale", "head_scale"):
            if not 0 <= getattr(self, name) <= MOST_SCALE:
                raise ValueError(f"{name} goes from 0 to {MOST_SCALE:g}, not {getattr(self, name)}")
        low, high = BLINK_EVERY_S
        if self.blink not in (None, "auto", "off") and not (
            isinstance(self.blink, float | int) and low <= self.blink <= high
        ):
            raise ValueError(f"blink is auto, off, or {low:g} to {high:g} seconds, not {self.blink!r}")


AS_MADE = Control()
