"""The service with the arguments that deploy/ gives it, ports and folders aside: healthy, guarded and scraped."""

import os
import re
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.deploy.shared import DEPLOY, METRICS_PORT, SERVICE_PORT, documents

pytestmark = pytest.mark.e2e

PIMSERVE = Path(sysconfig.get_path("scripts")) / "pimserve"
TOKENS = {"pimserve-token": "a-token-for-gRPC-calls", "pimserve-metrics-token": "a-token-for-scrapes"}


@pytest.fixture
def addresses(tmp_path):
    """Of the service and of its metrics, while it runs."""
    arguments = []
    for argument in documents(DEPLOY / "compose.yaml")[0]["services"]["pimserve"]["command"]:
        text = re.sub(rf"0\.0\.0\.0:({SERVICE_PORT}|{METRICS_PORT})$", "127.0.0.1:0", argument)
        text = text.replace("/run/secrets", str(tmp_path)).replace("--data=/data", f"--data={tmp_path}/data")
        arguments.append(text)
    for name, token in TOKENS.items():
        (tmp_path / name).write_text(token, encoding="utf-8")
    environment = {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen([PIMSERVE, *arguments], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        said = {}
        while not {"metrics", "listening"} <= set(said):
            line = server.stdout.readline()
            assert line, "it has ended"
            what, _, address = line.strip().partition(" on ")
            said[what] = address
        yield said["listening"], said["metrics"]
    finally:
        server.terminate()
        assert server.wait(60) == 0
        server.stdout.close()


def scraped(address, token):
    request = urllib.request.Request(f"http://{address}/metrics")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


def called(address, token, *arguments):
    environment = {"PATH": os.environ["PATH"], "PIMSERVE_SERVER": address, "PIMSERVE_TOKEN": token}
    return subprocess.run([PIMSERVE, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_service(addresses):
    service, metrics = addresses
    check = [sys.executable, DEPLOY / "healthcheck.py", service]
    assert subprocess.run(check, capture_output=True, check=False).returncode == 0
    assert called(service, "not-the-right-token", "list").returncode == 2
    token = TOKENS["pimserve-token"]
    done = called(service, token, "launch", "--set", "workload.num_requests=50", "--set", "name=deployed", "--watch")
    assert done.returncode == 0, done.stderr
    for wrong in ("", token):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            scraped(metrics, wrong)
    text = scraped(metrics, TOKENS["pimserve-metrics-token"])
    assert re.search(r'^pimserve_run_info\{.*name="deployed".*\} 1', text, re.MULTILINE)
