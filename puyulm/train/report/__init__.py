"""A page that shows how runs went, and compares them."""
