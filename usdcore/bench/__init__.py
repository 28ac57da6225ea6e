"""Latency and throughput of a compressed model beside the dense one, and where the gap to the MACs ratio comes from."""
