"""What Inkstone costs, measured: `uv run python -m bench`. Prints figures and ratios; fails nothing."""
