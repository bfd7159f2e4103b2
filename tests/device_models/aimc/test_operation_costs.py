"""What operations cost on AIMC chips, against the paper's own table (arXiv 2602.10254, second-hand)."""

import pytest

from pimserve.device_models.aimc.operation_costs import OpCost, PaperTableCosts

WIDTHS = (256, 512, 768, 1024)
TABLE = {  # (ns, pJ) at these widths
    "norm": ((50, 20.96), (50, 20.96), (100, 41.92), (100, 41.92)),
    "relu": ((1, 0.02), (1, 0.03), (1, 0.05), (1, 0.06)),
    "gelu": ((22, 9.63), (38, 19.25), (54, 28.88), (70, 38.51)),
    "add": ((12, 9.43), (20, 18.86), (28, 28.29), (36, 37.72)),
    "hop": ((24, 12.93), (24, 25.87), (48, 38.80), (48, 51.73)),
}


@pytest.mark.parametrize(("operation", "width"), [(name, width) for name in TABLE for width in WIDTHS])
def test_the_paper_table_is_met_at_its_widths(operation: str, width: int) -> None:
    costs = PaperTableCosts()
    cost: OpCost = (
        costs.activation(operation, width) if operation in {"relu", "gelu"} else getattr(costs, operation)(width)
    )
    ns, pj = TABLE[operation][WIDTHS.index(width)]
    assert cost.ps == round(ns * 1000)
    assert 1000 * cost.nj == pytest.approx(pj, rel=3e-4, abs=0.006)  # the table has two places, our factors three
