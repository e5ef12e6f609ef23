"""What tests share: tiny drawn tiles, and a copy of the whole project in which the real tools run."""

import fcntl
import io
import itertools
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from hypothesis import settings
from PIL import Image
from two_datasets import write_two_datasets

from pipeline.data.images import Pixels

pytest_plugins = ("shared_server",)
ROOT = Path(__file__).parent.parent

# Nothing of the machine's own settings reaches the runs: no tracking server, no experiment, no other root.
FOREIGN = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
    "PREFECT_API_URL",
    "PREFECT_HOME",  # set by an import of `flows`: all tests would share it
    "DVC_ROOT",
    "DVC_EXP_BASELINE_REV",
    "DVC_EXP_NAME",
    "GIT_COMMIT",
)

# A test that fails because the machine is busy tells nothing.
settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files first that take longest, by what `slow` says, so that side by side they do not end last.

    Of several processes, the first starts with a file that needs the trained project, and trains it; the others start
    with files that do not wait for it.
    """
    seconds: Counter[Path] = Counter()
    for item in items:
        slow = item.get_closest_marker("slow")
        seconds[item.path] += (slow.args or (3,))[0] if slow else 0
    files = [path for path, _ in seconds.most_common()]
    waiting = {item.path for item in items if "trained" in getattr(item, "fixturenames", ())}
    others = [path for path in files if path not in waiting][: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)) - 1]
    places = {path: place for place, path in enumerate(dict.fromkeys([*files[:1], *others, *files]))}
    items.sort(key=lambda item: places[item.path])


PROJECT_NAME = "my project"  # the tools and the project's own commands must do with a space
SMALL_RECIPE = {"size_px": 64, "images_per_class": 40, "mirrored_per_class": 5}


@pytest.fixture(scope="session")
def draw_tile() -> Callable[..., Pixels]:
    """Return a function that draws a small tile of noise, cracked or not, another one for each seed."""

    def draw(seed: int, *, cracked: bool = False, size_px: int = 64) -> Pixels:
        rng = np.random.default_rng(seed)
        coarse = rng.integers(90, 200, (8, 8, 1), np.uint8).repeat(3, axis=2)
        pixels = np.array(Image.fromarray(coarse).resize((size_px, size_px), Image.Resampling.BICUBIC))
        if cracked:
            row = int(rng.integers(size_px // 4, 3 * size_px // 4))
            pixels[row : row + 3] = 20
        return pixels

    return draw


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """Return a function that gives the bytes of pixels or a Pillow image in a file format, by default a fine JPEG."""

    def encode(image: Pixels | Image.Image, file_format: str = "JPEG", **settings: object) -> bytes:
        if not isinstance(image, Image.Image):
            image = Image.fromarray(image)
        if file_format == "JPEG":
            settings.setdefault("quality", 95)
        buffer = io.BytesIO()
        image.save(buffer, file_format, **settings)
        return buffer.getvalue()

    return encode


@pytest.fixture(scope="module")  # while Playwright runs, its event loop does: no other test file could have one
def browser() -> Iterator[Any]:
    """Yield a running Chromium."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("Chromium is not installed: no page is opened")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def two_datasets(
    tmp_path_factory: pytest.TempPathFactory, draw_tile: Callable[..., Pixels], encode: Callable[..., bytes]
) -> SimpleNamespace:
    """Return the folder of the data sets "ours" and "theirs", and the path of their manifest."""
    return write_two_datasets(tmp_path_factory.mktemp("two"), draw_tile, encode)


