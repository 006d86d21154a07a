"""What makes a decoder fast on CPUs."""
