"""From a decided plan to a verified result: attempts, improvements, and what one call works on."""
