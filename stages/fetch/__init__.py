"""Fetching from a hostile web: polite to hosts, bounded in time and bytes, and never at a private address."""
