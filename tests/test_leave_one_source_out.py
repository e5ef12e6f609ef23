import numpy as np
import pandas as pd
import pytest

from benchmarks.leave_one_source_out import missed_cracks, validation_photos


def test_the_cracks_missed_at_five_percent_of_false_alarms_of_a_hand_worked_example():
    # 40 intact images at 0..39: 2 may be called, so the threshold is above 37 and, at best, at 38
    logits = np.concatenate([np.arange(40), [50, 38.5, 37.5, 36.5, 20]]).astype(float)
    labels = np.arange(45) >= 40
    one_photo_each = np.arange(45).astype(str)
    missed, low, high = missed_cracks(labels, logits, one_photo_each)
    assert missed == pytest.approx(2 / 5)
    assert 0 <= low < missed < high <= 1


def test_a_few_photos_give_no_interval():
    labels, logits = np.array([True, False] * 4), np.arange(8.0)
    missed, low, high = missed_cracks(labels, logits, np.array(list("aabbccdd")))
    assert np.isnan([low, high]).all()
    assert missed == pytest.approx(1.0)


def test_validation_photos_are_complete_blocks_of_neighbouring_numbers():
    photos = pd.Series([f"{number:03}" for number in range(70)]).repeat(2)
    expected = [*range(8, 16), *range(40, 48)]
    assert validation_photos(photos) == [f"{number:03}" for number in expected]
