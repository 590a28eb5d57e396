"""Training of what a plan can store: compressors that keep weights on their grids, and the driver that moves them."""
