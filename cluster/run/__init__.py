"""One run: results folder, checkpoints, history, pace, live control; observers are handed in.

Imports `scenario`, `base`."""
