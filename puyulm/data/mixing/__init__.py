"""From documents to token shards, and from shards to mixtures for the phases of training."""
