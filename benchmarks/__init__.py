"""Programs that measure every speed claimed in the docs; each file's docstring has its command."""
