"""mlflow/compose.yaml: its rules, as far as they can be read off it. tests/shared_server.py runs its commands."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.project import INBOX, LOG_FOLDER
from serving.__main__ import API_KEY
from serving.allowed_sites import ALLOWED_HOSTS
from serving.connections import WAIT_S

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "mlflow" / "compose.yaml").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
RUN_ONCE = ("buckets", "accounts")
# Of those that the Compose Specification gives a service.
KEYS = {
    "build", "cap_drop", "command", "depends_on", "environment", "healthcheck", "image", "logging", "mem_limit",
    "ports", "read_only", "restart", "security_opt", "shm_size", "stop_grace_period", "tmpfs", "volumes",
}  # fmt: skip
HEALTH_KEYS = {"test", "interval", "timeout", "retries", "start_period", "disable"}


def required_variables(text: str) -> set[str]:
    return set(re.findall(r"\$\{(\w+):\?", text))


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_only_keys_that_compose_knows(name: str) -> None:
    service = SERVICES[name]
    assert set(service) <= KEYS
    assert set(service["healthcheck"]) <= HEALTH_KEYS
    conditions = [need["condition"] for need in service.get("depends_on", {}).values()]
    assert set(conditions) <= {"service_healthy", "service_completed_successfully"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_watched_limited_and_started_again(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[a-z][\w./-]*:v?\d+\.\d+(\.\d+)?(-\w+)?", service["image"])
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert service["logging"]["options"]["max-size"]
    if name in RUN_ONCE:
        assert (service["restart"], service["healthcheck"]) == ("on-failure", {"disable": True})
    else:
        assert service["restart"] == "unless-stopped"
        assert {"test", "interval", "timeout", "retries"} <= set(service["healthcheck"])


@pytest.mark.parametrize("name", OURS)
def test_an_image_of_ours_runs_on_a_read_only_root_without_privileges(name: str) -> None:
    service = OURS[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    dockerfile = (ROOT / service["build"].get("dockerfile", "Dockerfile")).read_text(encoding="utf-8")
    target = service["build"].get("target")
    stage = re.split(r"^FROM ", dockerfile, flags=re.MULTILINE)
    last = next(text for text in stage if f"AS {target}\n" in text) if target else stage[-1]
    assert re.findall(r"^USER (\d+)$", last, re.MULTILINE) == ["10001"]
    assert "\nHEALTHCHECK " in last


def test_only_the_proxy_can_be_reached_and_only_where_it_listens() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["proxy"]
    caddyfile = (ROOT / "mlflow" / "Caddyfile").read_text(encoding="utf-8")
    listens = set(re.findall(r"^\{\$CRACKS_HOST\}:(\d+) ", caddyfile, re.MULTILINE)) | {"80", "443"}
    assert {port.split(":")[0] for port in SERVICES["proxy"]["ports"]} == listens


def test_the_proxy_leads_to_services_at_the_ports_that_their_health_is_asked_at() -> None:
    upstreams = dict(re.findall(r"reverse_proxy (\w+):(\d+)", (ROOT / "mlflow" / "Caddyfile").read_text("utf-8")))
    asked = {name: re.search(r"//\S+?:(\d+)/", str(SERVICES[name]["healthcheck"]["test"])) for name in upstreams}
    assert {name: found and found[1] for name, found in asked.items()} == upstreams


def test_the_proxy_ends_a_connection_whose_headers_come_slowly_sooner_than_the_api_would() -> None:
    caddyfile = (ROOT / "mlflow" / "Caddyfile").read_text(encoding="utf-8")
    (timeouts,) = re.findall(r"^\tservers \{\n\t\ttimeouts \{\n(.*?)\n\t\t\}", caddyfile, re.MULTILINE | re.DOTALL)
    limits = dict(re.findall(r"^\t{3}(\w+) (\d+)s$", timeouts, re.MULTILINE))
    assert 0 < int(limits["read_header"]) < WAIT_S  # without it, Caddy waits for ever


@pytest.mark.parametrize("name", SERVICES)
def test_no_secret_stands_in_the_file_or_in_a_command_line(name: str) -> None:
    service = SERVICES[name]
    for key, value in service.get("environment", {}).items():
        if re.search("PASSWORD|SECRET|KEY|AUTH_STRING", key):
            assert required_variables(value), f"{name}: {key}"
    assert "${" not in str(service.get("command", ""))


def test_nothing_starts_without_every_line_of_the_env_file() -> None:
    example = (ROOT / "mlflow" / ".env.example").read_text(encoding="utf-8")
    lines = dict(re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE))
    assert set(lines) == required_variables(TEXT)
    assert set(lines.values()) == {""}
    # What Compose may do without.
    assert set(re.findall(r"\$\{(\w+)", TEXT)) - set(lines) == {"GIT_COMMIT", "CRACKS_NOTIFY_URL"}
    assert set(re.findall(r"\$CRACKS_\w+", (ROOT / "mlflow" / "Caddyfile").read_text(encoding="utf-8"))) == {
        f"${name}" for name in SERVICES["proxy"]["environment"]
    }


def test_the_env_file_stays_out_of_git_and_of_the_images() -> None:
    ignored = subprocess.run(["git", "check-ignore", "mlflow/.env"], cwd=ROOT, check=False)
    assert ignored.returncode == 0
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert allowed[0] == "*"
    assert [line for line in allowed if line.startswith("!mlflow")] == ["!mlflow/basic_auth.ini"]


def test_the_api_sees_the_heartbeat_of_the_worker_and_both_know_whom_to_tell() -> None:
    folder = "/app/.prefect"
    for name in ("worker", "api"):
        assert f"heartbeat:{folder}" in SERVICES[name]["volumes"]
        assert SERVICES[name]["environment"]["CRACKS_NOTIFY_URL"] == "${CRACKS_NOTIFY_URL:-}"


def test_the_api_behind_the_proxy_asks_for_a_key_and_knows_its_name() -> None:
    environment = SERVICES["api"]["environment"]
    assert re.fullmatch(r"\$\{CRACKS_API_KEY:\?.*\}", environment[API_KEY])
    assert re.fullmatch(r"\$\{CRACKS_HOST:\?.*\} api", environment[ALLOWED_HOSTS])


def test_what_the_api_saw_is_where_the_worker_looks_for_drift() -> None:
    log = "predictions:/app/data/predictions"
    assert log in SERVICES["api"]["volumes"]
    assert log in SERVICES["worker"]["volumes"]


def test_every_volume_is_named_and_every_file_that_is_mounted_is_there() -> None:
    mounted = [volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])]
    files = {source for source in mounted if source.startswith(".")}
    assert set(mounted) - files == set(COMPOSE["volumes"])
    assert [source for source in files if not (ROOT / "mlflow" / source).exists()] == []


def volumes_of(name: str) -> dict[str, str]:
    """Return what a service keeps where: what is mounted by its path below /app."""
    split = [volume.split(":", 1) for volume in SERVICES[name]["volumes"]]
    return {target.removeprefix("/app/"): source for source, target in split}


def test_the_worker_sees_what_the_api_answered_and_collected() -> None:
    worker, api = volumes_of("worker"), volumes_of("api")
    assert worker[str(LOG_FOLDER)] == api[str(LOG_FOLDER)]
    assert worker[str(INBOX)] == api[str(INBOX)]


def test_all_that_a_stage_writes_is_kept_in_a_volume() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"].values()
    bodies = [stage.get("do", stage) for stage in stages]
    written = [out for body in bodies for kind in ("outs", "metrics", "plots") for out in body.get(kind, [])]
    paths = [next(iter(out)) if isinstance(out, dict) else out for out in written]
    volumes = {target for target, source in volumes_of("worker").items() if not source.startswith(".")}
    assert {Path(path).parts[0] for path in paths} <= volumes
