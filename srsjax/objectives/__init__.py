"""What each kind of task trains and predicts."""
