"""The loop: compile the context, ask the model, run tools, commit the step. Knows ports, never implementations."""
