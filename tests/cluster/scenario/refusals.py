"""What is said of scenarios and traces that cannot be used."""

from pathlib import Path

import pytest

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.errors import InputError
from tests.cluster.documents import run


def refusal(tmp_path: Path, scenario: Path | None, overrides: list[str], trace: str | None = None) -> str:
    """The message with which a run is refused; nothing must be left of its results."""
    with pytest.raises(InputError) as refused:
        run(prepare(load_scenario(scenario, overrides, trace)), tmp_path / "new" / "results")
    assert not (tmp_path / "new").exists()
    return str(refused.value)


CSV = b"arrival_s,input_tokens,output_tokens\n"
