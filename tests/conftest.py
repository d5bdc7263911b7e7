"""What several tests share: where the models to test with lie."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The shared models (HEARTHD_TEST_MODELS, default ../shared/models beside the repository); skips without them."""
    default = Path(__file__).resolve().parents[1] / ".." / "shared" / "models"
    path = Path(os.environ.get("HEARTHD_TEST_MODELS", default))
    if not path.is_dir():
        pytest.skip(f"no models to test with at {path}: set HEARTHD_TEST_MODELS")
    return path
