"""Models looked at without compiling them: their latency, their instructions, what a target says of them."""
