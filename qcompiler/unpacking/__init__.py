"""How stored bytes become the codes of weights when the runtime loads a session."""
