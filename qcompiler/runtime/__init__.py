"""Running models: sessions, activation capture, the child process of the gate, latency."""
