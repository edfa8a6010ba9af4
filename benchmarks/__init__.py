"""What every speed claim in the docs was measured with; each file's docstring has its command."""
