"""What a run's adapter becomes: merged, referenced, described, published."""
