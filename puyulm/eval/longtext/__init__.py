"""Long texts for evaluation: haystacks, samples that just fit a length, and the metrics of long-context benchmarks."""
