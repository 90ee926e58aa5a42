import pytest

from tests.experiments._runs import QuickRun, quick_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> QuickRun:
    return quick_run(tmp_path_factory)
