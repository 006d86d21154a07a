"""The data pipeline: stages over shards of documents, resumable, on all cores or on Ray."""
