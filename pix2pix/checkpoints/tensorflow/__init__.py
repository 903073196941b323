"""Models of TensorFlow 1 and 2: checkpoints (:mod:`.checkpoint`) and SavedModels (:mod:`.saved_model`)."""
