"""Images on disk: codecs, fitting, atomic writes, jobs, the run record, the stream of batches, metrics, the gallery."""
