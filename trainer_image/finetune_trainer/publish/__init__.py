"""publish: from the trained folder to what a user takes away."""
