"""What scripts/gallery is made of."""
