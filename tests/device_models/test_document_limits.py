"""Nesting and numbers beyond what a document may have are refused in our words, whatever the YAML library limits."""

import pytest
import yaml

from pimserve.device_models import catalogue
from pimserve.errors import InputError

REFUSAL = "x.yaml: is nested deeper than 32 levels, or has over 200,000 values"
LEVELS = {"lists": "[", "mappings": "{a: ", "both": "[{a: ", "lines": "[\n", "block lists": "- ", "block keys": "? "}


def refused(text: str) -> str:
    with pytest.raises(InputError) as caught:
        catalogue.parse_document(text, "x.yaml")
    return str(caught.value)


def shallow(levels: int) -> type[yaml.SafeLoader]:
    """A parser that gives up while scanning, as PyYAML's C parser does from 6.0.4 on (at 1,000 levels)."""

    class Shallow(yaml.SafeLoader):
        def fetch_flow_collection_start(self, token: type) -> None:
            if self.flow_level >= levels:
                raise yaml.scanner.ScannerError("while nesting", None, "too deep for this library", self.get_mark())
            super().fetch_flow_collection_start(token)

    return Shallow


@pytest.mark.parametrize("levels", [33, 1_001, 3_000])
@pytest.mark.parametrize("opening", LEVELS.values(), ids=LEVELS)
def test_deep_nesting_is_refused(opening: str, levels: int) -> None:
    assert refused(opening * levels) == REFUSAL


@pytest.mark.parametrize("parser", [yaml.SafeLoader, shallow(33), shallow(100), shallow(1_000)])
@pytest.mark.parametrize("text", ["# \N{SNOWMAN}\nrun: " + "[" * 2_000, "run:\n  a: " + "{a: " * 2_000, "[" * 34 + "]"])
def test_deep_nesting_is_refused_with_any_parser(
    parser: type[yaml.SafeLoader], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "_BaseLoader", parser)
    assert refused(text) == REFUSAL


def test_what_is_within_the_limit_is_read() -> None:
    assert catalogue.parse_document("a: " + "[" * 31 + "]" * 31, "x.yaml")
    assert refused("a: " + "[" * 32 + "]" * 32) == REFUSAL
    assert refused("a: " + "[" * 20).startswith("x.yaml:2: not valid YAML")  # unfinished, not too deep


LONG = {
    "hexadecimal": "0x" + "f" * 100_000,
    "binary": "-0b" + "1" * 100_000,
    "octal": "0" + "7" * 100_000,
    "decimal": "9" * 100_000,
    "sexagesimal": "1" + ":00" * 3_000,
    "real": "1." + "0" * 100_000,
    "sexagesimal real": "1" + ":00" * 400 + ".5",
}


@pytest.mark.parametrize("number", LONG.values(), ids=LONG)
def test_long_numbers_are_refused_with_their_line(number: str) -> None:
    expected = f"x.yaml:2: not valid YAML: a number of {len(number):,} characters; 100 at most"
    assert refused(f"a: 1\nb: {number}") == expected
    assert refused(f"a: 1\nb: [{{c: {number}}}]") == expected
    assert refused(f"a: 1\n{number}: 1" if len(number) < 1_000 else f"a: 1\n? {number}\n: 1") == expected


def test_numbers_of_100_characters_and_long_texts_are_read() -> None:
    assert catalogue.parse_document(f"a: {'9' * 100}", "x.yaml") == {"a": int("9" * 100)}
    assert catalogue.parse_document(f"a: '{'9' * 101}'", "x.yaml") == {"a": "9" * 101}


@pytest.mark.parametrize(
    ("value", "kind"), [("''", "int"), ("'-'", "int"), ("''", "float"), ("maybe", "bool"), ("foo", "timestamp")]
)
def test_a_tag_that_does_not_go_with_its_text_is_refused(value: str, kind: str) -> None:
    shown = value if value.startswith("'") else f"'{value}'"
    assert refused(f"a: 1\nb: !!{kind} {value}") == f"x.yaml:2: not valid YAML: {shown} is not of type {kind}"
