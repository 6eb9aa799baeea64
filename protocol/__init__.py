"""The rules of the exchange: pure, synchronous, without I/O, clock or randomness."""
