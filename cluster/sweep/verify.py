"""Whether the files of a folder are as they were written: results, checkpoints, or a sweep with all its runs."""

from __future__ import annotations

from pathlib import Path

from pimserve.cluster.base.checksums import SUMS_FILE, Finding, check_folder
from pimserve.cluster.base.locks import lock_folder
from pimserve.cluster.run.checkpoint_files import is_checkpoint
from pimserve.cluster.run.verify_run import (
    MADE_LATER,
    Verdict,
    is_results,
    verify_checkpoint,
    verify_results,
)
from pimserve.cluster.sweep.sweep import SWEEP_FILE
from pimserve.errors import InputError


def verify(folder: Path) -> list[Verdict]:
    """Compare the files of a folder with their checksums; a sweep's folder is followed by those of its runs.

    Raises:
        InputError: it is no such folder, or something is at work there.
    """
    if (folder / SWEEP_FILE).is_file():
        return _verify_sweep(folder)
    if is_checkpoint(folder):
        return [verify_checkpoint(folder)]
    if is_results(folder):
        return [verify_results(folder)]
    raise InputError(str(folder), "must be a results folder, a folder of checkpoints, or that of a sweep")


def _verify_sweep(folder: Path) -> list[Verdict]:
    lock = lock_folder(folder)
    if lock is None:
        raise InputError(str(folder), "is in use by a sweep: its files change")
    with lock:
        try:
            checked, findings = check_folder(folder, later=MADE_LATER, folders=True)
        except FileNotFoundError:
            message = f"has no {SUMS_FILE}: an earlier pimserve wrote it, or it was not ended"
            checked, findings = 0, [Finding(str(folder), "unchecked", message)]
        runs = sorted(run for point in folder.iterdir() if point.is_dir() for run in point.iterdir())
        return [Verdict(str(folder), "sweep", checked, findings), *(verify_results(run) for run in runs)]
