"""The steps. The number in a file's name is the revision it leads to."""
