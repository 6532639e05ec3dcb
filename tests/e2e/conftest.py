"""What several end-to-end tests share, and is made once."""

from functools import partial

import pytest
from tests.e2e.docker import build_images, tell


@pytest.fixture(scope="session")
def images(request: pytest.FixtureRequest) -> dict[str, int]:
    """The images under test: their sizes over their base, in bytes, by role."""
    return build_images(partial(tell, request.config))
