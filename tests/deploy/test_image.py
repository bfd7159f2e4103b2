"""The Dockerfile: linted, pinned, complete, and what it starts is what the program understands."""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from pimserve import __version__
from pimserve.cluster.base.rpc.channels import make_server
from tests.deploy.shared import DEPLOY, METRICS_PORT, ROOT, SERVICE_PORT, parsed

DOCKERFILE = DEPLOY / "Dockerfile"
HEALTHCHECK = DEPLOY / "healthcheck.py"


def instructions():
    """(stage, instruction, arguments) in order; continued lines joined, comments and heads dropped."""
    text = re.sub(r"(?m)^#.*\n", "", DOCKERFILE.read_text(encoding="utf-8")).replace("\\\n", " ")
    stage = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, arguments = line.partition(" ")
        if instruction == "FROM":
            stage = arguments.rpartition(" AS ")[2]
        yield stage, instruction, " ".join(arguments.split())


STEPS = list(instructions())


def of(stage, instruction):
    return [arguments for where, what, arguments in STEPS if (where, what) == (stage, instruction)]


def test_hadolint_has_no_complaint():
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_bases_are_pinned():
    stages = {where for where, _, _ in STEPS}
    bases = {arguments.split()[0] for _, what, arguments in STEPS if what == "FROM"}
    assert bases <= stages | {"${PYTHON_IMAGE}"}
    (base,) = (arguments for where, what, arguments in STEPS if (where, what) == ("", "ARG"))
    assert re.fullmatch(r"PYTHON_IMAGE=docker\.io/library/python:3\.11\.\d+-slim-\w+", base)


@pytest.mark.parametrize("stage", ["service", "ray"])
def test_images_do_not_run_as_root(stage):
    assert of(stage, "USER") == ["10001:10001"]
    assert not of(stage, "RUN")
    assert of(stage, "COPY")[0].startswith("--from=")


def test_what_is_copied_is_there_and_not_ignored():
    patterns = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").split("\n")
    kept = {line[1:] for line in patterns if line.startswith("!")}
    sources = [
        word for _, what, words in STEPS if what == "COPY" and "--from" not in words for word in words.split()[:-1]
    ]
    assert set(sources) == kept
    for source in sources:
        assert (ROOT / source).exists()
        assert not any(fnmatch(source, line) for line in patterns if line.startswith("**"))


def test_the_image_starts_a_server_that_its_own_check_finds():
    (entry,), (command,), (check,) = of("service", "ENTRYPOINT"), of("service", "CMD"), of("service", "HEALTHCHECK")
    assert json.loads(entry) == ["pimserve"]
    given = parsed(json.loads(command))
    assert given["listen"] == f"0.0.0.0:{SERVICE_PORT}"
    assert f"--mode 0750 {given['data']}" in " ".join(of("base", "RUN"))
    assert of("service", "EXPOSE") == [f"{SERVICE_PORT} {METRICS_PORT}"]
    script = json.loads(check.partition("CMD ")[2])[1]
    assert f"deploy/{HEALTHCHECK.name} {script}" in of("service", "COPY")


@pytest.mark.parametrize(
    ("stage", "locks"), [("wheel", ["build"]), ("environment", ["run"]), ("ray-environment", ["ray"])]
)
def test_what_is_installed_is_locked(stage, locks):
    installs = [part for step in of(stage, "RUN") for part in re.findall(r"pip install ([^&]+)", step)]
    locked = [part for part in installs if "--no-deps" not in part]
    assert [re.findall(r"-r (\S+)", part) for part in locked] == [[f"/opt/{name}.txt" for name in locks]]
    assert all("--require-hashes" in part for part in locked)
    assert {f"requirements/{name}.txt /opt/{name}.txt" for name in locks} <= set(of(stage, "COPY"))


@pytest.mark.slow
def test_the_wheel_can_be_built_from_what_is_copied(tmp_path):
    for words in of("wheel", "COPY"):
        *sources, _ = words.split()
        for source in sources:
            if (ROOT / source).is_dir():
                hidden = shutil.ignore_patterns("__pycache__", "*.egg-info")
                shutil.copytree(ROOT / source, tmp_path / source, symlinks=True, ignore=hidden)
            else:
                (tmp_path / source).parent.mkdir(exist_ok=True)
                shutil.copy(ROOT / source, tmp_path / source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        "wheels",
        ".",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = (tmp_path / "wheels").glob(f"pimserve-{__version__}-*.whl")
    with zipfile.ZipFile(built) as wheel:
        names = set(wheel.namelist())
    assert {"pimserve/cluster/cli/main.py", "pimserve/v1/simulation_pb2.py"} <= names
    assert any(name.startswith("pimserve/device_models/catalogue/models/") for name in names)
    assert any(name.endswith(".so") for name in names) or shutil.which("cc") is None


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(params=["plain", "tls"])
def server(request, authority, tmp_path):
    """A server with a token, as `pimserve serve` has it; yields its health servicer and the arguments of the check."""
    serving = make_server(4, token="a-token-of-sixteen-characters")
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, serving)
    if request.param == "plain":
        arguments = [f"127.0.0.1:{serving.add_insecure_port('127.0.0.1:0')}"]
    else:
        certificate = authority.issue_cert("pimserve.example")
        pair = (certificate.private_key_pem.bytes(), b"".join(part.bytes() for part in certificate.cert_chain_pems))
        port = serving.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        arguments = [f"127.0.0.1:{port}", str(tmp_path / "ca.pem"), "pimserve.example"]
    serving.start()
    yield servicer, arguments
    serving.stop(0).wait()


def checked(arguments):
    done = subprocess.run([sys.executable, HEALTHCHECK, *arguments], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode


@pytest.mark.medium
def test_health_check(server):
    servicer, arguments = server
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    assert checked(arguments) == 0
    servicer.enter_graceful_shutdown()
    assert checked(arguments) == 1


def test_health_check_of_nobody():
    assert checked(["127.0.0.1:1"]) == 1
