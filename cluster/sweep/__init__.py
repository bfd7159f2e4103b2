"""Many runs over a grid, and where they are made. Imports `metrics` and what is below it."""
