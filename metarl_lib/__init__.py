"""The training code of *Learning to Adapt: deep reinforcement learning with meta-learning*."""
