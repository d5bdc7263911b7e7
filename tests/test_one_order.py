"""A row's logits are the same bits however it came to be computed: few ways of tests/one_order.py over every model file,
and a recurrent session after a step that failed."""

import numpy as np
import pytest
from hearthd.cyext import kernels

from tests.one_order import QUICK, beside, chunks, differing, files_of
from tests.opened import Opened, stepped

TOKENS = 70


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize("folder", ["tiny", "arch"])
def test_every_way_gives_the_same_bits(models_dir, folder, isa):
    files = files_of(models_dir / folder)
    assert len(files) > 20
    found = [line for path in files for line in differing(path, isa, TOKENS, QUICK, [(2, False), (3, True)])]
    assert not found, "\n".join(found)
