"""What makes a sum of private numbers safe to release: masks, noise, and their accounting."""
