"""What is learned: a batch becomes a sum of losses and the number of its targets."""
