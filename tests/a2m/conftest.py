"""Networks this small run fastest on one thread, and much faster where the machine has other work."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> None:
    torch.set_num_threads(1)
