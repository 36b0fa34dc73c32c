"""3-D networks."""
