import json
from pathlib import Path

import pytest
from two_datasets import PARAMS

from pipeline.params import Params
from pipeline.training import checkpoints
from pipeline.training.checkpoints import TrainingHistory, checkpoint_folder

ANOTHER = {
    "small": "other",
    "ours": "theirs",
    "adam": "rmsprop",
    "horizontal": "vertical",
    "block_16_expand": "block_15_expand",
}


class KilledError(Exception):
    """Simulates the end of the process."""


def ignore(step, values):
    pass


def another(value):
    if isinstance(value, str):
        return ANOTHER[value]
    if isinstance(value, list):
        return [another(item) for item in value]
    return {None: 1}.get(value, value / 2 if isinstance(value, float) else (value or 0) + 1)


def variants(section, path=()):
    """Yield the path of every setting of a candidate but its kind, and the setting itself."""
    for name, value in section.items():
        if isinstance(value, dict):
            yield from variants(value, (*path, name))
        elif name != "kind":
            yield (*path, name), value


def with_setting(path, value):
    settings = json.loads(json.dumps(PARAMS))
    section = settings
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = value
    return Params.model_validate(settings)


@pytest.mark.parametrize("name", ["probe", "finetune"])
def test_each_setting_has_its_own_checkpoint_folder_and_so_has_another_tracer(name, tmp_path, monkeypatch):
    manifest = tmp_path / "manifest"
    manifest.write_bytes(b"one split")
    changes = {("candidates", name, *path): another(value) for path, value in variants(PARAMS["candidates"][name])} | {
        ("backbones", "small", "architecture"): "efficientnet-lite0",
        ("backbones", "small", "image_size_px"): 33,
    }
    folders = [checkpoint_folder(tmp_path, manifest, Params.model_validate(PARAMS), name)]
    folders += [checkpoint_folder(tmp_path, manifest, with_setting(*change), name) for change in changes.items()]
    manifest.write_bytes(b"another split")
    folders += [checkpoint_folder(tmp_path, manifest, Params.model_validate(PARAMS), name)]
    (tmp_path / "tracer.bin").write_bytes(b"another tracer")
    monkeypatch.setattr(checkpoints, "TRACER_WEIGHTS", tmp_path / "tracer.bin")
    folders += [checkpoint_folder(tmp_path, manifest, Params.model_validate(PARAMS), name)]
    assert len(folders) == len(changes) + 3 == (12 if name == "probe" else 21)
    assert len(set(folders)) == len(folders)


def test_the_checkpoint_folder_is_kept_if_only_another_candidate_or_the_costs_change(tmp_path):
    (tmp_path / "manifest").write_bytes(b"one split")
    folders = {
        checkpoint_folder(tmp_path, tmp_path / "manifest", params, "probe")
        for params in (
            Params.model_validate(PARAMS),
            with_setting(("candidates", "finetune", "seed"), 1),
            with_setting(("decide", "missed_crack_cost"), 9),
            with_setting(("backbones", "other", "image_size_px"), 96),
        )
    }
    assert len(folders) == 1


def test_rows_of_a_killed_run_are_dropped_when_the_epoch_is_repeated(tmp_path):
    path, steps = tmp_path / "unfinished" / "history.jsonl", []
    killed = TrainingHistory(path, ignore)
    for phase, epoch in (("head", 0), ("head", 1), ("tuning", 0), ("tuning", 1)):
        killed.add(phase, epoch, {"loss": 1.0})
    resumed = TrainingHistory(path, lambda step, values: steps.append((step, values)))
    assert resumed.rows == killed.rows
    resumed.add("tuning", 1, {"loss": 0.5})
    resumed.add("tuning", 2, {"loss": 0.4})
    assert [(row["step"], row["phase"], row["epoch"], row["loss"]) for row in TrainingHistory(path, ignore).rows] == [
        (0, "head", 0, 1.0),
        (1, "head", 1, 1.0),
        (2, "tuning", 0, 1.0),
        (3, "tuning", 1, 0.5),
        (4, "tuning", 2, 0.4),
    ]
    assert steps == [(3, {"loss": 0.5}), (4, {"loss": 0.4})]


def test_a_history_killed_while_writing_keeps_its_earlier_rows(tmp_path, monkeypatch):
    history = TrainingHistory(tmp_path / "history.jsonl", ignore)
    history.add("head", 0, {"loss": 1.0})

    def cut(path, text, **_):
        path.write_bytes(text[:-5].encode())
        raise KilledError("while writing")

    monkeypatch.setattr(Path, "write_text", cut)
    with pytest.raises(KilledError, match="while writing"):
        history.add("head", 1, {"loss": 0.5})
    assert [row["epoch"] for row in TrainingHistory(history.path, ignore).rows] == [0]


def test_a_loss_that_is_no_number_is_never_the_best(tmp_path):
    history = TrainingHistory(tmp_path / "history.jsonl", ignore)
    for epoch, loss in enumerate((0.5, float("nan"), 0.25)):
        history.add("head", epoch, {"val_loss": loss})
    losses = TrainingHistory(history.path, ignore).losses("head")
    assert min(range(3), key=losses.__getitem__) == 2
    assert losses[1] == float("inf")
