"""Takes to export in tests: a smooth one that could be somebody's, arbitrary ones, and the mirror image of one."""

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from common.export.take import METRES_PER_UNIT, Camera, Take
from common.face.model import CONVENTION, MIRROR, FaceModel

RATES = (24000 / 1001, 24.0, 25.0, 30000 / 1001, 30.0, 50.0, 60.0)
FLIP = np.array([-1.0, 1.0, 1.0])
CAMERA = Camera((320, 256), 912.5, np.array([158.25, 131.75]))


def smooth_take(n_keys: int, fps: float = 25.0, seed: int = 0, is_named: bool = True) -> Take:
    """Somebody who moves: a face of the built-in model whose expressions, head and place sway at 0.2 to 3 Hz.

    Points move by some millimetres, the head turns by up to 40 degrees and moves by up to 6 cm.
    """
    rng = np.random.default_rng(seed)
    model = FaceModel.builtin()
    mean = model.mean.double().numpy() * METRES_PER_UNIT
    identity = rng.normal(size=len(model.identity_std)) * model.identity_std.numpy()
    neutral = mean + np.tensordot(identity, model.identity.double().numpy(), 1) * METRES_PER_UNIT
    time_s = np.arange(n_keys) / fps

    def sway(n: int) -> np.ndarray:
        """[T, n] within -1..1."""
        rates_hz, phases = rng.uniform(0.2, 3, n), rng.uniform(0, 2 * np.pi, n)
        return np.sin(2 * np.pi * rates_hz * time_s[:, None] + phases)

    expression = sway(len(model.expression_std)) * model.expression_std.numpy()
    turns = np.radians([20, 32, 12]) * sway(3)  # about x, y, z: 39.6 degrees when all are at their greatest
    return _take(
        points=neutral + np.tensordot(expression, model.expression.double().numpy(), 1) * METRES_PER_UNIT,
        rotation=Rotation.from_rotvec(turns).as_matrix(),
        position=np.array([0.04, 0.02, 0.04]) * sway(3),
        fps=fps,
        neutral=neutral,
        rest_rotation=Rotation.from_rotvec([0.05, -0.1, 0.02]).as_matrix(),
        is_named=is_named,
        mean=mean,
    )


def assert_close(again: Take, take: Take, off_m: float, off_rad: float) -> None:
    """The same header and as many keys, whose lengths and rotations are off by no more."""
    assert again.header() == take.header() and again.n_keys == take.n_keys
    np.testing.assert_allclose(again.points, take.points, rtol=0, atol=off_m)
    np.testing.assert_allclose(again.position, take.position, rtol=0, atol=off_m)
    np.testing.assert_allclose(again.rotation, take.rotation, rtol=0, atol=off_rad)


@st.composite
def takes(draw: st.DrawFn, most_keys: int = 40) -> Take:
    """Takes of 1 to `most_keys` keys at any rate: any rotations, points anywhere within 3 cm of the mean face's."""
    n_keys, fps = draw(st.integers(1, most_keys)), draw(st.sampled_from(RATES))
    is_named, rng = draw(st.booleans()), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mean = FaceModel.builtin().mean.double().numpy() * METRES_PER_UNIT
    rotation = Rotation.random(n_keys + 1, rng).as_matrix()
    return _take(
        points=mean + rng.uniform(-0.03, 0.03, (n_keys, 68, 3)),
        rotation=rotation[1:],
        position=rng.uniform(-0.3, 0.3, (n_keys, 3)),
        fps=fps,
        neutral=mean + rng.uniform(-0.03, 0.03, (68, 3)),
        rest_rotation=rotation[0],
        is_named=is_named,
        mean=mean,
    )


def mirrored(take: Take) -> Take:
    """The same take seen in a mirror: left and right swap, x changes sign."""
    camera, width = take.camera, take.camera.image_size[0]
    return replace(
        take,
        points=take.points[:, MIRROR] * FLIP,
        rotation=take.rotation * np.outer(FLIP, FLIP),
        position=take.position * FLIP,
        neutral=take.neutral[MIRROR, :] * FLIP,
        rest_rotation=take.rest_rotation * np.outer(FLIP, FLIP),
        mean=take.mean[MIRROR, :] * FLIP,
        camera=replace(camera, origin_px=np.array([width - 1 - camera.origin_px[0], camera.origin_px[1]])),
    )


def _take(
    points: np.ndarray,
    rotation: np.ndarray,
    position: np.ndarray,
    fps: float,
    neutral: np.ndarray,
    rest_rotation: np.ndarray,
    is_named: bool,
    mean: np.ndarray,
) -> Take:
    """What is not named rests as in its first key, which is where the world's origin is."""
    return Take(
        points=points,
        rotation=rotation,
        position=position if is_named else position - position[0],
        fps=fps,
        neutral=neutral if is_named else points[0],
        rest_rotation=rest_rotation if is_named else rotation[0],
        is_named=is_named,
        mean=mean,
        camera=CAMERA,
        model=FaceModel.builtin().name,
        convention=CONVENTION,
        provenance={"tool": "tests", "who": "Zoë"},
    )
