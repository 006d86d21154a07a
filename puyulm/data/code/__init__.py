"""Source code: languages, licences, quality tiers, and repositories in the order of their imports."""
