"""What integration tests share: one thread for tiny models, and the small towers, language model and rows that training tests begin from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Models as small as these are faster so, the more on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of a CLIP, a DINOv2 and a Llama of a few blocks; tests read them only."""
    from tests.integration.mof_training_data import save_backbones

    return save_backbones(tmp_path_factory.mktemp("backbones"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Converted rows of conversations about pictures."""
    from tests.integration.mof_training_data import save_rows

    return save_rows(tmp_path_factory.mktemp("data") / "mix")


@pytest.fixture(scope="session")
def captions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Converted rows of captions, for the first stage."""
    from tests.integration.mof_training_data import save_rows

    return save_rows(tmp_path_factory.mktemp("data") / "captions", template="plain")
