"""Strategies, machines and simulations that fuzz the protocol, and yours on top of it."""
