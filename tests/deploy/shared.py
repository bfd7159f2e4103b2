"""What the tests of deploy/ share: its files, and the real command line."""

import shlex
from pathlib import Path

import typer
import yaml

from pimserve.cluster.cli.main import app
from pimserve.cluster.service.limits import USUAL_CHECKS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SERVICE_PORT, METRICS_PORT = 50051, 9464


def most_bytes(running, hosts, check_memory):
    """Of memory that a server may come to use: itself, its runs with their hosts, of 0.1 GB each, and checks."""
    checks = USUAL_CHECKS.processes * int(check_memory.removesuffix("MB")) * 10**6
    return (1 + running * (1 + hosts)) * 10**8 + checks


def documents(path):
    """All YAML documents of a file."""
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def parsed(arguments):
    """What `pimserve ARGUMENTS` would be called with; raises a usage error if it would refuse them."""
    command = typer.main.get_command(app)
    rest = shlex.split(arguments) if isinstance(arguments, str) else list(arguments)
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    return command.make_context(command.name, rest).params
