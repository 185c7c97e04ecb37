"""The data a user edits: sources, keyword packs, prompts and recipes, shipped as package data."""

from pathlib import Path

HERE = Path(__file__).parent
