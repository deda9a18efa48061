"""Non-negative least squares on the relative error, for laws whose terms can only add."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls  # type: ignore[attr-defined]

from autotune.search.space import Array


def fit_relative(terms: Array, values: Array) -> Array:
    """(p,) coefficients c >= 0 that minimise ``|terms @ c / values - 1|`` squared (Lawson and Hanson's NNLS).

    Args:
        terms: (n, p).
        values: (n,) above zero.
    """
    design = terms / values[:, None]
    scale = np.maximum(np.linalg.norm(design, axis=0), 1e-300)
    coefficients, _ = nnls(design / scale, np.ones(len(values)))
    result: Array = coefficients / scale
    return result
