"""A page that shows what runs scored, and every sample; and the same in the terminal."""
