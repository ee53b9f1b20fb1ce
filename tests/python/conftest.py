"""Put the slow reference on the path of the tests, and give those of folders a model."""

import sys
from pathlib import Path

import pytest
from folders import folder

sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture
def model(tmp_path):
    """A folder with a model in two shards; tests of other files have models of their own."""
    return folder(tmp_path / "model")
