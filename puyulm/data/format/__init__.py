"""Raw input to documents: web archives, pages, books, source trees; what cannot be read is set aside with a reason."""
