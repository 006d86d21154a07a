"""Safety: block lists of domains and words, and masking of personal data."""
