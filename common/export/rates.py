"""Rates that cameras and tools have, which people and files write with few digits."""

USUAL = (24000 / 1001, 24.0, 25.0, 30000 / 1001, 30.0, 48.0, 50.0, 60000 / 1001, 60.0, 90.0, 100.0, 120.0)
_AS_WRITTEN = 2e-4  # 23.98 is meant for 24000/1001, from which 24 is a thousandth away


def exact(fps: float) -> float:
    """The usual rate that a number with two or more decimals means, 24000/1001 for 23.976; else the number itself."""
    nearest = min(USUAL, key=lambda rate: abs(rate - fps))
    return nearest if abs(fps / nearest - 1) < _AS_WRITTEN else fps
