"""What training, inference and planning share: the session on a mesh, the run folder, checkpoints, prediction."""
