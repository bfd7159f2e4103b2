"""Mutation testing: change one thing in a copy of the sources, and see whether the tests of that package notice.

    python tests/mutants.py [-n 60] [--seed 0] [PACKAGE ...]

Cosmic Ray's operators say what can be changed; here it is at places drawn at random, the same ones for the same seed.
What no test notices is shown as a diff.
"""

import argparse
import difflib
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import compress, islice
from pathlib import Path

import parso
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("device_models", "loadgen", "scheduler")
UNIT = "not e2e and not slow and not ray and not server"
GRAMMAR = parso.load_grammar()
JOBS = 2  # at once, each on a copy of the tree
SETTINGS = {"PYTHONDONTWRITEBYTECODE": "1", "HYPOTHESIS_PROFILE": "mutants"}
MEMORY_BYTES = 4 << 30  # for each process: a mutant may want all there is
OWN = threading.local()  # `copy`: that of a thread
# Numbers for numbers and orders for orders; other changes fail whatever is tested.
SUM, ORDER = "(Add|Sub|Mul|Div|FloorDiv|Mod)", "(Eq|NotEq|LtE?|GtE?)"
USED = re.compile(
    "core/(AddNot|NumberReplacer|ZeroIterationForLoop|Replace(True|False|And|Or|Break|Continue).*"
    "|ReplaceUnaryOperator_(USub_UAdd|Delete_.*)"
    f"|ReplaceBinaryOperator_({SUM}_{SUM}|Pow_Mul|BitAnd_BitOr)|ReplaceComparisonOperator_({ORDER}_{ORDER}|Is(Not)?_Is.*))"
)
SPARED = re.compile(r" *@|.*frozen=|.*# pragma: no mutate")  # lines: those with the pragma say why


@dataclass(frozen=True)
class Mutant:
    """What an operator can change at the `occurrence`-th of the places that it finds in a file, counted from 0."""

    path: Path
    source: str = field(repr=False)
    line: int
    operator: str
    occurrence: int

    def mutated(self) -> str:
        return mutate_code(self.source, get_operator(self.operator)(), self.occurrence)

    def is_python(self) -> bool:
        return not GRAMMAR.iter_errors(GRAMMAR.parse(self.mutated()))

    def diff(self) -> str:
        lines = (text.splitlines() for text in (self.source, self.mutated()))
        return "\n".join(difflib.unified_diff(*lines, str(self.path), self.operator, n=1, lineterm=""))


def mutants_by_place(package: str) -> dict[str, list[Mutant]]:
    """What can be changed, by its file and its line, with a bar where it stands."""
    operators = {name: get_operator(name)() for name in sorted(operator_names()) if USED.match(name)}
    found: dict[str, list[Mutant]] = defaultdict(list)
    for path in sorted((ROOT / package).rglob("*.py")):
        source, file = path.read_text(encoding="utf-8"), path.relative_to(ROOT)
        lines, nodes = source.splitlines(), list(ast_nodes(get_ast(source)))
        for name, operator in operators.items():
            positions = (position for node in nodes for position in operator.mutation_positions(node))
            for occurrence, ((line, column), _) in enumerate(positions):
                text = lines[line - 1]
                if not SPARED.match(text):
                    place = f"{file} {text[:column].lstrip()}|{text[column:]}"
                    found[place].append(Mutant(file, source, line, name, occurrence))
    return found


def sample(package: str, count: int, seed: int) -> list[Mutant]:
    """Mutants of a package that are Python still, at most one of a place: the same ones while their lines stay."""
    drawn = {}
    for place, mutants in mutants_by_place(package).items():
        draw = random.Random(f"{seed} {place}")
        drawn[draw.random()] = draw.choice(mutants)
    return list(islice(filter(Mutant.is_python, (drawn[rank] for rank in sorted(drawn))), count))


def copy_tree(scratch: str) -> None:
    """Give a thread a copy of what git knows or would add."""
    OWN.copy = Path(tempfile.mkdtemp(dir=scratch))
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0"):
        if name and os.path.lexists(ROOT / name):
            (OWN.copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, OWN.copy / name, follow_symlinks=False)


def passes(*tests: str) -> bool:
    """Whether these tests pass on the thread's copy, with the same examples each time, none of them for minutes."""
    variables = {**os.environ, "PYTHONPATH": str(OWN.copy / "src"), **SETTINGS}
    command = [sys.executable, "-m", "pytest", "-xqp", "no:cacheprovider", "--timeout=120", "-m", UNIT, *tests]
    run = subprocess.run(command, cwd=OWN.copy, env=variables, capture_output=True, check=False)
    return run.returncode in {0, 5}  # 5: all of them are slow


def survives(mutant: Mutant) -> bool:
    """Whether the tests of its package pass; those of its file go first, and then those of its folder."""
    name, home = f"test_{mutant.path.name}", OWN.copy / "tests" / mutant.path.parent
    tests = (OWN.copy / "tests" / mutant.path.parts[0]).rglob("test_*.py")
    nearest_first = sorted(tests, key=lambda test: (test.name != name, test.parent != home, test))
    (OWN.copy / mutant.path).write_text(mutant.mutated(), encoding="utf-8")
    alive = passes(*map(str, nearest_first))
    (OWN.copy / mutant.path).write_text(mutant.source, encoding="utf-8")
    print("survived" if alive else "killed  ", f"{mutant.path}:{mutant.line}", mutant.operator, flush=True)
    return alive


def main() -> None:
    parser = argparse.ArgumentParser(description="Mutation testing of a random sample.")
    parser.add_argument("packages", nargs="*", default=PACKAGES, metavar="PACKAGE", help="all three by default")
    parser.add_argument("-n", type=int, default=60, help="how many mutants, as many of each package")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        pool = ThreadPoolExecutor(JOBS, initializer=copy_tree, initargs=(scratch,))
        try:
            unchanged = pool.map(passes, (f"tests/{package}" for package in options.packages))
            count = options.n // len(options.packages)
            mutants = [mutant for package in options.packages for mutant in sample(package, count, options.seed)]
            if not all(unchanged):
                sys.exit("tests fail on the sources as they are")
            survived = list(compress(mutants, pool.map(survives, mutants)))
        finally:
            pool.shutdown(cancel_futures=True)
    print(*(mutant.diff() for mutant in survived), sep="\n")
    alive, total = (Counter(mutant.path.parts[0] for mutant in some) for some in (survived, mutants))
    for package in total:
        print(f"{package}: {total[package] - alive[package]} of {total[package]} mutants killed (seed {options.seed})")


if __name__ == "__main__":
    main()
