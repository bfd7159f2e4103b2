"""3D analog in-memory computing: stacked crossbars whose weights never move (Buechel et al., 2025)."""
