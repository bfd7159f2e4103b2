"""Write the dashboards' JSON, or with --check say whether what is committed is what would be written.

python deploy/grafana/generate.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from boards import BOARDS
from panels import render

HERE = Path(__file__).parent / "dashboards"


def main() -> None:
    """Generate, or check."""
    fresh = {
        HERE / f"{board.uid}.json": render(board, [other for other in BOARDS if other is not board]) for board in BOARDS
    }
    if "--check" in sys.argv[1:]:
        there = {path: path.read_text(encoding="utf-8") for path in HERE.glob("*.json")}
        changed = sorted(path.name for path in there.keys() | fresh.keys() if there.get(path) != fresh.get(path))
        if changed:
            sys.exit(f"not as generated: {', '.join(changed)}; run python deploy/grafana/generate.py")
        return
    for path, text in fresh.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
