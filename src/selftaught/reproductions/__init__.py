"""Each paper's table in miniature: arms, metrics, the claim."""
