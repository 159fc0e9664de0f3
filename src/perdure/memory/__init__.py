"""From an agent's state and history to what the model sees: pure functions. Knows `domain` only."""
