"""The command line's parser: its help, its errors, and what it takes from configs and checkpoints."""
