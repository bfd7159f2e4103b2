"""Reports: runs and sweeps as one HTML file with pictures."""
