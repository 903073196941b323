"""Models of Keras 2 and 3: .keras and .h5 files, whole models and weights alone."""
