"""Settings of Triton's interpreter for tests that make warnings errors."""

import pytest


@pytest.fixture(autouse=True)
def _numpy_may_meet_nan(recwarn):
    """Leave the interpreter alone where it computes with NaN and infinity, as a GPU does without a word."""
    import numpy as np

    with np.errstate(all="ignore"):
        yield
