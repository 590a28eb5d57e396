"""Two passes and a target for qcompile, as an example of a package that extends it."""
