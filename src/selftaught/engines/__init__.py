"""Generation: the sampler and the engines that drive it."""
