"""Generated scenes and their truth, for tests of the miner and for the benchmark `scenes`."""
