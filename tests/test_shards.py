import numpy as np
import pytest

from pipeline.training import embedder
from pipeline.training.embedder import Shards


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(embedder, "SHARD_ROWS", 4)


def test_shards_cover_every_position_once(tmp_path):
    missing = Shards(tmp_path, 10).missing()
    assert [position for shard in missing for position in shard] == list(range(10))
    assert [len(shard) for shard in missing] == [4, 4, 2]
    assert Shards(tmp_path, 0).missing() == []


def test_a_saved_shard_is_no_longer_missing_and_can_be_loaded(tmp_path):
    one = Shards(tmp_path / "new", 3)
    rows = np.arange(6, dtype=np.float16).reshape(3, 2)
    one.save(range(3), rows)
    assert one.missing() == []
    np.testing.assert_array_equal(np.concatenate(one.arrays()), rows)
    assert Shards(tmp_path / "new", 7).missing() == [range(4, 7)]


def test_a_saved_shard_is_not_computed_again(tmp_path):
    some, computed = Shards(tmp_path, 10), []
    some.save(range(4, 8), np.full((4, 1), 7, np.float16))

    def compute(shard):
        computed.append(shard)
        return np.array(shard, np.float16)[:, None]

    some.compute_missing(compute, "computing")
    assert computed == [range(4), range(8, 10)]
    assert [array[:, 0].tolist() for array in some.arrays()] == [[0, 1, 2, 3], [7, 7, 7, 7], [8, 9]]
