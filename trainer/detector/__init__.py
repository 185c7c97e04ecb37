"""A detector of remote-sensing images: a small classifier, trained from scratch on equalised sources."""
