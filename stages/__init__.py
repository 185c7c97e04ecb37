"""One module a stage: what it does to rows, and nothing of scheduling or paths."""
