"""The run that the tests of the stages here look at, made once."""

import pytest
from support.rows import Finished, finish_run


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished run; never write into its folders."""
    return finish_run(tmp_path_factory.getbasetemp())
