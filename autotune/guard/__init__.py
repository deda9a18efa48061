"""Whether the tuned point learns as well per env step as the baseline: pilots of both, compared."""
