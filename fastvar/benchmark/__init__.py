"""Steps of optimizers, measured side by side with the same steps in other libraries: what `fastvar bench` runs."""
