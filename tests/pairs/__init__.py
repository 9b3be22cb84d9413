"""Model pairs as people write them: one in Linen, one in NNX, and the truth between them."""
