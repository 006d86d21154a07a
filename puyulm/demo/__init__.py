"""The whole life in miniature: `puyu demo`."""
