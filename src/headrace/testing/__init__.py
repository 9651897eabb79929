"""Real servers and public fakes for tests, the demo and benchmarks."""
