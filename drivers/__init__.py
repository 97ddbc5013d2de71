"""Hardware: cameras, arms, and a simulated tabletop that stands in for both."""
