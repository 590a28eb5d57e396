"""The gate: what was written is loaded, run, compared, counted and timed before it counts as a result."""
