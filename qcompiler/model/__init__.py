"""Models on disk and in memory: safe loading, normal form, small edits, graph questions, atomic saving."""
