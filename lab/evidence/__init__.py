"""Evidence about each layer, gathered from training data before step 0."""