@dataclass(frozen=True)
class Project:
    """A copy of the repository in which a test may run anything."""

    root: Path

    @property
    def code(self) -> Path:
        """Where the project's packages are: in it, or where it has none, in the repository."""
        return self.root if (self.root / "pipeline").is_dir() else ROOT

    @property
    def log(self) -> Path:
        """What the last command that was started printed."""
        return self.root.with_name(f"{self.root.name}.log")

    def environment(self, **env: str) -> dict[str, str]:
        """Return the activated environment of the project, with `env` besides."""
        kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        bin_folder = str(Path(sys.executable).parent)
        settings = {"PATH": f"{bin_folder}:{kept['PATH']}", "PYTHONPATH": str(self.code), "PYTHONUNBUFFERED": "1"}
        return kept | settings | env

    def run(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the project as a person would in the activated environment."""
        return subprocess.run(
            command,
            cwd=self.root,
            env=self.environment(**env),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def start(self, *command: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a command in the project, to be killed; what it prints goes to `log`."""
        with self.log.open("wb") as output:
            return subprocess.Popen(
                command,
                cwd=self.root,
                env=self.environment(**env),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def repro(self, *arguments: str, **env: str) -> str:
        """Run `dvc repro`, which must succeed, and return what it printed."""
        finished = self.run("dvc", "repro", *arguments, **env)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout + finished.stderr

    def json(self, path: str) -> Any:
        return json.loads((self.root / path).read_text(encoding="utf-8"))

    def edit_params(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Let `change` alter the parsed params.yaml."""
        path = self.root / "params.yaml"
        params = yaml.safe_load(path.read_text(encoding="utf-8"))
        change(params)
        path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")

    def model_versions(self) -> list[tuple[str, str]]:
        """Return (version, alias or "") of all registered models."""
        with sqlite3.connect(self.root / "mlflow" / "mlflow.db") as store:
            return store.execute(
                "select cast(v.version as text), coalesce(a.alias, '') from model_versions v left join "
                "registered_model_aliases a on a.name = v.name and a.version = v.version order by v.version"
            ).fetchall()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database of MLflow without an experiment; making one takes seconds, copying it none."""
    from mlflow import MlflowClient

    database = tmp_path_factory.mktemp("empty") / "mlflow.db"
    uri = f"sqlite:///{database}"
    MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments()
    return database


def wait_until(is_so: Callable[[], object], timeout_s: float = 120) -> None:
    """Return as soon as `is_so()` is true; fail when that takes too long."""
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline_s, f"not so within {timeout_s:g} s"
        time.sleep(0.02)


def copy_of(root: Path, target: Path) -> Project:
    shutil.copytree(root, target, symlinks=True)
    return Project(target)


# Ports below the ephemeral ones, of which an outgoing connection could take one before its server starts. Each test
# process begins at another one, which depends on its process ID too, as two test runs may go on at once.
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PORTS = itertools.count(15_000 + 2_000 * WORKER + os.getpid() % 1_000)


def unused_port() -> int:
    for port in PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            break
    return port


@contextmanager
def prefect_server(folder: Path, port: int) -> Iterator[str]:
    """Run a real Prefect server whose database is in `folder`; yield the address of its API."""
    env = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    settings = {
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": "1",  # not 15: a test waits for late runs
        "PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS": "1",
    }
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "server.log").open("w") as output:
        server = subprocess.Popen(command, env=env | settings, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
    address, deadline_s = f"http://127.0.0.1:{port}/api", time.monotonic() + 120
    try:
        while not answers(f"{address}/health"):
            assert server.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline_s, "the server does not answer"
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of the API of a real Prefect server."""
    with prefect_server(tmp_path_factory.mktemp("prefect"), unused_port()) as address:
        yield address


# Of a process that serves flows: how often it asks for runs to start. By default every ten seconds.
QUICK_POLL = {"PREFECT_RUNNER_POLL_FREQUENCY": "1"}


def answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=5).is_success
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a fresh clone with small demo data and quick candidates, in which nothing has run yet."""
    root = tmp_path_factory.mktemp("fresh") / PROJECT_NAME
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listing.stdout.split("\0")):
        if (ROOT / name).is_file() and name != "dvc.lock":
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    project = Project(root)
    recipe_file = root / "data" / "demo.yaml"
    recipe = yaml.safe_load(recipe_file.read_text(encoding="utf-8")) | SMALL_RECIPE
    recipe_file.write_text(yaml.safe_dump(recipe), encoding="utf-8")

    def make_quick(params: dict[str, Any]) -> None:
        params["contract"] |= {"min_images_per_label": 20, "min_size_px": 32}
        params["backbones"] = {"mobilenet-v2": {"architecture": "mobilenet-v2", "image_size_px": 64}}
        probe, finetune = params["candidates"]["probe-lite0"], params["candidates"]["finetune-mobilenet"]
        finetune["head"]["max_epochs"] = finetune["tuning"]["max_epochs"] = 1
        params["candidates"] = {"probe": probe | {"backbone": "mobilenet-v2"}, "finetune": finetune}

    project.edit_params(make_quick)
    for command in (
        ("git", "init", "--quiet", "--initial-branch=main"),
        ("git", "config", "user.name", "test"),
        ("git", "config", "user.email", "test@example.org"),
        ("git", "add", "--all"),
        ("git", "commit", "--quiet", "--message=fresh"),
    ):
        assert project.run(*command).returncode == 0
    return project


@pytest.fixture(scope="session")
def trained(fresh: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project after its first `dvc repro`; tests work on copies of it.

    Only one process of pytest-xdist trains it, while the others wait.
    """
    is_alone = "PYTEST_XDIST_WORKER" not in os.environ
    folder = tmp_path_factory.mktemp("trained") if is_alone else tmp_path_factory.getbasetemp().parent / "trained"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            copy_of(fresh.root, folder / PROJECT_NAME).repro()
            (folder / "done").touch()
    return Project(folder / PROJECT_NAME)


@pytest.fixture
def project(trained: Project, tmp_path: Path) -> Project:
    """Return a copy of the trained project for one test."""
    return copy_of(trained.root, tmp_path / PROJECT_NAME)


@pytest.fixture
def untouched(fresh: Project, tmp_path: Path) -> Project:
    """Return a copy of the project in which nothing has run yet."""
    return copy_of(fresh.root, tmp_path / PROJECT_NAME)


@pytest.fixture(scope="session")
def dark_is_crack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, also in its served form, that takes dark for cracked.

    Its probability is 0.5 at the mean of ImageNet, less the lighter an image is; from 0.2 on, below 0.8, it is unsure.
    """
    from pipeline.inference.conversion import write_served
    from pipeline.models.calibration import Calibration, Platt, calibrated
    from pipeline.models.classifier import Classifier
    from pipeline.models.decision import Decision
    from pipeline.models.network import build_classifier
    from pipeline.models.tf import keras

    network = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()])
    head = keras.layers.Dense(1, name="head")
    graph = build_classifier(network, 32, [head])
    head.set_weights([np.full((3, 1), -1.0), np.zeros(1)])
    model = calibrated(graph, Calibration((Platt(1.0, 0.0),)))
    folder = tmp_path_factory.mktemp("dark-is-crack")
    model.save(folder / "model.keras")
    write_served(Classifier(model, Decision(0.5, 0.2, 0.8)), [np.full((8, 8, 3), 90, np.uint8)], folder)
    return folder
