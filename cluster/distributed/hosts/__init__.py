"""Processes that each hold a part of a run, in Ray actors or of this machine, and who keeps them alive."""
