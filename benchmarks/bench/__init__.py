"""What the benchmarks share: photographs with boxes, networks, methods, measures, and intervals."""
