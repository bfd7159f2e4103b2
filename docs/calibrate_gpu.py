"""Derives every coefficient of the measured kernels again (docs/gpu.md), and shows it beside the catalogue's.

    python docs/calibrate_gpu.py [--write] [--cross-validate]

Reads gpu/measured.json and gpu/end_to_end.json of the reference data (the folder that PIMSERVE_REFERENCE names, by
default ../shared/reference) and docs/gpu_tables.yaml; needs `pip install -e '.[docs]'`. Takes minutes; the same data
gives the same coefficients.
"""

from __future__ import annotations

import argparse
import sys

from calibrate.collectives import fit_common
from calibrate.files import FOLDER
from calibrate.held_out import held_out_operators, held_out_served
from calibrate.report import changes, compared, operator_errors, served_errors
from calibrate.sets import SYSTEMS, fit_set, with_steps

from pimserve.device_models.kernels import load_kernels
from pimserve.errors import InputError


def calibrate(*, write: bool, cross_validate: bool) -> None:
    """Fit, show, and write where that is asked for."""
    catalogue = {f"{gpu}-{backend}": load_kernels(gpu, backend) for gpu, backend in SYSTEMS}
    common = fit_common()
    sets = {f"{gpu}-{backend}": fit_set(gpu, backend, common) for gpu, backend in SYSTEMS}
    calibrations = list(with_steps(sets))
    for calibration in calibrations:
        print("\n".join(changes(calibration)), end="\n\n")
    print("Common to algorithms of collectives: " + ", ".join(f"{name} {value:.3g}" for name, value in common.items()))
    kernels = {calibration.name: calibration.validated() for calibration in calibrations}
    operators, served = operator_errors(kernels), served_errors(kernels)
    for errors, old in ((operators, operator_errors(catalogue)), (served, served_errors(catalogue))):
        print("", *compared(("catalogue", "fitted"), old, errors), sep="\n")
    if cross_validate:
        for errors, out in ((operators, held_out_operators()), (served, held_out_served(kernels))):
            fitted = {name: errors[name] for name in out}
            print("", *compared(("fitted", "left out"), fitted, out), sep="\n")
    if write:
        for calibration in calibrations:
            (FOLDER / f"{calibration.name}.yaml").write_text(calibration.text(), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the files of the catalogue")
    parser.add_argument("--cross-validate", action="store_true", help="show errors on what fits leave out, too")
    options = parser.parse_args()
    try:
        calibrate(write=options.write, cross_validate=options.cross_validate)
    except InputError as error:
        sys.exit(str(error))
