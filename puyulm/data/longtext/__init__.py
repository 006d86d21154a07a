"""Long documents: which of them are worth a long context."""
