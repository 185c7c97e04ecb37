"""Training commands for the models that the project ships or tunes; they meet the pipeline only through files."""
