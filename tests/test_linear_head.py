import numpy as np
import pytest

from pipeline.models.linear_head import BLOCK_ROWS, STD_OFFSET, LinearHead, Scale


@pytest.mark.parametrize("precision", [np.float16, np.float32])
def test_a_scale_equals_that_of_all_rows_in_double_precision(precision):
    rng = np.random.default_rng(0)
    features = rng.uniform(0, 6, (3 * BLOCK_ROWS + 5, 40)).astype(precision)
    features[:, 4:] = features[0, 4:]  # of a constant, rounding must not make a variance below zero
    scale = Scale.of(features)
    exact = features.astype(np.float64)
    np.testing.assert_allclose(scale.mean, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(scale.std, exact.std(axis=0) + STD_OFFSET, rtol=1e-9, atol=1e-7)


def test_a_head_fitted_on_standardised_features_gives_the_same_logits_on_raw_ones():
    features = np.random.default_rng(0).normal([5, -40], [0.1, 100], (50, 2)).astype(np.float32)
    scale = Scale.of(features)
    coefficients = np.array([0.7, -1.2])
    head = LinearHead.from_standardised(coefficients, 0.5, scale)
    np.testing.assert_allclose(head.logits(features), scale.standardised(features) @ coefficients + 0.5, atol=1e-4)
