"""compose.yaml: it meets the schema of Compose, mounts what is there, and its parts find each other."""

import re
import stat
import subprocess
import sysconfig
from pathlib import Path

import pytest

from pimserve import __version__
from tests.deploy.shared import DEPLOY, METRICS_PORT, SERVICE_PORT, documents, most_bytes, parsed

COMPOSE = DEPLOY / "compose.yaml"
(DOCUMENT,) = documents(COMPOSE)
SERVICES = DOCUMENT["services"]


def mounts(service):
    """Where in the container each source is mounted."""
    return {target: source for source, target, *_ in (text.split(":") for text in SERVICES[service]["volumes"])}


@pytest.mark.medium
def test_it_meets_the_schema():
    check = Path(sysconfig.get_path("scripts")) / "check-jsonschema"
    command = [check, "--builtin-schema", "vendor.compose-spec", COMPOSE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_confined(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in service["ports"])
    assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
    assert service["healthcheck"]["test"][0] == "CMD"
    assert set(service["secrets"]) <= set(DOCUMENT["secrets"])
    for other, how in service.get("depends_on", {}).items():
        assert "healthcheck" in SERVICES[other]
        assert how == {"condition": "service_healthy"}


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_is_there(name):
    for source in mounts(name).values():
        if source.startswith("."):
            assert (DEPLOY / source).is_dir(), source
        else:
            assert source in DOCUMENT["volumes"]


def test_the_service_is_started_as_it_is_reached():
    service = SERVICES["pimserve"]
    given = parsed(service["command"])
    assert service["image"] == f"pimserve:{__version__}"
    most = most_bytes(given["max_running"], given["max_hosts"], given["check_memory"])
    assert most < int(service["mem_limit"].removesuffix("g")) << 30
    assert given["listen"] == f"0.0.0.0:{SERVICE_PORT}"
    assert given["metrics"] == f"0.0.0.0:{METRICS_PORT}"
    assert service["ports"] == [f"127.0.0.1:{SERVICE_PORT}:{SERVICE_PORT}"]
    assert str(given["data"]) in mounts("pimserve")
    secrets = {Path("/run/secrets") / name for name in service["secrets"]}
    assert {given["token_file"], given["metrics_token_file"]} == secrets
    build = service["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"


def test_prometheus_finds_the_service():
    command = dict(option.partition("=")[::2] for option in SERVICES["prometheus"]["command"])
    folders = mounts("prometheus")
    config = Path(command["--config.file"])
    (document,) = documents(DEPLOY / folders[str(config.parent)] / config.name)
    jobs = [job for job in document["scrape_configs"] if "pimserve" in str(job["static_configs"])]
    assert jobs
    for job in jobs:
        (entry,) = job["static_configs"]
        assert entry["targets"] == [f"pimserve:{METRICS_PORT}"]
        token = Path(job["authorization"]["credentials_file"])
        assert token.parent == Path("/run/secrets")
        assert token.name in SERVICES["prometheus"]["secrets"]
    for pattern in document.get("rule_files", ()):
        assert list((DEPLOY / folders[str(config.parent)]).glob(pattern)), pattern
    assert command["--storage.tsdb.path"] in folders
    consoles = Path(command["--web.console.templates"])
    assert list((DEPLOY / folders[str(config.parent)] / consoles.relative_to(config.parent)).glob("*.html"))


def test_grafana_finds_prometheus_and_the_dashboards():
    folders = mounts("grafana")
    provisioning = DEPLOY / folders["/etc/grafana/provisioning"]
    (sources,) = map(documents, (provisioning / "datasources").glob("*.y*ml"))
    assert {source["url"] for source in sources[0]["datasources"]} == {"http://prometheus:9090"}
    (providers,) = map(documents, (provisioning / "dashboards").glob("*.y*ml"))
    assert {provider["options"]["path"] for provider in providers[0]["providers"]} <= set(folders)
    assert list((DEPLOY / folders["/var/lib/grafana/dashboards"]).glob("*.json"))


def test_grafana_asks_nobody_outside():
    settings = SERVICES["grafana"]["environment"]
    assert settings["GF_PLUGINS_PREINSTALL_DISABLED"] == "true"
    for name in ("ANALYTICS_REPORTING", "ANALYTICS_CHECK_FOR_UPDATES", "NEWS_NEWS_FEED"):
        assert next(value for key, value in settings.items() if key.startswith(f"GF_{name}")) == "false"


def test_secrets_are_made_once_and_kept(tmp_path):
    script = tmp_path / "make-secrets"
    script.write_bytes((DEPLOY / "make-secrets").read_bytes())

    def made():
        subprocess.run(["sh", script], check=True)
        return {file.name: file.read_text(encoding="utf-8") for file in (tmp_path / "secrets").iterdir()}

    first = made()
    assert {f"./secrets/{name}" for name in first} == {secret["file"] for secret in DOCUMENT["secrets"].values()}
    assert all(re.fullmatch(r"[0-9a-f]{48}", secret) for secret in first.values())
    assert len(set(first.values())) == len(first)
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert made() == first
    assert stat.S_IMODE((DEPLOY / "make-secrets").stat().st_mode) & 0o111
