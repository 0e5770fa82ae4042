import pytest

from recipes.miniature import Rungs


@pytest.fixture(scope="session")
def rungs(tmp_path_factory, world) -> Rungs:
    return Rungs(tmp_path_factory.mktemp("rungs"), world)
