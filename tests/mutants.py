"""Mutation testing: change one thing in a copy of the sources, and see whether the tests of that package notice.

    python tests/mutants.py [-n 60] [--seed 0] [PACKAGE ...]

Cosmic Ray's operators say what can be changed; here it is at places drawn at random, the same ones for the same seed
and sources. What no test notices is shown as a diff. Lines with `# pragma: no mutate` are left alone; they say why.
"""

import argparse
import difflib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
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
OWN = threading.local()  # `copy`: that of a thread
# Number for number and order for order; not what fails on whatever test, and not decorators, most of which are Python's.
SUM, ORDER = "(Add|Sub|Mul|Div|FloorDiv|Mod)", "(Eq|NotEq|LtE?|GtE?)"
USED = re.compile(
    "core/(AddNot|NumberReplacer|ZeroIterationForLoop|Replace(True|False|And|Or|Break|Continue).*"
    "|ReplaceUnaryOperator_(USub_UAdd|Delete_.*)"
    f"|ReplaceBinaryOperator_({SUM}_{SUM}|Pow_Mul|BitAnd_BitOr)|ReplaceComparisonOperator_({ORDER}_{ORDER}|Is(Not)?_Is.*))"
)


@dataclass(frozen=True)
class Mutant:
    """What an operator can change at the `occurrence`-th of the places that it finds in a file, counted from 0."""

    path: Path
    source: str = field(repr=False)
    line: int
    operator: str
    occurrence: int

    @property
    def package(self) -> str:
        return self.path.parts[0]

    def mutated(self) -> str:
        """The file as it would be."""
        return mutate_code(self.source, get_operator(self.operator)(), self.occurrence)

    def is_python(self) -> bool:
        return not GRAMMAR.iter_errors(GRAMMAR.parse(self.mutated()))

    def diff(self) -> str:
        lines = (text.splitlines() for text in (self.source, self.mutated()))
        return "\n".join(difflib.unified_diff(*lines, str(self.path), self.operator, n=1, lineterm=""))


def mutants_by_place(package: str) -> list[list[Mutant]]:
    """What can be changed, by where it stands."""
    operators = {name: get_operator(name)() for name in sorted(operator_names()) if USED.match(name)}
    found: dict[tuple[Path, int, int], list[Mutant]] = defaultdict(list)
    for path in sorted((ROOT / package).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        lines, nodes = source.splitlines(), list(ast_nodes(get_ast(source)))
        for name, operator in operators.items():
            positions = (position for node in nodes for position in operator.mutation_positions(node))
            for occurrence, ((line, column), _) in enumerate(positions):
                if "pragma: no mutate" not in lines[line - 1]:
                    found[path, line, column].append(Mutant(path.relative_to(ROOT), source, line, name, occurrence))
    return [found[place] for place in sorted(found)]


def sample(package: str, count: int, seed: int) -> list[Mutant]:
    """Mutants of a package that are Python still, at most one of a place."""
    draw = random.Random(f"{seed} {package}")
    places = mutants_by_place(package)
    draw.shuffle(places)
    return list(islice(filter(Mutant.is_python, map(draw.choice, places)), count))


def copy_tree(scratch: str) -> None:
    """Give a thread a copy of what git knows or would add."""
    OWN.copy = Path(tempfile.mkdtemp(dir=scratch))
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0"):
        if name and os.path.lexists(ROOT / name):
            (OWN.copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, OWN.copy / name, follow_symlinks=False)


def passes(timeout_s: float | None, *tests: str) -> bool:
    """Whether these tests pass on the thread's copy within that time, with the same examples each time."""
    variables = {**os.environ, "PYTHONPATH": str(OWN.copy / "src"), **SETTINGS}
    command = [sys.executable, "-m", "pytest", "-xqp", "no:cacheprovider", "-m", UNIT, *tests]
    try:
        run = subprocess.run(command, cwd=OWN.copy, env=variables, timeout=timeout_s, capture_output=True, check=False)
    except subprocess.TimeoutExpired:
        return False
    return run.returncode in {0, 5}  # 5: all of them are slow


def unchanged_s(package: str) -> float:
    """How long the tests of a package take as it is."""
    begin = time.monotonic()
    if not passes(None, f"tests/{package}"):
        sys.exit(f"the tests of {package} fail on the sources as they are")
    return time.monotonic() - begin


def survives(mutant: Mutant, timeout_s: float) -> bool:
    """Whether the tests of its package pass; those that are named like its file go first."""
    folder = Path("tests", mutant.package)
    namesakes = [str(path.relative_to(OWN.copy)) for path in (OWN.copy / folder).rglob(f"test_{mutant.path.stem}.py")]
    (OWN.copy / mutant.path).write_text(mutant.mutated(), encoding="utf-8")
    alive = not namesakes or passes(timeout_s, *namesakes)
    alive = alive and passes(timeout_s, str(folder), *(f"--ignore={path}" for path in namesakes))
    (OWN.copy / mutant.path).write_text(mutant.source, encoding="utf-8")
    print("survived" if alive else "killed  ", f"{mutant.path}:{mutant.line}", mutant.operator, flush=True)
    return alive


def main() -> None:
    parser = argparse.ArgumentParser(description="Mutation testing of a random sample.")
    parser.add_argument("packages", nargs="*", default=PACKAGES, metavar="PACKAGE", help="all three by default")
    parser.add_argument("-n", type=int, default=60, help="how many mutants, as many of each package")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        pool = ThreadPoolExecutor(JOBS, initializer=copy_tree, initargs=(scratch,))
        try:
            times_s = dict(zip(options.packages, pool.map(unchanged_s, options.packages), strict=True))
            count = options.n // len(times_s)
            mutants = [mutant for package in times_s for mutant in sample(package, count, options.seed)]
            limits_s = [60 + 3 * times_s[mutant.package] for mutant in mutants]
            survived = list(compress(mutants, pool.map(survives, mutants, limits_s)))
        finally:
            pool.shutdown(cancel_futures=True)
    print(*(mutant.diff() for mutant in survived), sep="\n")
    alive, total = (Counter(mutant.package for mutant in some) for some in (survived, mutants))
    for package in total:
        print(f"{package}: {total[package] - alive[package]} of {total[package]} mutants killed (seed {options.seed})")


if __name__ == "__main__":
    main()
