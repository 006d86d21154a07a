"""What a pipeline run did, as one page to read, and its records in the terminal."""
