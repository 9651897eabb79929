"""Sources: each yields change batches in source order and is told which position is durable in the lake."""
