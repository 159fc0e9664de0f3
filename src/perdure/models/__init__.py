"""Models: one file per wire dialect, translating neutral requests and pieces. Knows `domain` only."""
