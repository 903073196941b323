"""Models of TensorFlow 1 and 2: checkpoints and SavedModels."""
