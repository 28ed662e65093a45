"""Throughput on one GPU at the real shapes, on random weights made on the device."""
