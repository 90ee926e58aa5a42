"""What the ops run on a device beneath their arithmetic: the same results, sooner."""
