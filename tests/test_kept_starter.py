import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.inference import kept_starter
from pipeline.inference.kept_starter import KEY_FILE, _built_from, keep_starter, served_starter
from pipeline.inference.served import MAX_GOLDEN_DIFFERENCE, ServedModel

IN_A_NEW_PROCESS = """
import sys
from pathlib import Path
from pipeline.registry.model_lookup import found_model
with found_model("none", "starter") as found:
    print(found.folder)
    print([name for name in ("tensorflow", "keras", "mlflow") if name in sys.modules])
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return served_starter(tmp_path_factory.mktemp("built") / "starter")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder that keeps the starter outside a project."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DVC_ROOT", "")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "concrete-cracks" / f"starter-{_built_from()[:16]}"


def test_a_starter_that_is_kept_is_used_without_tensorflow(built, cache):
    shutil.copytree(built, cache)
    command = [sys.executable, "-c", IN_A_NEW_PROCESS]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines() == [str(cache), "[]"]


@pytest.mark.slow
def test_two_processes_at_once_build_it_once_and_it_answers_as_the_keras_model(cache):
    code = "import sys; from pathlib import Path; from pipeline.inference.kept_starter import keep_starter; "
    code += "keep_starter(Path(sys.argv[1])); print('tensorflow' in sys.modules)"
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(cache)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert sorted(process.communicate()[0] for process in both) == ["False\n", "True\n"]
    assert ServedModel.load(cache).golden_difference() < MAX_GOLDEN_DIFFERENCE
    assert sorted(path.name for path in cache.parent.iterdir()) == [f".{cache.name}.lock", cache.name]


@pytest.mark.slow
def test_a_damaged_or_an_older_one_is_built_again(built, cache, tmp_path):
    for name in ("openvino.bin", KEY_FILE):
        shutil.copytree(built, cache, dirs_exist_ok=True)
        damaged = (cache / name).read_bytes()[:-9]
        (cache / name).write_bytes(damaged)
        assert served_starter(tmp_path / "scratch") == cache
        assert len((cache / name).read_bytes()) > len(damaged)
        assert ServedModel.load(cache).golden_difference() < MAX_GOLDEN_DIFFERENCE


def test_in_the_cache_of_a_user_that_of_one_version_never_replaces_that_of_another(built, cache, monkeypatch, tmp_path):
    shutil.copytree(built, cache)
    other = tmp_path / "detector.npz"
    shutil.copy(kept_starter.STARTER_FILE, other)
    monkeypatch.setattr(kept_starter, "STARTER_DETECTOR", other)
    monkeypatch.setattr(kept_starter, "keep_starter", Path.mkdir)
    assert served_starter(tmp_path / "scratch").parent == cache.parent
    assert len(list(cache.parent.iterdir())) == 2
    assert (cache / KEY_FILE).read_bytes() == (built / KEY_FILE).read_bytes()


@pytest.mark.slow
def test_where_nothing_can_be_kept_it_is_built_in_the_scratch_folder(cache, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert served_starter(tmp_path / "scratch") == tmp_path / "scratch"
    assert ServedModel.load(tmp_path / "scratch").image_size_px == 224


def test_in_a_project_it_is_kept_where_the_server_looks_for_it(built, cache, tmp_path):
    (tmp_path / ".dvc").mkdir()
    shutil.copytree(built, tmp_path / "data" / "serving" / "starter")
    assert served_starter(tmp_path / "scratch") == tmp_path / "data" / "serving" / "starter"
    keep_starter(tmp_path / "data" / "serving" / "starter")
    assert not cache.exists()
